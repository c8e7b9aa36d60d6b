# ruff: noqa: E501
"""Fixes of the rules on architecture, initialisation, normalisation and activation.

Every warning and error has a remedy with its reason, and says what stands in the way where there is no
edit. Edits are made in many spellings of each fault, and the edited file is checked again: in this process,
on a model that is made as the check makes it.
"""

from __future__ import annotations

import ast
import importlib.util
import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import trainlint
from trainlint import Report
from trainlint.fixes.edit import Fix, Safety
from trainlint.fixes.source import SourceText, apply
from trainlint.registry import all_rules
from trainlint.rule import Rule
from trainlint.sites import recording

FIXTURES = Path(__file__).parent.parent / "fixtures" / "broken"
FAMILIES = ("architecture", "initialization", "normalization", "activation")
RULES = {rule.code: rule for rule in all_rules() if rule.family in FAMILIES}
PRELUDE = "import torch\nimport torch.nn.functional as F\nfrom torch import nn\n\n\n"
FENCE = re.compile(r"```python\n(.*?)```", re.DOTALL)
COUNTER = itertools.count()
LOOP = ".backward()"
MOST_FIXTURES = 3
# What none of the examples can be mended by an edit, and why none is made.
SHOWN = {
    "ARC004": "whether a layer was to be used, and where, only its author knows",
    "ARC011": "whether an input was to be used, and where, only its author knows",
}


def bad_examples(rule: Rule) -> list[str]:
    parts = re.split(r"^## (.+)$", rule.documentation, flags=re.MULTILINE)
    return FENCE.findall(dict(zip(parts[1::2], parts[2::2], strict=True))["Bad"])


# ---------------------------------------------------------------------- every finding has a remedy


class Case(NamedTuple):
    """A file with a fault, and what is said of it."""

    path: Path
    finding: Any


@pytest.fixture(scope="session")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    """All findings of these rules on their own bad examples."""
    folder = tmp_path_factory.mktemp("bad")
    loops: list[Case] = []
    for rule in RULES.values():
        for number, block in enumerate(bad_examples(rule)):
            path = folder / f"{rule.code}_{number}.py"
            path.write_text(PRELUDE + block, encoding="utf-8")
            if LOOP in block:
                loops += [Case(path, f) for f in watched(path).findings if f.code == rule.code]
    paths = [p for p in sorted(folder.glob("*.py")) if LOOP not in p.read_text(encoding="utf-8")]
    report = trainlint.check(paths, stages=("static", "signal"))
    return [*loops, *(Case(folder / Path(f.filename or "").name, f) for f in own(report))]


def own(report: Report) -> list[Any]:
    return [finding for finding in report.findings if finding.code in RULES]


def watched(path: Path) -> Report:
    torch.manual_seed(0)
    program = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    with trainlint.watch() as w, recording():
        exec(program, {"__name__": "__main__"})
    return w.report()


@pytest.fixture(scope="session")
def fixtures() -> list[Case]:
    """All findings of these rules on some fixtures that expect one."""
    texts = {path: path.read_text("utf-8") for path in sorted(FIXTURES.glob("*.py"))}
    expected = {code: re.compile(rf"# expect: .*\b{code}\b") for code in RULES}
    of_rule = {code: [p for p in texts if expected[code].search(texts[p])] for code in RULES}
    paths = sorted({path for paths in of_rule.values() for path in paths[:MOST_FIXTURES]})
    report = trainlint.check(paths, stages=("static", "signal"), select=list(RULES))
    return [Case(FIXTURES / Path(f.filename or "").name, f) for f in own(report)]


def test_every_rule_is_seen(examples: list[Case], fixtures: list[Case]) -> None:
    seen = {finding.code for _, finding in [*examples, *fixtures]}
    # The inputs of its example explain ACT002, which is their symptom there.
    assert set(RULES) - seen <= {"ACT002"}


def test_every_warning_and_error_has_a_remedy_with_its_reason(
    examples: list[Case], fixtures: list[Case]
) -> None:
    for path, finding in [*examples, *fixtures]:
        shown = (path.name, finding.code, finding.message)
        assert finding.fixes, shown
        for fix in finding.fixes:
            assert fix.title, shown
            assert fix.reason, (*shown, fix.title)
            assert "\n" not in fix.title + fix.reason + fix.obstacle, shown
            assert bool(fix.edits) != bool(fix.obstacle), (*shown, fix.title, fix.obstacle)
            assert (fix.safety == Safety.DISPLAY_ONLY) == (not fix.edits), shown


