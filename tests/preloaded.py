"""Processes of trainlint that start with torch imported, so that a test need not wait for it each time.

A server, one for each process of pytest, imports once what `trainlint` and its child processes need, and
forks the command line, or the zygote of `trainlint.check`, on demand: the same code in its own processes,
with its own folder, environment and standard streams. What concerns the start itself, signals or limits is
tested with processes that start as a user's do: the marker `fresh`.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import IO, Any, Final

from trainlint.sites import outermost

CAN_FORK: Final = sys.platform == "linux"
_OF_THE_INTERPRETER: Final = ("PYTHON", "LC_", "LANG", "LD_", "OMP_", "MKL_")


class _Process:
    """As much of a `subprocess.Popen` as is needed of a process that was forked."""

    pid: int
    returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        raise NotImplementedError

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class Forked(_Process):
    """A process that a server forked.

    Its end is told on a pipe, since it is no child of ours.
    """

    def __init__(self, status: int) -> None:
        self._status = os.fdopen(status, "rb", buffering=0)
        self.pid = int(self._line(None))
        self.stdin: IO[bytes] | None = None
        self.stdout: IO[bytes] | None = None

    def _line(self, timeout: float | None) -> bytes:
        if not select.select([self._status], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("trainlint", timeout or 0)
        return self._status.readline()

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self.returncode = int(self._line(timeout) or -signal.SIGKILL)
            self._status.close()
        return self.returncode


# ---------------------------------------------------------------------- the tests' side


def is_of_use(environment: Mapping[str, str]) -> bool:
    """Whether the server's children would start as a fresh interpreter in this environment does."""
    names = {*environment, *os.environ, *_STARTED_IN}
    return CAN_FORK and all(
        environment.get(name) == _STARTED_IN.get(name)
        for name in names
        if name.startswith(_OF_THE_INTERPRETER)
    )


def run(
    arguments: Sequence[str], *, cwd: Path, environment: Mapping[str, str], timeout: float
) -> tuple[int, str, str]:
    """Run the command line: its exit status and what it wrote."""
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        with Path(os.devnull).open("rb") as nothing:
            descriptors = [nothing.fileno(), stdout.fileno(), stderr.fileno()]
            request = {"arguments": list(arguments), "cwd": str(cwd), "env": dict(environment)}
            process = _ask(request, descriptors)
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        texts = []
        for stream in (stdout, stderr):
            stream.seek(0)
            text = stream.read().decode()
            texts.append(text.replace("\r\n", "\n").replace("\r", "\n"))
    return status, texts[0], texts[1]


def start_zygote(complaints: IO[bytes]) -> Any:
    """In place of `zygotes._process` in a process of tests."""
    from trainlint.processes.worker import prepare_environment

    if not is_of_use(os.environ):
        return STARTED_AFRESH(complaints)
    (child_in, stdin), (stdout, child_out) = os.pipe(), os.pipe()
    env = prepare_environment(dict(os.environ))
    request = {"cwd": str(Path.cwd()), "env": env}
    process = _ask(request, [child_in, child_out, complaints.fileno()])
    os.close(child_in)
    os.close(child_out)
    process.stdin, process.stdout = os.fdopen(stdin, "wb"), os.fdopen(stdout, "rb")
    return process


def _ask(request: Mapping[str, Any], descriptors: Sequence[int]) -> Forked:
    told, status = os.pipe()
    try:
        socket.send_fds(
            _server(os.getpid()), [json.dumps(request).encode()], [*descriptors, status]
        )
    finally:
        os.close(status)
    return Forked(told)


@cache
def _server(of: int) -> socket.socket:
    """The connection to the server of the process with this number, ours: it ends when that is closed."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [sys.executable, "-P", __file__, str(its.fileno())],
        pass_fds=[its.fileno()], env=_STARTED_IN, stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    its.close()

    def end() -> None:
        if os.getpid() == of:
            ours.close()
            process.wait()

    atexit.register(end)
    return ours


# ---------------------------------------------------------------------- the server's side


def _serve(connection: socket.socket) -> None:
    import warnings

    from trainlint.processes import supervisor, zygotes

    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
    supervisor._import_for_children()
    supervisor._import_for_folds()
    _import_the_command_line()
    zygotes._process = _fork_zygote  # type: ignore[assignment]
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, _reap)
    while True:
        content, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 4)
        if not content:
            return
        if os.fork() == 0:
            connection.close()
            _be_the_child(json.loads(content), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _reap(*_: object) -> None:
    """Nobody else waits for those who have ended; the time that they took is then counted as ours."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _import_the_command_line() -> None:
    import importlib
    import pkgutil

    import trainlint

    for part in ("cli", "report", "verification", "generalization", "fixes", "data", "observe"):
        package = importlib.import_module(f"trainlint.{part}")
        for module in pkgutil.iter_modules(package.__path__, f"trainlint.{part}."):
            importlib.import_module(module.name)
    assert trainlint.__file__


def _be_the_child(request: dict[str, Any], descriptors: list[int]) -> None:
    """Never returns."""
    from trainlint.processes.lifetime import end_with_parent

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *streams, status = descriptors
    os.write(status, b"%d\n" % os.getpid())
    for place, descriptor in enumerate(streams):
        os.dup2(descriptor, place)
        os.close(descriptor)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    if "arguments" not in request:
        from trainlint.processes.supervisor import _serve

        os.setsid()
        code = _status_of(partial(_serve, os.getppid()))
    else:
        from trainlint.__main__ import main

        end_with_parent(signal.SIGKILL)
        command = Path(sys.executable).with_name("trainlint")
        sys.argv = [str(command), *request["arguments"]]
        sys.path.insert(0, str(command.parent))
        code = _status_of(main)
    os.write(status, b"%d\n" % code)
    os._exit(code)


@outermost
def _status_of(program: Callable[[], object]) -> int:
    """Run it as the interpreter runs a script, to the end."""
    code: object = 0
    try:
        program()
    except SystemExit as error:
        code = error.code
    except BaseException:
        code = 1
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):
            stream.flush()
    return int(code or 0)


def _fork_zygote(complaints: IO[bytes]) -> Any:
    """The zygote of a forked command: a child of its, as it would be of any."""
    from trainlint.processes.supervisor import _serve
    from trainlint.processes.worker import prepare_environment

    (child_in, stdin), (stdout, child_out) = os.pipe(), os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        for place, descriptor in enumerate((child_in, child_out, complaints.fileno())):
            os.dup2(descriptor, place)
        for descriptor in (child_in, child_out, stdin, stdout):
            os.close(descriptor)
        # What stands in the parent's buffers is the parent's to write.
        sys.stdin, sys.stdout, sys.stderr = (
            os.fdopen(place, mode, closefd=False) for place, mode in enumerate("rww")
        )
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.update(prepare_environment({}))
        os._exit(_status_of(partial(_serve, parent)))
    os.close(child_in)
    os.close(child_out)
    return _Child(pid, os.fdopen(stdin, "wb"), os.fdopen(stdout, "rb"))


class _Child(_Process):
    """A child of this process."""

    def __init__(self, pid: int, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        self.pid, self.stdin, self.stdout = pid, stdin, stdout

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.returncode is None:
            pid, status = os.waitpid(self.pid, 0 if deadline is None else os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
            elif deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("trainlint", timeout or 0)
            else:
                time.sleep(0.005)
        return self.returncode


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
else:
    from trainlint.processes import zygotes

    _STARTED_IN: Final = dict(os.environ)
    STARTED_AFRESH: Final = zygotes._process
