"""Lines put beside statements, statements moved, and layers initialised, wrapped and named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from editing import IMPORTS, Edit, edited, made_at, refused, run, site_of, written

from trainlint.fixes.edit import Fix
from trainlint.fixes.source import SourceEdits

LOOP = IMPORTS + (
    "model = nn.Linear(3, 1)\n"
    "opt = torch.optim.SGD(model.parameters(), lr=0.1)\n"
    "x = torch.zeros(2, 3)\n"
    "loss = model(x).mean()\n"
)


def before(shown: str, line: str) -> Edit:
    """The line before the statement of that call."""
    return lambda edits, _, path: edits.before_statement(site_of(path, shown), line, title="t")


def after(shown: str, line: str) -> Edit:
    """The line behind the statement of that call."""
    return lambda edits, _, path: edits.after_statement(site_of(path, shown), line, title="t")


BACKWARD = "loss.backward()"
BEFORE = [
    ("loss.backward()\nopt.step()", "opt.zero_grad()\nloss.backward()\nopt.step()"),
    ("loss.backward()  # all\nopt.step()", "opt.zero_grad()\nloss.backward()  # all\nopt.step()"),
    ("loss.backward(); opt.step()", "opt.zero_grad()\nloss.backward(); opt.step()"),
    ("y = 1; loss.backward()", "y = 1; opt.zero_grad(); loss.backward()"),
    ("for _ in range(1):\n    loss.backward()", "for _ in range(1):\n    opt.zero_grad()\n    loss.backward()"),
    ("for _ in range(1):\n\tloss.backward()", "for _ in range(1):\n\topt.zero_grad()\n\tloss.backward()"),
    ("for _ in range(1):\n  \tloss.backward()", "for _ in range(1):\n  \topt.zero_grad()\n  \tloss.backward()"),
    ("for _ in range(1): loss.backward()", "for _ in range(1): opt.zero_grad(); loss.backward()"),
    ("if True: y = 1; loss.backward()", "if True: y = 1; opt.zero_grad(); loss.backward()"),
    ("if False:\n    y = 1\nelse:\n    loss.backward()", "if False:\n    y = 1\nelse:\n    opt.zero_grad()\n    loss.backward()"),
    ("try:\n    y = 1\nfinally:\n    loss.backward()", "try:\n    y = 1\nfinally:\n    opt.zero_grad()\n    loss.backward()"),
    ("with torch.enable_grad():\n    # now\n    loss.backward()", "with torch.enable_grad():\n    # now\n    opt.zero_grad()\n    loss.backward()"),
    ("y = 1; \\\nloss.backward()", "y = 1; \\\nopt.zero_grad(); loss.backward()"),
    ("y = (1,\n  loss.backward())", "opt.zero_grad()\ny = (1,\n  loss.backward())"),
    ("'''a\nb'''; loss.backward()", "'''a\nb'''; opt.zero_grad(); loss.backward()"),
    ("def f():\n    '''Doc.'''\n    loss.backward()\nf()", "def f():\n    '''Doc.'''\n    opt.zero_grad()\n    loss.backward()\nf()"),
    ("\x0closs.backward()", "\x0copt.zero_grad()\n\x0closs.backward()"),
    ("match 1:\n    case 1:\n        loss.backward()", "match 1:\n    case 1:\n        opt.zero_grad()\n        loss.backward()"),
    ("try:\n    raise OSError\nexcept OSError:\n    loss.backward()", "try:\n    raise OSError\nexcept OSError:\n    opt.zero_grad()\n    loss.backward()"),
    ("y = [loss.backward() for _ in range(1)]", "opt.zero_grad()\ny = [loss.backward() for _ in range(1)]"),
    ("é = '层'; loss.backward()", "é = '层'; opt.zero_grad(); loss.backward()"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "wanted"), BEFORE)
@pytest.mark.parametrize("end", ["\n", ""])
def test_a_line_before_a_statement(code: str, wanted: str, end: str, tmp_path: Path) -> None:
    edit = before(BACKWARD, "opt.zero_grad()")
    assert edited(tmp_path / "net.py", LOOP + code + end, edit) == LOOP + wanted + end
    assert refused(tmp_path / "net.py", LOOP + wanted + end, edit) == "it stands there already"


CLIP = "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)"
AFTER = [
    ("loss.backward()\nopt.step()", f"loss.backward()\n{CLIP}\nopt.step()"),
    ("loss.backward()  # all\nopt.step()", f"loss.backward()  # all\n{CLIP}\nopt.step()"),
    ("loss.backward(); opt.step()", f"loss.backward(); {CLIP}; opt.step()"),
    ("loss.backward();  # end", f"loss.backward(); {CLIP};  # end"),
    ("y = 1; loss.backward()", f"y = 1; loss.backward(); {CLIP}"),
    ("for _ in range(1):\n    loss.backward()", f"for _ in range(1):\n    loss.backward()\n    {CLIP}"),
    ("for _ in range(1):\n\tloss.backward()\n\n", f"for _ in range(1):\n\tloss.backward()\n\t{CLIP}\n\n"),
    ("for _ in range(1): loss.backward()", f"for _ in range(1): loss.backward(); {CLIP}"),
    ("if False: pass\nelse: loss.backward()", f"if False: pass\nelse: loss.backward(); {CLIP}"),
    ("loss.backward(\n)", f"loss.backward(\n)\n{CLIP}"),
    ("loss.backward(  # all\n)  # end", f"loss.backward(  # all\n)  # end\n{CLIP}"),
    ("y = (loss.backward(),\n     1)\nz = 2", f"y = (loss.backward(),\n     1)\n{CLIP}\nz = 2"),
    ("loss.backward()   \nopt.step()", f"loss.backward()   \n{CLIP}\nopt.step()"),
    ("loss.backward(); s = '''\n'''", f"loss.backward(); {CLIP}; s = '''\n'''"),
    ("with torch.enable_grad():\n    loss.backward()\n    # then\ny = 1", f"with torch.enable_grad():\n    loss.backward()\n    {CLIP}\n    # then\ny = 1"),
    ("class A:\n    loss.backward()\n    y = 1", f"class A:\n    loss.backward()\n    {CLIP}\n    y = 1"),
    ("if True:\n        loss.backward()", f"if True:\n        loss.backward()\n        {CLIP}"),
    ("def f():\n    loss.backward()\n    return 1\nf()", f"def f():\n    loss.backward()\n    {CLIP}\n    return 1\nf()"),
    ("y = loss.backward() or 1", f"y = loss.backward() or 1\n{CLIP}"),
    ("loss.backward()\x0c", f"loss.backward()\x0c\n{CLIP}"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "wanted"), AFTER)
def test_a_line_behind_a_statement(code: str, wanted: str, tmp_path: Path) -> None:
    edit = after(BACKWARD, CLIP)
    wanted = wanted.replace("torch.nn.utils", "nn.utils")
    assert edited(tmp_path / "net.py", f"{LOOP}{code}\n", edit) == f"{LOOP}{wanted}\n"
    assert refused(tmp_path / "net.py", f"{LOOP}{wanted}\n", edit) == "it stands there already"


def test_lines_take_the_indentation_and_the_names_of_the_file(tmp_path: Path) -> None:
    source = "import torch as t\nm = t.nn.Linear(1, 1)\nif True:\n\tm.train()\n"
    edit = after("m.train()", "for p in {}.parameters():\n    torch.nn.init.zeros_(p)\nprint({})")
    assert edited(tmp_path / "net.py", source, edit) == (
        source + "\tfor p in m.parameters():\n\t    t.nn.init.zeros_(p)\n\tprint(m)\n"
    )


def test_a_line_brings_the_import_that_it_needs(tmp_path: Path) -> None:
    source = "from torch.nn import Linear\n\nm = Linear(1, 1)\nm.train()\n"
    edit = before("m.train()", "torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0)")
    assert edited(tmp_path / "net.py", source, edit) == (
        "from torch.nn import Linear\nfrom torch.nn.utils import clip_grad_norm_\n\n"
        "m = Linear(1, 1)\nclip_grad_norm_(m.parameters(), 1.0)\nm.train()\n"
    )


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("while loss.backward():\n    pass", "it stands in the head of the `while`"),
        ("if loss.backward(): pass", "it stands in the head of the `if`"),
        ("f = lambda: loss.backward()", "it stands in a lambda"),
        ("y = 1; loss.backward()", "the statement shares its line with others"),
    ],
)
def test_where_no_line_can_be_put(code: str, why: str, tmp_path: Path) -> None:
    edit = before(BACKWARD, "if opt:\n    opt.zero_grad()")
    assert refused(tmp_path / "net.py", f"{LOOP}{code}\n", edit) == why


# ---------------------------------------------------------------------- moved

MOVES = [
    ("c()\nb()\na()\n", "a()\nc()\nb()\n"),
    ("c()\na()  # why\n", "a()  # why\nc()\n"),
    ("c()\na(\n    # all\n)\nd = 1\n", "a(\n    # all\n)\nc()\nd = 1\n"),
    ("c()\nb()\na()", "a()\nc()\nb()"),
    ("for _ in 'a':\n\tc()\n\n\t# first\n\ta()\n\tb()\n", "for _ in 'a':\n\ta()\n\tc()\n\n\t# first\n\tb()\n"),
    ("for _ in 'a':\n    c()\n    a()", "for _ in 'a':\n    a()\n    c()"),
    ("c(); b()\na()\n", "a()\nc(); b()\n"),
    ("a()\nb()\nc()\n", "b()\na()\nc()\n"),
    ("if True:\n    a()\n    b()\n    c()\n", "if True:\n    b()\n    a()\n    c()\n"),
    ("x = 1\nc()\ny = a()\n", "x = 1\ny = a()\nc()\n"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "wanted"), MOVES)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_statement_is_moved_with_its_line(
    source: str, wanted: str, newline: str, tmp_path: Path
) -> None:
    head = "a = b = c = lambda: None\n"
    path = tmp_path / "net.py"

    def edit(edits: SourceEdits, _: dict[str, Any], where: Path) -> Fix:
        return edits.moved_before(site_of(where, "a()"), site_of(where, "c()"), title="t")

    text = edited(path, (head + source).replace("\n", newline), edit)
    assert text == (head + wanted).replace("\n", newline)
    assert refused(path, text, edit) == "it stands there already"


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("c()\nx = 1\na(x)", "`x` is set in between"),
        ("c(x)\nx = a(x)", "`x` is set in between"),
        ("c()\nb(); a(x)", "the statement shares its line with others"),
        ("c()\nif x:\n    a(x)", "the two do not stand in one block"),
        ("for _ in 'a': c(); b()\na(x)", "the two do not stand in one block"),
    ],
)
def test_what_must_stay_where_it_is(source: str, why: str, tmp_path: Path) -> None:
    head = "a = b = c = lambda *_: None\nx = 0\n"

    def edit(edits: SourceEdits, _: dict[str, Any], path: Path) -> Fix:
        text = path.read_text()
        one = "a(x)" if "a(x)" in text else "a()"
        return edits.moved_before(
            site_of(path, one), site_of(path, "c(x)" if "c(x)" in text else "c()"), title="t"
        )

    assert refused(tmp_path / "net.py", f"{head}{source}\n", edit) == why


# ---------------------------------------------------------------------- initialised

NET = "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        {}\nnet = Net()"
DICT = "from collections import OrderedDict\n"
INITIALISED = [
    ("a = nn.Linear(3, 3)", "a"),
    ("a: nn.Module = nn.Linear(3, 3)", "a"),
    ("a, b = nn.ReLU(), nn.Linear(3, 3)", "b"),
    ("a = nn.Linear(3, 3).train()", "a"),
    ("a = nn.Linear(3, 3).to('cpu').double()", "a"),
    ("a = nn.Linear(\n    3, 3\n)  # first", "a"),
    ("a = nn.Sequential(nn.ReLU(), nn.Linear(3, 3))", "a[1]"),
    ("a = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Linear(3, 3)))", "a[1][0]"),
    ("a = nn.Sequential(*[nn.ReLU(), nn.Linear(3, 3)])", "a[1]"),
    ("a = nn.ModuleList([nn.Linear(3, 3)])", "a[0]"),
    ("a = nn.ModuleDict({'b': nn.Linear(3, 3)})", "a['b']"),
    (DICT + "a = nn.Sequential(OrderedDict([('b', nn.Linear(3, 3))]))", "a[0]"),
    ("a = [nn.ReLU()]\na.append(nn.Linear(3, 3))", "a[-1]"),
    ("a = []\nfor _ in range(2):\n    a.append(nn.Linear(3, 3))", "a[-1]"),
    (NET.format("self.f = nn.Linear(3, 3)"), "self.f"),
    (NET.format("self.f = nn.Sequential(nn.ReLU(), nn.Linear(3, 3))"), "self.f[1]"),
    (NET.format("self.f = nn.ModuleList([nn.Sequential(nn.ReLU(), nn.Linear(3, 3))])"), "self.f[0][1]"),
    (NET.format("self.add_module('f', nn.Linear(3, 3))"), "self.f"),
    (NET.format("self.f = nn.ModuleList(); self.f.append(nn.Linear(3, 3))"), "self.f[-1]"),
    ("if True: a = nn.Linear(3, 3)", "a"),
    ("def f():\n    a = nn.Linear(3, 3)\n    return a\nf()", "a"),
]  # fmt: skip


def initialised(edits: SourceEdits, _: dict[str, Any], path: Path) -> Fix:
    """He's values for the only linear layer."""
    return edits.initialised(
        site_of(path, "nn.Linear(3, 3)"), "torch.nn.init.zeros_({}.weight)", title="t"
    )


