"""ARC001 stacked-linear-without-activation."""

from __future__ import annotations

import ast
import math
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from trainlint.rule import (
    Finding,
    Fix,
    Graph,
    Patch,
    Severity,
    SourceEdits,
    explained,
    ops,
    rule,
    width_source,
)

LINEAR_OVER_SPACE = frozenset(
    "pad avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d mean".split()
)
SEEN_THROUGH = ops.REARRANGEMENTS | ops.DROPOUTS | ops.PARTS | LINEAR_OVER_SPACE | {"batch_norm"}
# From a linear map to where it becomes a gate or is gated.
FACTORS = ops.REARRANGEMENTS | ops.PARTS | ops.DROPOUTS | ops.ACTIVATIONS - {"glu"}
CALLS = {
    "relu": "nn.ReLU()",
    "relu6": "nn.ReLU6()",
    "gelu": "nn.GELU()",
    "silu": "nn.SiLU()",
    "tanh": "nn.Tanh()",
    "elu": "nn.ELU()",
    "leaky_relu": "nn.LeakyReLU()",
    "mish": "nn.Mish()",
    "hardswish": "nn.Hardswish()",
    "selu": "nn.SELU()",
    "softplus": "nn.Softplus()",
}


@dataclass(frozen=True)
class Pair:
    """Two weighted operations with nothing nonlinear between; `between` from the second to the first."""

    first: Any
    second: Any
    between: tuple[Any, ...]


@rule("ARC001", severity=Severity.WARNING, since="0.1")
def stacked_linear_without_activation(graph: Graph, edits: SourceEdits) -> Iterator[Finding]:
    """Two linear layers or convolutions in a row, with nothing nonlinear between them.

    W₂(W₁x + b₁) + b₂ = (W₂W₁)x + (W₂b₁ + b₂): the two are one linear map, with more parameters but no
    more functions than a single layer has. What makes depth worth anything is the function between: a
    network of linear layers alone, however deep, is a linear regression. Reshapes, dropout, average
    pooling, BatchNorm and arithmetic with constants do not change that, for they are linear as well.

    It is a warning where both layers mix over a width that is no bottleneck. Often meant, and advice, are
    pairs with a 1x1 convolution, a linear layer whose result is laid out as a map, and the last layer of
    one network before the first of another, as between an encoder and a decoder.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(784, 256)
            self.fc2 = nn.Linear(256, 256)
            self.fc3 = nn.Linear(256, 10)

        def forward(self, x):
            x = self.fc1(x)
            x = F.relu(self.fc2(x))
            return self.fc3(x)
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(784, 256)
            self.fc2 = nn.Linear(256, 256)
            self.fc3 = nn.Linear(256, 10)

        def forward(self, x):
            x = F.relu(self.fc1(x))
            x = F.relu(self.fc2(x))
            return self.fc3(x)
    ```

    ## When to ignore it
    When the product is meant, to study linear networks for instance. Factorisations are silent: a middle
    width below both ends (LoRA, bottlenecks), depthwise-separable and k x 1 pairs, the projections
    around attention, patch embeddings, upsampling, shared or frozen weights, and a first layer whose
    result is also used otherwise.

    ## Fix safety
    Unsafe: another function is learnt. The activation named is the one that the model uses elsewhere. In a
    Sequential it is one more element: the keys of later layers in a state that was saved count one less.

    ## References
    Goodfellow, Bengio & Courville, Deep Learning (2016), section 6.1; Seed A. The exemptions were
    measured on 175 models of public libraries: 3 pairs remain, all of them products of two linear maps.
    """
    uses = Counter(
        graph.argument(node, "weight") for node in graph.calls_in_order if graph.is_weighted(node)
    )
    seen: set[Any] = set()
    pairs: list[Pair] = []
    for second in graph.calls_in_order:
        if not graph.is_live(second) or not graph.is_weighted(second):
            continue
        pair = _pair_before(graph, second)
        if pair is None or _is_meant(graph, pair) or _is_shared_or_frozen(graph, pair, uses):
            continue
        pairs.append(pair)
    for pair in pairs:
        weights = tuple(graph.argument(node, "weight") for node in (pair.first, pair.second))
        if weights not in seen:  # two towers, or the steps of a loop, share their layers
            seen.add(weights)
            yield _finding(graph, edits, pair, {other.first for other in pairs})


