"""LOS008 loss-never-moves."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from trainlint.rule import Confidence, Finding, Fix, Severity, Trace, rule

_MANY = 100


@rule(
    "LOS008",
    severity=Severity.WARNING,
    since="0.1",
    own=["loss", "optimizer", "data"],
    shows="losses",
)
def loss_never_moves(
    trace: Trace, *, steps: int = 50, drop: float = 0.02, share: float = 0.02
) -> Iterator[Finding]:
    """The loss is no better than that of a constant answer, and does not fall any more.

    The best answer that does not look at the input costs the entropy of the class frequencies with cross
    entropy, and the variance of the targets with a squared error. A model that after some dozens of
    steps is no better has not begun to learn. What keeps it from that is mostly another finding of
    the same run, under which this one then stands; alone, it says that none of them applies: the learning
    rate, the data or the size of the model are next to look at.

    Reported after `steps` steps, where less than the share `drop` of the constant answer's loss is gone,
    and the last fifth of the run is lower than the middle by less than `share` of it. Where the loss is
    still above the constant answer's, it must also have hardly moved since the start, and have no more than
    100 classes: with thousands, the way down to their frequencies alone takes long. Only for the loss that
    the backward pass starts from (a fixed multiple of it), with a plain mean and one optimizer. Not
    while the learning rate still rises (warm-up), nor for losses whose best constant answer is unknown or
    perfect: contrastive ones with the positive in one place, GANs, physics-informed residuals. Advice only
    for a squared error, whose targets may move as training goes on: returns in reinforcement learning.

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
        if not loss.guess or len(values) < steps:
            continue
        last = statistics.median(_fifth(values, len(values)))
        middle = statistics.median(_fifth(values, len(values) // 2))
        first = statistics.median(_fifth(values, 0))
        learnt = 1 - last / loss.guess
        if not learnt < drop or middle - last > share * loss.guess:
            continue
        is_above = learnt < -drop
        if is_above and ((loss.classes or 0) > _MANY or first - last > share / 4 * loss.guess):
            continue
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
                    "train on one batch of 16 samples: what cannot fit these has a fault in itself"
                ),
                Fix("compare a few inputs with their labels, as the loop sees them"),
            ],
            # Targets of a squared error may move away: returns that grow, an annealed second term.
            severity=Severity.INFO if loss.kind == "mse_loss" else None,
            confidence=Confidence.LIKELY,
        )


def _fifth(values: Sequence[float], end: int) -> Sequence[float]:
    """A fifth of them, at least three, that ends there if it can."""
    size = max(3, len(values) // 5)
    start = max(0, end - size)
    return values[start : start + size]


def _is_warming_up(trace: Trace) -> bool:
    """Whether the learning rate is at its highest now, after having been lower."""
    for optimizer in trace.optimizers:
        highest = [max(rates) for _, rates in optimizer.rates if rates]
        if len(highest) > 1 and highest[-1] >= max(highest) and highest[-1] > highest[0]:
            return True
    return False
