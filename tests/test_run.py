"""`trainlint run`: a script runs as Python would run it, and is reported on whatever becomes of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

HEADER = """\
import sys
import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)


def step():
    x = torch.randn(16, 8)
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
    loss.backward()
    optimizer.step()
    return loss.item()

"""
FORGETS = HEADER.replace("    optimizer.zero_grad()\n", "")


def script(folder: Path, body: str, header: str = HEADER, name: str = "train.py") -> Path:
    path = folder / name
    path.write_text(header + body, encoding="utf-8")
    return path


def bare(path: Path, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, path.name, *args], cwd=path.parent, capture_output=True, text=True,
        timeout=120, check=False, **options,
    )  # fmt: skip


def run(
    path: Path, *args: str, options: tuple[str, ...] = (), **more: Any
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """The finished process and the report."""
    output = path.parent / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "trainlint", "run", "--format=json", f"--output={output}", *options,
         path.name, *args],
        cwd=path.parent, capture_output=True, text=True, timeout=180, check=False, **more,
    )  # fmt: skip
    return done, json.loads(output.read_text()) if output.exists() else {}


def notes(report: dict[str, Any]) -> str:
    return " ".join(report["targets"][0]["notes"])


def test_output_arguments_and_status_are_the_scripts_own(tmp_path: Path) -> None:
    path = script(
        tmp_path,
        """
import atexit, os
atexit.register(print, "at exit")
print(sys.argv, __name__, os.path.basename(__file__), sys.path[0] == os.path.dirname(__file__))
print([step() for _ in range(8)], torch.get_rng_state().sum().item(), file=sys.stderr)
sys.exit(3)
""",
    )
    expected = bare(path, "--lr", "0.1", "x y")
    done, report = run(path, "--lr", "0.1", "x y")
    assert (done.stdout, done.stderr) == (expected.stdout, expected.stderr)
    assert done.returncode == expected.returncode == 3
    assert report["findings"] == []
    assert report["targets"][0]["watched"].startswith("8 steps of SGD")
    assert "exited with status 3" in notes(report)


def test_an_exception_looks_as_it_would(tmp_path: Path) -> None:
    body = """
def main():
    step()
    raise ValueError("no")

if __name__ == "__main__":
    main()
"""
    path = script(tmp_path, body)
    expected = bare(path)
    done, report = run(path)
    assert (done.stdout, done.stderr, done.returncode) == (expected.stdout, expected.stderr, 1)
    assert report["targets"][0]["watched"].startswith("1 steps of SGD")


def test_a_fault_is_named_at_the_users_line(tmp_path: Path) -> None:
    path = script(tmp_path, "for _ in range(10):\n    step()\n", FORGETS)
    done, report = run(path)
    (finding,) = report["findings"]
    assert done.returncode == 0
    assert (finding["code"], finding["filename"]) == ("GRD007", "train.py")
    line = path.read_text().splitlines()[finding["location"]["row"] - 1]
    assert line == "    optimizer.step()"


def test_a_finding_fails_the_run_only_where_asked(tmp_path: Path) -> None:
    path = script(tmp_path, "for _ in range(10):\n    step()\n", FORGETS)
    assert run(path, options=("--fail-on=error",))[0].returncode == 1
    assert run(path, options=("--fail-on=error", "--ignore=GRD007"))[0].returncode == 0


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ("step()\nimport os\nos._exit(7)\n", 7, "exited with status 7"),
        ("step()\nimport os\nos.abort()\n", 128 + signal.SIGABRT, "killed by SIGABRT"),
        ("step()\nimport os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n", 137, "SIGKILL"),
        ("raise SystemExit('bye')\n", 1, "exited with status 1"),
    ],
)
def test_ways_to_end(tmp_path: Path, body: str, status: int, word: str) -> None:
    done, report = run(script(tmp_path, body))
    assert done.returncode == status
    assert word in notes(report)


def test_steps_end_it_politely(tmp_path: Path) -> None:
    body = """
try:
    while True:
        step()
finally:
    print("cleaned up")
"""
    done, report = run(script(tmp_path, body), options=("--steps=7",))
    assert (done.stdout, done.stderr, done.returncode) == ("cleaned up\n", "", 0)
    assert report["targets"][0]["watched"].startswith("7 steps")


def test_a_time_limit_ends_it_and_the_report_stands(tmp_path: Path) -> None:
    path = script(tmp_path, "while True:\n    step()\n", FORGETS)
    done, report = run(path, options=("--timeout=30",))
    assert done.returncode == 124
    assert "--timeout" in notes(report)
    assert "GRD007" in [finding["code"] for finding in report["findings"]]


def test_an_interrupt_gives_the_report_so_far(tmp_path: Path) -> None:
    body = "print('on', flush=True)\nwhile True:\n    step()\n"
    path = script(tmp_path, body, FORGETS)
    output = tmp_path / "report.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "trainlint", "run", "--format=json", f"--output={output}", path.name],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "on\n"
    time.sleep(2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors
    assert process.returncode == 130
    report = json.loads(output.read_text())
    assert "GRD007" in [finding["code"] for finding in report["findings"]]


def test_a_module_by_its_name(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    script(package, "print(__name__, __package__, sys.argv[1:], step() > 0)\n")
    done, report = run(tmp_path / "package.train", "-m", "x", options=("-m",))
    assert done.stdout == "__main__ package ['-m', 'x'] True\n"
    assert report["targets"][0]["watched"].startswith("1 steps")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_loader(tmp_path: Path, method: str) -> None:
    body = f"""
class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, index):
        return torch.full((8,), float(index)), index % 2

if __name__ == "__main__":
    loader = torch.utils.data.DataLoader(Data(), 4, num_workers=2, multiprocessing_context="{method}")
    for x, y in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    print("done")
"""
    path = script(tmp_path, body)
    done, report = run(path)
    assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 0)
    assert report["targets"][0]["watched"].startswith("4 steps of SGD")


def test_a_script_without_torch(tmp_path: Path) -> None:
    done, report = run(script(tmp_path, "print('hello')\n", header=""))
    assert (done.stdout, done.stderr, done.returncode) == ("hello\n", "", 0)
    assert report["targets"][0]["watched"] == "torch was never imported"


def test_a_script_that_never_trains(tmp_path: Path) -> None:
    _, report = run(script(tmp_path, "model(torch.randn(2, 8))\n"))
    assert report["targets"][0]["watched"] == "no optimizer step, 1 forwards"


@pytest.mark.parametrize("name", ["missing.py", "missing_folder/train.py"])
def test_a_file_that_is_not_there(tmp_path: Path, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trainlint", "run", name], cwd=tmp_path, capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == f"trainlint: error: {name}: no such file\n"


def test_a_syntax_error_is_the_scripts(tmp_path: Path) -> None:
    path = script(tmp_path, "def (:\n", header="")
    done, _ = run(path)
    assert done.returncode == 1
    assert done.stderr == bare(path).stderr