@pytest.mark.parametrize(("code", "target"), INITIALISED)
def test_a_layer_is_initialised_behind_its_constructor(
    code: str, target: str, tmp_path: Path
) -> None:
    path = tmp_path / "net.py"
    line = f"nn.init.zeros_({target}.weight)"
    text = edited(path, f"{IMPORTS}{code}\n", initialised)
    assert text.count(line) == 1
    assert text.replace(f"; {line}", "").replace(line, "").split() == f"{IMPORTS}{code}".split()
    path.write_text(text)
    names = run(path)
    if "a" in names and target.startswith("a"):
        layer = eval(target, names)
        assert not layer.weight.any()
    assert SourceEdits().assigned(site_of(path, "nn.Linear(3, 3)")) == target
    assert refused(path, text, initialised) == "it stands there already"


@pytest.mark.parametrize(
    "code",
    [
        "a = [nn.Linear(3, 3) for _ in range(2)]",
        "def f():\n    return nn.Linear(3, 3)\na = f()",
        "a = b = nn.Linear(3, 3)",
        "a = dict(b=nn.Linear(3, 3))",
        "a = nn.Sequential(*[nn.Linear(3, 3) for _ in range(2)])",
        "a = nn.Sequential(*[nn.ReLU()], nn.Linear(3, 3))",
        "nn.Linear(3, 3)",
        "a = {}\na['b'] = nn.Linear(3, 3)",
    ],
)
def test_a_layer_without_a_name_of_its_own_is_not_initialised(code: str, tmp_path: Path) -> None:
    why = refused(tmp_path / "net.py", f"{IMPORTS}{code}\n", initialised)
    assert why == "the layer gets no name where it is made"