def _pair_before(graph: Graph, second: Any) -> Pair | None:
    """What feeds the operation along a single live operand, if that is again a weighted one."""
    between: list[Any] = []
    source = graph.data(second)
    while source is not None and source.op == "call_function":
        if graph.is_weighted(source):
            return Pair(source, second, tuple(between))
        if len(graph.varying_inputs(source)) != 1 or not graph.is_transparent(source, SEEN_THROUGH):
            return None
        between.append(source)
        source = graph.data(source)
    return None


# ---------------------------------------------------------------------- what is meant


def _is_meant(graph: Graph, pair: Pair) -> bool:
    width_in, middle = _widths(graph, pair.first)
    _, width_out = _widths(graph, pair.second)
    return (
        _groups(graph, pair.first) > 1
        or _groups(graph, pair.second) > 1
        or middle < min(width_in, width_out)
        or _is_used_otherwise(graph, pair)
        or _mixes_another_axis(graph, pair)
        or _takes_a_part(graph, pair)
        or _changes_resolution(graph, pair)
        or _is_patch_embedding(graph, pair)
        or _is_factorized_kernel(graph, pair)
        or _follows_attention(graph, pair.first)
        or _leads_to_attention(graph, pair.second)
        or _is_code(graph, pair)
        or _is_linear_bottleneck(graph, pair)
        or _drives_a_state(graph, pair.second)
        or _is_gated(graph, pair.second)
    )


def _is_used_otherwise(graph: Graph, pair: Pair) -> bool:
    """Something else than weighted operations takes the intermediate value as well."""
    chain = {pair.second, *pair.between}
    return any(
        user not in chain
        and graph.is_live(user)
        and not graph.is_weighted(user)
        and graph.name(user) not in ops.SHAPE_ONLY
        for node in (pair.first, *pair.between)
        for user in node.users
    )


def _mixes_another_axis(graph: Graph, pair: Pair) -> bool:
    """One over time and one over features: together a separable map, which no single layer is."""
    source = width_source(graph, pair.second)
    if source.node is pair.first:
        return source.kind == "other"
    return source.kind in ("layer", "input")


def _takes_a_part(graph: Graph, pair: Pair) -> bool:
    """Only a slice of the first's result goes on: the other part is used elsewhere."""
    for node in pair.between:
        if graph.name(node) not in ops.PARTS:
            continue
        shape, before = graph.shape(node), graph.shape(node.all_input_nodes[0])
        if shape is None or before is None or math.prod(shape) < math.prod(before):
            return True
    return False


def _changes_resolution(graph: Graph, pair: Pair) -> bool:
    """Learnt upsampling followed by a convolution that smooths it, at the same resolution."""
    first, second = (max(_numbers(graph, node, "stride")) for node in (pair.first, pair.second))
    return "transpose" in graph.name(pair.first) and first > 1 and second == 1


def _is_patch_embedding(graph: Graph, pair: Pair) -> bool:
    """A convolution whose stride is its kernel cuts patches; what follows projects these."""
    kernel = _kernel(graph, pair.first)
    stride = _numbers(graph, pair.first, "stride")
    added = any(graph.name(node) == "add" for node in pair.between)
    cuts = bool(kernel) and max(kernel) > 1 and all(step == size for step, size in
                                                    zip(stride, kernel, strict=False))  # fmt: skip
    return (cuts and len(set(stride)) == 1) or (
        bool(kernel) and added and graph.name(pair.second) == "linear"
    )


def _is_factorized_kernel(graph: Graph, pair: Pair) -> bool:
    """1 x k followed by k x 1."""
    return len(set(_kernel(graph, pair.first))) > 1 and len(set(_kernel(graph, pair.second))) > 1


def _follows_attention(graph: Graph, node: Any) -> bool:
    """The first is attention's output projection: it belongs to the product before it."""
    source, _ = graph.producer(node, ops.REARRANGEMENTS | ops.DROPOUTS | ops.PARTS)
    return source is not None and _is_attention(graph, source)


