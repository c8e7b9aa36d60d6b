"""The child's side: load one file, check its models, send what was found.

Runs in a process of its own with the target's output going to a file. `python -m trainlint.worker`
serves jobs from standard input where processes cannot be forked.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trainlint.errors import InputError, LoadError
from trainlint.fixes.source import SourceText
from trainlint.jobs import Analyzed, Begin, Done, Job, Message
from trainlint.records import TargetResult

Send = Callable[[Message], None]


def work(job: Job, send: Send) -> None:
    """Do the job and report through `send`, ending with `Done`."""
    import torch

    torch.set_num_threads(1)
    sys.dont_write_bytecode = True
    sys.argv = [job.path]
    send(Begin(job.label))
    try:
        _check_file(job, send)
    except LoadError as error:
        _failed(send, job.label, str(error))
    except MemoryError:
        _failed(send, job.label, f"ran out of memory (limit {job.memory_limit >> 20} MiB)")
    except Exception as error:  # a fault of ours
        detail = traceback.format_exc() if job.debug else f"{type(error).__name__}: {error}"
        _failed(send, job.label, f"internal error: {detail} (--debug shows more)")
    send(Done())


def _failed(send: Send, target: str, reason: str, notes: list[str] | None = None) -> None:
    send(Analyzed([], [], TargetResult(target, "error", reason, notes=notes or [])))


def _check_file(job: Job, send: Send) -> None:
    from trainlint.capture import single_node_functions
    from trainlint.loading import LoadedModel, load_file, models_of, named_model
    from trainlint.registry import select_rules
    from trainlint.sites import recording
    from trainlint.subject import Settings

    path = _find(job)
    text = SourceText.read(str(path))
    if text is None:
        raise LoadError(_unreadable(path))
    settings = Settings(select_rules(job.rules), job.options)
    with recording(), single_node_functions():
        with _time_limit(job.timeout / 2):
            loaded = load_file(path, text, job.dotted)
        notes = [*loaded.notes, *([loaded.stopped] if loaded.stopped else [])]
        notes += [f"{name} is defined twice; the last one counts" for name in loaded.discovery.repeated]
        if job.name is not None:
            target = f"{job.label}::{job.name}" if job.dotted is None else f"{job.dotted}:{job.name}"
            model = named_model(loaded, job.name)
            _check_model(job, send, loaded, target, model, settings, notes)
            return
        count = 0
        for found in models_of(loaded):
            count += 1
            if isinstance(found, LoadedModel):
                target = f"{job.label}::{found.name}"
                if target not in job.skip:
                    _check_model(job, send, loaded, target, found.model, settings, notes)
            else:
                candidate, error = found
                target = f"{job.label}::{candidate.name}"
                result = TargetResult(target, "skipped", str(error), notes=notes)
                send(Analyzed([], [], result))
        if count == 0:
            stopped = f" ({loaded.stopped})" if loaded.stopped else ""
            raise LoadError(f"no model found{stopped}")


def _check_model(
    job: Job, send: Send, loaded: Any, target: str, model: Any, settings: Any, notes: list[str]
) -> None:
    from trainlint.inputs import fits_signature, from_text, from_value
    from trainlint.loading import example_inputs
    from trainlint.subject import analyze

    send(Begin(target))
    try:
        inputs = None
        given = example_inputs(loaded)
        if job.inputs is not None:
            inputs = from_text(job.inputs, model)
        elif given is not None:
            inputs = from_value(given, model, "example_inputs of the file")
            if not fits_signature(inputs, model) and job.name is None:
                inputs = None  # meant for another model of the file
    except InputError as error:
        _failed(send, target, str(error))
        return
    except Exception as error:
        _failed(send, target, f"example_inputs raised {type(error).__name__}: {error}")
        return
    analysis = analyze(model, inputs, target=target, settings=settings, notes=notes)
    send(
        Analyzed(
            [finding.reported for finding in analysis.findings],
            [finding.starved for finding in analysis.findings],
            analysis.result,
        )
    )


def _find(job: Job) -> Path:
    if job.dotted is None:
        return Path(job.path)
    import importlib.util

    sys.path.insert(0, str(Path.cwd()))
    try:
        spec = importlib.util.find_spec(job.dotted)
    except BaseException as error:
        raise LoadError(f"{job.dotted} cannot be imported: {type(error).__name__}: {error}") from error
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise LoadError(f"there is no module {job.dotted} here")
    return Path(spec.origin)


def _unreadable(path: Path) -> str:
    try:
        path.read_text()
    except UnicodeDecodeError:
        return "is not valid UTF-8 and declares no other encoding"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "cannot be decoded"


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Stop the run of a file that does not end by itself; what is defined by then is used."""
    from trainlint.loading import Stop

    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: Any) -> None:
        raise Stop(f"it was still running after {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def prepare_environment(environment: dict[str, str]) -> dict[str, str]:
    """The child's environment: no GPU, no windows, no experiment trackers; `TRAINLINT=1` for users."""
    return {
        **environment,
        "CUDA_VISIBLE_DEVICES": "",
        "MPLBACKEND": "Agg",
        "WANDB_MODE": "disabled",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        "TRAINLINT": "1",
    }


def limit_memory(limit: int) -> None:
    """Let allocations beyond `limit` bytes fail instead of exhausting the machine. Linux only."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        if limit:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _serve_one() -> None:
    """One job from standard input, messages on the descriptor named by the first argument."""
    from trainlint.jobs import decode_job, encode

    descriptor = int(sys.argv[1])
    job = decode_job(sys.stdin.buffer.readline())
    limit_memory(job.memory_limit)
    with os.fdopen(descriptor, "wb", buffering=0) as stream:
        work(job, lambda message: (stream.write(encode(message) + b"\n"), None)[1])


if __name__ == "__main__":
    _serve_one()