# ---------------------------------------------------------------------- lists of modules

LISTS = [
    ("self.f = [nn.Linear(3, 3)]", "self.f = nn.ModuleList([nn.Linear(3, 3)])"),
    ("self.f = [nn.Linear(3, 3) for _ in range(2)]", "self.f = nn.ModuleList([nn.Linear(3, 3) for _ in range(2)])"),
    ("self.f = (nn.Linear(3, 3), nn.ReLU())", "self.f = nn.ModuleList((nn.Linear(3, 3), nn.ReLU()))"),
    ("self.f = []\n        self.f.append(nn.Linear(3, 3))", "self.f = nn.ModuleList([])\n        self.f.append(nn.Linear(3, 3))"),
    ("self.f: list[nn.Module] = [nn.Linear(3, 3)]", "self.f: list[nn.Module] = nn.ModuleList([nn.Linear(3, 3)])"),
    ("self.f = [  # both\n            nn.ReLU(),  # a\n            nn.Linear(3, 3),\n        ]",
     "self.f = nn.ModuleList([  # both\n            nn.ReLU(),  # a\n            nn.Linear(3, 3),\n        ])"),
    ("self.f = [nn.Sequential(nn.Linear(3, 3))]", "self.f = nn.ModuleList([nn.Sequential(nn.Linear(3, 3))])"),
    ("self.f = ([nn.Linear(3, 3)])", "self.f = (nn.ModuleList([nn.Linear(3, 3)]))"),
    ("self.f = []\n        for _ in range(2): self.f.append(nn.Linear(3, 3))",
     "self.f = nn.ModuleList([])\n        for _ in range(2): self.f.append(nn.Linear(3, 3))"),
    ("self.f = [nn.Linear(3, 3)]; self.g = len(self.f)", "self.f = nn.ModuleList([nn.Linear(3, 3)]); self.g = len(self.f)"),
]  # fmt: skip


