"""Edits that call something else, or take a call out, in every spelling of it."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import pytest
from editing import IMPORTS, Edit, edited, made_at, refused, run, site_of, written

from trainlint.fixes.edit import Fix, Safety
from trainlint.fixes.source import SourceEdits

INPUT = "x = torch.zeros(2, 3)\nfc = nn.Linear(3, 3)\n"


def callee(shown: str, old: str, new: str) -> Edit:
    """`new` for `old` at the call of which this is the text."""

    def edit(edits: SourceEdits, _: dict[str, Any], path: Path) -> Fix:
        return edits.callee([site_of(path, shown)], old, new, title="t")

    return edit


def removed(shown: str) -> Edit:
    """Without the call of which this is the text."""

    def edit(edits: SourceEdits, _: dict[str, Any], path: Path) -> Fix:
        return edits.removed(site_of(path, shown), title="t")

    return edit


# (imports, code, the call, old name, new name, imports after, code after)
CALLEES = [
    (IMPORTS, "a = nn.Sigmoid()", "nn.Sigmoid()", "Sigmoid", "ReLU", IMPORTS, "a = nn.ReLU()"),
    (IMPORTS, "a = torch.nn.Sigmoid()", "torch.nn.Sigmoid()", "Sigmoid", "GELU", IMPORTS, "a = torch.nn.GELU()"),
    (IMPORTS, "a = torch.nn.modules.Sigmoid()", "torch.nn.modules.Sigmoid()", "Sigmoid", "ReLU", IMPORTS,
     "a = torch.nn.modules.ReLU()"),
    (IMPORTS, "a = torch.sigmoid(x)", "torch.sigmoid(x)", "sigmoid", "relu", IMPORTS, "a = torch.relu(x)"),
    (IMPORTS, "a = F.sigmoid(x)", "F.sigmoid(x)", "sigmoid", "relu", IMPORTS, "a = F.relu(x)"),
    (IMPORTS, "a = x.sigmoid()", "x.sigmoid()", "sigmoid", "relu", IMPORTS, "a = x.relu()"),
    (IMPORTS, "a = (x + 1).sigmoid().mean()", "(x + 1).sigmoid()", "sigmoid", "tanh", IMPORTS, "a = (x + 1).tanh().mean()"),
    (IMPORTS, "a = x.sigmoid_()", "x.sigmoid_()", "sigmoid", "relu", IMPORTS, "a = x.relu_()"),
    (IMPORTS, "a = torch.sigmoid(x)", "torch.sigmoid(x)", "sigmoid", "gelu", IMPORTS, "a = F.gelu(x)"),
    (IMPORTS, "a = x.sigmoid()", "x.sigmoid()", "sigmoid", "gelu", IMPORTS, "a = F.gelu(x)"),
    (IMPORTS, "a = -x.sigmoid()", "x.sigmoid()", "sigmoid", "leaky_relu", IMPORTS, "a = -F.leaky_relu(x)"),
    (IMPORTS, "a = torch.relu(x)", "torch.relu(x)", "relu", "leaky_relu", IMPORTS, "a = F.leaky_relu(x)"),
    (IMPORTS, "a = x.relu()", "x.relu()", "relu", "leaky_relu", IMPORTS, "a = F.leaky_relu(x)"),
    (IMPORTS + "from torch.nn import Sigmoid\n", "a = Sigmoid()", "Sigmoid()", "Sigmoid", "ReLU",
     IMPORTS + "from torch.nn import Sigmoid\n", "a = nn.ReLU()"),
    ("from torch.nn import Linear, Sigmoid\n", "a = Sigmoid()", "Sigmoid()", "Sigmoid", "ReLU",
     "from torch.nn import Linear, Sigmoid, ReLU\n", "a = ReLU()"),
    ("from torch.nn import (\n    Linear,  # a\n    Sigmoid,\n)\n", "a = Sigmoid()", "Sigmoid()", "Sigmoid", "ReLU",
     "from torch.nn import (\n    Linear,  # a\n    Sigmoid, ReLU,\n)\n", "a = ReLU()"),
    ("from torch.nn import Sigmoid, ReLU\n", "a = Sigmoid()", "Sigmoid()", "Sigmoid", "ReLU",
     "from torch.nn import Sigmoid, ReLU\n", "a = ReLU()"),
    ("from torch.nn import Sigmoid as S\n", "a = S()", "S()", "Sigmoid", "ReLU", "from torch.nn import Sigmoid as S, ReLU\n", "a = ReLU()"),
    ("from torch.nn.modules.activation import Sigmoid\n", "a = Sigmoid()", "Sigmoid()", "Sigmoid", "ReLU",
     "from torch.nn.modules.activation import Sigmoid\nfrom torch.nn import ReLU\n", "a = ReLU()"),
    ("from torch.nn import *\n", "a = Sigmoid()", "Sigmoid()", "Sigmoid", "ReLU", "from torch.nn import *\n", "a = ReLU()"),
    ("import torch.nn as tnn\n", "a = tnn.Sigmoid()", "tnn.Sigmoid()", "Sigmoid", "ReLU", "import torch.nn as tnn\n", "a = tnn.ReLU()"),
    ("import torch\nfrom torch.nn.functional import softmax\n", "a = softmax(torch.zeros(2, 3), dim=1)",
     "softmax(torch.zeros(2, 3), dim=1)", "softmax", "log_softmax",
     "import torch\nfrom torch.nn.functional import softmax\n", "a = torch.nn.functional.log_softmax(torch.zeros(2, 3), dim=1)"),
    ("from torch.nn.functional import softmax\nimport numpy\n", "a = lambda t: softmax(t, 1)", "softmax(t, 1)", "softmax", "log_softmax",
     "from torch.nn.functional import softmax\nimport numpy\nfrom torch.nn import functional as F\n", "a = lambda t: F.log_softmax(t, 1)"),
    (IMPORTS, "def f(act=nn.Sigmoid):\n    return act()\na = f()", "act()", "Sigmoid", "ReLU", IMPORTS,
     "def f(act=nn.ReLU):\n    return act()\na = f()"),
    (IMPORTS, "act = torch.sigmoid\na = act(x)", "act(x)", "sigmoid", "relu", IMPORTS, "act = torch.relu\na = act(x)"),
    (IMPORTS, "class A:\n    act = staticmethod(torch.sigmoid)\na = A.act(x)", "A.act(x)", "sigmoid", "tanh", IMPORTS,
     "class A:\n    act = staticmethod(torch.tanh)\na = A.act(x)"),
    (IMPORTS, "a = nn.BCELoss()", "nn.BCELoss()", "BCELoss", "BCEWithLogitsLoss", IMPORTS, "a = nn.BCEWithLogitsLoss()"),
]  # fmt: skip


@pytest.mark.parametrize(("imports", "code", "shown", "old", "new", "imported", "after"), CALLEES)
def test_another_callee_in_the_files_own_spelling(
    imports: str,
    code: str,
    shown: str,
    old: str,
    new: str,
    imported: str,
    after: str,
    tmp_path: Path,
) -> None:
    body = INPUT if imports.startswith(IMPORTS) else ""
    path = tmp_path / "net.py"
    text = edited(path, f"{imports}{body}{code}\n", callee(shown, old, new))
    assert text == f"{imported}{body}{after}\n"


@pytest.mark.parametrize(
    ("code", "shown", "why"),
    [
        ("LAYERS = {'s': nn.Sigmoid}\na = LAYERS['s']()", "LAYERS['s']()", "not of `Sigmoid`"),
        (
            "LAYERS = {'s': nn.Sigmoid}\nact = LAYERS['s']\na = act()",
            "act()",
            "looked up in a table",
        ),
        ("a = getattr(nn, 'Sigmoid')()", "getattr(nn, 'Sigmoid')()", "not of `Sigmoid`"),
        ("one, two = nn.Sigmoid, nn.Sigmoid\na = one()", "one()", "handed over in lines 4, 4"),
        ("def f(nn):\n    return nn\nact = nn.Tanh\na = act()", "act()", "not of `Sigmoid`"),
        ("Sigmoid = nn.Sigmoid\nSigmoid = nn.Tanh\na = Sigmoid()", "Sigmoid()", ""),
    ],
)
def test_a_callee_that_is_looked_up_is_refused(
    code: str, shown: str, why: str, tmp_path: Path
) -> None:
    obstacle = (
        refused(tmp_path / "net.py", f"{IMPORTS}{code}\n", callee(shown, "Sigmoid", "NoSuchLayer"))
        if not why
        else refused(tmp_path / "net.py", f"{IMPORTS}{code}\n", callee(shown, "Sigmoid", "ReLU"))
    )
    assert why in obstacle


def test_a_name_that_is_taken_is_not_imported(tmp_path: Path) -> None:
    source = "from torch.nn import Sigmoid\ndef ReLU(): pass\na = Sigmoid()\n"
    why = refused(tmp_path / "net.py", source, callee("Sigmoid()", "Sigmoid", "ReLU"))
    assert why == "`ReLU` means something else in this file"


def test_one_import_for_several_calls(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text("from torch.nn import Sigmoid\na = Sigmoid()\nb = [Sigmoid() for _ in 'ab']\n")
    names = run(path)
    sites = [made_at(names, "a"), *(made_at({"b": b}, "b") for b in names["b"])]
    fix = SourceEdits().callee(sites, "Sigmoid", "ReLU", title="t")
    assert written(path, fix) == (
        "from torch.nn import Sigmoid, ReLU\na = ReLU()\nb = [ReLU() for _ in 'ab']\n"
    )


# ---------------------------------------------------------------------- taken out

SEQUENTIAL = "from collections import OrderedDict\n"
REMOVALS = [
    ("a = F.softmax(x, dim=1)", "F.softmax(x, dim=1)", "a = x"),
    ("a = F.softmax(dim=1, input=x)", "F.softmax(dim=1, input=x)", "a = x"),
    ("a = torch.softmax(x + 1, 1) * 2", "torch.softmax(x + 1, 1)", "a = (x + 1) * 2"),
    ("a = x.softmax(1)", "x.softmax(1)", "a = x"),
    ("a = (x + 1).softmax(-1).mean()", "(x + 1).softmax(-1)", "a = (x + 1).mean()"),
    ("a = (x + 1).sigmoid()[0]", "(x + 1).sigmoid()", "a = (x + 1)[0]"),
    ("a = torch.sigmoid(x if x is not None else 1).mean()", "torch.sigmoid(x if x is not None else 1)",
     "a = (x if x is not None else 1).mean()"),
    ("a = torch.sigmoid(\n    x\n    + 1\n)", "torch.sigmoid(x + 1)", "a = (x\n    + 1)"),
    ("def f():\n    return torch.sigmoid(x)", "torch.sigmoid(x)", "def f():\n    return x"),
    ("x = torch.relu(x)\nb = 1", "torch.relu(x)", "b = 1"),
    ("x = torch.relu(x); b = 1", "torch.relu(x)", "b = 1"),
    ("b = 1; x = torch.relu(x)", "torch.relu(x)", "b = 1"),
    ("x = torch.relu(x)  # why\nb = 1", "torch.relu(x)", "# why\nb = 1"),
    ("if x is not None:\n    x = torch.relu(x)", "torch.relu(x)", "if x is not None:\n    pass"),
    ("if x is not None: b = 1; x = torch.relu(x)", "torch.relu(x)", "if x is not None: b = 1"),
    ("def f(x):\n    x = fc(x)\n    x = torch.relu(x)\n    return x", "torch.relu(x)", "def f(x):\n    x = fc(x)\n    return x"),
    ("if x is not None: x = torch.relu(x)", "torch.relu(x)", "if x is not None: pass"),
    ("x = b = torch.relu(x)", "torch.relu(x)", "x = b = x"),
    ("b = 1\n(b, x) = b, torch.relu(x)  # both", "torch.relu(x)", "b = 1\n# both"),
    ("b = 1\nx = (  # in place\n    torch.relu(x))", "torch.relu(x)", "b = 1\nx = (  # in place\n    x)"),
    ("class A:\n    x = torch.relu(x)\n    b = 1", "torch.relu(x)", "class A:\n    x = x\n    b = 1"),
    ("x.relu_()\nb = 1", "x.relu_()", "b = 1"),
    ("a = nn.Softmax(dim=1)(fc(x))", "nn.Softmax(dim=1)", "a = fc(x)"),
    ("a = nn.Softmax(1)", "nn.Softmax(1)", "a = nn.Identity()"),
    ("a = nn.Sequential(fc, nn.Softmax(1))", "nn.Softmax(1)", "a = nn.Sequential(fc)"),
    ("a = nn.Sequential(fc, nn.Softmax(1),)", "nn.Softmax(1)", "a = nn.Sequential(fc,)"),
    ("a = nn.Sequential(\n    fc,\n    nn.Softmax(1),\n)", "nn.Softmax(1)", "a = nn.Sequential(\n    fc,\n)"),
    ("a = nn.Sequential(\n    fc,  # scores\n    nn.Softmax(1),\n)", "nn.Softmax(1)",
     "a = nn.Sequential(\n    fc,  # scores\n    nn.Identity(),\n)"),
    ("a = nn.Sequential((fc), (nn.Softmax(1)))", "nn.Softmax(1)", "a = nn.Sequential((fc))"),
    ("a = nn.Sequential(nn.Softmax(1), fc)", "nn.Softmax(1)", "a = nn.Sequential(nn.Identity(), fc)"),
    ("a = nn.Sequential(nn.Softmax(1))", "nn.Softmax(1)", "a = nn.Sequential(nn.Identity())"),
    ("a = nn.Sequential(*[fc, nn.Softmax(1)])", "nn.Softmax(1)", "a = nn.Sequential(*[fc])"),
    (f"{SEQUENTIAL}a = nn.Sequential(OrderedDict([('fc', fc), ('s', nn.Softmax(1))]))", "nn.Softmax(1)",
     f"{SEQUENTIAL}a = nn.Sequential(OrderedDict([('fc', fc)]))"),
    ("layers = [fc]\nlayers.append(nn.Softmax(1))", "nn.Softmax(1)", "layers = [fc]\nlayers.append(nn.Identity())"),
    ("class A:\n    def __init__(self):\n        self.act = nn.ReLU()\n    def f(self, x):\n        return self.act(x) + 1",
     "self.act(x)", "class A:\n    def __init__(self):\n        self.act = nn.ReLU()\n    def f(self, x):\n        return x + 1"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "shown", "after"), REMOVALS)
def test_a_call_gives_way_to_what_it_is_applied_to(
    code: str, shown: str, after: str, tmp_path: Path
) -> None:
    text = edited(tmp_path / "net.py", f"{IMPORTS}{INPUT}{code}\n", removed(shown))
    assert text == f"{IMPORTS}{INPUT}{after}\n"
    kept = {ast.dump(node) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)}
    assert ast.dump(ast.parse(shown, mode="eval").body) not in kept


@pytest.mark.parametrize(
    ("code", "shown", "why"),
    [
        ("a = torch.sigmoid(  # half\n    x)", "torch.sigmoid(x)", "a comment stands in the text to be removed"),
        ("a = torch.sigmoid(*[x])", "torch.sigmoid(*[x])", "its argument is given with a `*`"),
        ("d = 1\na = x.softmax(d)", "x.softmax(d)", "`x.softmax` may be a method or a layer"),
        ("if x is not None: x.relu_()", "x.relu_()", "nothing would be left in the block"),
        ("a = nn.Softmax(  # over classes\n    1)", "nn.Softmax(1)", "a comment stands in the text to be replaced"),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_out_is_refused(
    code: str, shown: str, why: str, tmp_path: Path
) -> None:
    assert refused(tmp_path / "net.py", f"{IMPORTS}{INPUT}{code}\n", removed(shown)) == why


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="f-strings have positions since")
def test_a_call_within_an_f_string_is_refused(tmp_path: Path) -> None:
    source = f"{IMPORTS}{INPUT}a = f'{{torch.sigmoid(x)}}'\n"
    why = refused(tmp_path / "net.py", source, removed("torch.sigmoid(x)"))
    assert why == "it stands inside an f-string"


def test_identity_is_imported_where_it_has_to_be(tmp_path: Path) -> None:
    source = "from torch.nn import Linear, Softmax\na = Softmax(1)\n"
    after = edited(tmp_path / "net.py", source, removed("Softmax(1)"))
    assert after == "from torch.nn import Linear, Softmax, Identity\na = Identity()\n"


# ---------------------------------------------------------------------- several edits as one


def test_the_loss_and_its_sigmoid_change_together(tmp_path: Path) -> None:
    code = (
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.net = nn.Sequential(nn.Linear(3, 1), nn.Sigmoid())\n"
        "    def forward(self, x):\n        return self.net(x)\n"
        "loss = nn.BCELoss()(Net()(x), torch.ones(2, 1))\n"
    )

    def edit(edits: SourceEdits, _: dict[str, Any], path: Path) -> Fix:
        return edits.together(
            edits.callee([site_of(path, "nn.BCELoss()")], "BCELoss", "BCEWithLogitsLoss", title=""),
            edits.removed(site_of(path, "nn.Sigmoid()"), title=""),
            title="t",
        )

    after = edited(tmp_path / "net.py", IMPORTS + INPUT + code, edit)
    assert after == IMPORTS + INPUT + code.replace("BCELoss", "BCEWithLogitsLoss").replace(
        ", nn.Sigmoid()", ""
    )


def test_all_of_several_edits_or_none(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(f"{IMPORTS}{INPUT}a = torch.sigmoid(torch.relu(x))\nb = 1\n")
    edits = SourceEdits()
    outer = edits.removed(site_of(path, "torch.sigmoid(torch.relu(x))"), title="o")
    inner = edits.callee([site_of(path, "torch.relu(x)")], "relu", "tanh", title="i")
    both = edits.together(outer, inner, title="both")
    assert written(path, both).endswith("a = torch.tanh(x)\nb = 1\n")
    same = edits.together(outer, outer, title="once")
    assert same.edits == outer.edits
    other = edits.callee([site_of(path, "torch.relu(x)")], "relu", "sigmoid", title="i")
    clash = edits.together(inner, other, title="clash")
    assert (clash.edits, clash.obstacle) == ([], "the edits meet in one place")
    none = edits.callee([None], "relu", "tanh", title="n", reason="why")
    without = edits.together(inner, none, title="all")
    assert (without.edits, without.reason) == ([], "why")
    assert without.obstacle == none.obstacle == "no line of your files is known for it"
    assert without.safety == Safety.DISPLAY_ONLY


def test_a_part_that_was_made_elsewhere_joins_if_it_parses(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(f"{IMPORTS}{INPUT}a = torch.relu(x)\nb = 1\n")
    edits = SourceEdits()
    inner = edits.callee([site_of(path, "torch.relu(x)")], "relu", "tanh", title="i")
    (edit,) = inner.edits
    own = Fix("own", Safety.SAFE, [type(edit)(edit.filename, *_after(edit, 1), "2")])
    assert written(path, edits.together(inner, own, title="t")).endswith("torch.tanh(x)\nb = 2\n")
    bad = Fix("bad", Safety.SAFE, [type(edit)(edit.filename, *_after(edit, 1), "(")])
    assert edits.together(inner, bad, title="t").obstacle == "the edits meet in one place"


def _after(edit: Any, rows: int) -> tuple[Any, Any]:
    kind = type(edit.location)
    row = edit.location.row + rows
    return kind(row, 5), kind(row, 6)
