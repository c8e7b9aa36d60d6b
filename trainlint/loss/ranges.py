"""Between which bounds the values of a node lie, whatever the weights and the inputs are.

Interval arithmetic over the graph, as far as a question about an output needs it: backwards from one
node, a few operations deep. None means that nothing is known; `(-inf, inf)` that there is no bound for
certain, as behind a linear map. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from trainlint import ops

if TYPE_CHECKING:
    from torch.fx import Node

    from trainlint.graph import Graph

_DEEPEST: Final = 24


class Range(NamedTuple):
    """Least and largest value that can occur."""

    low: float
    high: float

    def within(self, low: float, high: float) -> bool:
        """Whether no value lies outside of [low, high]."""
        return low <= self.low and self.high <= high

    @property
    def width(self) -> float:
        """The distance between the bounds."""
        return self.high - self.low


UNBOUNDED: Final = Range(-math.inf, math.inf)
_POSITIVE: Final = Range(0.0, math.inf)
_UNIT: Final = Range(0.0, 1.0)

# What an operation returns, whatever it is given.
_RESULTS: Final = {
    **dict.fromkeys(ops.NORMALIZATIONS - {"rms_norm", "local_response_norm"}, UNBOUNDED),
    **dict.fromkeys(("sigmoid", "softmax", "hardsigmoid"), _UNIT),
    **dict.fromkeys(("tanh", "cosine_similarity", "sin", "cos", "softsign"), Range(-1.0, 1.0)),
    **dict.fromkeys(("log_softmax", "logsigmoid"), Range(-math.inf, 0.0)),
    **dict.fromkeys(("softplus", "square"), _POSITIVE),
    "relu6": Range(0.0, 6.0),
}
# Functions that rise, or fall, all along.
_MONOTONE: Final[dict[str, Callable[[float], float]]] = {
    "relu": lambda x: max(x, 0.0),
    "exp": lambda x: math.exp(min(x, 700.0)) if x < math.inf else math.inf,
    "log": lambda x: -math.inf if x <= 0 else math.log(x),
    "sqrt": lambda x: math.sqrt(max(x, 0.0)),
    "leaky_relu": lambda x: x if x > 0 else 0.01 * x,
    "neg": lambda x: -x,
}
# Bounds of the activations that have one below and none above, where the input has none.
_HALF_BOUNDED: Final = {"gelu": -0.17, "silu": -0.2785, "elu": -1.0, "hardswish": -0.375}
_SAME: Final = (
    ops.REARRANGEMENTS
    | ops.PARTS
    | ops.MAX_POOLS
    | frozenset("mean amax amin max min cat stack flip roll gather where maximum minimum".split())
    | frozenset(f"{kind}avg_pool{rank}d" for kind in ("", "adaptive_") for rank in (1, 2, 3))
)


def value_range(graph: Graph, node: Node) -> Range | None:
    """The bounds of a node's values, or None where they cannot be told."""
    return _range(graph, node, _DEEPEST)


def after(name: str, before: Range | None) -> Range | None:
    """The bounds behind an activation of one operand, by its name."""
    if name in _RESULTS:
        return _RESULTS[name]
    if name in ops.REARRANGEMENTS or name == "getitem":
        return before
    if before is None:
        return _POSITIVE if name == "relu" else None
    if name in _MONOTONE:
        return Range(*sorted((_MONOTONE[name](before.low), _MONOTONE[name](before.high))))
    if name in _HALF_BOUNDED:
        return Range(max(before.low, _HALF_BOUNDED[name]), max(before.high, 0.0))
    return None


def _range(graph: Graph, node: Any, depth: int) -> Range | None:
    if isinstance(node, (int, float)):
        return Range(float(node), float(node))
    if depth == 0 or not hasattr(node, "all_input_nodes") or node.op != "call_function":
        return None
    name = graph.name(node)
    if graph.is_weighted(node):
        return UNBOUNDED
    if name in _SAME:
        return _hull([_range(graph, source, depth - 1) for source in _values(graph, node)])
    if name in ("clamp", "clamp_min", "clamp_max", "hardtanh"):
        return _clamped(graph, node, depth)
    if name in ("add", "sub", "mul", "div"):
        return _arithmetic(graph, node, name, depth)
    source = graph.data(node)
    return after(name, None if source is None else _range(graph, source, depth - 1))


def _values(graph: Graph, node: Node) -> list[Node]:
    """The operands whose values appear in the result: not the condition, not the index."""
    return [source for source in node.all_input_nodes if graph.is_floating(source)]


def _hull(ranges: list[Range | None]) -> Range | None:
    known = [bounds for bounds in ranges if bounds is not None]
    if not known or len(known) < len(ranges):
        return None
    return Range(min(r.low for r in known), max(r.high for r in known))


def _clamped(graph: Graph, node: Node, depth: int) -> Range | None:
    name = graph.name(node)
    bounds = list(node.args[1:3])
    if name == "clamp_max":
        bounds = [None, *bounds]
    low = node.kwargs.get("min", node.kwargs.get("min_val", bounds[0] if bounds else None))
    high = node.kwargs.get("max", node.kwargs.get("max_val", bounds[1] if bounds[1:] else None))
    if name == "hardtanh":
        low, high = -1.0 if low is None else low, 1.0 if high is None else high
    before = _range(graph, graph.data(node), depth - 1) or UNBOUNDED
    if not all(limit is None or isinstance(limit, (int, float)) for limit in (low, high)):
        return None
    result = Range(
        before.low if low is None else max(before.low, float(low)),  # type: ignore[arg-type]
        before.high if high is None else min(before.high, float(high)),  # type: ignore[arg-type]
    )
    # Nothing is known of the input: a bound that is missing is then unknown, not absent.
    unknown = _range(graph, graph.data(node), depth - 1) is None
    return None if unknown and math.isinf(result.width) else result


def _arithmetic(graph: Graph, node: Node, name: str, depth: int) -> Range | None:
    operands = [_range(graph, operand, depth - 1) for operand in node.args[:2]]
    if len(operands) < 2:
        return None
    first, second = operands
    if first is None or second is None or node.kwargs.get("alpha", 1) != 1:
        return None
    if name == "add":
        return Range(first.low + second.low, first.high + second.high)
    if name == "sub":
        if graph.name(node) == "sub" and getattr(node.target, "__name__", "") in (
            "__rsub__",
            "rsub",
        ):
            first, second = second, first
        return Range(first.low - second.high, first.high - second.low)
    if name == "div":
        constant = second.low == second.high != 0
        return _product(first, Range(1 / second.low, 1 / second.low)) if constant else None
    return _product(first, second)


def _product(first: Range, second: Range) -> Range:
    corners = [0.0 if 0.0 in (a, b) else a * b for a in (first.low, first.high) for b in second]
    return Range(min(corners), max(corners))
