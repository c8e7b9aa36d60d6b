"""Edits of source: every spelling of a constructor, what is refused, and what is gone afterwards."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import trainlint
from trainlint.fixes.edit import Edit, Fix, Location, Safety
from trainlint.fixes.source import SourceEdits, SourceText, apply
from trainlint.sites import construction_site, recording

FIXTURES = Path(__file__).parent.parent / "fixtures"
HEADER = "import torch\nfrom torch import nn\nfrom torch.nn import Linear\n"
COUNTER = itertools.count()


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"_fixes_{next(COUNTER)}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with recording():
        spec.loader.exec_module(module)
    return module


def widened(path: Path, name: str = "layer", value: int = 7) -> Fix:
    """The fix that sets `in_features` of the layer of that name in the file."""
    site = construction_site(getattr(load(path), name))
    return SourceEdits().argument(
        site, 0, "in_features", value, current=4, title="wider", safety=Safety.SAFE
    )


def edited(path: Path, fix: Fix) -> str:
    text = SourceText.read(str(path))
    assert text is not None
    return apply(text.text, fix.edits)


# ---------------------------------------------------------------------- spellings

SPELLINGS = [
    ("layer = nn.Linear(4, 2)", "layer = nn.Linear(7, 2)"),
    ("layer = torch.nn.Linear(4, 2)", "layer = torch.nn.Linear(7, 2)"),
    ("layer = Linear(4, 2)", "layer = Linear(7, 2)"),
    (
        "layer = nn.Linear(in_features=4, out_features=2)",
        "layer = nn.Linear(in_features=7, out_features=2)",
    ),
    (
        "layer = nn.Linear(out_features=2, in_features=4)",
        "layer = nn.Linear(out_features=2, in_features=7)",
    ),
    ("layer = nn.Linear(2 * 2, 2)", "layer = nn.Linear(7, 2)"),
    ("layer = nn.Linear((16 // 4), 2)", "layer = nn.Linear((7), 2)"),
    ("layer = nn.Linear( 4 ,2 )", "layer = nn.Linear( 7 ,2 )"),
    ("layer = nn.Linear(\n    4,  # 四\n    2,\n)", "layer = nn.Linear(\n    7,  # 四\n    2,\n)"),
    ("é = '层层层'; layer = nn.Linear(4, 2)", "é = '层层层'; layer = nn.Linear(7, 2)"),
    ("x = {'😀': 1}; layer = nn.Linear(4, 2)  # 4", "x = {'😀': 1}; layer = nn.Linear(7, 2)  # 4"),
    ("if True:\n\tlayer = nn.Linear(4,\t2)", "if True:\n\tlayer = nn.Linear(7,\t2)"),
    ("other, layer = nn.Linear(4, 4), nn.Linear(4, 2)", "other, layer = nn.Linear(4, 4), nn.Linear(7, 2)"),
    ("layer = nn.Sequential(nn.Linear(4, 2))[0]", "layer = nn.Sequential(nn.Linear(7, 2))[0]"),
    ("layer = nn.Linear(4, 2).train()", "layer = nn.Linear(7, 2).train()"),
    ("layer = nn.Linear(4, *[2])", "layer = nn.Linear(7, *[2])"),
    ("layer = nn.Linear(\\\n    4, 2)", "layer = nn.Linear(\\\n    7, 2)"),
    ("layer = nn.Linear(0x4, 2)", "layer = nn.Linear(7, 2)"),
    ("s = '''\n4\n'''; layer = nn.Linear(4, 2)", "s = '''\n4\n'''; layer = nn.Linear(7, 2)"),
    ("x = 1\x0c\nlayer = nn.Linear(4, 2)", "x = 1\x0c\nlayer = nn.Linear(7, 2)"),
    ("s = '\x0b \x1c \u2028'; layer = nn.Linear(4, 2)", "s = '\x0b \x1c \u2028'; layer = nn.Linear(7, 2)"),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after"), SPELLINGS)
def test_the_argument_alone_is_changed(before: str, after: str, tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(HEADER + before + "\n", encoding="utf-8", newline="")
    fix = widened(path)
    assert fix.safety == "safe"
    assert len(fix.edits) == 1
    assert edited(path, fix) == HEADER + after + "\n"


@pytest.mark.parametrize(
    ("encoding", "prefix", "newline"),
    [
        ("utf-8", "", "\r\n"),
        ("utf-8", "", "\r"),
        ("utf-8-sig", "", "\n"),
        ("utf-8-sig", "", "\r\n"),
        ("latin-1", "# -*- coding: latin-1 -*-\n", "\n"),
        ("utf-16", "", ""),
    ],
)
def test_encodings_and_line_ends(encoding: str, prefix: str, newline: str, tmp_path: Path) -> None:
    if encoding == "utf-16":
        path = tmp_path / "net.py"
        path.write_bytes("layer = 1\n".encode(encoding))
        assert SourceText.read(str(path)) is None
        return
    path = tmp_path / "net.py"
    source = prefix + HEADER + "é = 'ü'; layer = nn.Linear(4, 2)\n"
    path.write_bytes(source.replace("\n", newline).encode(encoding))
    fix = widened(path)
    (edit,) = fix.edits
    row = source[: source.index("layer =")].count("\n") + 1
    assert (edit.location, edit.end_location) == (Location(row, 28), Location(row, 29))
    text = SourceText.read(str(path))
    assert text is not None
    assert "nn.Linear(7, 2)" in apply(text.text, fix.edits)


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "source",
    [
        "width = 4\nlayer = nn.Linear(width, 2); print(width)",
        "width = 4\nlayer = nn.Linear(width * 2 // 2, 2)",
        "layer = nn.Linear(int('4'), 2)",
        "layer = nn.Linear(**{'in_features': 4, 'out_features': 2})",
        "layer = nn.Linear(*[4, 2])",
        "layer = nn.Linear(*(4, 2))",
        "make = nn.Linear\nlayer = list(map(make, [4], [2]))[0]",
        "import functools\nlayer = functools.partial(nn.Linear, 4)(2)",
        "exec('layer = nn.Linear(4, 2)')",
        "layer = eval('nn.Linear(4, 2)')",
        "layer = nn.Linear((lambda: 4)(), 2)",
        "layer = nn.Linear([4][0], 2)",
    ],
)
def test_what_is_decided_elsewhere_is_shown_and_not_edited(source: str, tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(HEADER + source + "\n", encoding="utf-8")
    fix = widened(path)
    assert (fix.safety, fix.edits) == (Safety.DISPLAY_ONLY, [])
    assert fix.obstacle


def test_no_place_and_other_peoples_files_are_not_edited(tmp_path: Path) -> None:
    edits = SourceEdits(lambda name: False)
    path = tmp_path / "net.py"
    path.write_text(HEADER + "layer = nn.Linear(4, 2)\n")
    site = construction_site(load(path).layer)
    for place in (None, site):
        fix = edits.argument(place, 0, "in_features", 7, current=4, title="x", safety=Safety.SAFE)
        assert (fix.safety, fix.edits) == (Safety.DISPLAY_ONLY, [])
        assert fix.obstacle


def test_a_file_that_changed_since_is_not_edited(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(HEADER + "layer = nn.Linear(4, 2)\n")
    site = construction_site(load(path).layer)
    path.write_text(HEADER + "# one more line\nlayer = nn.Linear(4, 2)\n")
    fix = SourceEdits().argument(
        site, 0, "in_features", 7, current=4, title="x", safety=Safety.SAFE
    )
    assert fix.edits == []


def test_a_constructor_that_needs_two_values_is_not_edited(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(
        HEADER
        + """

