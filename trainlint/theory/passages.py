"""What each operation does to moments on the way forward, and to a gradient on the way back.

An operation is a function of the walk, the node and those of its operands that vary; it returns the
`Moments` of its result, and for each operand the way of the gradient to it. `HANDLERS` names them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from torch.fx import Node

from trainlint import ops
from trainlint.graph import Graph, product
from trainlint.theory.moments import (
    TINY,
    Activation,
    Moments,
    WeightMoments,
    averaged_over_places,
    averaged_over_units,
    constant,
    declared,
    largest_of,
    of_values,
    plus,
    times,
)

if TYPE_CHECKING:
    from trainlint.theory.mean_field import Walk


@dataclass(frozen=True)
class Gradient:
    """The gradient that arrives at a value.

    `energy` is its squared norm over the whole tensor; `units` and `places` are its coherence, the
    correlation between two units and two positions of a sample. `along` is the norm, over samples, of
    its inner product with the value itself. Homogeneous operations hand that product on unchanged, and
    it grows faster than the rest where the value shrinks on the way back, as in residual stacks.
    """

    energy: float
    units: float = 0.0
    places: float = 0.0
    along: float = 0.0

    def times(self, gain: float) -> Gradient:
        """More or less of it, to the same pattern."""
        return replace(self, energy=self.energy * gain)


def joined(one: Gradient | None, other: Gradient) -> Gradient:
    """The sum of two gradients of one value."""
    if one is None:
        return other
    energy = one.energy + other.energy
    share = other.energy / energy if energy > 0 else 0.5
    return Gradient(
        energy,
        one.units + (other.units - one.units) * share,
        one.places + (other.places - one.places) * share,
        one.along + other.along,
    )


Back = Callable[[Gradient], Gradient]
Passages = list[tuple[Node, Back]]


def same(gradient: Gradient) -> Gradient:
    """Values pass unchanged, and so do gradients."""
    return gradient


def chained(*backs: Back) -> Back:
    """Through several operations, the last one first."""

    def back(gradient: Gradient) -> Gradient:
        for step in backs:
            gradient = step(gradient)
        return gradient

    return back


# ---------------------------------------------------------------------- elementwise


def through_activation(x: Moments, activation: Activation) -> tuple[Moments, Back]:
    """A function of each element, and what it does to a gradient."""
    y, slopes = activation(x)
    centred = max(x.second - x.mean**2, TINY)

    def coherent(pair: float) -> float:
        """E[f'(x)f'(y)]/E[f'²]: from E[f']² for independent arguments up to 1 for equal ones."""
        if slopes.square <= TINY:
            return 0.0
        alike = min(max((pair - x.mean**2) / centred, 0.0), 1.0)
        return alike + (1 - alike) * slopes.coherent / slopes.square

    units, places = coherent(x.units), coherent(x.places)

    def back(gradient: Gradient) -> Gradient:
        return Gradient(
            gradient.energy * slopes.square,
            gradient.units * units,
            gradient.places * places,
            gradient.along * slopes.along,
        )

    return y, back


def activation_of(walk: Walk, node: Node, source: Node) -> Activation | None:
    """The node's function with its recorded arguments, or None where those are not numbers."""
    name, target = walk.graph.name(node), node.target
    if not callable(target):
        return None
    parts: list[str] = []

    def number(value: Any) -> Any:
        if isinstance(value, Node):
            value = walk.of(value).mean
        parts.append(repr(value))
        return value

    args = [_HOLE if arg is source else number(arg) for arg in node.args]
    kwargs = {
        key: _HOLE if value is source else number(value)
        for key, value in node.kwargs.items()
        if key not in ("inplace", "out")
    }
    if name == "prelu":
        slope = walk.of(walk.graph.argument(node, "weight")).mean
        return Activation(
            ("leaky_relu", slope), lambda z: torch.nn.functional.leaky_relu(z, slope), True
        )
    if name == "rrelu":
        return Activation(
            ("leaky_relu", 0.229), lambda z: torch.nn.functional.leaky_relu(z, 0.229), True
        )
    if sum(value is _HOLE for value in (*args, *kwargs.values())) != 1:
        return None

    def function(z: Tensor) -> Tensor:
        here = [z if value is _HOLE else value for value in args]
        result: Tensor = target(*here, **{k: z if v is _HOLE else v for k, v in kwargs.items()})
        return result

    singular = name in _SINGULAR or (name == "pow" and not _is_whole_power(args))
    return Activation((name, *parts), function, name in _HOMOGENEOUS, singular)


