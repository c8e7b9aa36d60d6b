"""INI007 saturated-at-init."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from trainlint.rule import (
    Finding,
    Fix,
    Graph,
    Parameter,
    Patch,
    Severity,
    Signal,
    SourceEdits,
    normalised,
    ops,
    rule,
    start_of,
    started,
)

FLAT = {"sigmoid": 4, "tanh": 2}
THROUGH = ops.REARRANGEMENTS | ops.DROPOUTS | ops.PARTS
GATED = {"mul", "lerp", "where", "matmul", "addcmul"}
# A weight this many times larger than Xavier's is what drives the units; else it is the input.
TOO_LARGE = 2.0


@rule(
    "INI007",
    severity=Severity.WARNING,
    since="0.1",
    topics=["gradient-flow"],
    explains=["shrinking-init", "vanishing-gradient", "learning-rate-too-low"],
)
def saturated_at_init(
    graph: Graph, signal: Signal, edits: SourceEdits, *, share: float = 0.5
) -> Iterator[Finding]:
    """Most units of a sigmoid or tanh sit in the flat part before training begins.

    For z = wᵀx the variance is Var z = n·Var w·E[x²]. With w drawn from N(0, 1) and n = 100 inputs of
    variance 1, z has a standard deviation of 10, and tanh'(z) = 1 − tanh²(z) is practically 0 for almost
    every unit: the gradient that arrives is multiplied by that slope, so the layer and all before it
    start without one. Xavier's initialisation, Var w = 2/(n_in + n_out), keeps z near 1, where both
    functions still have a slope.

    trainlint counts the inputs beyond |z| > 4 for a sigmoid (slope below 7% of its largest, ¼) and |z| >
    2 for tanh (below 7% of 1) over one forward of up to 16 samples on the real weights; `share` is the
    share of them that counts as most. Gates, whose result multiplies something else, and outputs are
    silent: both may well start shut; the tanh of tanh(a)·sigmoid(b) is the value, not the gate. Where the
    inputs are the user's own and the weights are not too large, the inputs are.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(100, 80)
            self.fc2 = nn.Linear(80, 10)
            nn.init.normal_(self.fc1.weight)

        def forward(self, x):
            return self.fc2(torch.tanh(self.fc1(x)))
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(100, 80)
            self.fc2 = nn.Linear(80, 10)
            nn.init.xavier_normal_(self.fc1.weight, gain=nn.init.calculate_gain("tanh"))

        def forward(self, x):
            return self.fc2(torch.tanh(self.fc1(x)))
    ```

    ## Figures
    - `saturated`: the share of the activation's inputs that lie further from 0 than `beyond`.
    - `rms`: the root of the mean square of these inputs.
    - `weights over those of xavier`: the size (RMS) of the weights, over that which Xavier's values have.

    ## When to ignore it
    When units shall be near binary from the start, as in hard attention or spiking networks.

    ## Fix safety
    Unsafe: the model starts from other values, or gets a normalisation behind the layer.

    ## References
    Glorot & Bengio 2010, equation 16 and section 3 (saturation of tanh and sigmoid). Seed B, section
    1.1 (its tanh example) and 1.3 (normalising before the activation).
    """
    for node in graph.calls(*FLAT):
        site = signal.of(node)
        if site is None or site.saturated is None or site.saturated <= share:
            continue
        if graph.is_live(node) and graph.feeds_weights(node) and not _is_gate(graph, node):
            yield _finding(graph, signal, edits, node, site.saturated)


def _is_gate(graph: Graph, node: Any) -> bool:
    """Whether the result multiplies other data, as it is or as 1 - g."""
    for user in graph.consumers(node, THROUGH):
        if graph.name(user) in GATED and len(graph.varying_inputs(user)) > 1:
            return not _is_gated(graph, node, user)
    return False


def _is_gated(graph: Graph, node: Any, product: Any) -> bool:
    """Whether the other factor is the gate: tanh(a)·sigmoid(b), as in WaveNet and LSTM cells."""
    if graph.name(node) != "tanh" or graph.name(product) != "mul":
        return False
    for factor in graph.varying_inputs(product):
        source: Any = factor
        while graph.name(source) in THROUGH:
            source = graph.data(source)
        if source is not node and graph.name(source) == "sigmoid":
            return True
    return False


def _finding(
    graph: Graph, signal: Signal, edits: SourceEdits, node: Any, saturated: float
) -> Finding:
    name = graph.name(node)
    producer, _ = graph.producer(node, ops.REARRANGEMENTS | {"add", "output"})
    weight = _weight(graph, producer)
    ratio = None if weight is None else _against_xavier(weight)
    by_weights = ratio is not None and (ratio > TOO_LARGE or not signal.given)
    before = signal.of(producer) if producer is not None else None
    size = f" (z has an RMS of {before.rms:.3g})" if before is not None else ""
    cause = f"; {weight.name} is {ratio:.3g} times Xavier's" if by_weights and weight else ""
    return Finding(
        f"{saturated:.0%} of the units of {graph.label(node)} are beyond |z| > {FLAT[name]}{size}, where "
        f"its slope is below 7% of its largest: hardly any gradient passes{cause}",
        where=_where(weight, node) if by_weights else node,
        module=graph.operation(producer if by_weights and producer else node).module,
        evidence={
            "saturated": round(saturated, 4),
            "beyond": FLAT[name],
            "rms": None if before is None else before.rms,
            "weights_over_those_of_xavier": ratio,
        },
        fixes=_fixes(graph, edits, node, producer, weight if by_weights else None),
        affects=[other for other in (node, producer) if other is not None],
    )


def _weight(graph: Graph, producer: Any) -> Parameter | None:
    """The weight matrix that made the activation's inputs."""
    if producer is None or not graph.is_weighted(producer):
        return None
    return next((p for p in graph.parameters_of(producer) if p.tensor.dim() > 1), None)


def _fans(weight: Parameter) -> tuple[int, int]:
    field = weight.tensor[0, 0].numel()
    return weight.tensor.shape[1] * field, weight.tensor.shape[0] * field


def _against_xavier(weight: Parameter) -> float:
    """The weights' RMS over that of Xavier's initialisation."""
    rms = math.sqrt(float(weight.tensor.detach().float().square().mean()))
    expected = math.sqrt(2 / sum(_fans(weight)))
    return rms / expected


def _where(weight: Parameter | None, node: Any) -> Any:
    """The call that filled the weight, else the activation."""
    seen = None if weight is None else weight.initialization
    return node if seen is None else seen[1]


def _fixes(
    graph: Graph, edits: SourceEdits, node: Any, producer: Any, weight: Parameter | None
) -> list[Fix]:
    name = graph.name(node)
    why = f"Ioffe & Szegedy 2015: it brings z back to variance 1, where the {name} has a slope"
    if producer is not None and graph.is_weighted(producer):
        normalise = normalised(graph, edits, [producer], reason=why)
    else:
        normalise = Fix(
            f"BatchNorm or LayerNorm before the {name}",
            reason=why,
            obstacle="no one layer makes what the activation gets",
        )
    if weight is None:
        inputs = Fix(
            "normalise the inputs to mean 0 and variance 1",
            reason="Var z = n·Var w·E[x²]: the weights are not too large, the inputs are",
            obstacle="where the inputs are made is not part of the model",
            patches=[Patch.training("normalise-inputs")],
        )
        return [inputs, normalise]
    own = weight.initialization
    # One line in a loop or a class fills several: they change together.
    filled = [
        parameter
        for parameter in graph.parameters
        if own is not None
        and parameter.initialization is not None
        and parameter.initialization[1].key == own[1].key
    ]
    starts = [start_of(graph, p) for p in dict.fromkeys([weight, *filled])]
    return [
        started(graph, edits, [start for start in starts if start is not None]),
        normalise,
    ]