def test_what_is_only_ever_shown_is_known(examples: list[Case], fixtures: list[Case]) -> None:
    edited = {f.code for _, f in [*examples, *fixtures] if any(fix.edits for fix in f.fixes)}
    edited |= set(SPELLINGS)
    advice = {code for code, rule in RULES.items() if rule.severity == "info"}
    seen = {f.code for _, f in [*examples, *fixtures]}
    assert seen - edited - advice == set(SHOWN)


def test_paths_in_patches_are_those_of_the_model(examples: list[Case]) -> None:
    checked = 0
    for path, finding in examples:
        patches = [patch for fix in finding.fixes for patch in fix.patches]
        if not patches or LOOP in path.read_text(encoding="utf-8"):
            continue
        namespace = load(path)
        target = (finding.target or "").rpartition("::")[2]
        model = vars(namespace).get(target) or vars(namespace).get("Net")
        model = model() if isinstance(model, type) else model
        if not isinstance(model, torch.nn.Module):
            continue
        modules = dict(model.named_modules())
        parameters = dict(model.named_parameters())
        for patch in patches:
            assert set(patch.modules) <= set(modules), (path.name, patch)
            assert set(patch.parameters) <= set(parameters), (path.name, patch)
            assert {call.module for call in patch.calls} <= set(modules), (path.name, patch)
            checked += 1
    assert checked >= 15


# ---------------------------------------------------------------------- spellings


def load(path: Path) -> Any:
    """The file as a module, constructed as a check does it."""
    name = f"_rule_fixes_{next(COUNTER)}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    # A stale cache would run the text before the edit.
    exec(compile(path.read_bytes(), str(path), "exec", dont_inherit=True), vars(module))
    return module


def findings(path: Path, code: str) -> list[Any]:
    torch.manual_seed(0)
    with recording():
        module = load(path)
        model = module.Net()
    inputs = module.example_inputs
    report = trainlint.check(model, inputs, select=[code], stages=("static", "signal"))
    reasons = [target.reason for target in report.targets if target.status == "error"]
    assert reasons == []
    return [finding for finding in report.findings if finding.code == code]


HEADERS = {
    "nn": ("import torch\nimport torch.nn.functional as F\nfrom torch import nn\n", "nn."),
    "as nn": ("import torch\nimport torch.nn as nn\nimport torch.nn.functional as F\n", "nn."),
    "torch.nn": ("import torch\nimport torch.nn.functional as F\n", "torch.nn."),
    "alias": ("import torch\nfrom torch import nn as tnn\nfrom torch.nn import functional as F\n", "tnn."),
    "names": ("import torch\nimport torch.nn.functional as F\nfrom torch.nn import {}\n", ""),
}  # fmt: skip


