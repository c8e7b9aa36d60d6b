"""ACT005 softmax-hidden."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import Any

from trainlint.rule import (
    Finding,
    Fix,
    Graph,
    Severity,
    SourceEdits,
    ops,
    other_activations,
    rule,
)

# What uses a softmax as weights: attention, mixtures of experts, routing, soft look-ups.
WEIGHTINGS = frozenset(
    "matmul einsum scaled_dot_product_attention topk gather argmax multinomial index_select baddbmm "
    "tensordot dot bilinear sort max scatter index_add".split()
)
POOLS = ops.MAX_POOLS | frozenset(name for name in ops.SPATIAL if "pool" in name)
BETWEEN = ops.REARRANGEMENTS | ops.DROPOUTS | ops.PARTS | POOLS | {"pad"}
SIGNALS = (
    BETWEEN | ops.ACTIVATIONS | ops.NORMALIZATIONS | ops.WEIGHTED | ops.RECURRENT | {"add", "cat"}
)
# Weights may be masked, joined, cut or normalised before they are used, and heads be mixed.
MASKINGS = frozenset({"masked_fill", "where", "clamp", "clamp_min", "cumsum", "cat", "stack"})
LINEAR = BETWEEN | MASKINGS | ops.NORMALIZATIONS | ops.WEIGHTED
PRODUCTS = frozenset({"mul", "div", "pow", "sub"})


@rule("ACT005", severity=Severity.INFO, since="0.1")
def softmax_hidden(graph: Graph, edits: SourceEdits) -> Iterator[Finding]:
    """A softmax is used as the activation between hidden layers.

    Its n outputs share a sum of 1, so that they are 1/n on average, and one can only grow at the cost
    of the others: the layer loses a degree of freedom and the next layer sees hardly any signal. The
    Jacobian diag(p) − ppᵀ has norm at most 1/2, and about 1/n where the outputs are alike, as they are
    at initialisation; a hidden layer of 64 units then passes on 1/64 of the gradient. ReLU has slope 1.

    Softmax makes weights that sum to 1. Where they multiply something, it is what it should be, and
    nothing is reported: attention, mixtures of experts, routing, pooling, the mean of coordinates, and a
    linear layer without bias behind it, which mixes its columns as topic models and soft embeddings
    do. Nor where it makes a choice (behind noise or a temperature, as in Gumbel-softmax), or a
    prediction that the model returns and refines.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(20, 64)
            self.fc2 = nn.Linear(64, 10)

        def forward(self, x):
            return self.fc2(torch.softmax(self.fc1(x), dim=1))
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(20, 64)
            self.fc2 = nn.Linear(64, 10)

        def forward(self, x):
            return self.fc2(torch.relu(self.fc1(x)))
    ```

    ## When to ignore it
    When the hidden values are meant as probabilities, as a prediction that is refined by later layers.

    ## Fix safety
    Unsafe: another function is learnt.

    ## References
    Norm of the Jacobian: Gao & Pavel 2017, arXiv:1704.00805, proposition 2. ReLU: Glorot, Bordes &
    Bengio 2011, "Deep sparse rectifier neural networks".
    """
    reported: set[Any] = set()
    for node in graph.calls("softmax"):
        dims = graph.shape(node)
        place = graph.place(node)
        key = node if place is None else place.key
        if not dims or key in reported or node in graph.faults:
            continue
        if not graph.is_live(node) or graph.is_constant(node):
            continue
        if graph.operation(node).grad_enabled and _is_hidden(graph, node):
            reported.add(key)
            width = dims[_axis(graph, node, len(dims))]
            yield Finding(
                f"{graph.label(node)} between hidden layers: its {width} outputs share a sum of 1, "
                f"{1 / width:.2g} each on average, and it passes on at most 1/2 of the gradient, about "
                f"1/{width} where they are alike",
                where=node,
                evidence={"width": width, "slope_at_most": 0.5, "slope_where_alike": 1 / width},
                fixes=[_relu(graph, edits, node)],
                affects=[node],
            )


def _axis(graph: Graph, node: Any, rank: int) -> int:
    stated = graph.argument(node, "dim")
    if isinstance(stated, int):
        return stated % rank
    return 0 if rank in (1, 3) else 1


def _is_hidden(graph: Graph, node: Any) -> bool:
    """Whether it stands between layers as an activation does, and nothing uses it as weights."""
    behind = graph.consumers(node, BETWEEN)
    return (
        _comes_from_layer(graph, graph.data(node))
        and any(_is_layer(graph, user) for user in behind)
        and not any(user.op == "output" for user in behind)  # a prediction that is refined
        and not any(_mixes_columns(graph, node, user) for user in behind)
        and not any(_weighs_constants(graph, user) for user in _behind(graph, node, BETWEEN))
        and not any(_is_weighting(graph, user) for user in _behind(graph, node, LINEAR))
    )


def _comes_from_layer(graph: Graph, source: Any, depth: int = 8) -> bool:
    """Whether the scores are a layer's own: noise, a temperature or a mask make a choice of them."""
    while source is not None and source.op == "call_function" and depth:
        name = graph.name(source)
        if graph.is_weighted(source) or name in ops.NORMALIZATIONS | ops.RECURRENT:
            return True
        if name == "add":  # a residual connection, or a bias
            return all(_is_signal(graph, part) for part in source.all_input_nodes) and any(
                _comes_from_layer(graph, part, depth - 1) for part in graph.varying_inputs(source)
            )
        if name not in BETWEEN | ops.ACTIVATIONS:
            return False
        source, depth = graph.data(source), depth - 1
    return False


def _is_signal(graph: Graph, node: Any) -> bool:
    """Whether it is a value that layers pass on, and no random number or logarithm of one."""
    return node.op != "call_function" or graph.name(node) in SIGNALS


def _is_layer(graph: Graph, user: Any) -> bool:
    name = graph.name(user)
    return graph.is_weighted(user) or name in (ops.ACTIVATIONS | ops.NORMALIZATIONS) - MASKINGS


def _mixes_columns(graph: Graph, node: Any, user: Any) -> bool:
    """A linear map without bias: its columns, weighted by the probabilities, are a soft look-up.

    A convolution over several places is none, nor is one that follows normalised scores: there the
    softmax took the place of the activation behind a BatchNorm. A filter that is given smooths what it
    gets, as in a random field.
    """
    if not graph.is_weighted(user) or graph.argument(user, "bias") is not None:
        return False
    weight = graph.argument(user, "weight")
    if graph.name(user) == "linear" or graph.name(weight) == "buffer":
        return True
    source = graph.data(node)
    is_normalised = source is not None and graph.name(source) in ops.NORMALIZATIONS
    return math.prod((graph.shape(weight) or ())[2:]) == 1 and not is_normalised


def _is_weighting(graph: Graph, user: Any) -> bool:
    """Whether it multiplies something by the probabilities, or chooses by them."""
    name = graph.name(user)
    return name in WEIGHTINGS or (name in PRODUCTS and len(graph.varying_inputs(user)) > 1)


def _weighs_constants(graph: Graph, user: Any) -> bool:
    """Whether it multiplies by a table: the coordinates whose mean a spatial softmax takes."""
    several = [part for part in user.all_input_nodes if math.prod(graph.shape(part) or ()) > 1]
    return graph.name(user) in PRODUCTS and len(several) > 1


def _behind(graph: Graph, node: Any, through: Collection[str]) -> Iterator[Any]:
    """What the probabilities reach as such, seen through these operations and arithmetic."""
    stack, seen = [node], {node}
    while stack:
        for user in stack.pop().users:
            if user in seen or not graph.is_live(user):
                continue
            seen.add(user)
            yield user
            if graph.name(user) in through or graph.is_transparent(user):
                stack.append(user)


def _relu(graph: Graph, edits: SourceEdits, node: Any) -> Fix:
    place = graph.place(node)
    key = None if place is None else place.key
    # A line in a loop or a block makes several, which change together.
    alike = [
        other
        for other in graph.calls("softmax")
        if other is node or (key is not None and getattr(graph.place(other), "key", None) == key)
    ]
    title = (
        "ReLU in its place, whose slope is 1; for weights that sum to 1, multiply something by them"
    )
    width = (graph.shape(node) or (1,))[_axis(graph, node, len(graph.shape(node) or (1,)))]
    reason = f"Glorot, Bordes & Bengio 2011: slope 1 for active units, not about 1/{width} for all"
    return other_activations(graph, edits, alike, "relu", title=title, reason=reason)
