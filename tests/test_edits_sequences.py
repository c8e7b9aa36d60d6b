"""Edits that put a layer behind another, take away what stands around statements, and keep a product."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from editing import IMPORTS, Edit, edited, made_at, refused, site_of

from trainlint.fixes.edit import Fix, Location, Safety
from trainlint.fixes.source import SourceEdits, SourceText


def behind(shown: str) -> Edit:
    """A ReLU behind the layer of which this is the text."""

    def edit(edits: SourceEdits, _: dict[str, Any], path: Path) -> Fix:
        return edits.behind(site_of(path, shown), "torch.nn.ReLU()", title="t")

    return edit


LAYER = "nn.Linear(4, 8)"
# (code, code after)
SEQUENCES = [
    ("a = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))", "a = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))"),
    ("a = nn.Sequential(nn.Tanh(), nn.Linear(4, 8))", "a = nn.Sequential(nn.Tanh(), nn.Linear(4, 8), nn.ReLU())"),
    ("a = nn.Sequential((nn.Linear(4, 8)), nn.Linear(8, 2))", "a = nn.Sequential((nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 2))"),
    ("a = nn.Sequential(*[nn.Linear(4, 8), nn.Linear(8, 2)])", "a = nn.Sequential(*[nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)])"),
    ("b = [nn.Linear(4, 8)]\na = nn.Sequential(*b, nn.Linear(8, 2))", "b = [nn.Linear(4, 8), nn.ReLU()]\na = nn.Sequential(*b, nn.Linear(8, 2))"),
    ("b = []\nb.append(nn.Linear(4, 8))  # in", "b = []\nb.append(nn.Linear(4, 8))  # in\nb.append(nn.ReLU())"),
    ("b = []\nfor _ in range(2):\n    b.append(nn.Linear(4, 8))", "b = []\nfor _ in range(2):\n    b.append(nn.Linear(4, 8))\n    b.append(nn.ReLU())"),
    ("b = []\nb += [nn.Linear(4, 8)]", "b = []\nb += [nn.Linear(4, 8), nn.ReLU()]"),
    ("a = nn.Sequential(\n    nn.Linear(4, 8),  # in\n    nn.Linear(8, 2),\n)", "a = nn.Sequential(\n    nn.Linear(4, 8),  # in\n    nn.ReLU(),\n    nn.Linear(8, 2),\n)"),
    ("a = nn.Sequential(\n    nn.Tanh(),\n    nn.Linear(4, 8)\n)", "a = nn.Sequential(\n    nn.Tanh(),\n    nn.Linear(4, 8),\n    nn.ReLU()\n)"),
    ("a = nn.Sequential(\n    nn.Linear(4, 8), nn.Linear(8, 2),\n)", "a = nn.Sequential(\n    nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2),\n)"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "after"), SEQUENCES)
def test_a_layer_behind_another(code: str, after: str, tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    assert edited(path, f"{IMPORTS}{code}\n", behind(LAYER)) == f"{IMPORTS}{after}\n"


@pytest.mark.parametrize(
    "code",
    [
        "a = nn.Linear(4, 8)",
        "a = [nn.Linear(4, 8) for _ in range(2)]",
        "from collections import OrderedDict\na = nn.Sequential(OrderedDict([('a', nn.Linear(4, 8))]))",
        "a = dict(b=nn.Linear(4, 8))",
    ],
)
def test_where_a_layer_has_no_row_none_is_put_behind_it(code: str, tmp_path: Path) -> None:
    obstacle = refused(tmp_path / "a.py", f"{IMPORTS}{code}\n", behind(LAYER))
    assert obstacle == "it stands in no Sequential that is written out"


# ---------------------------------------------------------------------- with no_grad


def unswitched(edits: SourceEdits, _: dict[str, Any], path: Path) -> Fix:
    text = SourceText.read(str(path))
    assert text is not None
    row, line = next((n, line) for n, line in enumerate(text.lines, 1) if "no_grad()" in line)
    start = Location(row, line.index("torch.no_grad") + 1)
    return edits.without_context(str(path), start, title="t")


SETUP = IMPORTS + "x = torch.zeros(2)\n"
CONTEXTS = [
    ("with torch.no_grad():\n    y = x * 2\n", "y = x * 2\n"),
    ("with torch.no_grad():\n    y = torch.relu(\n        x,\n    )\n\n    z = y * 2  # twice\n", "y = torch.relu(\n    x,\n)\n\nz = y * 2  # twice\n"),
    ("def f(x):\n\twith torch.no_grad():\n\t\treturn x * 2\n", "def f(x):\n\treturn x * 2\n"),
    ("with torch.no_grad(): y = x * 2\n", "y = x * 2\n"),
    ("class A:\n    @torch.no_grad()\n    def f(self, x):\n        return x * 2\n", "class A:\n    def f(self, x):\n        return x * 2\n"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "after"), CONTEXTS)
def test_no_grad_is_taken_away(code: str, after: str, tmp_path: Path) -> None:
    assert edited(tmp_path / "a.py", SETUP + code, unswitched) == SETUP + after


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("with torch.no_grad():\n    x.mul_(2)\n", "more than to compute"),
        ("with torch.no_grad():\n    y = x.mul_(2)\n", "more than to compute"),
        ("with torch.no_grad():\n    x[0] = 2\n", "more than to compute"),
        ("with torch.no_grad():\n    x *= 2\n", "more than to compute"),
        ("with torch.no_grad(), torch.random.fork_rng():\n    y = x * 2\n", "another purpose"),
        ("with torch.no_grad():  # frozen\n    y = x * 2\n", "a comment"),
        ("with torch.no_grad():\n    y = x, '''\n    a'''\n", "does not allow it"),
        ("@torch.no_grad()\ndef f(x):\n    x.mul_(2)\n", "writes in place"),
        ("y = x; torch.no_grad()\n", "in another way"),
    ],
)
def test_no_grad_stays_where_more_depends_on_it(code: str, why: str, tmp_path: Path) -> None:
    assert why in refused(tmp_path / "a.py", SETUP + code, unswitched)


# ---------------------------------------------------------------------- products


@pytest.mark.parametrize(
    ("size", "after"),
    [
        ("32 * 6 * 6", "64 * 6 * 6"),
        ("6 * 6 * 32", "6 * 6 * 64"),
        ("32 * 36", "64 * 36"),
        ("64 * 5 * 5", "64 * 6 * 6"),
        ("64 * (5 * 5)", "64 * (6 * 6)"),
        ("1152", "2304"),
        ("2 * 3 * 4 * 48", "2304"),
        ("1152 + 0", "2304"),
        ("32 * 6 ** 2", "2304"),
    ],
)
def test_of_a_product_the_factors_that_differ_are_written(
    size: str, after: str, tmp_path: Path
) -> None:
    def edit(edits: SourceEdits, names: dict[str, Any], _: Path) -> Fix:
        return edits.argument(
            made_at(names, "fc"), 0, "in_features", 2304, current=eval(size), factors=(64, 6, 6),
            title="t", safety=Safety.SAFE,
        )  # fmt: skip

    source = f"{IMPORTS}fc = nn.Linear({{}}, 120)\n"
    assert edited(tmp_path / "a.py", source.format(size), edit) == source.format(after)


def test_super_with_the_name_of_its_class_hands_nothing_on(tmp_path: Path) -> None:
    source = (
        IMPORTS + "class Net(nn.Module):\n    def __init__(self, classes={}):\n"
        "        super(Net, self).__init__()\n        self.fc = nn.Linear(4, classes)\n\n\nnet = Net()\n"
    )

    def edit(edits: SourceEdits, names: dict[str, Any], _: Path) -> Fix:
        return edits.argument(
            made_at(names, "net.fc"),
            1,
            "out_features",
            10,
            current=9,
            title="t",
            safety=Safety.SAFE,
        )

    assert edited(tmp_path / "a.py", source.format(9), edit) == source.format(10)
