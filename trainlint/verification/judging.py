"""What the measurements of a changed model prove, beside those of the unchanged one. Imports no torch.

A fix is verified if its finding was gone when the changed model was checked again, no other had come, and
the loss was lower in each of at least two pairs of trainings, by more than a tenth of a constant answer's.
A lower loss alone proves nothing: many changes lower the loss of any model a little.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from trainlint.fixes.edit import Attempt, Edit, Location
from trainlint.records import Figure, ReportedFinding, TargetResult
from trainlint.registry import all_rules
from trainlint.verification.changes import NO_TRAINING, Loss, Outcome, Training, at_end

# In units of a constant answer's loss: a wrong fix lowers it by less in 92 of 100 models.
LEAST_GAIN: Final = 0.1
LEAST_SEEDS: Final = 2
# What a model has to learn at all for a loss to count as lower.
_LEAST_LEARNT: Final = 0.02
# Two constant answers' losses that differ by no more are of the same loss and targets.
_SAME_UNIT: Final = 0.02
_SEVERE: Final = ("error", "warning")
# By how much more it may be, in the same units, where only findings are to be cleared.
_COST: Final = 0.02
# Their findings are about samples that the training does not see.
_ABOUT_VALIDATION: Final = ("generalization", "regularization")
UNKNOWN_UNIT: Final = "the loss of a constant answer is not known"
STAYS: Final = "the finding stays"
STILL_STOPPED: Final = "the model does not run yet for another fault"
# The stage in which a model is first run on numbers.
_RUN: Final = "signal"
NOT_LOWER: Final = f"the loss is not lower by more than {LEAST_GAIN:g} of a constant answer's"


@dataclass(frozen=True)
class Checked:
    """The findings of a model before it was changed, suppressed ones among them."""

    findings: Sequence[ReportedFinding]
    result: TargetResult | None


@dataclass(frozen=True)
class Verdict:
    """What came of a change that is to remedy a finding; verified if the `attempt` has no reason.

    `clears` tells that the finding is gone and no other as grave has come, `trains` that the loss falls,
    `costs` that it falls less than it did. Where there is no training both are as for one that goes well.
    """

    attempt: Attempt
    clears: bool
    trains: bool
    costs: bool


def judged(
    finding: ReportedFinding,
    before: Checked,
    control: Outcome,
    outcome: Outcome,
    edits: Sequence[Edit] = (),
) -> Verdict:
    """What a change proves. `control` is the outcome of the version that `edits` changed, with no other."""
    cleared = _is_cleared(finding, before, outcome, edits)
    pairs = _pairs(control, outcome, about_validation=is_about_validation(finding))
    attempt = _measured(pairs, control, outcome, cleared)
    learns_more = attempt.gain is not None and attempt.gain > LEAST_GAIN
    objections = [
        _objection(before, outcome, edits, grave, cleared=bool(cleared), learns_more=learns_more)
        for grave in (_SEVERE, _as_grave_as(finding))
    ]
    of_findings = objections[0]
    hindrance = "" if of_findings else _hindrance(before, control, outcome)
    reason = of_findings or hindrance or _doubt(outcome, attempt, pairs)
    is_without = pairs.problem.startswith(NO_TRAINING) or pairs.problem == UNKNOWN_UNIT
    is_untold = bool(hindrance) or is_without
    gain = attempt.gain
    return Verdict(
        msgspec.structs.replace(attempt, reason=reason),
        clears=not objections[1],
        trains=is_untold or (gain is not None and pairs.learns),
        costs=not is_untold
        and (gain is None or (gain < -_COST and not (pairs.other_loss and pairs.learns))),
    )


def difference(control: Outcome, outcome: Outcome) -> Attempt:
    """The losses of two versions, as they stand in an attempt."""
    return _measured(_pairs(control, outcome, about_validation=False), control, outcome, None)


def is_about_validation(finding: ReportedFinding) -> bool:
    """Whether validation samples show it, and not those that are trained on."""
    family = next((rule.family for rule in all_rules() if rule.code == finding.code), "")
    return family in _ABOUT_VALIDATION


def _hindrance(before: Checked, control: Outcome, outcome: Outcome) -> str:
    """What else keeps a model from running that did not run before: one of several faults is mended."""
    results = (before.result, outcome.result)
    if any(result is None or _RUN in result.stages for result in results) or not all(
        training.reason for training in (*control.trainings, *outcome.trainings)
    ):
        return ""
    left = [each for each in outcome.findings or () if each.severity == _SEVERE[0]]
    return f"{STILL_STOPPED}: {left[0].code} {left[0].name}" if left else ""


def _as_grave_as(finding: ReportedFinding) -> Sequence[str]:
    """The severities of what may not come in its place: a warning for an error is a step ahead."""
    return _SEVERE[:1] if finding.severity == _SEVERE[0] else _SEVERE


def _objection(
    before: Checked,
    outcome: Outcome,
    edits: Sequence[Edit],
    grave: Sequence[str],
    *,
    cleared: bool,
    learns_more: bool,
) -> str:
    """What the findings say against it, or nothing."""
    result = outcome.result
    if outcome.findings is None or result is None:
        return outcome.reason or "the changed model was not checked"
    if result.status != "ok":
        return f"the changed model could not be checked: {result.reason}"
    if not cleared:
        return STAYS
    new = next(
        # What learns nothing learns nothing by heart either.
        (
            new
            for new in _new(before, outcome, edits)
            if new.severity in grave and not (learns_more and is_about_validation(new))
        ),
        None,
    )
    return "" if new is None else f"it brings another finding: {new.code} {new.name}"


def _doubt(outcome: Outcome, attempt: Attempt, pairs: _Pairs) -> str:
    """What the losses leave open, or nothing."""
    if pairs.problem:
        return pairs.problem
    if len(pairs.gains) < LEAST_SEEDS:
        return outcome.reason or f"{len(pairs.gains)} of {LEAST_SEEDS} trainings came to an end"
    assert attempt.gain is not None
    assert attempt.error is not None
    if attempt.gain <= LEAST_GAIN or not pairs.learns:
        return NOT_LOWER
    if attempt.gain <= attempt.error or min(pairs.gains) <= 0:
        return "the loss is not lower with each seed"
    return ""


# ---------------------------------------------------------------------- the loss


@dataclass(frozen=True)
class _Pairs:
    """By seed: the loss without and with the change, and the difference in units of a guess's.

    `learns` tells that the changed model's falls in each training, `other_loss` that its loss or targets
    are others than those of the unchanged one.
    """

    measure: str
    before: Sequence[float | None] = ()
    after: Sequence[float] = ()
    gains: Sequence[float] = ()
    learns: bool = True
    other_loss: bool = False
    steps: int = 0
    problem: str = ""


def _pairs(control: Outcome, outcome: Outcome, *, about_validation: bool) -> _Pairs:
    by_seed = {training.seed: training for training in control.trainings}
    pairs = [(by_seed[t.seed], t) for t in outcome.trainings if t.seed in by_seed]
    judged = about_validation and all(a.validation and b.validation for a, b in pairs)
    measure = "validation loss" if judged else "training loss"
    before: list[float | None] = []
    after: list[float] = []
    gains: list[float] = []
    learns = True
    other_loss = False
    for unchanged, changed in pairs:
        if changed.reason is not None:
            return _Pairs(measure, problem=changed.reason)
        old, new = _losses(unchanged, changed, judged=judged)
        unit = _number(new.guess)
        if unit is None:
            return _Pairs(measure, problem=UNKNOWN_UNIT)
        start, end = _number(new.start), _number(new.end)
        if end is None:
            return _Pairs(measure, problem="the loss became no number")
        was, began, old_unit = _number(old.end), _number(old.start), _number(old.guess) or unit
        if abs(old_unit - unit) <= _SAME_UNIT * unit:
            old_unit = unit
        other_loss = other_loss or old_unit != unit
        after.append(end)
        before.append(was)
        if was is None:  # the unchanged model does not run, or its loss is no number
            # At best it has learnt nothing: a start far above a guess is no gain of the change.
            gains.append((min(end if start is None else start, unit) - end) / unit)
        else:
            gains.append(was / old_unit - end / unit)
        # Before the training of what it is compared with, where that has the same loss.
        reference = start if began is None or old_unit != unit else began
        if reference is not None:
            learns = learns and end < reference - _LEAST_LEARNT * unit
    steps = min((min(a.steps or b.steps, b.steps) for a, b in pairs), default=0)
    return _Pairs(measure, before, after, gains, learns, other_loss, steps)


def _losses(unchanged: Training, changed: Training, *, judged: bool) -> tuple[Loss, Loss]:
    """Of both, after equally many steps."""
    if judged:
        return unchanged.validation or Loss(), changed.validation or Loss()
    old, new = unchanged.train, changed.train
    if unchanged.reason is None and unchanged.watched and changed.watched:
        common = min(len(unchanged.series), len(changed.series))
        old = Loss(old.start, at_end([float(x) for x in unchanged.series[:common]]), old.guess)
        new = Loss(new.start, at_end([float(x) for x in changed.series[:common]]), new.guess)
    return old, new


def _number(value: Figure | None) -> float | None:
    return None if value is None or not math.isfinite(float(value)) else float(value)


def _measured(pairs: _Pairs, control: Outcome, outcome: Outcome, cleared: bool | None) -> Attempt:
    if not pairs.gains or pairs.problem:
        return Attempt(measure=pairs.measure, cleared=cleared)
    count = len(pairs.gains)
    known = [value for value in pairs.before if value is not None]
    error = statistics.stdev(pairs.gains) / math.sqrt(count) if count > 1 else None
    times = [t.seconds for t in control.trainings if t.seconds and t.reason is None]
    own = [t.seconds for t in outcome.trainings if t.seconds and t.reason is None]
    sizes = [t.parameters for t in control.trainings if t.parameters]
    now = [t.parameters for t in outcome.trainings if t.parameters]
    return Attempt(
        measure=pairs.measure,
        before=_plain(statistics.fmean(known)) if len(known) == count else None,
        after=_plain(statistics.fmean(pairs.after)),
        gain=_plain(statistics.fmean(pairs.gains)),
        error=None if error is None else _plain(error),
        steps=pairs.steps,
        seeds=count,
        cleared=cleared,
        parameters=now[0] - sizes[0] if now and sizes else 0,
        slowdown=float(f"{min(own) / min(times):.2g}") if own and times else None,
    )


def _plain(value: float) -> float:
    return float(f"{value:.4g}")


# ---------------------------------------------------------------------- the findings


def _is_cleared(
    finding: ReportedFinding, before: Checked, outcome: Outcome, edits: Sequence[Edit]
) -> bool | None:
    """Whether it is gone, and nothing that it explained now stands alone. None where that is not known."""
    if outcome.findings is None or outcome.result is None or outcome.result.status != "ok":
        return None
    if finding.stage not in outcome.result.stages:
        return False  # what was not looked for is not found
    known = list(flat(before.findings))
    if any(_is_any(_origins(found, known, edits), finding) for found in flat(outcome.findings)):
        return False
    effects = [symptom for symptom in finding.symptoms if symptom.severity in _SEVERE]
    return not any(
        _is_any(_origins(found, known, edits), effect)
        for found in outcome.findings
        for effect in effects
    )


def _new(before: Checked, outcome: Outcome, edits: Sequence[Edit]) -> Iterator[ReportedFinding]:
    """Errors and warnings that were not there, and could have been seen."""
    known = list(flat(before.findings))
    for found in outcome.findings or ():
        was_severe = any(origin.severity in _SEVERE for origin in _origins(found, known, edits))
        if (
            found.severity in _SEVERE
            and not was_severe
            and not _is_revealed(found, before, outcome)
        ):
            yield found


def _is_revealed(found: ReportedFinding, before: Checked, outcome: Outcome) -> bool:
    """Whether what shows it could not be looked at before: a crash, or an end of the training, hid it."""
    if before.result is None or found.stage not in before.result.stages:
        return True
    was, now = before.result.series, outcome.result.series if outcome.result else None
    return found.stage == "probe" and was is not None and now is not None and was.steps < now.steps


def flat(findings: Sequence[ReportedFinding]) -> Iterator[ReportedFinding]:
    """Findings with their symptoms behind them."""
    for finding in findings:
        yield finding
        yield from finding.symptoms


def _is_any(origins: Sequence[ReportedFinding], finding: ReportedFinding) -> bool:
    return any(is_same(origin, finding) for origin in origins)


def is_same(one: ReportedFinding, other: ReportedFinding) -> bool:
    """Whether both say the same of the same place, as files and modules are named in both."""
    return (
        one.code == other.code
        and one.target == other.target
        and one.module == other.module
        and one.location == other.location
        and _same_file(one.filename, other.filename)
    )


def _origins(
    found: ReportedFinding, known: Sequence[ReportedFinding], edits: Sequence[Edit]
) -> list[ReportedFinding]:
    """Which of the earlier findings this one is: by its place in the text, else by its modules."""
    same_rule = [each for each in known if each.code == found.code]
    here = [each for each in same_rule if _is_at_same_place(each, found, edits)]
    if here:
        return here
    modules = _modules(found)
    return [
        each
        for each in same_rule
        if modules & _modules(each) or (not modules and not _modules(each))
    ]


def _modules(finding: ReportedFinding) -> set[str]:
    listed = finding.evidence.get("modules")
    names = listed if isinstance(listed, list) else []
    return {name for name in (finding.module, *names) if isinstance(name, str) and name}


def _is_at_same_place(
    before: ReportedFinding, after: ReportedFinding, edits: Sequence[Edit]
) -> bool:
    if before.location is None or after.location is None or after.filename is None:
        return False
    if not _same_file(before.filename, after.filename):
        return False
    own = [edit for edit in edits if _same_file(edit.filename, after.filename)]
    return moved(before.location, own) == after.location


def _same_file(one: str | None, other: str | None) -> bool:
    if one is None or other is None:
        return one is other
    return os.path.realpath(one) == os.path.realpath(other)


def moved(place: Location, edits: Sequence[Edit]) -> Location:
    """Where this place of a text is once the edits were made; the start of an edit it lies in."""
    row, column = place.row, place.column
    for edit in sorted(edits, key=lambda edit: _order(edit.location), reverse=True):
        is_insertion = edit.location == edit.end_location
        if _order(edit.location) > _order(place) or (edit.location == place and not is_insertion):
            continue
        if _order(edit.end_location) > _order(place):
            return moved(edit.location, [e for e in edits if e is not edit])
        lines = edit.content.split("\n")
        if edit.end_location.row == row:
            first = edit.location.column if len(lines) == 1 else 1
            column += first + len(lines[-1]) - edit.end_location.column
        row += len(lines) - 1 - (edit.end_location.row - edit.location.row)
    return Location(row, column)


def _order(place: Location) -> tuple[int, int]:
    return (place.row, place.column)