def _leads_to_attention(graph: Graph, node: Any) -> bool:
    """The second is a projection to queries, keys or values: linear by design."""
    # Content and position are added or concatenated before they are compared.
    through = ops.REARRANGEMENTS | ops.PARTS | ops.DROPOUTS | {"add", "cat"}
    users = graph.consumers(node, through)
    return bool(users) and all(_is_attention(graph, user) for user in users)


def _is_code(graph: Graph, pair: Pair) -> bool:
    """The narrowest point of an autoencoder: a map small in all, which a transposed layer enlarges."""
    data = graph.data(pair.first)
    shapes = [graph.shape(node) for node in (data, pair.first, pair.second) if node is not None]
    sizes = [math.prod(shape) for shape in shapes if shape is not None]
    enlarges = "transpose" in graph.name(pair.second)
    return enlarges and len(sizes) == 3 and sizes[1] < min(sizes[0], sizes[2])


def _drives_a_state(graph: Graph, node: Any) -> bool:
    """One of the summands in tanh(Wh + Ux): the input of a recurrent cell, or of a gate."""
    for merge in graph.consumers(node):
        if graph.name(merge) in ops.SHAPE_ONLY:
            continue  # the first state, of this shape
        others = [graph.producer(other)[0] for other in graph.varying_inputs(merge)]
        weighted = [other for other in others if other is not None and graph.is_weighted(other)]
        behind = graph.consumers(merge, ops.REARRANGEMENTS | ops.PARTS | {"add"})
        squashed = bool(behind) and all(graph.name(u) in ("tanh", "sigmoid") for u in behind)
        if graph.name(merge) != "add" or not squashed or not set(weighted) - {node}:
            return False
    return True


def _is_linear_bottleneck(graph: Graph, pair: Pair) -> bool:
    """An inverted residual block ends narrow and linear, behind a depthwise layer; the next one widens."""
    width_in, middle = _widths(graph, pair.first)
    _, width_out = _widths(graph, pair.second)
    kernels = [_kernel(graph, node) for node in (pair.first, pair.second)]
    pointwise = all(kernel and max(kernel) == 1 for kernel in kernels)
    if not pointwise or middle > width_in or middle >= width_out:
        return False
    through = ops.REARRANGEMENTS | ops.DROPOUTS | ops.ACTIVATIONS | ops.NORMALIZATIONS
    source, _ = graph.producer(pair.first, through)
    sources = [source] if source is not None else []
    if source is not None and graph.name(source) == "mul":  # squeeze and excitation between
        sources = [_behind(graph, side, through) for side in graph.varying_inputs(source)]
    return any(graph.is_weighted(node) and _groups(graph, node) > 1 for node in sources)


def _is_gated(graph: Graph, node: Any) -> bool:
    """The second makes a gate and what passes it, from one value: their product is the nonlinear step.

    `glu(Vx)`, or the product of two maps of one x, with an activation on one side or on none.
    """
    users, factors = graph.consumers(node, FACTORS), {node}
    for user in users:
        if graph.name(user) == "glu":
            continue
        sides = [_behind(graph, side, FACTORS) for side in graph.varying_inputs(user)]
        if graph.name(user) != "mul" or not all(side and graph.is_weighted(side) for side in sides):
            return False
        factors.update(sides)
    return bool(users) and len({graph.data(factor) for factor in factors}) == 1


def _behind(graph: Graph, node: Any, through: Collection[str]) -> Any:
    """What made the value, seen through these operations: the node itself if it is none of them."""
    transparent = node.op == "call_function" and graph.is_transparent(node, through)
    return graph.producer(node, through)[0] if transparent else node


def _is_attention(graph: Graph, node: Any) -> bool:
    if graph.name(node) in ops.ATTENTION:
        return True
    return graph.name(node) in ("matmul", "einsum") and len(graph.varying_inputs(node)) > 1


def _is_shared_or_frozen(graph: Graph, pair: Pair, uses: Counter[Any]) -> bool:
    trained = {parameter.node for parameter in graph.parameters}
    weights = [graph.argument(node, "weight") for node in (pair.first, pair.second)]
    if uses[weights[0]] != uses[weights[1]]:
        return True  # one of them also works elsewhere
    for node, weight in zip((pair.first, pair.second), weights, strict=True):
        if weight.op == "get_attr" and weight not in trained:
            return True
        if weight.op != "get_attr" and not graph.parameters_of(node):
            return True
    return False


