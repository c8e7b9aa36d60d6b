"""`trainlint run`: a script runs as Python would run it, and is reported on whatever becomes of it."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from trainlint.observe import runner

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
        timeout=300, check=False, **options,
    )  # fmt: skip


def run(
    path: Path, *args: str, options: tuple[str, ...] = (), **more: Any
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """The finished process and the report."""
    output = path.parent / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "trainlint", "run", "--format=json", f"--output={output}", *options,
         path.name, *args],
        cwd=path.parent, capture_output=True, text=True, timeout=300, check=False, **more,
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


@pytest.mark.parametrize(
    "fault",
    [
        'raise ValueError("no")',
        "model(torch.randn(2, 5))",
        (
            "try:\n        model(torch.randn(2, 5))\n    except RuntimeError as error:\n"
            '        raise ValueError("no") from error'
        ),
    ],
)
def test_an_exception_looks_as_it_would(tmp_path: Path, fault: str) -> None:
    body = f"""
def main():
    step()
    {fault}

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
        (
            "raise SystemExit('bye')\n",
            1,
            "exited with status 1, before any training; trainlint check train.py looks at its models",
        ),
        (
            "import argparse\np = argparse.ArgumentParser()\np.add_argument('data')\np.parse_args()\n",
            2,
            "status 2, before any training; its own arguments stand behind its name",
        ),
    ],
)
def test_ways_to_end(tmp_path: Path, body: str, status: int, word: str) -> None:
    done, report = run(script(tmp_path, body))
    assert done.returncode == status
    assert word in notes(report)
    assert "main thread" not in notes(report)  # what went wrong is known


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
    for seconds in (12, 90):  # a busy machine takes longer to import torch
        done, report = run(path, options=(f"--timeout={seconds}",))
        assert done.returncode == 124
        if report["findings"]:
            break
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
    _, errors = process.communicate(timeout=300)
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


def test_torchs_import_is_silent_on_a_missing_numpy_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loader:
        def exec_module(self, _: Any) -> None:
            warnings.warn("Failed to initialize NumPy: No module named 'numpy'", stacklevel=1)
            warnings.warn("something else", stacklevel=1)

    spec = importlib.machinery.ModuleSpec("torch", Loader())  # type: ignore[arg-type]
    finder: Any = runner._AfterTorch(runner._Watch(runner.RunJob("a.py", "report.json")))
    monkeypatch.setattr(runner._Watch, "begin", lambda _: None)
    monkeypatch.setattr(sys, "meta_path", [finder])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
    with warnings.catch_warnings(record=True) as seen:
        warnings.resetwarnings()
        finder.find_spec("torch").loader.exec_module(None)
    assert [str(each.message) for each in seen] == ["something else"]


@pytest.mark.parametrize("name", ["missing.py", "missing_folder/train.py"])
def test_a_file_that_is_not_there(tmp_path: Path, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trainlint", "run", name], cwd=tmp_path, capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == f"trainlint: error: {name}: no such file\n"


def test_a_syntax_error_is_the_scripts(tmp_path: Path) -> None:
    path = script(tmp_path, "def (:\n", header="")
    done, _ = run(path)
    assert done.returncode == 1
    assert done.stderr == bare(path).stderr


# ---------------------------------------------------------------------- more ways to end, and to begin

LOOP = "for _ in range(4):\n    step()\n"


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ("step()\nimport ctypes\nctypes.string_at(0)\n", 128 + signal.SIGSEGV, "killed by SIGSEGV"),
        ("step()\nimport os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n", 143, "SIGTERM"),
        ("step()\nraise KeyboardInterrupt\n", 130, "killed by SIGINT"),
    ],
)  # fmt: skip
def test_more_ways_to_end(tmp_path: Path, body: str, status: int, word: str) -> None:
    done, report = run(script(tmp_path, body))
    assert (done.returncode, done.stdout) == (status, "")
    assert word in notes(report)


