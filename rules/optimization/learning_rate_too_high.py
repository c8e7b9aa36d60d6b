"""OPT002 learning-rate-too-high."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from statistics import median

from trainlint.rule import (
    Confidence,
    Finding,
    Fix,
    Incident,
    ModelTrace,
    OptimizerTrace,
    Patch,
    Severity,
    SourceEdits,
    Trace,
    explained,
    growth_through_time,
    loops,
    optimizers,
    rule,
)

# What the first steps change of the median layer's weights in sound runs, the median of 105 runs of
# benchmarks/training_runs.py: by optimizers that scale each step by the gradients' size, and by SGD.
SOUND_PACE = 0.015
SOUND_PACE_OF_SGD = 0.005
# Below, no loss grows because of the steps.
SLOW = 0.03
# Numbers of this size have not been blown up by steps.
ORDINARY = 1e3


@rule(
    "OPT002",
    severity=Severity.ERROR,
    since="0.1",
    explains=[
        "non-finite",
        "exploding-gradient",
        "loss-never-moves",
        "underfitting",
        "dead-relu",
        "dead-units",
    ],
    own=["loss", "optimizer", "data"],
    shows="losses",
)
def learning_rate_too_high(
    trace: Trace,
    edits: SourceEdits,
    *,
    update: float = 0.1,
    growth: float = 2.0,
    learnt: float = 0.02,
    thrown: float = 0.25,
    steps: int = 20,
) -> Iterator[Finding]:
    """The steps are so long that the loss grows, becomes NaN, or never comes down.

    A gradient is right near where it was taken. Along a direction of curvature λ, gradient descent with
    a rate above 2/λ overshoots by more than it was off, and each step makes it worse. The measure that
    fits all layers is the update over the weight, ‖Δw‖/‖w‖: a thousandth to a hundredth learns, a tenth
    in each step replaces the layer every ten steps.

    An error if the loss became NaN or infinite and a step before had changed the median layer by more
    than `update` of its weights; or if it ends above `growth` times its start and above as much of the
    best constant answer's, with steps of 3% or more; or if it leapt above twice `growth` times both, by
    steps above `update`, and after `steps` steps less than `learnt` of the constant answer's loss is gone:
    it has fallen back to what a guess has. A warning if no leap was seen of such steps, but the median
    one is above `update`, or one is above `thrown`; also where the loss leapt by such a one and ends above
    `growth` times its start: what had been learnt before is gone. Large updates alone are no
    finding: some nets learn well so. Losses without a known constant answer may grow for reasons of their
    own (GANs, reinforcement learning, growing penalties): there the median step must be above `update`,
    and the finding is a warning.

    ## Bad
    ```python
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=5.0)
    for _ in range(30):
        x = torch.randn(32, 8)
        loss = F.mse_loss(model(x), x[:, :1] * 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ```

    ## Good
    ```python
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(30):
        x = torch.randn(32, 8)
        loss = F.mse_loss(model(x), x[:, :1] * 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ```

    ## When to ignore it
    Where the targets change while the model learns, so that a growing loss is no step back.

    ## Fix safety
    Unsafe. The rate that is suggested makes the first updates 1.5% of the median layer's weights, 0.5% with
    SGD, as they are in the median of sound runs; a range test finds the best one.

    ## References
    Seed A, problem 3. Smith 2017, arXiv:1506.01186 (range test). Cohen et al. 2021, arXiv:2103.00065
    (2/λ).
    """
    for model in trace.trained:
        paces = {step: pace for step, pace in model.paces().items() if isfinite(pace)}
        if not paces:
            continue
        told = _non_finite(trace, paces, update) or _grown(trace, paces, growth, update)
        if told is not None:
            message, certain = told
            yield _finding(trace, edits, model, paces, message, certain)
            continue
        usual = median(paces.values())
        if (
            max(paces.values()) > thrown
            and (leap := _leapt(trace, growth))
            and _change(trace) > growth
        ):
            message = (
                f"the loss leapt to {leap:.3g}, by a step that changed the median layer by "
                f"{_of(max(paces.values()))} its weights, and ends at {_change(trace):.2g} times "
                "its start"
            )
            yield _finding(trace, edits, model, paces, message, certain=False)
            continue
        gone = [share for o in trace.objectives if (share := o.learnt(steps)) is not None]
        if not gone or max(gone) >= learnt or trace.steps < steps or not _stays(trace, learnt):
            continue
        largest, leap = max(paces.values()), _leapt(trace, growth)
        if largest > update and leap is not None:
            message = (
                f"the loss leapt to {leap:.3g}, by steps of up to {_of(largest)} a layer's "
                f"weights, and after {trace.steps} steps is no better than a guess"
            )
            yield _finding(trace, edits, model, paces, message, certain=True)
        elif usual > update:
            message = (
                f"the median step changes a layer by {_of(usual)} its weights, and after "
                f"{trace.steps} steps the loss is no better than a guess"
            )
            yield _finding(trace, edits, model, paces, message, certain=False)
        elif largest > thrown:
            message = (
                f"a step changed the median layer by {_of(largest)} its weights, and after "
                f"{trace.steps} steps the loss is no better than a guess"
            )
            yield _finding(trace, edits, model, paces, message, certain=False)


def _non_finite(trace: Trace, paces: dict[int, float], update: float) -> tuple[str, bool] | None:
    first = next((step for step, value in trace.losses if not isfinite(value)), None)
    if first is None or any(trace.of("not-finite-input")):
        return None
    if any(_is_ordinary(incident) for incident in trace.of("not-finite-result")):
        return None  # whatever the rate: the operation cannot take such values
    before = [pace for step, pace in paces.items() if step <= first]
    if not before or max(before) <= update or isfinite(trace.losses[-1][1]):
        return None
    return (
        (
            f"the loss is not finite from step {first} on, after a step that changed the median layer by "
            f"{_of(max(before))} its weights"
        ),
        True,
    )


def _is_ordinary(incident: Incident) -> bool:
    """Whether the operation that made a NaN was given numbers that have not grown."""
    return bool(max(abs(incident.facts["least"]), abs(incident.facts["largest"])) < ORDINARY)


def _leapt(trace: Trace, growth: float) -> float | None:
    """The largest loss, where it is far above both the first and a guess."""
    for objective in trace.objectives:
        values = [value for value in objective.values if isfinite(value)]
        if (
            values
            and objective.guess
            and max(values) > 2 * growth * max(values[0], objective.guess)
        ):
            return max(values)
    return None


def _grown(
    trace: Trace, paces: dict[int, float], growth: float, update: float
) -> tuple[str, bool] | None:
    """Whether the loss ends far above its start."""
    largest = max(paces.values())
    for objective in trace.objectives:
        values = [value for value in objective.values if isfinite(value)]
        if len(values) >= 5 and objective.guess and largest > SLOW:
            # Few of these are recorded: the last one, and those of every step, must agree.
            end = min(_end(values), values[-1])
            if end > growth * max(values[0], objective.guess) and _change(trace) > growth:
                return (
                    (
                        f"the loss went from {values[0]:.3g} to {end:.3g}, where a guess has "
                        f"{objective.guess:.3g}: steps of up to {_of(largest)} a layer's weights"
                    ),
                    True,
                )
    known = any(objective.guess for objective in trace.objectives)
    values = [value for _, value in trace.losses if isfinite(value)]
    usual = median(paces.values())
    if known or len(values) < 10 or usual <= update or values[0] <= 0:
        return None
    end = _end(values)
    if end <= growth * values[0]:
        return None
    return (
        (
            f"the loss went from {values[0]:.3g} to {end:.3g}, with steps of {_of(usual)} a layer's "
            "weights in the median"
        ),
        False,
    )


def _finding(
    trace: Trace,
    edits: SourceEdits,
    model: ModelTrace,
    paces: dict[int, float],
    message: str,
    certain: bool,
) -> Finding:
    optimizer = trace.optimizer_of(model)
    rate = 0.0
    if optimizer is not None and optimizer.rates:
        rate = max(optimizer.rates[0][1], default=0.0)
    first = next(iter(paces.values()))
    kind = "the optimizer" if optimizer is None else optimizer.kind
    place = next((place for place, o in enumerate(trace.optimizers) if o is optimizer), None)
    return Finding(
        f"{message}: {f'lr={rate:g} is' if rate else 'the rate is'} too high for {kind}",
        where=(optimizer.site if optimizer is not None else None) or model.site,
        evidence={
            "learning_rate": rate,
            "first_update": first,
            "median_update": median(paces.values()),
            "largest_update": max(paces.values()),
        },
        fixes=_fixes(trace, edits, model, optimizer, rate, first),
        severity=Severity.ERROR if certain else Severity.WARNING,
        confidence=Confidence.LIKELY,
        fault=None if place is None else ("learning-rate", place),
    )


def _fixes(
    trace: Trace,
    edits: SourceEdits,
    model: ModelTrace,
    optimizer: OptimizerTrace | None,
    rate: float,
    first: float,
) -> list[Fix]:
    fixes = _slower(edits, optimizer, rate, first)
    if trace.clips or not (model.is_recurrent or growth_through_time(model)):
        return fixes
    clipped = explained(
        loops.clipped(trace, edits, 1.0),
        reason="Pascanu et al. 2013: through time one matrix multiplies the gradient again and again; "
        "g ← g·min(1, 1/‖g‖) bounds the step",
        patches=[Patch.training("clip", max_norm=1.0)],
    )
    return [clipped, *fixes]


def _slower(
    edits: SourceEdits, optimizer: OptimizerTrace | None, rate: float, first: float
) -> list[Fix]:
    """A rate whose first updates are small, or a tenth, and what a range test finds."""
    is_sgd = optimizer is not None and optimizer.kind in ("SGD", "ASGD")
    pace = SOUND_PACE_OF_SGD if is_sgd else SOUND_PACE
    is_known = bool(rate) and first > pace
    # Below a thousandth it is no matter of the rate.
    factor = max(pace / first, 1e-3) if is_known else 0.1
    made = optimizers.made_rate(optimizer)
    better = float(f"{(made or rate) * factor:.0e}")
    title = (
        f"lower the learning rate to lr={better:g}" if better else "a tenth of the learning rate"
    )
    reason = (
        f"updates go with lr: first ones of {pace:.2g} of the weights, as in sound runs, instead of "
        f"{first:.2g}"
        if is_known
        else "LeCun et al. 1998: steps above 2/λ, the curvature's, diverge; a tenth is tried first"
    )
    return [
        explained(
            optimizers.with_option(edits, optimizer, "lr", better, title=title),
            reason=reason,
            patches=[Patch.training("learning-rate", factor=float(f"{factor:.2g}"))],
        ),
        Fix(
            "take the learning rate from a range test",
            reason="Smith 2017: the largest rate at which the loss still falls, as measured on this model",
            obstacle="it is known once it was measured",
            patches=[Patch.training("learning-rate", range_test=True)],
        ),
    ]


def _stays(trace: Trace, learnt: float) -> bool:
    """Whether the losses of every step tell the same: near their start, or where a guess is."""
    values = [value for _, value in trace.losses if isfinite(value)]
    guesses = [objective.guess for objective in trace.objectives if objective.guess]
    return _change(trace) > 0.9 or (
        len(guesses) == 1 and bool(values) and _end(values) > (1 - learnt) * guesses[0]
    )


def _change(trace: Trace) -> float:
    """The last losses over the first one, from those of every step."""
    values = [value for _, value in trace.losses if isfinite(value)]
    return _end(values) / values[0] if values and values[0] > 0 else 0.0


def _end(values: list[float]) -> float:
    return median(values[-max(3, len(values) // 5) :])


def _of(share: float) -> str:
    """`12% of`, or `75 times`."""
    return f"{share:.2g} times" if share > 10 else f"{share:.0%} of"
