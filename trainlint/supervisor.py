"""Run jobs in child processes, with limits of time and memory, and leave nothing running.

A *zygote* (`python -m trainlint.supervisor`) imports torch once and forks a child per job, which takes
milliseconds instead of the seconds of an import. It touches no tensor: a fork after one may hang. Where
there is no fork (not Linux), each job gets a fresh interpreter.

The zygote reads jobs from its standard input, one JSON line each, and writes the children's messages to
its standard output, each with the number of its job in front. On SIGTERM, on Ctrl-C and at its parent's
death it ends its children and then itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final

from trainlint.jobs import Begin, Died, Done, Job, Message, decode_job, decode_message, encode

CAN_FORK: Final = sys.platform == "linux"
_KEPT_OUTPUT: Final = 4000
_DEATH_SIGNAL_OPTION: Final = 1  # PR_SET_PDEATHSIG, <linux/prctl.h>


@dataclass
class _Child:
    number: int
    job: Job
    pid: int
    messages: IO[bytes]
    output: IO[bytes]
    deadline: float
    target: str
    buffer: bytes = b""
    done: bool = False
    process: Any = None


def run_jobs(jobs: Sequence[Job], workers: int) -> Iterator[tuple[int, Message]]:
    """Run the jobs, at most `workers` at once, and yield (number of the job, message) as they come.

    Every job ends with `Done` or `Died`. Closing the generator ends all children.
    """
    from trainlint.worker import prepare_environment

    if not CAN_FORK:
        yield from _supervise(enumerate(jobs), workers)
        return
    zygote = subprocess.Popen(
        [sys.executable, "-m", "trainlint.supervisor", str(workers)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=prepare_environment(dict(os.environ)),
    )
    assert zygote.stdin is not None
    assert zygote.stdout is not None
    open_jobs = set(range(len(jobs)))
    try:
        with contextlib.suppress(BrokenPipeError):
            zygote.stdin.write(b"".join(encode(job) + b"\n" for job in jobs) + b"\n")
            zygote.stdin.flush()
        for line in zygote.stdout:
            number, _, content = line.partition(b" ")
            message = decode_message(content)
            if isinstance(message, (Done, Died)):
                open_jobs.discard(int(number))
            yield int(number), message
            if not open_jobs:
                break
        for number in sorted(open_jobs):
            yield number, Died(jobs[number].label, "the supervising process ended unexpectedly")
    finally:
        if open_jobs:
            zygote.terminate()
        zygote.stdin.close()
        zygote.stdout.close()
        try:
            zygote.wait(timeout=10)
        except subprocess.TimeoutExpired:
            zygote.kill()
            zygote.wait()


def _supervise(jobs: Iterator[tuple[int, Job]], workers: int) -> Iterator[tuple[int, Message]]:
    waiting = deque(jobs)
    running: dict[int, _Child] = {}
    selector = selectors.DefaultSelector()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                child = _start(*waiting.popleft())
                running[child.number] = child
                selector.register(child.messages, selectors.EVENT_READ, child)
            now = time.monotonic()
            nearest = min(child.deadline for child in running.values())
            for key, _ in selector.select(max(0.0, nearest - now)):
                yield from _receive(key.data)
            for child in list(running.values()):
                ended = child.buffer is _CLOSED
                late = time.monotonic() >= child.deadline
                if ended or late:
                    selector.unregister(child.messages)
                    del running[child.number]
                    yield child.number, _finish(child, late and not ended)
    finally:
        for child in running.values():
            _finish(child, late=True)
        selector.close()


_CLOSED: Final = b"closed"


def _receive(child: _Child) -> Iterator[tuple[int, Message]]:
    """Pass on whole messages; each `Begin` gives the child its time anew."""
    data = os.read(child.messages.fileno(), 1 << 16)
    if not data:
        child.buffer = _CLOSED
        return
    *lines, child.buffer = (child.buffer + data).split(b"\n")
    for line in lines:
        message = decode_message(line)
        if isinstance(message, Done):
            # Not the end of the pipe: a process that the target left behind may hold it open.
            child.done = True
            child.buffer = _CLOSED
            return
        if isinstance(message, Begin):
            child.target = message.target
            child.deadline = time.monotonic() + child.job.timeout
        yield child.number, message


def _finish(child: _Child, late: bool) -> Message:
    """End the child and all that it started; say how it ended."""
    if not late:
        time.sleep(0.01 if child.done else 0.05)  # it is just about to become reapable
    status = _reap(child, block=False)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    if status is None:
        status = _reap(child, block=True)
    child.messages.close()
    return _verdict(child, status, late)


def _verdict(child: _Child, status: int | None, late: bool) -> Message:
    output = _last_output(child.output)
    child.output.close()
    if child.done:
        return Done()
    if late:
        reason = f"timed out after {child.job.timeout:g} s"
    elif status is not None and os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        reason = f"crashed ({signal.strsignal(number) or 'signal'}, signal {number})"
    else:
        code = os.WEXITSTATUS(status) if status is not None else "unknown"
        reason = f"the process ended by itself (exit status {code})"
    return Died(child.target, reason, output)


def _reap(child: _Child, *, block: bool) -> int | None:
    if child.process is not None:
        code = child.process.wait() if block else child.process.poll()
        return None if code is None else (-code if code < 0 else code << 8)
    try:
        pid, status = os.waitpid(child.pid, 0 if block else os.WNOHANG)
    except ChildProcessError:
        return None
    return status if pid else None


def _last_output(stream: IO[bytes]) -> str:
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - _KEPT_OUTPUT))
    return stream.read().decode(errors="replace")


def _start(number: int, job: Job) -> _Child:
    # A file, not a pipe: a target that prints a megabyte must not block.
    output = tempfile.TemporaryFile()  # noqa: SIM115
    read_end, write_end = os.pipe()
    process = None
    if CAN_FORK:
        pid = os.fork()
        if pid == 0:
            os.close(read_end)
            _be_the_child(job, write_end, output)
    else:
        os.set_inheritable(write_end, True)
        process = subprocess.Popen(
            [sys.executable, "-m", "trainlint.worker", str(write_end)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            close_fds=False,
            start_new_session=True,
        )
        assert process.stdin is not None
        process.stdin.write(encode(job) + b"\n")
        process.stdin.close()
        pid = process.pid
    os.close(write_end)
    deadline = time.monotonic() + job.timeout
    messages = os.fdopen(read_end, "rb", buffering=0)
    return _Child(number, job, pid, messages, output, deadline, job.label, process=process)


def _be_the_child(job: Job, write_end: int, output: IO[bytes]) -> None:
    """Never returns."""
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_DEATH_SIGNAL_OPTION, signal.SIGKILL)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        from trainlint.worker import limit_memory, work

        limit_memory(job.memory_limit)
        work(job, lambda message: _write(write_end, encode(message) + b"\n"))
        sys.stdout.flush()
        sys.stderr.flush()
        status = 0
    finally:
        os._exit(status)


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _serve(workers: int) -> None:
    """The zygote: import torch, then fork a child for every job on standard input."""
    import warnings

    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
    import torch  # noqa: F401

    import trainlint.capture
    import trainlint.loading
    import trainlint.registry

    trainlint.registry.all_rules()
    jobs = []
    for line in sys.stdin.buffer:
        if not line.strip():
            break
        jobs.append(decode_job(line))
    parent = os.getppid()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL_OPTION, signal.SIGTERM)
    if os.getppid() != parent:
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    results = sys.stdout.buffer
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        for number, message in _supervise(enumerate(jobs), workers):
            results.write(b"%d %s\n" % (number, encode(message)))
            results.flush()


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
