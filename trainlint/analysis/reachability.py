"""What the gradient reaches, what is computed for nothing, and which weights the model does not own.

Answers over the captured graph alone: which parameters of the forward have no differentiable way to an
output, and the operation that cuts them off; which operations end in nothing; which weights take part
without being registered; which registered modules take no part.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from trainlint import ops

if TYPE_CHECKING:
    import torch
    from torch.fx import Node

    from trainlint.graph import Graph, Parameter

# Piecewise constant: autograd answers with zeros, not with None.
ZERO_SLOPE: Final = frozenset("round sign floor ceil trunc heaviside".split())
_COPIES: Final = frozenset({"detach", "get_data", "tensor", "new_tensor"})
# What a layer's own constructor fills its weights with, and what sets them to something else after that.
FILLS: Final = frozenset(
    "uniform normal kaiming_uniform kaiming_normal xavier_uniform xavier_normal trunc_normal "
    "orthogonal".split()
)
_OVERWRITES: Final = frozenset(
    {"copy", "setitem", "fill", "zero", "constant", "get_data", "detach"}
)


@dataclass(frozen=True)
class GradientCut:
    """An operation behind which some parameters have no differentiable way left to any output.

    `kind` is `no_grad` (it ran without autograd), `copy` (`detach`, `.data`, `torch.tensor`), `read` (its
    value became Python's or numpy's), `flat` (`round`, whose slope is 0 everywhere) or `discrete`
    (`argmax`, a comparison). `parameters` are those it cuts off first.
    """

    node: Node
    kind: str
    parameters: tuple[Parameter, ...] = field(repr=False)


class Reachability:
    """Which nodes of a graph can pass a gradient from an output, and where that ends."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        kept = [n for n in graph.nodes if graph.operation(n).escape == "attribute"]
        read = [n for n in graph.nodes if graph.operation(n).escape not in ("", "attribute")]
        self._read = frozenset(read)
        # A model that returns nothing but classes or flags is judged by those.
        outputs = graph.outputs or [n for node in graph.nodes[-1:] for n in node.all_input_nodes]
        # A loss term that a module keeps may be added to the loss outside.
        self.learning = self._behind([*outputs, *kept], self.sources)
        self._used = self._behind([*outputs, *kept], self._all_sources)
        self._wanted = self._used | self._behind(read, self._all_sources)

    def sources(self, node: Node) -> list[Node]:
        """The operands to which the operation passes a gradient."""
        operation = self._graph.operation(node)
        if node.op == "call_function" and not operation.grad_enabled:
            # Written into without autograd, a tensor keeps the gradient that it had.
            kept = operation.in_place or operation.name == "seen_through"
            return node.all_input_nodes[:1] if kept else []
        if operation.name == "seen_through":
            return node.all_input_nodes
        if operation.name == "tensor" or self._graph.stops_gradient(node):
            return []
        return node.all_input_nodes

    @property
    def is_severed(self) -> bool:
        """Whether no input has a differentiable way to an output, though some have a way."""
        inputs = [node for node in self._graph.nodes if node.op == "placeholder"]
        return not any(node in self.learning for node in inputs)

    @property
    def learns_nothing(self) -> bool:
        """Whether no gradient of any output comes to any parameter."""
        return not any(parameter.node in self.learning for parameter in self._graph.parameters)

    def cuts(self) -> list[GradientCut]:
        """The operations that cut used parameters off, in the order in which they ran."""
        found: dict[Node, list[Parameter]] = {}
        for parameter in self._graph.parameters:
            if parameter.node in self._wanted and parameter.node not in self.learning:
                cut = self._nearest_cut(parameter.node)
                if cut is not None:
                    found.setdefault(cut, []).append(parameter)
        return [
            GradientCut(node, self._kind(node), tuple(found[node]))
            for node in sorted(found, key=self._graph.position)
        ]

    def ways_out(self, parameter: Parameter) -> set[Node]:
        """All operations at which the gradient on its way back to a parameter is stopped."""
        found: set[Node] = set()
        stack = [] if parameter.node is None else [parameter.node]
        seen = set(stack)
        while stack:
            node = stack.pop()
            for user in node.users:
                if user.op != "call_function" or self._graph.name(user) in ops.SHAPE_ONLY:
                    continue
                if node not in self.sources(user):
                    found.add(user)
                elif user not in seen:
                    seen.add(user)
                    stack.append(user)
        return found

    def passes_straight(self, cut: Node) -> bool:
        """Whether the cut belongs to `x + (q - x).detach()`: one value stays, and leaves with its gradient.

        In the sum that the cut is part of, some value stands once as it is and once cut, with the
        opposite sign: the sum is worth q, and its gradient goes to x.
        """
        stack, seen = [cut], {cut}
        while stack:
            for user in stack.pop().users:
                if user in seen or not self._is_additive(user):
                    continue
                seen.add(user)
                stack.append(user)
                terms = set(self._terms(user))
                if any((x, -sign, True) in terms for x, sign, is_cut in terms if not is_cut):
                    return True
        return False

    def descendants(self, nodes: Iterable[Node]) -> set[Node]:
        """All nodes that were computed from these, and these."""
        found: set[Node] = set()
        stack = list(nodes)
        while stack:
            node = stack.pop()
            if node not in found:
                found.add(node)
                stack.extend(node.users)
        return found

    def ancestors(self, node: Node) -> frozenset[Node]:
        """All nodes whose values it was computed from, and itself."""
        return self._behind([node], self._all_sources)

    # ------------------------------------------------------------------ details

    def _is_additive(self, node: Node) -> bool:
        """A sum or difference, or what leaves the values of one as they are but for a factor."""
        return self._graph.name(node) in ("add", "sub") or self._graph.is_transparent(node)

    def _terms(self, node: Node) -> Iterator[tuple[Node, int, bool]]:
        """(value, sign, whether it is cut) of the terms that a sum consists of."""
        stack = [(node, 1, False)]
        while stack:
            current, sign, is_cut = stack.pop()
            operands = current.all_input_nodes
            if current.op != "call_function" or not operands or not (
                self._is_additive(current) or self._graph.name(current) == "detach"
            ):  # fmt: skip
                yield current, sign, is_cut
                continue
            name = self._graph.name(current)
            cut_here = is_cut or not self.sources(current)
            is_reversed = "rsub" in getattr(current.target, "__name__", "")
            data = self._graph.data(current)
            for operand in operands if name in ("add", "sub") else [data] if data else []:
                is_second = (name == "sub" and operand is not current.args[0]) != is_reversed
                stack.append((operand, -sign if is_second or name == "neg" else sign, cut_here))

    def _all_sources(self, node: Node) -> list[Node]:
        return [] if self._graph.name(node) in ops.SHAPE_ONLY else node.all_input_nodes

    @staticmethod
    def _behind(roots: Iterable[Node], sources: Any) -> frozenset[Node]:
        found: set[Node] = set()
        stack = list(roots)
        while stack:
            node = stack.pop()
            if node not in found:
                found.add(node)
                stack.extend(sources(node))
        return frozenset(found)

    def _nearest_cut(self, leaf: Node) -> Node | None:
        """The first operation on the way to an output, else to a reading, that passes nothing back."""
        return self._first_cut(leaf, self._used) or self._first_cut(leaf, self._wanted)

    def _first_cut(self, leaf: Node, within: frozenset[Node]) -> Node | None:
        queue, seen = deque([leaf]), {leaf}
        while queue:
            node = queue.popleft()
            if node in self._read and node not in self._used:
                return node
            for user in node.users:
                if user in seen or user not in within or self._graph.name(user) in ops.SHAPE_ONLY:
                    continue
                seen.add(user)
                if user.op == "call_function" and node not in self.sources(user):
                    return self._reading_behind(user)
                queue.append(user)
        return None

    def _reading_behind(self, cut: Node) -> Node:
        """`x.detach().cpu().numpy()` is about `numpy`, where nothing else follows the `detach`."""
        if cut in self._used:
            return cut
        readings = self.descendants([cut]) & self._read
        return min(readings, key=self._graph.position, default=cut)

    def _kind(self, node: Node) -> str:
        name = self._graph.name(node)
        if node in self._read and node not in self._used:
            return "read"
        if not self._graph.operation(node).grad_enabled:
            return "no_grad"
        if name in _COPIES:
            return "copy"
        return "flat" if name in ZERO_SLOPE else "discrete"


