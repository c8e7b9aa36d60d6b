"""A check of files: which jobs it is, each made in a process of its own, and made again of edited texts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from trainlint.choices import words
from trainlint.config import Config
from trainlint.errors import LoadError, UsageError
from trainlint.measure.memory import usable_processors
from trainlint.overlay import overlaid
from trainlint.patterns import excludes
from trainlint.processes.jobs import Analyzed, Begin, Died, Job, Message, Told, encode
from trainlint.ranking import Found, report_on
from trainlint.records import Report, ReportedFinding, TargetResult
from trainlint.registry import check_options, ignored_in, select_rules
from trainlint.rule import STAGES, Rule
from trainlint.targets.discovery import holds_models, is_scanned, python_files
from trainlint.targets.imports import imported_files, module_file
from trainlint.targets.specs import parse_spec
from trainlint.verification.verifying import Verified

if TYPE_CHECKING:
    from trainlint.verification.changes import Budget, Outcome, Trial, Version
    from trainlint.verification.changes import Progress as Advance

Progress = Callable[[str], None]
FileTarget = str | os.PathLike[str]
_SHARE_OF_MEMORY: Final = 0.8


@dataclass(frozen=True, kw_only=True)
class Options:
    """What of `check`'s options holds for files and live models alike; it says what each means."""

    select: Sequence[str] | None = None
    ignore: Sequence[str] = ()
    extend_select: Sequence[str] = ()
    stages: Sequence[str] = STAGES
    config: Config = field(default_factory=Config)
    options: Mapping[str, Mapping[str, Any]] | None = None
    scan: bool = False
    graphs: bool = False
    debug: bool = False

    def selected(self) -> tuple[tuple[Rule, ...], dict[str, Mapping[str, Any]]]:
        """The rules that were asked for, and their options. Raises `UsageError` for others."""
        merged = {**self.config.rules, **(self.options or {})}
        check_options(merged)
        ignored_in(self.config.per_file_ignores)
        rules = select_rules(
            self.config.select if self.select is None else self.select,
            [*self.config.ignore, *words(self.ignore)],
            [*self.config.extend_select, *words(self.extend_select)],
        )
        return rules, merged


@dataclass
class _Collected:
    """What the children sent, target by target, in the order of the jobs.

    `of_file` are notes on the file of a target, which those on its other models repeat.
    """

    findings: list[Found] = field(default_factory=list)
    results: list[TargetResult] = field(default_factory=list)
    provisional: dict[str, Analyzed] = field(default_factory=dict)
    parts: set[str] = field(default_factory=set)
    of_file: dict[str, list[str]] = field(default_factory=dict)


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
            ignored = ignored_in(self.config.per_file_ignores)
            report = report_on(collected.findings, collected.results, self.rules, files, ignored)
        return report, [finding for finding, _ in collected.findings]


def _by_real_name(overlay: Mapping[str, str] | None) -> dict[str, str]:
    return {os.path.realpath(name): text for name, text in (overlay or {}).items()}


def _with_overlay(job: Job, texts: Mapping[str, str]) -> Job:
    """With those of the texts that may concern it."""
    files = imported_files(job.path) if texts and job.path else None
    own = {name: text for name, text in texts.items() if files is None or name in files}
    return msgspec.structs.replace(job, overlay=own)


def file_check(
    target: FileTarget | Sequence[FileTarget], inputs: Any = None, asked: Options | None = None
) -> FileCheck:
    """What `check` does with files, as a value. Raises `UsageError` as it does.

    So it does where no target holds a model, unless they are scanned: a check of nothing proves nothing.
    """
    asked = asked or Options()
    config = asked.config
    rules, options = asked.selected()
    targets = _names(target)
    common = Job(
        path="",
        label="",
        inputs=_input_text(inputs, config),
        rules=[rule.code for rule in rules],
        stages=list(asked.stages),
        options={name: dict(values) for name, values in options.items()},
        timeout=config.timeout,
        memory_limit=config.memory_limit << 20 or int(_memory() * _SHARE_OF_MEMORY),
        probe_steps=config.probe_steps,
        probe_seconds=config.probe_seconds,
        graphs=asked.graphs,
        debug=asked.debug,
    )
    jobs = _without_doubles(
        msgspec.structs.replace(common, **place)
        for name in targets
        for place in _places(name, scan=asked.scan, exclude=config.exclude)
    )
    if targets and not jobs and not asked.scan:
        raise UsageError(f"no model found in: {', '.join(targets)}")
    return FileCheck(targets, jobs, rules, config)


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


