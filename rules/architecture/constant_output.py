"""ARC012 constant-output."""

from __future__ import annotations

from collections.abc import Iterator

from trainlint.rule import (
    Alike,
    Constant,
    Finding,
    Fix,
    Graph,
    Influence,
    Patch,
    Severity,
    SourceEdits,
    Spot,
    ops,
    rule,
    started,
    suits,
)

# Below this the samples differ by rounding alone.
ALIKE = 6e-7


@rule(
    "ARC012",
    severity=Severity.WARNING,
    since="0.1",
    topics=["gradient-flow"],
    explains=[
        "input-without-influence",
        "loss-never-moves",
        "underfitting",
        "cannot-memorise",
        "learning-rate-too-low",
    ],
)
def constant_output(graph: Graph, influence: Influence, edits: SourceEdits) -> Iterator[Finding]:
    """All samples of a batch get the same output.

    Somewhere in the model the differences between samples are lost: f(xᵢ) = c for all i. What remains
    to learn is the best constant, the mean of the targets or the class frequencies, and training stops
    there: the gradient by the weights before that place is zero or too small to matter. Causes are
    weights so small that only biases pass (σ = 0.001 through several layers), units that are all
    saturated or all dead, a softmax over one number, or an average over the samples.

    trainlint runs three different samples in eval mode and compares every output that has a sample axis;
    all must agree to 1e-5 of their scale, and to rounding on another seed with BatchNorm in train mode,
    since fresh running statistics shrink the signal. Then it follows the differences between the
    samples from the inputs on, relative to the values that they are differences of, and names the
    operation or layer where they shrink the most: at once, or more than at any other where many
    layers shrink them. If zero weights are the reason, this rule is silent: zero-weights says which of
    them matter. Where the only input has no effect at all, that is this fault too.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(16, 32)
            self.fc2 = nn.Linear(32, 32)
            self.fc3 = nn.Linear(32, 4)
            for layer in (self.fc1, self.fc2, self.fc3):
                nn.init.normal_(layer.weight, std=1e-4)

        def forward(self, x):
            x = torch.relu(self.fc1(x))
            x = torch.relu(self.fc2(x))
            return self.fc3(x)
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(16, 32)
            self.fc2 = nn.Linear(32, 32)
            self.fc3 = nn.Linear(32, 4)
            for layer in (self.fc1, self.fc2, self.fc3):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

        def forward(self, x):
            x = torch.relu(self.fc1(x))
            x = torch.relu(self.fc2(x))
            return self.fc3(x)
    ```

    ## Figures
    - `spread`: the largest difference between the outputs of two samples, over their size, which is
      `scale`.
    - `spread before`, `spread behind`: the same of the values before and behind the `operation` that makes
      them alike.

    ## When to ignore it
    When the outputs depend on the input only after other weights are loaded.

    ## Fix safety
    Unsafe: the model starts from other values. Where an activation or a mean makes the samples alike the
    remedy is shown without an edit.

    ## References
    Glorot & Bengio 2010, section 4.2 (the variance of what layers pass on); He et al. 2015,
    arXiv:1502.01852, section 2.2. Seed B, section 1.1.
    """
    constant = influence.constant
    if constant is None:
        return
    alike = constant.alike
    last = next((node for node in graph.outputs if not graph.is_constant(node)), None)
    whole = (
        "all samples get the same output"
        if constant.reacts
        else "no input changes the outputs, so that all samples get the same one"
    )
    yield Finding(
        f"{whole}: {_reason(constant)}; only a constant can be learnt",
        where=last if alike is None else alike.spot.where,
        module=None if alike is None else alike.spot.module,
        evidence={
            "spread": constant.spread,
            "scale": constant.scale,
            "samples": influence.batch,
            "operation": None if alike is None else alike.spot.name,
            "spread_before": None if alike is None else alike.before,
            "spread_behind": None if alike is None else alike.after,
        },
        fixes=[_fix(graph, edits, alike)],
        # The whole model is concerned: any fault in it may be the cause.
        affects=[node for node in graph.calls_in_order if graph.is_live(node)],
    )


def _reason(constant: Constant) -> str:
    """What becomes of the differences, and where."""
    alike = constant.alike
    if alike is None:
        return f"they differ by {constant.spread:.1g} of its size"
    spot, inside = alike.spot, f"numbers from {alike.low:.4g} to {alike.high:.4g}"
    source = "its input" if alike.source is None else alike.source.label
    if _is_joint(spot, constant):
        return f"{spot.label} makes one result of all samples"
    if alike.after > ALIKE:
        return (
            f"{spot.label} shrinks their differences from {alike.before:.1g} to {alike.after:.1g} of "
            "the values, more than anything else does"
        )
    if spot.name in ops.ACTIVATIONS:
        return f"{spot.label} gets {inside} from {source}, and makes the same number of it all"
    if _is_weighted(spot):
        return f"{spot.label} adds so little to its bias that behind it they are equal"
    if spot.name in ops.SHAPE_ONLY:
        return f"{spot.label} takes only the shape of {source}"
    return f"behind {spot.label} they are equal, before it they differ by {alike.before:.1g}"


def _is_joint(spot: Spot, constant: Constant) -> bool:
    """Whether the outputs do depend on the inputs, but on those of all samples alike."""
    return constant.reacts and spot.name not in ops.ACTIVATIONS and not _is_weighted(spot)


def _is_weighted(spot: Spot) -> bool:
    return spot.name in ops.WEIGHTED or spot.name in ops.RECURRENT


def _fix(graph: Graph, edits: SourceEdits, alike: Alike | None) -> Fix:
    spot = None if alike is None else alike.spot
    if spot is not None and spot.name in ops.ACTIVATIONS:
        return Fix(
            f"bring the numbers before {spot.label} into its range: smaller biases or no offset, "
            "normalisation before it",
            reason="where an activation is flat, different inputs give one output",
            obstacle="whether the offset or the activation is what was not meant, only you know",
            patches=_without_bias(graph, spot),
        )
    if spot is not None and not _is_weighted(spot):
        return Fix(
            "let the samples keep their own values here, on axis 0",
            reason="one result of all samples cannot tell them apart",
            obstacle="what is to be computed of each sample, only you know",
        )
    starts = [
        prescription.start(graph)
        for node in graph.calls_in_order
        if graph.is_live(node) and graph.is_weighted(node)
        for prescription in [suits(graph, node)]
        if prescription is not None
    ]
    if starts:
        return started(graph, edits, list({start.name: start for start in starts}.values()))
    return Fix(
        "initial weights that keep the variance (He or Xavier), normalisation between the layers",
        reason="He et al. 2015: σ = √(2/n) keeps the differences of the samples from layer to layer",
        obstacle="no weights of linear layers or convolutions are known",
    )


def _without_bias(graph: Graph, spot: Spot) -> list[Patch]:
    """Biases of zero in the layer whose results the activation makes alike."""
    source = None if spot.node is None else graph.producer(spot.node, ops.REARRANGEMENTS)[0]
    bias = None if source is None else graph.argument(source, "bias")
    named = [p.name for p in graph.parameters if bias is not None and p.node is bias]
    return [Patch.initialise(named, "zeros")] if named else []
