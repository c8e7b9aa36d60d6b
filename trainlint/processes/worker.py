"""The child's side: load one file, check its models, send what was found.

Runs in a process of its own with the target's output going to a file. `python -m
trainlint.processes.worker` serves jobs from standard input where processes cannot be forked.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from trainlint.errors import NO_NOTEBOOKS, InputError, LoadError, UsageError
from trainlint.fixes.source import SourceText
from trainlint.overlay import overlaid
from trainlint.processes.jobs import (
    Advanced,
    Analyzed,
    Begin,
    Done,
    Job,
    Message,
    Outlined,
    Prepared,
    Refused,
    Told,
    Trained,
    TrialJob,
    Tried,
)
from trainlint.records import TargetResult
from trainlint.targets.imports import module_file
from trainlint.verification.changes import Plan, Training

if TYPE_CHECKING:
    import ast
    from types import ModuleType

    from torch import nn

    from trainlint.capture.inputs import Inputs
    from trainlint.fixes.patch import Patch
    from trainlint.generalization.experiments import Experiment
    from trainlint.generalization.laboratory import Laboratory
    from trainlint.generalization.rebuilding import OtherWidths
    from trainlint.generalization.swept import Inquiry, Outline
    from trainlint.generalization.trials import Copy
    from trainlint.loss.uses import Recipe
    from trainlint.rule import Settings
    from trainlint.subject import Analysis
    from trainlint.targets.loading import LoadedFile
    from trainlint.targets.resizing import Constructions

Send = Callable[[Message], None]
_BETWEEN_WORDS: Final = 0.25


def work(job: Job, send: Send) -> None:
    """Do the job and report through `send`, ending with `Done`."""
    import torch

    from trainlint.processes.startup import optimizers_without_compiler

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # a vanishing signal is slow otherwise, by a factor of a hundred
    torch.manual_seed(0)  # the same figures in every report
    random.seed(0)
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # for the processes that the target starts
    sys.argv = [job.path]

    def send_after_output(message: Message) -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # the target may have closed or replaced it
                stream.flush()
        send(message)

    with contextlib.suppress(Exception):
        # What it printed before `os._exit` or a crash must not be lost in a buffer.
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    send(Begin(job.target))
    with overlaid(job.overlay), optimizers_without_compiler():
        if job.trials is not None:
            _make_trials(job, job.trials, send_after_output)
        elif job.plan is not None:
            _try(job, job.plan, send_after_output)
        else:
            _guarded(
                job, send_after_output, job.target, lambda: _check_file(job, send_after_output)
            )
    send_after_output(Done())


def _guarded(job: Job, send: Send, target: str, check: Callable[[], None]) -> None:
    """Whatever ends this check early becomes the target's reason."""
    from trainlint.targets.loading import Stop, reason_of

    try:
        check()
    except LoadError as error:
        _failed(send, target, str(error), row=error.row)
    except InputError as error:
        _failed(send, target, str(error))
    except (MemoryError, SystemExit, Stop) as error:
        _failed(send, target, reason_of(error))
    except Exception as error:  # a fault of ours
        detail = f"{type(error).__name__}: {error} (--debug shows the traceback)"
        _failed(send, target, f"internal error: {traceback.format_exc() if job.debug else detail}")


def _failed(
    send: Send, target: str, reason: str, status: str = "error", row: int | None = None
) -> None:
    send(Analyzed([], [], TargetResult(target, status, reason, row=row)))


def _check_file(job: Job, send: Send) -> None:
    from trainlint.capture.tracer import single_node_functions
    from trainlint.registry import select_rules
    from trainlint.rule import Settings
    from trainlint.sites import recording
    from trainlint.targets.loading import load_file, models_of, named_model
    from trainlint.targets.loops import command

    path, text = _read(job)
    settings = Settings(
        select_rules(job.rules),
        job.options,
        job.stages,
        job.probe_steps,
        job.probe_seconds,
        job.graphs,
    )
    with recording(), single_node_functions():
        with _time_limit(job.timeout / 2, "half of --timeout"):
            loaded = load_file(path, text, job.dotted)
        if job.name is not None:
            _check_model(job, send, loaded, job.target, named_model(loaded, job.name), settings)
            return
        refused: list[tuple[str, str]] = []
        tried = False
        for found in models_of(loaded):
            target = f"{job.label}::{found.name}"
            if target in job.skip:
                tried = True
                continue
            send(Begin(target))
            try:
                made = found.make()
            except LoadError as error:
                refused.append((target, str(error)))
                continue
            if made is not None:
                tried = True
                check = partial(_check_model, job, send, loaded, target, made, settings)
                _guarded(job, send, target, check)
        # A class that cannot be constructed is no fault of a file whose other models were checked.
        status = "skipped" if tried or job.scanned else "error"
        loop = loaded.script.loop() if refused and status == "error" else None
        elsewhere = f", or: {command(job.label, job.dotted)}" if loop is not None else ""
        for target, reason in refused:
            _failed(send, target, reason + elsewhere, status)
        if not tried and not refused:
            status = "skipped" if job.scanned and not loaded.stopped else "error"
            _failed(send, job.label, f"no model found{_why_none(job, loaded, status)}", status)