_HOMOGENEOUS: Final = frozenset({"relu", "leaky_relu", "prelu", "rrelu", "abs"})
_SINGULAR: Final = frozenset("rsqrt sqrt log log1p log2 log10 reciprocal".split())
_HOLE: Final = object()


def _is_whole_power(args: list[Any]) -> bool:
    power = args[1] if len(args) > 1 else None
    return isinstance(power, (int, float)) and power >= 1 and float(power).is_integer()


def multiplied(gain: float) -> Back:
    """By many independent factors: two units' gradients then have nothing in common."""
    return lambda g: Gradient(g.energy * gain, 0.0, g.places, g.along)


def summed(ratio: float) -> Back:
    """The gradient of a value that was used in `ratio` places."""

    def back(gradient: Gradient) -> Gradient:
        return replace(gradient, energy=gradient.energy * (1 + (ratio - 1) * gradient.places))

    return back


def _broadcast(walk: Walk, node: Node, source: Node) -> Back:
    ratio = walk.size(node) / walk.size(source)
    return summed(ratio) if ratio > 1 else same


def _operands(node: Node) -> tuple[Any, Any]:
    values = [*node.args, *(node.kwargs[k] for k in ("input", "other") if k in node.kwargs)]
    return values[0], values[1]


def _add(walk: Walk, node: Node, sources: list[Node]) -> tuple[Moments, Passages]:
    first, second = _operands(node)
    alpha: Any = node.kwargs.get("alpha", 1)
    scale = float(alpha)
    scale = -scale if walk.graph.name(node) == "sub" else scale
    a, b = walk.of(first), walk.of(second).scaled(scale)
    if first is second:
        return a.scaled(1 + scale), [(first, lambda g: g.times((1 + scale) ** 2))]
    y = plus(a, b)
    shared = a.mean * b.mean
    passages: Passages = []
    for operand, moments, factor in ((first, a, 1.0), (second, b, scale)):
        if operand in sources:
            # y = a + b: the part of a gradient along y that lies along a.
            share = (moments.second + shared) / max(y.second, TINY)
            passages.append(
                (operand, chained(_share_along(share, factor), _broadcast(walk, node, operand)))
            )
    return y, passages


def _share_along(share: float, factor: float) -> Back:
    def back(gradient: Gradient) -> Gradient:
        return replace(gradient, energy=gradient.energy * factor**2, along=gradient.along * share)

    return back


def _mul(walk: Walk, node: Node, sources: list[Node]) -> tuple[Moments, Passages]:
    first, second = _operands(node)
    a, b = walk.of(first), walk.of(second)
    if first is second:
        return walk.activated(first, Activation("square", torch.square))
    y = times(a, b)
    passages: Passages = []
    for operand, other in ((first, b), (second, a)):
        if operand in sources:
            square, coherent = other.second, other.units / max(other.second, TINY)
            passages.append(
                (operand, chained(_gated(square, coherent), _broadcast(walk, node, operand)))
            )
    return y, passages


def _gated(square: float, coherent: float) -> Back:
    def back(gradient: Gradient) -> Gradient:
        return Gradient(
            gradient.energy * square,
            gradient.units * min(max(coherent, 0.0), 1.0),
            gradient.places,
            gradient.along,
        )

    return back


def _div(walk: Walk, node: Node, sources: list[Node]) -> tuple[Moments, Passages] | None:
    first, second = _operands(node)
    b = walk.of(second)
    if first not in sources or b.second <= TINY:
        return None
    # 1/b by its second moment: divisors are norms, or constants.
    inverse = constant(1 / math.sqrt(b.second))
    y = times(walk.of(first), inverse)
    return y, [(first, chained(_gated(inverse.second, 1.0), _broadcast(walk, node, first)))]


def _neg(walk: Walk, _: Node, sources: list[Node]) -> tuple[Moments, Passages]:
    x = walk.of(sources[0])
    return x._replace(mean=-x.mean), [(sources[0], same)]


