"""LOS008 loss-never-moves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from math import isfinite

from trainlint.rule import (
    Confidence,
    Finding,
    Fix,
    NotMeasurable,
    Patch,
    Severity,
    Trace,
    rule,
)

_MANY = 100
# Of a guess's loss: less is no fall, more above it is another place than a guess.
SLIGHT = 0.005
FAR_ABOVE = 0.1


@rule(
    "LOS008",
    severity=Severity.WARNING,
    since="0.1",
    own=["loss", "optimizer", "data"],
    shows="losses",
)
def loss_never_moves(
    trace: Trace, *, steps: int = 50, sure: int = 200, drop: float = 0.02, moved: float = 0.03
) -> Iterator[Finding | NotMeasurable]:
    """The loss is no better than that of a constant answer, and does not fall any more.

    The best answer that does not look at the input costs the entropy of the class frequencies with cross
    entropy, that of the targets' means with binary cross entropy, and the variance of the targets with a
    squared error. A model that after some dozens of steps is no better has not begun to learn. What keeps
    it from that is mostly another finding of the same run, under which this one then stands; alone, it
    says that none of them applies: the learning rate, the data or the size of the model are next to look
    at.

    Reported after `steps` steps, where less than the share `drop` of the constant answer's loss is gone in
    the last quarter of the run, with a standard error to spare, and that quarter is not lower than the one
    before it by more than chance. Not measurable where the noise of the losses hides the answer, and
    where no layer has moved by more than `moved` of its weights in all steps together: a model that
    hardly moved yet may learn well; nor where it still falls, but after `sure` steps is no lower than
    that: so does a model that learns labels by heart which have nothing to do with their inputs (DAT004).

    Where the loss is still far above the constant answer's, it must have hardly moved since the start,
    and where it is above at all, there may be no more than 100 classes: with thousands, the way down to
    their frequencies alone takes long. Only for the loss that the backward pass starts from (a fixed
    multiple of it), with a plain mean and one optimizer. Not while the learning rate still rises
    (warm-up), nor for losses whose best constant answer is unknown or perfect: contrastive ones with the
    positive in one place, GANs, physics-informed residuals.

    A warning from `sure` steps on. Before, it is advice: of sound runs that were tried, some started with
    a plateau of 60 to 140 steps, and nothing tells them from labels that were shuffled. Advice, too, for a
    squared error, whose targets may move as training goes on: returns in reinforcement learning.

    ## Bad
    ```python
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(80):
        x = torch.randn(1024, 8)
        y = torch.randint(2, (1024,))
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ```

    ## Good
    ```python
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(80):
        x = torch.randn(64, 8)
        y = (x[:, 0] > 0).long()
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ```

    ## When to ignore it
    When next to nothing of the target can be known from the input (returns of stocks), or when the task is
    known to need thousands of steps before anything is seen.

    ## Fix safety
    Only shown: it is a symptom, and names no cause.

    ## References
    Karpathy 2019, "A Recipe for Training Neural Networks" (input-independent baseline; overfit one batch).
    """
    if sum(optimizer.steps > 0 for optimizer in trace.optimizers) != 1 or _is_warming_up(trace):
        return
    for loss in trace.objectives:
        values = trace.values_of(loss)
        if not loss.guess or not values or not all(map(isfinite, values)):
            continue
        if len(values) < steps:
            yield NotMeasurable(f"{len(values)} of {steps} steps were seen")
            return
        quarter = max(3, len(values) // 4)
        before, end = values[-2 * quarter : -quarter], values[-quarter:]
        last, error = statistics.mean(end), _error(end)
        learnt, doubt = 1 - last / loss.guess, error / loss.guess
        if learnt - 2 * doubt >= drop:
            continue
        fall = statistics.mean(before) - last
        if fall > max(SLIGHT * loss.guess, 2 * (error**2 + _error(before) ** 2) ** 0.5):
            if len(values) >= sure and abs(learnt) < drop:
                yield NotMeasurable(
                    f"after {len(values)} steps {learnt:.1%} of a guess's loss is gone, and it still "
                    "falls: a longer run with a validation loss tells learning from learning by heart"
                )
                return
            continue
        first = statistics.median(values[:quarter])
        if learnt < -drop and (loss.classes or 0) > _MANY:
            continue
        if learnt < -FAR_ABOVE and first - last > SLIGHT * loss.guess:
            continue
        if learnt + doubt >= drop:
            yield NotMeasurable(
                f"the losses scatter too much: {learnt:.1%} ± {2 * doubt:.1%} of a guess's loss is gone"
            )
            return
        path = _path(trace)
        if path is not None and path < moved:
            yield NotMeasurable(
                f"after {len(values)} steps no layer has moved by more than {path:.1g} of its weights"
            )
            return
        is_above = learnt < -drop
        over = "worse than" if is_above else "no better than"
        yield Finding(
            f"after {len(values)} steps the loss is {last:.3g}, {over} the best answer that ignores "
            f"the input, {loss.guess:.3g}, and no longer falls",
            where=loss.site,
            evidence={
                "steps": len(values),
                "loss": round(last, 6),
                "constant_answer": round(loss.guess, 6),
                "first_loss": round(values[0], 6),
            },
            fixes=[
                Fix(
                    "take the learning rate from a range test",
                    reason="Smith 2017: steps that are too short or too long look alike in the loss, and a "
                    "range test tells them apart",
                    obstacle="it is known once it was measured",
                    patches=[Patch.training("learning-rate", range_test=True)],
                ),
                Fix(
                    "train on one batch of 16 samples: what cannot fit these has a fault in itself",
                    reason="Karpathy 2019: overfit one batch; it rules out data, order and regularisation",
                    obstacle="it is a test, and changes nothing",
                ),
                Fix(
                    "compare a few inputs with their labels, as the loop sees them",
                    reason="labels that were permuted apart from their inputs have nothing to be learnt",
                    obstacle="it is a test, and changes nothing",
                ),
            ],
            # Targets of a squared error may move away: returns that grow, an annealed second term.
            severity=Severity.INFO if loss.kind == "mse_loss" or len(values) < sure else None,
            confidence=Confidence.LIKELY if len(values) >= sure else Confidence.POSSIBLE,
        )


def _error(values: Sequence[float]) -> float:
    """The standard error of their mean."""
    return statistics.stdev(values) / math.sqrt(len(values))


def _path(trace: Trace) -> float | None:
    """How far the layer that moves most has gone, of its weights. None where nothing was seen of it."""
    paths = []
    for model in trace.trained:
        for parameter in model.weights():
            updates = [
                update for update in parameter.update if update is not None and isfinite(update)
            ]
            if updates and parameter.weight[0]:
                paths.append(statistics.mean(updates) * trace.steps)
    return max(paths, default=None)


def _is_warming_up(trace: Trace) -> bool:
    """Whether the learning rate is at its highest now, after having been lower."""
    for optimizer in trace.optimizers:
        highest = [max(rates) for _, rates in optimizer.rates if rates]
        if len(highest) > 1 and highest[-1] >= max(highest) and highest[-1] > highest[0]:
            return True
    return False