def module_list(edits: SourceEdits, _: dict[str, Any], path: Path) -> Fix:
    """The list around the only linear layer."""
    return edits.module_list(site_of(path, "nn.Linear(3, 3)"), title="t")


@pytest.mark.parametrize(("code", "wanted"), LISTS)
def test_a_list_of_modules_is_registered(code: str, wanted: str, tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    text = edited(path, f"{IMPORTS}{NET.format(code)}\n", module_list)
    assert text == f"{IMPORTS}{NET.format(wanted)}\n"
    path.write_text(text)
    assert len(list(run(path)["net"].parameters())) >= 2
    refused(path, text, module_list)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("self.f = [nn.Linear(3, 3)]\n        self.f.sort(key=id)", "`self.f.sort` is called, which a ModuleList does not have"),
        ("self.f = [nn.Linear(3, 3)]\n        self.g = self.f + []", "`self.f` is added or compared as a list"),
        ("self.f = [nn.Linear(3, 3)]\n        self.g = nn.Sequential(*self.f)", "`*self.f` registers the layers elsewhere"),
        ("self.f = [nn.Linear(3, 3)]\n        self.g = nn.ModuleList(self.f)", "`torch.nn.ModuleList(self.f)` registers the layers elsewhere"),
        ("self.f = [nn.Linear(3, 3)]\n        isinstance(self.f, list)", "`self.f` is asked for its type"),
        ("self.f = [nn.Linear(3, 3)]\n        self.f = self.f[:1]", "`self.f` is set in 2 places"),
        ("f = [nn.Linear(3, 3)]", "the list is not kept as an attribute of the module"),
        ("self.f = [[nn.Linear(3, 3)]]", "`self.f` holds lists of lists"),
        ("self.f = nn.Linear(3, 3), nn.ReLU()", "the layers stand in a tuple without parentheses"),
        ("self.f = {'a': nn.Linear(3, 3)}", "`self.f` is no list that is written there"),
    ],
)  # fmt: skip
def test_a_list_that_is_used_as_one_stays(code: str, why: str, tmp_path: Path) -> None:
    assert refused(tmp_path / "net.py", f"{IMPORTS}{NET.format(code)}\n", module_list) == why


