"""The captured graph, and the questions that rules ask of it.

A `Graph` wraps the `torch.fx.Graph` of one forward pass; rules handle its nodes (`torch.fx.Node`) and
never need torch themselves. Facts of a node stand in its `Operation`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from trainlint import ops
from trainlint.sites import INITIALIZATIONS, Site, construction_site

if TYPE_CHECKING:
    import networkx as nx
    import torch
    from torch.fx import Node


class TensorShape(NamedTuple):
    """Sizes and dtype of a tensor."""

    dims: tuple[int, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"({', '.join(map(str, self.dims))}) {str(self.dtype).removeprefix('torch.')}"


@dataclass(slots=True)
class Operation:
    """What the capture saw of one call.

    `name` is canonical (`trainlint.ops`); leaves are named `input`, `parameter`, `buffer` and
    `constant`. `shape` is None where the result is not one tensor. `module` is the path of the module
    whose forward ran, `owner` the module itself. `tensor` is the real tensor of a leaf. `origin`
    `unknown` marks a tensor that came from outside what the capture can see. `escape` tells how the
    value left the forward other than as an output: `attribute` where a module keeps it, else the call
    that made a Python or numpy value of it (`item`, `numpy`), made at `escape_site`. `at_every_size`
    tells of an error that was seen at two input sizes, with operands that grew alike.
    """

    name: str
    shape: TensorShape | None
    module: str = ""
    owner: torch.nn.Module | None = None
    site: Site | None = None
    grad_enabled: bool = True
    in_place: bool = False
    error: Exception | None = None
    at_every_size: bool = False
    tensor: torch.Tensor | None = None
    origin: str = ""
    function: str = ""
    index_range: tuple[int, int] | None = None
    escape: str = ""
    escape_site: Site | None = None
    returned: Site | None = None
    is_part: bool = False

    def derived(self, name: str, shape: TensorShape | None) -> Operation:
        """The same place in the user's code, another result."""
        return replace(
            self,
            name=name,
            shape=shape,
            error=None,
            at_every_size=False,
            in_place=False,
            index_range=None,
            escape="",
            returned=None,
            is_part=False,
        )


# Names of the arguments by position, where rules ask for them.
_ARGUMENTS: Final[dict[str, tuple[str, ...]]] = {
    "linear": ("input", "weight", "bias"),
    "batch_norm": ("input", "running_mean", "running_var", "weight", "bias", "training"),
    "instance_norm": ("input", "running_mean", "running_var", "weight", "bias"),
    "layer_norm": ("input", "normalized_shape", "weight", "bias"),
    "rms_norm": ("input", "normalized_shape", "weight"),
    "group_norm": ("input", "num_groups", "weight", "bias"),
    "embedding": ("input", "weight"),
    "scaled_dot_product_attention": ("query", "key", "value", "attn_mask", "dropout_p"),
    "prelu": ("input", "weight"),
    **dict.fromkeys(("softmax", "log_softmax", "softmin"), ("input", "dim")),
    **dict.fromkeys(ops.DROPOUTS, ("input", "p", "training")),
    "pad": ("input", "pad", "mode", "value"),
    **dict.fromkeys(
        ("conv1d", "conv2d", "conv3d"),
        ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    ),
    **dict.fromkeys(
        ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        ("input", "weight", "bias", "stride", "padding", "output_padding", "groups"),
    ),
}
# torch.batch_norm and torch.instance_norm order their arguments differently from torch.nn.functional's.
_BUILTIN_ARGUMENTS: Final[dict[str, tuple[str, ...]]] = {
    "batch_norm": ("input", "weight", "bias", "running_mean", "running_var", "training"),
    "instance_norm": ("input", "weight", "bias", "running_mean", "running_var"),
}


def argument_names(operation: str, function: Any) -> tuple[str, ...]:
    """What the arguments of an operation are called, by position, as far as rules ask for them."""
    names = _ARGUMENTS.get(operation, ())
    if type(function).__name__ == "builtin_function_or_method":
        return _BUILTIN_ARGUMENTS.get(operation, names)
    return names


# See through these when asking "what feeds this layer?": the values are the same.
SAME_VALUES: Final = ops.REARRANGEMENTS | ops.DROPOUTS


@dataclass(frozen=True)
class Parameter:
    """A parameter of the model: its qualified name, its leaf in the graph (None if unused)."""

    name: str
    tensor: torch.Tensor = field(repr=False)
    node: Node | None

    @property
    def initialization(self) -> tuple[str, Site] | None:
        """(function, site) of the call that last filled it, where that was seen."""
        return INITIALIZATIONS.of(self.tensor)


@dataclass(frozen=True)
class GradientPath:
    """The best way of the gradient from an output back to a node.

    `bound` is the product of the slopes along it, `nodes` the saturating operations that it cannot
    avoid on that way, nearest to the node first.
    """

    bound: float
    nodes: tuple[Node, ...]


