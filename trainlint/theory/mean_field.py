"""The walk of mean-field theory over a captured graph: moments forward, gradient energy back.

Comes in: a `Graph`, with weights that have values or declared initialisers. Goes out: the `Moments` of
every node, and for every operation how it hands a gradient on to what it was computed from
(`passages.py`). Nothing of the model runs.

Sums are taken for Gaussian, which needs terms that differ. Behind weights that are all equal the units are
one number: first and second moments stay right, but not the share of units in the flat part of a tanh, nor
the product of slopes over several layers, which are then the same samples' slopes again
(`benchmarks/propagation.py`, tanh-constant).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from torch.fx import Node

from trainlint import ops
from trainlint.graph import Graph, product
from trainlint.theory.moments import (
    TINY,
    Activation,
    Moments,
    WeightMoments,
    constant,
    declared,
    independent,
    measured,
    of_values,
    plus,
    times,
)
from trainlint.theory.passages import (
    HANDLERS,
    PASSED,
    Back,
    Gradient,
    Passages,
    activation_of,
    multiplied,
    same,
    summed,
    through_activation,
)

if TYPE_CHECKING:
    from torch import Tensor

# Functions of one argument that are integrated numerically.
ELEMENTWISE: Final = (ops.ACTIVATIONS - {"softmax", "log_softmax", "glu"}) | frozenset(
    "sin cos exp expm1 log log1p sqrt rsqrt abs square pow erf atan arctan sinh cosh reciprocal "
    "exp2 log2 log10 clamp_max".split()
)
_CONSTANTS: Final = frozenset({"zeros", "new_zeros", "zeros_like"})


class Walk:
    """One walk over a graph. `variances` replaces the variance of parameters, by name."""

    def __init__(self, graph: Graph, variances: Mapping[str, float] | None = None) -> None:
        self.graph = graph
        self.variances = dict(variances or {})
        self.moments: dict[Node, Moments] = {}
        self.passages: dict[Node, Passages] = {}
        self.deviations: dict[Node, float] = {}
        self.unknown: set[str] = set()
        self.samples = _samples(graph)
        self._names = {
            parameter.node: parameter.name
            for parameter in graph.parameters
            if parameter.node is not None
        }
        self._names.update(_names_of_meta(graph))
        self._weights: dict[Any, WeightMoments] = {}
        with _one_thread():
            for node in graph.nodes:
                self._visit(node)

    # ------------------------------------------------------------------ forward

    def _visit(self, node: Node) -> None:
        graph = self.graph
        if node.op == "placeholder":
            if graph.is_floating(node):
                self.moments[node] = _of_input(graph.operation(node).tensor)
            return
        if node.op != "call_function" or not graph.is_floating(node):
            return
        if graph.is_constant(node):
            return  # made when an operation asks
        sources = [s for s in graph.varying_inputs(node) if s in self.moments]
        name = graph.name(node)
        if not sources and name != "embedding":
            if graph.shape(node) is not None:
                self.moments[node] = Moments(0.5, 0.5)  # floats out of indices: one-hot, masks
            return
        try:
            result = self._computed(node, name, sources)
        except (OverflowError, ZeroDivisionError, ValueError, IndexError, TypeError):
            result = None
        if result is None:
            self.unknown.add(name)
            result = self.moments[sources[0]], [(sources[0], same)]
        self.moments[node] = result[0].bounded()
        if not graph.stops_gradient(node):
            self.passages[node] = result[1]

    def _computed(
        self, node: Node, name: str, sources: list[Node]
    ) -> tuple[Moments, Passages] | None:
        if name in ops.WEIGHTED:
            return self._weighted(node, name)
        handler = HANDLERS.get(name)
        if handler is not None:
            return handler(self, node, sources)
        if name in ELEMENTWISE and len(sources) == 1:
            return self._elementwise(node, sources[0])
        if name in ops.REARRANGEMENTS or name in ops.PARTS or name in PASSED:
            return self._passed(node, sources)
        return None

    def of(self, value: Any) -> Moments:
        """Moments of an operand: a varying node, a constant one, or a number."""
        if isinstance(value, Node):
            known = self.moments.get(value)
            if known is None:
                known = self.moments[value] = self._of_constant(value)
            return known
        return constant(float(value) if isinstance(value, (int, float)) else 1.0)

    def _of_constant(self, node: Node) -> Moments:
        graph = self.graph
        if graph.name(node) in _CONSTANTS:
            return constant(0.0)
        name = self._names.get(node)
        if name in self.variances:
            return Moments(0.0, self.variances[name])
        value = graph.value(node)
        if value is not None and value.numel() and not value.is_meta:
            return of_values(value)
        leaf = graph.operation(node).tensor
        known = None if leaf is None else declared(leaf)
        if known is not None:
            square, mean = known
            alike = leaf is not None and leaf.numel() == 1
            return Moments(0.0, square, mean, 0.0, square if alike else mean**2, 0.0, square)
        return constant(1.0) if node.op != "get_attr" else Moments(0.0, 1.0)

    def size(self, node: Node) -> int:
        """Elements of the result; that of the first part where it is a tuple."""
        shape = self.graph.shape(node)
        if shape is not None:
            return max(1, product(shape))
        for user in node.users:
            part = self.graph.shape(user)
            if part:
                return max(1, product(part))
        return 1

    def dims(self, node: Node) -> tuple[int, ...]:
        """The shape, () where there is none."""
        return self.graph.shape(node) or ()

    # ------------------------------------------------------------------ weights

    def weight(
        self,
        node: Node,
        shape: tuple[int, ...],
        groups: int = 1,
        arrange: Callable[[Tensor], Tensor] = lambda value: value,
        part: int = 0,
    ) -> WeightMoments:
        """Moments of a weight, arranged as (outputs of all groups, inputs of a group, taps ...).

        `part` counts the matrices that are packed into one.
        """
        key = (node, groups, shape, part)
        known = self._weights.get(key)
        if known is None:
            known = self._weights[key] = self._weight(node, shape, groups, arrange)
        return known

    def _weight(
        self, node: Node, shape: tuple[int, ...], groups: int, arrange: Callable[[Tensor], Tensor]
    ) -> WeightMoments:
        outputs, inputs, taps = shape[0] // groups, shape[1], product(shape[2:])
        name = self._names.get(node)
        if name in self.variances:
            return independent(self.variances[name], 0.0, outputs, inputs, taps, groups)
        value = self.graph.value(node)
        if value is not None and value.numel() and value.is_floating_point() and not value.is_meta:
            return measured(arrange(value), groups)
        leaf = self.graph.operation(node).tensor
        known = None if leaf is None else declared(leaf)
        # PyTorch's own: kaiming_uniform_(a=√5), the bound 1/√fan_in; and Xavier's for attention.
        usual = 1 / (3 * inputs * taps)
        if str(node.target).endswith("in_proj_weight"):
            usual = 2 / sum(self.dims(node))
        square, mean = known if known is not None else (usual, 0.0)
        return independent(square, mean, outputs, inputs, taps, groups)

    def through_weight(
        self,
        x: Moments,
        w: WeightMoments,
        bias: Moments | None,
        *,
        source_size: float,
        result_size: float,
        reach: float = 1.0,
    ) -> tuple[Moments, Back]:
        """A linear map. `reach` is the part of its taps that meets something (padding, gaps)."""
        n = w.inputs * w.taps * reach
        varying_pair, common_pair = _pair_of_inputs(x, w)

        def mapped(own: float, pair: float) -> float:
            return n * w.square * own + n * max(n - 1, 0.0) * w.within_row * pair

        def two_units(own: float, pair: float) -> float:
            return reach * (w.rows * own + (w.row_sums - w.rows) * pair)

        b = bias if bias is not None else constant(0.0)
        varying, common = mapped(x.varying, varying_pair), mapped(x.common, common_pair)
        product_ = Moments(
            varying,
            common,
            n * w.mean * x.mean,
            two_units(x.varying, varying_pair) if w.outputs * w.groups > 1 else varying,
            two_units(x.common, common_pair) if w.outputs * w.groups > 1 else common,
            varying * x.varying_places / max(x.varying, TINY),
            common * x.common_places / max(x.common, TINY),
        ).bounded()
        y = plus(product_, b)
        m = w.outputs * w.taps
        reached = w.square and n * w.inputs * w.groups  # zero weights pass nothing
        back = self._back_through(
            w,
            y,
            from_weights=product_.second / max(y.second, TINY),
            # How many elements of the result each element of the source went into.
            uses=result_size * n / source_size if reached else 0.0,
            outputs=m,
            source_size=source_size,
            result_size=result_size,
        )
        return y, back

    def _back_through(
        self,
        w: WeightMoments,
        y: Moments,
        *,
        from_weights: float,
        uses: float,
        outputs: int,
        source_size: float,
        result_size: float,
    ) -> Back:
        same_unit = w.outputs * w.taps * (w.taps - 1)
        same_tap = w.outputs * (w.outputs - 1) * w.taps
        pairs = max(outputs * (outputs - 1), 1)
        share = uses / max(outputs, 1)

        def back(gradient: Gradient) -> Gradient:
            k, p = gradient.units, gradient.places
            both = pairs - same_unit - same_tap
            pair = (same_unit * p + same_tap * k + both * k * p) / pairs
            energy = (gradient.energy + self.aligned(gradient, y, result_size)) / result_size
            own = uses * w.square
            each = max(own + uses * max(uses - 1, 0.0) * w.within_column * pair, 0.0)
            two = share * (w.columns + (w.column_sums - w.columns) * share * pair)
            return Gradient(
                energy * each * source_size,
                min(max(two / each, 0.0), 1.0) if each > TINY else 0.0,
                p,
                gradient.along * from_weights,
            )

        return back

    def aligned(self, gradient: Gradient, value: Moments, size: float) -> float:
        """Energy of the gradient along the value, as far as coherence does not hold it already."""
        length = size / self.samples * value.second
        along = gradient.along**2 / length if length > TINY else 0.0
        return max(0.0, along - abs(gradient.units) * gradient.energy)

    def bias(self, value: Any) -> Moments | None:
        """Moments of a bias, None where there is none."""
        return self.of(value) if isinstance(value, Node) else None

    def _weighted(self, node: Node, name: str) -> tuple[Moments, Passages] | None:
        graph = self.graph
        source, weight = graph.argument(node, "input"), graph.argument(node, "weight")
        shape = self.dims(weight) if isinstance(weight, Node) else ()
        if not isinstance(source, Node) or not isinstance(weight, Node) or len(shape) < 2:
            return None
        if not graph.is_constant(weight):  # a hypernetwork
            return self.contraction([source, weight], product(shape[1:]))
        groups = graph.argument(node, "groups", 1) if name in ops.CONVOLUTIONS else 1
        before, after = self.dims(source), self.dims(node)
        reach = 1.0
        if "transpose" in name:
            moments = self.weight(
                weight,
                (shape[1] * groups, shape[0] // groups, *shape[2:]),
                groups,
                lambda w: _transposed(w, groups),
            )
            rank = len(shape) - 2
            reach = product(before[-rank:]) / max(1, product(after[-rank:]))
        else:
            moments = self.weight(weight, shape, groups)
            if name in ops.CONVOLUTIONS:
                reach = _share_inside(graph, node, shape[2:], before)
        self.deviations[node] = math.sqrt(moments.square)
        y, back = self.through_weight(
            self.of(source),
            moments,
            self.bias(graph.argument(node, "bias")),
            source_size=self.size(source),
            result_size=self.size(node),
            reach=reach,
        )
        return y, [(source, back)]

    # ------------------------------------------------------------------ elementwise

    def _elementwise(self, node: Node, source: Node) -> tuple[Moments, Passages] | None:
        activation = activation_of(self, node, source)
        return None if activation is None else self.activated(source, activation)

    def activated(self, source: Node, activation: Activation) -> tuple[Moments, Passages]:
        """A function of each element."""
        y, back = through_activation(self.of(source), activation)
        return y, [(source, back)]

    def _passed(self, node: Node, sources: list[Node]) -> tuple[Moments, Passages]:
        source = sources[0]
        x = self.of(source)
        ratio = self.size(node) / self.size(source) if self.graph.shape(source) is not None else 1.0
        if ratio > 1 and self.graph.name(node) in ("expand", "expand_as", "repeat", "broadcast_to"):
            y = x._replace(varying_places=x.varying, common_places=x.common)
            return y, [(source, summed(ratio))]
        return x, [(source, same)]

    def contraction(self, operands: Sequence[Node], count: int) -> tuple[Moments, Passages]:
        """Sums of `count` products of two operands."""
        a, b = (self.of(operand) for operand in operands[:2])

        def summed(own: float, pair: float) -> float:
            return count * own + count * (count - 1) * pair

        whole = times(a, b)
        y = Moments(
            summed(whole.varying, whole.varying_units),
            summed(whole.common, whole.common_units),
            count * whole.mean,
            0.0,
            (count * whole.mean) ** 2,
            summed(whole.varying_places, 0.0),
            summed(whole.common_places, whole.common_units),
        ).bounded()
        passages: Passages = []
        for operand, other in ((operands[0], b), (operands[1], a)):
            if not self.graph.is_constant(operand):
                passages.append((operand, multiplied(count * other.second)))
        return y, passages


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Thousands of small integrals: waking threads for each costs a thousand times the work."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# ---------------------------------------------------------------------- leaves


def _samples(graph: Graph) -> int:
    """The length of the first axis of the inputs, if outputs have it as well."""
    firsts = [graph.shape(node) for node in graph.nodes if node.op == "placeholder"]
    outputs = [graph.shape(node) for node in graph.outputs]
    for shape in firsts:
        if shape and any(other and other[0] == shape[0] for other in outputs):
            return shape[0]
    return 1


def _of_input(tensor: Tensor | None) -> Moments:
    if tensor is None or tensor.is_meta or not tensor.numel() or tensor.is_complex():
        return Moments(1.0, 0.0)
    x = tensor.detach().double()
    if not bool(x.isfinite().all()):
        return Moments(1.0, 0.0)
    square, mean = float(x.square().mean()), float(x.mean())
    common = min(mean * mean, square)
    return Moments(square - common, common, mean, 0.0, common, 0.0, common)


def _names_of_meta(graph: Graph) -> Iterator[tuple[Node, str]]:
    leaves = {
        id(graph.operation(node).tensor): node for node in graph.nodes if node.op == "get_attr"
    }
    for name, tensor in graph.model.named_parameters():
        if tensor.is_meta and id(tensor) in leaves:
            yield leaves[id(tensor)], name


def _transposed(weight: Tensor, groups: int) -> Tensor:
    """(groups · inputs, outputs, taps) of a transposed convolution, as (groups · outputs, inputs, taps)."""
    inputs, outputs = weight.shape[0] // groups, weight.shape[1]
    w = weight.detach().reshape(groups, inputs, outputs, -1)
    return w.transpose(1, 2).reshape(groups * outputs, inputs, -1)


def _pair_of_inputs(x: Moments, w: WeightMoments) -> tuple[float, float]:
    """Mean coherence of two different inputs of one output: other units, other places, or both."""
    n = w.inputs * w.taps
    pairs = max(n * (n - 1), 1)
    same_unit = w.inputs * w.taps * (w.taps - 1) / pairs
    same_tap = w.inputs * (w.inputs - 1) * w.taps / pairs
    both = max(1 - same_unit - same_tap, 0.0)

    def pair(own: float, units: float, places: float) -> float:
        return same_unit * places + same_tap * units + both * units * places / max(own, TINY)

    return (
        pair(x.varying, x.varying_units, x.varying_places),
        pair(x.common, x.common_units, x.common_places),
    )


def _share_inside(
    graph: Graph, node: Node, kernel: tuple[int, ...], before: tuple[int, ...]
) -> float:
    """The part of a convolution's taps that lie inside its input, not in the padding."""
    rank = len(kernel)
    padding = graph.argument(node, "padding", 0)
    share = 1.0
    for axis, taps in enumerate(kernel):
        stride = _along_axis(graph.argument(node, "stride", 1), axis)
        dilation = _along_axis(graph.argument(node, "dilation", 1), axis)
        if isinstance(padding, str):
            pad = dilation * (taps - 1) // 2 if padding == "same" else 0
        else:
            pad = _along_axis(padding, axis)
        share *= _inside(before[axis - rank], taps, stride, pad, dilation)
    return share


def _along_axis(value: Any, axis: int) -> int:
    if isinstance(value, (tuple, list)):
        value = value[axis] if len(value) > axis else value[0]
    return int(value)


@lru_cache(maxsize=4096)
def _inside(length: int, taps: int, stride: int, pad: int, dilation: int) -> float:
    results = max(1, (length + 2 * pad - dilation * (taps - 1) - 1) // stride + 1)
    met = 0
    for tap in range(taps):
        offset = tap * dilation - pad
        first = max(0, -(offset // stride))  # smallest r with r·stride + offset ≥ 0
        last = min(results - 1, (length - 1 - offset) // stride)
        met += max(0, last - first + 1)
    return met / (results * taps)
