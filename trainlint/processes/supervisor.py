"""Run jobs in child processes, with limits of time and memory, and leave nothing running.

A *zygote* (`python -m trainlint.processes.supervisor`) imports torch once and forks a child per job, which
takes milliseconds instead of the seconds of an import. It touches no tensor: a fork after one may hang.
Where there is no fork (not Linux), each job gets a fresh interpreter.

The zygote reads jobs from its standard input, one JSON line each, and writes the children's messages to
its standard output, each with the number of its job in front. On SIGTERM and at its parent's death it
ends its children, and whatever they have started, and then itself.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import math
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Final

import msgspec

from trainlint.measure.memory import available_memory
from trainlint.processes.jobs import (
    Analyzed,
    Begin,
    Died,
    Done,
    Job,
    Message,
    Trained,
    Tried,
    decode_job,
    decode_message,
    encode,
)
from trainlint.processes.lifetime import adopt_orphans, end_with_parent
from trainlint.processes.zygotes import Zygote, give_way

CAN_FORK: Final = sys.platform == "linux"
_KEPT_OUTPUT: Final = 4000
# In the last words of a crash a list of all extension modules follows after the place.
_KEPT_FOR_CRASHES: Final = 1 << 16
_POLL_SECONDS: Final = 0.05
# What a child may need beside what a trial was seen to take, and the share of free memory that we use.
_SPARE: Final = 64 << 20
_SHARE_OF_FREE: Final = 0.7


@dataclass
class _Child:
    """A running job. `messages` and `output` are the read ends of its pipes, None once closed."""

    number: int
    job: Job
    pid: int
    messages: int | None
    output: int | None
    deadline: float
    target: str
    buffer: bytes = b""
    printed: bytes = b""
    done: bool = False
    status: int | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)


def run_jobs(jobs: Sequence[Job], workers: int) -> Generator[tuple[int, Message], None, None]:
    """Run the jobs, at most `workers` at once, and yield (number of the job, message) as they come.

    Every job ends with `Done` or `Died`. Closing the generator ends all children. Raises `Abandoned`.
    """
    if not CAN_FORK:
        yield from _supervise(enumerate(jobs), workers)
        return
    if not jobs:
        return
    zygote = Zygote.ready()
    open_jobs = set(range(len(jobs)))
    try:
        zygote.ask(jobs, workers)
        for line in zygote.answers():
            place, _, content = line.partition(b" ")
            message = decode_message(content)
            if isinstance(message, (Done, Died)):
                open_jobs.discard(int(place))
            yield int(place), message
            if not open_jobs:
                break
        why = zygote.complaint() if open_jobs else ""
        for number in sorted(open_jobs):
            yield number, Died(jobs[number].target, f"the supervising process ended: {why}")
    finally:
        if open_jobs:
            zygote.end(at_once=True)
        else:
            zygote.release()


def _supervise(jobs: Iterator[tuple[int, Job]], workers: int) -> Iterator[tuple[int, Message]]:
    waiting = deque(jobs)
    running: dict[int, _Child] = {}
    # Trainings may take any amount of memory: the first shows how many there is room for.
    most = 0
    room = 1 if any(_trains(job) for _, job in waiting) else workers
    try:
        while waiting or running:
            give_way()
            while waiting and len(running) < room:
                child = _start(*waiting.popleft())
                running[child.number] = child
            _sleep(running.values())
            for child in list(running.values()):
                # Its exit, not the end of the pipe, is what counts: a process that the target left
                # behind may hold the pipe open. What it sent before is still in there.
                ended = _reap(child, block=False)
                for number, message in _receive(child):
                    took = _memory_of(message)
                    if took is not None and took > most:
                        most = took
                        room = min(workers, _room(most, len(running)))
                    yield number, message
                _listen(child)
                late = time.monotonic() >= child.deadline
                if ended or child.done or late:
                    del running[child.number]
                    _end(child)
                    _end_orphans({other.pid for other in running.values()})
                    yield child.number, _verdict(child, late and not ended)
    finally:
        for child in running.values():
            _end(child)
        _end_orphans(())


def _trains(job: Job) -> bool:
    return job.trials is not None or job.plan is not None


def _memory_of(message: Message) -> int | None:
    """The bytes that a training took, where the message tells of one."""
    if isinstance(message, Tried):
        return message.result.memory
    return message.training.memory if isinstance(message, Trained) else None


def _room(took: int, running: int) -> int:
    """For how many trials there is memory, where one took so much and so many hold theirs."""
    free = available_memory()
    if free is None:
        return sys.maxsize
    return max(1, int((free + took * running) * _SHARE_OF_FREE) // (took + _SPARE))


def _sleep(children: Collection[_Child]) -> None:
    """Until a child has sent or printed something, or it is time to look after them."""
    with selectors.DefaultSelector() as selector:
        for child in children:
            for descriptor in (child.messages, child.output):
                if descriptor is not None:
                    selector.register(descriptor, selectors.EVENT_READ)
        selector.select(_POLL_SECONDS)


def _receive(child: _Child) -> Iterator[tuple[int, Message]]:
    """Pass on whole messages; each `Begin` gives the child its time anew."""
    data, child.messages = _drain(child.messages, math.inf)
    *lines, child.buffer = (child.buffer + data).split(b"\n")
    for line in lines:
        message = decode_message(line)
        if isinstance(message, Done):
            child.done = True
            return
        if isinstance(message, Begin):
            child.target = message.target
            child.deadline = time.monotonic() + child.job.timeout
        if isinstance(message, Analyzed) and message.result.status == "error":
            _listen(child)
            result = msgspec.structs.replace(message.result, output=_printed(child))
            message = msgspec.structs.replace(message, result=result)
        yield child.number, message


def _listen(child: _Child) -> None:
    """Keep the last of what the target prints."""
    data, child.output = _drain(child.output)
    child.printed = (child.printed + data)[-_KEPT_FOR_CRASHES:]


def _printed(child: _Child) -> str:
    text = child.printed.decode(errors="replace").partition("Fatal Python error: ")[0]
    return text[-_KEPT_OUTPUT:]


def _drain(descriptor: int | None, most: float = 1 << 20) -> tuple[bytes, int | None]:
    """What can be read now, and the descriptor, None at its end. A stream without end is cut."""
    data = b""
    while descriptor is not None and len(data) < most:
        try:
            part = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            break
        if not part:
            os.close(descriptor)
            descriptor = None
        data += part
    return data, descriptor


def _end(child: _Child) -> None:
    """End the child and its process group."""
    if child.done and child.status is None:
        time.sleep(0.01)  # it is just about to end by itself
    _reap(child, block=False)
    for kill in (os.killpg, os.kill):  # it may not lead its group yet
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if kill is os.killpg or child.status is None:
                kill(child.pid, signal.SIGKILL)
    _reap(child, block=True)
    _listen(child)
    for descriptor in (child.messages, child.output):
        if descriptor is not None:
            os.close(descriptor)
    child.messages = child.output = None


def _end_orphans(spared: Collection[int]) -> None:
    """End what the ended children have left behind, also in sessions of its own.

    We are their subreaper, so that the children of a process that ends become ours.
    """
    while CAN_FORK and (orphans := [pid for pid in _own_children() if pid not in spared]):
        for pid in orphans:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _own_children() -> Iterator[int]:
    own = str(os.getpid())
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                # pid (name, which may hold anything) state parent ...
                if (folder / "stat").read_text().rpartition(")")[2].split()[1] == own:
                    yield int(folder.name)


def _verdict(child: _Child, late: bool) -> Message:
    if child.done:
        return Done()
    status = child.status
    if late:
        reason = f"timed out after {child.job.timeout:g} s (--timeout)"
    elif status is not None and os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        reason = (
            f"crashed ({signal.strsignal(number) or 'signal'}, signal {number}{_crash_row(child)})"
        )
    else:
        code = os.WEXITSTATUS(status) if status is not None else "unknown"
        reason = f"the process ended by itself (exit status {code})"
    return Died(child.target, reason, _printed(child))


def _crash_row(child: _Child) -> str:
    """The line of the target at which it crashed, from the last words of `faulthandler`."""
    text = child.printed.decode(errors="replace").partition("Fatal Python error: ")[2]
    match = re.search(re.escape(f'File "{child.job.path}", line ') + r"(\d+)", text)
    return f", at line {match[1]}" if match else ""


def _reap(child: _Child, *, block: bool) -> bool:
    """Whether the child has ended; its status is then noted."""
    if child.status is None and child.process is not None:
        code = child.process.wait() if block else child.process.poll()
        if code is not None:
            child.status = -code if code < 0 else code << 8
    elif child.status is None:
        with contextlib.suppress(ChildProcessError):
            pid, status = os.waitpid(child.pid, 0 if block else os.WNOHANG)
            if pid:
                child.status = status
    return child.status is not None


def _start(number: int, job: Job) -> _Child:
    # Pipes that we drain: a target may print without end and neither block nor fill the disk.
    messages, sender = os.pipe()
    output, printer = os.pipe()
    process = None
    if CAN_FORK:
        pid = os.fork()
        if pid == 0:
            os.close(messages)
            os.close(output)
            _be_the_child(job, sender, printer)
    else:
        os.set_inheritable(sender, True)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "trainlint.processes.worker", str(sender)],
            stdin=subprocess.PIPE,
            stdout=printer,
            stderr=printer,
            close_fds=False,
            start_new_session=True,
        )
        assert process.stdin is not None
        process.stdin.write(encode(job) + b"\n")
        process.stdin.close()
        pid = process.pid
    for descriptor in (sender, printer):
        os.close(descriptor)
    for descriptor in (messages, output):
        os.set_blocking(descriptor, False)
    deadline = time.monotonic() + job.timeout
    return _Child(number, job, pid, messages, output, deadline, job.target, process=process)


def _be_the_child(job: Job, sender: int, printer: int) -> None:
    """Never returns."""
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        end_with_parent(signal.SIGKILL)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(printer, 1)
        os.dup2(printer, 2)
        os.close(printer)
        faulthandler.enable(file=2)
        from trainlint.processes.worker import limit_memory, work

        limit_memory(job.memory_limit)
        work(job, lambda message: _write(sender, encode(message) + b"\n"))
        status = 0
    finally:
        os._exit(status)


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _serve(parent: int) -> None:
    """The zygote: import torch, then fork a child for every job on standard input.

    The first line there is how many may run at once; an empty one ends the jobs, and others may follow.
    Nothing comes to a zygote that was started before it was needed, and then was not.
    """
    end_with_parent(signal.SIGTERM)
    adopt_orphans()
    if os.getppid() != parent:
        return  # it died before we asked to be told
    import warnings

    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
    _import_for_children()
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        while asked := list(takewhile(bytes.strip, sys.stdin.buffer)):
            _do([decode_job(line) for line in asked[1:]], int(asked[0]))


def _do(jobs: Sequence[Job], workers: int) -> None:
    """All jobs of one request."""
    if any(_trains(job) for job in jobs):
        import trainlint.generalization.laboratory  # noqa: F401
    if any(job.trials is not None for job in jobs):
        _import_for_folds()
    # What is there now stays: a child's collector need not look through all of torch each time.
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    results = sys.stdout.buffer
    for number, message in _supervise(enumerate(jobs), workers):
        results.write(b"%d %s\n" % (number, encode(message)))
        results.flush()


def _import_for_children() -> None:
    """All that a child needs, once; nothing here may run a tensor operation."""
    import torch.fx.experimental.symbolic_shapes  # noqa: F401 (meta functions want it, and sympy)

    import trainlint.loss.objective
    import trainlint.loss.uses
    import trainlint.measure.attention
    import trainlint.measure.influence
    import trainlint.measure.locating
    import trainlint.measure.pulse
    import trainlint.measure.unused
    import trainlint.registry
    import trainlint.subject
    import trainlint.targets.loading
    import trainlint.theory.mean_field
    import trainlint.theory.propagation

    trainlint.registry.all_rules()


def _import_for_folds() -> None:
    with contextlib.suppress(ImportError):
        import sklearn.model_selection  # noqa: F401


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
