"""What each kind of layer expects of its input, what arrived, and where the width came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from trainlint import ops

if TYPE_CHECKING:
    from torch.fx import Node

    from trainlint.graph import Graph

_RECURRENT_CLASSES: Final = frozenset({"RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"})
_CHANNELWISE: Final = ops.CONVOLUTIONS | {"batch_norm", "instance_norm", "group_norm", "prelu"}


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

    `kind` is `layer` (a weight's output), `flatten` (channels times space), `input` or `other`;
    `node` that operation; `dims` the shape before the flatten.
    """

    kind: str
    node: Node | None
    dims: tuple[int, ...] = ()


def expectation(graph: Graph, node: Node) -> Expectation | None:
    """What the layer behind this operation expects; None where it is no layer with a width."""
    layer = graph.layer(node)
    kind = _kind(graph, node)
    reader = _READERS.get(kind)
    if reader is None:
        return None
    data = graph.argument(node, "input") or graph.argument(node, "query") or graph.data(node)
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


def _channel_norm(graph: Graph, node: Node, layer: Any, dims: tuple[int, ...]) -> Expectation | None:
    name = graph.name(node)
    expected = getattr(layer, "num_features", None)
    if expected is None:
        tables = (graph.argument(node, "running_mean"), graph.argument(node, "weight"))
        shapes = [graph.shape(table) for table in tables if hasattr(table, "all_input_nodes")]
        expected = shapes[0][0] if shapes and shapes[0] else None
    if expected is None or len(dims) < 2:
        return None
    return Expectation(
        _class_name(layer, name), "num_features", 0, expected, dims[1], "channels"
    )


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

_FLATTENING: Final = frozenset({"reshape", "flatten"})
# The width passes these: each output position has the same channels as the input's.
_WIDTH_KEEPING: Final = (
    (ops.REARRANGEMENTS - _FLATTENING)
    | ops.DROPOUTS
    | ops.NORMALIZATIONS
    | ops.ACTIVATIONS
    | ops.MAX_POOLS
    | frozenset(
        "pad avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
        "adaptive_avg_pool3d interpolate add sub mul div maximum minimum where neg abs mean max "
        "amax roll flip seen_through output".split()
    )
)


def width_source(graph: Graph, node: Node) -> WidthSource:
    """Walk back from the node's input to what decided its width."""
    current = graph.data(node)
    wanted = _width_of(graph, node)
    while current is not None and current.op == "call_function":
        name = graph.name(current)
        if graph.is_weighted(current) or name in ops.RECURRENT or name == "embedding":
            return WidthSource("layer", current)
        before = graph.data(current)
        if name in _FLATTENING and before is not None:
            dims, after = graph.shape(before) or (), graph.shape(current) or ()
            if dims and after and len(dims) > len(after) and after[-1] != dims[-1]:
                return WidthSource("flatten", current, dims)
            if wanted not in dims:
                return WidthSource("other", current, dims)
        elif name not in _WIDTH_KEEPING:
            return WidthSource("other", current)
        current = before
    if current is not None and current.op == "placeholder":
        return WidthSource("input", current)
    return WidthSource("other", current)


def _width_of(graph: Graph, node: Node) -> int | None:
    expected = expectation(graph, node)
    return None if expected is None else expected.received


def blames_the_model(graph: Graph, node: Node) -> bool:
    """Whether a fault would be there whatever the input: another layer decided the width.

    Behind a flatten it is so if no number of pixels fits: the width is no multiple of the channels.
    Inputs that the user gave are always right.
    """
    if graph.inputs_given:
        return True
    wants = expectation(graph, node)
    source = width_source(graph, node)
    if wants is None or wants.expected == wants.received:
        # BatchNorm1d on a map and the like: the rank is a layer's doing.
        return graph.name(node) == "module_error" and source.kind == "layer"
    if source.kind == "flatten" and len(source.dims) >= 3:
        return wants.expected % source.dims[1] != 0
    return source.kind == "layer"


@dataclass(frozen=True)
class Mismatch:
    """A layer that receives another width than it declares.

    `agreeing` are all layers that complain of the same width from the same source, this one among
    them; `content` those which that width suits.
    """

    node: Node
    wants: Expectation
    source: WidthSource
    agreeing: tuple[Node, ...] = ()
    content: tuple[Node, ...] = ()

    @property
    def source_is_to_blame(self) -> bool:
        """Several layers expect one and the same other width, and nobody is content with this one."""
        return self.source.kind == "layer" and len(self.agreeing) > 1 and not self.content

    @property
    def fault(self) -> tuple[str, int, int]:
        """Equal for mismatches that one change mends."""
        subject = self.source.node if self.source_is_to_blame else self.node
        return ("width", id(subject), self.wants.expected)


def mismatches(graph: Graph) -> list[Mismatch]:
    """All layers whose declared width is not the one that arrives, in order of execution."""
    widths: list[Mismatch] = []
    faulty = set(graph.faults)
    for node in graph.calls_in_order:
        wants = expectation(graph, node)
        if wants is not None:
            widths.append(Mismatch(node, wants, width_source(graph, node)))
    found: list[Mismatch] = []
    for width in widths:
        wants = width.wants
        too_few_ids = wants.what == "ids" and wants.received > wants.expected
        refused = width.node in faulty and wants.expected != wants.received and wants.what != "ids"
        if not (too_few_ids and graph.inputs_given) and not (
            refused and blames_the_model(graph, width.node)
        ):
            continue
        siblings = [
            other
            for other in widths
            if other.source.node is width.source.node and other.source.kind == "layer"
            and other.wants.received == wants.received
        ]  # fmt: skip
        agreeing = {
            _made_at(graph, other.node): other.node
            for other in siblings
            if other.node in faulty and other.wants.expected == wants.expected
        }
        content = [other.node for other in siblings if other.node not in faulty]
        found.append(
            Mismatch(
                width.node, wants, width.source, tuple(agreeing.values()), tuple(content)
            )
        )
    return found


def _made_at(graph: Graph, node: Node) -> Any:
    site = graph.constructed(node)
    return id(graph.operation(node).owner) if site is None else site.key


def agreed_width(graph: Graph, node: Node) -> int | None:
    """The width that every layer built by the same constructor call receives, or None if they differ."""
    received: set[int] = set()
    for module in graph.built_together(node) or [graph.operation(node).owner]:
        for call in graph.nodes_of_module.get(id(module), ()):
            wants = expectation(graph, call)
            if wants is not None:
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
    return ""
