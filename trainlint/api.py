"""`trainlint.check`: the whole line from targets to a ranked report, for files and for live models."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from trainlint.config import Config
from trainlint.discovery import discover, python_files
from trainlint.engine import run_rules
from trainlint.errors import UsageError
from trainlint.fixes.source import SourceText
from trainlint.jobs import Analyzed, Begin, Died, Job, Message
from trainlint.records import Report, ReportedFinding, TargetResult
from trainlint.registry import all_rules, check_options, names_of, select_rules
from trainlint.rule import Confidence, Rule, Severity
from trainlint.specs import parse_spec
from trainlint.suppression import Suppressions

if TYPE_CHECKING:
    from torch import nn

Progress = Callable[[str], None]
_SHARE_OF_MEMORY: Final = 0.8


@dataclass
class _Collected:
    """What the children sent, target by target, in the order of the jobs."""

    findings: list[tuple[ReportedFinding, float]] = field(default_factory=list)
    results: list[TargetResult] = field(default_factory=list)


def check(
    target: nn.Module | str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    inputs: Any = None,
    *,
    select: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    extend_select: Sequence[str] = (),
    config: Config | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    progress: Progress | None = None,
    debug: bool = False,
) -> Report:
    """Check a live model, or files, directories and `package.module:attribute` targets.

    `inputs` are a tensor, a tuple of arguments, a dict of keyword arguments or a callable that returns
    one of these; for files a text such as `2x3x32x32,2:long`. Without them they are synthesised. A live
    model is checked in this process and is as before afterwards; files run in child processes.

    Raises `UsageError` for a target that does not exist or an unknown rule.
    """
    config = config or Config()
    options = {**config.rules, **(options or {})}
    check_options(options)
    rules = select_rules(
        config.select if select is None else select,
        [*config.ignore, *ignore],
        [*config.extend_select, *extend_select],
    )
    if hasattr(target, "named_parameters"):
        collected = _check_live(target, inputs, rules, options)
        return _report(collected, rules, [])
    names = [target] if isinstance(target, (str, os.PathLike)) else list(target)  # type: ignore[list-item]
    jobs = list(_jobs([os.fspath(name) for name in names], config, rules, options, inputs, debug))
    collected, files = _check_files(jobs, config, progress)
    return _report(collected, rules, files)


# ---------------------------------------------------------------------- live models


def _check_live(model: Any, inputs: Any, rules: Sequence[Rule], options: Any) -> _Collected:
    from trainlint.inputs import from_text, from_value
    from trainlint.preserve import preserved
    from trainlint.subject import Settings, analyze

    with preserved(model):
        given = None
        if isinstance(inputs, str):
            given = from_text(inputs, model)
        elif inputs is not None:
            given = from_value(inputs, model, "given")
        analysis = analyze(
            model, given, target=type(model).__name__, settings=Settings(rules, options)
        )
    findings = [(finding.reported, finding.starved) for finding in analysis.findings]
    return _Collected(findings, [analysis.result])


# ---------------------------------------------------------------------- files


def _jobs(
    targets: Sequence[str],
    config: Config,
    rules: Sequence[Rule],
    options: Mapping[str, Mapping[str, Any]],
    inputs: Any,
    debug: bool,
) -> Iterator[Job]:
    if inputs is not None and not isinstance(inputs, str):
        raise UsageError("inputs for files must be a text such as '2x3x32x32,2:long'")
    if inputs is not None:
        parse_spec(inputs)
    common = {
        "inputs": inputs if inputs is not None else config.inputs,
        "rules": [rule.code for rule in rules],
        "options": {name: dict(values) for name, values in options.items()},
        "timeout": config.timeout,
        "memory_limit": config.memory_limit << 20 or int(_memory() * _SHARE_OF_MEMORY),
        "debug": debug,
    }
    for target in targets:
        name, separator, attribute = target.partition("::")
        path = Path(name)
        if path.is_dir():
            if separator:
                raise UsageError(f"{target}: a directory has no {attribute}")
            for file in python_files(path):
                if _holds_models(file):
                    yield Job(str(file.resolve()), _label(file), **common)
        elif path.is_file():
            if separator and not attribute:
                raise UsageError(f"{target}: nothing follows the ::")
            yield Job(str(path.resolve()), _label(path), attribute or None, **common)
        elif not separator and ":" in target and not target.endswith(".py"):
            module, _, attribute = target.partition(":")
            if not attribute or not all(part.isidentifier() for part in module.split(".")):
                raise UsageError(f"{target}: not of the form package.module:attribute")
            yield Job("", target, attribute, module, **common)
        else:
            raise UsageError(f"{name}: no such file or directory")


def _label(path: Path) -> str:
    return path.as_posix()


def _holds_models(path: Path) -> bool:
    """Whether the syntax alone shows a model; a file that does not parse is looked at, and reported."""
    text = SourceText.read(str(path))
    if text is None or text.tree is None:
        return True
    return any(candidate.likely for candidate in discover(text).candidates)


def _memory() -> int:
    """The machine's memory in bytes, or 0 where it cannot be told."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def _check_files(
    jobs: Sequence[Job], config: Config, progress: Progress | None
) -> tuple[_Collected, list[str]]:
    from trainlint.supervisor import run_jobs

    workers = config.jobs or min(len(jobs), os.cpu_count() or 1)
    by_job: dict[int, _Collected] = {number: _Collected() for number in range(len(jobs))}
    pending = dict(enumerate(jobs))
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
    collected = _Collected()
    for number in range(len(jobs)):
        collected.findings += by_job[number].findings
        collected.results += by_job[number].results
    return collected, [job.path for job in jobs if job.path]


