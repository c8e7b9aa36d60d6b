"""What the tests of source edits share: run a file, edit it, and check what holds for every edit."""

from __future__ import annotations

import ast
import itertools
import linecache
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainlint.fixes.edit import Fix
from trainlint.fixes.source import SourceEdits, SourceText, apply
from trainlint.loss.source import WrittenSite
from trainlint.sites import Site, construction_site, recording

IMPORTS = "import torch\nfrom torch import nn\nimport torch.nn.functional as F\n"
_COUNTER = itertools.count()

Edit = Callable[[SourceEdits, dict[str, Any], Path], Fix]


def run(path: Path) -> dict[str, Any]:
    """The names of a file after it has run, as an import would run it."""
    linecache.checkcache(str(path))
    module = types.ModuleType(f"_edited_{next(_COUNTER)}")
    code = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    with recording():
        exec(code, vars(module))
    return vars(module)


def site_of(path: Path, shown: str) -> Site:
    """The place of the only call in a file whose text is this."""
    text = SourceText.read(str(path))
    assert text is not None
    wanted = ast.dump(ast.parse(shown, mode="eval").body)
    found = [node for node in text.walk(ast.Call) if ast.dump(node) == wanted]
    assert len(found) == 1, (shown, len(found))
    assert isinstance(found[0], ast.expr)
    return WrittenSite(text, found[0])


def made_at(names: dict[str, Any], name: str) -> Site | None:
    """Where the layer of this name was constructed."""
    layer: Any = names
    for part in name.split("."):
        layer = layer[part] if isinstance(layer, dict) else getattr(layer, part)
    return construction_site(layer)


def written(path: Path, fix: Fix) -> str:
    """The text of the file with the edits of a fix."""
    text = SourceText.read(str(path))
    assert text is not None
    return apply(text.text, fix.edits)


def edited(path: Path, source: str, edit: Edit, *, raw: bytes | None = None) -> str:
    """The source after an edit, of which everything is checked that holds for each: see `check`."""
    path.write_bytes(source.encode() if raw is None else raw)
    fix = edit(SourceEdits(), run(path), path)
    assert fix.edits, fix.obstacle
    assert not fix.obstacle
    return check(path, fix)


def refused(path: Path, source: str, edit: Edit) -> str:
    """What stands in the way of an edit that must be refused."""
    path.write_text(source, encoding="utf-8", newline="")
    fix = edit(SourceEdits(), run(path), path)
    assert fix.edits == [], written(path, fix)
    assert fix.safety == "display-only"
    assert fix.obstacle
    return fix.obstacle


def check(path: Path, fix: Fix) -> str:
    """The edited text: it runs, and differs from the file within the edits only, to the byte."""
    raw = path.read_bytes()
    text = SourceText.read(str(path))
    assert text is not None
    after = apply(text.text, fix.edits)
    new = text.encoded(after)
    again = SourceText.decoded(str(path), new)
    assert again is not None
    assert (again.text, again.encoding, again.marked) == (after, text.encoding, text.marked)
    if len({*re.findall("\r\n|\r|\n", text.text)}) == 1:
        assert {*re.findall("\r\n|\r|\n", after)} <= {text.newline}
    _assert_untouched_elsewhere(text, fix, after)
    path.write_bytes(new)
    try:
        run(path)
    finally:
        path.write_bytes(raw)
    return after


def _assert_untouched_elsewhere(text: SourceText, fix: Fix, after: str) -> None:
    """Every character outside of the edits is there, in order."""
    rest, place = [], 0
    for edit in sorted(fix.edits, key=lambda edit: (edit.location.row, edit.location.column)):
        start = text.starts[edit.location.row - 1] + edit.location.column - 1
        rest.append(text.text[place:start])
        place = text.starts[edit.end_location.row - 1] + edit.end_location.column - 1
    rest.append(text.text[place:])
    position = 0
    for part in rest:
        position = after.index(part, position) + len(part)
