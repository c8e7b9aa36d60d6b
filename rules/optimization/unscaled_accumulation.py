"""OPT009 unscaled-accumulation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from statistics import median

from trainlint.rule import (
    Confidence,
    Finding,
    LossTrace,
    OptimizerTrace,
    Patch,
    Severity,
    SourceEdits,
    Trace,
    explained,
    loops,
    rule,
)

# The length of their steps goes with that of the gradient. Others divide it out.
SCALED = frozenset({"SGD", "ASGD"})


@rule(
    "OPT009",
    severity=Severity.INFO,
    since="0.1",
    explains=["learning-rate-too-high"],
    own=["loop", "loss", "optimizer"],
)
def unscaled_accumulation(
    trace: Trace, edits: SourceEdits, *, share: float = 0.8, steps: int = 5
) -> Iterator[Finding]:
    """Gradients of k micro-batches are added up and not divided by k: each step is k times as long.

    `backward()` adds to `.grad`. The mean over a batch of k·b samples is the mean of the k means over b
    samples each, so accumulation stands for a large batch only if each loss is divided by k. Left out,
    SGD takes k times the step that its learning rate says, and a limit of `clip_grad_norm_` meets k times
    the norm. Adam and its kind divide the factor out again, and are not reported.

    Reported where the `share` of an optimizer's steps, at least `steps`, had the same number k > 1 of
    backward passes behind them, all from one loss function that takes a mean over its batch, and
    where `backward()` was called on that mean itself. It is advice: the rate may have been chosen with the
    sum, and a sum over tasks, each a loss of its own, is meant as one.

    ## Bad
    ```python
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(10):
        optimizer.zero_grad()
        for _ in range(4):
            x = torch.randn(16, 8)
            loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
            loss.backward()
        optimizer.step()
    ```

    ## Good
    ```python
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(10):
        optimizer.zero_grad()
        for _ in range(4):
            x = torch.randn(16, 8)
            loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
            (loss / 4).backward()
        optimizer.step()
    ```

    ## When to ignore it
    Where the learning rate was chosen with the sum, or where each backward pass is of another task.

    ## Fix safety
    Unsafe: with the division the learning rate means something else.

    ## References
    PyTorch documentation, automatic mixed precision examples, "Gradient accumulation" (`loss /
    iters_to_accumulate`). Goyal et al. 2017, arXiv:1706.02677 (batch size and rate).
    """
    stepping = [optimizer for optimizer in trace.optimizers if optimizer.steps]
    if len(stepping) != 1 or stepping[0].kind not in SCALED:
        return
    optimizer = stepping[0]
    passes = _passes(optimizer, share, steps)
    if passes is None:
        return
    for loss in trace.objectives:
        if loss.is_plain and _is_given_whole(trace, loss, passes):
            rate = optimizer.rate
            yield Finding(
                f"each step of {optimizer.kind} follows the sum of {passes} gradients of mean losses: with "
                f"lr={rate:g} it goes as far as a mean over all of them would with {passes * rate:g}",
                where=loss.site,
                evidence={"backward_passes": passes, "learning_rate": rate},
                fixes=[
                    explained(
                        loops.divided(
                            trace,
                            edits,
                            passes,
                            title=f"divide each loss by {passes}: (loss / {passes}).backward()",
                        ),
                        reason=f"the mean over a batch of {passes}·b samples is the mean of {passes} "
                        f"means: g = 1/{passes}·Σ gᵢ",
                        patches=[Patch.training("loss-scaled", factor=1 / passes)],
                    )
                ],
                confidence=Confidence.POSSIBLE,
            )
            return


def _passes(optimizer: OptimizerTrace, share: float, steps: int) -> int | None:
    """The number of backward passes that is usual before a step, if it is more than one."""
    counts = Counter(dict(optimizer.backwards))
    if not counts:
        return None
    usual, times = counts.most_common(1)[0]
    return usual if usual > 1 and times >= max(steps, share * counts.total()) else None


def _is_given_whole(trace: Trace, loss: LossTrace, passes: int) -> bool:
    """Whether all backward passes of a recorded step start from values of this loss, as they are."""
    given: dict[int, list[float]] = {}
    for step, value in trace.losses:
        given.setdefault(step, []).append(value)
    own: dict[int, list[float]] = {}
    for step, value in zip(loss.steps, loss.values, strict=True):
        own.setdefault(step, []).append(value)
    ratios = [
        one / other
        for step, values in own.items()
        if len(values) == len(given.get(step, ())) == passes
        for one, other in zip(given[step], values, strict=True)
        if other
    ]
    return len(ratios) >= 3 * passes and abs(median(ratios) - 1) < 1e-3
