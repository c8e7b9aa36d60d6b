"""The parent's side of a zygote: start one, ask it, read its answers, end it.

A check can be abandoned while it waits for answers, and nowhere else, so that no file is left half written.
Where checks follow each other, a zygote can import torch before it is needed, or serve one after another.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Final

from trainlint.processes.jobs import Job, encode

_POLL_SECONDS: Final = 0.05
_PORTION: Final = 1 << 16
_ABANDON: Final[list[Callable[[], bool]]] = []
_WARM: Final[list[Zygote]] = []
_KEEPING: Final[list[None]] = []


class Abandoned(BaseException):
    """Nobody waits for this check any more. No `Exception`, as Ctrl-C is none."""


@contextlib.contextmanager
def abandoned_if(asked: Callable[[], bool]) -> Iterator[None]:
    """Raise `Abandoned` in here where jobs are waited for and `asked()` is true."""
    _ABANDON.append(asked)
    try:
        yield
    finally:
        _ABANDON.pop()


def give_way() -> None:
    """Raises `Abandoned` if that was asked for."""
    if any(asked() for asked in _ABANDON):
        raise Abandoned


@contextlib.contextmanager
def warmed() -> Iterator[Callable[[], None]]:
    """A function that starts the next zygote before there are jobs; what is not used is ended."""

    def warm_up() -> None:
        if sys.platform == "linux" and not _WARM:
            _WARM.append(Zygote.started())

    try:
        yield warm_up
    finally:
        _end_warm(at_once=True)


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """The zygote of the first jobs in here does the later ones, too, in the folder of the first."""
    _KEEPING.append(None)
    try:
        yield
    finally:
        _KEEPING.pop()
        _end_warm(at_once=False)


def _end_warm(*, at_once: bool) -> None:
    while _WARM:
        _WARM.pop().end(at_once=at_once)


def _process(complaints: IO[bytes]) -> subprocess.Popen[bytes]:
    from trainlint.processes.worker import prepare_environment

    # -P: a `random.py` in the current folder must not be what torch imports. A session of its own: Ctrl-C
    # reaches only us, and we end it.
    command = [sys.executable, "-P", "-m", "trainlint.processes.supervisor", str(os.getpid())]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints,
        env=prepare_environment(dict(os.environ)), start_new_session=True,
    )  # fmt: skip


@dataclass(frozen=True)
class Zygote:
    """A process that has imported torch, or is about to; see `trainlint.processes.supervisor`."""

    process: subprocess.Popen[bytes]
    complaints: IO[bytes]

    @classmethod
    def started(cls) -> Zygote:
        """A new one."""
        complaints = tempfile.TemporaryFile()  # noqa: SIM115
        return cls(_process(complaints), complaints)

    @classmethod
    def ready(cls) -> Zygote:
        """The one that was warmed up, if it still lives, or a new one."""
        while _WARM:
            zygote = _WARM.pop()
            if zygote.process.poll() is None:
                return zygote
            zygote.end(at_once=True)
        return cls.started()

    def ask(self, jobs: Sequence[Job], workers: int) -> None:
        """Send the jobs, of which at most `workers` are to run at once."""
        assert self.process.stdin is not None
        lines = [str(workers).encode(), *map(encode, jobs), b""]
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(b"\n".join(lines) + b"\n")
            self.process.stdin.flush()

    def answers(self) -> Iterator[bytes]:
        """Its lines, until it closes its output. Raises `Abandoned`."""
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        rest = b""
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while True:
                give_way()
                if not selector.select(_POLL_SECONDS if _ABANDON else None):
                    continue
                data = os.read(descriptor, _PORTION)
                if not data:
                    return
                *lines, rest = (rest + data).split(b"\n")
                yield from lines

    def complaint(self) -> str:
        """Why it ended, which it has."""
        self.process.wait()
        self.complaints.seek(0)
        last = self.complaints.read().decode(errors="replace").strip().rpartition("\n")[2]
        return last or f"exit status {self.process.returncode}"

    def release(self) -> None:
        """After its last answer: it waits for the next jobs where it is kept, and else ends."""
        if _KEEPING and not _WARM:
            _WARM.append(self)
        else:
            self.end(at_once=False)

    def end(self, *, at_once: bool) -> None:
        """Wait for its end; `at_once` it stops what it does, and its children with it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if at_once:
            self.process.terminate()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.complaints.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
