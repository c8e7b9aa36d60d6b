"""Edits where a training's data are made: options of a `DataLoader`, tensors of a `TensorDataset`.

A loader is known by the site of its constructor. Its tensors are looked for in the same file: the
`TensorDataset` that it is given, by its name, through `random_split` and `Subset`. No torch.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Final

from trainlint.fixes.changes import Refused
from trainlint.fixes.edit import Fix
from trainlint.fixes.reading import bound_to, call, last_name, refusable, with_keyword

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainlint.fixes.source import SourceEdits, SourceText
    from trainlint.sites import Site

_SIMPLE: Final = (ast.Name, ast.Attribute, ast.Call, ast.Subscript)
_PARTS: Final = ("random_split", "Subset")
_DEEPEST: Final = 4


@refusable
def with_option(edits: SourceEdits, site: Site | None, name: str, value: str, *, title: str) -> Fix:
    """`shuffle=True`, `drop_last=True` in the `DataLoader` that is made at `site`."""
    text, made = call(edits, site, "the loader")
    if last_name(made.func) != "DataLoader":
        raise Refused("the loader is made in another way than by DataLoader(...)")
    if any(word.arg is None for word in made.keywords):
        raise Refused("its options are unpacked from elsewhere")
    if any(word.arg in ("sampler", "batch_sampler") for word in made.keywords):
        raise Refused("its sampler gives the order")
    given = next((word.value for word in made.keywords if word.arg == name), None)
    if isinstance(given, ast.Constant):
        return edits.replaced_expression(text, given, value, title=title)
    if given is not None or len(made.args) > 2:
        raise Refused(f"`{name}` is decided elsewhere")
    source = ast.get_source_segment(text.text, made) or ""
    if not source.endswith(")") or "#" in source:
        raise Refused("a comment stands in the call")
    return edits.replaced_expression(text, made, with_keyword(source, name, value), title=title)


@refusable
def with_tensor(
    edits: SourceEdits, sites: Sequence[Site | None], place: int, change: str, *, title: str
) -> Fix:
    """`change`, such as `{}.long()`, of a tensor of the `TensorDataset` behind each of these loaders.

    `place` counts from 0, the last one is -1.
    """
    changed: dict[tuple[int, int], Fix] = {}
    for site in sites:
        text, tensor = _tensor(edits, site, place)
        source = ast.get_source_segment(text.text, tensor) or ""
        if not isinstance(tensor, _SIMPLE):
            source = f"({source})"
        changed[tensor.lineno, tensor.col_offset] = edits.replaced_expression(
            text, tensor, change.format(source), title=title
        )
    return edits.together(*changed.values(), title=title)


def _tensor(edits: SourceEdits, site: Site | None, place: int) -> tuple[SourceText, ast.expr]:
    text, made = call(edits, site, "the loader")
    given = made.args[0] if made.args else None
    given = given or next((word.value for word in made.keywords if word.arg == "dataset"), None)
    for _ in range(_DEEPEST):
        if isinstance(given, ast.Call) and last_name(given.func) == "TensorDataset":
            if given.keywords or any(isinstance(each, ast.Starred) for each in given.args):
                raise Refused("the tensors of the data set are unpacked from elsewhere")
            if not -len(given.args) <= place < len(given.args) or len(given.args) < 2:
                raise Refused("the data set has other tensors")
            return text, given.args[place]
        if isinstance(given, ast.Call) and last_name(given.func) in _PARTS and given.args:
            given = given.args[0]
        elif isinstance(given, ast.Name):
            given = bound_to(text, given) or _unpacked(text, given)
        else:
            break
    raise Refused("the data set is no TensorDataset of this file")


def _unpacked(text: SourceText, name: ast.Name) -> ast.expr | None:
    """`random_split(...)` for one of the names that it is assigned to, where they are assigned once."""
    assert text.tree is not None
    found: list[ast.expr] = []
    for node in ast.walk(text.tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                names = [part.id for part in ast.walk(target) if isinstance(part, ast.Name)]
                if name.id in names:
                    found.append(node.value)
    is_split = len(found) == 1 and isinstance(found[0], ast.Call)
    return found[0] if is_split and last_name(found[0].func) in _PARTS else None  # type: ignore[attr-defined]