def _dropout(walk: Walk, node: Node, sources: list[Node]) -> tuple[Moments, Passages]:
    p = float(walk.graph.argument(node, "p", 0.5))
    x = walk.of(sources[0])
    if not walk.graph.argument(node, "training", True) or not 0 < p < 1:
        return x, [(sources[0], same)]
    noise = x.second * p / (1 - p)
    return x._replace(varying=x.varying + noise), [(sources[0], lambda g: g.times(1 / (1 - p)))]


def _affine(walk: Walk, y: Moments, weight: Any, bias: Any) -> tuple[Moments, float]:
    """A normalisation's own scale and shift, and the gain of the scale."""
    gain = 1.0
    if isinstance(weight, Node):
        scale = walk.of(weight)
        gain = scale.second
        y = times(y, scale._replace(varying_places=0.0, common_places=scale.common))
    if isinstance(bias, Node):
        shift = walk.of(bias)
        y = plus(y, shift._replace(common_places=shift.common))
    return y, gain


def _normalized(
    walk: Walk, node: Node, source: Node, y: Moments, variance: float
) -> tuple[Moments, Passages]:
    argument = walk.graph.argument
    y, scale = _affine(walk, y, argument(node, "weight"), argument(node, "bias"))
    gain = scale / variance

    def back(gradient: Gradient) -> Gradient:
        # The mean and the scale of its input do not matter: no gradient along either.
        return Gradient(gradient.energy * gain * (1 - min(gradient.units, 0.999)))

    return y, [(source, back)]


_EPSILON: Final = 1e-5


def _batch_norm(walk: Walk, node: Node, sources: list[Node]) -> tuple[Moments, Passages]:
    graph, source = walk.graph, sources[0]
    x = walk.of(source)
    weight, bias = graph.argument(node, "weight"), graph.argument(node, "bias")
    running = graph.argument(node, "running_var")
    frozen = graph.name(node) == "batch_norm" and graph.argument(node, "training", True) is False
    if frozen and graph.model.training and isinstance(running, Node):
        deviation = math.sqrt(walk.of(running).mean + _EPSILON)
        y, scale = _affine(walk, x.scaled(1 / deviation), weight, bias)
        return y, [(source, lambda g: g.times(scale / deviation**2))]
    spatial = len(walk.dims(source)) > 2
    mean_square = x.common_places if spatial else x.common  # the squared mean of a channel
    variance = max(x.second - mean_square, 0.0) + _EPSILON
    kept = max(x.common - mean_square, 0.0) / max(x.common, TINY)
    y = Moments(
        x.varying / variance,
        x.common * kept / variance,
        0.0,
        x.varying_units / variance,
        x.common_units * kept / variance,
        x.varying_places / variance,
    ).bounded()
    return _normalized_batch(walk, node, source, y, variance)


def _normalized_batch(
    walk: Walk, node: Node, source: Node, y: Moments, variance: float
) -> tuple[Moments, Passages]:
    argument = walk.graph.argument
    y, scale = _affine(walk, y, argument(node, "weight"), argument(node, "bias"))
    gain = scale / variance
    return y, [(source, lambda g: Gradient(g.energy * gain, g.units, g.places))]


def _layer_norm(walk: Walk, node: Node, sources: list[Node]) -> tuple[Moments, Passages]:
    x = walk.of(sources[0])
    variance = max(x.varying - x.varying_units + x.common - x.common_units, 0.0) + _EPSILON
    kept_varying = (x.varying - x.varying_units) / max(x.varying, TINY)
    kept_common = (x.common - x.common_units) / max(x.common, TINY)
    y = Moments(
        (x.varying - x.varying_units) / variance,
        (x.common - x.common_units) / variance,
        varying_places=x.varying_places * kept_varying / variance,
        common_places=x.common_places * kept_common / variance,
    ).bounded()
    return _normalized(walk, node, sources[0], y, variance)


def _rms_norm(walk: Walk, node: Node, sources: list[Node]) -> tuple[Moments, Passages]:
    x = walk.of(sources[0])
    deviation = math.sqrt(x.second + 1e-6)
    return _normalized(walk, node, sources[0], x.scaled(1 / deviation), deviation**2)