# ---------------------------------------------------------------------- computed for nothing


def dead_ends(graph: Graph) -> list[tuple[Node, frozenset[Node]]]:
    """(last operation, all operations) of each branch that nobody uses, neither outside nor inside.

    Values that a module keeps, or that became Python numbers, were used. Where no input leads to an
    output, the graph does not show the way that there may be.
    """
    if not any(node.op == "placeholder" and graph.is_live(node) for node in graph.nodes):
        return []
    roots = [n for n in graph.nodes if n.op == "output" or graph.operation(n).escape]
    used: set[Node] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node not in used:
            used.add(node)
            stack.extend(node.all_input_nodes)
    return [
        (node, frozenset(_dead_ancestors(node, used)))
        for node in graph.calls_in_order
        if node not in used and not node.users
    ]


def _dead_ancestors(node: Node, used: set[Node]) -> Iterator[Node]:
    stack, seen = [node], {node}
    while stack:
        current = stack.pop()
        if current.op == "call_function":
            yield current
        for source in current.all_input_nodes:
            if source not in used and source not in seen:
                seen.add(source)
                stack.append(source)


# ---------------------------------------------------------------------- not owned


@dataclass(frozen=True)
class HiddenWeights:
    """Trainable parameters that take part in the forward but are not among the model's.

    `node` is their first use. Where they were found in what the registered module `holder` (at `path`)
    keeps under `attribute`, a `container` such as a list, all of that attribute are taken together, and
    `modules` are the outermost modules there that own them; else those four are empty.

    `made_at` is the operation that made the weights of a layer which the forward itself constructs, anew
    each time; `modules` is that layer. `is_plain` marks tensors with `requires_grad` that are no
    `nn.Parameter`.
    """

    node: Node
    tensors: tuple[torch.Tensor, ...] = field(repr=False)
    modules: tuple[torch.nn.Module, ...] = ()
    holder: torch.nn.Module | None = None
    path: str = ""
    attribute: str = ""
    container: str = ""
    made_at: Node | None = None
    is_plain: bool = False


