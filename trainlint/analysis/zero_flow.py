"""What is zero, and what therefore never learns: an abstract run over the graph, without numbers.

Given a set of weights that are all zero, `ZeroFlow` tells which values of the forward are identically
zero and which nodes get a gradient that is not identically zero. `stuck_weights` repeats that, freeing
each weight that gets a gradient, until nothing changes: what is left stays zero for ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from trainlint import ops

if TYPE_CHECKING:
    from torch.fx import Node

    from trainlint.graph import Graph, Parameter

_PRODUCTS: Final = frozenset({"mul", "matmul", "einsum", "dot", "outer", "baddbmm"})
_ALL_ZERO_MAKES_ZERO: Final = frozenset(
    {"add", "sub", "cat", "stack", "maximum", "minimum", "lerp"}
)
_AFFINE_NORMS: Final = ops.NORMALIZATIONS - {"local_response_norm"}
# f(0) = 0.
_ZERO_KEEPING: Final = (
    ops.REARRANGEMENTS
    | ops.PARTS
    | ops.DROPOUTS
    | ops.SPATIAL
    | ops.MAX_POOLS
    | frozenset(
        "relu relu6 gelu silu tanh leaky_relu prelu elu selu celu hardswish mish softsign hardtanh "
        "tanhshrink neg sqrt abs sin square amax max clamp seen_through".split()
    )
)
# PyTorch's derivative at exactly 0 is 0: a ReLU whose input is identically zero passes nothing back.
_FLAT_AT_ZERO: Final = frozenset({"relu", "relu6", "abs", "square", "threshold"})
_ZERO_FACTORIES: Final = frozenset({"zeros", "new_zeros", "zeros_like"})
_LARGEST_TABLE: Final = 1 << 22


class ZeroFlow:
    """The zero values and the learning nodes of a graph, if exactly `zero_weights` are zero.

    `zero` are the nodes whose value is 0 for every input; `learning` those whose gradient is not 0
    for every input.
    """

    def __init__(self, graph: Graph, zero_weights: Iterable[Node]) -> None:
        self._graph = graph
        self.zero: set[Node] = set(zero_weights)
        self.learning: set[Node] = set(graph.outputs)
        trainable = {parameter.node for parameter in graph.parameters}
        for node in graph.nodes:
            if node.op == "get_attr":
                if node not in trainable and _is_zero_table(graph, node):
                    self.zero.add(node)
            elif node.op == "call_function" and self._is_zero(node):
                self.zero.add(node)
        for node in reversed(graph.calls_in_order):
            if node in self.learning and not graph.stops_gradient(node):
                self.learning.update(self._reached(node))

    # -------------------------------------------------------------- forward

    def _is_zero(self, node: Node) -> bool:
        name, sources = self._graph.name(node), node.all_input_nodes
        if name in _ZERO_FACTORIES:
            return True
        if not sources:
            return False
        if name in ops.WEIGHTED:
            weight, data, bias = self._operands(node, "weight", "input", "bias")
            return (weight in self.zero or data in self.zero) and self._absent_or_zero(bias)
        if name in _PRODUCTS:
            return any(source in self.zero for source in sources)
        if name == "div":
            return node.args[0] in self.zero
        if name in _ALL_ZERO_MAKES_ZERO:
            scalars = [value for value in node.args[:2] if isinstance(value, (int, float))]
            return all(source in self.zero for source in sources) and not any(scalars)
        if name in _AFFINE_NORMS:
            weight, data, bias = self._operands(node, "weight", "input", "bias")
            return (weight in self.zero or data in self.zero) and self._absent_or_zero(bias)
        if name == "scaled_dot_product_attention":
            return self._graph.argument(node, "value") in self.zero
        if name == "embedding":
            return self._graph.argument(node, "weight") in self.zero
        if name in _ZERO_KEEPING:
            fills = name == "pad" and bool(self._graph.argument(node, "value"))
            return self._graph.data(node) in self.zero and not fills
        return False

    # -------------------------------------------------------------- backward

    def _reached(self, node: Node) -> list[Any]:
        """The operands that get a gradient which is not identically zero."""
        name, zero = self._graph.name(node), self.zero
        sources = [source for source in node.all_input_nodes if self._graph.is_floating(source)]
        if name in ops.WEIGHTED or name in _AFFINE_NORMS:
            weight, data, bias = self._operands(node, "weight", "input", "bias")
            reached = [bias]
            if data not in zero:
                reached.append(weight)
            if weight not in zero:
                reached.append(data)
            return reached
        if name in _PRODUCTS:
            return [
                source
                for source in sources
                if all(other not in zero for other in sources if other is not source)
            ]
        if name == "div":
            return sources if node.args[0] not in zero else [node.args[0]]
        if name == "scaled_dot_product_attention":
            query, key, value, mask = self._operands(node, "query", "key", "value", "attn_mask")
            if value in zero:
                return [value]
            scores = [
                mask,
                *([query] if key not in zero else ()),
                *([key] if query not in zero else ()),
            ]
            return [value, *scores]
        if name in _FLAT_AT_ZERO and self._graph.data(node) in zero:
            return []
        return sources

    def _operands(self, node: Node, *names: str) -> list[Any]:
        return [self._graph.argument(node, name) for name in names]

    def _absent_or_zero(self, operand: Any) -> bool:
        return operand is None or operand in self.zero


def _is_zero_table(graph: Graph, node: Node) -> bool:
    """A constant or buffer of nothing but zeros, such as a first hidden state."""
    value = graph.value(node)
    if value is None or not value.is_floating_point() or value.numel() > _LARGEST_TABLE:
        return False
    return value.numel() > 0 and not bool(value.any())


def zero_parameters(graph: Graph) -> list[Parameter]:
    """The trainable parameters that are used in the forward and hold nothing but zeros."""
    return [
        parameter
        for parameter in graph.parameters
        if parameter.node is not None
        and graph.is_live(parameter.node)
        and not bool(parameter.tensor.detach().any())
    ]


def stuck_weights(graph: Graph, zero: Iterable[Parameter]) -> tuple[set[Node], ZeroFlow]:
    """The zero parameters that never get a gradient, and the flow in which only they are zero.

    A parameter that gets a gradient while all of them are zero leaves zero at the first step, which
    may let a gradient through to others: those are asked again, until no more are freed.
    """
    stuck = {parameter.node for parameter in zero if parameter.node is not None}
    while True:
        flow = ZeroFlow(graph, stuck)
        freed = stuck & flow.learning
        if not freed:
            return stuck, flow
        stuck -= freed


def never_learning(graph: Graph, flow: ZeroFlow) -> list[Parameter]:
    """The used parameters that the gradient would reach if nothing were zero, but does not in `flow`."""
    free = ZeroFlow(graph, ())
    return [
        parameter
        for parameter in graph.parameters
        if parameter.node in free.learning and parameter.node not in flow.learning
    ]
