"""OPT003 learning-rate-too-low."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf, isfinite
from statistics import median

from trainlint.rule import (
    Confidence,
    Finding,
    Fix,
    NotMeasurable,
    OptimizerTrace,
    Patch,
    Severity,
    SourceEdits,
    Trace,
    explained,
    optimizers,
    rule,
)

SURE = 200
# Of a model that has not moved, what the first steps are to change of the quickest layer's weights: the
# median of 105 sound runs of benchmarks/training_runs.py, whose outer deciles are 0.7% and 12%.
SOUND_PACE = 0.03
# The least and the largest rates of those runs, as its `sound_rates()` has them.
SOUND_RATES = {
    **dict.fromkeys(("Adam", "AdamW", "NAdam"), (4.6e-5, 0.017)),
    "RMSprop": (1.4e-5, 5.2e-3),
    "Adagrad": (1.85e-3, 0.069),
    "SGD": (3.7e-3, 0.52),
}


@rule(
    "OPT003",
    severity=Severity.WARNING,
    since="0.1",
    explains=["loss-never-moves", "underfitting"],
    own=["loss", "optimizer", "data"],
)
def learning_rate_too_low(
    trace: Trace,
    edits: SourceEdits,
    *,
    update: float = 10**-3.5,
    progress: float = 0.1,
    steps: int = 20,
) -> Iterator[Finding | NotMeasurable]:
    """Every layer's steps are so short that training would take many times as long as it could.

    Measured as the update over the weight, ‖Δw‖/‖w‖. A thousandth in each step is usual; at 10⁻⁵, a
    layer needs 10⁵ steps of one direction to become another one.

    Reported where, after `steps` steps, the layer that moves *most* moves less than `update` of its
    weights in the median, and the loss has come down by less than `progress` of what it was. Not
    measurable while a warm-up still rises; rates far below the highest that was seen do not count. Silent,
    too, where the model beats a guess by half already: it has been trained, or is done; and where one of
    the recorded steps changed the median layer by 3%: the rate was high enough, and it is the gradients
    that have become small. Embeddings, of which a step meets a few rows, are left out. Where the loss of a
    guess is not known (preference and policy losses, which are trained at such rates on purpose), it is
    advice.

    Short steps also come of small gradients, and those of another fault: a loss that does not fit, units
    that are saturated or dead, weights of zero. Where one is found, this finding stands under it: what the
    rate should be is known when that is mended.

    ## Bad
    ```python
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-6)
    for _ in range(40):
        x = torch.randn(256, 8)
        loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ```

    ## Good
    ```python
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(40):
        x = torch.randn(16, 8)
        loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ```

    ## When to ignore it
    Where trained weights shall move a little only.

    ## Fix safety
    Unsafe. The rate that is suggested makes the quickest layer's updates 3% of its weights, the
    median of the first steps of sound runs that learn, but is never above those that sound runs have; a
    range test finds the best one. Where the rate is one that sound runs have, no other one is suggested:
    what is small then is the gradient.

    ## References
    Smith 2017, arXiv:1506.01186 (range test). Below about a tenth of the best rate nothing is measured
    that tells slow from hard; this finds a hundredth.
    """
    known = [objective for objective in trace.objectives if objective.guess]
    improved = _improved([value for _, value in trace.losses])
    if improved is None or improved > progress:
        return
    if trace.steps < steps:
        yield NotMeasurable(f"{trace.steps} of {steps} steps were seen")
        return
    if any((objective.learnt(steps) or 0.0) > 0.5 for objective in known):
        return
    for model in trace.trained:
        optimizer = trace.optimizer_of(model)
        if optimizer is None:
            continue
        weights = model.weights()
        recorded = sorted({step for parameter in weights for step in parameter.steps})
        rates = {step: _rate(optimizer, step) for step in recorded}
        peak = max(rates.values(), default=0.0)
        counted = {step for step, rate in rates.items() if rate >= peak / 2}
        # Where a gradient is 0 or not finite, the length of the steps says nothing of the rate.
        paces = [
            (pace, p.name)
            for p in weights
            if (pace := p.median("update", counted)) is not None
            and 0 < (p.median("gradient", counted) or 0.0) < inf
        ]
        if not peak or len(counted) < 5 or not paces:
            continue
        fastest, name = max(paces)
        taken = [pace for pace in model.paces().values() if isfinite(pace)]
        if fastest >= update or max(taken, default=0.0) >= SOUND_PACE:
            continue
        if _is_rising(optimizer, trace.steps):
            yield NotMeasurable(
                f"the learning rate of {optimizer.kind} was still rising at the last step"
            )
            continue
        yield Finding(
            f"{optimizer.kind} at lr={peak:g} changes no layer by more than {fastest:.1g} of its "
            f"weights a step ({name}), and the loss has come down by {max(0.0, improved):.1%} in "
            f"{trace.steps} steps",
            where=optimizer.site or model.site,
            evidence={"learning_rate": peak, "largest_update": fastest, "steps": trace.steps},
            fixes=_faster(edits, optimizer, peak, fastest),
            severity=Severity.WARNING if known else Severity.INFO,
            # In a short run, what falls slowly at first cannot be told from what never will fall.
            confidence=Confidence.LIKELY if known and trace.steps >= SURE else Confidence.POSSIBLE,
        )


def _faster(
    edits: SourceEdits, optimizer: OptimizerTrace, peak: float, fastest: float
) -> list[Fix]:
    """A rate with updates of a usual size, as far as rates go, and what a range test finds."""
    found = Fix(
        "take the learning rate from a range test",
        reason="Smith 2017: the largest rate at which the loss still falls, as measured on this model",
        obstacle="it is known once it was measured",
        patches=[Patch.training("learning-rate", range_test=True)],
    )
    least, largest = SOUND_RATES.get(optimizer.kind, (inf, inf))
    if peak >= least:
        why = Fix(
            "find out why the gradients are so small: the loss, the scale of inputs, weights, the depth",
            reason=f"lr={peak:g} is a usual rate of {optimizer.kind}; an update is that times the gradient",
            obstacle="no cause was found",
        )
        return [found, why]
    if not fastest:
        return [found]
    made = optimizers.made_rate(optimizer) or peak
    factor = min(SOUND_PACE / fastest, largest / peak)
    better = float(f"{made * factor:.0e}")
    share = f"{100 * factor * fastest:.1g}%"
    known = "as in sound runs" if factor < largest / peak else "at the largest rate of sound runs"
    raised = explained(
        optimizers.with_option(
            edits, optimizer, "lr", better, title=f"raise the learning rate to lr={better:g}"
        ),
        reason=f"updates go with lr: {share} of the quickest layer's weights at first, {known}, instead of "
        f"{100 * fastest:.1g}%",
        patches=[Patch.training("learning-rate", factor=float(f"{factor:.2g}"))],
    )
    return [raised, found]


def _improved(values: Sequence[float]) -> float | None:
    """The share of the loss that is gone between the first and the last fifth."""
    fifth = max(3, len(values) // 5)
    if len(values) < 2 * fifth or not all(map(isfinite, values)):
        return None
    start, end = median(values[:fifth]), median(values[-fifth:])
    return (start - end) / abs(start) if start else None


def _rate(optimizer: OptimizerTrace, step: int) -> float:
    """The largest rate of its groups at a step."""
    rate = 0.0
    for since, rates in optimizer.rates:
        if since > step:
            break
        rate = max(rates, default=0.0)
    return rate


def _is_rising(optimizer: OptimizerTrace, steps: int) -> bool:
    """Whether the last that was heard of the rate is that it grew."""
    if len(optimizer.rates) < 2:
        return False
    (_, before), (since, last) = optimizer.rates[-2:]
    return max(last, default=0.0) > max(before, default=0.0) and since >= 0.8 * steps