def hidden_weights(graph: Graph) -> list[HiddenWeights]:
    """The parameters that are used with autograd on but that no optimizer is given."""
    from torch import nn

    owned = {id(tensor) for tensor in (*graph.model.parameters(), *graph.model.buffers())}
    used: dict[int, tuple[torch.Tensor, Node]] = {}
    for leaf in graph.nodes:
        tensor = graph.operation(leaf).tensor if leaf.op == "get_attr" else None
        if tensor is None or id(tensor) in owned or not tensor.requires_grad:
            continue
        if not isinstance(tensor, nn.Parameter) and _is_made_from(tensor, owned):
            continue
        uses = [u for u in leaf.users if graph.is_live(u) and graph.operation(u).grad_enabled]
        if uses:
            used[id(tensor)] = (tensor, uses[0])
    found = list(_kept_in_attributes(graph.model, used)) if used else []
    rest: dict[int, list[tuple[torch.Tensor, Node]]] = {}
    for tensor, node in used.values():  # in a closure, a global, a module made by the forward
        if isinstance(tensor, nn.Parameter):
            rest.setdefault(id(graph.operation(node).owner), []).append((tensor, node))
    found += [
        HiddenWeights(group[0][1], tuple(tensor for tensor, _ in group)) for group in rest.values()
    ]
    return found + list(_made_in_forward(graph))


def _is_made_from(tensor: torch.Tensor, owned: Collection[int]) -> bool:
    """Whether a tensor that an operation returned carries gradients on to parameters of the model."""
    stack: list[Any] = [tensor.grad_fn]
    seen: set[Any] = set()
    while stack:
        function = stack.pop()
        if function is None or function in seen:
            continue
        seen.add(function)
        if id(getattr(function, "variable", None)) in owned:
            return True
        stack += [source for source, _ in function.next_functions]
    return False


