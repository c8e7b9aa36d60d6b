"""Edits of an argument: wherever its value is written, and what of it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from editing import IMPORTS, Edit, edited, made_at, refused

from trainlint.fixes.edit import Fix, Safety
from trainlint.fixes.source import SourceEdits

CLASS = "class Net(nn.Module):\n    def __init__(self{}):\n        super().__init__()\n        {}\n"


def features(name: str = "layer", value: Any = 8, **more: Any) -> Edit:
    """num_features=4 of the BatchNorm of this name becomes 8."""

    def edit(edits: SourceEdits, names: dict[str, Any], _: Path) -> Fix:
        return edits.argument(
            made_at(names, name), 0, "num_features", value,
            current=4, title="t", safety=Safety.SAFE, **more,
        )  # fmt: skip

    return edit


# Where the value is a literal in the call itself, or a name that is defined once and used once.
SPELLINGS = [
    ("layer = nn.BatchNorm2d(4)", "layer = nn.BatchNorm2d(8)"),
    ("layer = nn.BatchNorm2d(num_features=4)", "layer = nn.BatchNorm2d(num_features=8)"),
    ("layer = nn.BatchNorm2d(eps=1e-5, num_features=4)", "layer = nn.BatchNorm2d(eps=1e-5, num_features=8)"),
    ("layer = nn.BatchNorm2d((4))", "layer = nn.BatchNorm2d((8))"),
    ("layer = nn.BatchNorm2d(2 * 2)", "layer = nn.BatchNorm2d(8)"),
    ("layer = nn.BatchNorm2d(+4)", "layer = nn.BatchNorm2d(8)"),
    ("layer = nn.BatchNorm2d(  # norm\n    4,  # channels\n)", "layer = nn.BatchNorm2d(  # norm\n    8,  # channels\n)"),
    ("layer = torch.nn.BatchNorm2d(4).train()", "layer = torch.nn.BatchNorm2d(8).train()"),
    ("layer = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4))[1]", "layer = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(8))[1]"),
    ("layer = [nn.BatchNorm2d(4) for _ in range(1)][0]", "layer = [nn.BatchNorm2d(8) for _ in range(1)][0]"),
    ("layer = (lambda: nn.BatchNorm2d(4))()", "layer = (lambda: nn.BatchNorm2d(8))()"),
    ("make = nn.BatchNorm2d\nlayer = make(4)", "make = nn.BatchNorm2d\nlayer = make(8)"),
    ("layer = getattr(nn, 'BatchNorm2d')(4)", "layer = getattr(nn, 'BatchNorm2d')(8)"),
    ("import functools\nlayer = functools.partial(nn.BatchNorm2d, eps=1e-3)(4)",
     "import functools\nlayer = functools.partial(nn.BatchNorm2d, eps=1e-3)(8)"),
    ("net = nn.Module()\nnet.add_module('bn', nn.BatchNorm2d(4))\nlayer = net.bn",
     "net = nn.Module()\nnet.add_module('bn', nn.BatchNorm2d(8))\nlayer = net.bn"),
    ("from collections import OrderedDict\nlayer = nn.Sequential(OrderedDict([('a', nn.BatchNorm2d(4))])).a",
     "from collections import OrderedDict\nlayer = nn.Sequential(OrderedDict([('a', nn.BatchNorm2d(8))])).a"),
    ("class Norm(nn.BatchNorm2d):\n    def __init__(self):\n        super().__init__(4)\nlayer = Norm()",
     "class Norm(nn.BatchNorm2d):\n    def __init__(self):\n        super().__init__(8)\nlayer = Norm()"),
    ("class Norm(nn.BatchNorm2d):\n    def __init__(self, num_features=4):\n        super().__init__(num_features)\nlayer = Norm()",
     "class Norm(nn.BatchNorm2d):\n    def __init__(self, num_features=4):\n        super().__init__(num_features)\nlayer = Norm(num_features=8)"),
    ("class Norm(nn.BatchNorm2d): pass\nlayer = Norm(4)", "class Norm(nn.BatchNorm2d): pass\nlayer = Norm(8)"),
    ("cfg = {'w': 4, 'd': 2}\nlayer = nn.BatchNorm2d(cfg['w'])\nother = cfg['d']",
     "cfg = {'w': 8, 'd': 2}\nlayer = nn.BatchNorm2d(cfg['w'])\nother = cfg['d']"),
    ("width = 4\nlayer = nn.BatchNorm2d(width)", "width = 8\nlayer = nn.BatchNorm2d(width)"),
    ("width: int = 4\nlayer = nn.BatchNorm2d(width)", "width: int = 8\nlayer = nn.BatchNorm2d(width)"),
    ("height, width = 3, 4\nlayer = nn.BatchNorm2d(width)", "height, width = 3, 8\nlayer = nn.BatchNorm2d(width)"),
    ("base = 4\nwidth = base\nlayer = nn.BatchNorm2d(width)", "base = 8\nwidth = base\nlayer = nn.BatchNorm2d(width)"),
    ("def make():\n    width = 4\n    return nn.BatchNorm2d(width)\nlayer = make()",
     "def make():\n    width = 8\n    return nn.BatchNorm2d(width)\nlayer = make()"),
    ("WIDTH = 4\ndef make():\n    return nn.BatchNorm2d(WIDTH)\nlayer = make()",
     "WIDTH = 8\ndef make():\n    return nn.BatchNorm2d(WIDTH)\nlayer = make()"),
    (CLASS.format("", "self.width = 4\n        self.bn = nn.BatchNorm2d(self.width)") + "layer = Net().bn",
     CLASS.format("", "self.width = 8\n        self.bn = nn.BatchNorm2d(self.width)") + "layer = Net().bn"),
    ("class Net:\n    width = 4\n    def make(self):\n        return nn.BatchNorm2d(self.width)\nlayer = Net().make()",
     "class Net:\n    width = 8\n    def make(self):\n        return nn.BatchNorm2d(self.width)\nlayer = Net().make()"),
    ("class Net:\n    width = 4\n    def make(self):\n        return nn.BatchNorm2d(Net.width)\nlayer = Net().make()",
     "class Net:\n    width = 8\n    def make(self):\n        return nn.BatchNorm2d(Net.width)\nlayer = Net().make()"),
    ("class Net:\n    width = 4\n    layer = nn.BatchNorm2d(width)\nlayer = Net.layer",
     "class Net:\n    width = 8\n    layer = nn.BatchNorm2d(width)\nlayer = Net.layer"),
    ("layer = nn.BatchNorm2d(4) if F else nn.BatchNorm2d(3)", "layer = nn.BatchNorm2d(8) if F else nn.BatchNorm2d(3)"),
    ("class Net(nn.Module): bn = nn.BatchNorm2d(4)\nlayer = Net.bn", "class Net(nn.Module): bn = nn.BatchNorm2d(8)\nlayer = Net.bn"),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after"), SPELLINGS)
def test_the_value_is_changed_where_it_is_written(before: str, after: str, tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    assert edited(path, IMPORTS + before + "\n", features()) == IMPORTS + after + "\n"
    # There is no second time: what was 4 is not.
    refused(path, IMPORTS + after + "\n", features())


# A default, or what the only caller gives: others may call it as well, so that these are never safe.
CALLERS = [
    ("def make(width=4):\n    return nn.BatchNorm2d(width)\nlayer = make()",
     "def make(width=8):\n    return nn.BatchNorm2d(width)\nlayer = make()"),
    ("def make(*, width=4):\n    return nn.BatchNorm2d(width)\nlayer = make()",
     "def make(*, width=8):\n    return nn.BatchNorm2d(width)\nlayer = make()"),
    ("def make(width):\n    return nn.BatchNorm2d(width)\nlayer = make(4)",
     "def make(width):\n    return nn.BatchNorm2d(width)\nlayer = make(8)"),
    ("def make(a, width):\n    return nn.BatchNorm2d(width)\nlayer = make(width=4, a=1)",
     "def make(a, width):\n    return nn.BatchNorm2d(width)\nlayer = make(width=8, a=1)"),
    ("WIDTH = 4\ndef make(width):\n    return nn.BatchNorm2d(width)\nlayer = make(WIDTH)",
     "WIDTH = 8\ndef make(width):\n    return nn.BatchNorm2d(width)\nlayer = make(WIDTH)"),
    (CLASS.format(", width=4", "self.bn = nn.BatchNorm2d(width)") + "layer = Net().bn",
     CLASS.format(", width=8", "self.bn = nn.BatchNorm2d(width)") + "layer = Net().bn"),
    (CLASS.format(", a, width", "self.bn = nn.BatchNorm2d(width)") + "layer = Net(1, 4).bn",
     CLASS.format(", a, width", "self.bn = nn.BatchNorm2d(width)") + "layer = Net(1, 8).bn"),
    (CLASS.format(", width", "self.width = width\n        self.bn = nn.BatchNorm2d(self.width)") + "layer = Net(4).bn",
     CLASS.format(", width", "self.width = width\n        self.bn = nn.BatchNorm2d(self.width)") + "layer = Net(8).bn"),
    ("class A:\n    def make(self, width=4):\n        return nn.BatchNorm2d(width)\nlayer = A().make()",
     "class A:\n    def make(self, width=8):\n        return nn.BatchNorm2d(width)\nlayer = A().make()"),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after"), CALLERS)
def test_a_default_or_the_only_call_is_changed_and_not_called_safe(
    before: str, after: str, tmp_path: Path
) -> None:
    path = tmp_path / "net.py"
    path.write_text(IMPORTS + before + "\n")
    seen: list[Fix] = []

    def edit(edits: SourceEdits, names: dict[str, Any], where: Path) -> Fix:
        seen.append(features()(edits, names, where))
        return seen[-1]

    assert edited(path, IMPORTS + before + "\n", edit) == IMPORTS + after + "\n"
    assert seen[0].safety == "unsafe"


REFUSALS = [
    ("width = 4\nlayer = nn.BatchNorm2d(width)\nprint(width)", "`width` is used in 2 places"),
    ("width = 2\nwidth = 4\nlayer = nn.BatchNorm2d(width)", "`width` is set in 2 places"),
    ("for width in (4,):\n    layer = nn.BatchNorm2d(width)", "`width` takes several values"),
    ("layer = [nn.BatchNorm2d(w) for w in (4,)][0]", "`w` takes several values"),
    ("width = int('4')\nlayer = nn.BatchNorm2d(width)", "`int('4')` is computed"),
    ("c = 2\nlayer = nn.BatchNorm2d(c * 2)", "`c * 2` is computed"),
    ("layer = nn.BatchNorm2d(*[4])", "`num_features` is given by a `*`"),
    ("layer = nn.BatchNorm2d(**{'num_features': 4})", "`num_features` may be given by a `**`"),
    ("cfg = {'w': 4, 'd': 2}\nlayer = nn.BatchNorm2d(cfg['w'])\nother = cfg['w']", "`cfg['w']` is used in 2 places"),
    ("cfg = {'w': 4}\nlayer = nn.BatchNorm2d(cfg['w'])\nprint(cfg)", "`cfg` is also handed on, or changed"),
    ("cfg = {'w': 2}\ncfg['w'] = 4\nlayer = nn.BatchNorm2d(cfg['w'])", "`cfg` is also handed on, or changed"),
    ("cfg = dict(w=4)\nlayer = nn.BatchNorm2d(cfg['w'])", "`cfg` is not written out in one place"),
    ("base = {}\ncfg = {'w': 4, **base}\nlayer = nn.BatchNorm2d(cfg['w'])", "`cfg` is not written out in one place"),
    ("cfg = {'w': 4}\nfor key in ['w']:\n    layer = nn.BatchNorm2d(cfg[key])", "`cfg[key]` is computed"),
    ("import types\ncfg = types.SimpleNamespace(w=4)\nlayer = nn.BatchNorm2d(cfg.w)", "`cfg.w` is set elsewhere"),
    ("layer = (lambda c: nn.BatchNorm2d(c))(4)", "`c` is an argument of a lambda"),
    ("def make(c):\n    return nn.BatchNorm2d(c)\nlayer, other = make(4), make(5)",
     "`c` is an argument of `make`, which is called in 2 places"),
    ("def make(c=4):\n    return nn.BatchNorm2d(c), c\nlayer = make()[0]", "`c` is used in 2 places"),
    ("def make(c):\n    return nn.BatchNorm2d(c)\nlayer = list(map(make, [4]))[0]",
     "`make`, whose argument `c` is, is also handed on"),
    ("def make(c):\n    return nn.BatchNorm2d(c)\nlayer = make(*[4])", "`c` may be given by a `*` or a `**`"),
    ("def make(*c):\n    return nn.BatchNorm2d(c[0])\nlayer = make(4)", "`c[0]` is computed"),
    ("from math import tau as width\nwidth = 4\nlayer = nn.BatchNorm2d(width)", "`width` is set in 2 places"),
    ("def set_it():\n    global width\n    width = 4\nset_it()\nlayer = nn.BatchNorm2d(width)",
     "`width` is set from another function"),
    ("with_ = 4\n__all__ = ['with_']\nlayer = nn.BatchNorm2d(with_)", "`with_` is used in 2 places"),
    (CLASS.format("", "self.width = 4\n        self.bn = nn.BatchNorm2d(self.width)\n        self.other = self.width")
     + "layer = Net().bn", "`self.width` is used in 2 places"),
    (CLASS.format("", "self.width = 3\n        self.width = 4\n        self.bn = nn.BatchNorm2d(self.width)")
     + "layer = Net().bn", "`self.width` is set in 2 places"),
    ("class Norm(nn.BatchNorm2d):\n    def __init__(self):\n        super().__init__(4)\nlayer, other = Norm(), Norm()",
     "`Norm` is used in 2 places"),
    ("layer = nn.BatchNorm2d(\n    2 *  # a\n    2)", "a comment stands in the text to be replaced"),
    ("layer = nn.BatchNorm2d(4) if True else f'{nn.BatchNorm2d(3)}'\nlayer = nn.BatchNorm2d(3)",
     "`3` is not the 4 that was seen"),
    ("exec('layer = nn.BatchNorm2d(4)')", ""),
]  # fmt: skip


@pytest.mark.parametrize(("source", "why"), REFUSALS)
def test_what_others_share_or_compute_is_refused_by_name(
    source: str, why: str, tmp_path: Path
) -> None:
    obstacle = refused(tmp_path / "net.py", IMPORTS + source + "\n", features())
    assert obstacle == why or not why


# An argument that is left out is given, as a keyword, where what is called takes it.
ABSENT = [
    ("nn.Dropout()", "nn.Dropout(p=0.2)"),
    ("torch.nn.Dropout( )", "torch.nn.Dropout(p=0.2 )"),
    ("nn.Dropout(inplace=True)", "nn.Dropout(inplace=True, p=0.2)"),
    ("nn.Dropout(inplace=True,)", "nn.Dropout(inplace=True, p=0.2,)"),
    ("nn.Dropout(\n    inplace=True,  # (\n)", "nn.Dropout(\n    inplace=True, p=0.2,  # (\n)"),
    ("nn.Dropout(inplace=(True))", "nn.Dropout(inplace=(True), p=0.2)"),
    ("(nn.Dropout)()", "(nn.Dropout)(p=0.2)"),
    ("nn.Dropout(  # none\n)", "nn.Dropout(p=0.2  # none\n)"),
]


@pytest.mark.parametrize(("before", "after"), ABSENT)
def test_an_absent_argument_is_given(before: str, after: str, tmp_path: Path) -> None:
    def edit(edits: SourceEdits, names: dict[str, Any], _: Path) -> Fix:
        return edits.argument(
            made_at(names, "layer"), 0, "p", 0.2, current=0.5, title="t", safety=Safety.UNSAFE
        )

    path = tmp_path / "net.py"
    assert edited(path, f"{IMPORTS}layer = {before}\n", edit) == f"{IMPORTS}layer = {after}\n"
    assert "0.2" in refused(path, f"{IMPORTS}layer = {after}\n", edit)


def test_an_argument_that_is_not_taken_is_not_given(tmp_path: Path) -> None:
    def edit(edits: SourceEdits, names: dict[str, Any], _: Path) -> Fix:
        return edits.argument(
            made_at(names, "layer"), 9, "p", 0.2, current=0.5, title="t", safety=Safety.UNSAFE
        )

    path = tmp_path / "net.py"
    why = refused(path, IMPORTS + "layer = nn.ReLU()\n", edit)
    assert why == "the call of `nn.ReLU` does not give `p`"
    refused(path, IMPORTS + "make = nn.Dropout\nlayer = make()\n", edit)


def test_the_position_is_that_of_what_is_called(tmp_path: Path) -> None:
    """`d_model`, the first argument of a larger layer, is not the `in_features` of one inside of it."""

    def edit(edits: SourceEdits, names: dict[str, Any], _: Path) -> Fix:
        return edits.argument(
            made_at(names, "layer"), 0, "in_features", 6, current=4, title="t", safety=Safety.SAFE
        )

    source = IMPORTS + "layer = nn.TransformerEncoderLayer(4, 2).linear1\n"
    refused(tmp_path / "net.py", source, edit)


# ---------------------------------------------------------------------- several layers of one call


def test_a_call_that_makes_layers_with_other_needs_is_refused(tmp_path: Path) -> None:
    source = IMPORTS + "layers = [nn.BatchNorm2d(4) for _ in range(3)]\nlayer = layers[0]\n"
    path = tmp_path / "net.py"
    why = refused(path, source, features(built=3, suits=2))
    assert why == "the call makes 3 layers, and the value suits 2 of them"
    assert "nn.BatchNorm2d(8)" in edited(path, source, features(built=3, suits=3))
    why = refused(path, source, features(value=None, built=3, suits=3))
    assert why == "the call makes 3 layers that need different values"


NEIGHBOURS = [
    ("def block(i, o):\n    return nn.Sequential(nn.Conv2d(i, o, 3), nn.BatchNorm2d(i))\nnet = block(4, 8)",
     "nn.BatchNorm2d(o)"),
    ("def block(i, o, n=4):\n    return nn.Sequential(nn.Conv2d(i, o, 3), nn.BatchNorm2d(n))\nnet = block(4, 8)",
     "nn.BatchNorm2d(o)"),
    ("def block(i, o):\n    return nn.Sequential(nn.Conv2d(i, o, 3), nn.BatchNorm2d(4))\nnet = block(4, 8)",
     "nn.BatchNorm2d(o)"),
    ("def block(i, o):\n    return nn.Sequential(nn.Conv2d(i, out_channels=2 * o, kernel_size=3), nn.BatchNorm2d(i))\nnet = block(4, 4)",
     "nn.BatchNorm2d(2 * o)"),
    ("W = [4, 8]\nlayers = []\nfor k in range(1):\n    layers += [nn.Conv2d(W[k], W[k + 1], 3), nn.BatchNorm2d(W[k])]\nnet = nn.Sequential(*layers)", "nn.BatchNorm2d(W[k + 1])"),
    ("net = nn.Sequential(*[m for i, o in [(4, 8)] for m in (nn.Conv2d(i, o, 3), nn.BatchNorm2d(i))])",
     "nn.BatchNorm2d(o)"),
    ("class A(nn.Sequential):\n    def __init__(self, i, o):\n        super().__init__(nn.Conv2d(i, o, 3), nn.BatchNorm2d(num_features=i))\nnet = A(4, 8)", "nn.BatchNorm2d(num_features=o)"),
]  # fmt: skip


def beside(value: Any = 8) -> Edit:
    """The number of features as the convolution before has it."""

    def edit(edits: SourceEdits, names: dict[str, Any], _: Path) -> Fix:
        conv, norm = made_at(names["net"]._modules, "0"), made_at(names["net"]._modules, "1")
        return edits.argument(
            norm, 0, "num_features", value, current=4, title="t", safety=Safety.SAFE,
            neighbour=(conv, 1, "out_channels"), built=2, suits=2,
        )  # fmt: skip

    return edit


@pytest.mark.parametrize(("source", "new"), NEIGHBOURS)
@pytest.mark.parametrize("value", [8, None])
def test_the_neighbours_expression_is_right_for_every_block(
    source: str, new: str, value: int | None, tmp_path: Path
) -> None:
    path = tmp_path / "net.py"
    after = edited(path, IMPORTS + source + "\n", beside(value))
    assert new in after
    refused(path, after, beside(None))  # the same words stand there


@pytest.mark.parametrize(
    "source",
    [
        "def block(i, o):\n    a = nn.Conv2d(i, o, 3)\n    o = i\n    return nn.Sequential(a, nn.BatchNorm2d(i))\nnet = block(4, 8)",
        "def conv(i, o):\n    return nn.Conv2d(i, o, 3)\nnet = nn.Sequential(conv(4, 8), nn.BatchNorm2d(4))",
        "net = nn.Sequential(nn.Conv2d(4, int('8'), 3), nn.BatchNorm2d(4))",
        "net = nn.Sequential([nn.Conv2d(4, o, 3) for o in (8,)][0], nn.BatchNorm2d(4))",
        "def block(i, o, n):\n    return nn.Sequential(nn.Conv2d(i, o, 3), nn.BatchNorm2d(n))\nnet = block(4, 8, 4)",
        "b = []\nfor o in (8,):\n    n = nn.BatchNorm2d(4)\n    b += [nn.Conv2d(4, o, 3), n]\nnet = nn.Sequential(*b)",
    ],
)
def test_a_neighbour_whose_names_mean_something_else_here_says_nothing(
    source: str, tmp_path: Path
) -> None:
    path = tmp_path / "net.py"
    refused(path, IMPORTS + source + "\n", beside(None))
