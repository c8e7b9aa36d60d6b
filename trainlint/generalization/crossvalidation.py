"""`trainlint.cross_validate` and `trainlint check --kfold`: K trainings, and what they say together.

Comes in: a target and a number of folds. Goes out: a `CrossValidation`, with errors that know that the
trainings share samples. Imports no torch for files.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from trainlint.config import Config
from trainlint.errors import UsageError
from trainlint.generalization.curves import student, welch
from trainlint.generalization.experiments import (
    Experiment,
    ExperimentError,
    Progress,
    Trials,
    TrialSpec,
    figure,
    run_trials,
)
from trainlint.given import given_loss, instance_of
from trainlint.records import CrossValidation, Figure, FoldResult, Report, Spread, TargetResult

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from trainlint.generalization.experiments import TrialPoint, TrialResult

# A fold sticks out where its samples differ from the others' at this level, all folds together, and it
# lies as far from the others as they lie apart.
_LEVEL: Final = 0.01
_FOLD_LEVEL: Final = 0.05
_LEAST_FOLDS: Final = 4
_WORST: Final = 5
# Weights that were never trained do not come so far below the best constant answer.
_LEARNT: Final = 0.8
# Where there is to be no probe.
_STEPS: Final = 50
_SHARE_OF_TIMEOUT: Final = 0.75


def cross_validate(
    target: nn.Module | Callable[[], nn.Module] | str | os.PathLike[str],
    k: Any = 5,
    *,
    loss: Callable[..., Any] | None = None,
    optimizer: Optimizer | Callable[[nn.Module], Optimizer] | None = None,
    train_loader: Any = None,
    epochs: float | None = None,
    steps: int | None = None,
    groups: Any = None,
    seed: int = 0,
    config: Config | None = None,
    progress: Progress | None = None,
) -> CrossValidation:
    """Train `k` times on all samples of `train_loader` but a fold, and validate on that fold.

    `target` is a live model, its class or a function that makes one, with `loss`, `optimizer` and
    `train_loader` as for `trainlint.check`, or a file, which shows its own. `k` may be a splitter of
    scikit-learn's kind in place of a number, `groups` names for each sample what must stay in one fold.
    Each training takes `steps` optimizer steps (those of the probe, 50, unless given) or `epochs`, from the
    weights that the model has: all from the same. `seed` decides the folds, the order of samples and
    dropout. `progress` is told of the share that is done, and of what.

    A live model is copied for each training, and as before afterwards. The trainings of a file run in
    child processes, several at once. Raises `ExperimentError` where no training is possible, `UsageError`
    for arguments that make no sense, and where scikit-learn is not installed.
    """
    config = config or Config()
    splitter = None if isinstance(k, int) else k
    is_splitter = callable(getattr(splitter, "split", None)) and not isinstance(splitter, str)
    if splitter is not None and not is_splitter:
        raise UsageError(f"k is a number of folds or a splitter, not {type(k).__name__}")
    count = k if splitter is None else 1
    _check_numbers(count, epochs, steps, is_given=splitter is not None)
    experiment = Experiment(
        count,
        (config.probe_steps or _STEPS) if steps is None else steps,
        epochs,
        _seconds(config, epochs, steps),
        seed,
    )
    if not isinstance(target, (str, os.PathLike)):
        return _of_live(
            target,
            experiment,
            given_loss(loss),
            optimizer,
            train_loader,
            groups,
            splitter,
            progress,
        )
    given = (loss, optimizer, train_loader, groups, splitter)
    if any(part is not None for part in given):
        raise UsageError(
            "loss, optimizer, loader, groups and splitter belong to a live model; a file names its own "
            "(groups, cv)"
        )
    return _of_file(os.fspath(target), experiment, config, progress)


def _check_numbers(k: int, epochs: float | None, steps: int | None, *, is_given: bool) -> None:
    if isinstance(k, bool) or k < 1 or (k == 1 and not is_given):
        raise UsageError(f"{k} folds: at least 2 are needed")
    if epochs is not None and steps is not None:
        raise UsageError("give epochs or steps, not both")
    if (epochs is not None and not 0 < epochs < math.inf) or (steps is not None and steps < 1):
        raise UsageError("a training takes at least one step")


def _seconds(config: Config, epochs: float | None, steps: int | None) -> float:
    """For how long a training may last: as the probe, or what `timeout` leaves where more is asked."""
    if epochs is None and steps is None:
        return config.probe_seconds
    return config.timeout * _SHARE_OF_TIMEOUT


def _of_file(
    target: str, experiment: Experiment, config: Config, progress: Progress | None
) -> CrossValidation:
    started = time.monotonic()
    specs = [TrialSpec(fold=fold) for fold in range(experiment.folds)]
    trials = run_trials(target, specs, experiment, config, progress)
    return summary(target, trials, time.monotonic() - started)


def _of_live(
    target: Any,
    experiment: Experiment,
    loss: Any,
    optimizer: Any,
    train_loader: Any,
    groups: Any,
    splitter: Any,
    progress: Progress | None,
) -> CrossValidation:
    """In this process, one fold after another."""
    import torch
    from torch import nn

    from trainlint.generalization.laboratory import Laboratory
    from trainlint.preserve import preserved_training
    from trainlint.probe.batches import ProbeProblem, same_draws
    from trainlint.probe.setup import Setup, setup_of

    started = time.monotonic()
    model = instance_of(target)
    own = setup_of({}, model, None)
    setup = own if own.step is not None else Setup(loss, optimizer, train_loader)
    if own.step is not None and any(part is not None for part in (loss, optimizer, train_loader)):
        raise UsageError("a LightningModule brings its own loss, optimizer and loader")
    given = optimizer if isinstance(optimizer, torch.optim.Optimizer) else None
    beside = [loss] if isinstance(loss, nn.Module) else []
    with preserved_training(model, given, beside=beside), same_draws(train_loader):
        try:
            laboratory = Laboratory(model, setup, experiment, groups=groups, splitter=splitter)
        except ProbeProblem as problem:
            raise ExperimentError(str(problem)) from None
        number = len(laboratory.folds.pairs)
        results = []
        for fold in range(number):
            tell = None
            if progress is not None:
                tell = _teller(progress, fold, number)
                tell(0.0)
            results.append(laboratory.run(TrialSpec(fold=fold), tell))
    if progress is not None:
        progress(1.0, f"{number} of {number} folds")
    name = type(model).__name__
    return summary(name, Trials(results, laboratory.split), time.monotonic() - started)


def _teller(progress: Progress, fold: int, number: int) -> Callable[[float], None]:
    return lambda share: progress((fold + share) / number, f"fold {fold + 1} of {number}")


# ---------------------------------------------------------------------- with a check


def with_folds(
    report: Report,
    k: int,
    config: Config,
    *,
    epochs: float | None = None,
    progress: Progress | None = None,
) -> Report:
    """The report of a check, with the cross-validation of each model in which it found no error.

    Where there is none, a note says why; a report that has not one for want of data or the like is an
    error.
    """
    results = list(report.targets)
    refusals: dict[int, str] = {}
    told = 0
    for number, result in enumerate(results):
        if result.status != "ok":
            continue
        moot = _moot(report, result)
        if moot:
            told += 1
            results[number] = _noted(result, f"not cross-validated: {moot}")
            continue
        try:
            measured = cross_validate(
                result.target, k, epochs=epochs, config=config, progress=progress
            )
        except ExperimentError as error:
            refusals[number] = f"not cross-validated: {error}"
        else:
            told += 1
            results[number] = msgspec.structs.replace(result, cross_validation=measured)
    for number, reason in refusals.items():
        if told:
            results[number] = _noted(results[number], reason)
        else:
            results[number] = msgspec.structs.replace(
                results[number], status="error", reason=reason
            )
    return msgspec.structs.replace(report, targets=results)


def _moot(report: Report, result: TargetResult) -> str:
    """Why there is no point in training this model, or an empty text."""
    codes = [
        finding.code
        for finding in report.findings
        if finding.target == result.target and finding.severity == "error"
    ]
    if not codes:
        return ""
    count = f"{len(codes)} error" + ("s" if len(codes) > 1 else "")
    return f"it has {count} ({', '.join(dict.fromkeys(codes))}), which would decide all folds"


def _noted(result: TargetResult, note: str) -> TargetResult:
    return msgspec.structs.replace(result, notes=[*result.notes, note])


# ---------------------------------------------------------------------- what the folds say together


def summary(target: str, trials: Trials, seconds: float) -> CrossValidation:
    """The folds together. Raises `ExperimentError` where not one has a result."""
    split = trials.split
    done = [result for result in trials.results if result.reason is None]
    if not done:
        raise ExperimentError(trials.results[0].reason or "no training was finished")
    odd = _sticking_out(done)
    folds = [_fold(result, odd) for result in trials.results]
    train = [float(result.last.train.mean) for result in done]
    validation = [float(result.last.validation.mean) for result in done]
    share = statistics.fmean(result.validation_samples / result.train_samples for result in done)
    rows = _rows(done)
    best = min(rows, key=lambda row: _or_infinite(_mean_loss(row, "validation")))
    return CrossValidation(
        target,
        split.splitter,
        split.why,
        split.samples,
        split.loader,
        split.optimizer,
        split.loss,
        folds,
        spread(train, share),
        spread(validation, share),
        spread([b - a for a, b in zip(train, validation, strict=True)], share),
        metric=done[0].metric,
        train_metric=_metrics([result.last.train.metric for result in done], share),
        validation_metric=_metrics([result.last.validation.metric for result in done], share),
        guess=_mean([result.guess for result in done]),
        steps=max(result.steps for result in done),
        epochs=_rounded(max(result.epochs or 0.0 for result in done)),
        best_step=_step(best),
        rise=_rise(best, done, share),
        train=[(_step(row), figure(_mean_loss(row, "train"))) for row in rows],
        validation=[(_step(row), figure(_mean_loss(row, "validation"))) for row in rows],
        train_bands=list(_bands(rows, "train", share)),
        validation_bands=list(_bands(rows, "validation", share)),
        notes=[*split.notes, *_notes(trials.results, done)],
        seconds=round(seconds, 3),
    )


def spread(values: Sequence[float], share: float) -> Spread:
    """The mean with both of its errors; `share` is validated samples over trained ones."""
    mean = statistics.fmean(values)
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return Spread(figure(mean), "nan", "nan")
    deviation = statistics.stdev(values)
    k = len(values)
    return Spread(
        figure(mean),
        figure(deviation / math.sqrt(k)),
        figure(deviation * math.sqrt(1 / k + share)),
    )


def _mean(values: Sequence[Figure | None]) -> Figure | None:
    known = [float(value) for value in values if value is not None]
    return figure(statistics.fmean(known)) if len(known) == len(values) else None


def _metrics(values: Sequence[Figure | None], share: float) -> Spread | None:
    known = [float(value) for value in values if value is not None]
    return spread(known, share) if known and len(known) == len(values) else None


def _rounded(value: float) -> float:
    return round(value, 2)


def _or_infinite(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _rows(done: Sequence[TrialResult]) -> list[tuple[TrialPoint, ...]]:
    """The checkpoints of all folds at the same steps, a row each."""
    steps = set.intersection(*({point.step for point in result.checkpoints} for result in done))
    if len(steps) < 2:  # epochs of folds of different sizes: the k-th of each
        return list(zip(*(result.checkpoints for result in done), strict=False))
    return [
        tuple(point for result in done for point in result.checkpoints if point.step == step)
        for step in sorted(steps)
    ]


def _step(row: Sequence[TrialPoint]) -> int:
    return round(statistics.fmean(point.step for point in row))


def _mean_loss(row: Sequence[TrialPoint], part: str) -> float:
    return statistics.fmean(float(getattr(point, part).mean) for point in row)


def _bands(
    rows: Sequence[Sequence[TrialPoint]], part: str, share: float
) -> Iterator[tuple[int, Figure, Figure]]:
    """Mean ± corrected error over folds at each checkpoint, where that is finite."""
    for row in rows:
        of = spread([float(getattr(point, part).mean) for point in row], share)
        mean, error = float(of.mean), float(of.corrected)
        if math.isfinite(mean + error):
            yield _step(row), figure(mean - error), figure(mean + error)


def _rise(best: Sequence[TrialPoint], done: Sequence[TrialResult], share: float) -> Spread:
    """How far validation loss has risen since its best, fold by fold."""
    return spread(
        [
            float(result.last.validation.mean) - float(point.validation.mean)
            for point, result in zip(best, done, strict=True)
        ],
        share,
    )


def _fold(result: TrialResult, odd: Sequence[TrialResult]) -> FoldResult:
    if result.reason is not None:
        return FoldResult(result.spec.fold + 1, result.reason)
    last = result.last
    sticks_out = any(result is other for other in odd)
    return FoldResult(
        result.spec.fold + 1,
        None,
        result.train_samples,
        result.validation_samples,
        result.steps,
        last.train.mean,
        last.train.error,
        last.validation.mean,
        last.validation.error,
        last.train.metric,
        last.validation.metric,
        sticks_out,
        _worst(result) if sticks_out else [],
    )


def _worst(result: TrialResult) -> list[int]:
    """The numbers of the samples with the greatest losses."""
    losses = [float(loss) for loss in result.last.validation.losses]
    if len(losses) != len(result.scored):
        return []
    order = sorted(range(len(losses)), key=lambda n: -_or_infinite(losses[n]))
    return [result.scored[n] for n in order[:_WORST]]


def _sticking_out(done: Sequence[TrialResult]) -> list[TrialResult]:
    """The folds whose validation loss differs from that of the others, by two tests at once.

    Their samples from the others' (Welch, 1 % for all folds together), since a mean over few samples
    varies anyway; and their mean from the others' means (5 % a fold), since models of different training
    samples differ anyway.
    """
    if len(done) < _LEAST_FOLDS:
        return []
    losses = [[float(loss) for loss in result.last.validation.losses] for result in done]
    if any(len(own) < 2 or not all(map(math.isfinite, own)) for own in losses):
        return []
    found = []
    for number, own in enumerate(losses):
        others = [loss for other, each in enumerate(losses) if other != number for loss in each]
        means = [statistics.fmean(each) for other, each in enumerate(losses) if other != number]
        k = len(means)
        apart = abs(statistics.fmean(own) - statistics.fmean(means))
        limit = student(1 - _FOLD_LEVEL / 2, k - 1) * statistics.stdev(means) * math.sqrt(1 + 1 / k)
        level = student(1 - _LEVEL / 2 / len(done), min(len(own), len(others)) - 1)
        if apart > limit and abs(welch(others, own).t) > level:
            found.append(done[number])
    return found


def _notes(results: Sequence[TrialResult], done: Sequence[TrialResult]) -> list[str]:
    notes = [
        f"fold {result.spec.fold + 1} has no result: {result.reason}"
        for result in results
        if result.reason is not None
    ]
    if len(done) < len(results):
        notes.append(f"means are over the other {len(done)} of {len(results)} folds")
    lost = [
        str(result.spec.fold + 1)
        for result in done
        if not math.isfinite(float(result.last.validation.mean))
    ]
    if lost:
        notes.append(f"training diverged in fold {', '.join(lost)}: its loss is no finite number")
    short = [result for result in done if result.steps < result.asked]
    if short:
        least = min(short, key=lambda result: result.steps / result.asked)
        notes.append(
            f"{len(short)} of {len(results)} trainings ended before their last step for want of time, one "
            f"after {least.steps} of {least.asked}"
        )
    guesses = [result.guess for result in done]
    firsts = [result.checkpoints[0].validation for result in done]
    if all(
        guess is not None and float(first.mean) + 3 * float(first.error) < _LEARNT * float(guess)
        for guess, first in zip(guesses, firsts, strict=True)
    ):
        notes.append(
            "before its first step the model is far better than a constant answer: its weights have been "
            "trained. If that was on these samples, no fold is unseen"
        )
    if done[0].unit == "batch" and done[0].metric == "":
        notes.append("the loss is known for batches alone: errors within a fold are over these")
    return notes
