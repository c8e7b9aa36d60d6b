"""GRD001 vanishing-gradient."""

from __future__ import annotations

from collections.abc import Iterator

from trainlint.rule import (
    Confidence,
    Finding,
    Fix,
    Graph,
    ModelTrace,
    NotMeasurable,
    Propagation,
    Severity,
    Signal,
    SourceEdits,
    Trace,
    Trend,
    agreed_trend,
    depth_fixes,
    depth_in_training,
    rule,
    steepest,
)

ERROR_DECADES = 3.0
# Decades of variance between samples over the mean square, at the last layer.
COLLAPSED = -2.5
# Shares of the constant answer's loss that are gone: hardly begun; on its way, whatever it looks like.
BEGUN = 0.05
MOVES = 0.2


@rule(
    "GRD001",
    severity=Severity.WARNING,
    since="0.1",
    topics=["gradient-flow"],
    explains=[
        "constant-output",
        "loss-never-moves",
        "underfitting",
        "cannot-memorise",
        "learning-rate-too-low",
    ],
    shows="gradients",
)
def vanishing_gradient(
    graph: Graph | None,
    signal: Signal | None,
    propagation: Propagation | None,
    trace: Trace | None,
    edits: SourceEdits,
    *,
    decades: float = 2.0,
    spread: float = 1.5,
    trained_decades: float = 1.5,
    alone: float = 0.45,
    steps: int = 20,
) -> Iterator[Finding | NotMeasurable]:
    """Hardly any gradient reaches the first layers, so only the last ones learn.

    By the chain rule the gradient at layer 1 of L is a product with a factor for each layer behind it:

        ∂loss/∂h₁ = f′·W²ᵀ · f′·W³ᵀ · … · f′·Wᴸᵀ · ∂loss/∂h_L

    and a factor's size is about √(m·Var w·E[f′²]), with m the layer's outputs. Factors below 1 multiply
    to nothing: a sigmoid's slope σ(1 − σ) is at most 1/4, and 0.25¹⁰ is 10⁻⁶. An SGD step of the first
    layer is then a millionth of the last one's, and since signals shrink like gradients, the last
    layers see all samples alike. What helps, and why:

    - ReLU: f′ = 1 on half of the inputs, a factor √(m·Var w·½). A unit that is 0 everywhere is dead:
      LeakyReLU then.
    - Initial values: He's Var w = 2/n before ReLU, Xavier's 2/(n + m) before tanh: a factor near 1, which
      holds at the start only.
    - BatchNorm before f: z becomes (z − μ)/σ, which stays where f′ is large, and W's scale cancels. It
      needs batches of more than 8; LayerNorm does not.
    - Residual connections, x + f(x): a factor 1 + W·f′, so that one path has factor 1 through any depth.

    ReLU, BatchNorm and residual connections together are what lets hundreds of layers train. Clipping
    does not help: it is the remedy for the opposite, exploding-gradient.

    Measured on one real pass, and again on another draw, over at least six layers with weights, of the
    model or of a plain part of it (layers in series, nothing between that normalises or merges): the
    gradient's norm at the first third is more than `decades` decades below that at the last third, and what
    tells samples apart has lost more than `spread` decades. Both are needed: sound residual and post-norm
    nets lose up to 1.7 decades of gradient alone. It is an error beyond 3 decades. Named is the line that
    does most of it: a product with a constant in the forward, a layer, or the layers of a loop together.

    In a training that is watched, over at least four layers: the largest gradient at any result up to the
    first third is more than `trained_decades` decades below that in the last third, in the first recorded
    steps already and in the median of all; no single layer does more than `alone` of it; and after `steps`
    steps the model has not begun to learn: less than 5% of the loss of the best constant answer is gone, or
    the variance between samples at the last layer is below 10⁻²·⁵ of the mean square. The gradient alone
    says little there: residual branches that start at zero, or LayerScale, begin with 1.3 decades, and
    train. A branch that gets little while the gradient passes it by is no such chain: an attention's
    queries and keys before it has found what to look at, or a time that is embedded. Nor is a last layer
    near 0, or a rate that drives units into saturation: then it is not so from the start. Where the cause
    is known (saturating-stack, shrinking-init, zero-weights, dead-relu), this is listed under it.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(9))
            self.head = nn.Linear(64, 10)

        def forward(self, x):
            for layer in self.layers:
                x = torch.sigmoid(layer(x))  # ×¼ at most, nine times
            return self.head(x)
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(9))
            self.norms = nn.ModuleList(nn.BatchNorm1d(64) for _ in range(9))
            self.head = nn.Linear(64, 10)

        def forward(self, x):
            for layer, norm in zip(self.layers, self.norms):
                x = x + torch.relu(norm(layer(x)))  # ReLU, BatchNorm and a residual connection
            return self.head(x)
    ```

    ## Figures
    A decade is a power of ten: −3 decades are a thousandth.

    - `gradient decades`: what the gradient loses from the last third of the layers to the first.
    - `spread decades`: what the differences between samples lose from the first third to the last.
    - `forward decades`: by what the results grow (above 0) or shrink from the first third to the last.
    - `learnt`: in a training, the share of the best constant answer's loss that is gone.

    ## When to ignore it
    When trained weights are loaded, or the first layers are to stay as they are.

    ## Fix safety
    Unsafe: each remedy changes the model. Edits are made where the model's graph is known, at activations
    and layers that are not shared. The cause, where it is found, has its own fix.

    ## References
    Seed A, problem 3. Hochreiter 1991; Glorot & Bengio 2010; He et al. 2015, arXiv:1502.01852; Ioffe &
    Szegedy 2015, arXiv:1502.03167; He et al. 2016, arXiv:1512.03385; Schoenholz et al. 2017,
    arXiv:1611.01232 (the factors). Thresholds: `benchmarks/depth.py`;
    `benchmarks/depth_in_training.py`.
    """
    if trace is not None:
        found = list(_in_training(trace, trained_decades, alone, steps))
        if found:
            yield from found
            return
    if graph is None or signal is None or propagation is None:
        return

    def holds(trend: Trend) -> bool:
        return trend.vanishes(decades, spread)

    trend = agreed_trend(graph, signal, propagation, holds)
    if trend is None:
        return
    story = propagation.story(trend.first, trend.last, measured=trend.ends)
    because = f": {story}" if story else ""
    yield Finding(
        f"the gradient that reaches {trend.profile[0][0]} is {trend.ends:.1g} of that at "
        f"{trend.profile[-1][0]}, and the samples' differences are down to "
        f"{10**trend.collapsed:.1g}{because}",
        where=steepest(graph, propagation, trend),
        evidence={
            "gradient_decades": round(trend.gradient, 2),
            "spread_decades": round(trend.collapsed, 2),
            "forward_decades": round(trend.forward, 2),
            "gradients": [list(pair) for pair in trend.profile],
        },
        fixes=_remedies(graph, edits, trend),
        severity=Severity.ERROR if trend.gradient < -ERROR_DECADES else Severity.WARNING,
        confidence=Confidence.LIKELY,
        affects=trend.layers,
    )


