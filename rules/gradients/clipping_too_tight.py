"""GRD006 clipping-too-tight."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from statistics import median, quantiles

from trainlint.rule import (
    ClipTrace,
    Confidence,
    Finding,
    Fix,
    Incident,
    Patch,
    Safety,
    Severity,
    SourceEdits,
    Trace,
    explained,
    loops,
    rule,
)

# The length of their step goes with that of the gradient. Others divide it out.
SCALED = frozenset({"SGD", "ASGD"})


@rule(
    "GRD006",
    severity=Severity.WARNING,
    since="0.1",
    explains=["learning-rate-too-low", "loss-never-moves", "underfitting"],
)
def clipping_too_tight(
    trace: Trace, edits: SourceEdits, *, factor: float = 0.1, update: float = 3e-3, calls: int = 10
) -> Iterator[Finding]:
    """Gradient clipping cuts nearly every step to a small part, instead of the rare spike.

    Clipping multiplies the gradient by min(1, c/‖g‖). It is there for outliers. Where the median factor
    is a hundredth, c is far below the usual ‖g‖: the learning rate of SGD is in truth a hundredth of
    what was set, and every batch counts the same, however sure the model is of it.

    Reported where the median factor of at least `calls` calls is below `factor`. It is a warning for
    SGD, if the updates are small as well: below `update` of the weights in the median of the layer that
    moves most. Else it is advice: a learning rate of 20 may have been chosen for it. Adam and its kind
    divide the gradient by its own size, which takes the factor out again, as long as it is above their ε:
    a step is lr·g/(|g| + ε). Where clipping has made even the layer with the largest gradient so small
    that this is below `factor` of what it would be, it is a warning as with SGD.

    A warning also where the gradients are still multiplied by a `GradScaler`'s 65536 when they are
    clipped: the limit then holds for numbers that are thousands of times too large.

    ## Bad
    ```python
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(30):
        x = torch.randn(16, 8)
        loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()
    ```

    ## Good
    ```python
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(30):
        x = torch.randn(16, 8)
        loss = F.cross_entropy(model(x), (x[:, 0] > 0).long())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    ```

    ## When to ignore it
    Where steps of one length are wanted, as by normalised gradient descent, or where each sample's
    gradient is bounded for privacy.

    ## Fix safety
    Unsafe: with another limit the learning rate means something else. The limit that is suggested lets
    nine of ten of the norms pass that were seen before the run diverged, if it did.

    ## References
    Pascanu, Mikolov & Bengio 2013, arXiv:1211.5063. PyTorch documentation, automatic mixed precision
    examples, "Working with unscaled gradients".
    """
    scaled = list(trace.of("clipped-while-scaled"))
    for incident in scaled:
        if incident.count > 1:
            yield _scaled(incident)
    if scaled:
        return
    for clip in trace.clips:
        if clip.limit > 0 and len(clip.factor) >= calls and 0 < median(clip.factor) < factor:
            yield _tight(trace, edits, clip, factor, update)


def _scaled(incident: Incident) -> Finding:
    return Finding(
        "the gradients are clipped while they are still multiplied by the GradScaler's scale: "
        "hardly anything is left of them when the step divides by it",
        where=incident.site,
        evidence={"calls": incident.count, "optimizer": incident.facts["optimizer"]},
        fixes=[
            Fix(
                "unscale the gradients first: scaler.unscale_(optimizer) before clip_grad_norm_",
                reason="‖S·g‖ is compared with the limit, S the scale, 65536 at first: of g there is left "
                "the limit over S",
                obstacle="which scaler and which optimizer belong together is not seen at the clipping",
            )
        ],
    )


def _tight(
    trace: Trace, edits: SourceEdits, clip: ClipTrace, factor: float, update: float
) -> Finding:
    middle = median(clip.factor)
    norms = loops.before_divergence(
        [clip.limit / part if part > 0 else inf for part in clip.factor]
    )
    most = quantiles(norms, n=10)[-1] if len(norms) > 1 else clip.limit / middle
    usual = float(f"{most:.1g}")
    fastest = [
        pace
        for model in trace.trained
        for parameter in model.weights()
        if any(parameter.weight[:1])  # of a layer that starts from 0, any step is far
        and (pace := parameter.median("update")) is not None
    ]
    is_slow = bool(fastest) and max(fastest) < update
    kinds = " and ".join(clip.optimizers) or "the optimizer"
    below = _below_epsilon(trace, clip)
    is_scaled = bool(clip.optimizers) and SCALED.issuperset(clip.optimizers)
    is_stopped = below is not None and below[1] < factor
    if below is not None and is_stopped:
        cost = (
            f"what is left is below the eps={below[0]:g} of {kinds}, so that no layer's step is more than "
            f"{below[1]:.1g} of what it would be"
        )
    elif is_scaled:
        cost = f"{kinds} steps at {middle:.2g} of its learning rate"
    else:
        cost = f"every batch gets the same weight; {kinds} divides the scale out"
    return Finding(
        f"clipping to {clip.limit:g} multiplies the gradient by {middle:.2g} in the median of "
        f"{len(clip.factor)} calls, whose norm is about {clip.limit / middle:.2g}: {cost}",
        where=clip.site,
        evidence={"factor": middle, "limit": clip.limit, "median_norm": clip.limit / middle},
        fixes=[
            explained(
                edits.argument(
                    clip.site,
                    1,
                    "max_norm",
                    usual,
                    current=clip.limit,
                    title=f"raise the limit to {usual:g}, max_norm={usual:g}",
                    safety=Safety.UNSAFE,
                ),
                reason=f"nine of ten gradients have a norm below {usual:g} and pass as they are; "
                f"the median is {clip.limit / middle:.2g}",
                obstacle="the limit is no number in the call",
                patches=[Patch.training("clip", max_norm=usual)],
            )
        ],
        severity=Severity.WARNING if is_slow and (is_scaled or is_stopped) else Severity.INFO,
        confidence=Confidence.LIKELY,
    )


def _below_epsilon(trace: Trace, clip: ClipTrace) -> tuple[float, float] | None:
    """The ε of the optimizers that divide by g + ε, and what clipping leaves of the longest of their steps.

    That is the part g/(g + ε) with the clipped g over that with the one before, g the root of the mean
    square over a weight.
    """
    middle = median(clip.factor)
    parts = []
    for model in trace.trained:
        for parameter in model.weights():
            gradient = parameter.median("gradient")
            if parameter.group is None or not gradient:
                continue
            place, number = parameter.group
            optimizer = trace.optimizers[place]
            epsilon = optimizer.groups[number].get("eps")
            if optimizer.kind in clip.optimizers and isinstance(epsilon, float) and epsilon > 0:
                size = gradient / parameter.elements**0.5
                parts.append(((size + epsilon * middle) / (size + epsilon), epsilon))
    if not parts:
        return None
    left, epsilon = max(parts)
    return epsilon, left
