"""`trainlint.check`: the whole line from targets to a ranked report, for files and for live models."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from trainlint.config import Config
from trainlint.engine import Facts, run_rules
from trainlint.errors import UsageError
from trainlint.fingerprints import fingerprinted
from trainlint.fixes.source import SourceText
from trainlint.loss.uses import Recipe
from trainlint.measure.memory import usable_processors
from trainlint.overlay import overlaid
from trainlint.probe.setup import Setup
from trainlint.processes.jobs import Analyzed, Begin, Died, Job, Message, Told, encode
from trainlint.records import Report, ReportedFinding, TargetResult
from trainlint.registry import all_rules, check_options, names_of, select_rules
from trainlint.rule import STAGES, Confidence, Rule, Settings, Severity
from trainlint.suppression import Suppressions
from trainlint.targets.discovery import holds_models, is_scanned, python_files
from trainlint.targets.imports import imported_files
from trainlint.targets.specs import parse_spec
from trainlint.verification.verifying import Verified

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from trainlint.capture.inputs import Inputs
    from trainlint.verification.changes import Budget, Outcome, Trial, Version
    from trainlint.verification.changes import Progress as Advance

Progress = Callable[[str], None]
FileTarget = str | os.PathLike[str]
_SHARE_OF_MEMORY: Final = 0.8


@dataclass
class _Collected:
    """What the children sent, target by target, in the order of the jobs."""

    findings: list[tuple[ReportedFinding, float]] = field(default_factory=list)
    results: list[TargetResult] = field(default_factory=list)
    provisional: dict[str, Analyzed] = field(default_factory=dict)


def check(
    target: nn.Module | Callable[[], nn.Module] | FileTarget | Sequence[FileTarget],
    inputs: Any = None,
    *,
    targets: Any = None,
    loss: Callable[..., Any] | None = None,
    optimizer: Optimizer | Callable[[nn.Module], Optimizer] | None = None,
    train_loader: Any = None,
    val_loader: Any = None,
    select: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    extend_select: Sequence[str] = (),
    stages: Sequence[str] = STAGES,
    config: Config | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    scan: bool = False,
    verify: bool | None = None,
    graphs: bool = False,
    progress: Progress | None = None,
    advance: Callable[[float, str], None] | None = None,
    debug: bool = False,
) -> Report:
    """Check a live model, its class or factory, or files, directories and `package.module:attribute`.

    `inputs` are a tensor, a tuple of arguments, a dict of keyword arguments or a callable that returns
    one of these; for files a text such as `2x3x32x32,2:long`. Without them they are synthesised. A live
    model is checked in this process and is as before afterwards; files run in child processes.

    `loss` is what the live model is trained on, called as (output, target), and `targets` belong to the
    inputs. `optimizer` is one or a function of the model that makes one; `train_loader` and `val_loader`
    give batches, pass after pass: tuples whose last element is the target and whose others are the
    model's inputs, or dicts. A file's are found in the file.

    `stages` are `static`, the graph alone; `signal`, one forward and backward on real weights; and `probe`,
    some steps of training, where there is something to train with.

    With `graphs`, the results of the targets hold their graphs, which an HTML report draws.

    With `scan`, files that hold no model are passed over as in a directory, and are no error.

    With `verify` (None: as `config` has it), the fixes of errors and warnings are tried on copies, beside
    the unchanged model: each then has `verified`, or an `attempt`, and those proved to help come first.
    `progress` is told what is done, `advance` of the share of the fixes that are tried, and of how many.

    Raises `UsageError` for a target that does not exist or an unknown rule.
    """
    return verified_check(
        target, inputs, targets=targets, loss=loss, optimizer=optimizer, train_loader=train_loader,
        val_loader=val_loader, select=select, ignore=ignore, extend_select=extend_select,
        stages=stages, config=config, options=options, scan=scan, verify=verify, graphs=graphs,
        progress=progress, advance=advance, debug=debug,
    ).report  # fmt: skip


def verified_check(
    target: nn.Module | Callable[[], nn.Module] | FileTarget | Sequence[FileTarget],
    inputs: Any = None,
    *,
    targets: Any = None,
    loss: Callable[..., Any] | None = None,
    optimizer: Optimizer | Callable[[nn.Module], Optimizer] | None = None,
    train_loader: Any = None,
    val_loader: Any = None,
    select: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    extend_select: Sequence[str] = (),
    stages: Sequence[str] = STAGES,
    config: Config | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    scan: bool = False,
    verify: bool | None = None,
    graphs: bool = False,
    progress: Progress | None = None,
    advance: Callable[[float, str], None] | None = None,
    debug: bool = False,
) -> Verified:
    """As `check`, with what fixes make of a target together, where they were tried."""
    config = config or Config()
    if verify and "probe" not in stages:
        raise UsageError("fixes are verified by training, which these stages leave out")
    verify = (config.verify and "probe" in stages) if verify is None else verify
    if callable(target) or hasattr(target, "named_parameters"):
        rules, options = _selected(config, select, ignore, extend_select, options)
        setup = Setup(loss, optimizer, train_loader, val_loader)
        recipe = Recipe(loss=loss, targets=targets, explicit=True, setup=setup)
        settings = Settings(
            rules, options, stages, config.probe_steps, config.probe_seconds, graphs
        )
        model = instance_of(target)
        given = _given_inputs(model, inputs)
        collected = _check_live(model, given, settings, recipe, progress)
        report = _report(collected, rules, [])
        if not verify:
            return Verified(report)
        from trainlint.verification.live import verified_live

        known = [finding for finding, _ in collected.findings]
        return verified_live(report, known, model, given, recipe, settings, config, advance)
    if any(part is not None for part in (loss, targets, optimizer, train_loader, val_loader)):
        raise UsageError(
            "loss, targets, optimizer and loaders belong to a live model; a file shows its own"
        )
    files = file_check(
        target, inputs, select=select, ignore=ignore, extend_select=extend_select, stages=stages,
        config=config, options=options, scan=scan, graphs=graphs, debug=debug,
    )  # fmt: skip
    if not verify:
        return Verified(files.report(progress))
    return files.verified(progress, advance)


def _selected(
    config: Config,
    select: Sequence[str] | None,
    ignore: Sequence[str],
    extend_select: Sequence[str],
    options: Mapping[str, Mapping[str, Any]] | None,
) -> tuple[tuple[Rule, ...], dict[str, Mapping[str, Any]]]:
    """The rules that were asked for, and their options. Raises `UsageError` for one that is not there."""
    merged = {**config.rules, **(options or {})}
    check_options(merged)
    rules = select_rules(
        config.select if select is None else select,
        [*config.ignore, *ignore],
        [*config.extend_select, *extend_select],
    )
    return rules, merged


@dataclass(frozen=True)
class FileCheck:
    """A check of files, ready to be made, and to be made again of edited texts."""

    targets: Sequence[str]
    jobs: Sequence[Job]
    rules: Sequence[Rule]
    config: Config
    _known: dict[bytes, _Collected] = field(default_factory=dict, repr=False)
    _standing: dict[bytes, _Collected] = field(default_factory=dict, repr=False)

    def after(self, earlier: FileCheck, is_concerned: Callable[[str], bool]) -> FileCheck:
        """The same, with the answers of an earlier check for the files that no change since concerns.

        What could not be checked is checked anew: its reason may lie outside of the files.
        """
        standing = {
            key: known
            for job in self.jobs
            if job.path and not is_concerned(job.path)
            if (known := earlier._known.get(key := encode(job))) is not None
            and all(result.status != "error" for result in known.results)
        }
        return replace(self, _known={}, _standing=standing)

    def report(
        self,
        progress: Progress | None = None,
        overlay: Mapping[str, str] | None = None,
        *,
        verify: bool = False,
        advance: Callable[[float, str], None] | None = None,
    ) -> Report:
        """Check in fresh processes. `overlay` holds texts, by file name, that stand in for the files.

        Files that none of these texts concerns are not checked once more, where they were without them.
        With `verify` the fixes of what is found are tried, and `advance` told of how much of that is done.
        """
        if verify:
            return self.verified(progress, advance, overlay).report
        return self._made(progress, overlay)[0]

    def verified(
        self,
        progress: Progress | None = None,
        advance: Callable[[float, str], None] | None = None,
        overlay: Mapping[str, str] | None = None,
    ) -> Verified:
        """The report with what came of trying its fixes, and which of them help together."""
        from trainlint.verification.changes import Version
        from trainlint.verification.files import made_in_children
        from trainlint.verification.verifying import Verification, budget_of

        report, known = self._made(progress, overlay)

        def make(
            trials: Sequence[Trial], budget: Budget, progress: Advance | None
        ) -> list[Outcome]:
            return made_in_children(trials, self.jobs, budget, progress)

        def reported(outcome: Outcome, version: Version) -> Sequence[ReportedFinding]:
            if outcome.findings is None or outcome.result is None:
                return []
            with overlaid(version.texts):
                found = [(finding, 0.0) for finding in outcome.findings]
                return report_on(found, [outcome.result], []).findings

        start = Version(_by_real_name(overlay))
        verification = Verification(make, budget_of(self.config), reported, start)
        return verification.of(report, known, advance)

    def _made(
        self, progress: Progress | None, overlay: Mapping[str, str] | None
    ) -> tuple[Report, list[ReportedFinding]]:
        """The report, and all findings, also those that comments silence."""
        texts = _by_real_name(overlay)
        jobs = [_with_overlay(job, texts) for job in self.jobs]
        if not texts:
            self._known.clear()
            self._known.update(self._standing)
        collected, files = _check_files(jobs, self.config, progress, self._known)
        collected.results += _directories_without_models(self.targets, jobs)
        with overlaid(overlay or {}):
            report = _report(collected, self.rules, files)
        return report, [finding for finding, _ in collected.findings]


def _by_real_name(overlay: Mapping[str, str] | None) -> dict[str, str]:
    return {os.path.realpath(name): text for name, text in (overlay or {}).items()}


def _with_overlay(job: Job, texts: Mapping[str, str]) -> Job:
    """With those of the texts that may concern it."""
    files = imported_files(job.path) if texts and job.path else None
    own = {name: text for name, text in texts.items() if files is None or name in files}
    return msgspec.structs.replace(job, overlay=own)


def recheck(
    target: FileTarget | Sequence[FileTarget], overlay: Mapping[str, str], **settings: Any
) -> Report:
    """Check files as if they held the texts of `overlay`, by file name. `settings` as of `check`."""
    return file_check(target, **settings).report(overlay=overlay)


def file_check(
    target: FileTarget | Sequence[FileTarget],
    inputs: Any = None,
    *,
    select: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    extend_select: Sequence[str] = (),
    stages: Sequence[str] = STAGES,
    config: Config | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    scan: bool = False,
    graphs: bool = False,
    debug: bool = False,
) -> FileCheck:
    """What `check` does with files, as a value. Raises `UsageError` as it does."""
    config = config or Config()
    rules, options = _selected(config, select, ignore, extend_select, options)
    targets = _names(target)
    common = Job(
        path="",
        label="",
        inputs=_input_text(inputs, config),
        rules=[rule.code for rule in rules],
        stages=list(stages),
        options={name: dict(values) for name, values in options.items()},
        timeout=config.timeout,
        memory_limit=config.memory_limit << 20 or int(_memory() * _SHARE_OF_MEMORY),
        probe_steps=config.probe_steps,
        probe_seconds=config.probe_seconds,
        graphs=graphs,
        debug=debug,
    )
    jobs = _without_doubles(
        msgspec.structs.replace(common, **place)
        for name in targets
        for place in _places(name, scan=scan)
    )
    return FileCheck(targets, jobs, rules, config)


# ---------------------------------------------------------------------- live models


def _check_live(
    model: nn.Module,
    inputs: Inputs | None,
    settings: Settings,
    recipe: Recipe,
    progress: Progress | None,
) -> _Collected:
    from trainlint.preserve import preserved
    from trainlint.subject import analyze

    with preserved(model):
        analysis = analyze(
            model,
            inputs,
            target=type(model).__name__,
            settings=settings,
            recipe=recipe,
            progress=progress,
        )
    findings = [(finding.reported, finding.starved) for finding in analysis.findings]
    return _Collected(findings, [analysis.result])


def _given_inputs(model: nn.Module, inputs: Any) -> Inputs | None:
    """Inputs that were given for a live model, as text or as they are. Raises `InputError`."""
    from trainlint.capture.inputs import from_text, from_value
    from trainlint.preserve import preserved

    if inputs is None:
        return None
    with preserved(model):
        if isinstance(inputs, str):
            return from_text(inputs, model)
        return from_value(inputs, model, "given")


def instance_of(target: Any) -> nn.Module:
    """The model, or what a class or factory makes, out of its wrappers. Raises `UsageError`."""
    from torch import nn

    from trainlint.sites import recording
    from trainlint.targets.loading import unwrapped

    model: nn.Module
    if isinstance(target, nn.Module):
        model = unwrapped(target)
        return model
    if not callable(target):
        raise UsageError(f"{type(target).__name__} is no model, nor does it make one")
    with recording():
        made = target()
    if not isinstance(made, nn.Module):
        raise UsageError(f"{target!r} makes no torch.nn.Module but {type(made).__name__}")
    model = unwrapped(made)
    return model


# ---------------------------------------------------------------------- files


def _input_text(inputs: Any, config: Config) -> str | None:
    """Inputs for files, which cross to a child process as text. Raises `UsageError`."""
    if inputs is None:
        return config.inputs
    if not isinstance(inputs, str):
        raise UsageError("inputs for files must be a text such as '2x3x32x32,2:long'")
    parse_spec(inputs)
    return inputs


def job_of(target: FileTarget, config: Config, *, debug: bool = False) -> Job:
    """The job for one file, `file.py::Net` or `package.module:name`. Raises `UsageError` for others."""
    [name] = _names(target)
    places = list(_places(name))
    if len(places) != 1 or places[0].get("scanned"):
        raise UsageError(f"{name} is a directory; name a file of it")
    return Job(
        **{"path": "", **places[0]},
        timeout=config.timeout,
        memory_limit=config.memory_limit << 20 or int(_memory() * _SHARE_OF_MEMORY),
        debug=debug,
    )


def _names(target: Any) -> list[str]:
    """The names of files and the like. Raises `UsageError` for anything else."""
    is_one = isinstance(target, (str, os.PathLike)) or not isinstance(target, Iterable)
    names = [target] if is_one else list(target)
    for name in names:
        if not isinstance(name, (str, os.PathLike)):
            raise UsageError(
                f"cannot check {type(name).__name__} {name!r:.60}: give a model, its class, a function "
                "that makes one, or names of files"
            )
    return [str(os.fspath(name)) for name in names]


def _places(target: str, *, scan: bool = False) -> Iterator[dict[str, Any]]:
    """The fields of `Job` that say what one target means. Raises `UsageError`.

    With `scan`, a file is as one that was met in a directory.
    """
    name, separator, attribute = target.partition("::")
    if not name.strip():
        raise UsageError(f"no file is named by {target!r}")
    path = Path(name)
    if path.is_dir():
        if separator:
            raise UsageError(f"{target}: {name} is a directory; name a file of it")
        for file in python_files(path):
            if holds_models(file):
                yield {"path": str(file.resolve()), "label": file.as_posix(), "scanned": True}
    elif path.is_file() and scan and not separator:
        if is_scanned(path):
            yield {"path": str(path.resolve()), "label": path.as_posix(), "scanned": True}
    elif path.is_file():
        if separator and not attribute:
            raise UsageError(f"{target}: nothing follows the ::")
        yield {"path": str(path.resolve()), "label": path.as_posix(), "name": attribute or None}
    elif not separator and ":" in target and not target.endswith(".py"):
        module, _, attribute = target.partition(":")
        if not attribute or not all(part.isidentifier() for part in module.split(".")):
            raise UsageError(f"{target}: not of the form package.module:attribute")
        yield {"label": target, "name": attribute, "dotted": module}
    else:
        raise UsageError(f"{name or target}: no such file or directory")


def _without_doubles(jobs: Iterable[Job]) -> list[Job]:
    """A file that is named twice, or also met in a directory, is checked once."""
    kept: dict[tuple[str, ...], Job] = {}
    for job in jobs:
        place = (job.path, job.name or "", job.label if job.dotted else "")
        if place not in kept or not job.scanned:
            kept[place] = job
    return list(kept.values())


def _directories_without_models(
    targets: Sequence[str], jobs: Sequence[Job]
) -> Iterator[TargetResult]:
    for target in targets:
        folder = Path(target).resolve() if Path(target).is_dir() else None
        if folder is not None and not any(Path(job.path).is_relative_to(folder) for job in jobs):
            yield TargetResult(
                target, "skipped", "no model found in this directory (tests are not searched)"
            )


def _memory() -> int:
    """The memory that we may use in bytes, or 0 where it cannot be told."""
    limits = []
    with contextlib.suppress(AttributeError, ValueError, OSError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(ValueError, OSError):  # a container's; "max" where it has none
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits, default=0)


def _check_files(
    jobs: Sequence[Job],
    config: Config,
    progress: Progress | None,
    known: dict[bytes, _Collected],
) -> tuple[_Collected, list[str]]:
    """What the jobs find, each in a process of its own; `known` are answers of earlier ones."""
    from trainlint.processes.supervisor import run_jobs

    workers = config.jobs or min(len(jobs), usable_processors())
    keys = [encode(job) for job in jobs]
    by_job = {number: known.get(key, _Collected()) for number, key in enumerate(keys)}
    pending = {number: job for number, job in enumerate(jobs) if keys[number] not in known}
    while pending:
        numbers = list(pending)
        again: dict[int, Job] = {}
        for place, message in run_jobs([pending[number] for number in numbers], max(1, workers)):
            number = numbers[place]
            job = pending[number]
            repeated = _receive(by_job[number], job, message, progress)
            if repeated is not None:
                again[number] = repeated
        pending = again
    known.update({key: by_job[number] for number, key in enumerate(keys)})
    collected = _Collected()
    for number in range(len(jobs)):
        before = {result.target for result in collected.results}  # `net.py net.py::Net`
        own = by_job[number]
        collected.findings += [pair for pair in own.findings if pair[0].target not in before]
        collected.results += [result for result in own.results if result.target not in before]
    return collected, [job.path for job in jobs if job.path]


def _receive(
    collected: _Collected, job: Job, message: Message, progress: Progress | None
) -> Job | None:
    """Take in a message; return a job for the other models of a file whose child died on one."""
    if isinstance(message, Begin) and progress is not None:
        progress(message.target)
    elif isinstance(message, Told) and progress is not None:
        progress(message.text)
    elif isinstance(message, Analyzed) and message.provisional:
        collected.provisional[message.result.target] = message
    elif isinstance(message, Analyzed):
        known = {result.target for result in collected.results}
        if message.result.target not in known:
            collected.results.append(message.result)
            collected.findings += zip(message.findings, message.starved, strict=True)
    elif isinstance(message, Died):
        finished = [result.target for result in collected.results]
        # What dies after its own result, in a thread or at exit, is the file's doing.
        target = job.target if message.target in finished else message.target
        result = TargetResult(target, "error", message.reason, output=message.output)
        before = collected.provisional.get(target)
        if before is not None:
            # It died of being run; what its graph showed stands.
            collected.findings += zip(before.findings, before.starved, strict=True)
            result = msgspec.structs.replace(
                before.result,
                status="error",
                reason=f"{message.reason}, {_doing(before.result)}",
                output=message.output,
            )
        collected.results.append(result)
        if target != job.target and job.name is None:
            return msgspec.structs.replace(job, skip=[*finished, target])
    return None


def _doing(result: TargetResult) -> str:
    """What was next, by what had been done."""
    if "signal" in result.stages:
        return "in the probe's training; --probe-steps 0 avoids it"
    return "in a real forward and backward pass; --static avoids it"


# ---------------------------------------------------------------------- the report


def _report(collected: _Collected, rules: Sequence[Rule], files: Sequence[str]) -> Report:
    """Apply suppression comments, drop doubles, and rank across targets."""
    suppressions = Suppressions()
    by_code = {rule.code: rule for rule in all_rules()}
    paths = [*files, *(finding.filename for finding, _ in collected.findings if finding.filename)]
    for path in dict.fromkeys(paths):
        text = SourceText.read(path)
        if text is not None:
            suppressions.read(path, text.text)
    kept: list[tuple[ReportedFinding, float]] = []
    seen: dict[tuple[Any, ...], str] = {}
    for finding, starved in collected.findings:
        if _is_suppressed(finding, by_code, suppressions):
            continue
        place = (finding.code, finding.filename, finding.location, finding.end_location)
        if (
            finding.location is not None
            and seen.setdefault(place, finding.target) != finding.target
        ):
            continue  # the same place, seen through another model
        symptoms = [
            symptom
            for symptom in finding.symptoms
            if not _is_suppressed(symptom, by_code, suppressions)
        ]
        kept.append((msgspec.structs.replace(finding, symptoms=symptoms), starved))
    kept += _on_suppressions(collected, rules, suppressions)
    kept.sort(key=lambda item: _rank(*item))
    return Report(
        fingerprinted([_relative(finding) for finding, _ in kept]),
        [_readable(result) for result in collected.results],
    )


def report_on(
    findings: Sequence[tuple[ReportedFinding, float]],
    results: Sequence[TargetResult],
    rules: Sequence[Rule],
) -> Report:
    """A report of findings that were made elsewhere: suppressed, ranked, without doubles."""
    return _report(_Collected(list(findings), list(results)), rules, [])


def _is_suppressed(
    finding: ReportedFinding, by_code: Mapping[str, Rule], suppressions: Suppressions
) -> bool:
    if finding.filename is None or finding.location is None:
        return False
    last = finding.end_location.row if finding.end_location else finding.location.row
    rows = range(finding.location.row, last + 1)
    if suppressions.silences(finding.filename, rows, names_of(by_code[finding.code])):
        return True
    is_advice = finding.severity == "info"
    suppressions.meet(finding.filename, rows, finding.code, is_advice=is_advice)
    return False


def _on_suppressions(
    collected: _Collected, rules: Sequence[Rule], suppressions: Suppressions
) -> list[tuple[ReportedFinding, float]]:
    """The rules about the suppression comments themselves, once all other findings are known."""
    ran = all(result.status == "ok" for result in collected.results)
    could_fire = (
        frozenset(name for rule in rules for name in names_of(rule)) if ran else frozenset()
    )
    known = frozenset(name for rule in all_rules() for name in names_of(rule))
    suppressions.judge(could_fire, known)
    outcome = run_rules(rules, Facts({"Suppressions": suppressions}), target="")
    by_code = {rule.code: rule for rule in rules}
    found = []
    for raw in outcome.findings:
        label = _display(raw.reported.filename or "")
        reported = msgspec.structs.replace(raw.reported, target=label)
        if not _is_suppressed(reported, by_code, suppressions):
            found.append((reported, 0.0))
    return found


def _rank(finding: ReportedFinding, starved: float) -> tuple[Any, ...]:
    return (
        Severity(finding.severity).rank,
        Confidence(finding.confidence).rank,
        -round(starved, 3),
        finding.filename or "",
        (finding.location.row, finding.location.column) if finding.location else (0, 0),
    )


def _readable(result: TargetResult) -> TargetResult:
    """Its file names as the user would type them here."""
    here = f"{Path.cwd()}{os.sep}"
    return msgspec.structs.replace(
        result,
        reason=None if result.reason is None else result.reason.replace(here, ""),
        notes=[note.replace(here, "") for note in result.notes],
    )


def _relative(finding: ReportedFinding) -> ReportedFinding:
    """File names as the user would type them here, also inside fixes and symptoms."""
    return msgspec.structs.replace(
        finding,
        message=finding.message.replace(f"{Path.cwd()}{os.sep}", ""),
        filename=None if finding.filename is None else _display(finding.filename),
        symptoms=[_relative(symptom) for symptom in finding.symptoms],
        fixes=[
            msgspec.structs.replace(
                fix,
                edits=[
                    msgspec.structs.replace(edit, filename=_display(edit.filename))
                    for edit in fix.edits
                ],
            )
            for fix in finding.fixes
        ],
    )


def _display(filename: str) -> str:
    try:
        return Path(filename).relative_to(Path.cwd()).as_posix()
    except ValueError:
        return filename