# ---------------------------------------------------------------------- figures


def _widths(graph: Graph, node: Any) -> tuple[int, int]:
    """(features in, features out)."""
    shape = graph.shape(graph.argument(node, "weight")) or (0, 0)
    if "transpose" in graph.name(node):
        return shape[0], shape[1] * _groups(graph, node)
    return shape[1] * _groups(graph, node), shape[0]


def _groups(graph: Graph, node: Any) -> int:
    if graph.name(node) == "linear":
        return 1
    groups = graph.argument(node, "groups", 1)
    return groups if isinstance(groups, int) else 1


def _kernel(graph: Graph, node: Any) -> tuple[int, ...]:
    return (graph.shape(graph.argument(node, "weight")) or ())[2:]


def _numbers(graph: Graph, node: Any, name: str) -> tuple[int, ...]:
    value = graph.argument(node, name, 1) if graph.name(node) != "linear" else 1
    rank = max(len(_kernel(graph, node)), 1)
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * rank


# ---------------------------------------------------------------------- what is said


def _finding(graph: Graph, edits: SourceEdits, pair: Pair, firsts: Collection[Any]) -> Finding:
    width_in, middle = _widths(graph, pair.first)
    _, width_out = _widths(graph, pair.second)
    first, second = graph.label(pair.first), graph.label(pair.second)
    # A vector laid out as a map and then convolved, as GAN generators begin.
    laid_out = graph.name(pair.first) == "linear" and graph.name(pair.second) != "linear"
    pointwise = any(kernel and max(kernel) == 1 for kernel in (_kernel(graph, pair.first),
                                                               _kernel(graph, pair.second)))  # fmt: skip
    return Finding(
        f"nothing nonlinear between {first} ({width_in} → {middle}) and {second} "
        f"({middle} → {width_out}): together they are one linear map, and the depth between them is lost",
        where=pair.first,
        evidence={
            "first": first,
            "second": second,
            "widths": [width_in, middle, width_out],
            "between": [graph.name(node) for node in pair.between],
        },
        fixes=[_fix(graph, edits, pair, firsts)],
        severity=Severity.INFO
        if pointwise or laid_out or _is_interface(graph, pair)
        else Severity.WARNING,
        affects=[pair.first, pair.second],
    )


def _is_interface(graph: Graph, pair: Pair) -> bool:
    """The first ends a network with nonlinear steps of its own, the second begins what comes after it.

    Encoders that end in a linear layer are handed on to decoders that begin with one.
    """
    first, second = (graph.operation(node).module.split(".") for node in (pair.first, pair.second))
    common = 0
    while first[common : common + 1] and first[common : common + 1] == second[common : common + 1]:
        common += 1
    network = first[: common + 1]
    return len(network) < len(first) and any(
        graph.operation(node).module.split(".")[: common + 1] == network
        for node in graph.calls(*ops.ACTIVATIONS)
    )


def _fix(graph: Graph, edits: SourceEdits, pair: Pair, firsts: Collection[Any]) -> Fix:
    """The activation behind the first: in its Sequential, or around the call. `firsts` are all pairs'."""
    used = Counter(graph.name(node) for node in graph.calls_in_order if graph.name(node) in CALLS)
    name = used.most_common(1)[0][0] if used else "relu"
    first = graph.label(pair.first)
    title = f"put {CALLS[name]} behind {first}"
    reason = "a linear map of a linear map is one: W2(W1·x + b1) + b2 = (W2·W1)x + (W2·b1 + b2)"
    operation = graph.operation(pair.first)
    layer = graph.layer(pair.first)
    text = edits.text(operation.site.filename) if operation.site is not None else None
    patches = []
    if layer is not None and operation.module:
        patches = [Patch.activation_behind([operation.module], name)]
    container = dict(graph.model.named_modules()).get(operation.module.rpartition(".")[0])
    if layer is not None and type(container).__name__ == "Sequential":
        return _in_sequence(graph, edits, pair.first, firsts, CALLS[name], title, reason, patches)
    function = None if text is None or text.tree is None else _function(text.tree, name)
    if text is None or layer is None or function is None:
        obstacle = "no call of the layer in a file of yours is known"
        return Fix(title, reason=reason, obstacle=obstacle, patches=patches)
    own_call = f"self.{operation.module.rpartition('.')[2]}("

    def wrapped(call: ast.Call, source: str) -> str | None:
        own = source.startswith(own_call) or _is_each_of(graph, text, call, pair.first, firsts)
        return f"{function}({source})" if own else None

    return explained(
        edits.replaced_calls(
            [(operation.site, wrapped)], title=title, reason=reason, patches=patches
        ),
        obstacle="the layer is called within another",
    )