def _receive(
    collected: _Collected, job: Job, message: Message, progress: Progress | None
) -> Job | None:
    """Take in a message; return a job for the other models of a file whose child died on one."""
    if isinstance(message, Begin) and progress is not None:
        progress(message.target)
    elif isinstance(message, Analyzed):
        known = {result.target for result in collected.results}
        if message.result.target not in known:
            collected.results.append(message.result)
            collected.findings += zip(message.findings, message.starved, strict=True)
    elif isinstance(message, Died):
        result = TargetResult(message.target, "error", message.reason, output=message.output)
        collected.results.append(result)
        if message.target != job.label and job.name is None:
            finished = [result.target for result in collected.results]
            return msgspec.structs.replace(job, skip=finished)
    return None


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
    seen: set[tuple[Any, ...]] = set()
    for finding, starved in collected.findings:
        if _is_suppressed(finding, by_code, suppressions):
            continue
        place = (finding.code, finding.filename, finding.location, finding.message)
        if finding.location is not None and place in seen:
            continue  # the same line, seen through two models of the file
        seen.add(place)
        kept.append((finding, starved))
    kept += _on_suppressions(collected, rules, suppressions)
    kept.sort(key=lambda item: _rank(*item))
    return Report([_relative(finding) for finding, _ in kept], collected.results)


def _is_suppressed(
    finding: ReportedFinding, by_code: Mapping[str, Rule], suppressions: Suppressions
) -> bool:
    if finding.filename is None or finding.location is None:
        return False
    last = finding.end_location.row if finding.end_location else finding.location.row
    rows = range(finding.location.row, last + 1)
    return suppressions.silences(finding.filename, rows, names_of(by_code[finding.code]))


def _on_suppressions(
    collected: _Collected, rules: Sequence[Rule], suppressions: Suppressions
) -> list[tuple[ReportedFinding, float]]:
    """The rules about the suppression comments themselves, once all other findings are known."""
    ran = all(result.status == "ok" for result in collected.results)
    could_fire = frozenset(name for rule in rules for name in names_of(rule)) if ran else frozenset()
    known = frozenset(name for rule in all_rules() for name in names_of(rule))
    suppressions.judge(could_fire, known)
    outcome = run_rules(rules, {"Suppressions": suppressions}, target="")
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


def _relative(finding: ReportedFinding) -> ReportedFinding:
    """File names as the user would type them here, also inside fixes and symptoms."""
    return msgspec.structs.replace(
        finding,
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