def _group_norm(walk: Walk, node: Node, sources: list[Node]) -> tuple[Moments, Passages]:
    x = walk.of(sources[0])
    groups = walk.graph.argument(node, "num_groups", None)
    channels = walk.dims(sources[0])[1]
    alone = groups is None or groups == channels  # instance norm: one channel, all positions
    varying_mean = x.varying_places if alone else min(x.varying_units, x.varying_places)
    common_mean = x.common_places if alone else min(x.common_units, x.common_places)
    variance = max(x.varying - varying_mean + x.common - common_mean, 0.0) + _EPSILON
    y = Moments(
        (x.varying - varying_mean) / variance,
        (x.common - common_mean) / variance,
        varying_places=(x.varying_places - varying_mean) / variance,
        common_places=(x.common_places - common_mean) / variance,
    ).bounded()
    return _normalized(walk, node, sources[0], y, variance)


def _mean(walk: Walk, node: Node, sources: list[Node]) -> tuple[Moments, Passages]:
    """A mean over axes, average pooling, or (times their number) a sum."""
    source = sources[0]
    x = walk.of(source)
    count = walk.size(source) / walk.size(node)
    if count <= 1:
        return x, [(source, same)]
    over_units = _is_over_units(walk, node, source)
    y = averaged_over_units(x, count) if over_units else averaged_over_places(x, count)
    factor = count if walk.graph.name(node) == "sum" else 1.0

    def back(gradient: Gradient) -> Gradient:
        spread = gradient.energy * factor**2 / count
        whole = product(walk.dims(node)[2:]) <= 1
        if over_units:
            return Gradient(spread, 1.0, gradient.places, gradient.along)
        places = 1.0 if whole else gradient.places
        return Gradient(spread, gradient.units, places, gradient.along)

    return y.scaled(factor), [(source, back)]


def _is_over_units(walk: Walk, node: Node, source: Node) -> bool:
    if walk.graph.name(node) not in ("mean", "sum"):
        return False
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    rank = len(walk.dims(source))
    axes = dims if isinstance(dims, (tuple, list)) else [dims]
    return any(isinstance(a, int) and a % max(rank, 1) == rank - 1 for a in axes) and rank <= 3


def _max_pool(walk: Walk, node: Node, sources: list[Node]) -> tuple[Moments, Passages]:
    source = sources[0]
    relu = source if walk.graph.name(source) == "relu" else None
    before = walk.graph.data(source) if relu is not None else source
    if before is None or before not in walk.moments:
        before, relu = source, None
    x = walk.of(before)
    count = max(1, round(walk.size(source) / walk.size(node)))
    kernel = node.args[1] if len(node.args) > 1 else node.kwargs.get("kernel_size")
    if isinstance(kernel, int) and "adaptive" not in walk.graph.name(node):
        count = max(count, kernel ** (len(walk.dims(source)) - 2))
    shift, shrunk = largest_of(min(count, 4096))
    own = math.sqrt(max(x.second - x.places, 0.0))
    raised = plus(
        Moments(
            max(x.varying - x.varying_places, 0.0) * shrunk + x.varying_places,
            max(x.common - x.common_places, 0.0) * shrunk + x.common_places,
            x.mean, x.varying_units, x.common_units, x.varying_places, x.common_places,
        ),
        constant(own * shift),
    )  # fmt: skip
    if relu is None:
        return raised, [(source, same)]
    # max(relu(x)) = relu(max(x)): fewer of these are cut off than of all that enter the relu.
    rectifier = Activation(("relu",), torch.relu, True)
    y, slopes = rectifier(raised)
    _, before_slopes = rectifier(x)
    gain = slopes.square / max(before_slopes.square, TINY)
    return y, [(source, lambda g: g.times(gain))]


def _cat(walk: Walk, node: Node, sources: list[Node]) -> tuple[Moments, Passages]:
    given: Any = node.args[0] if node.args else node.kwargs["tensors"]
    parts = [part for part in given if isinstance(part, Node)]
    sizes = [walk.size(part) for part in parts]
    total = sum(sizes)
    moments = [walk.of(part) for part in parts]
    y = Moments(
        *(
            sum(size / total * value for size, value in zip(sizes, column, strict=True))
            for column in zip(*moments, strict=True)
        )
    )
    passages: Passages = []
    for part, size, x in zip(parts, sizes, moments, strict=True):
        if part in sources:
            share = size / total
            along = share * x.second / max(y.second, TINY)
            passages.append((part, _part_of_cat(share, along)))
    return y, passages


