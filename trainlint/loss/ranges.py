"""Between which bounds the values of a node lie, whatever the weights and the inputs are.

Interval arithmetic over the graph, as far as a question about an output needs it: backwards from one
node, a few operations deep. None means that nothing is known; `(-inf, inf)` that there is no bound for
certain, as behind a linear map. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
    **dict.fromkeys(("softplus", "square", "abs"), _POSITIVE),
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
_HALF_BOUNDED: Final = {
    "relu": 0.0,
    "gelu": -0.17,
    "silu": -0.2785,
    "mish": -0.309,
    "elu": -1.0,
    "celu": -1.0,
    "selu": -1.7581,
    "hardswish": -0.375,
}
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


def kept(name: str, values: Sequence[float | None] = ()) -> Range | None:
    """The bounds within which an operation keeps whatever it is given; None if it sets none.

    `values` are the bounds of a clamp.
    """
    if name in _RESULTS:
        return _RESULTS[name]
    if name in _HALF_BOUNDED:
        return Range(_HALF_BOUNDED[name], math.inf)
    if name == "clamp" and any(value is not None for value in values):
        low, high = values
        return Range(-math.inf if low is None else low, math.inf if high is None else high)
    return None


def kept_by(graph: Graph, node: Node) -> Range | None:
    """The same for an operation of the graph."""
    limits = _limits(graph, node)
    return kept(graph.name(node)) if limits is None else kept("clamp", limits)


def after(name: str, before: Range | None, values: Sequence[float | None] = ()) -> Range | None:
    """The bounds behind an operation of one operand and numbers, by its name."""
    if name in _RESULTS:
        return _RESULTS[name]
    if name in ops.REARRANGEMENTS or name == "getitem":
        return before
    if before is None:
        limits = kept(name, values)
        return (
            limits if limits is not None and (limits.width < math.inf or name == "relu") else None
        )
    if name in _MONOTONE:
        return Range(*sorted((_MONOTONE[name](before.low), _MONOTONE[name](before.high))))
    if name in _HALF_BOUNDED:
        return Range(max(before.low, _HALF_BOUNDED[name]), max(before.high, 0.0))
    if name == "clamp" and (limits := kept(name, values)) is not None:
        return Range(*(min(max(value, limits.low), limits.high) for value in before))
    if name in ("add", "sub", "mul", "div") and len(values) == 1 and values[0] is not None:
        return _combined(name, before, Range(values[0], values[0]))
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
    if (limits := _limits(graph, node)) is not None:
        source = graph.data(node)
        return after("clamp", None if source is None else _range(graph, source, depth - 1), limits)
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


def _limits(graph: Graph, node: Node) -> tuple[float | None, float | None] | None:
    """The numbers between which an operation cuts its operand off; None where it does not."""
    name = graph.name(node)
    if name not in ("clamp", "clamp_min", "clamp_max", "hardtanh"):
        return None
    bounds: list[Any] = list(node.args[1:3])
    if name == "clamp_max":
        bounds = [None, *bounds]
    low: Any = node.kwargs.get("min", node.kwargs.get("min_val", bounds[0] if bounds else None))
    high: Any = node.kwargs.get(
        "max", node.kwargs.get("max_val", bounds[1] if bounds[1:] else None)
    )
    if name == "hardtanh":
        low, high = -1.0 if low is None else low, 1.0 if high is None else high
    if not all(limit is None or isinstance(limit, (int, float)) for limit in (low, high)):
        return None
    return low, high


def _arithmetic(graph: Graph, node: Node, name: str, depth: int) -> Range | None:
    operands = [_range(graph, operand, depth - 1) for operand in node.args[:2]]
    if len(operands) < 2:
        return None
    first, second = operands
    if first is None or second is None or node.kwargs.get("alpha", 1) != 1:
        return None
    if name == "sub" and getattr(node.target, "__name__", "") in ("__rsub__", "rsub"):
        first, second = second, first
    return _combined(name, first, second)


def _combined(name: str, first: Range, second: Range) -> Range | None:
    if name == "add":
        return Range(first.low + second.low, first.high + second.high)
    if name == "sub":
        return Range(first.low - second.high, first.high - second.low)
    if name == "div":
        constant = second.low == second.high != 0
        return _product(first, Range(1 / second.low, 1 / second.low)) if constant else None
    return _product(first, second)


def _product(first: Range, second: Range) -> Range:
    corners = [0.0 if 0.0 in (a, b) else a * b for a in (first.low, first.high) for b in second]
    return Range(min(corners), max(corners))
