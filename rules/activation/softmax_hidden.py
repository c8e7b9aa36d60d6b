"""ACT005 softmax-hidden."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from trainlint.rule import Finding, Fix, Graph, Severity, SourceEdits, ops, rule

# What uses a softmax as weights: attention, mixtures of experts, routing, soft look-ups.
WEIGHTINGS = frozenset(
    "matmul einsum scaled_dot_product_attention topk gather argmax multinomial index_select baddbmm "
    "tensordot dot bilinear sort max scatter index_add".split()
)


@rule("ACT005", severity=Severity.INFO, since="0.1")
def softmax_hidden(graph: Graph, edits: SourceEdits) -> Iterator[Finding]:
    """A softmax is used as the activation between hidden layers.

    Its n outputs share a sum of 1, so that they are 1/n on average, and one can only grow at the cost
    of the others: the layer loses a degree of freedom and the next layer sees hardly any signal. The
    Jacobian diag(p) − ppᵀ has norm at most 1/2, and about 1/n where the outputs are alike, as they are
    at initialisation; a hidden layer of 64 units then passes on 1/64 of the gradient. ReLU has slope 1.

    Softmax makes weights that sum to 1. Where they multiply something, it is what it should be, and
    nothing is reported: attention, mixtures of experts, routing, pooling, and a linear layer without
    bias behind it, which mixes its columns as topic models and soft embeddings do.

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
    """Whether it feeds layers as their data, and never multiplies anything."""
    behind = graph.consumers(node, ops.REARRANGEMENTS | ops.DROPOUTS | ops.PARTS)
    return any(_is_layer(graph, user) for user in behind) and not any(
        _is_weighting(graph, user) for user in _linearly_behind(graph, node)
    )


def _is_layer(graph: Graph, node: Any) -> bool:
    if graph.is_weighted(node):
        return graph.argument(node, "bias") is not None  # without one it mixes its columns
    return graph.name(node) in (ops.ACTIVATIONS | ops.NORMALIZATIONS) - {"clamp", "clamp_min"}


def _is_weighting(graph: Graph, node: Any) -> bool:
    name = graph.name(node)
    return (
        name in WEIGHTINGS
        or (name in ("mul", "div", "pow", "sub") and len(graph.varying_inputs(node)) > 1)
        or (graph.is_weighted(node) and graph.argument(node, "bias") is None)
    )


def _linearly_behind(graph: Graph, node: Any) -> Iterator[Any]:
    """What the probabilities reach through linear operations: attention heads may be mixed first."""
    through = ops.REARRANGEMENTS | ops.DROPOUTS | ops.PARTS | ops.NORMALIZATIONS | ops.WEIGHTED
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
    is_layer = graph.layer(node) is not None

    def rewrite(call: ast.Call, _: str) -> str | None:
        if not isinstance(call.func, ast.Attribute):
            return None  # imported by name: ReLU may not be
        owner, name = ast.unparse(call.func.value), call.func.attr
        if is_layer:
            return f"{owner}.ReLU()" if name in ("Softmax", "Softmax2d") else None
        if name != "softmax":
            return None
        if type(node.target).__name__ == "method_descriptor":
            return f"{owner}.relu()"
        return f"{owner}.relu({ast.unparse(call.args[0])})" if call.args else None

    title = (
        "ReLU in its place, whose slope is 1; for weights that sum to 1, multiply something by them"
    )
    return edits.replaced_calls([(graph.place(node), rewrite)], title=title)