def _part_of_cat(share: float, along: float) -> Back:
    def back(gradient: Gradient) -> Gradient:
        return replace(gradient, energy=gradient.energy * share, along=gradient.along * along)

    return back


def _softmax(walk: Walk, node: Node, sources: list[Node]) -> tuple[Moments, Passages]:
    x = walk.of(sources[0])
    dims = walk.dims(node)
    dim = walk.graph.argument(node, "dim", -1)
    count = dims[dim if isinstance(dim, int) else -1] if dims else 1
    peak = _peak(x.second - x.mean**2, count)
    second = peak / count
    common = min(second, math.exp(min(max(x.common - x.mean**2, 0), 50)) / count**2)
    y = Moments(second - common, common, 1 / count, 0.0, 1 / count**2, 0.0, 1 / count**2)
    return y, [(sources[0], lambda g: Gradient(g.energy * second))]


def _peak(variance: float, count: int) -> float:
    """Σp² of a softmax over `count` Gaussian logits: 1/count if they are equal, at most 1."""
    return min(1.0, math.exp(min(max(variance, 0.0), 50.0)) / max(count, 1))


def _mixed(v: Moments, peak: float, keys: int) -> tuple[Moments, Back]:
    """Means of values at `keys` positions, weighted by a softmax whose Σp² is `peak`."""

    def over(own: float, pair: float) -> float:
        return pair + (own - pair) * peak

    even = 1 / max(keys, 1)
    alike = min(even / peak, 1.0)  # how alike two positions' weights are
    y = Moments(
        over(v.varying, v.varying_places),
        over(v.common, v.common_places),
        v.mean,
        over(v.varying_units, 0.0) if v.varying_units else 0.0,
        v.common_units,
        v.varying_places + (v.varying - v.varying_places) * peak * alike,
        v.common_places + (v.common - v.common_places) * peak * alike,
    ).bounded()

    def back(gradient: Gradient) -> Gradient:
        p = gradient.places
        gain = (1 - p) * peak + p
        return Gradient(
            gradient.energy * gain,
            gradient.units,
            min(1.0, ((1 - p) * even + p) / gain),
            gradient.along,
        )

    return y, back


def _matmul(walk: Walk, node: Node, sources: list[Node]) -> tuple[Moments, Passages] | None:
    first, second = _operands(node)
    if not isinstance(first, Node) or not isinstance(second, Node):
        return None
    graph = walk.graph
    left, right = walk.dims(first), walk.dims(second)
    if not left or not right:
        return None
    if graph.is_constant(second) and len(right) == 2:
        w = walk.weight(second, (right[1], right[0]), 1, lambda value: value.T)
        return _one_weight(walk, node, first, w)
    if graph.is_constant(first) and len(left) == 2:
        return _places_mixed(walk, node, second, walk.weight(first, left))
    if first in sources and second in sources and _is_softmax(graph, first):
        return _attended(walk, first, second, left[-1])
    return walk.contraction([first, second], left[-1])


def _one_weight(walk: Walk, node: Node, source: Node, w: WeightMoments) -> tuple[Moments, Passages]:
    y, back = walk.through_weight(
        walk.of(source), w, None, source_size=walk.size(source), result_size=walk.size(node)
    )
    return y, [(source, back)]


def _places_mixed(
    walk: Walk, node: Node, source: Node, w: WeightMoments
) -> tuple[Moments, Passages]:
    """A constant matrix from the left mixes positions, as an adjacency does: units and places swap."""
    y, back = walk.through_weight(
        _swapped(walk.of(source)), w, None,
        source_size=walk.size(source), result_size=walk.size(node),
    )  # fmt: skip

    def turned(gradient: Gradient) -> Gradient:
        there = back(replace(gradient, units=gradient.places, places=gradient.units))
        return replace(there, units=there.places, places=there.units)

    return _swapped(y), [(source, turned)]