def _places(
    target: str, *, scan: bool = False, exclude: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """The fields of `Job` that say what one target means. Raises `UsageError`.

    With `scan`, a file is as one that was met in a directory. These are not what `exclude` matches.
    """
    name, separator, attribute = target.partition("::")
    if not name.strip():
        raise UsageError(f"no file is named by {target!r}")
    path = Path(name)
    if path.is_dir():
        if separator:
            raise UsageError(f"{target}: {name} is a directory; name a file of it")
        for file in python_files(path):
            if not excludes(file, exclude, within=path) and holds_models(file):
                yield {"path": str(file.resolve()), "label": file.as_posix(), "scanned": True}
    elif path.is_file() and scan and not separator:
        if not excludes(path, exclude) and is_scanned(path):
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
        raise UsageError(f"{name or target}: no such file or directory{_as_module(target)}")


def _as_module(target: str) -> str:
    """A hint for what is no file, but the name of a module or of something in one."""
    module, attribute = target, "NAME"
    while all(part.isidentifier() for part in module.split(".")):
        with contextlib.suppress(LoadError):
            file = _shown(module_file(module))
            return f"; a model of that module is {module}:{attribute}, all of them are {file}"
        module, separator, last = module.rpartition(".")
        if not separator:
            break
        attribute = last if attribute == "NAME" else f"{last}.{attribute}"
    return ""


def _shown(path: Path) -> str:
    """As the user would type it here."""
    return path.relative_to(Path.cwd()).as_posix() if path.is_relative_to(Path.cwd()) else str(path)


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
    parts = frozenset(part for own in by_job.values() for part in own.parts)
    said: dict[str, set[str]] = {}
    for number, job in enumerate(jobs):
        before = {result.target for result in collected.results}  # `net.py net.py::Net`
        own = by_job[number]
        collected.findings += [pair for pair in own.findings if pair[0].target not in before]
        results = [result for result in own.results if result.target not in before]
        results = [
            _as_asked(result, job, parts, fails=config.fail_on_skipped) for result in results
        ]
        known_notes = said.setdefault(job.path or job.dotted or "", set())
        collected.results += _with_notes_on_file(results, own.of_file, known_notes)
    return collected, [job.path for job in jobs if job.path]


def _as_asked(
    result: TargetResult, job: Job, parts: Collection[str], *, fails: bool
) -> TargetResult:
    """A model that was skipped as an error, if that `fails`; but not one that was checked in another."""
    _, is_model, name = result.target.partition("::")
    if result.status != "skipped" or not is_model:
        return result
    if f"{job.path}::{name}" in parts:
        return msgspec.structs.replace(result, reason="checked as a part of another model")
    if not fails:
        return result
    return msgspec.structs.replace(
        result, status="error", reason=f"{result.reason} (not skipped: fail-on-skipped)"
    )


def _with_notes_on_file(
    results: Sequence[TargetResult], of_file: Mapping[str, Sequence[str]], said: set[str]
) -> list[TargetResult]:
    """The results, the first that was checked with the notes on its file that were not said yet."""
    told = [note for notes in of_file.values() for note in notes]
    notes = [note for note in dict.fromkeys(told) if note not in said]
    order = sorted(
        results, key=lambda result: (result.status != "ok", result.target not in of_file)
    )
    if not notes or not results:
        return list(results)
    said.update(notes)
    return [
        msgspec.structs.replace(result, notes=[*notes, *result.notes])
        if result is order[0]
        else result
        for result in results
    ]


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
            collected.of_file[message.result.target] = message.of_file
            collected.parts |= set(message.parts)
    elif isinstance(message, Died):
        finished = [result.target for result in collected.results]
        # What dies after its own result, in a thread or at exit, is the file's doing.
        target = job.target if message.target in finished else message.target
        result = TargetResult(target, "error", message.reason, output=message.output)
        before = collected.provisional.get(target)
        if before is not None:
            # It died of being run; what its graph showed stands.
            collected.of_file[target] = before.of_file
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
