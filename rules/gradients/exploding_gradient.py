"""GRD002 exploding-gradient."""

from __future__ import annotations

from collections.abc import Iterator

from trainlint.rule import (
    Confidence,
    Finding,
    Fix,
    Graph,
    Propagation,
    Severity,
    Signal,
    Trend,
    agreed_trend,
    rule,
    steepest,
)


@rule(
    "GRD002", severity=Severity.ERROR, since="0.1", explains=["initial-loss-off"], shows="gradients"
)
def exploding_gradient(
    graph: Graph,
    signal: Signal,
    propagation: Propagation,
    *,
    forward: float = 2.0,
    backward: float = 3.0,
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

    ## When to ignore it
    When trained weights are loaded before it trains.

    ## Fix safety
    Shown without an edit: each remedy changes the model. Clipping bounds the step and leaves the ratio
    between layers as it is.

    ## References
    Seed A, problem 3. Pascanu et al. 2013, arXiv:1211.5063 (clipping); Zhang et al. 2019,
    arXiv:1901.09321 (residual branches scaled by 1/√L). Thresholds: `benchmarks/depth.py`.
    """

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
        fixes=_remedies(graph),
        confidence=Confidence.LIKELY,
        affects=trend.layers,
    )


def _remedies(graph: Graph) -> list[Fix]:
    blocks = sum(
        len(graph.varying_inputs(node)) > 1 and graph.feeds_weights(node)
        for node in graph.calls("add")
    )
    fixes = [Fix("LayerNorm or BatchNorm before each layer: the scale no longer multiplies")]
    if blocks:
        scale = f"1/√{blocks} = {blocks**-0.5:.2g}"
        fixes.append(Fix(f"each of the {blocks} residual branches scaled by {scale}"))
    fixes.append(
        Fix("torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0) before optimizer.step()")
    )
    return fixes
