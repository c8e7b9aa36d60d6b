"""DAT004 labels-independent-of-inputs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

from trainlint.rule import (
    Confidence,
    EvaluationTrace,
    Finding,
    Fix,
    Generalization,
    LossTrace,
    Severity,
    Trace,
    rule,
)

# A gap before any training, in units of a constant answer's loss, that is no chance.
_SHIFT = 0.5
_FIXES = [
    Fix(
        "bring inputs and labels into one order: compare a few, as the loop gets them",
        reason="Zhang et al. 2017: labels drawn by lot are learnt by heart, and hold for no other sample",
        obstacle="where the two were put apart is known where the data are made",
    ),
    Fix(
        "and prepare validation data as the training data are",
        reason="what was learnt of one scale or order of classes holds for no other",
        obstacle="how the two sets are prepared is not seen",
    ),
]


@rule(
    "DAT004",
    severity=Severity.WARNING,
    since="0.1",
    explains=["overfitting", "past-early-stop"],
    own=["data"],
)
def labels_independent_of_inputs(
    trace: Trace, *, learnt: float = 0.3, passes: int = 4, steps: int = 50, samples: int = 200
) -> Iterator[Finding]:
    """The model learns its training data by heart, and nothing that holds for other data.

    Where inputs and labels do not belong together (each was shuffled by itself, files were listed in two
    orders, an index is off by one), there is nothing to learn: on data that were not seen, no model beats
    the answer that ignores the input. On the training data the loss falls all the same, since a network
    with enough weights stores any labels (Zhang et al. 2017). That is unlike usual overfitting, where
    the validation loss falls first, and rises later.

    Reported where the training loss has come down by the share `learnt` of the best constant answer's in at
    least `steps` steps, while validation, in at least `passes` passes of which the first came before half
    of that was learnt, never once was below the constant answer's loss; or where the losses of single
    samples show as much with 95 % confidence, on at least `samples` training samples: fewer are learnt by
    heart whatever their labels. Not where the two sets of data differed before any training (GEN007), nor
    where validation samples are classified right more often, by two standard errors, than by naming the
    commonest class: a loss can be bad of too much confidence alone.

    A validation pass that calls no loss function, to count right answers only, is not seen. Without one
    that does, and in the first epochs, such data look like any that are not learnt yet: see LOS008.

    ## Bad
    ```python
    x, y = torch.randn(192, 16), torch.randint(2, (192,))
    model = nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    for epoch in range(40):
        for batch in torch.randperm(128).split(32):
            loss = F.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch % 4 == 0:
            with torch.no_grad():
                print(F.cross_entropy(model(x[128:]), y[128:]))
    ```

    ## Good
    ```python
    x = torch.randn(192, 16)
    y = (x[:, 0] + x[:, 1] > 0).long()
    model = nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    for epoch in range(20):
        for batch in torch.randperm(128).split(32):
            loss = F.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch % 4 == 0:
            with torch.no_grad():
                print(F.cross_entropy(model(x[128:]), y[128:]))
    ```

    ## When to ignore it
    When next to nothing of the target can be known from the input, or validation is of another kind on
    purpose.

    ## Fix safety
    Only shown: where the two came apart is in the code that reads the data.

    ## References
    Zhang, Bengio, Hardt, Recht & Vinyals 2017, arXiv:1611.03530 (random labels are fitted).
    """
    if _is_refuted(trace):
        return
    measured = trace.generalization
    if measured is not None and _never_holds(measured, learnt, samples):
        yield _measured(measured)
        return
    for loss in trace.objectives:
        share = trace.learnt(loss, steps)
        if share is None or not math.isfinite(share) or share < learnt or not loss.guess:
            continue
        for validation in trace.evaluations:
            if (
                validation.kind == loss.kind
                and not validation.on_training_data
                and len(validation.values) >= passes
                and min(validation.values) > loss.guess
                and _learnt_by(loss, validation.steps[0]) < learnt / 2
            ):
                yield _finding(loss, validation, share)
                break


def _is_refuted(trace: Trace) -> bool:
    """Whether what was learnt does hold, by the model or a linear one, or the sets differed before."""
    measured = trace.generalization
    if measured is None or not measured.guess:
        return False
    before = None if measured.first is None else measured.gap(measured.first)
    if before is not None and before.bound > _SHIFT:
        return True
    if measured.linear is not None and measured.linear < 0.9 * measured.guess:
        return True
    if _is_often_right(trace, measured):
        return True
    return measured.best().validation.mean < 0.9 * measured.guess


def _is_often_right(trace: Trace, measured: Generalization) -> bool:
    """Whether validation samples are classified right more often than by naming the commonest class."""
    if measured.metric != "accuracy" or not measured.guess:
        return False
    classes = [loss.classes for loss in trace.objectives if loss.kind == measured.loss]
    most = _largest_share(measured.guess, max((c or 2 for c in classes), default=2))
    for point in measured.checkpoints:
        share, number = point.validation.metric, len(point.validation.losses)
        if share is not None and number:
            error = math.sqrt(share * (1 - share) / number)
            if share - 2 * error > most:
                return True
    return False


def _largest_share(entropy: float, classes: int) -> float:
    """The most that one of so many classes can have of all samples, if their entropy is this."""
    low, high = 1 / classes, 1.0
    for _ in range(40):
        share = (low + high) / 2
        rest = 1 - share
        known = -share * math.log(share) - rest * math.log(rest / max(1, classes - 1))
        low, high = (share, high) if known > entropy else (low, share)
    return high


def _never_holds(measured: Generalization, learnt: float, samples: int) -> bool:
    """Whether single samples show it: training loss is far below a guess's, validation never is.

    With fewer than `samples` to learn from, that may be so where there is something to learn.
    """
    guess, first, last = measured.guess, measured.first, measured.last
    if not guess or first is None or (measured.samples or 0) < samples:
        return False
    best = measured.best().validation
    return (
        last.train.mean < (1 - learnt) * guess
        and first.train.mean > (1 - learnt / 2) * guess
        and best.mean > guess - best.error
        and last.validation.mean - 2 * last.validation.error > guess
    )


def _measured(measured: Generalization) -> Finding:
    train, best = measured.last.train.mean, measured.best().validation
    guess = measured.guess or 0.0
    return Finding(
        f"after {measured.last.step} steps training loss is {train:.3g}, that of a guess {guess:.3g}, but "
        f"validation loss never was below it (at best {best.mean:.3g} ± {best.error:.2g}): what is learnt "
        "holds for no other sample",
        where=measured.site,
        evidence={
            "learnt": round(1 - train / guess, 4),
            "constant_answer": round(guess, 6),
            "best_validation": round(best.mean, 6),
            "passes": len(measured.checkpoints),
        },
        fixes=_FIXES,
        confidence=Confidence.LIKELY,
    )


def _learnt_by(loss: LossTrace, step: int) -> float:
    """The share of the constant answer's loss that was gone at a step."""
    until = [value for at, value in zip(loss.steps, loss.values, strict=True) if at <= step]
    assert loss.guess
    return 1 - statistics.median(until[-5:] or loss.values[:1]) / loss.guess


def _finding(loss: LossTrace, validation: EvaluationTrace, share: float) -> Finding:
    best = min(validation.values)
    return Finding(
        f"the training loss has come down by {share:.0%} of that of a guess, {loss.guess:.3g}, but in "
        f"{len(validation.values)} passes validation never was below it (at best {best:.3g}): what is "
        "learnt holds for no other sample",
        where=loss.site,
        evidence={
            "learnt": round(share, 4),
            "constant_answer": round(loss.guess or 0.0, 6),
            "best_validation": round(best, 6),
            "passes": len(validation.values),
        },
        fixes=_FIXES,
        confidence=Confidence.LIKELY,
    )