def _swapped(x: Moments) -> Moments:
    return Moments(
        x.varying, x.common, x.mean,
        x.varying_places, x.common_places, x.varying_units, x.common_units,
    )  # fmt: skip


def _is_softmax(graph: Graph, node: Node) -> bool:
    if graph.name(node) == "softmax":
        return True
    source, _ = graph.producer(node)
    return source is not None and graph.name(source) == "softmax"


def _attention(walk: Walk, node: Node, sources: list[Node]) -> tuple[Moments, Passages] | None:
    query, key, value = (walk.graph.argument(node, name) for name in ("query", "key", "value"))
    if not all(isinstance(operand, Node) for operand in (query, key, value)):
        return None
    width, keys = walk.dims(query)[-1], walk.dims(key)[-2]
    if node.kwargs.get("is_causal"):
        keys = max(1, round(keys / (1 + math.log(keys))))  # the mean of 1/1, 1/2, ... 1/keys
    scale: Any = node.kwargs.get("scale") or 1 / math.sqrt(width)
    q, k, v = walk.of(query), walk.of(key), walk.of(value)
    y, passages = _attended_by(q, k, v, width * scale**2, keys)
    names = zip((query, key, value), passages, strict=True)
    return y, [(operand, back) for operand, back in names if operand in sources]


def _attended_by(
    q: Moments, k: Moments, v: Moments, width: float, keys: int
) -> tuple[Moments, tuple[Back, Back, Back]]:
    """softmax(q kᵀ) v, where `width` is the width times the scale's square."""
    between = max(k.second - k.places, 0.0)
    peak = _peak(width * q.second * between, keys)
    y, back = _mixed(v, peak, keys)
    scores = peak * max(v.second - v.places, 0.0)
    to_query, to_key = scores * width * between, scores * width * q.second
    return y, (
        lambda g: Gradient(g.energy * to_query),
        lambda g: Gradient(g.energy * to_key),
        back,
    )


def _multi_head(walk: Walk, node: Node, sources: list[Node]) -> tuple[Moments, Passages] | None:
    names = (
        "query key value embed_dim num_heads in_proj_weight in_proj_bias bias_k bias_v add_zero_attn "
        "dropout_p out_proj_weight out_proj_bias"
    ).split()
    given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    size = given["embed_dim"]
    packed = given.get("in_proj_weight")
    projected: list[tuple[Node, Moments, Back]] = []
    for index, name in enumerate(("query", "key", "value")):
        source = given[name]
        if isinstance(packed, Node) and not given.get("use_separate_proj_weight"):
            shape = walk.dims(packed)
            rows = slice(index * size, (index + 1) * size)
            w = walk.weight(
                packed,
                (size, shape[1]),
                arrange=lambda value, rows=rows: value[rows],  # type: ignore[misc]
                part=index,
            )
        else:
            weight = given[f"{name[0]}_proj_weight"]
            w = walk.weight(weight, walk.dims(weight))
        length = walk.size(source)
        y, back = walk.through_weight(
            walk.of(source), w, walk.bias(given.get("in_proj_bias")),
            source_size=length, result_size=length * w.outputs / w.inputs,
        )  # fmt: skip
        projected.append((source, y, back))
    keys = walk.dims(given["key"])[0]  # sequences come first here
    (_, q, _), (_, k, _), (_, v, _) = projected
    mixed, backs = _attended_by(q, k, v, 1.0, keys)
    out = given["out_proj_weight"]
    w = walk.weight(out, walk.dims(out))
    length = walk.size(given["query"])
    y, after = walk.through_weight(
        mixed, w, walk.bias(given.get("out_proj_bias")), source_size=length, result_size=length
    )
    passages = [
        (source, chained(after, through, back))
        for (source, _, back), through in zip(projected, backs, strict=True)
        if source in sources
    ]
    return y, passages