def _in_sequence(
    graph: Graph,
    edits: SourceEdits,
    first: Any,
    firsts: Collection[Any],
    activation: str,
    title: str,
    reason: str,
    patches: list[Patch],
) -> Fix:
    """Another element behind the layer, where each layer that its line makes needs one."""
    path, _, own = graph.operation(first).module.rpartition(".")
    site, name = graph.constructed(first), path.rpartition(".")[2]
    text = None if site is None else edits.text(site.filename)
    obstacle = ""
    needing = {id(graph.layer(node)) for node in firsts}
    if not all(id(module) in needing for module in graph.built_together(first)):
        row = 0 if site is None else site.row
        obstacle = f"line {row} makes layers that have an activation behind them as well"
    elif text is not None and text.tree is not None and _is_counted(text.tree, name):
        obstacle = f"`{name}[…]` counts its elements, which would move"
    if obstacle:
        return Fix(title, reason=reason, obstacle=obstacle, patches=patches)
    owner = dict(graph.model.named_modules())[path]
    behind = list(owner.children())[[*owner._modules].index(own) + 1 :]
    if any(True for part in behind for _ in part.parameters()):
        title += f"; keys of the state of later layers in {name or 'it'} count one more"
    return edits.behind(site, f"torch.{activation}", title=title, reason=reason, patches=patches)


def _is_counted(tree: ast.Module, name: str) -> bool:
    """Whether elements of the container of that name are asked for by their number."""
    return any(
        isinstance(node, ast.Subscript)
        and (getattr(node.value, "attr", "") or getattr(node.value, "id", "")) == name
        for node in ast.walk(tree)
    )


def _is_each_of(
    graph: Graph, text: Any, call: ast.Call, first: Any, firsts: Collection[Any]
) -> bool:
    """Whether it is `layer(x)` in `for layer in self.layers`, each of them a layer that needs one."""
    site = graph.operation(first).site
    loop = next((n for n in text.around(call) if isinstance(n, ast.For)), None)
    if loop is None or site is None or not isinstance(call.func, ast.Name):
        return False
    over, target = loop.iter, loop.target
    if isinstance(over, ast.Subscript):
        over = over.value
    is_own = isinstance(target, ast.Name) and target.id == call.func.id
    if not is_own or not isinstance(over, ast.Attribute) or not _is_own(over):
        return False
    nodes = [
        node
        for node in graph.calls_in_order
        if (place := graph.operation(node).site) is not None and place.key == site.key
    ]
    return all(
        node in firsts
        and graph.operation(node).module.rpartition(".")[0].rpartition(".")[2] == over.attr
        for node in nodes
    )


def _is_own(node: ast.Attribute) -> bool:
    """Whether this is `self.name`."""
    return isinstance(node.value, ast.Name) and node.value.id == "self"


def _function(tree: ast.Module, name: str) -> str | None:
    """How this file can call the activation: `torch.relu`, `F.gelu`, `nn.functional.elu`."""
    names: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name: alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{a.name}": a.asname or a.name for a in node.names}
    if "torch" in names and name in ("relu", "tanh", "sigmoid"):
        return f"{names['torch']}.{name}"
    if "torch.nn.functional" in names:
        return f"{names['torch.nn.functional']}.{name}"
    if "torch.nn" in names:
        return f"{names['torch.nn']}.functional.{name}"
    return f"{names['torch']}.nn.functional.{name}" if "torch" in names else None