def test_a_list_before_the_module_is_there_stays(tmp_path: Path) -> None:
    code = NET.replace(
        "        super().__init__()\n        {}\n",
        "        self.f = [nn.Linear(3, 3)]\n        super().__init__()\n",
    )
    why = refused(tmp_path / "net.py", f"{IMPORTS}{code}\n", module_list)
    assert why == "it stands before `super().__init__()`"


# ---------------------------------------------------------------------- a norm, a connection

BLOCK = (
    "class Net(nn.Module):\n    def __init__(self, c=4):\n        super().__init__()\n"
    "        self.a = {}\n    def forward(self, x):\n        {}\n"
    "net = Net()\nnet(torch.zeros(2, 3, 8, 8))"
)
NORMS = [
    ("nn.Conv2d(3, c, 3)", "return self.a(x)", "c", "return self.a_norm(self.a(x))"),
    ("nn.Conv2d(3, 2 * c, 3)", "return F.relu(self.a(x))", "2 * c", "return F.relu(self.a_norm(self.a(x)))"),
    ("nn.Conv2d(3, kernel_size=3, out_channels=4)", "return -self.a(x)", "4", "return -self.a_norm(self.a(x))"),
    ("nn.Conv2d(3, 4, 3, bias=False)  # in", "x = self.a(\n            x)\n        return x", "4",
     "x = self.a_norm(self.a(\n            x))\n        return x"),
]  # fmt: skip


