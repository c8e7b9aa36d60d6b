"""OPT004 weight-decay-too-strong."""

from __future__ import annotations

from collections.abc import Iterator
from math import log
from statistics import median

from trainlint.rule import (
    Confidence,
    Finding,
    Fix,
    OptimizerTrace,
    ParameterTrace,
    Patch,
    Severity,
    SourceEdits,
    Trace,
    explained,
    optimizers,
    rule,
)

# The rate that goes with a usual decay: of a large product, the part that is further off is at fault.
USUAL_RATE = 1e-3
USUAL_RATE_SGD = 0.1
# By then a run at a usual rate has begun to learn: to come down by so much from a guess's loss.
SEEN = 50
BEGUN = 0.05
# They divide the decay by the size of the gradients, as all that is in the gradient.
COUPLED = frozenset({"Adam", "NAdam", "RAdam", "Adamax", "Adagrad", "RMSprop", "Adadelta"})


@rule(
    "OPT004",
    severity=Severity.WARNING,
    since="0.1",
    explains=["loss-never-moves", "underfitting", "learning-rate-too-high", "dead-relu"],
    own=["optimizer"],
)
def weight_decay_too_strong(
    trace: Trace,
    edits: SourceEdits,
    *,
    shrinkage: float = 3e-3,
    ratio: float = 10.0,
    steps: int = 10,
) -> Iterator[Finding]:
    """Weight decay takes more from the weights in each step than the loss can put back.

    L2's penalty λ/2·‖w‖² has the gradient λ·w, so that each step of rate η multiplies the weights by
    1 − η·λ: large weights lose most, and none becomes 0. (L1's λ·|w| has the gradient λ·sign w: each
    weight loses the same η·λ until it is 0, which makes them sparse.) Without a gradient the weights halve
    in ln 2/(η·λ) steps; at η·λ = 3·10⁻³ these are 231. What is usual, 0.1·10⁻⁴ with SGD and 10⁻³·10⁻² with
    AdamW, leaves them 70 000.

    Reported from η·λ = `shrinkage` on, after `steps` steps. For Adam and the like, which scale the decay
    as they do the gradient, where λ·‖w‖ is more than `ratio` times the loss's own gradient. A
    warning where the weights did shrink and the model has not come half of the way from a guess to 0; else
    advice, since layers before a normalisation can do with any size. Where it is the rate that is further
    from what is usual than the decay, that is said, and is one finding with learning-rate-too-high; it is a
    warning, too, where after 50 steps less than 5% of the loss of a guess is gone.

    ## Bad
    ```python
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(40):
        x = torch.randn(16, 8)
        loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ```

    ## Good
    ```python
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=5e-4)
    for _ in range(40):
        x = torch.randn(16, 8)
        loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ```

    ## When to ignore it
    Where the penalty is what is studied.

    ## Fix safety
    Unsafe: how much decay helps is found on held-out data; the value is the usual one.

    ## References
    Seed A, regularisation. Krogh & Hertz 1991. Loshchilov & Hutter 2019, arXiv:1711.05101. Rates:
    `benchmarks/rate_and_decay.py`.
    """
    learnt = [part for o in trace.objectives if (part := o.learnt(steps)) is not None]
    for place, optimizer in enumerate(trace.optimizers):
        if optimizer.steps < steps:
            continue
        for number, group in enumerate(optimizer.groups):
            decay = float(group.get("weight_decay") or 0.0)
            weights = [
                p for model in trace.trained for p in model.weights() if p.group == (place, number)
            ]
            if not decay or not weights:
                continue
            finding = _judged(optimizer, number, decay, weights, shrinkage, ratio)
            if finding is None:
                continue
            message, evidence = finding
            left = _left(weights)
            is_harm = left is not None and left < 0.9 and max(learnt, default=0.0) < 0.5
            if left is not None and left < 1:
                message += f"; they are at {left:.2g} of what they were"
            is_decoupled = "AdamW" in optimizer.kind or group.get("decoupled_weight_decay")
            usual = 0.01 if is_decoupled else 1e-4
            rate = _rate(optimizer, number)
            usual_rate = USUAL_RATE_SGD if optimizer.kind == "SGD" else USUAL_RATE
            is_rate = "shrinkage" in evidence and rate / usual_rate > decay / usual
            if is_rate:
                is_stuck = trace.steps >= SEEN and max(learnt, default=1.0) < BEGUN
                seen = (
                    f", and after {trace.steps} steps next to nothing is learnt" if is_stuck else ""
                )
                yield Finding(
                    f"{message}; the decay is usual, and lr={rate:g} is not{seen}",
                    where=optimizer.site,
                    evidence={"weight_decay": decay, "left": left, **evidence},
                    fixes=[_slower(edits, optimizer, rate, usual_rate)],
                    severity=Severity.WARNING if is_harm or is_stuck else Severity.INFO,
                    confidence=Confidence.LIKELY,
                    fault=("learning-rate", place),
                )
                continue
            yield Finding(
                message,
                where=optimizer.site,
                evidence={"weight_decay": decay, "left": left, **evidence},
                fixes=[
                    explained(
                        optimizers.with_option(
                            edits,
                            optimizer,
                            "weight_decay",
                            usual,
                            title=f"weaken the decay to weight_decay={usual:g}",
                        ),
                        reason=f"each step leaves 1 − lr·λ of a weight, 1 − {rate:g}·{decay:g} now and "
                        f"1 − {rate:g}·{usual:g} then",
                        patches=[Patch.training("weight-decay", value=usual)],
                    )
                ],
                severity=Severity.WARNING if is_harm else Severity.INFO,
                confidence=Confidence.LIKELY,
            )