def _in_training(
    trace: Trace, decades: float, alone: float, steps: int
) -> Iterator[Finding | NotMeasurable]:
    for model in trace.trained:
        depth = depth_in_training(model)
        if depth is None or max(depth.arriving, depth.begun) > -decades or depth.steepest > alone:
            continue
        if trace.steps < steps:
            yield NotMeasurable(f"{trace.steps} of {steps} steps were seen")
            continue
        learnt = _learnt(trace, steps)
        collapsed = depth.spread is not None and depth.spread < COLLAPSED
        if learnt is not None and learnt > (MOVES if collapsed else BEGUN):
            continue
        if learnt is None and not collapsed:
            continue
        name, share = depth.arrives
        layer = model.spelled(name) if name.replace(".", "").isdigit() else name
        why = (
            f"the loss is at {1 - learnt:.0%} of the best constant answer's after {trace.steps} steps"
            if learnt is not None
            else f"the samples' differences are down to {10 ** ((depth.spread or 0) / 2):.1g}"
        )
        yield Finding(
            f"the gradient that reaches {layer} is {share:.1g} of that at {depth.layers[-1][0]}, measured "
            f"in {depth.steps} steps of training, and {why}",
            where=model.place_of(f"{name}.weight"),
            evidence={
                "measured": f"gradient {share:.1g} at {layer}",
                "gradient_decades": round(depth.arriving, 2),
                "spread_decades": None if depth.spread is None else round(depth.spread / 2, 2),
                "learnt": None if learnt is None else round(learnt, 3),
                "gradients": [list(pair) for pair in depth.layers],
            },
            fixes=_shown(model),
            severity=Severity.ERROR if depth.arriving < -ERROR_DECADES else Severity.WARNING,
            confidence=Confidence.LIKELY,
        )


def _learnt(trace: Trace, steps: int) -> float | None:
    """The share of a constant answer's loss that is gone, of the loss that went best."""
    shares = [trace.learnt(loss, steps) for loss in trace.objectives]
    known = [share for share in shares if share is not None]
    return max(known) if known else None


RELU = "He et al. 2015: ReLU's slope is 1 where it is on, Var w = 2/n makes up for where it is off"
NORM = "Ioffe & Szegedy 2015: (z − μ)/σ stays where the slope is large, and W's scale cancels"
RESIDUAL = "He et al. 2016: x + f(x) has the slope 1 + f′, a path of factor 1 through any depth"


def _remedies(graph: Graph, edits: SourceEdits, trend: Trend) -> list[Fix]:
    layers = list(trend.layers)
    rectified = depth_fixes.rectified(graph, edits, layers)
    fixes = [] if rectified is None else [rectified]
    return [
        *fixes,
        depth_fixes.normalised_layers(graph, edits, layers[:-1], NORM),
        depth_fixes.bypassed(graph, edits, layers, RESIDUAL),
    ]


def _shown(model: ModelTrace) -> list[Fix]:
    """In a run, where the model's graph is not known."""
    patches = depth_fixes.of_model(model)
    titles = {
        "rectified": (
            "use ReLU in place of sigmoid or tanh, with nn.init.kaiming_normal_ for the weights",
            RELU,
        ),
        "initialised": ("initialise the weights by nn.init.kaiming_normal_", RELU),
        "normalised": ("put BatchNorm or LayerNorm between each layer and its activation", NORM),
        "residual": ("add a residual connection around each layer, x + f(x)", RESIDUAL),
    }
    if patches["rectified"]:
        del titles["initialised"]
    else:
        del titles["rectified"]
    return [
        Fix(title, reason=reason, obstacle=depth_fixes.UNSEEN, patches=patches[kind])
        for kind, (title, reason) in titles.items()
    ]