def block():
    return nn.Linear(4, 5)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = block(), block()

    def forward(self, x):
        return self.second(self.first(x))
"""
    )
    with recording():
        model = load(path).Net()
    findings = trainlint.check(model, torch.randn(2, 6), select=["ARC002"]).findings
    assert findings
    assert all(fix.edits == [] for finding in findings for fix in finding.fixes)


def test_the_tree_decides_and_not_the_text(tmp_path: Path) -> None:
    """Text that parses to something else than the change of the tree is refused."""
    path = tmp_path / "net.py"
    path.write_text(HEADER + "layer = nn.Linear(4, 2) if 1 else nn.Linear(3, 2)\n")
    site = construction_site(load(path).layer)
    edits = SourceEdits()

    def rebuilt(content: str) -> Fix:
        return edits.replaced_calls([(site, lambda call, source: content)], title="x")

    # Bare it would bind otherwise inside the conditional.
    assert rebuilt("1 if 2 else 3").edits[0].content == "(1 if 2 else 3)"
    assert rebuilt("nn.Linear(").edits == []
    assert rebuilt("nn.Bilinear(1, 2, 3)").edits[0].content == "nn.Bilinear(1, 2, 3)"


def test_callees_are_renamed_with_their_prefix(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(
        HEADER
        + "from torch.nn import Sigmoid\na = nn.Sigmoid()\nb = torch.nn.Sigmoid()\nc = Sigmoid()\n"
    )
    net = load(path)
    edits = SourceEdits()
    sites = {name: construction_site(getattr(net, name)) for name in "abc"}
    fix = edits.callee([sites["a"], sites["b"], sites["a"]], "Sigmoid", "ReLU", title="x")
    assert len(fix.edits) == 2
    after = edited(path, fix)
    assert "a = nn.ReLU()\nb = torch.nn.ReLU()\nc = Sigmoid()\n" in after
    fix = edits.callee([sites["a"], sites["c"]], "Sigmoid", "ReLU", title="x")
    assert "a = nn.ReLU()\nb = torch.nn.Sigmoid()\nc = nn.ReLU()\n" in edited(path, fix)
    assert edits.callee([sites["a"], None], "Sigmoid", "ReLU", title="x").edits == []


# ---------------------------------------------------------------------- apply


def edit_at(row: int, column: int, end_row: int, end: int, content: str) -> Edit:
    return Edit("f.py", Location(row, column), Location(end_row, end), content)


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_several_edits_in_any_order(newline: str) -> None:
    text = newline.join(["ab", "层cd", "", "ef"])
    edits = [
        edit_at(1, 1, 1, 2, "AAAA"),
        edit_at(1, 3, 2, 2, "-"),
        edit_at(2, 3, 2, 4, ""),
        edit_at(4, 3, 4, 3, "!"),
    ]
    wanted = newline.join(["AAAAb-c", "", "ef!"])
    for order in itertools.permutations(edits):
        assert apply(text, order) == wanted
    assert apply(text, []) == text


# ---------------------------------------------------------------------- afterwards it is gone

MENDED = sorted(
    path.name
    for path in (FIXTURES / "broken").glob("*.py")
    if path.name != "forgotten_suppression.py"
)[
    ::4
]  # each rule's own fixtures are mended in test_rule_fixes_model.py and test_rule_fixes_training.py


@pytest.fixture(scope="session")
def once() -> Any:
    names = [FIXTURES / "broken" / name for name in MENDED]
    return trainlint.check(names)


def test_after_the_edits_the_findings_are_gone(once: Any, tmp_path: Path) -> None:
    """Every finding with an edit: apply the first edit of each, check again, and it does not come back.

    What is edited once may show again at the next line: there are two rounds, as `--fix` has several.
    """
    mended = by_file(once.findings)
    assert len(mended) >= 10
    for path, pairs in mended.items():
        mend(path, pairs, tmp_path / path.name)
    after = trainlint.check([tmp_path / path.name for path in mended])
    assert [target.reason for target in after.targets if target.status == "error"] == []
    again: dict[Path, list[Any]] = {}
    for path, pairs in by_file(after.findings).items():
        wanted = {key_of(finding) for finding, _ in mended_as(path, mended)}
        own = [pair for pair in pairs if key_of(pair[0]) in wanted]
        if own:
            again[path] = own
    for path, pairs in again.items():
        mend(path, pairs, path)
    left = {key_of(finding) for finding in after.findings if path_of(finding) not in again}
    if again:
        left |= {key_of(finding) for finding in trainlint.check(list(again)).findings}
    for pairs in mended.values():
        for finding, fix in pairs:
            assert key_of(finding) not in left, fix.title


def path_of(finding: Any) -> Path:
    return (Path.cwd() / (finding.filename or "")).resolve()


def key_of(finding: Any) -> tuple[str, str, str, str | None]:
    """Its place and how severe it is: what is mere advice afterwards is mended."""
    return path_of(finding).name, finding.code, finding.severity, finding.module


def mended_as(path: Path, mended: dict[Path, list[Any]]) -> list[Any]:
    return next((pairs for other, pairs in mended.items() if other.name == path.name), [])


def by_file(findings: Any) -> dict[Path, list[Any]]:
    """The findings that have an edit, each with its first fix that has."""
    found: dict[Path, list[Any]] = {}
    for finding in findings:
        fixes = [fix for fix in finding.fixes if fix.edits]
        if fixes and finding.filename is not None:
            found.setdefault(path_of(finding), []).append((finding, fixes[0]))
    return found


def mend(path: Path, pairs: list[Any], target: Path) -> None:
    """Write the file with the edits of these findings; those that overlap with others are taken out."""
    text = SourceText.read(str(path))
    assert text is not None
    edits: list[Edit] = []
    for pair in list(pairs):
        more = [edit for edit in pair[1].edits if edit not in edits]
        try:
            apply(text.text, [*edits, *more])
        except ValueError:
            pairs.remove(pair)
        else:
            edits += more
    assert edits
    target.write_bytes(text.encoded(apply(text.text, edits)))