def _made_in_forward(graph: Graph) -> Iterator[HiddenWeights]:
    """Layers that were constructed while the forward ran, and drew their weights then."""
    registered = {id(module) for module in graph.model.modules()}
    seen: set[int] = set()
    for node in graph.calls_in_order:
        owner, operation = graph.layer(node), graph.operation(node)
        if owner is None or id(owner) in registered | seen or not graph.is_live(node):
            continue
        tensors = tuple(owner.parameters(recurse=False))
        if not operation.grad_enabled or not any(tensor.requires_grad for tensor in tensors):
            continue
        drawn = [
            source
            for source in node.all_input_nodes
            if source.op == "call_function"
            and graph.is_constant(source)
            and any(graph.name(step) in FILLS for step in (source, *source.users))
            and not any(graph.name(step) in _OVERWRITES for step in source.users)
        ]
        weight = graph.argument(node, "weight")
        if drawn and (graph.name(node) not in ops.WEIGHTED or weight in drawn):
            seen.add(id(owner))
            yield HiddenWeights(node, tensors, (owner,), made_at=drawn[0])


def _kept_in_attributes(
    model: torch.nn.Module, used: dict[int, tuple[torch.Tensor, Node]]
) -> Iterator[HiddenWeights]:
    """Those of `used` that modules of the model hold past their registers; they are taken out of it."""
    from torch import nn

    registered = {id(module) for module in model.modules()}
    for path, holder in model.named_modules():
        for attribute, value in vars(holder).items():
            if attribute in ("_parameters", "_buffers", "_modules"):
                continue
            modules: list[nn.Module] = []
            mine: list[tuple[torch.Tensor, Node]] = []
            for part in _parts(value, 4):
                if id(part) in registered:
                    continue
                own = list(part.parameters()) if isinstance(part, nn.Module) else [part]
                taken = [used.pop(id(tensor)) for tensor in own if id(tensor) in used]
                mine += taken
                if taken and isinstance(part, nn.Module):
                    modules.append(part)
            if mine:
                tensors = tuple(tensor for tensor, _ in mine)
                kind = type(value).__name__
                plain = not any(isinstance(tensor, nn.Parameter) for tensor in tensors)
                yield HiddenWeights(
                    mine[0][1],
                    tensors,
                    tuple(modules),
                    holder,
                    path,
                    attribute,
                    kind,
                    is_plain=plain,
                )


def _parts(value: Any, depth: int) -> Iterator[Any]:
    """The modules and tensors in lists, tuples, sets, dicts and plain objects."""
    from torch import Tensor, nn

    if isinstance(value, (nn.Module, Tensor)):
        yield value
    elif depth:
        items: Iterable[Any] = ()
        if isinstance(value, (list, tuple, set, frozenset)):
            items = value
        elif isinstance(value, dict):
            items = value.values()
        elif hasattr(value, "__dict__") and not isinstance(value, type) and not callable(value):
            items = vars(value).values()
        for part in list(items):
            yield from _parts(part, depth - 1)


# ---------------------------------------------------------------------- not used


def unused_modules(graph: Graph) -> list[tuple[str, torch.nn.Module]]:
    """(path, module) of the topmost modules none of whose parameters took part in the forward."""
    used = {id(graph.operation(node).tensor) for node in graph.nodes if node.op == "get_attr"}
    ran = {id(graph.operation(node).owner) for node in graph.calls_in_order}
    found: list[tuple[str, torch.nn.Module]] = []

    def visit(path: str, module: torch.nn.Module) -> None:
        parameters = list(module.parameters())
        if not any(parameter.requires_grad for parameter in parameters):
            return
        took_part = any(id(parameter) in used for parameter in parameters)
        if not took_part and not any(id(part) in ran for part in module.modules()):
            found.append((path, module))
            return
        for name, child in module.named_children():
            visit(f"{path}.{name}" if path else name, child)

    for name, child in graph.model.named_children():
        visit(name, child)
    return found


def heavy(graph: Graph, nodes: Iterable[Node]) -> list[Node]:
    """Those of the operations that cost something: products, convolutions, look-ups, recurrence."""
    costly = ops.WEIGHTED | ops.RECURRENT | ops.ATTENTION | {"matmul", "einsum", "embedding"}
    return [node for node in nodes if graph.name(node) in costly]
