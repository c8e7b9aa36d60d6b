"""`trainlint run`: run a training script in a child process, observed, and report on it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from trainlint.choices import words
from trainlint.config import Config
from trainlint.errors import NO_NOTEBOOKS, UsageError
from trainlint.observe.report import RunReport
from trainlint.observe.runner import RunJob
from trainlint.ranking import report_on
from trainlint.records import Report, TargetResult
from trainlint.registry import check_options, ignored_in, select_rules

_GRACE: Final = 10.0
_LATE: Final = 2.0
_WRONG_USAGE: Final = 2  # what argparse and click exit with


def is_first_of_several() -> bool:
    """Whether this process reports: the first of those that train together, or the only one.

    Asked of `torch.distributed` where it is in use, else of the variables by which `torchrun` and its like
    (Lightning's have no RANK) tell a process who it is. Imports no torch.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return bool(distributed.get_rank() == 0)
    if _number_in("WORLD_SIZE") <= 1:
        return True
    return not any(_number_in(name) for name in ("RANK", "LOCAL_RANK", "NODE_RANK"))


def _number_in(variable: str) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else 0


@dataclass(frozen=True)
class Run:
    """What became of a script: its exit status as a shell shows it, and the report."""

    status: int
    report: Report


def run_script(
    script: str,
    args: Sequence[str] = (),
    *,
    module: bool = False,
    steps: int = 0,
    every: int = 0,
    static: bool = True,
    timeout: float | None = None,
    select: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    extend_select: Sequence[str] = (),
    graphs: bool = False,
    config: Config | None = None,
) -> Run:
    """Run `script`, or the module of that name, with `args`, and report on its training.

    It has this process's standard streams, directory and environment. After `steps` optimizer steps it is
    ended as by `sys.exit(0)`; after `timeout` seconds as by Ctrl-C. `static` says whether the graph of each
    model is judged as well, before its first step; with `graphs` that of the first is in the result.
    Raises `UsageError` for a file that is not there or an unknown rule.
    """
    config = config or Config()
    check_options(config.rules)
    ignored = ignored_in(config.per_file_ignores)
    rules = select_rules(
        config.select if select is None else select,
        [*config.ignore, *words(ignore)],
        [*config.extend_select, *words(extend_select)],
    )
    if script.startswith("-"):
        raise UsageError(f"no such option: {script} (the script's own stand behind its name)")
    if not module and not Path(script).exists():
        raise UsageError(f"{script}: no such file")
    if not module and Path(script).suffix == ".ipynb":
        raise UsageError(f"{script}: {NO_NOTEBOOKS}train within trainlint.watch() in it")
    if not module and Path(script).is_dir() and not Path(script, "__main__.py").exists():
        raise UsageError(f"{script}: a directory without a __main__.py")
    with tempfile.TemporaryDirectory(prefix="trainlint-") as folder:
        job = RunJob(
            label=script,
            report=os.path.join(folder, "report.json"),  # noqa: PTH118
            module=module,
            steps=steps,
            parent=os.getpid(),
            every=every,
            static=static,
            graphs=graphs,
            rules=[rule.code for rule in rules],
            options={name: dict(values) for name, values in config.rules.items()},
        )
        started = time.monotonic()
        status, ending = _run(job, [script, *args], timeout)
        seconds = time.monotonic() - started
        found = _read(Path(job.report))
    result = found.result or TargetResult(
        script,
        "ok",
        stages=["watched"],
        watched="torch was never imported",
        seconds=round(seconds, 3),
    )
    notes = [
        *result.notes,
        *([] if found.is_final else [f"{ending}; this is the last word before"]),
    ]
    if status and found.is_final:
        is_early = not result.series
        notes.append(
            f"{ending}, before any training{_advice(status, script)}" if is_early else ending
        )
    result = msgspec.structs.replace(result, notes=notes)
    return Run(
        status,
        report_on(
            list(zip(found.findings, found.starved, strict=True)), [result], rules, ignored=ignored
        ),
    )


def _advice(status: int, script: str) -> str:
    """What to do about a script that ended at once: for its arguments, or with an exception."""
    if status == _WRONG_USAGE:
        return "; its own arguments stand behind its name"
    if status == 1 and script.endswith(".py"):
        return f"; trainlint check {script} looks at its models without a training"
    return ""


def _read(path: Path) -> RunReport:
    with suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode(path.read_bytes(), type=RunReport)
    return RunReport(None, [], [], is_final=False)


def _run(job: RunJob, argv: Sequence[str], timeout: float | None) -> tuple[int, str]:
    """The exit status of the child as a shell has it, and a word on how it ended."""
    command = [
        sys.executable,
        *subprocess._args_from_interpreter_flags(),  # type: ignore[attr-defined]
        # `-m` would lose the exit status of an unhandled KeyboardInterrupt.
        "-c",
        "from trainlint.observe.runner import main; main()",
        msgspec.json.encode(job).decode(),
        *argv,
    ]
    child = subprocess.Popen(command)
    with _signals_for(child):
        timed_out = False
        try:
            code = child.wait(timeout)
        except subprocess.TimeoutExpired:
            timed_out = True
            code = _ended(child)
    if timed_out:
        return 124, f"it was ended after {timeout:g} s (--timeout)"
    if code < 0:
        with suppress(ValueError):
            return 128 - code, f"it was killed by {signal.Signals(-code).name}"
        return 128 - code, f"it was killed by signal {-code}"
    return code, f"it exited with status {code}"


def _ended(child: subprocess.Popen[Any]) -> int:
    for how in (signal.SIGINT, signal.SIGTERM):
        child.send_signal(how)
        with suppress(subprocess.TimeoutExpired):
            return child.wait(_GRACE)
    child.kill()
    return child.wait()


def _is_in_foreground() -> bool:
    """Whether a terminal's Ctrl-C goes to us, and so to the child as well."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


@contextmanager
def _signals_for(child: subprocess.Popen[Any]) -> Iterator[None]:
    """Ctrl-C reaches the child by itself, from the terminal; what is sent to us alone is handed on.

    Nothing tells an interrupt that was sent to us alone, without a terminal, from one to the whole
    group: if the child does not end by itself in two seconds, it had none.
    """

    def hand_on(number: int, _: Any = None) -> None:
        with suppress(ProcessLookupError):
            child.send_signal(number)

    def interrupted(number: int, _: Any) -> None:
        if not _is_in_foreground():
            late = threading.Timer(_LATE, hand_on, [number])
            late.daemon = True
            late.start()

    handlers: dict[int, Any] = {signal.SIGINT: interrupted, signal.SIGTERM: hand_on}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