def test_the_last_line_is_ours_and_says_what_was_watched(tmp_path: Path) -> None:
    path = script(tmp_path, LOOP + "print('of the script', file=sys.stderr)\nsys.exit(3)\n")
    done = subprocess.run(
        [sys.executable, "-m", "trainlint", "run", path.name], cwd=tmp_path, capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip
    first, *_, last = done.stderr.splitlines()
    assert first == "of the script"
    assert last == "0 errors, 0 warnings · 4 steps of SGD, 4 of them recorded · exit 3"
    assert done.returncode == 3


def test_a_report_that_cannot_be_written_does_not_change_the_status(tmp_path: Path) -> None:
    path = script(tmp_path, LOOP + "import os\nos.mkdir('report.txt')\nsys.exit(3)\n")
    done = subprocess.run(
        [sys.executable, "-m", "trainlint", "run", "--output=report.txt", path.name], cwd=tmp_path,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert done.stderr.startswith("trainlint: error: no report: cannot write")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--output", "no/where.txt"], "cannot write no/where.txt: no such folder"),
        (["--output", "."], "cannot write .: is a directory"),
        (["--bogus"], "no such option: --bogus"),
    ],
)
def test_what_cannot_be_is_said_before_the_script_runs(
    tmp_path: Path, options: list[str], said: str
) -> None:
    path = script(tmp_path, "open('ran', 'w')\n")
    done = subprocess.run(
        [sys.executable, "-m", "trainlint", "run", *options, path.name], cwd=tmp_path,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"trainlint: error: {said}")
    assert not (tmp_path / "ran").exists()


ENDLESS = """
import os, time
from pathlib import Path
Path("pid.part").write_text(str(os.getpid()))
os.rename("pid.part", "pid")
while True:
    time.sleep(0.1)
"""


def _running(tmp_path: Path) -> tuple[subprocess.Popen[bytes], int]:
    """`trainlint run` of a script that never ends, and the script's process."""
    path = script(tmp_path, ENDLESS)
    ours = subprocess.Popen(
        [sys.executable, "-c", _INTERRUPTIBLE, path.name], cwd=tmp_path, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    for _ in range(1200):
        if (tmp_path / "pid").exists():
            return ours, int((tmp_path / "pid").read_text())
        time.sleep(0.1)
    raise TimeoutError("the script never began")


# A test run in the background ignores SIGINT, and its children inherit that.
_INTERRUPTIBLE = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from trainlint.cli import main; main(['run', sys.argv[1]])"
)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="what is asked of the system is Linux's")
def test_an_interrupt_to_trainlint_alone_reaches_the_script(tmp_path: Path) -> None:
    ours, pid = _running(tmp_path)
    os.kill(ours.pid, signal.SIGINT)
    assert ours.wait(60) == 130
    assert not _is_alive(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="what is asked of the system is Linux's")
def test_the_script_dies_with_trainlint(tmp_path: Path) -> None:
    ours, pid = _running(tmp_path)
    ours.kill()
    ours.wait()
    for _ in range(600):
        if not _is_alive(pid):
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError("the script outlived trainlint")


# What scripts do, printing what they trained; the random state last.
PRINTS = (
    "\nprint([p.double().sum().item() for p in model.parameters()], torch.get_rng_state().sum())\n"
)
# These follow each other in one script, which takes 27 steps, or 19 without tqdm.
PARTS = {
    "progress bar": """
from tqdm import tqdm
bar = tqdm(range(8), mininterval=1e9, bar_format="{n}/{total}")
for _ in bar:
    step()
""",
    "checkpoint": """
import io
for _ in range(3):
    step()
kept = io.BytesIO()
torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "whole": model}, kept)
for _ in range(2):
    step()
kept.seek(0)
back = torch.load(kept, weights_only=False)
model.load_state_dict(back["model"])
optimizer.load_state_dict(back["optimizer"])
for _ in range(3):
    step()
""",
    "cuda": """
try:
    model.cuda()
except Exception as error:
    print(type(error).__name__)
for _ in range(4):
    step()
""",
    "exec": """
cells = ["loss = F.cross_entropy(model(torch.randn(4, 8)), torch.tensor([0, 1, 0, 1]))",
         "optimizer.zero_grad()\\nloss.backward()", "optimizer.step()"]
for _ in range(3):
    for number, cell in enumerate(cells):
        exec(compile(cell, f"<ipython-input-{number}>", "exec"))
""",
    "nested function": "def main():\n    for _ in range(4):\n        step()\n\nmain()\n",
}  # fmt: skip
SCRIPTS = {
    "thread": """
import threading
thread = threading.Thread(target=lambda: [step() for _ in range(4)])
thread.start()
thread.join()
""",
    "forked child": """
import os
step()
if (child := os.fork()) == 0:
    for _ in range(3):
        step()
    os._exit(0)
print(os.waitpid(child, 0)[1])
step()
""",
    "compiled step": """
import logging
logging.disable(logging.WARNING)  # with the time of the day
fast = torch.compile(step, backend="eager")
for _ in range(4):
    fast()
""",
}  # fmt: skip
WATCHED = {
    "thread": "no model was run",
    "forked child": "2 steps",
    "compiled step": "no model was run",
}


