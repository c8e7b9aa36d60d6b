"""INI003 shrinking-init."""

from __future__ import annotations

from collections.abc import Iterator

from trainlint.rule import (
    Confidence,
    Finding,
    Graph,
    Propagation,
    Severity,
    Signal,
    SourceEdits,
    Trend,
    agreed_trend,
    far_off,
    heaviest,
    is_plain_chain,
    predicted_trend,
    prescriptions,
    reinitialise,
    rule,
    unsuitable,
    within,
)

ERROR_DECADES = 3.0
# A layer so many decades below what suits it is the cause in a shorter run as well.
FAR = 1.0
# Without a measurement the prediction must be this much clearer.
MARGIN = 1.0


@rule(
    "INI003",
    severity=Severity.WARNING,
    since="0.1",
    explains=[
        "dead-relu",
        "vanishing-gradient",
        "init-activation-mismatch",
        "unnormalized-deep-stack",
        "constant-output",
        "learning-rate-too-low",
    ],
    shows="gradients",
)
def shrinking_init(
    graph: Graph,
    propagation: Propagation,
    edits: SourceEdits,
    signal: Signal | None,
    *,
    decades: float = 2.0,
    spread: float = 1.5,
) -> Iterator[Finding]:
    """The initial weights are so small that signal and gradient shrink from layer to layer.

    Each layer multiplies the signal's variance by n·Var(w)·½ before a ReLU (n: its inputs), and on the
    way back the gradient's by m·Var(w)·½ (m: its outputs). PyTorch's default for Linear and Conv is
    Var(w) = 1/(3n), a factor of 1/6 a layer: after 10 plain layers the gradient is 10^-3.9 of what it
    was, the samples can no longer be told apart behind the biases, and the first layers do not learn.

    Reported where both are measured, on two draws: the gradient at the first third of at least six layers
    is more than `decades` decades below that at the last third, and what tells samples apart has lost more
    than `spread` decades. Judged are the model as a whole, its plain parts (six layers or more in series
    with nothing between that normalises or merges), and runs of three whose weights are each below a tenth
    of what suits: SGD learns nothing behind those. Before a normalisation a loss counts only where samples
    can no longer be told apart, since it sets the size right again on both ways.

    It must be the initial values' doing: with those that suit the activations (He et al.: σ = √(2/n) before
    a ReLU; Glorot & Bengio: Var w = 2/(n + m), the uniform bound a = √(6/(n + m)), times the gain 5/3
    before tanh) at least half of the loss is predicted to vanish. The line that is named sets most of it:
    the call that filled the weights, else the constructor; the layers of a loop count together.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(12))
            self.head = nn.Linear(64, 4)
            for layer in self.layers:
                nn.init.normal_(layer.weight, 0.0, 0.01)

        def forward(self, x):
            for layer in self.layers:
                x = torch.relu(layer(x))
            return self.head(x)
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(12))
            self.head = nn.Linear(64, 4)
            for layer in self.layers:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

        def forward(self, x):
            for layer in self.layers:
                x = torch.relu(layer(x))
            return self.head(x)
    ```

    ## Figures
    A decade is a power of ten: −3 decades are a thousandth.

    - `gradient decades`: what the gradient loses from the last third of the layers to the first, as
      measured.
    - `spread decades`: what the differences between samples lose from the first third to the last.
    - `predicted decades`: what theory predicts of the gradient with these weights, `predicted decades
      after` with those that suit.
    - `layers`: the weights with their standard deviation σ, and the one that suits.

    ## When to ignore it
    When another program loads trained weights into the model before it trains.

    ## Fix safety
    Unsafe: the model starts from other values.

    ## References
    Seed B, section 1.1. Glorot & Bengio 2010, section 4.2; He et al. 2015, arXiv:1502.01852, section
    2.2. Thresholds: measured on the zoo, `benchmarks/depth.py`; prediction: `benchmarks/propagation.py`.
    """

    def holds(trend: Trend) -> bool:
        return trend.vanishes(decades, spread)

    suited = prescriptions(graph, propagation)
    if signal is not None:
        tiny = far_off(graph, suited, -FAR)
        trend = agreed_trend(graph, signal, propagation, holds)
        trend = trend or agreed_trend(graph, signal, propagation, holds, tiny)
    else:
        trend = predicted_trend(graph, propagation) if is_plain_chain(graph) else None
        if trend is not None and not (holds(trend) and trend.gradient < -decades - MARGIN):
            trend = None
    if trend is None:
        return
    wanted = unsuitable(within(graph, suited, trend.part))
    before = predicted_trend(graph, propagation, trend.part)
    if before is None or not wanted:
        return
    changed = propagation.reinitialised({p.name: p.deviation**2 for p in wanted})
    after = predicted_trend(graph, changed, trend.part)
    if after is None or after.gradient - before.gradient < 0.5 * abs(trend.gradient):
        return
    measured = signal is not None
    severe = measured and trend.gradient < -ERROR_DECADES
    small = [p for p in wanted if p.decades < 0] or wanted
    worst = heaviest(graph, small)
    story = propagation.story(trend.first, trend.last, measured=trend.ends)
    because = f": {story}" if story else ""
    yield Finding(
        f"the initial weights lose the gradient: at {trend.profile[0][0]} it is "
        f"{trend.ends:.1g} of that at {trend.profile[-1][0]}"
        f"{'' if measured else ' (predicted)'}{because}",
        where=worst.where(graph),
        module=graph.operation(worst.node).module,
        evidence={
            "gradient_decades": round(trend.gradient, 2),
            "spread_decades": round(trend.collapsed, 2),
            "predicted_decades": round(before.gradient, 2),
            "predicted_decades_after": round(after.gradient, 2),
            "layers": [f"{p.name}: σ = {p.present:.3g}, {p.formula}" for p in small],
            "gradients": [list(pair) for pair in trend.profile],
        },
        fixes=[reinitialise(edits, wanted, graph, before.ends, after.ends)],
        severity=Severity.ERROR if severe else Severity.WARNING,
        confidence=Confidence.LIKELY if measured else Confidence.POSSIBLE,
        affects=[*trend.layers, *(user for layer in trend.layers for user in layer.users)],
    )
