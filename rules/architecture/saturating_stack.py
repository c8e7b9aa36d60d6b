"""ARC008 saturating-stack."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

from trainlint.rule import (
    Finding,
    Fix,
    GradientPath,
    Graph,
    Severity,
    SourceEdits,
    Start,
    initial_patches,
    initialised,
    normalised,
    ops,
    other_activations,
    residual,
    rule,
    suits,
)

SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
CLASS_NAMES = {"sigmoid": "Sigmoid", "hardsigmoid": "Hardsigmoid", "softmax": "Softmax"}


@rule(
    "ARC008",
    severity=Severity.ERROR,
    since="0.1",
    topics=["gradient-flow"],
    explains=[
        "vanishing-gradient",
        "constant-output",
        "unnormalized-deep-stack",
        "loss-never-moves",
        "underfitting",
        "cannot-memorise",
        "learning-rate-too-low",
    ],
)
def saturating_stack(
    graph: Graph, edits: SourceEdits, *, least: int = 3, error_bound: float = 1e-3
) -> Iterator[Finding]:
    """Sigmoids in series, with no way around them, shrink the gradient at each step back.

    By the chain rule the gradient of the first layer is a product of the slopes of all activations
    behind it. The sigmoid's slope σ(z)(1 − σ(z)) is at most 1/4 (hardsigmoid 1/6, softmax 1/2), so n
    of them in series pass on at most 0.25ⁿ, times what the weights add: 0.25⁹ is 3.8·10⁻⁶. The first
    layers then hardly change while the last ones train.

    trainlint looks for the best path of the gradient from the output to each layer. A residual
    connection, a gate whose other operand is live, attention's value path or a normalisation before
    the activation gives a way around, and then nothing is reported: gates of LSTM, GRU, GLU and
    squeeze-and-excitation are sound uses of a sigmoid, and so is an output layer's.

    A chain counts from `least` of them on. It is an error where the bound times the weights' gain
    ‖W‖_F/√(out) falls below `error_bound`, a warning above.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(6))
            self.head = nn.Linear(16, 4)

        def forward(self, x):
            for layer in self.layers:
                x = torch.sigmoid(layer(x))
            return self.head(x)
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(6))
            self.head = nn.Linear(16, 4)
            for layer in self.layers:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

        def forward(self, x):
            for layer in self.layers:
                x = torch.relu(layer(x))
            return self.head(x)
    ```

    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(6))
            self.head = nn.Linear(16, 4)

        def forward(self, x):
            for layer in self.layers:
                x = x + torch.sigmoid(layer(x))
            return self.head(x)
    ```

    ## Figures
    - `in series`: how many saturating activations stand on the best path of the gradient to that layer.
    - `gradient at most`: the product of their largest slopes, the share of the gradient that they let
      through.
    - `weights multiply by`: the product of the gains ‖W‖_F/√(out) of the weights on that path.
    - `gradient with these weights`: the product of both. `gradient with relu`: what it were with ReLU in
      their place, √½ each, and the same weights.
    - `chain`: the activations, with their lines.

    ## When to ignore it
    When the stack is short and is known to train, as in the first LeNet.

    ## Fix safety
    Unsafe: another function is learnt. ReLU has slope 1 on half of its inputs, so that He's
    initialisation keeps the gradient's size; a residual connection adds a path of slope 1; BatchNorm
    before the sigmoid keeps its inputs where the slope is near 1/4.

    ## References
    Seed A, problem 3. Hochreiter 1991; Glorot & Bengio 2010, section 3. Slope of softmax: Gao & Pavel
    2017, arXiv:1704.00805, proposition 2. Thresholds: `benchmarks/saturating_stack.py`.
    """
    paths = graph.best_gradient_paths(lambda node: _slope(graph, node))
    best = _best_by_weight(graph, paths)
    reported: set[Any] = set()
    for node, path in sorted(best.items(), key=lambda item: item[1].bound):
        chain = _saturating(graph, path)
        if len(chain) < least or reported & set(chain):
            continue
        reported.update(chain)
        starved = [other for other, way in best.items() if len(_saturating(graph, way)) >= least]
        yield _finding(graph, edits, node, path, chain, starved, error_bound)


def _slope(graph: Graph, node: Any) -> float | None:
    """The largest slope of a saturating operation; 1 for a weight, so that the path names it."""
    if graph.is_weighted(node):
        return 1.0
    slope = ops.MAX_SLOPE.get(graph.name(node))
    if slope is None or not graph.feeds_weights(node):
        return None  # an output's sigmoid belongs to the loss
    before, _ = graph.producer(node)
    if before is not None and graph.name(before) in ops.NORMALIZATIONS:
        return None
    return slope


def _best_by_weight(graph: Graph, paths: dict[Any, GradientPath]) -> dict[Any, GradientPath]:
    """For each weight, by its first use, the best path over all of its uses."""
    best: dict[Any, tuple[Any, GradientPath]] = {}
    for node in graph.calls_in_order:
        if node in paths and graph.is_weighted(node):
            weight = graph.argument(node, "weight")
            if weight not in best:
                best[weight] = (node, paths[node])
            elif paths[node].bound > best[weight][1].bound:
                best[weight] = (best[weight][0], paths[node])
    return dict(best.values())


def _saturating(graph: Graph, path: GradientPath) -> list[Any]:
    return [node for node in path.nodes if graph.name(node) in ops.MAX_SLOPE]


def _finding(
    graph: Graph,
    edits: SourceEdits,
    node: Any,
    path: GradientPath,
    chain: list[Any],
    starved: list[Any],
    error_bound: float,
) -> Finding:
    gains = [_gain(graph, other) for other in path.nodes if graph.is_weighted(other)]
    gain = math.prod(gain for gain in gains if gain > 0)  # zero weights are INI001's story
    expected = path.bound * gain
    kinds = Counter(graph.name(other) for other in chain)
    what = " and ".join(f"{count} {name}s" if name != "softmax" else f"{count} softmaxes"
                        for name, count in kinds.items())  # fmt: skip
    power = " · ".join(
        f"{ops.MAX_SLOPE[name]:.3g}{str(count).translate(SUPERSCRIPTS)}"
        for name, count in kinds.items()
    )
    with_relu = 0.5 ** (len(chain) / 2) * gain
    layer = graph.label(node)
    parameters = [parameter for other in starved for parameter in graph.parameters_of(other)]
    return Finding(
        f"{what} in series and no way around them: at most {power} = {path.bound:.2g} of the "
        f"gradient reaches {layer}; with these weights about {expected:.1g}",
        where=chain[0],
        module=graph.operation(node).module,
        evidence={
            "in_series": len(chain),
            "gradient_at_most": path.bound,
            "weights_multiply_by": gain,
            "gradient_with_these_weights": expected,
            "gradient_with_relu": with_relu,
            "chain": [_shown(graph, other) for other in chain],
        },
        fixes=_fixes(graph, edits, chain, path.bound, with_relu),
        severity=Severity.ERROR if expected < error_bound else Severity.WARNING,
        fault=("saturating", id(chain[0])),
        starved=graph.share_of_parameters(parameters),
        affects=[*starved, *chain],
    )


def _gain(graph: Graph, node: Any) -> float:
    """‖W‖_F/√(out): how much a weight changes the norm of a random gradient on its way back."""
    value = graph.value(graph.argument(node, "weight"))
    if value is None:
        return 1.0
    units = value.shape[1] if "transpose" in graph.name(node) else value.shape[0]
    return float(value.float().norm()) / math.sqrt(units)


def _shown(graph: Graph, node: Any) -> str:
    site = graph.place(node)
    return f"{graph.label(node)} (line {site.row})" if site is not None else graph.label(node)


def _fixes(
    graph: Graph, edits: SourceEdits, chain: list[Any], bound: float, with_relu: float
) -> list[Fix]:
    """ReLU with He's values, else a normalisation before each, else a way around each."""
    count = len(chain)
    many = f"the {count} " + (
        "sigmoids" if all(graph.name(n) == "sigmoid" for n in chain) else "of them"
    )
    pairs = [
        (layer, node)
        for node in chain
        for layer in [graph.producer(node, ops.REARRANGEMENTS | ops.DROPOUTS)[0]]
        if layer is not None and graph.is_weighted(layer)
    ]
    layers = list(dict.fromkeys(layer for layer, _ in pairs))
    why = f"He et al. 2015: the gradient keeps its size, 2/n · n · ½ = 1 a layer, not ≤ {bound:.2g}"
    relu = f"ReLU in place of {many}"
    half = f"slope 1 where it is on: with these weights {with_relu:.2g} of the gradient arrives"
    swapped = other_activations(graph, edits, chain, "relu", title=relu, reason=half)
    starts = _he(graph, layers)
    drawn = initialised(graph, edits, starts, title=relu) if starts else swapped
    title = f"{relu}, with He initialisation"
    both = edits.together(
        swapped,
        drawn,
        title=title,
        reason=why,
        patches=[*swapped.patches, *initial_patches(starts)] if swapped.patches else [],
    )
    normal = normalised(
        graph,
        edits,
        layers,
        title=f"BatchNorm or LayerNorm before each of {many}",
        reason="Ioffe & Szegedy 2015: each works where its slope is near its largest",
    )
    around = residual(
        graph,
        edits,
        pairs,
        title=f"a residual connection around each of {many}, x + f(x)",
        reason="He et al. 2016: the gradient has a path of slope 1 around it",
    )
    alone = [swapped] if swapped.edits and not both.edits else []
    return [both, *alone, normal, around]


def _he(graph: Graph, layers: list[Any]) -> list[Start]:
    """What the weights in front of these activations start from once they are ReLUs."""
    suited = [prescription for layer in layers if (prescription := suits(graph, layer))]
    return [
        Start(p.name, p.start(graph).tensor, p.node, "kaiming_normal_", ', nonlinearity="relu"')
        for p in {prescription.name: prescription for prescription in suited}.values()
    ]