@pytest.mark.parametrize("name", ["the main thread", *SCRIPTS])
def test_output_and_training_are_as_without_us(tmp_path: Path, name: str) -> None:
    parts = dict(PARTS)
    if importlib.util.find_spec("tqdm") is None:
        del parts["progress bar"]
    path = script(tmp_path, SCRIPTS.get(name, PRINTS.join(parts.values())) + PRINTS)
    expected = bare(path)
    done, report = run(path)
    assert (done.stdout, done.stderr) == (expected.stdout, expected.stderr)
    assert done.returncode == expected.returncode == 0
    assert [f["message"] for f in report["findings"] if f["severity"] != "info"] == []
    (target,) = report["targets"]
    assert (target["status"], target.get("reason")) == ("ok", None)
    if name in WATCHED:
        assert target["watched"].startswith(WATCHED[name])
        assert (name == "forked child") != ("main thread" in notes(report))
        assert (name == "compiled step") == ("compiled code" in notes(report))
    else:
        steps = 27 if "progress bar" in parts else 19
        assert target["watched"].startswith(f"{steps} steps of SGD")


def test_torch_may_be_imported_late_and_in_another_module(tmp_path: Path) -> None:
    script(tmp_path, "", name="library.py")
    path = script(tmp_path, "import argparse, os\nimport library\n" + 4 * "library.step()\n", "")
    _, report = run(path)
    assert report["targets"][0]["watched"].startswith("4 steps of SGD")


DISTRIBUTED = """\
import sys
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

dist.init_process_group("gloo")
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
if sys.argv[1] == "replicated":
    model = nn.parallel.DistributedDataParallel(model)
else:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
generator = torch.Generator().manual_seed(dist.get_rank())
for _ in range(12):
    x = torch.randn(16, 8, generator=generator)
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    optimizer.step()
if dist.get_rank() == 0:
    print(norm.item(), loss.item(), torch.get_rng_state().sum().item())
dist.barrier()  # a process that is gone aborts the others
dist.destroy_process_group()
"""


# What torch's launcher says of a process that died of SIGABRT, by itself or below `trainlint run`.
ABORTED = re.compile(r"exitcode +: (-6|134) ")


def _launched(path: Path, how: str, *ours: str) -> subprocess.CompletedProcess[str]:
    """The script in two processes. On a busy machine gloo may abort one of them: once more, then."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for _ in range(3):
        done = subprocess.run(
            [*launch, *ours, path.name, how], cwd=path.parent, capture_output=True, text=True,
            timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
        )  # fmt: skip
        if done.returncode == 0 or not ABORTED.search(done.stderr):
            break
    return done


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
@pytest.mark.parametrize("how", ["replicated", "sharded"])
def test_several_processes_train_the_same_and_one_reports(tmp_path: Path, how: str) -> None:
    path = script(tmp_path, "", DISTRIBUTED)
    expected = _launched(path, how)
    done = _launched(path, how, "-m", "trainlint", "run", "--every=1")
    assert expected.returncode == done.returncode == 0, done.stderr
    assert done.stdout == expected.stdout
    last = "0 errors, 0 warnings · 12 steps of SGD, 12 of them recorded · exit 0"
    assert [line for line in done.stderr.splitlines() if "12 steps" in line][1:] == [last]
    assert ("other processes hold parts" in done.stderr) == (how == "sharded")
