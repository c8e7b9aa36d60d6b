"""What each kind of layer expects of its input, what arrived, and where the width came from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any, Final

from trainlint import ops

if TYPE_CHECKING:
    from torch.fx import Node

    from trainlint.graph import Graph

_RECURRENT_CLASSES: Final = frozenset({"RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"})


@dataclass(frozen=True)
class Expectation:
    """A layer's declared width and the width that arrived.

    `argument` is the constructor's argument that declares it, at position `position`; `what` is the
    field's word for the units (channels, features, ids). `expected` and `received` are equal where
    the layer complains of something else.
    """

    layer: str
    argument: str
    position: int
    expected: int
    received: int
    what: str


@dataclass(frozen=True)
class WidthSource:
    """Where the width that a layer receives comes from.

    `kind` is `layer` (a weight's output), `flatten` (channels times space), `cat`, `input` or `other`;
    `node` that operation; `dims` the shape before the flatten; `axis` the axis of `node`'s value.
    """

    kind: str
    node: Node | None
    dims: tuple[int, ...] = ()
    axis: int = 0


def expectation(graph: Graph, node: Node) -> Expectation | None:
    """What the layer behind this operation expects; None where it is no layer with a width."""
    layer = graph.layer(node)
    kind = _kind(graph, node)
    reader = _READERS.get(kind)
    if reader is None:
        return None
    data: Any = graph.argument(node, "input") or graph.argument(node, "query") or graph.data(node)
    dims = graph.shape(data) if hasattr(data, "all_input_nodes") else None
    if not dims:
        return None
    return reader(graph, node, layer, dims)


def _kind(graph: Graph, node: Node) -> str:
    name = graph.name(node)
    if name != "module_error":
        return name
    owner = graph.operation(node).owner
    for base in type(owner).__mro__:
        if base.__name__ in _RECURRENT_CLASSES:
            return "recurrent"
        if base.__name__ == "_BatchNorm":
            return "batch_norm"
        if base.__name__ == "_InstanceNorm":
            return "instance_norm"
        if base.__name__ == "MultiheadAttention":
            return "multi_head_attention_forward"
    return name


def _class_name(layer: Any, fallback: str) -> str:
    return fallback if layer is None else type(layer).__name__


def _weight_dims(graph: Graph, node: Node) -> tuple[int, ...]:
    weight = graph.argument(node, "weight")
    return (graph.shape(weight) or ()) if hasattr(weight, "all_input_nodes") else ()


def _linear(graph: Graph, node: Node, layer: Any, dims: tuple[int, ...]) -> Expectation | None:
    weight = _weight_dims(graph, node)
    if len(weight) != 2:
        return None
    return Expectation(
        _class_name(layer, "linear"), "in_features", 0, weight[1], dims[-1], "features"
    )


def channels(dims: tuple[int, ...], rank: int) -> int:
    """The number of channels of a batched (N, C, *space) or unbatched (C, *space) tensor."""
    return dims[0] if len(dims) == rank + 1 else dims[1] if len(dims) > 1 else dims[0]


def _convolution(graph: Graph, node: Node, layer: Any, dims: tuple[int, ...]) -> Expectation | None:
    weight = _weight_dims(graph, node)
    if len(weight) < 3 or len(dims) not in (len(weight) - 1, len(weight)):
        return None
    name = graph.name(node)
    groups = graph.argument(node, "groups", 1)
    expected = weight[0] if "transpose" in name else weight[1] * groups
    received = channels(dims, len(weight) - 2)
    return Expectation(_class_name(layer, name), "in_channels", 0, expected, received, "channels")


def _channel_norm(
    graph: Graph, node: Node, layer: Any, dims: tuple[int, ...]
) -> Expectation | None:
    name = graph.name(node)
    expected = getattr(layer, "num_features", None)
    if expected is None:
        tables = (graph.argument(node, "running_mean"), graph.argument(node, "weight"))
        shapes = [graph.shape(table) for table in tables if hasattr(table, "all_input_nodes")]
        expected = shapes[0][0] if shapes and shapes[0] else None
    if expected is None or len(dims) < 2:
        return None
    return Expectation(_class_name(layer, name), "num_features", 0, expected, dims[1], "channels")


def _group_norm(graph: Graph, node: Node, layer: Any, dims: tuple[int, ...]) -> Expectation | None:
    expected = getattr(layer, "num_channels", None)
    if expected is None or len(dims) < 2:
        return None
    return Expectation(
        _class_name(layer, "group_norm"), "num_channels", 1, expected, dims[1], "channels"
    )


def _layer_norm(graph: Graph, node: Node, layer: Any, dims: tuple[int, ...]) -> Expectation | None:
    normalized = graph.argument(node, "normalized_shape")
    if not isinstance(normalized, (tuple, list)) or len(normalized) != 1:
        return None
    return Expectation(
        _class_name(layer, graph.name(node)),
        "normalized_shape",
        0,
        int(normalized[0]),
        dims[-1],
        "features",
    )


def _recurrent(graph: Graph, node: Node, layer: Any, dims: tuple[int, ...]) -> Expectation | None:
    return Expectation(
        _class_name(layer, "rnn"), "input_size", 0, layer.input_size, dims[-1], "features"
    )


def _attention(graph: Graph, node: Node, layer: Any, dims: tuple[int, ...]) -> Expectation | None:
    expected = getattr(layer, "embed_dim", None)
    if expected is None:
        return None
    return Expectation(
        _class_name(layer, "attention"), "embed_dim", 0, expected, dims[-1], "features"
    )


def _embedding(graph: Graph, node: Node, layer: Any, dims: tuple[int, ...]) -> Expectation | None:
    known = graph.operation(node).index_range
    weight = _weight_dims(graph, node)
    if known is None or len(weight) != 2:
        return None
    # One more than the largest id that was looked up.
    return Expectation(
        _class_name(layer, "embedding"), "num_embeddings", 0, weight[0], known[1] + 1, "ids"
    )


def _prelu(graph: Graph, node: Node, layer: Any, dims: tuple[int, ...]) -> Expectation | None:
    weight = _weight_dims(graph, node)
    if not weight or len(dims) < 2:
        return None
    return Expectation(
        _class_name(layer, "prelu"), "num_parameters", 0, weight[0], dims[1], "channels"
    )


_READERS: Final = {
    "linear": _linear,
    **dict.fromkeys(ops.CONVOLUTIONS, _convolution),
    "batch_norm": _channel_norm,
    "instance_norm": _channel_norm,
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _layer_norm,
    "recurrent": _recurrent,
    "multi_head_attention_forward": _attention,
    "embedding": _embedding,
    "prelu": _prelu,
}

# Each output position has the same axes, of the same sizes, as the first operand's.
_SAME_AXES: Final = (
    ops.DROPOUTS
    | ops.NORMALIZATIONS
    | (ops.ACTIVATIONS - {"glu"})
    | ops.MAX_POOLS
    | frozenset(
        "pad avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
        "adaptive_avg_pool3d interpolate add sub mul div maximum minimum where neg abs roll flip "
        "seen_through output contiguous clone to float double half bfloat16 type_as get_data "
        "identity alias expand".split()
    )
)
# The operations that change which axis is which, but not the values.
_MOVING_AXES: Final = frozenset(
    "reshape flatten unflatten view_as reshape_as permute transpose t get_T get_mT movedim moveaxis "
    "squeeze unsqueeze mean sum max amax getitem select narrow".split()
)


# What leaves each value at its place, so that the axes are still those of the input.
_UNMOVED: Final = ("to", "float", "double", "half", "bfloat16", "contiguous", "clone", "detach", "alias",
                   "identity")  # fmt: skip


def images_of(graph: Graph, node: Node) -> tuple[int, int, int, int] | None:
    """The four sizes of what a Conv2d gets, if these are an input's own."""
    data = graph.argument(node, "input")
    source, _ = graph.producer(node, _UNMOVED)
    if graph.name(node) != "conv2d" or source is None or source.op != "placeholder":
        return None
    shape = graph.shape(data) if hasattr(data, "all_input_nodes") else None
    if shape is None or len(shape) != 4 or graph.shape(source) != shape:
        return None
    return shape[0], shape[1], shape[2], shape[3]


def refuses_channels_last(graph: Graph, node: Node) -> bool:
    """Whether a Conv2d refuses images (N, H, W, C) of the user's, whose C it would take for channels."""
    images, wants = images_of(graph, node), expectation(graph, node)
    return (
        graph.inputs_given
        and node in graph.faults
        and images is not None
        and wants is not None
        and images[3] == wants.expected != images[1]
    )


def width_source(graph: Graph, node: Node) -> WidthSource:
    """Walk back from the node's input, along the axis of its width, to what decided that width."""
    wants, data = expectation(graph, node), graph.data(node)
    dims = None if data is None else graph.shape(data)
    if wants is None or not dims or data is None:
        return WidthSource("other", data)
    axis = 1 if wants.what == "channels" and len(dims) > 1 else len(dims) - 1
    if graph.name(node) in ops.CONVOLUTIONS and len(dims) == len(_weight_dims(graph, node)) - 1:
        axis = 0  # an unbatched image
    return trace_axis(graph, data, axis)


def trace_axis(graph: Graph, node: Node, axis: int) -> WidthSource:
    """What decided the size of one axis of a node's value."""
    current, place = node, axis
    while current.op == "call_function":
        name, before, dims = graph.name(current), graph.data(current), graph.shape(current)
        if name == "output" and before is not None and _is_recurrent(graph, before):
            is_last = dims is not None and place == len(dims) - 1
            return WidthSource("layer" if is_last else "other", before, axis=place)
        source = None if before is None else graph.shape(before)
        if before is None or dims is None or source is None:
            return WidthSource("other", current, axis=place)
        if graph.is_weighted(current) or name in ops.RECURRENT or name == "embedding":
            own = 1 if name in ops.CONVOLUTIONS and len(dims) > 1 else len(dims) - 1
            if place == own:
                return WidthSource("layer", current)
            if name != "linear":
                return WidthSource("other", current, axis=place)  # a length, decided by the input
        elif name in _MOVING_AXES:
            if name != "squeeze" and _is_flattened(dims, source, place):
                return WidthSource("flatten", current, source)
            moved = _axis_before(graph, current, place)
            if moved is None:
                return WidthSource("other", current, axis=place)
            place = moved
        elif name not in _SAME_AXES or len(source) != len(dims):
            return WidthSource("cat" if name == "cat" else "other", current, axis=place)
        current = before
    return WidthSource("input" if current.op == "placeholder" else "other", current, axis=place)


def _is_recurrent(graph: Graph, node: Node) -> bool:
    return graph.name(node) in ops.RECURRENT or _kind(graph, node) == "recurrent"


def _is_flattened(after: tuple[int, ...], before: tuple[int, ...], axis: int) -> bool:
    """Whether the last axes of an image were multiplied together: (N, C, H, W) to (N, C·H·W)."""
    if axis != len(after) - 1 or len(before) <= len(after) or len(before) < 3:
        return False
    return after[-1] == prod(before[len(after) - 1 :]) and after[-1] != before[-1]


def _axis_before(graph: Graph, node: Node, axis: int) -> int | None:
    """Which axis of the operand this axis of the result was, or None if that cannot be told."""
    before = graph.data(node)
    source, result = (graph.shape(before) if before is not None else None), graph.shape(node)
    if not source or not result or not -len(result) <= axis < len(result):
        return None  # a part of a `cat` whose ranks differ has no such axis
    name = graph.name(node)
    if name == "permute":
        order: Any = node.args[1:] if len(node.args) > 1 else node.kwargs.get("dims", ())
        if len(order) == 1 and isinstance(order[0], (tuple, list)):
            order = order[0]
        place = order[axis] if axis < len(order) else None
        return place % len(source) if isinstance(place, int) else None
    if name in ("transpose", "t", "get_T", "get_mT"):
        swapped = node.args[1:3] if name == "transpose" else (-2, -1)
        if len(swapped) != 2 or not all(isinstance(place, int) for place in swapped):
            return None
        first, second = (int(place) % len(source) for place in swapped)  # type: ignore[arg-type]
        return {first: second, second: first}.get(axis, axis)
    if len(source) == len(result) and name not in ("reshape", "movedim", "moveaxis"):
        return axis
    # Of the same size and with as many elements behind it, or the only one of its size.
    behind = prod(result[axis + 1 :])
    same_size = [place for place, size in enumerate(source) if size == result[axis]]
    exact = [place for place in same_size if prod(source[place + 1 :]) == behind]
    if len(exact) == 1:
        return exact[0]
    return same_size[0] if len(same_size) == 1 else None


def _has_fixed_space(graph: Graph, image: Node | None) -> bool:
    """Whether an adaptive pooling made the map: then its size does not depend on the input's."""
    while image is not None and image.op == "call_function":
        name = graph.name(image)
        if name.startswith("adaptive_"):
            return True
        if name not in ops.DROPOUTS | ops.ACTIVATIONS | ops.NORMALIZATIONS | {
            "contiguous",
            "clone",
        }:
            return False
        image = graph.data(image)
    return False


def suits_no_size(graph: Graph, image: Node, features: int) -> bool:
    """Whether a map has this many features at no input size: a convolution decided its channels.

    Those of a made-up input are made up as well.
    """
    dims = graph.shape(image) or ()
    decided = len(dims) > 2 and trace_axis(graph, image, 1).kind == "layer"
    return decided and (features % dims[1] != 0 or _has_fixed_space(graph, image))


def blames_the_model(graph: Graph, node: Node) -> bool:
    """Whether a fault would be there whatever the input: another layer decided the width.

    Behind a flatten it is so if no number of pixels fits (the width is no multiple of the channels) or
    if their number is fixed by an adaptive pooling.
    Inputs that the user gave are always right.
    """
    if graph.inputs_given or graph.operation(node).at_every_size:
        return True
    wants = expectation(graph, node)
    source = width_source(graph, node)
    if wants is None and _are_layers_at_odds(graph, node):
        return True
    if wants is None or wants.expected == wants.received:
        # BatchNorm1d on a map and the like: the rank is a layer's doing.
        return graph.name(node) == "module_error" and source.kind == "layer"
    if source.kind == "flatten" and len(source.dims) >= 3 and source.node is not None:
        image = graph.data(source.node)
        batches = {
            (graph.shape(node) or (0,))[0] for node in graph.nodes if node.op == "placeholder"
        }
        return (
            source.dims[0] in batches
            and image is not None
            and suits_no_size(graph, image, wants.expected)
        )
    if source.kind == "cat" and source.node is not None:
        parts = [trace_axis(graph, part, source.axis) for part in source.node.all_input_nodes]
        return all(part.kind == "layer" for part in parts)
    return source.kind == "layer"


def _are_layers_at_odds(graph: Graph, node: Node) -> bool:
    """Whether a sum or product was refused for widths that layers decided, or a reshape for channels."""
    if graph.name(node) == "reshape":
        sizes = [size for part in node.args[1:] for size in (part if isinstance(part, (tuple, list))
                                                             else (part,))]  # fmt: skip
        image, features = graph.data(node), sizes[-1] if len(sizes) == 2 else None
        if image is None or not isinstance(features, int) or sizes[0] != -1:
            return False
        return suits_no_size(graph, image, features)
    pair, operands = disagreement(graph, node), node.all_input_nodes
    if pair is None or len(operands) != 2:
        return False
    for operand, size in zip(operands, pair, strict=True):
        dims = graph.shape(operand) or ()
        places = [place for place, other in enumerate(dims) if other == size]
        if len(places) != 1 or trace_axis(graph, operand, places[0]).kind != "layer":
            return False
    return True


# The promised shape of these is certain: the weight decides it. That of any other is a guess.
_CERTAIN_PROMISES: Final = (
    ops.WEIGHTED | ops.NORMALIZATIONS | ops.RECURRENT | ops.DROPOUTS | {"embedding", "module_error"}
)


def doubtful_faults(graph: Graph) -> list[Node]:
    """The faults that other inputs might not have shown, and that no certain fault lies before."""
    certain = {node for node in graph.faults if blames_the_model(graph, node)}
    return [node for node in graph.faults if node not in certain and not _ancestors(node) & certain]


def _ancestors(node: Node) -> set[Node]:
    stack, seen = list(node.all_input_nodes), set(node.all_input_nodes)
    while stack:
        for source in stack.pop().all_input_nodes:
            if source not in seen:
                seen.add(source)
                stack.append(source)
    return seen


def is_follow_up(graph: Graph, node: Node) -> bool:
    """Whether a fault stands behind another one whose repaired shape was a guess, and no layer between."""
    guesses = {fault for fault in graph.faults if graph.name(fault) not in _CERTAIN_PROMISES}
    stack, seen = list(node.all_input_nodes), set(node.all_input_nodes)
    while stack:
        current = stack.pop()
        if current in guesses:
            return True
        if graph.is_weighted(current) or _is_recurrent(graph, current):
            continue
        for source in current.all_input_nodes:
            if source not in seen:
                seen.add(source)
                stack.append(source)
    return False


@dataclass(frozen=True)
class Mismatch:
    """A layer that receives another width than it declares.

    `made_at` tells its constructor call from others. `agreeing` are all layers that complain of the
    same width from the same source, this one among them, and the sums and products that want the same
    instead; `content` are the layers which that width suits.
    """

    node: Node
    wants: Expectation
    source: WidthSource
    made_at: Any
    agreeing: tuple[Node, ...] = ()
    content: tuple[Node, ...] = ()

    @property
    def source_is_to_blame(self) -> bool:
        """Several expect one and the same other width, and nobody is content with this one."""
        return self.source.kind == "layer" and len(self.agreeing) > 1 and not self.content

    @property
    def fault(self) -> tuple[str, Any, int]:
        """Equal for mismatches that one change mends: of the source, or of one constructor call."""
        subject = id(self.source.node) if self.source_is_to_blame else self.made_at
        return ("width", subject, self.wants.expected)


def mismatches(graph: Graph) -> list[Mismatch]:
    """All layers whose declared width is not the one that arrives, in order of execution."""
    faulty = set(graph.faults)
    expectations = {
        node: wants
        for node in graph.calls_in_order
        if (wants := expectation(graph, node)) is not None
    }
    if not faulty and not any(
        wants.what == "ids" and wants.received > wants.expected for wants in expectations.values()
    ):
        return []  # where a width came from is a long way back in a deep model
    widths = [
        Mismatch(node, wants, width_source(graph, node), _made_at(graph, node))
        for node, wants in expectations.items()
    ]
    refusals = _refused_widths(graph)
    found: list[Mismatch] = []
    for width in widths:
        wants = width.wants
        too_few_ids = wants.what == "ids" and wants.received > wants.expected
        refused = width.node in faulty and wants.expected != wants.received and wants.what != "ids"
        if not (too_few_ids and graph.inputs_given) and not (
            refused and blames_the_model(graph, width.node) and not is_follow_up(graph, width.node)
        ):
            continue
        siblings = [
            other
            for other in widths
            if other.source.node is width.source.node and other.source.kind == "layer"
            and other.wants.received == wants.received
        ]  # fmt: skip
        agreeing = {
            other.made_at: other.node
            for other in siblings
            if other.node in faulty and other.wants.expected == wants.expected
        }
        agreeing |= {
            node: node
            for node, source, received, wanted in refusals
            if source is width.source.node
            and (received, wanted) == (wants.received, wants.expected)
        }
        content = [other.node for other in siblings if other.node not in faulty]
        found.append(replace(width, agreeing=tuple(agreeing.values()), content=tuple(content)))
    return found


def _refused_widths(graph: Graph) -> list[tuple[Node, Node | None, int, int]]:
    """(operation, source, its width, the width wanted) of sums, products and reshapes that were refused."""
    found = []
    for node in graph.faults:
        sizes, operands = disagreement(graph, node), node.all_input_nodes
        if sizes is None or not all(sizes):
            continue
        asked = zip(operands, (sizes, sizes[::-1]), strict=False)
        if graph.name(node) == "reshape":  # the last axis, of which the other factors stay
            there, wanted = sizes
            width = (graph.shape(operands[0]) or (0,))[-1]
            asked = zip(operands, [(width, wanted * width // there)], strict=False)
        for operand, (own, other) in asked:
            places = [place for place, size in enumerate(graph.shape(operand) or ()) if size == own]
            source = trace_axis(graph, operand, places[-1]) if places else None
            if source is not None and source.kind == "layer":
                found.append((node, source.node, own, other))
    return found


def disagreement(graph: Graph, node: Node) -> tuple[int, int] | None:
    """The two sizes that a refused operation could not bring together, in the order of its operands.

    Of a sum or product those of the first axis from the right that cannot be broadcast; of a reshape the
    number of elements that there are, and that were asked for.
    """
    shapes = [graph.shape(source) for source in node.all_input_nodes]
    if graph.name(node) == "reshape" and shapes and shapes[0]:
        wanted = [size for part in node.args[1:] for size in (part if isinstance(part, (tuple, list))
                                                              else (part,))]  # fmt: skip
        if wanted and all(isinstance(size, int) and size > 0 for size in wanted):
            return prod(shapes[0]), prod(wanted)  # type: ignore[arg-type]
        return None
    if graph.name(node) not in ("add", "sub", "mul", "div") or len(shapes) != 2 or not all(shapes):
        return None
    for one, other in zip(reversed(shapes[0] or ()), reversed(shapes[1] or ()), strict=False):
        if one != other and 1 not in (one, other):
            return one, other
    return None


def _made_at(graph: Graph, node: Node) -> Any:
    site = graph.constructed(node)
    return id(graph.operation(node).owner) if site is None else site.key


def agreed_width(graph: Graph, node: Node) -> int | None:
    """The width that all layers of this width from the same constructor call receive, or None."""
    own = expectation(graph, node)
    received: set[int] = set()
    together: list[Any] = [*graph.built_together(node)] or [graph.operation(node).owner]
    for module in together:
        for call in graph.nodes_of_module.get(id(module), ()):
            wants = expectation(graph, call)
            if wants is not None and own is not None and wants.expected == own.expected:
                received.add(wants.received)
    return received.pop() if len(received) == 1 else None


def describe_source(graph: Graph, source: WidthSource) -> str:
    """`from conv2`, `from the input`, `: 16 channels x 5 x 5 after the flatten`."""
    if source.kind == "layer" and source.node is not None:
        return f" from {graph.label(source.node)}"
    if source.kind == "input":
        return " from the input"
    if source.kind == "flatten" and len(source.dims) >= 3:
        return f": {' × '.join(map(str, source.dims[1:]))}, flattened"
    if source.kind == "cat" and source.node is not None:
        sizes = [
            (graph.shape(part) or ())[source.axis :][:1] for part in source.node.all_input_nodes
        ]
        return f": {' + '.join(str(size[0]) for size in sizes if size)}, concatenated"
    return ""


def blamed_source(graph: Graph, mismatch: Mismatch) -> str:
    """`; conv2 expects 32 too, so conv1 is the odd one out`, or nothing."""
    if not mismatch.source_is_to_blame or mismatch.source.node is None:
        return ""
    others = [graph.label(node) for node in mismatch.agreeing if node is not mismatch.node]
    verb = "expects" if len(others) == 1 else "expect"
    named = " and ".join([", ".join(others[:-1]), others[-1]] if others[1:] else others)
    return (
        f"; {named} {verb} {mismatch.wants.expected} too, "
        f"so {graph.label(mismatch.source.node)} is the odd one out"
    )