def _why_none(job: Job, loaded: LoadedFile, status: str) -> str:
    """Why there is no model in a file, as far as that is known, and what to do."""
    from trainlint.targets.discovery import without_forward

    if loaded.stopped and (loaded.program is None or loaded.script.loop() is None):
        return f": {_stopped(job, loaded)}"
    unfinished = without_forward(loaded.discovery)
    elsewhere = _trained_elsewhere(job, loaded) if status == "error" else ""
    return (f": {unfinished}" if unfinished else "") + elsewhere


def _trained_elsewhere(job: Job, loaded: LoadedFile) -> str:
    """Where a script trains, or may make, a model that is not at module level, and what looks at that."""
    from trainlint.targets.discovery import possible_factories
    from trainlint.targets.loops import command

    assert loaded.text.tree is not None
    loop = loaded.script.loop()
    if loop is not None:
        return f" at module level; {loop.trains_one()}: {command(job.label, job.dotted)}"
    possible = possible_factories(loaded.text.tree)
    if not possible:
        return ""
    separator = ":" if job.dotted else "::"
    return f"; if {possible[0]}() makes one: {job.label}{separator}{possible[0]}"


def _notes_on_file(job: Job, loaded: LoadedFile, recipe: Recipe) -> list[str]:
    """What there is to know of the run of the file, and where it trains, unless a probe looks at that."""
    from trainlint.targets.loops import command

    run = [recipe.setup.names.get("train", "")] if recipe.setup.train is not None else []
    is_watched = loaded.program is not None and loaded.script.is_looked_at(loaded.program, run)
    notes = list(loaded.notes)
    if loaded.stopped:
        notes.append(loaded.stopped if is_watched else _stopped(job, loaded))
    if loaded.program is None and "probe" in job.stages and job.probe_steps:
        # A probe by the module's own `training_step` is what its trainer does.
        loop = loaded.script.loop(run, libraries=recipe.setup.step is None)
        if loop is not None:
            notes.append(f"{loop.described()}, was not looked at: {command(job.label, job.dotted)}")
    return notes


def _stopped(job: Job, loaded: LoadedFile) -> str:
    """Where the run of the file stopped and why, with what goes on from there."""
    from trainlint.targets.loops import command

    assert loaded.stopped is not None
    if loaded.program is None:
        return loaded.stopped
    return f"{loaded.stopped}, which `{command(job.label, job.dotted)}` watches"


def _read(job: Job) -> tuple[Path, SourceText]:
    path = _find(job)
    if path.suffix == ".ipynb":
        raise LoadError(NO_NOTEBOOKS + "call trainlint.check(model, x) in it")
    text = SourceText.read(str(path))
    if text is None:
        raise LoadError(_unreadable(path))
    return path, text


def _make_trials(job: Job, wanted: TrialJob, send: Send) -> None:
    """Make trials one after another; what makes all of them impossible is said once."""
    from trainlint.capture.tracer import single_node_functions
    from trainlint.measure.memory import peak_memory
    from trainlint.probe.batches import ProbeProblem
    from trainlint.processes.startup import without_compiler
    from trainlint.sites import recording
    from trainlint.targets.loading import Stop, reason_of

    at_start = peak_memory()
    told = 0.0

    def progress(share: float) -> None:
        nonlocal told
        if time.monotonic() - told > _BETWEEN_WORDS:
            told = time.monotonic()
            send(Advanced(share))

    try:
        with recording(), single_node_functions():
            with _time_limit(job.timeout / 2, "half of --timeout"):
                laboratory = _laboratory(job, wanted.experiment)
            send(Prepared(laboratory.split))
            with without_compiler():
                if wanted.inquiry is not None:
                    send(Begin(job.target))
                    outline = _outline(laboratory, wanted.inquiry, lambda text: send(Told(text)))
                    send(Outlined(outline))
                for spec in wanted.specs:
                    send(Begin(job.target))
                    result = laboratory.run(spec, progress)
                    send(Tried(msgspec.structs.replace(result, memory=peak_memory() - at_start)))
    except (LoadError, InputError, UsageError, ProbeProblem) as error:
        send(Refused(str(error)))
    except (MemoryError, SystemExit, Stop) as error:
        send(Refused(reason_of(error)))
    except Exception as error:  # a fault of ours, or of what makes the data
        detail = f"{type(error).__name__}: {error} (--debug shows the traceback)"
        send(Refused(f"internal error: {traceback.format_exc() if job.debug else detail}"))


