"""DAT007 unscaled-target."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence

from trainlint.rule import (
    Confidence,
    Data,
    FieldData,
    Finding,
    Fix,
    Losses,
    LossTrace,
    Patch,
    Severity,
    SourceEdits,
    Trace,
    explained,
    loading_fixes,
    rule,
)


@rule(
    "DAT007",
    severity=Severity.INFO,
    since="0.1",
    explains=[
        "loss-never-moves",
        "initial-loss-off",
        "learning-rate-too-high",
        "learning-rate-too-low",
        "exploding-gradient",
        "underfitting",
        "cannot-memorise",
        "dead-relu",
    ],
    own=["data", "loss"],
)
def unscaled_target(
    data: Data,
    trace: Trace,
    losses: Losses | None,
    edits: SourceEdits | None,
    *,
    large: float = 10.0,
    small: float = 0.1,
    steps: int = 50,
) -> Iterator[Finding]:
    """Targets of a squared error are far from mean 0 and deviation 1.

    At the start a network answers about 0, give or take less than 1. A squared error then begins at
    mean² + std² of the targets, where standardised ones give 1, and its gradient is as many times too large
    as the root of that: clipped, it points one way only; not clipped, the step is too large for SGD. Adam,
    whose steps are of the size of the learning rate, walks there step by step: from 0 to a mean of 200
    with lr 0.001 is a long way. Targets that are far too small are the reverse: the loss is that of the
    initial noise, and what is to be learnt drowns in it.

    Advice where the root mean square of the targets is above `large`, or below `small`. A warning where
    the loss after `steps` steps and more, and after eight times as many, still is above that of the best
    constant answer, the variance of the targets: not even their mean has been learnt. Not where the output
    is bounded, as by a tanh: it is then that which cannot reach the targets.

    ## Bad
    ```python
    x = torch.randn(320, 8)
    y = 150 + 80 * x[:, :1]
    dataset = torch.utils.data.TensorDataset(x, y)
    train_loader = torch.utils.data.DataLoader(dataset, batch_size=32, shuffle=True)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    criterion = nn.MSELoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    ```

    ## Good
    ```python
    x = torch.randn(320, 8)
    y = 150 + 80 * x[:, :1]
    y = (y - y.mean()) / y.std()
    dataset = torch.utils.data.TensorDataset(x, y)
    train_loader = torch.utils.data.DataLoader(dataset, batch_size=32, shuffle=True)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    criterion = nn.MSELoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    ```

    ## When to ignore it
    When the model scales its own output, as by a last layer whose bias starts at the mean of the targets.

    ## Fix safety
    Unsafe: the answers are then in other units, and have to be scaled back, with the same figures,
    where they are used.

    ## References
    LeCun, Bottou, Orr & Müller 1998, "Efficient BackProp", section 4.5 (targets). Bishop 1995, "Neural
    Networks for Pattern Recognition", section 8.2.
    """
    target = data.train.target
    if target is None or target.kind != "values" or not 0 < target.std < math.inf:
        return
    size = math.hypot(target.mean, target.std)
    if small <= size <= large or (losses is not None and _is_bounded(losses)):
        return
    for loss in trace.objectives:
        if loss.kind == "mse_loss" and _judges(loss, target):
            yield _finding(data, edits, target, trace, loss, size, steps)
            return


def _is_bounded(losses: Losses) -> bool:
    """Whether the model's last layer is a sigmoid or the like, which no scale of the output gets around."""
    bounds = [losses.range(call) for call in losses.calls]
    return any(b is not None and math.isfinite(b.low) and math.isfinite(b.high) for b in bounds)


def _judges(loss: LossTrace, target: FieldData) -> bool:
    """Whether the loss gets the targets as the loader gives them: their variance is its best constant's."""
    variance = target.std**2
    return loss.guess is not None and 0.5 * variance < loss.guess < 2 * variance


def _finding(
    data: Data,
    edits: SourceEdits | None,
    target: FieldData,
    trace: Trace,
    loss: LossTrace,
    size: float,
    steps: int,
) -> Finding:
    assert loss.guess is not None
    values = trace.values_of(loss) or list(loss.values)
    first, last = (_median(part) for part in (values[:5], values[-max(3, len(values) // 5) :]))
    hurts = loss.is_plain and len(values) >= steps and not last < loss.guess
    measured = f"answering the mean gives {loss.guess:.3g}"
    if loss.guess < first < math.inf:
        measured += f", the first steps {first / loss.guess:.3g} times that"
    if hurts and math.isfinite(last):
        measured += f", and {len(values)} steps later it still is {last / loss.guess:.3g} times"
    elif hurts:
        measured += f", and within {len(values)} steps the loss is not finite"
    return Finding(
        f"targets of mean {target.mean:.3g} and deviation {target.std:.3g} under a squared error: "
        f"{_start(size)}; {measured}",
        where=data.train.site or loss.site,
        evidence={
            "mean": round(target.mean, 6),
            "std": round(target.std, 6),
            "first_loss": round(first, 6) if math.isfinite(first) else None,
            "constant_answer": round(loss.guess, 6),
            "last_loss": round(last, 6) if math.isfinite(last) else None,
        },
        fixes=[
            _scaled(edits, data, target),
            Fix(
                f"or start the last layer's bias at {target.mean:.4g}",
                reason="its bias alone is what a constant answer needs",
                obstacle="the first fix sets the deviation right as well",
            )
            if abs(target.mean) > 3 * target.std
            else Fix(
                f"and give errors in the old units: deviations times {target.std:.4g}",
                reason="(ŷ − y)·σ is the error before the scaling",
                obstacle="where answers are used is not seen",
            ),
        ],
        severity=Severity.WARNING if hurts else Severity.INFO,
        confidence=Confidence.POSSIBLE if hurts else Confidence.CERTAIN,
    )


def _scaled(edits: SourceEdits | None, data: Data, target: FieldData) -> Fix:
    """Mean 0 and deviation 1, at the targets of both data sets."""
    title = (
        f"scale the targets: y = (y - {target.mean:.4g}) / {target.std:.4g} for all sets, and "
        "back where it is used"
    )
    sites = [data.train.site]
    if data.validation is not None and data.validation.site is not None:
        sites.append(data.validation.site)
    change = f"({{}} - {target.mean:.4g}) / {target.std:.4g}"
    made = (
        Fix(title)
        if edits is None or any(size != 1 for size in target.shape)
        else loading_fixes.with_tensor(edits, sites, -1, change, title=title)
    )
    return explained(
        made,
        reason="LeCun et al. 1998, section 4.5: the loss starts at mean² + std² = "
        f"{target.mean**2 + target.std**2:.3g}, and then at 1",
        obstacle="each column has its own figures",
        patches=[Patch.training("normalise-targets")],
    )


def _median(values: Sequence[float]) -> float:
    """Infinite where one of them is not finite."""
    return statistics.median(values) if all(map(math.isfinite, values)) else math.inf


def _start(size: float) -> str:
    if size < 1:
        return (
            "the loss starts at that of the initial answers' noise, above all that is to be learnt"
        )
    return (
        f"the loss starts near {size**2:.3g}, and the gradient {size:.3g} times as large as with mean 0 "
        "and deviation 1"
    )
