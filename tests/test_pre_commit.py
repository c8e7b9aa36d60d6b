"""The commit hook, run by the real pre-commit from this repository, and what it does without a model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run_command

ROOT = Path(__file__).parent.parent
BROKEN = """\
from torch import nn

model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(4))
"""
MIXING = """\
from torch import nn


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(100, 16)
        self.gru = nn.GRU(16, 32)
        self.head = nn.Linear(32, 5)

    def forward(self, tokens):
        return self.head(self.gru(self.embed(tokens))[0][:, -1])
"""
TRAINS = "import torch\n\nbatch = torch.zeros(2, 3)\n"


def git(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    named = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    return call("git", *named, *arguments, cwd=cwd)


def call(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PRE_COMMIT_HOME": str(cwd / ".cache"),
    }  # fmt: skip
    return subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("pre_commit")
    if not (ROOT / ".git").exists():
        pytest.skip("the hook's source is a git repository, which this copy is not")
    folder = tmp_path_factory.mktemp("project")
    assert git("init", "-q", cwd=folder).returncode == 0
    revision = git("rev-parse", "HEAD", cwd=ROOT).stdout.strip()
    (folder / ".gitignore").write_text(".cache\n")
    (folder / ".pre-commit-config.yaml").write_text(
        f"repos:\n- repo: {ROOT}\n  rev: {revision}\n  hooks:\n  - id: trainlint\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pre_commit", "install"], cwd=folder, capture_output=True, text=True,
        timeout=300, check=False, env={**os.environ, "PRE_COMMIT_HOME": str(folder / ".cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def commit(folder: Path, **files: str) -> subprocess.CompletedProcess[str]:
    for name, content in files.items():
        (folder / f"{name}.py").write_text(content)
    git("add", "-A", cwd=folder)
    return git("commit", "-m", "change", cwd=folder)


def test_a_broken_model_stops_the_commit(repository: Path) -> None:
    passed = commit(repository, plain="x = 1\n", data=TRAINS)
    assert passed.returncode == 0, passed.stdout + passed.stderr
    stopped = commit(repository, net=BROKEN, plain="x = 2\n")
    assert stopped.returncode == 1
    said = stopped.stdout + stopped.stderr
    assert "norm-features-mismatch NRM001  net.py:3" in said
    assert "exit code: 1" in said
    assert "plain.py" not in said
    mended = commit(repository, net=BROKEN.replace("BatchNorm2d(4)", "BatchNorm2d(8)"))
    assert mended.returncode == 0, mended.stdout + mended.stderr


def test_the_measuring_hook_sees_what_the_graph_does_not_show(repository: Path) -> None:
    passed = commit(repository, tagger=MIXING)
    assert passed.returncode == 0, passed.stdout + passed.stderr
    known = (repository / ".pre-commit-config.yaml").read_text()
    (repository / "both.yaml").write_text(known + "  - id: trainlint-measured\n")
    hooks = [sys.executable, "-m", "pre_commit", "run", "-c", "both.yaml", "--files", "tagger.py"]
    done = call(*hooks, cwd=repository)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(
        r"^trainlint\.+Passed\ntrainlint, measured\.+Failed$", done.stdout, re.MULTILINE
    )
    assert "batch-mixing ARC006  tagger.py:8" in done.stdout


def test_the_fixing_hook_mends_the_file_and_stops_the_commit(repository: Path) -> None:
    known = (repository / ".pre-commit-config.yaml").read_text()
    (repository / "fixing.yaml").write_text(known.replace("id: trainlint", "id: trainlint-fix"))
    (repository / "mended.py").write_text(BROKEN)
    git("add", "-A", cwd=repository)
    hook = [sys.executable, "-m", "pre_commit", "run", "-c", "fixing.yaml", "--files", "mended.py"]
    stopped = call(*hook, cwd=repository)
    assert stopped.returncode == 1, stopped.stdout + stopped.stderr
    assert "files were modified by this hook" in stopped.stdout
    assert "fixed 1 finding (norm-features-mismatch)" in stopped.stdout
    text = (repository / "mended.py").read_text()
    assert text == BROKEN.replace("BatchNorm2d(4)", "BatchNorm2d(8)")
    git("add", "-A", cwd=repository)
    passed = call(*hook, cwd=repository)
    assert passed.returncode == 0, passed.stdout + passed.stderr


@pytest.mark.parametrize("content", ["x = 1\n", TRAINS, "", "x = (\n"])
def test_files_without_a_model_import_neither_torch_nor_rules(content: str, tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(content)
    program = (
        "import sys\n"
        "from trainlint.cli import main\n"
        "try:\n"
        "    main(['check', '--static', '--scan', 'plain.py'])\n"
        "except SystemExit as end:\n"
        "    print(end.code, sorted({'torch', 'rich', 'networkx', 'trainlint.files'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.stdout == "0 []\n", done.stderr


def test_scan_passes_over_what_holds_no_model(tmp_path: Path) -> None:
    (tmp_path / "data.py").write_text(TRAINS)
    (tmp_path / "net.py").write_text(BROKEN)
    named = run_command("check", "--static", "data.py", "net.py", cwd=tmp_path)
    assert named.status == 2
    scanned = run_command("check", "--static", "--scan", "data.py", "net.py", cwd=tmp_path)
    assert (scanned.status, scanned.stderr) == (1, "")
    assert "NRM001" in scanned.stdout
    for name in ("test_net.py", "tests/nets.py", "conftest.py"):  # as where a directory is searched
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(BROKEN)
        passed = run_command("check", "--static", "--scan", name, cwd=tmp_path)
        assert (passed.status, passed.stdout, passed.stderr) == (0, "", "")
    gone = run_command("check", "--scan", "no_such.py", cwd=tmp_path)
    assert gone.status == 2
    assert "no such file" in gone.stderr


def test_a_file_that_mentions_torch_and_does_not_parse_is_said(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import torch\nx = (\n")
    done = run_command("check", "--static", "--scan", "bad.py", cwd=tmp_path)
    assert done.status == 2
    assert "does not parse" in done.stderr
