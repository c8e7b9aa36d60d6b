"""Which models a changed building block is part of, by who imports whom."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import run_command, write_files

from trainlint.targets.discovery import holds_models
from trainlint.targets.importers import importers_of

BLOCK = """
    from torch import nn

    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.conv = nn.Conv2d(3, width, 3, bias=False)
            self.norm = nn.BatchNorm2d(width)

        def forward(self, x):
            return self.norm(self.conv(x)).relu()
"""
NET = """
    from torch import nn
    {0}

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Block(16)
            self.head = nn.Linear(16, 10)

        def forward(self, x):
            return self.head(self.block(x).mean((2, 3)))
"""
OTHER = "class Other: pass\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def importing(*files: str, most: int = 20) -> list[str]:
    found = importers_of(map(Path, files), holds_models, most=most)
    return [path.as_posix() for path in found.files]


@pytest.mark.parametrize(
    "line",
    [
        "from acme.blocks import Block",
        "from .blocks import Block",
        "from . import blocks; Block = blocks.Block",
        "import acme.blocks as b; Block = b.Block",
        "from acme import Block",
        "from . import Block",
        "from acme.all import Block",
        "import sys, acme; sys.path.append('x'); Block = acme.Block",
        "from acme.helper import Block",
    ],
)
def test_who_imports_a_block_however_it_is_written(project: Path, line: str) -> None:
    write_files(
        project,
        {
            "src/acme/__init__.py": "from .blocks import Block\nfrom .other import Other\n",
            "src/acme/blocks.py": BLOCK,
            "src/acme/other.py": OTHER,
            "src/acme/all/__init__.py": "from acme.other import *\nfrom acme.blocks import *\n",
            "src/acme/helper.py": "from .blocks import Block\n",
            "src/acme/net.py": NET.format(line),
            "src/acme/plain.py": NET.format("from acme import Other; Block = Other"),
            "src/acme/starred.py": NET.format("from .all import Other; Block = Other"),
            "tests/test_net.py": NET.format(line),
        },
    )
    assert importing("src/acme/blocks.py") == ["src/acme/net.py"]
    assert importing("src/acme/net.py") == []


def test_the_nearest_folder_has_the_module_that_is_meant(project: Path) -> None:
    write_files(
        project,
        {
            "a/blocks.py": BLOCK, "a/net.py": NET.format("from blocks import Block"),
            "b/blocks.py": BLOCK, "b/net.py": NET.format("from blocks import Block"),
        },
    )  # fmt: skip
    assert importing("a/blocks.py") == ["a/net.py"]
    assert importing("a/blocks.py", "b/blocks.py") == ["a/net.py", "b/net.py"]


def test_they_are_bounded_and_what_builds_no_model_has_none(project: Path) -> None:
    users = {f"net{n}.py": NET.format("from blocks import Block") for n in range(4)}
    deeper = {"zoo.py": NET.format("from net0 import Net as Block")}
    data = {"data.py": "import torch\nx = torch.zeros(3)\n", "uses.py": NET.format("import data")}
    write_files(project, {"blocks.py": BLOCK, **users, **deeper, **data})
    assert importing("blocks.py") == [*users, "zoo.py"]  # the nearest first
    found = importers_of([Path("blocks.py")], holds_models, most=2)
    assert ([path.name for path in found.files], found.is_cut) == (["net0.py", "net1.py"], True)
    assert importers_of([Path("blocks.py")], holds_models, seconds=0).is_cut
    assert importing("data.py", "nowhere.py") == []


def test_the_hook_finds_what_a_block_breaks_in_the_models_that_have_it(project: Path) -> None:
    broken = BLOCK.replace("BatchNorm2d(width)", "BatchNorm2d(3)")
    write_files(project, {"blocks.py": broken, "net.py": NET.format("from blocks import Block")})
    alone = ("check", "--static", "--scan", "--format", "json", "blocks.py")
    assert run_command(*alone, cwd=project).status == 0  # nobody builds it there
    result = run_command(*alone, "--importers", cwd=project)
    assert [each["filename"] for each in result.found("NRM001")] == ["blocks.py"]
    assert result.status == 1
    # The block cannot be constructed by itself, but it was checked.
    strict = run_command(*alone, "--importers", "--fail-on-skipped", cwd=project)
    assert (strict.status, strict.statuses()["blocks.py::Block"]) == (1, "skipped")
    assert run_command(*alone, "--fail-on-skipped", cwd=project).status == 2
    wrong = run_command("check", "--importers", "blocks.py", cwd=project)
    assert (wrong.status, "--importers is for --scan" in wrong.stderr) == (2, True)