def _judged(
    optimizer: OptimizerTrace,
    number: int,
    decay: float,
    weights: list[ParameterTrace],
    shrinkage: float,
    ratio: float,
) -> tuple[str, dict[str, float]] | None:
    """What is said of a group whose decay is too strong."""
    group = optimizer.groups[number]
    if optimizer.kind in COUPLED and not group.get("decoupled_weight_decay"):
        ratios = [
            decay * norm / gradient
            for p in weights
            if (norm := p.median("weight")) and (gradient := p.median("gradient"))
        ]
        if not ratios or median(ratios) < ratio:
            return None
        return (
            f"weight_decay={decay:g} pulls at the weights {median(ratios):.2g} times as hard as the loss's "
            f"gradient does, and {optimizer.kind} makes whole steps of it"
        ), {"decay_over_gradient": median(ratios)}
    rate = _rate(optimizer, number)
    if rate * decay < shrinkage:
        return None
    return (
        f"lr·weight_decay = {rate:g}·{decay:g} takes {min(1.0, rate * decay):.2g} of the weights in each "
        f"step: without a gradient they halve in {max(1, round(log(2) / (rate * decay)))} steps"
    ), {"shrinkage": rate * decay}


def _rate(optimizer: OptimizerTrace, number: int) -> float:
    """The largest rate of the group."""
    return max((rates[number] for _, rates in optimizer.rates if number < len(rates)), default=0.0)


def _slower(edits: SourceEdits, optimizer: OptimizerTrace, rate: float, usual: float) -> Fix:
    factor = usual / rate
    made = optimizers.made_rate(optimizer)
    better = float(f"{(made or rate) * factor:.0e}")
    return explained(
        optimizers.with_option(
            edits, optimizer, "lr", better, title=f"lower the learning rate to lr={better:g}"
        ),
        reason=f"each step leaves 1 − lr·λ of a weight: λ is usual, and lr {rate / usual:.2g} times "
        "the usual one",
        patches=[Patch.training("learning-rate", factor=float(f"{factor:.2g}"))],
    )


def _left(weights: list[ParameterTrace]) -> float | None:
    """How large the weights are at the end, of what they were."""
    shares = []
    for parameter in weights:
        norms = [norm for norm in parameter.weight if norm]
        if len(norms) > 1:
            shares.append(norms[-1] / norms[0])
    return median(shares) if shares else None
