"""`trainlint.sweep`: training and validation error over a range of widths or penalties. Imports no torch.

Comes in: a file with a model, its loss, optimizer and training data, and what to vary. Goes out: a
`SweepReport`. Each value is trained on each fold, in child processes, with the same number of steps, order
of samples and seeds.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from trainlint.choices import known_word, words
from trainlint.config import Config
from trainlint.engine import Facts, failures_as_text, run_rules, unmeasured_as_text
from trainlint.errors import UsageError
from trainlint.generalization.experiments import (
    OUT_OF_TIME,
    Experiment,
    TrialResult,
    TrialSpec,
    outline_of,
    run_trials,
)
from trainlint.generalization.swept import (
    OVER,
    Inquiry,
    Outline,
    OutlinedWidth,
    Sweep,
    Swept,
    factor,
)
from trainlint.generalization.variants import Variant
from trainlint.measure.memory import usable_processors
from trainlint.ranking import report_on
from trainlint.records import SweepReport, TargetResult
from trainlint.registry import select_rules

FACTORS: Final = (0.25, 0.5, 1.0, 2.0, 4.0)
_GRIDS: Final[Mapping[str, Sequence[float]]] = {
    "weight-decay": (0.0, 1e-3, 1e-2, 0.1, 1.0, 10.0),
    "l1": (0.0, 1e-5, 1e-4, 1e-3, 1e-2),
    "elastic-net": (0.0, 1e-4, 1e-3, 1e-2, 0.1),
    "dropout": (0.0, 0.1, 0.2, 0.3, 0.5, 0.7),
}
_RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "width": (1 / 64, 64.0),
    "weight-decay": (0.0, 1e4),
    "l1": (0.0, 1e4),
    "elastic-net": (0.0, 1e4),
    "dropout": (0.0, 0.95),
}
_SECONDS: Final = 600.0
# The rest of the time is for starting processes, and for values that take longer than was foreseen.
_FOR_TRAINING: Final = 0.7
_LEAST_SEARCH, _LONGEST_SEARCH = 3.0, 60.0

Progress = Callable[[str], None]


@dataclass(frozen=True)
class _Value:
    """A value of the sweep, and how to train with it."""

    value: float
    variant: Variant
    sizes: Mapping[str, int]
    parameters: int
    reason: str | None = None
    is_here: bool = False


def sweep(
    target: str | os.PathLike[str],
    *,
    over: str = "width",
    values: Sequence[float] | None = None,
    width: Sequence[str] = (),
    kfold: int = 5,
    steps: int | None = None,
    epochs: float | None = None,
    seed: int = 0,
    seconds: float = _SECONDS,
    config: Config | None = None,
    progress: Progress | None = None,
    debug: bool = False,
) -> SweepReport:
    """Train the model of a file with each value on each of `kfold` folds, and compare the errors.

    `over` is `width`, `weight-decay`, `l1`, `elastic-net` (half of each) or `dropout`. `values` are factors
    of the width, strengths λ of the penalty, or probabilities; the target as it is comes with them.
    `width` names the integers that set the width, arguments of the model or constants of the file;
    without it they are found. All values train for as many optimizer `steps`, or `epochs` of the
    training samples; without either, until the target's own training loss has stopped falling. `seed`
    decides the folds, the order of samples and the initial weights of models that are built anew. Values
    that are not done in so many `seconds` are left out, and said.

    Raises `UsageError` for options that make no sense, `ExperimentError` where there can be no sweep.
    """
    started = time.monotonic()
    width = words(width)
    _check(over, values, width, kfold, steps, epochs, seconds)
    config = config or Config()
    config = msgspec.structs.replace(config, timeout=max(config.timeout, seconds))
    if not isinstance(target, (str, os.PathLike)):
        raise UsageError(
            "a sweep runs a file once for each training: give its name, file.py::Net or "
            "package.module:name, not a live model"
        )
    name = os.fspath(target)
    tell = progress or (lambda _: None)
    experiment = Experiment(folds=kfold, seed=seed, ends_only=True, widths=list(width))
    factors = _with(FACTORS if values is None else values, 1.0) if over == "width" else []
    count = len(factors) or len(_GRIDS[over] if values is None else values)
    inquiry = Inquiry(
        factors, _search(seconds, config, factors or [1.0] * count, kfold), steps is epochs is None
    )
    split, outline = outline_of(name, experiment, inquiry, config, tell, debug=debug)
    notes: list[str] = [*split.notes]
    planned = (
        _widths(outline, notes) if over == "width" else _penalties(over, values, outline, notes)
    )
    length = _length(outline, steps, epochs)
    experiment = msgspec.structs.replace(
        experiment,
        steps=length,
        seconds=seconds,
        anew=over == "width",
        widths=list(planned[0].sizes) if over == "width" else [],
    )
    tried = [place for place, value in enumerate(planned) if value.reason is None]
    # What is nearest to the target comes first, should the time not suffice for all.
    here = next(place for place, value in enumerate(planned) if value.is_here)
    order = sorted(tried, key=lambda place: abs(place - here))
    specs = [
        TrialSpec(planned[place].variant, fold, seed + fold)
        for place in order
        for fold in range(split.folds)
    ]
    left = seconds - (time.monotonic() - started)
    trials = run_trials(
        name,
        specs,
        experiment,
        config,
        lambda share, text: tell(f"{share:.0%}, {text}"),
        limit=left,
        debug=debug,
    )
    results = {
        place: trials.results[number * split.folds : (number + 1) * split.folds]
        for number, place in enumerate(order)
    }
    points = [_point(value, results.get(place, ())) for place, value in enumerate(planned)]
    measured = next((r for r in trials.results if r.reason is None), None)
    found = Sweep(
        name,
        over,
        points,
        here,
        split.folds,
        length,
        round(length / max(1, outline.per_epoch), 2),
        split.samples,
        split.splitter,
        split.loss,
        "" if measured is None else measured.metric,
        outline.length or "as given",
        list(planned[0].sizes),
        notes,
        round(time.monotonic() - started, 1),
        outline.place,
    )
    return _judged(found, config)


# ---------------------------------------------------------------------- what is asked for


def _check(
    over: str,
    values: Sequence[float] | None,
    width: Sequence[str],
    kfold: int,
    steps: int | None,
    epochs: float | None,
    seconds: float,
) -> None:
    known_word(over, OVER, "over")
    if width and over != "width":
        raise UsageError(f"--width names what sets the width, and this sweeps over {over}")
    if kfold < 2:
        raise UsageError(f"--kfold {kfold}: two folds at least")
    if steps is not None and epochs is not None:
        raise UsageError("give --steps or --epochs, not both")
    if (steps is not None and steps < 1) or (epochs is not None and not 0 < epochs < math.inf):
        raise UsageError("--steps and --epochs are positive")
    if not 0 < seconds < math.inf:
        raise UsageError(f"--seconds {seconds:g}: a positive time")
    if values is None:
        return
    least, most = _RANGES[over]
    for value in values:
        if not least <= value <= most:  # NaN is refused as well
            raise UsageError(f"--values {value:g}: {over} lies between {least:g} and {most:g}")
    if not values:
        raise UsageError("--values: none is given")


def _with(values: Sequence[float], another: float) -> list[float]:
    return sorted({*map(float, values), another})


def _search(seconds: float, config: Config, factors: Sequence[float], folds: int) -> float:
    """How long the training of the target as it is may take, so that all trainings fit into the time.

    A layer's cost rises with the square of its width, but no step costs less than its overhead.
    """
    cost = folds * sum(max(1.0, width * width) for width in factors)
    workers = config.jobs or usable_processors()
    return min(_LONGEST_SEARCH, max(_LEAST_SEARCH, _FOR_TRAINING * seconds * workers / cost))


def _length(outline: Outline, steps: int | None, epochs: float | None) -> int:
    if steps is not None:
        return steps
    if epochs is not None:
        return max(1, round(epochs * outline.per_epoch))
    return outline.steps


def _widths(outline: Outline, notes: list[str]) -> list[_Value]:
    values: list[_Value] = []
    known: dict[tuple[int, ...], OutlinedWidth] = {}
    for width in sorted(outline.widths, key=lambda width: abs(math.log(width.factor))):
        same = known.setdefault(tuple(width.sizes.values()), width)
        if same is not width and width.reason is None:
            notes.append(f"{factor(width.factor)} is left out: sizes as at {factor(same.factor)}")
            continue
        values.append(
            _Value(
                width.factor,
                Variant(width=width.factor),
                width.sizes,
                width.parameters,
                None if width.reason is None else f"cannot be built: {width.reason}",
                width.factor == 1.0,
            )
        )
    return sorted(values, key=lambda value: value.value)


def _penalties(
    over: str, values: Sequence[float] | None, outline: Outline, notes: list[str]
) -> list[_Value]:
    here = 0.0
    if over == "weight-decay":
        here = outline.weight_decay
    elif over == "elastic-net" and outline.weight_decay:
        notes.append(f"0 is the model as it is, with weight decay {outline.weight_decay:g}")
    elif over == "dropout" and outline.dropout:
        here = sum(outline.dropout) / len(outline.dropout)
        if len(outline.dropout) > 1:
            given = ", ".join(f"{p:g}" for p in outline.dropout)
            notes.append(f"its dropout layers have p = {given}; it stands at their mean")
    return [
        _Value(
            value,
            Variant() if value == here else _variant(over, value),
            {},
            outline.parameters,
            is_here=value == here,
        )
        for value in _with(_GRIDS[over] if values is None else values, here)
    ]


def _variant(over: str, value: float) -> Variant:
    if over == "dropout":
        return Variant(dropout=value)
    if over == "l1":
        return Variant(l1=value)
    return Variant(l2=value) if over == "weight-decay" else Variant(l1=value / 2, l2=value / 2)


# ---------------------------------------------------------------------- what came of it


def _point(value: _Value, results: Sequence[TrialResult]) -> Swept:
    reason = value.reason or _why_not(results)
    swept = Swept(
        value.value,
        dict(value.sizes),
        value.parameters,
        seconds=round(sum(result.seconds for result in results), 1),
        reason=reason,
    )
    if reason is not None:
        return swept
    metrics = [result.last.validation.metric for result in results]
    return msgspec.structs.replace(
        swept,
        train=[float(result.last.train.mean) for result in results],
        validation=[float(result.last.validation.mean) for result in results],
        metrics=[float(metric) for metric in metrics if metric is not None],
    )


def _why_not(results: Sequence[TrialResult]) -> str | None:
    """Why a value has no place on the curve: all of its folds must have been trained as long as others."""
    reasons = [result.reason for result in results if result.reason is not None]
    if reasons:
        done = len(results) - len(reasons)
        is_late = reasons[0] == OUT_OF_TIME
        return f"{reasons[0]}{f', {done} of {len(results)} folds were done' if is_late and done else ''}"
    for result in results:
        if result.steps < result.asked:
            return f"only {result.steps} of {result.asked} steps in {result.seconds:.0f} s"
        last = result.last
        if not math.isfinite(float(last.train.mean)) or not math.isfinite(
            float(last.validation.mean)
        ):
            return f"the loss on fold {result.spec.fold + 1} is not finite"
    return None


def _judged(found: Sweep, config: Config) -> SweepReport:
    rules = [
        rule
        for rule in select_rules(config.select, config.ignore, config.extend_select)
        if "Sweep" in rule.facts.values()
    ]
    outcome = run_rules(rules, Facts({"Sweep": found}), target=found.target, options=config.rules)
    notes = [*unmeasured_as_text(outcome.unmeasured), *failures_as_text(outcome.failures)]
    if notes:
        found = msgspec.structs.replace(found, notes=[*found.notes, *notes])
    result = TargetResult(found.target, "ok")
    report = report_on([(raw.reported, 0.0) for raw in outcome.findings], [result], rules)
    return SweepReport(found, report.findings)


def as_data(found: Sweep) -> dict[str, Any]:
    """The sweep in plain types, with what follows from its figures."""
    data: dict[str, Any] = msgspec.to_builtins(found)
    del data["place"]  # the findings have it, as the user would type it
    for place, point in enumerate(data["points"]):
        known = found.points[place].reason is None
        point["standing"] = msgspec.to_builtins(found.standing(place)) if known else None
    return {**data, "best": found.best, "chosen": found.chosen}