def _try(job: Job, plan: Plan, send: Send) -> None:
    """Check the model of the job as the plan changes it, and train it once for each seed."""
    from trainlint.capture.tracer import single_node_functions
    from trainlint.measure.memory import peak_memory
    from trainlint.registry import select_rules
    from trainlint.rule import Settings
    from trainlint.sites import recording

    settings = Settings(
        select_rules(job.rules),
        job.options,
        job.stages,
        job.probe_steps,
        job.probe_seconds,
        remedies=False,
    )
    with recording(), single_node_functions():

        def check() -> None:
            loaded, _, model = _one_model(job)
            _check_model(job, send, loaded, job.target, model, settings, plan.patches)

        if plan.check:
            _guarded(job, send, job.target, check)
        at_start = peak_memory()
        for seed in plan.seeds[:1] if plan.finds_rate else plan.seeds:
            send(Begin(job.target))
            done = _trained(job, plan, seed)
            send(Trained(msgspec.structs.replace(done, memory=peak_memory() - at_start)))


def _one_model(
    job: Job, after: Callable[[ast.stmt, ModuleType], None] | None = None
) -> tuple[LoadedFile, str, nn.Module]:
    """The model that the job names, as a check of the whole file makes it. Raises `LoadError`."""
    from trainlint.targets.loading import load_file, models_of, named_model

    path, text = _read(job)
    with _time_limit(job.timeout / 2, "half of --timeout"):
        loaded = load_file(path, text, job.dotted, after)
        for found in models_of(loaded) if job.dotted is None else ():
            if found.name == job.name:
                made = found.make()
                if made is not None:
                    return loaded, found.name, made
        assert job.name is not None
        return loaded, job.name, named_model(loaded, job.name)


def _trained(job: Job, plan: Plan, seed: int) -> Training:
    """One training of the file's model, with weights and data of the seed; or a range test alone."""
    from trainlint.preserve import preserved_training
    from trainlint.probe.batches import ProbeProblem
    from trainlint.processes.startup import without_compiler
    from trainlint.targets.loading import Stop, reason_of, recipe_of
    from trainlint.verification.subject import found_rate, steadily, subject_of
    from trainlint.verification.training import training

    try:
        loaded, name, model = _one_model(job, steadily(seed, _read(job)[1]))
        with without_compiler():
            recipe = recipe_of(loaded, model, name)
            if plan.finds_rate:
                with _guard(plan.seconds, is_own_loop=False):
                    return Training(seed, rate=found_rate(model, recipe, plan.patches, seed))
            subject = subject_of(model, recipe, plan.patches, seed)
            with preserved_training(model):
                return training(
                    subject, steps=plan.steps, seed=seed, seconds=plan.seconds, guard=_guard
                )
    except (LoadError, InputError, ProbeProblem) as error:
        reason = str(error)
    except (MemoryError, SystemExit, Stop) as error:
        reason = reason_of(error)
    except Exception as error:  # a fault of ours
        detail = f"{type(error).__name__}: {error} (--debug shows the traceback)"
        reason = f"internal error: {traceback.format_exc() if job.debug else detail}"
    return Training(seed, reason, asked=plan.steps)


def _outline(laboratory: Laboratory, inquiry: Inquiry, progress: Callable[[str], None]) -> Outline:
    from trainlint.generalization.rebuilding import outline

    return outline(
        laboratory,
        inquiry.factors,
        seconds=inquiry.seconds,
        find_length=inquiry.find_length,
        progress=progress,
    )