@pytest.mark.parametrize(("made", "called", "size", "after_"), NORMS)
def test_a_norm_is_put_behind_a_layer(
    made: str, called: str, size: str, after_: str, tmp_path: Path
) -> None:
    path = tmp_path / "net.py"

    def edit(edits: SourceEdits, names: dict[str, Any], where: Path) -> Fix:
        site = made_at(names, "net.a")
        uses = [site_of(where, "self.a(x)")]
        size = (1, "out_channels")
        return edits.normalised(site, "torch.nn.BatchNorm2d", size, uses, title="t")

    text = edited(path, f"{IMPORTS}{BLOCK.format(made, called)}\n", edit)
    line = f"{made}\n        self.a_norm = nn.BatchNorm2d({size})"
    assert text == f"{IMPORTS}{BLOCK.format(line, after_)}\n"
    refused(path, text, edit)


@pytest.mark.parametrize(
    ("made", "called", "why"),
    [
        (
            "nn.Conv2d(3, int(c), 3)",
            "return self.a(x)",
            "`out_channels` is computed where the layer is made",
        ),
        (
            "nn.Conv2d(3, c, 3)",
            "return self.a(x) + self.a(x + 1)",
            "`self.a` is called in 2 places",
        ),
        (
            "nn.Sequential(nn.Conv2d(3, c, 3))",
            "return self.a(x)",
            "`self.a[0]` is no attribute of its own",
        ),
        (
            "nn.Conv2d(3, c, 3)\n        self.a = self.a",
            "return self.a(x)",
            "`self.a` is set in 2 places",
        ),
        (
            "nn.Conv2d(3, c, 3)\n        self.a_norm = 1",
            "return self.a(x)",
            "the name `a_norm` is taken",
        ),
    ],
)
def test_a_norm_that_cannot_be_put_there(made: str, called: str, why: str, tmp_path: Path) -> None:
    def edit(edits: SourceEdits, names: dict[str, Any], where: Path) -> Fix:
        site = made_at(names["net"]._modules, "a")
        if site is None or "Sequential" in made:
            site = made_at(names["net"].a._modules, "0")
        uses = [site_of(where, "self.a(x)")]
        return edits.normalised(site, "torch.nn.BatchNorm2d", (1, "out_channels"), uses, title="t")

    assert refused(tmp_path / "net.py", f"{IMPORTS}{BLOCK.format(made, called)}\n", edit) == why


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("y = f(x)", "y = x + f(x)"),
        ("y = 2 * f(x)", "y = 2 * (x + f(x))"),
        ("y = torch.relu(f(x))", "y = torch.relu(x + f(x))"),
        ("y = f(x).mean()", "y = (x + f(x)).mean()"),
        ("y = [f(x)][0]", "y = [x + f(x)][0]"),
        ("y = -f(x)", "y = -(x + f(x))"),
        ("y = 1 + f(x)", "y = 1 + (x + f(x))"),
        ("y = f(  # deep\n    x)", "y = x + f(  # deep\n    x)"),
    ],
)
def test_a_connection_around_a_call(code: str, wanted: str, tmp_path: Path) -> None:
    head = f"{IMPORTS}x = torch.ones(3)\nf = torch.zeros_like\n"

    def edit(edits: SourceEdits, _: dict[str, Any], path: Path) -> Fix:
        return edits.residual(site_of(path, "f(x)"), title="t")

    path = tmp_path / "net.py"
    assert edited(path, f"{head}{code}\n", edit) == f"{head}{wanted}\n"
    assert refused(path, f"{head}{wanted}\n", edit) == "it stands there already"
    assert "form `f(x)`" in refused(
        path, f"{head}y = f(x + 1)\n", lambda e, _, p: e.residual(site_of(p, "f(x + 1)"), title="t")
    )


def test_what_stands_at_a_site(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(f"{LOOP}(opt).step()\nprint()\n")
    edits = SourceEdits()
    assert edits.receiver(site_of(path, "opt.step()")) == "opt"
    assert edits.receiver(site_of(path, "print()")) is None
    assert edits.receiver(None) is edits.assigned(None) is None
    assert edits.assigned(site_of(path, "nn.Linear(3, 1)")) == "model"
    fix = edits.before_statement(site_of(path, "opt.step()"), "{}.zero_grad()", title="t")
    assert "\nopt.zero_grad()\n(opt).step()\n" in written(path, fix)