def spelled(body: str, header: str, layout: str) -> str:
    imports, prefix = HEADERS[header]
    if header == "names":
        body = body.replace("nn.init.", "init.")
        names = sorted({"Module", *re.findall(r"\bnn\.(\w+)", body)})
        names += ["init"] * ("init." in body)
        imports = imports.format(", ".join(names))
    body = re.sub(r"\bnn\.", prefix, body)
    text = f'"""Ein Netz."""\n\n{imports}\n\n{body}'
    if layout == "comments":
        text = re.sub(
            r"^(\s+self\.\w+ = .*[^(,\[])$", r"\1  # Schicht für „x“", text, flags=re.MULTILINE
        )
    elif layout == "tabs":
        text = re.sub(r"^( {4})+", lambda m: "\t" * (len(m[0]) // 4), text, flags=re.MULTILINE)
    elif layout == "crlf":
        text = text.replace("\n", "\r\n")
    return text


LAYOUTS = ("plain", "comments", "tabs", "crlf")


def net(layers: str, forward: str, inputs: str) -> str:
    """The source of a model: what its `__init__` makes, what its forward does."""
    made = "\n".join(" " * 8 + line for line in layers.splitlines())
    forward, _, method = forward.partition("\n<method>")
    done = "\n".join(" " * 8 + line for line in forward.splitlines())
    done += "".join("\n" + " " * 4 + line for line in ["", *method.splitlines()] if method)
    return (
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        f"{made}\n\n    def forward(self, x):\n{done}\n\n\nexample_inputs = {inputs}\n"
    )


def method(signature: str, *lines: str) -> str:
    """Another method, to stand behind the lines of the forward."""
    body = "\n".join(f"    {line}" for line in lines)
    return f"\n<method>def {signature}:\n{body}"


VECTORS, IMAGES, SERIES = "torch.randn(6, 8)", "torch.randn(4, 3, 12, 12)", "torch.randn(4, 7, 8)"
DEEP = "x = torch.{}(self.{}(x))"
MANY = (
    "self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(9))\nself.head = nn.Linear(32, 4)"
)
THROUGH = "for layer in self.layers:\n    x = torch.relu(layer(x))\nreturn self.head(x)"
WIDE = "torch.randn(8, 32)"
HEAD = "self.fc1 = nn.Linear(8, 8)\nself.fc2 = nn.Linear(8, 3)"
STACK = (
    "\n".join(f"self.fc{n} = nn.Linear(8, 8)" for n in range(5)) + "\nself.head = nn.Linear(8, 2)"
)
ATTENTION = (
    "class Attention(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
    "        self.qkv = nn.Linear(8, 24)\n\n    def forward(self, x, **options):\n"
    "        q, k, v = self.qkv(x).chunk(3, -1)\n"
    "        return F.scaled_dot_product_attention(q, k, v, **options)\n\n\n"
)
SEES = "self.e = nn.Embedding(50, 8)\nself.a = Attention()\nself.b = Attention()\nself.qkv = nn.Linear(8, 24)\nself.head = nn.Linear(8, 50)"
OPEN = "q, k, v = self.qkv(x).chunk(3, -1)\nx = x + F.scaled_dot_product_attention(q, k, v)\nreturn self.head(x)"
SEQUENTIAL = ", ".join("nn.Linear(8, 8), nn.Sigmoid()" for _ in range(5))
# The first of each must be edited in the plain spelling; the others be edited or refused.
SPELLINGS: dict[str, list[str]] = {
    "ARC001": [
        net(HEAD, "return self.fc2(self.fc1(x))", VECTORS),
        net(HEAD, "x = self.fc1(x)\nx = self.fc2(x)\nreturn x", VECTORS),
        net("self.net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))", "return self.net(x)", VECTORS),
        net("self.net = nn.Sequential(\n    nn.Linear(8, 8),  # in\n    nn.Linear(8, 3),\n)", "return self.net(x)", VECTORS),
        net("layers = []\nlayers.append(nn.Linear(8, 8))\nlayers += [nn.Linear(8, 3)]\nself.net = nn.Sequential(*layers)", "return self.net(x)", VECTORS),
        net("self.layers = nn.ModuleList([nn.Linear(8, 8)])\nself.out = nn.Linear(8, 3)", "for layer in self.layers:\n    x = layer(x)\nreturn self.out(x)", VECTORS),
        net("self.net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))", "return self.net[1](self.net[0](x))", VECTORS),
    ],
    "ARC002": [
        net("self.fc1 = nn.Linear(8, 16)\nself.fc2 = nn.Linear(12, 3)", "return self.fc2(torch.relu(self.fc1(x)))", VECTORS),
        net("self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(12, 3))", "return self.net(x)", VECTORS),
        net("self.fc1 = nn.Linear(8, 16)\nself.fc2 = nn.Linear(in_features=12, out_features=3)", "return self.fc2(torch.relu(self.fc1(x)))", VECTORS),
        net("width = 12\nself.fc1 = nn.Linear(8, 16)\nself.fc2 = nn.Linear(width, 3)", "return self.fc2(torch.relu(self.fc1(x)))", VECTORS),
        "def block(i, o):\n    return nn.Sequential(nn.Linear(i, o), nn.ReLU(), nn.Linear(i, o))\n\n\n"
        + net("self.a = block(8, 16)\nself.b = block(16, 4)", "return self.b(self.a(x))", VECTORS),
    ],
    "ARC003": [
        net("self.layers = [nn.Linear(8, 8), nn.Linear(8, 8)]\nself.head = nn.Linear(8, 3)", "for f in self.layers:\n    x = torch.relu(f(x))\nreturn self.head(x)", VECTORS),
        net("self.layers = [nn.Linear(8, 8) for _ in range(3)]\nself.head = nn.Linear(8, 3)", "for f in self.layers:\n    x = torch.relu(f(x))\nreturn self.head(x)", VECTORS),
        net("self.heads = {'a': nn.Linear(8, 3), 'b': nn.Linear(8, 3)}", "return self.heads['a'](x) + self.heads['b'](x.tanh())", VECTORS),
        net("self.layers = []\nfor _ in range(3):\n    self.layers.append(nn.Linear(8, 8))\nself.head = nn.Linear(8, 3)", "for f in self.layers:\n    x = torch.relu(f(x))\nreturn self.head(x)", VECTORS),
    ],
    "ARC005": [
        net(HEAD, "h = torch.relu(self.fc1(x)).detach()\nreturn self.fc2(h)", VECTORS),
        net(HEAD, "h = torch.relu(self.fc1(x)).data\nreturn self.fc2(h)", VECTORS),
        net(HEAD, "h = self.fc1(x)\nh = torch.sign(h)\nreturn self.fc2(h)", VECTORS),
        net(HEAD, "h = self.fc1(x)\nreturn self.fc2(h.sign())", VECTORS),
        net(HEAD, "with torch.no_grad():\n    h = torch.relu(self.fc1(x))\nreturn self.fc2(h)", VECTORS),
    ],
    "ARC006": [
        net("self.rnn = nn.LSTM(8, 8)\nself.head = nn.Linear(8, 3)", "h, _ = self.rnn(x)\nreturn self.head(h[:, -1])", SERIES),
        net("self.rnn = nn.GRU(input_size=8, hidden_size=8)\nself.head = nn.Linear(8, 3)", "h, _ = self.rnn(x)\nreturn self.head(h[:, -1])", SERIES),
        net("self.rnn = nn.LSTM(8, 8, 2, dropout=0.0)\nself.head = nn.Linear(8, 3)", "h, _ = self.rnn(x)\nreturn self.head(h[:, -1])", SERIES),
    ],
    "ARC008": [
        net(STACK, "\n".join(DEEP.format("sigmoid", f"fc{n}") for n in range(5)) + "\nreturn self.head(x)", VECTORS),
        net(STACK, "\n".join(f"x = self.fc{n}(x).sigmoid()" for n in range(5)) + "\nreturn self.head(x)", VECTORS),
        net(STACK + "\nself.act = nn.Sigmoid()", "\n".join(f"x = self.act(self.fc{n}(x))" for n in range(5)) + "\nreturn self.head(x)", VECTORS),
        net(f"self.body = nn.Sequential({SEQUENTIAL})\nself.head = nn.Linear(8, 2)", "return self.head(self.body(x))", VECTORS),
        net("self.fs = nn.ModuleList(nn.Linear(8, 8) for _ in range(5))\nself.head = nn.Linear(8, 2)", "for f in self.fs:\n    x = F.sigmoid(f(x))\nreturn self.head(x)", VECTORS),
        net("self.fs = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.Sigmoid()) for _ in range(5)])\nself.head = nn.Linear(8, 2)", "return self.head(self.fs(x))", VECTORS),
    ],
    "ARC009": [
        ATTENTION + net(SEES, "x = self.e(x)\nx = x + self.a(x, is_causal=True)\nx = x + self.b(x, is_causal=True)\n" + OPEN, "torch.randint(0, 50, (2, 9))"),
        ATTENTION + net(SEES, "x = self.e(x)\nx = x + self.a(x, is_causal=True)\nx = x + self.b(x, is_causal=True)\n" + OPEN.replace("(q, k, v)", "(q, k, v, dropout_p=0.0)"), "torch.randint(0, 50, (2, 9))"),
    ],
    "ARC010": [
        net(HEAD, "x = self.fc1(x)\ntorch.relu(x)\nreturn self.fc2(x)", VECTORS),
        net(HEAD + "\nself.act = nn.ReLU()", "x = self.fc1(x)\nself.act(x)\nreturn self.fc2(x)", VECTORS),
        net(HEAD, "x = self.fc1(x)\nF.relu(x)\nreturn self.fc2(x)", VECTORS),
    ],
    "ARC012": [
        net(STACK + "\nfor f in self.children():\n    nn.init.normal_(f.weight, 0.0, 1e-9)", "\n".join(DEEP.format("relu", f"fc{n}") for n in range(5)) + "\nreturn self.head(x)", VECTORS),
        net(STACK + "\nfor f in self.children():\n    f.weight.data.normal_(0.0, 1e-9)", "\n".join(DEEP.format("relu", f"fc{n}") for n in range(5)) + "\nreturn self.head(x)", VECTORS),
    ],
    "ARC013": [
        net("self.a = nn.Linear(8, 12)\nself.b = nn.Linear(8, 16)\nself.c = nn.Linear(16, 2)", "return self.c(torch.relu(self.a(x) + self.b(x)))", VECTORS),
        net("self.a = nn.Linear(8, out_features=12)\nself.b = nn.Linear(8, 16)\nself.c = nn.Linear(16, 2)", "return self.c(torch.relu(self.a(x) + self.b(x)))", VECTORS),
    ],
    "ARC014": [
        net("self.c = nn.Conv2d(3, 4, 3)\nself.f = nn.Linear(40, 2)", "x = torch.relu(self.c(x))\nx = x.view(-1, 40)\nreturn self.f(x)", IMAGES),
        net("self.c = nn.Conv2d(3, 4, 3)\nself.f = nn.Linear(40, 2)", "return self.f(torch.relu(self.c(x)).reshape(-1, 40))", IMAGES),
        net("self.c = nn.Conv2d(3, 4, 3)\nself.f = nn.Linear(40, 2)", "x = torch.relu(self.c(x))\nreturn self.f(torch.reshape(x, (-1, 40)))", IMAGES),
    ],
    "NRM001": [
        net("self.c = nn.Conv2d(3, 8, 3)\nself.n = nn.BatchNorm2d(4)\nself.f = nn.Linear(8, 2)", "x = torch.relu(self.n(self.c(x)))\nreturn self.f(x.mean((2, 3)))", IMAGES),
        net("self.c = nn.Conv2d(3, 8, 3)\nself.n = nn.BatchNorm2d(num_features=4)\nself.f = nn.Linear(8, 2)", "x = torch.relu(self.n(self.c(x)))\nreturn self.f(x.mean((2, 3)))", IMAGES),
        net("self.c = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(4), nn.ReLU())\nself.f = nn.Linear(8, 2)", "return self.f(self.c(x).mean((2, 3)))", IMAGES),
        net("self.c = nn.Conv2d(3, 8, 3)\nself.n = nn.BatchNorm1d(8)\nself.f = nn.Linear(8, 2)", "x = torch.relu(self.n(self.c(x)))\nreturn self.f(x.mean((2, 3)))", IMAGES),
        "def block(i, o):\n    return nn.Sequential(nn.Conv2d(i, o, 3), nn.BatchNorm2d(i), nn.ReLU())\n\n\n"
        + net("self.a = block(3, 8)\nself.b = block(8, 5)", "return self.b(self.a(x)).mean((2, 3))", IMAGES),
        net("w = (3, 8, 5)\nself.c = nn.Sequential(*[nn.Sequential(nn.Conv2d(w[k], w[k + 1], 3), nn.BatchNorm2d(w[k])) for k in range(2)])", "return self.c(x).mean((2, 3))", IMAGES),
    ],
    "NRM003": [
        net("self.e = nn.Embedding(50, 8)\nself.g = nn.GRU(8, 8, batch_first=True)\nself.n = nn.BatchNorm1d(8)\nself.f = nn.Linear(8, 2)", "x = self.g(self.e(x))[0]\nx = self.n(x.transpose(1, 2)).transpose(1, 2)\nreturn self.f(x)", "torch.randint(0, 50, (4, 7))"),
        net("self.e = nn.Embedding(50, 8)\nself.g = nn.GRU(8, 8, batch_first=True)\nself.n = nn.BatchNorm1d(8)\nself.f = nn.Linear(8, 2)", "x = self.g(self.e(x))[0]\nx = self.n(x.permute(0, 2, 1)).permute(0, 2, 1)\nreturn self.f(x)", "torch.randint(0, 50, (4, 7))"),
        net("self.e = nn.Embedding(50, 8)\nself.g = nn.GRU(8, 8, batch_first=True)\nself.n = nn.BatchNorm1d(8)\nself.f = nn.Linear(8, 2)", "x = self.g(self.e(x))[0].transpose(1, 2)\nx = self.n(x)\nreturn self.f(x.transpose(1, 2))", "torch.randint(0, 50, (4, 7))"),
    ],
    "NRM005": [
        net("self.c = nn.Conv2d(3, 8, 3)\nself.n = nn.BatchNorm2d(8)\nself.f = nn.Linear(8, 2)", "x = torch.relu(self.n(self.c(x)))\nreturn self.f(x.mean((2, 3)))", IMAGES),
        net("self.c = nn.Conv2d(3, 8, kernel_size=3, bias=True)\nself.n = nn.BatchNorm2d(8)\nself.f = nn.Linear(8, 2)", "x = torch.relu(self.n(self.c(x)))\nreturn self.f(x.mean((2, 3)))", IMAGES),
        net("self.c = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())\nself.f = nn.Linear(8, 2)", "return self.f(self.c(x))", VECTORS),
    ],
    "NRM006": [
        net("self.a = nn.Linear(8, 8)\nself.b = nn.Linear(8, 3)\nself.n = nn.BatchNorm1d(3)", "return self.n(self.b(torch.relu(self.a(x))))", VECTORS),
        net("self.a = nn.Linear(8, 8)\nself.b = nn.Linear(8, 3)\nself.n = nn.LayerNorm(3)", "return self.n(self.b(torch.relu(self.a(x))))", VECTORS),
        net("self.a = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3), nn.BatchNorm1d(3))", "return self.a(x)", VECTORS),
    ],
    "NRM009": [
        net("self.a = nn.Linear(8, 8)\nself.b = nn.Linear(8, 8)\nself.n = nn.BatchNorm1d(8)\nself.f = nn.Linear(8, 2)", "x = torch.relu(self.n(self.a(x)))\nx = torch.relu(self.n(self.b(x)))\nreturn self.f(x)", VECTORS),
        net("self.a = nn.Linear(8, 8)\nself.b = nn.Linear(8, 8)\nself.n = nn.BatchNorm1d(num_features=8)\nself.f = nn.Linear(8, 2)", "h = self.n(self.a(x))\nreturn self.f(torch.relu(h + self.n(self.b(x))))", VECTORS),
        net("self.a = nn.Linear(8, 8)\nself.b = nn.Linear(8, 8)\nself.n = nn.BatchNorm1d(8)\nself.f = nn.Linear(8, 2)", "for f in (self.a, self.b):\n    x = torch.relu(self.n(f(x)))\nreturn self.f(x)", VECTORS),
    ],
    "INI001": [
        net(HEAD + "\nfor f in (self.fc1, self.fc2):\n    nn.init.zeros_(f.weight)\n    nn.init.zeros_(f.bias)", "return self.fc2(torch.relu(self.fc1(x)))", VECTORS),
        net(HEAD + "\nfor f in (self.fc1, self.fc2):\n    nn.init.constant_(f.weight, 0.0)\n    nn.init.constant_(f.bias, 0.0)", "return self.fc2(torch.tanh(self.fc1(x)))", VECTORS),
        net(HEAD + "\nfor p in self.parameters():\n    p.data.zero_()", "return self.fc2(torch.relu(self.fc1(x)))", VECTORS),
        net(HEAD + "\nfor p in self.parameters():\n    nn.init.zeros_(p)", "return self.fc2(torch.relu(self.fc1(x)))", VECTORS),
        net(HEAD + "\nwith torch.no_grad():\n    self.fc1.weight.fill_(0.0)\n    self.fc2.weight.zero_()\n    self.fc1.bias.zero_()\n    self.fc2.bias.zero_()", "return self.fc2(torch.relu(self.fc1(x)))", VECTORS),
        net("self.w = nn.Parameter(torch.zeros(8, 8))\nself.v = nn.Parameter(torch.zeros(3, 8))", "return F.linear(torch.relu(F.linear(x, self.w)), self.v)", VECTORS),
    ],
    "INI002": [
        net(HEAD + "\nnn.init.constant_(self.fc1.weight, 0.1)\nnn.init.constant_(self.fc2.weight, 0.1)", "return self.fc2(torch.relu(self.fc1(x)))", VECTORS),
        net(HEAD + "\nfor f in (self.fc1, self.fc2):\n    nn.init.ones_(f.weight)", "return self.fc2(torch.relu(self.fc1(x)))", VECTORS),
        net(HEAD + "\nfor f in self.children():\n    f.weight.data.fill_(0.5)", "return self.fc2(torch.relu(self.fc1(x)))", VECTORS),
        net("self.w = nn.Parameter(torch.ones(8, 8))\nself.fc2 = nn.Linear(8, 3)", "return self.fc2(torch.relu(F.linear(x, self.w)))", VECTORS),
    ],
    "INI003": [
        net(MANY + "\nfor f in self.layers:\n    nn.init.normal_(f.weight, 0.0, 0.01)", THROUGH, WIDE),
        net(MANY + "\nfor f in self.layers:\n    f.weight.data.normal_(0.0, 0.01)", THROUGH, WIDE),
        net(MANY + "\nfor m in self.modules():\n    if isinstance(m, nn.Linear):\n        nn.init.uniform_(m.weight, -0.01, 0.01)", THROUGH, WIDE),
        net(MANY.replace("range(9)", "range(12)"), THROUGH, WIDE),
        net(MANY + "\nfor f in self.layers:\n    f.weight.data.mul_(0.05)", THROUGH, WIDE),
        net("self.body = nn.Sequential(" + ", ".join(["nn.Linear(32, 32), nn.ReLU()"] * 12) + ")\nself.head = nn.Linear(32, 4)", "return self.head(self.body(x))", WIDE),
    ],
    "INI004": [
        net(MANY + "\nfor f in self.layers:\n    nn.init.normal_(f.weight)", THROUGH, WIDE),
        net(MANY + "\nfor f in self.layers:\n    f.weight.data.normal_(0.0, 1.0)", THROUGH, WIDE),
        net(MANY + "\nfor m in self.modules():\n    if isinstance(m, nn.Linear):\n        nn.init.uniform_(m.weight, -1, 1)", THROUGH, WIDE),
    ],
    "INI006": [
        net(HEAD, f"return self.fc2(torch.relu(self.fc1(x)))\n{method('init_weights(self)', 'nn.init.xavier_uniform_(self.fc1.weight)')}", VECTORS),
        net(HEAD, f"return self.fc2(torch.relu(self.fc1(x)))\n{method('_init_weights(self, m)', 'if isinstance(m, nn.Linear):', '    nn.init.xavier_uniform_(m.weight)')}", VECTORS),
        net(HEAD, f"return self.fc2(torch.relu(self.fc1(x)))\n{method('reset_parameters(self)', 'self.fc1.weight.data.normal_(0.0, 0.1)')}", VECTORS),
    ],
    "INI007": [
        net("self.fc1 = nn.Linear(64, 32)\nself.fc2 = nn.Linear(32, 3)\nnn.init.normal_(self.fc1.weight)", "return self.fc2(torch.tanh(self.fc1(x)))", "torch.randn(16, 64)"),
        net("self.fc1 = nn.Linear(64, 32)\nself.fc2 = nn.Linear(32, 3)\nself.fc1.weight.data.normal_()", "return self.fc2(torch.tanh(self.fc1(x)))", "torch.randn(16, 64)"),
        net("self.net = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 3))\nnn.init.uniform_(self.net[0].weight, -2, 2)", "return self.net(x)", "torch.randn(16, 64)"),
    ],
    "ACT003": [
        net(HEAD, "return F.softmax(self.fc2(torch.relu(self.fc1(x))), dim=0)", VECTORS),
        net(HEAD, "return torch.softmax(self.fc2(torch.relu(self.fc1(x))), 0)", VECTORS),
        net(HEAD, "return self.fc2(torch.relu(self.fc1(x))).softmax(0)", VECTORS),
        net(HEAD + "\nself.s = nn.Softmax(dim=0)", "return self.s(self.fc2(torch.relu(self.fc1(x))))", VECTORS),
        net("self.net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3), nn.Softmax(0))", "return self.net(x)", VECTORS),
    ],
    "ACT005": [
        net(HEAD, "return self.fc2(F.softmax(self.fc1(x), dim=1))", VECTORS),
        net(HEAD, "return self.fc2(torch.softmax(self.fc1(x), 1))", VECTORS),
        net(HEAD, "return self.fc2(self.fc1(x).softmax(1))", VECTORS),
        net(HEAD + "\nself.s = nn.Softmax(dim=1)", "return self.fc2(self.s(self.fc1(x)))", VECTORS),
        net("self.net = nn.Sequential(nn.Linear(8, 8), nn.Softmax(1), nn.Linear(8, 3))", "return self.net(x)", VECTORS),
    ],
}  # fmt: skip


# (code, model, what the edited text holds): every finding goes at once, in the style of what stands there.
WHOLE = [
    ("ARC002", net("self.c = nn.Conv2d(3, 6, 3)\nself.f = nn.Linear(4 * 10 * 10, 2)", "return self.f(torch.relu(self.c(x)).flatten(1))", IMAGES), ["nn.Linear(6 * 10 * 10, 2)"]),
    ("NRM003", net("self.e = nn.Embedding(50, 8)\nself.g = nn.GRU(8, 8, batch_first=True)\nself.n = nn.BatchNorm1d(8)\nself.h = nn.Linear(8, 6)\nself.m = nn.BatchNorm1d(6)\nself.f = nn.Linear(6, 2)", "x = self.g(self.e(x))[0]\nx = self.n(x.transpose(1, 2)).transpose(1, 2)\nx = torch.relu(self.m(self.h(x).transpose(1, 2)).transpose(1, 2))\nreturn self.f(x)", "torch.randint(0, 50, (4, 7))"), ["self.n = nn.LayerNorm(8)", "self.m = nn.LayerNorm(6)", "self.n(x)"]),
    ("ARC005", net(HEAD, "h = self.fc1(x)\nwith torch.no_grad():\n    h = torch.relu(h)\n    h = h * 2\nreturn self.fc2(h)", VECTORS), ["\n        h = h * 2"]),
    ("ARC005", net(HEAD, "return self.fc2(self.f(x))" + method("f(self, x)", "return torch.relu(self.fc1(x)).data"), VECTORS), ["return torch.relu(self.fc1(x))\n"]),
]  # fmt: skip


@pytest.mark.parametrize(("code", "body", "parts"), WHOLE)
def test_one_fix_mends_all_of_it(code: str, body: str, parts: list[str], tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(spelled(body, "nn", "plain"), encoding="utf-8")
    [found] = findings(path, code)
    source = SourceText.read(str(path))
    fix = first_edit(found)
    assert source is not None
    assert fix is not None
    after = apply(source.text, fix.edits)
    assert [part for part in parts if part not in after] == []
    mended = tmp_path / "mended.py"
    mended.write_text(after, encoding="utf-8")
    assert findings(mended, code) == []


BLOCK = (
    "class Block(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
    "        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)\n        self.n = nn.BatchNorm1d(8)\n\n"
    "    def forward(self, x):\n        h = torch.relu(self.n(self.a(x)))\n"
    "        return torch.relu(x + {}(self.b(h)))\n\n\n"
)


def test_a_batchnorm_that_all_blocks_share_alike_is_given_to_each(tmp_path: Path) -> None:
    body = net("self.one, self.two = Block(), Block()", "return self.two(self.one(x))", VECTORS)
    path = tmp_path / "net.py"
    path.write_text(spelled(BLOCK.format("self.n") + body, "nn", "plain"), encoding="utf-8")
    found = findings(path, "NRM009")
    source = SourceText.read(str(path))
    assert source is not None
    after = apply(source.text, found[0].fixes[0].edits)
    assert "self.n_2(self.b(h))" in after
    mended = tmp_path / "mended.py"
    mended.write_text(after, encoding="utf-8")
    assert findings(mended, "NRM009") == []
    patches = found[0].fixes[0].patches
    assert [(patch.kind, *patch.modules) for patch in patches] == [
        ("separate", "one.n"),
        ("separate", "two.n"),
    ]


def spellings(code: str) -> Iterator[tuple[str, str, str]]:
    """(name, text, how) of at least twenty spellings: all of the first body, and of the others two."""
    for number, body in enumerate(SPELLINGS[code]):
        for header, layout in itertools.product(HEADERS, LAYOUTS):
            if number == 0 or (header, layout) in (("nn", "plain"), ("torch.nn", "comments")):
                yield f"{number} {header} {layout}", spelled(body, header, layout), layout


def first_edit(finding: Any) -> Fix | None:
    return next((fix for fix in finding.fixes if fix.edits), None)


@pytest.mark.parametrize("code", SPELLINGS)
def test_in_every_spelling_the_fault_is_mended_or_left_with_a_reason(
    code: str, tmp_path: Path
) -> None:
    edited: set[str] = set()
    count = 0
    for name, text, layout in spellings(code):
        count += 1
        # Sources are read once: each text needs a file of its own.
        path = tmp_path / f"net_{count}.py"
        path.write_bytes(text.encode())
        found = findings(path, code)
        assert found, name
        fix = first_edit(found[0])
        if fix is None:
            assert all(other.obstacle for other in found[0].fixes), name
            continue
        source = SourceText.read(str(path))
        assert source is not None
        assert {edit.filename for edit in fix.edits} == {str(path)}, name
        after = apply(source.text, fix.edits)
        ast.parse(after)
        newlines = set(re.findall(r"\r\n|\r|\n", after))
        assert newlines == {"\r\n" if layout == "crlf" else "\n"}, (name, after)
        path = tmp_path / f"mended_{count}.py"
        path.write_bytes(after.encode())
        left = [other.message for other in findings(path, code)]
        assert left == [], (name, after)
        edited.add(name)
    assert count >= 20
    assert {f"0 {header} plain" for header in ("nn", "as nn", "torch.nn")} <= edited