def _laboratory(job: Job, experiment: Experiment) -> Laboratory:
    """The one model of the file that can be trained, its data, and their folds."""
    from trainlint.generalization.laboratory import Laboratory, setup_with_loss
    from trainlint.generalization.rebuilding import OtherWidths
    from trainlint.processes.startup import without_compiler
    from trainlint.targets.loading import recipe_of

    _seed_numpy()
    path, loaded, found, constructions = _loaded_with_constructions(job)
    namespace = vars(loaded.module)
    recipes = [(name, model, recipe_of(loaded, model, name, loops=False)) for name, model in found]
    trained = [each for each in recipes if each[2].setup.train_loader is not None]
    if len(trained) > 1:
        names = ", ".join(f"{job.label}::{name}" for name, _, _ in trained)
        raise LoadError(f"holds several models, say which: {names}")
    if not trained:
        raise LoadError(_untrained(loaded, recipes))
    name, model, recipe = trained[0]
    # Not around the file: what it imports may want the real one.
    with without_compiler():
        setup = setup_with_loss(model, recipe)
        return Laboratory(
            model,
            setup,
            experiment,
            groups=namespace.get("groups"),
            splitter=_splitter(namespace),
            of_width=OtherWidths(
                path, job.dotted, loaded, name, model, setup, constructions, experiment.widths
            ),
        )


def _loaded_with_constructions(
    job: Job,
) -> tuple[Path, LoadedFile, list[tuple[str, nn.Module]], Constructions]:
    """The file, its models by name, and the calls that built them."""
    from trainlint.targets.loading import load_file, named_model
    from trainlint.targets.resizing import Constructions

    path, text = _read(job)
    constructions = Constructions()
    with constructions.recorded():
        loaded = load_file(path, text, job.dotted, constructions.after)
        named = job.name
        found = [(named, named_model(loaded, named))] if named else _all_models(loaded)
    return path, loaded, found, constructions


def _other_widths(job: Job, name: str) -> Callable[[float, int], Copy]:
    """Builds the model of that name with its hidden sizes times a factor.

    When that is first asked for, the file is run once more, so that what built it is known.
    """
    known: list[OtherWidths] = []

    def build(width: float, seed: int) -> Copy:
        from trainlint.generalization.laboratory import setup_with_loss
        from trainlint.generalization.rebuilding import OtherWidths
        from trainlint.generalization.widths import WidthProblem
        from trainlint.probe.batches import ProbeProblem
        from trainlint.targets.loading import recipe_of

        if not known:
            try:
                path, loaded, [(_, model)], constructions = _loaded_with_constructions(
                    msgspec.structs.replace(job, name=name)
                )
            except (LoadError, InputError) as error:
                raise ProbeProblem(f"run once more, the file {error}") from None
            setup = setup_with_loss(model, recipe_of(loaded, model, name, loops=False))
            known.append(OtherWidths(path, job.dotted, loaded, name, model, setup, constructions))
        try:
            return known[0](width, seed)
        except WidthProblem:
            # `trainlint sweep` says what was looked at; here it is one remedy of many.
            raise ProbeProblem("nothing in the file was found that sets the hidden sizes") from None

    return build


def _all_models(loaded: LoadedFile) -> list[tuple[str, nn.Module]]:
    """Those that can be constructed. Raises `LoadError` where there are others only."""
    from trainlint.targets.loading import models_of

    found: list[tuple[str, nn.Module]] = []
    refusal: LoadError | None = None
    for each in models_of(loaded):
        try:
            made = each.make()
        except LoadError as error:
            refusal = refusal or error
            continue
        if made is not None:
            found.append((each.name, made))
    if refusal is not None and not found:
        raise refusal
    return found


def _untrained(loaded: LoadedFile, recipes: Sequence[tuple[str, nn.Module, Recipe]]) -> str:
    """Why none of these models can be trained by a loop of ours."""
    from trainlint.targets.loading import recipe_of

    stopped = f" ({loaded.stopped})" if loaded.stopped else ""
    if not recipes:
        return f"no model found{stopped}"
    for name, model, recipe in recipes:
        if recipe.setup.why:
            return recipe.setup.why
        if recipe_of(loaded, model, name).setup.train is not None:
            return (
                "its own training loop is not to be split into folds; ours needs its data at module "
                f"level: name them train_loader{stopped}"
            )
    return f"it has no training data at module level: name them train_loader{stopped}"


def _splitter(namespace: Mapping[str, Any]) -> Any:
    """The file's own `cv`, if that splits samples as scikit-learn's splitters do."""
    given = namespace.get("cv")
    return given if callable(getattr(given, "split", None)) else None


def _seed_numpy() -> None:
    """Data that are made with numpy come out the same in each process, where it is installed."""
    with contextlib.suppress(ImportError):
        import numpy as np

        np.random.seed(0)


