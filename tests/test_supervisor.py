"""Children end with the command: on success, time-out, Ctrl-C, termination and the parent's death."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import COMMAND, is_alive, run_command, wait_for, write_files

# Leaves one process in its own group, one in a session of its own, and one orphan of an orphan.
SPAWN = """
    import os, pathlib, subprocess, sys, time
    from torch import nn

    model = nn.Linear(2, 2)
    plain = subprocess.Popen(["sleep", "600"])
    session = subprocess.Popen(["sleep", "600"], start_new_session=True)
    shell = subprocess.run(
        ["sh", "-c", "setsid sleep 600 >/dev/null 2>&1 & echo $!"], capture_output=True, text=True
    )
    forked = os.fork()
    if forked == 0:
        time.sleep(600)
    pids = [os.getpid(), os.getppid(), plain.pid, session.pid, int(shell.stdout), forked]
    target = pathlib.Path(__file__).with_suffix(".tmp")
    target.write_text(" ".join(map(str, pids)))
    target.rename(target.with_suffix(".pids"))
"""
HANG = SPAWN + "    while True:\n        try: time.sleep(600)\n        except BaseException: pass\n"


def pids_of(folder: Path, name: str) -> list[int]:
    return [int(pid) for pid in (folder / f"{name}.pids").read_text().split()]


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if is_alive(pid)]


def test_nothing_is_left_running(tmp_path: Path) -> None:
    files = {
        "ends.py": SPAWN,
        "hangs.py": HANG,
        "exits.py": SPAWN + "    os._exit(0)\n",
        "crashes.py": SPAWN + "    os.abort()\n",
        "stubborn.py": SPAWN
        + "    import signal\n    signal.signal(signal.SIGALRM, signal.SIG_IGN)\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n    while True: time.sleep(1)\n",
        "thread.py": SPAWN + "    import threading\n"
        "    threading.Thread(target=time.sleep, args=(600,)).start()\n",
    }
    write_files(tmp_path, files)
    result = run_command(
        "check",
        *files,
        "--format",
        "json",
        "--timeout",
        "6",
        "--jobs",
        "6",
        cwd=tmp_path,
        fresh=True,
    )
    assert result.status == 2
    assert result.seconds < 200
    assert result.statuses() == {
        "ends.py::model": "ok", "hangs.py": "error", "exits.py": "error", "crashes.py": "error",
        "stubborn.py": "error", "thread.py::model": "ok",
    }  # fmt: skip
    assert result.targets["hangs.py"]["reason"] == "timed out after 6 s (--timeout)"
    assert "ended by itself (exit status 0)" in result.targets["exits.py"]["reason"]
    assert "signal 6" in result.targets["crashes.py"]["reason"]
    for name in files:
        assert alive(pids_of(tmp_path, Path(name).stem)) == [], name


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_command_ends_all(tmp_path: Path, how: signal.Signals) -> None:
    write_files(tmp_path, {"hangs.py": HANG})
    process = subprocess.Popen(
        [COMMAND, "check", "hangs.py"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert wait_for((tmp_path / "hangs.pids").exists)
    pids = pids_of(tmp_path, "hangs")
    assert len(alive(pids)) == len(pids)
    started = time.monotonic()
    # As a terminal does: to the whole foreground group.
    os.killpg(process.pid, how) if how is signal.SIGINT else process.send_signal(how)
    stdout, stderr = process.communicate(timeout=120)
    assert time.monotonic() - started < 60
    if how is signal.SIGINT:
        assert process.returncode == 130
        assert stderr == "trainlint: interrupted\n"
    assert stdout == ""
    assert "Traceback" not in stderr
    assert wait_for(lambda: not alive(pids)), alive(pids)


@pytest.mark.parametrize("delay", [0.3, 1.0])
def test_ctrl_c_while_torch_is_imported(tmp_path: Path, delay: float) -> None:
    write_files(tmp_path, {"net.py": "from torch import nn\nmodel = nn.Linear(2, 2)\n"})
    process = subprocess.Popen(
        [COMMAND, "check", "net.py"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert stderr == "trainlint: interrupted\n"


def test_output_without_end_neither_blocks_nor_fills_the_disk(tmp_path: Path) -> None:
    write_files(
        tmp_path,
        {
            "prints.py": "from torch import nn\nmodel = nn.Linear(2, 2)\n"
            "while True:\n    print('x' * 10_000)\n"
        },
    )
    result = run_command("check", "prints.py", "--timeout", "12", "--format", "json", cwd=tmp_path)
    assert result.statuses() == {"prints.py::model": "ok"}
    assert result.status == 0
    assert result.stderr == ""


def test_a_broken_torch_is_one_line(tmp_path: Path) -> None:
    write_files(
        tmp_path,
        {
            "net.py": "from torch import nn\nmodel = nn.Linear(2, 2)\n",
            "path/torch/__init__.py": "raise ImportError('libtorch.so: cannot open shared object')\n",
        },
    )
    result = run_command(
        "check", "net.py", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "path")}
    )
    assert result.status == 2
    assert len(result.stderr.splitlines()) == 1
    assert "libtorch.so: cannot open shared object" in result.stderr