class Graph:
    """One forward pass of a model.

    `fx` is the underlying `torch.fx.Graph`, `model` the module that ran, `faults` the nodes whose
    operation failed (each was repaired, so the graph goes on behind it). `inputs_given` tells whether
    the user gave the inputs or trainlint made them up. `complete` is False where values came from
    outside PyTorch's overrides, or where the forward ended early: then absence proves nothing.
    """

    def __init__(
        self,
        fx: torch.fx.Graph,
        model: torch.nn.Module,
        *,
        faults: Collection[Node] = (),
        inputs_given: bool = True,
        complete: bool = True,
    ) -> None:
        self.fx = fx
        self.model = model
        self.faults = tuple(faults)
        self.inputs_given = inputs_given
        self.nodes: tuple[Node, ...] = tuple(fx.nodes)
        self.complete = complete and not any(
            self.operation(node).origin == "unknown" for node in self.nodes
        )

    # ------------------------------------------------------------------ nodes and their facts

    def operation(self, node: Node) -> Operation:
        """What the capture saw of this node."""
        operation: Operation = node.meta["operation"]
        return operation

    def name(self, node: Node) -> str:
        """Canonical operation name."""
        return self.operation(node).name

    def shape(self, node: Node) -> tuple[int, ...] | None:
        """Sizes of the node's result, or None where it is not one tensor."""
        shape = self.operation(node).shape
        return None if shape is None else shape.dims

    def is_floating(self, node: Node) -> bool:
        """Whether the result can carry a gradient; True where several tensors are returned."""
        shape = self.operation(node).shape
        return shape is None or shape.dtype.is_floating_point or shape.dtype.is_complex

    @cached_property
    def _positions(self) -> dict[Node, int]:
        return {node: place for place, node in enumerate(self.nodes)}

    def position(self, node: Node) -> int:
        """The node's place in the order of execution."""
        return self._positions[node]

    @cached_property
    def calls_in_order(self) -> tuple[Node, ...]:
        """All operations, in the order in which they ran."""
        return tuple(node for node in self.nodes if node.op == "call_function")

    def calls(self, *names: str) -> Iterator[Node]:
        """The operations of these canonical names, in order."""
        for node in self.calls_in_order:
            if self.name(node) in names:
                yield node

    @cached_property
    def outputs(self) -> tuple[Node, ...]:
        """The nodes of the floating-point tensors that the forward returned."""
        last = self.nodes[-1] if self.nodes else None
        if last is None or last.op != "output":
            return ()
        return tuple(node for node in last.all_input_nodes if self.is_floating(node))

    @cached_property
    def _live(self) -> frozenset[Node]:
        live: set[Node] = set()
        stack = list(self.nodes[-1:]) if self.nodes and self.nodes[-1].op == "output" else []
        while stack:
            node = stack.pop()
            if node not in live:
                live.add(node)
                stack.extend(node.all_input_nodes)
        return frozenset(live)

    def is_live(self, node: Node) -> bool:
        """Whether an output depends on it."""
        return node in self._live

    @cached_property
    def _constant(self) -> frozenset[Node]:
        constant: set[Node] = set()
        for node in self.nodes:  # arguments come first
            if node.op == "get_attr" or (
                node.op == "call_function"
                and all(source in constant for source in node.all_input_nodes)
            ):
                constant.add(node)
        return frozenset(constant)

    def is_constant(self, node: Node) -> bool:
        """Whether it depends on no input: a parameter, a position table, a mask."""
        return node in self._constant

    def argument(self, node: Node, name: str, default: Any = None) -> Any:
        """The argument called `name` in torch.nn.functional, however it was passed."""
        if name in node.kwargs:
            return node.kwargs[name]
        names = argument_names(self.name(node), node.target)
        with contextlib.suppress(ValueError):
            index = names.index(name)
            if index < len(node.args):
                return node.args[index]
        return default

    def varying_inputs(self, node: Node) -> list[Node]:
        """The operands that depend on an input; two of them make an add a merge and a mul a gate."""
        return [source for source in node.all_input_nodes if not self.is_constant(source)]

    def data(self, node: Node) -> Node | None:
        """The operand that carries the data: the first that depends on an input, else the first."""
        varying = self.varying_inputs(node)
        if varying:
            return varying[0]
        return node.all_input_nodes[0] if node.all_input_nodes else None

    def is_weighted(self, node: Node) -> bool:
        """A linear map or convolution whose weight is the model's own and whose input is data."""
        if self.name(node) not in ops.WEIGHTED:
            return False
        weight, data = self.argument(node, "weight"), self.argument(node, "input")
        return (
            _is_node(weight)
            and self.is_constant(weight)
            and not (_is_node(data) and self.is_constant(data))
        )

    # ------------------------------------------------------------------ neighbours

    def is_transparent(self, node: Node, names: Collection[str] = SAME_VALUES) -> bool:
        """Whether to look through the node: named in `names`, or arithmetic with constants only."""
        name = self.name(node)
        if name in names:
            return True
        return name in ("add", "sub", "mul", "div", "neg") and len(self.varying_inputs(node)) == 1

    def producer(
        self, node: Node, through: Collection[str] = SAME_VALUES
    ) -> tuple[Node | None, list[Node]]:
        """What feeds the node's data operand, seen through transparent operations, and those passed."""
        passed: list[Node] = []
        source = self.data(node)
        while source is not None and source.op == "call_function":
            if not self.is_transparent(source, through):
                break
            passed.append(source)
            source = self.data(source)
        return source, passed

    def consumers(self, node: Node, through: Collection[str] = SAME_VALUES) -> list[Node]:
        """The live operations that take the node's value, seen through transparent operations."""
        found: list[Node] = []
        stack, seen = [node], {node}
        while stack:
            for user in stack.pop().users:
                if user in seen or not self.is_live(user):
                    continue
                seen.add(user)
                if user.op == "call_function" and self.is_transparent(user, through):
                    stack.append(user)
                else:
                    found.append(user)
        return found

    def feeds_weights(self, node: Node) -> bool:
        """Whether anything with weights of its own comes after: then this is no output layer."""
        return node in self._feeding_weights

    @cached_property
    def _feeding_weights(self) -> frozenset[Node]:
        feeding: set[Node] = set()
        for node in reversed(self.nodes):
            for user in node.users:
                name = self.name(user)
                if user in feeding or (
                    self.is_weighted(user)
                    or name in ops.RECURRENT
                    or name in ops.ATTENTION
                    or name == "matmul"
                ):
                    feeding.add(node)
                    break
        return frozenset(feeding)

    # ------------------------------------------------------------------ paths

    @cached_property
    def network(self) -> nx.DiGraph[Node]:
        """The live part of the graph for networkx: nodes are `torch.fx.Node`, edges follow the data."""
        import networkx as nx

        network: nx.DiGraph[Node] = nx.DiGraph()
        for node in self.nodes:
            if self.is_live(node):
                network.add_node(node)
                network.add_edges_from((source, node) for source in node.all_input_nodes)
        return network

    @cached_property
    def _post_dominators(self) -> dict[Node, Node]:
        import networkx as nx

        if not self.outputs:
            return {}
        found: dict[Node, Node] = nx.immediate_dominators(
            self.network.reverse(copy=False), self.nodes[-1]
        )
        return found

    def unavoidable(self, node: Node) -> list[Node]:
        """The operations that lie on every path from the node to the output, nearest first."""
        chain: list[Node] = []
        current = self._post_dominators.get(node)
        while current is not None and current.op != "output" and current not in chain:
            chain.append(current)
            current = self._post_dominators.get(current)
        return chain

    def is_bypassed(self, node: Node) -> bool:
        """Whether an input reaches the output by a path that avoids the node."""
        stack = [source for source in self.nodes if source.op == "placeholder"]
        seen = set(stack)
        while stack:
            for user in stack.pop().users:
                if user.op == "output":
                    return True
                if user is not node and user not in seen and self.is_live(user):
                    seen.add(user)
                    stack.append(user)
        return False

    def best_gradient_paths(
        self, slope: Callable[[Node], float | None]
    ) -> dict[Node, GradientPath]:
        """For every node, the path of the largest slope product from an output back to it.

        `slope(node)` is the largest absolute slope of the operation, or None to count it as 1. Nodes
        that no gradient reaches (behind `detach`, `no_grad`, `argmax`) are absent. One sweep over the
        graph in reverse order, since a graph that ran has no cycles.
        """
        paths: dict[Node, GradientPath] = dict.fromkeys(self.outputs, GradientPath(1.0, ()))
        for node in reversed(self.nodes):
            best = paths.get(node)
            for user in node.users:
                behind = paths.get(user)
                if behind is None or self.stops_gradient(user):
                    continue
                factor = slope(user)
                here = (
                    behind
                    if factor is None
                    else GradientPath(behind.bound * factor, (user, *behind.nodes))
                )
                if best is None or (here.bound, -len(here.nodes)) > (best.bound, -len(best.nodes)):
                    best = here
            if best is not None:
                paths[node] = best
        return paths

    def stops_gradient(self, node: Node) -> bool:
        """Whether the gradient ends at this operation."""
        operation = self.operation(node)
        return (
            operation.name in ops.NON_DIFFERENTIABLE
            or not operation.grad_enabled
            or not self.is_floating(node)
        )

    # ------------------------------------------------------------------ parameters and values

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """The model's trainable floating-point parameters that have values."""
        leaves = {
            id(self.operation(node).tensor): node for node in self.nodes if node.op == "get_attr"
        }
        return tuple(
            Parameter(name, tensor, leaves.get(id(tensor)))
            for name, tensor in self.model.named_parameters()
            if tensor.requires_grad
            and not tensor.is_meta
            and tensor.is_floating_point()
            and not hasattr(tensor, "materialize")  # a lazy parameter without values yet
        )

    def parameters_of(self, node: Node) -> list[Parameter]:
        """The parameters from which the node's constant operands are computed."""
        sources: set[Node] = set()
        stack = [source for source in node.all_input_nodes if self.is_constant(source)]
        while stack:
            source = stack.pop()
            if source not in sources:
                sources.add(source)
                stack.extend(source.all_input_nodes)
        return [parameter for parameter in self.parameters if parameter.node in sources]

    def value(self, node: Node, _depth: int = 12) -> torch.Tensor | None:
        """The real value of a constant node, or None where it has none (meta weights, generators)."""
        operation = self.operation(node)
        if node.op == "get_attr":
            tensor = operation.tensor
            return None if tensor is None or tensor.is_meta else tensor.detach()
        if _depth == 0 or not self.is_constant(node) or not callable(node.target):
            return None
        if operation.in_place or node.kwargs.get("out") is not None:
            return None  # replaying it would write into the model
        known: list[Any] = [self.value(source, _depth - 1) for source in node.all_input_nodes]
        if any(value is None for value in known):
            return None
        values = dict(zip(node.all_input_nodes, known, strict=True))
        from torch.fx.node import map_arg

        args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
        try:
            result = node.target(*args, **kwargs)
        except Exception:  # a recorded argument that cannot be replayed
            return None
        return result.detach() if hasattr(result, "detach") else None

    def share_of_parameters(self, parameters: Collection[Parameter]) -> float:
        """The part of all trainable parameters that these are, by number of elements."""
        total = sum(parameter.tensor.numel() for parameter in self.parameters)
        part = sum(parameter.tensor.numel() for parameter in parameters)
        return part / total if total else 0.0

    # ------------------------------------------------------------------ places and names

    def layer(self, node: Node) -> torch.nn.Module | None:
        """The torch.nn layer whose forward made this call, or None for a call in the user's own code."""
        owner = self.operation(node).owner
        if owner is None or not any(
            base.__module__.startswith("torch.nn.modules.") and base.__name__ not in _CONTAINERS
            for base in type(owner).__mro__
            if base.__name__ != "Module"
        ):
            return None
        return owner

    def constructed(self, node: Node) -> Site | None:
        """Where the node's layer was constructed, if it belongs to one and that was recorded."""
        layer = self.layer(node)
        return None if layer is None else construction_site(layer)

    def place(self, node: Node) -> Site | None:
        """Where a user would look: the layer's constructor, else the call, else the model's."""
        return self.constructed(node) or self.operation(node).site or construction_site(self.model)

    def label(self, node: Node) -> str:
        """A short name for people: `conv1`, `torch.sigmoid`, `layer 3 (Linear)` of a bare Sequential."""
        operation = self.operation(node)
        if node.op == "placeholder":
            return "the input"
        if node.op == "get_attr":
            return str(node.target)
        layer = self.layer(node)
        if layer is None or not operation.module:
            return operation.name
        if operation.module.replace(".", "").isdigit():
            return f"layer {operation.module} ({type(layer).__name__})"
        return operation.module

    def path(self, node: Node) -> str:
        """The module's path, as programs want it, or the label of a call outside of a layer."""
        is_layer = self.layer(node) is not None
        return (self.operation(node).module if is_layer else "") or self.label(node)

    def built_together(self, node: Node) -> list[torch.nn.Module]:
        """All modules of the model that the same constructor call made (a loop, a factory, a class)."""
        site = self.constructed(node)
        if site is None:
            return []
        modules: list[torch.nn.Module] = []
        for module in self.model.modules():
            other = construction_site(module)
            if other is not None and other.key == site.key:
                modules.append(module)
        return modules

    @cached_property
    def nodes_of_module(self) -> dict[int, list[Node]]:
        """The calls that each module made itself, by id(module)."""
        found: dict[int, list[Node]] = {}
        for node in self.calls_in_order:
            owner = self.operation(node).owner
            if owner is not None and self.name(node) != "output":
                found.setdefault(id(owner), []).append(node)
        return found


_CONTAINERS: Final = frozenset({"Sequential", "ModuleList", "ModuleDict", "ParameterList"})


def _is_node(value: Any) -> bool:
    return hasattr(value, "all_input_nodes")


def product(values: Collection[int]) -> int:
    """The number of elements of a shape."""
    return math.prod(values)
