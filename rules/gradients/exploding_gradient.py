"""GRD002 exploding-gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from trainlint.rule import (
    Confidence,
    Finding,
    Fix,
    Graph,
    ModelTrace,
    Patch,
    Propagation,
    Severity,
    Signal,
    SourceEdits,
    Trace,
    Trend,
    agreed_trend,
    depth_fixes,
    depth_in_training,
    explained,
    growth_through_time,
    loops,
    ops,
    rule,
    steepest,
)

# Times the best constant answer's loss at the start, and the share of it that is gone later.
HIGH = 3.0
MOVED = 0.02


@rule(
    "GRD002",
    severity=Severity.ERROR,
    since="0.1",
    topics=["gradient-flow"],
    explains=[
        "initial-loss-off",
        "loss-never-moves",
        "underfitting",
        "non-finite",
        "cannot-memorise",
    ],
    shows="gradients",
)
def exploding_gradient(
    graph: Graph | None,
    signal: Signal | None,
    propagation: Propagation | None,
    trace: Trace | None,
    edits: SourceEdits,
    *,
    forward: float = 2.0,
    backward: float = 3.0,
    trained: float = 2.0,
    steps: int = 20,
) -> Iterator[Finding]:
    """The gradient grows by decades on its way to the first layers: one step throws them away.

    The gradient at the first layer is a product with a factor √(m·Var w·E[f′²]) for each layer behind it.
    Factors above 1 multiply: 2²⁰ is a million. Residual streams without normalisation grow as well,
    since x + f(x) adds a branch of the same size at every block: the variance doubles, and so does the
    gradient's. A step that suits the last layers is then far too large for the first; losses oscillate,
    and end in NaN.

    Measured on one real pass, and again on another draw, over at least six layers with weights, of the
    model or of a plain part of it that no normalisation follows: results grow by more than `forward`
    decades from the first third to the last and the gradient by more than one back, or the gradient alone
    by more than `backward`, not counting what normalisations contribute. Where the initial values are the
    cause, this is listed under exploding-init.

    In a training that is watched: the loss began at more than three times that of the best constant answer,
    and less than 2% of it is gone after `steps` steps, or it ended in NaN or infinity; and something grows
    by more than `trained` decades: over at least four layers, the results or the gradient on its way back;
    the gradient on its way back through the time steps of one layer; or the results of a ReLU RNN beyond
    that size. For `nn.RNN` and its kin, whose steps are not seen, that less than 2% is gone suffices, and
    that the gradient of the recurrent matrix is by so much above all others outside of the layer.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(30))
            self.head = nn.Linear(64, 4)
            for layer in self.layers:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

        def forward(self, x):
            for layer in self.layers:
                x = x + torch.relu(layer(x))  # the variance more than doubles, thirty times
            return self.head(x)
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(30))
            self.norms = nn.ModuleList(nn.LayerNorm(64) for _ in range(30))
            self.head = nn.Linear(64, 4)

        def forward(self, x):
            for layer, norm in zip(self.layers, self.norms):
                x = x + torch.relu(layer(norm(x)))
            return self.head(x)
    ```

    ## Figures
    A decade is a power of ten: 3 decades are a thousandfold.

    - `gradient decades`: by what the gradient grows on its way back, from the last third of the layers to
      the first.
    - `forward decades`: by what the results grow from the first third of the layers to the last.

    ## When to ignore it
    When trained weights are loaded before it trains.

    ## Fix safety
    Unsafe: each remedy changes the model, or its steps. Clipping bounds the step and leaves the ratio
    between layers as it is.

    ## References
    Seed A, problem 3. Pascanu et al. 2013, arXiv:1211.5063 (clipping); Zhang et al. 2019,
    arXiv:1901.09321 (residual branches scaled by 1/√L). Thresholds: `benchmarks/depth.py`.
    """
    if trace is not None:
        found = list(_in_training(trace, edits, trained, steps))
        if found:
            yield from found
            return
    if graph is None or signal is None or propagation is None:
        return

    def holds(trend: Trend) -> bool:
        return trend.explodes(forward, backward) and not trend.absorbed

    trend = agreed_trend(graph, signal, propagation, holds)
    if trend is None:
        return
    story = propagation.story(trend.first, trend.last, measured=trend.ends)
    because = f": {story}" if story else ""
    yield Finding(
        f"the gradient at {trend.profile[0][0]} is {trend.ends:.1g} times that at "
        f"{trend.profile[-1][0]}, and results grow {10**trend.forward:.1g}-fold{because}",
        where=steepest(graph, propagation, trend),
        evidence={
            "gradient_decades": round(trend.gradient, 2),
            "forward_decades": round(trend.forward, 2),
            "gradients": [list(pair) for pair in trend.profile],
        },
        fixes=_remedies(graph, edits, trend),
        confidence=Confidence.LIKELY,
        affects=trend.layers,
    )


def _in_training(trace: Trace, edits: SourceEdits, decades: float, steps: int) -> Iterator[Finding]:
    bad, stuck = _state(trace, steps, HIGH), _state(trace, steps, 0.0)
    for model in trace.trained:
        grown = _growth(model, decades) if bad else None
        state = bad
        if grown is None and stuck:
            grown, state = _through_fused(model, decades), stuck
        if grown is None:
            continue
        layer, what, evidence = grown
        yield Finding(
            f"{what}, and {state}",
            where=model.place_of(f"{layer}.weight"),
            evidence=evidence,
            fixes=_shown(trace, edits, model),
            confidence=Confidence.LIKELY,
        )


def _state(trace: Trace, steps: int, high: float) -> str | None:
    """How badly it goes, in words; None where it does not, or where nobody can tell."""
    for step, value in trace.losses:
        if not math.isfinite(value):
            return f"the loss is no number any more at step {step}"
    for loss in trace.objectives:
        learnt = trace.learnt(loss, steps)
        if not loss.guess or learnt is None:
            continue
        if learnt < MOVED and loss.values[0] > high * loss.guess:
            return (
                f"the loss is {(1 - learnt) * loss.guess:.2g} after {trace.steps} steps, which began "
                f"at {loss.values[0]:.2g}; the best constant answer has {loss.guess:.2g}"
            )
    return None


def _through_fused(model: ModelTrace, decades: float) -> tuple[str, str, dict[str, Any]] | None:
    """An `nn.RNN` shows no time steps: the gradient of its matrix against that of what comes after."""
    site = next((s for s in model.sites if s.place.operation in ops.RECURRENT), None)
    if site is None:
        return None
    path = site.place.path
    own = {p.name: p.median("gradient") for p in model.parameters if "weight_hh" in p.name}
    others = [p.median("gradient") for p in model.parameters if not p.name.startswith(f"{path}.")]
    largest = max((norm or 0.0 for norm in own.values()), default=0.0)
    usual = max((norm or 0.0 for norm in others), default=0.0)
    if not path or not usual or not largest > 10**decades * usual:
        return None
    figure = f"{largest:.1g} at {path}, {largest / usual:.1g} times that behind it"
    return (
        path,
        f"the gradient is {figure}: it grows through the time steps",
        {"measured": f"gradient {figure}", "gradient": largest, "behind": usual},
    )


def _growth(model: ModelTrace, decades: float) -> tuple[str, str, dict[str, Any]] | None:
    """(layer, what grows, evidence)."""
    through = growth_through_time(model)
    if through is not None and through[1] > decades:
        layer, grown = through
        figure = f"{10**grown:.1g}-fold through the steps of {layer}"
        return (
            layer,
            f"the gradient grows {figure}",
            {"measured": f"gradient {figure}", "gradient_decades": round(grown, 2)},
        )
    for site in model.sites:
        size = site.median("rms")
        if site.place.operation.startswith("rnn_relu") and size is not None and size > 10**decades:
            name = site.place.path or site.place.operation
            return (
                site.place.path,
                f"the state of {name} grows to {size:.1g}: its matrix multiplies it at every step",
                {"measured": f"state {size:.1g} in {name}", "size": float(f"{size:.3g}")},
            )
    depth = depth_in_training(model)
    if depth is None or max(depth.gradient, depth.forward) <= decades:
        return None
    first, last = depth.layers[0][0], depth.layers[-1][0]
    evidence = {
        "gradient_decades": round(depth.gradient, 2),
        "forward_decades": round(depth.forward, 2),
        "gradients": [list(pair) for pair in depth.layers],
    }
    if depth.gradient > depth.forward:
        figure = f"{10**depth.gradient:.1g}-fold from {last} back to {first}"
        return first, f"the gradient grows {figure}", {"measured": f"gradient {figure}", **evidence}
    figure = f"{10**depth.forward:.1g}-fold from {first} to {last}"
    return first, f"results grow {figure}", {"measured": f"results {figure}", **evidence}


CLIP = "Pascanu et al. 2013: g ← g·min(1, 1/‖g‖) keeps the direction and bounds the step"
NORM = (
    "Ioffe & Szegedy 2015: behind (z − μ)/σ a layer's scale no longer multiplies that of the next"
)
KEEP = "He et al. 2015: Var w = 2/n gives each layer the factor 1; Saxe et al. 2014: orthogonal, for an RNN"


def _remedies(graph: Graph, edits: SourceEdits, trend: Trend) -> list[Fix]:
    blocks = sum(
        len(graph.varying_inputs(node)) > 1 and graph.feeds_weights(node)
        for node in graph.calls("add")
    )
    layers = list(trend.layers)
    fixes = [depth_fixes.normalised_layers(graph, edits, layers[:-1], NORM)]
    if blocks:
        scale = f"1/√{blocks} = {blocks**-0.5:.2g}"
        fixes.append(
            Fix(
                f"scale each of the {blocks} residual branches by {scale}",
                reason=f"Zhang et al. 2019: Var(x + f(x)) doubles at each block, by 1 + 1/{blocks} then",
                obstacle="where a branch ends is the model's own",
            )
        )
    return [*fixes, _clipped(Fix(f"clip the gradient's norm to 1: {CALL}"))]


CALL = "nn.utils.clip_grad_norm_(model.parameters(), 1.0) before optimizer.step()"


def _clipped(fix: Fix) -> Fix:
    return explained(
        fix,
        reason=CLIP,
        obstacle="no training loop of yours was seen",
        patches=[Patch.training("clip", max_norm=1.0)],
    )


def _shown(trace: Trace, edits: SourceEdits, model: ModelTrace) -> list[Fix]:
    """In a run: initial values and normalisation first, but for recurrent layers."""
    recurrent = [s for s in model.sites if s.place.operation in ops.RECURRENT] or any(
        "rnn" in s.place.operation for s in model.sites
    )
    through_time = bool(recurrent) or growth_through_time(model) is not None
    patches = depth_fixes.of_model(model)
    orthogonal = [p.name for p in model.parameters if p.dimensions > 1 and "weight_hh" in p.name]
    clipped = _clipped(loops.clipped(trace, edits, 1.0))
    normed = Fix(
        "put LayerNorm or BatchNorm behind each layer",
        reason=NORM,
        obstacle=depth_fixes.UNSEEN,
        patches=patches["normalised"],
    )
    begun = Fix(
        "start from values that keep the scale: nn.init.orthogonal_ for the recurrent matrix"
        if through_time
        else "start from values that keep the scale: nn.init.kaiming_normal_",
        reason=KEEP,
        obstacle=depth_fixes.UNSEEN,
        patches=[Patch.initialise(orthogonal, "orthogonal")]
        if orthogonal
        else patches["initialised"],
    )
    return [clipped, begun, normed] if through_time else [begun, normed, clipped]