def _check_model(
    job: Job,
    send: Send,
    loaded: LoadedFile,
    target: str,
    model: nn.Module,
    settings: Settings,
    patches: Sequence[Patch] = (),
) -> None:
    from trainlint.processes.startup import without_compiler
    from trainlint.subject import analyze
    from trainlint.targets.loading import recipe_of

    send(Begin(target))
    inputs = _inputs(job, loaded, model)
    parts = sorted(set(_parts(model)))

    def tell(analysis: Analysis, provisional: bool) -> None:
        reported = [finding.reported for finding in analysis.findings]
        starved = [finding.starved for finding in analysis.findings]
        send(Analyzed(reported, starved, analysis.result, provisional, on_file, parts))

    told = 0.0

    def progress(text: str) -> None:
        nonlocal told
        if time.monotonic() - told > _BETWEEN_WORDS:
            told = time.monotonic()
            send(Told(f"{target}: {text}"))

    with without_compiler():
        recipe = recipe_of(loaded, model, target.rpartition("::")[2])
        if patches:
            model, recipe = _patched(model, recipe, patches, inputs)
        on_file = _notes_on_file(job, loaded, recipe)
        analysis = analyze(
            model,
            inputs,
            target=target,
            settings=settings,
            recipe=recipe,
            provisionally=lambda so_far: tell(so_far, True),
            progress=progress,
            guard=_guard,
            of_width=_other_widths(
                job, target.rpartition("::")[2] if not job.dotted else job.name or ""
            ),
        )
    tell(analysis, False)


def _parts(model: nn.Module) -> Iterator[str]:
    """`file::Class` of each module in it, of classes at the top level of a file."""
    for module in model.modules():
        kind = type(module)
        filename = getattr(sys.modules.get(kind.__module__), "__file__", None)
        if filename and not kind.__module__.startswith("torch."):
            yield f"{os.path.realpath(filename)}::{kind.__qualname__}"


def _patched(
    model: nn.Module, recipe: Recipe, patches: Sequence[Patch], inputs: Inputs | None
) -> tuple[nn.Module, Recipe]:
    from trainlint.probe.batches import ProbeProblem
    from trainlint.verification.subject import checked_subject

    try:
        return checked_subject(model, recipe, patches, inputs)
    except ProbeProblem as problem:
        raise LoadError(str(problem)) from None


@contextlib.contextmanager
def _guard(seconds: float, is_own_loop: bool) -> Iterator[None]:
    """For a training: it ends, and where the loop is the user's, it writes nothing."""
    from trainlint.probe.guard import nothing_written

    with contextlib.ExitStack() as stack:
        if is_own_loop:
            stack.enter_context(nothing_written())
        stack.enter_context(_time_limit(seconds, "--probe-seconds"))
        yield


def _inputs(job: Job, loaded: LoadedFile, model: nn.Module) -> Inputs | None:
    """The inputs that the command line or the file gives, or None. Raises `InputError`."""
    from trainlint.capture.inputs import fits_signature, from_text, from_value
    from trainlint.targets.loading import example_inputs

    if job.inputs is not None:
        return from_text(job.inputs, model)
    given = example_inputs(loaded)
    if given is None:
        return None
    try:
        inputs = from_value(given, model, "example_inputs of the file")
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"example_inputs raised {type(error).__name__}: {error}") from error
    meant_for_another = not fits_signature(inputs, model) and job.name is None
    return None if meant_for_another else inputs


def _find(job: Job) -> Path:
    """The file of the job; that of a dotted name is found without importing anything."""
    return Path(job.path) if job.dotted is None else module_file(job.dotted)


def _unreadable(path: Path) -> str:
    try:
        path.read_text()
    except UnicodeDecodeError:
        return "is not valid UTF-8 and declares no other encoding"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "cannot be decoded"


@contextlib.contextmanager
def _time_limit(seconds: float, name: str) -> Iterator[None]:
    """Stop a run of the user's code that does not end by itself. `name` is that of the limit."""
    from trainlint.targets.loading import Stop

    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: Any) -> None:
        raise Stop(f"it was still running after {seconds:g} s, {name}")

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
    from trainlint.processes.jobs import decode_job, encode

    descriptor = int(sys.argv[1])
    job = decode_job(sys.stdin.buffer.readline())
    limit_memory(job.memory_limit)
    with os.fdopen(descriptor, "wb", buffering=0) as stream:
        work(job, lambda message: (stream.write(encode(message) + b"\n"), None)[1])


if __name__ == "__main__":
    _serve_one()
