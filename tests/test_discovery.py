"""What `discover` reads from the syntax alone: models, not their parts, losses or helpers."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from conftest import write_files

from trainlint.fixes.source import SourceText
from trainlint.targets.discovery import discover, python_files, syntax_error

NET = "class Net(nn.Module):\n    def __init__(self, n=4): ...\n    def forward(self, x): ...\n"
BLOCK = "class Block(nn.Module):\n    def forward(self, x): ...\n"

CASES = {
    "a class": (NET, {"Net": "class"}),
    "an instance stands for its class": (NET + "model = Net()\n", {"model": "instance"}),
    "with an annotation": (NET + "model: nn.Module = Net()\n", {"model": "instance"}),
    "in a with block": (
        NET + "with torch.device('meta'):\n    model = Net()\n", {"model": "instance"}),
    "in an except block": (
        NET + "try:\n    import x\nexcept ImportError:\n    model = Net()\n", {"model": "instance"}),
    "not under the main guard": (
        NET + "if __name__ == '__main__':\n    model = Net()\n", {"Net": "class"}),
    "a part": (
        BLOCK + "class Net(nn.Module):\n    def __init__(self):\n        self.b = Block()\n",
        {"Net": "class"}),
    "a part that is also an instance": (
        BLOCK + "class Net(nn.Module):\n    def __init__(self):\n        self.b = Block()\n"
        "probe = Block()\n", {"probe": "instance", "Net": "class"}),
    "a base class is a part": (
        NET + "class Big(Net):\n    def forward(self, x): ...\n", {"Big": "class"}),
    "handed to a function, still a model": (
        NET + "def train(model): ...\nif __name__ == '__main__':\n    train(Net())\n",
        {"Net": "class"}),
    "handed to a model, a part": (
        NET + "class Wrap(nn.Module):\n    def __init__(self, inner): ...\n"
        "if __name__ == '__main__':\n    w = Wrap(Net())\n", {"Wrap": "class"}),
    "a factory": (NET + "def build():\n    return Net()\n", {"build": "factory"}),
    "a factory by name": ("def build_model():\n    return make(3)\n", {"build_model": "factory"}),
    "a factory with required arguments is none": (
        NET + "def build(n):\n    return Net(n)\n", {"Net": "class"}),
    "main is no factory": (NET + "def main():\n    net = Net()\n    return net\n", {"Net": "class"}),
    "a decorated class": ("@final\n" + NET, {"Net": "class"}),
    "a GAN": (
        "class G(nn.Module): ...\nclass D(nn.Module): ...\ng = G()\nd = D()\n",
        {"g": "instance", "d": "instance"}),
    "an average is no model of its own": (
        NET + "model = Net()\nema = copy.deepcopy(model)\nswa = AveragedModel(model)\n",
        {"model": "instance"}),
    "copies behind calls of methods": (
        NET + "model = Net()\nema = copy.deepcopy(model).requires_grad_(False).to(d).eval()\n"
        "net = Net(copy.deepcopy(model))\n",
        {"model": "instance", "net": "instance"}),
    "losses are none": (
        NET + "model = Net()\ncriterion = nn.CrossEntropyLoss()\nloss_fn = nn.MSELoss()\n",
        {"model": "instance"}),
    "wrappers": (
        NET + "model = nn.DataParallel(Net()).to(device)\n", {"model": "instance"}),
    "a class inside a class is a part": (
        "class Net(nn.Module):\n    class Inner(nn.Module): ...\n    def forward(self, x): ...\n",
        {"Net": "class"}),
    "generic bases": (
        "class Net(nn.Module, Generic[T]):\n    def forward(self, x): ...\n", {"Net": "class"}),
    "a base from elsewhere with a forward": (
        "class Net(base.Model):\n    def forward(self, x): ...\n", {"Net": "class"}),
    "plain classes are none": ("class Config:\n    x = 1\nclass Data(Dataset): ...\n", {}),
}  # fmt: skip


def candidates(source: str) -> dict[str, str]:
    found = discover(SourceText("net.py", textwrap.dedent(source)))
    return {candidate.name: candidate.kind for candidate in found.candidates if candidate.likely}


@pytest.mark.parametrize("case", CASES)
def test_candidates(case: str) -> None:
    source, expected = CASES[case]
    assert candidates(source) == expected


def test_scan_leaves_out_what_is_not_the_users_own(tmp_path: Path) -> None:
    torch = "import torch\n"
    inside = ["net.py", "pkg/net.py", "网络/a b.py"]
    outside = [
        ".hidden/net.py", ".venv/lib/net.py", "env/lib/net.py", "node_modules/net.py",
        "x/site-packages/net.py", "tests/net.py", "test_net.py", "net_test.py", "conftest.py",
        "pkg/__pycache__/net.py", ".hidden.py",
    ]  # fmt: skip
    write_files(tmp_path, dict.fromkeys([*inside, *outside], torch))
    write_files(tmp_path, {"env/pyvenv.cfg": "", "other.py": "import os\n", "net.txt": torch})
    found = [path.relative_to(tmp_path).as_posix() for path in python_files(tmp_path)]
    assert found == inside


def test_a_folder_of_tests_that_is_named_itself_is_searched(tmp_path: Path) -> None:
    write_files(tmp_path, {"tests/models.py": "import torch\n"})
    assert len(list(python_files(tmp_path / "tests"))) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def f():\n", "expected an indented block after function definition at line 1"),
        ("x = 'a\n", "unterminated string literal at line 1"),
        ("x = (\n\n", "'(' was never closed at line 1"),
        ("if x:\ny = 1\n", "expected an indented block after 'if' statement on line 1 at line 2"),
    ],
)  # fmt: skip
def test_where_a_text_does_not_parse_is_said_once(text: str, said: str) -> None:
    error = syntax_error(SourceText("net.py", text))
    assert str(error) == f"does not parse: {said}"
    assert error.row == int(said[-1])