def _einsum(walk: Walk, node: Node, sources: list[Node]) -> tuple[Moments, Passages] | None:
    equation = node.args[0]
    operands = node.args[1:]
    if len(operands) == 1 and isinstance(operands[0], (tuple, list)):
        operands = tuple(operands[0])
    if not isinstance(equation, str) or len(operands) != 2 or "->" not in equation:
        return None
    if not all(isinstance(operand, Node) for operand in operands):
        return None
    inputs, _, output = equation.replace(" ", "").partition("->")
    sizes: dict[str, int] = {}
    for letters, operand in zip(inputs.split(","), operands, strict=True):
        dims = walk.dims(operand)  # type: ignore[arg-type]
        if "." not in letters:
            sizes.update(zip(letters, dims, strict=True))
    count = product([size for letter, size in sizes.items() if letter not in output])
    first, second = operands
    if first in sources and second in sources and _is_softmax(walk.graph, first):  # type: ignore[arg-type]
        return _attended(walk, first, second, count)  # type: ignore[arg-type]
    return walk.contraction(list(operands), count)  # type: ignore[arg-type]


def _attended(walk: Walk, weights: Node, values: Node, keys: int) -> tuple[Moments, Passages]:
    v = walk.of(values)
    peak = min(1.0, max(walk.of(weights).second * keys, 1 / max(keys, 1)))
    y, back = _mixed(v, peak, keys)
    spread = keys * max(v.second - v.places, 0.0)
    return y, [(values, back), (weights, lambda g: Gradient(g.energy * spread))]


def _embedding(walk: Walk, node: Node, _: list[Node]) -> tuple[Moments, Passages] | None:
    weight = walk.graph.argument(node, "weight")
    if not isinstance(weight, Node):
        return None
    shape = walk.dims(weight)
    value = walk.graph.value(weight)
    if value is not None and value.numel():
        moments = of_values(value)
    else:
        leaf = walk.graph.operation(weight).tensor
        known = None if leaf is None else declared(leaf)
        square, mean = known if known is not None else (1.0, 0.0)
        moments = Moments(0.0, square, mean)
    # Two samples rarely hold the same token.
    common = moments.mean**2 + (moments.common - moments.mean**2) / max(shape[0], 1)
    mean_square = moments.mean**2
    return (
        Moments(moments.common - common, common, moments.mean, 0.0, mean_square, 0.0, mean_square),
        [],
    )


def _glu(walk: Walk, _: Node, sources: list[Node]) -> tuple[Moments, Passages]:
    x = walk.of(sources[0])
    gate, slopes = Activation(("sigmoid",), torch.sigmoid)(x)
    gain = gate.second + x.second * slopes.square
    return times(x, gate), [(sources[0], lambda g: replace(g, energy=g.energy * gain, units=0.0))]


def _recurrent(walk: Walk, node: Node, sources: list[Node]) -> tuple[Moments, Passages] | None:
    from trainlint.theory.recurrent import through_recurrence

    return through_recurrence(walk, node, sources)


PASSED: Final = frozenset(
    "where masked_fill tril triu setitem local_response_norm log_softmax pad interpolate upsample "
    "upsample_nearest upsample_bilinear pixel_shuffle pixel_unshuffle roll flip fold unfold "
    "channel_shuffle native_channel_shuffle repeat repeat_interleave stack copy gather index_put "
    "take_along_dim detach get_real get_imag real rot90 broadcast_to squeeze_ ravel "
    "scatter index_add nan_to_num masked_select positive pack_padded_sequence checkpoint".split()
)
Handler = Callable[["Walk", Node, list[Node]], "tuple[Moments, Passages] | None"]
HANDLERS: Final[dict[str, Handler]] = {
    "add": _add,
    "sub": _add,
    "mul": _mul,
    "div": _div,
    "neg": _neg,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "instance_norm": _group_norm,
    "mean": _mean,
    "sum": _mean,
    "cat": _cat,
    "softmax": _softmax,
    "matmul": _matmul,
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    "multi_head_attention_forward": _multi_head,
    "embedding": _embedding,
    "glu": _glu,
    **dict.fromkeys(ops.DROPOUTS, _dropout),
    **dict.fromkeys(ops.MAX_POOLS, _max_pool),
    **dict.fromkeys(
        [f"{kind}avg_pool{rank}d" for kind in ("", "adaptive_") for rank in (1, 2, 3)], _mean
    ),
    **dict.fromkeys((kind for kind in ops.RECURRENT if not kind.endswith("_cell")), _recurrent),
}
