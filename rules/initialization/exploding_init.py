"""INI004 exploding-init."""

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
    predicted_trend,
    prescriptions,
    reinitialise,
    rule,
    unsuitable,
    within,
)

ERROR_DECADES = 3.0
# A layer so many decades above what suits it is the cause in a shorter run as well.
FAR = 0.5


@rule(
    "INI004",
    severity=Severity.WARNING,
    since="0.1",
    explains=[
        "dead-relu",
        "exploding-gradient",
        "saturated-at-init",
        "initial-loss-off",
        "init-activation-mismatch",
        "unnormalized-deep-stack",
        "learning-rate-too-low",
        "learning-rate-too-high",
    ],
    shows="gradients",
)
def exploding_init(
    graph: Graph,
    propagation: Propagation,
    edits: SourceEdits,
    signal: Signal,
    *,
    forward: float = 2.0,
    backward: float = 3.0,
) -> Iterator[Finding]:
    """The initial weights are so large that signal and gradient grow from layer to layer.

    Each layer multiplies the signal's variance by n·Var(w), halved by a ReLU. With `randn` weights,
    Var(w) = 1, a layer of 256 inputs multiplies by 128: after five layers the outputs are 10^5 too large,
    the first loss is thousands, and one step of any usual size throws the weights away. Behind a tanh
    the outputs stay within ±1, but the gradient grows by √(n·Var(w)·E[tanh'²]) a layer instead.

    Reported where it is measured on two draws over at least six layers, of the model or of a plain part of
    it: results grow by more than `forward` decades from the first third to the last and gradients by more
    than one back, or gradients alone by more than `backward`, normalisations not counted (they divide by
    what they are given, which is sound). In runs of three layers or more whose weights are each three times
    too large, it is enough that results grow: what saturates behind them lets no gradient pass. It must be
    the initial values' doing: with those that suit the activations (He et al.: σ = √(2/n) before a ReLU;
    Glorot & Bengio: Var w = 2/(n + m)) at least half of the growth is predicted to vanish.

    Before a normalisation it is a warning only. The size is divided out, and the gradient with it; such
    weights then learn slowly, since a step is a small part of them (the effective step is lr/‖w‖²), and
    half precision overflows at 65504.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(8))
            self.head = nn.Linear(64, 4)
            for layer in self.layers:
                nn.init.normal_(layer.weight)

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
            self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(8))
            self.head = nn.Linear(64, 4)
            for layer in self.layers:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

        def forward(self, x):
            for layer in self.layers:
                x = torch.relu(layer(x))
            return self.head(x)
    ```

    ## Figures
    A decade is a power of ten: 3 decades are a thousandfold.

    - `forward decades`: by what the results grow from the first third of the layers to the last, as
      measured; `gradient decades`: the gradient, on its way back.
    - `predicted forward decades after`, `predicted gradient decades after`: what theory predicts with the
      initial values that suit.
    - `layers`: the weights with their standard deviation σ, and the one that suits.

    ## When to ignore it
    When another program loads trained weights into the model before it trains.

    ## Fix safety
    Unsafe: the model starts from other values.

    ## References
    Seed B, section 1.1. Glorot & Bengio 2010, section 4.2; He et al. 2015, arXiv:1502.01852, section
    2.2; tanh: Poole et al. 2016, arXiv:1606.05340; the effective step: van Laarhoven 2017,
    arXiv:1706.05350. Thresholds: `benchmarks/depth.py`.
    """

    def holds(trend: Trend) -> bool:
        return trend.explodes(forward, backward)

    def grows(trend: Trend) -> bool:
        # What saturates behind such layers may let no gradient pass.
        return holds(trend) or trend.forward > forward

    suited = prescriptions(graph, propagation)
    huge = far_off(graph, suited, FAR)
    trend = agreed_trend(graph, signal, propagation, holds)
    trend = trend or agreed_trend(graph, signal, propagation, grows, huge)
    if trend is None:
        return
    wanted = unsuitable(within(graph, suited, trend.part))
    before = predicted_trend(graph, propagation, trend.part)
    if before is None or not wanted:
        return
    changed = propagation.reinitialised({p.name: p.deviation**2 for p in wanted})
    after = predicted_trend(graph, changed, trend.part)
    if after is None:
        return
    mended = before.gradient - after.gradient, before.forward - after.forward
    if max(mended) < 0.5 * max(trend.gradient, trend.forward):
        return
    large = [p for p in wanted if p.decades > 0] or wanted
    story = propagation.story(trend.first, trend.last, measured=trend.ends)
    because = f": {story}" if story else ""
    worst = heaviest(graph, large)
    severe = max(trend.gradient, trend.forward) > ERROR_DECADES and not trend.absorbed
    yield Finding(
        f"the initial weights blow up: results grow {10**trend.forward:.1g}-fold from the first third "
        f"of the layers to the last, gradients {10**trend.gradient:.1g}-fold on the way back"
        f"{because}",
        where=worst.where(graph),
        module=graph.operation(worst.node).module,
        evidence={
            "forward_decades": round(trend.forward, 2),
            "gradient_decades": round(trend.gradient, 2),
            "predicted_gradient_decades_after": round(after.gradient, 2),
            "predicted_forward_decades_after": round(after.forward, 2),
            "layers": [f"{p.name}: σ = {p.present:.3g}, {p.formula}" for p in large],
            "gradients": [list(pair) for pair in trend.profile],
        },
        fixes=[reinitialise(edits, wanted, graph, before.ends, after.ends)],
        severity=Severity.ERROR if severe else Severity.WARNING,
        confidence=Confidence.LIKELY,
        affects=[*trend.layers, *(user for layer in trend.layers for user in layer.users)],
    )
