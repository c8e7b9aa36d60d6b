"""The losses that judge a model, and what stands between its last layers and each of them: LOSSES.

A loss is found in the captured forward itself, or comes from outside: called in the user's file
(`loss_source.py`), held by a module-level name such as `criterion`, or given to `check`. Comes in: the
graph and a `Recipe`. Goes out: a `LossCall` for each. Rules read these; nothing here imports torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from trainlint import ops
from trainlint.loss.ranges import Range, after, kept, kept_by, value_range
from trainlint.loss.source import LOSS_CLASSES, LOSSES, PLAIN_STEPS, LossUse, Step
from trainlint.loss.training import Training
from trainlint.probe.setup import Setup

if TYPE_CHECKING:
    from torch.fx import Node

    from trainlint.graph import Graph
    from trainlint.sites import Site

_PLAIN: Final = ops.REARRANGEMENTS | {"getitem", "output", "narrow", "select", "index_select"}
# What changes the axes, of all that leaves the values as they are.
_MOVES: Final = (ops.REARRANGEMENTS | {"getitem"}) - frozenset(
    "contiguous clone to float double half bfloat16 type_as get_data identity alias".split()
)
_MERGES: Final = frozenset({"cat", "stack"})
# The layer that computes each function; the first where there are two.
NAMES: Final = {kind: name for name, kind in reversed(LOSS_CLASSES.items())}
CROSS_ENTROPIES: Final = frozenset({"cross_entropy", "nll_loss"})
REGRESSIONS: Final = frozenset({"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"})


@dataclass(frozen=True)
class Given:
    """A loss as an object: its kind, where it was made, and the steps that it takes before it judges."""

    kind: str
    function: Callable[..., Any] = field(repr=False)
    site: Site | None = None
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """What is known of a model's training besides the model. `training` is what the file shows of it.

    `uses` are the losses that its file calls; `names` those by which the model goes there, `classes` those
    of its class and bases, `others` those of the file's other models. `loss` is one that was given or that
    a module-level name holds; `targets` belong to the given inputs. `explicit` tells that the user handed
    the loss over himself. `setup` is with what it can be trained.
    """

    uses: tuple[LossUse, ...] = ()
    names: frozenset[str] = frozenset()
    classes: frozenset[str] = frozenset()
    others: frozenset[str] = frozenset()
    loss: Callable[..., Any] | None = None
    targets: Any = None
    explicit: bool = False
    training: Training = field(default_factory=Training)
    setup: Setup = field(default_factory=Setup)

    @property
    def trains(self) -> bool:
        """Whether the user trains this very model, as far as the file or the call of `check` shows."""
        if self.explicit:
            return self.loss is not None
        optimized = self.training.optimized
        if any(names & self.names for names in optimized):
            return True
        if optimized and all(optimized):  # they are given the parameters of other models
            return False
        outside = [use for use in self.uses if not self.makes(use)]
        if not self.training.is_any:
            return self.loss is not None and not outside and not self.others
        judged = [use.scores.models for use in outside if use.scores is not None]
        return not self.others or any(models & self.names for models in judged)

    def makes(self, use: LossUse) -> bool:
        """Whether it is the model's own forward that calls the loss."""
        return use.within is not None and use.within in self.names | self.classes

    @property
    def may_unfreeze(self) -> bool:
        """Whether weights that are frozen now may be trained later, or something else than weights."""
        named = any(names & self.names for names in self.training.optimized)
        return self.training.unfreezes or bool(self.training.optimized and not named)


@dataclass(frozen=True)
class Link:
    """An operation between the last layer and a loss.

    `where` is its node, or its place in the file. `kept` are the bounds within which it keeps whatever
    it is given: [0, ∞) for a ReLU, those of a clamp; None for an operation without.
    """

    name: str
    where: Any
    node: Node | None
    kept: Range | None = None


@dataclass(frozen=True)
class LossCall:
    """A loss that judges the model.

    `kind` is its name in `torch.nn.functional`; `scores` the node of the tensor that it judges, `path`
    that tensor's place in the model's output (None inside the forward). `where` is the place that
    chose the loss: a node of the graph, a place in the file, or None. `steps` are made on the way by
    the file, the one next to the loss first. `certain` is False where it is only the file's one loss;
    `layer` tells that it was written as a layer, `nn.CrossEntropyLoss()`. `next_of` is the argument of
    forward whose next tokens the file's loss has for its target.
    """

    kind: str
    scores: Node
    where: Any
    path: str | None = None
    node: Node | None = None
    steps: tuple[Step, ...] = ()
    certain: bool = True
    layer: bool = False
    function: Callable[..., Any] | None = field(default=None, repr=False)
    next_of: str | None = None

    @property
    def is_rearranged(self) -> bool:
        """Whether the file flattens the scores or moves their axes before the loss."""
        return any(step.name in _MOVES for step in self.steps)


@dataclass(frozen=True)
class Losses:
    """All losses that were found, and the graph that they judge. `targets` tells if those were given.

    `trained` tells whether the user is seen to train this model, by a loss or an optimizer;
    `may_unfreeze` whether weights that are frozen now may be trained later, or an input instead of them.
    `asked_inside` are arguments of forward whose next tokens a loss in it has for its target.
    """

    graph: Graph
    calls: tuple[LossCall, ...] = ()
    targets: Any = None
    trained: bool = False
    may_unfreeze: bool = False
    asked_inside: frozenset[str] = frozenset()

    def of(self, *kinds: str) -> Iterator[LossCall]:
        """The losses of these kinds."""
        for call in self.calls:
            if call.kind in kinds:
                yield call

    def links(self, call: LossCall) -> tuple[Link, ...]:
        """The operations before the loss, nearest first, without those that only rearrange.

        The last is a layer with weights, an operation on several tensors, or one that is not known.
        """
        return tuple(_links(self.graph, call.scores, call.steps))

    def links_to(self, node: Node) -> tuple[Link, ...]:
        """The same for an output whose loss is not known."""
        return tuple(_links(self.graph, node, ()))

    @property
    def sole(self) -> LossCall | None:
        """The loss whose value the pulse measures, where that is one loss alone."""
        if len({(call.path, call.node) for call in self.calls}) != 1:
            return None
        call = self.calls[0]
        return call if call.path is not None or call.node in self.graph.outputs else None

    def range(self, call: LossCall) -> Range | None:
        """The bounds of the values that the loss gets, where they can be told."""
        bounds = value_range(self.graph, call.scores)
        for step in reversed(call.steps):
            bounds = after(step.name, bounds, step.values)
        return bounds

    def classes(self, call: LossCall) -> int | None:
        """The number of classes among which a cross entropy chooses, None where it cannot be told."""
        shape = self.graph.shape(call.scores)
        if not shape or call.kind not in CROSS_ENTROPIES:
            return None
        if call.is_rearranged:
            return shape[-1]  # flattened, or with the classes moved: they come last in the output
        return shape[1] if len(shape) > 1 else shape[0]

    def target_range(self) -> Range | None:
        """The least and largest of the given targets."""
        low, high = getattr(self.targets, "min", None), getattr(self.targets, "max", None)
        if low is None or high is None or not self.targets.numel():
            return None
        return Range(float(low()), float(high()))

    def place(self, call: LossCall) -> str:
        """`CrossEntropyLoss (line 41)` as the user wrote it, for messages."""
        where = self.graph.place(call.where) if hasattr(call.where, "op") else call.where
        name = NAMES[call.kind] if self._is_layer(call) else call.kind or "the loss"
        return name if where is None else f"{name} (line {where.row})"

    def _is_layer(self, call: LossCall) -> bool:
        if call.node is not None:
            return self.graph.layer(call.node) is not None
        return call.layer and call.kind in NAMES


def past_clamps(links: tuple[Link, ...]) -> tuple[Link, ...]:
    """Without the clamps next to the loss, which mostly keep probabilities away from 0 and 1."""
    place = 0
    while place < len(links) and links[place].name.startswith("clamp"):
        place += 1
    return links[place:]


def losses_of(graph: Graph, recipe: Recipe, given: Given | None = None) -> Losses:
    """The losses of a captured model: its own, then those of the recipe, whose `loss` is `given`."""
    calls = list(_own_losses(graph))
    # What is returned in eval mode may differ, as `if not self.training: x = softmax(x)` does.
    if graph.model.training and graph.complete:
        calls += _losses_outside(graph, recipe, given)
    inside = (use.next_of for use in recipe.uses if recipe.makes(use))
    return Losses(
        graph,
        tuple(calls),
        recipe.targets,
        recipe.trains,
        recipe.may_unfreeze,
        frozenset(name for name in inside if isinstance(name, str)),
    )


def _own_losses(graph: Graph) -> Iterator[LossCall]:
    for node in graph.calls(*LOSSES):
        scores: Any = node.args[0] if node.args else node.kwargs.get("input")
        if graph.is_live(node) and _is_node(scores) and not graph.is_constant(scores):
            yield LossCall(graph.name(node), scores, node, node=node)


# ---------------------------------------------------------------------- losses outside of the model


def _losses_outside(graph: Graph, recipe: Recipe, given: Given | None) -> list[LossCall]:
    outside = [use for use in recipe.uses if not recipe.makes(use)]
    found: dict[Any, LossCall] = {}
    # A loop that trains says more than one that validates.
    for use in sorted(outside, key=lambda use: not use.trains):
        call = _call_of(graph, recipe, use, outside)
        if call is not None:
            key = (call.kind, call.scores, tuple((step.name, step.values) for step in call.steps))
            found.setdefault(key, call)
    if given is not None and (recipe.explicit or not outside):
        outputs = _outputs(graph)
        if len(outputs) == 1 and (recipe.explicit or not recipe.others):
            path, node = next(iter(outputs.items()))
            layer = hasattr(given.function, "forward")
            return [
                LossCall(
                    given.kind,
                    node,
                    given.site,
                    path,
                    steps=given.steps,
                    layer=layer,
                    function=given.function,
                )
            ]
    return list(found.values())


def _call_of(
    graph: Graph, recipe: Recipe, use: LossUse, outside: Sequence[LossUse]
) -> LossCall | None:
    trace = use.scores
    if trace is None:
        return None
    own = recipe.names | _names_of_inner_models(graph)
    certain = bool(trace.models & own)
    if not certain:
        alone = not recipe.others and len({other.kind for other in outside}) == 1
        if trace.models or not alone:
            return None
    elif trace.models & recipe.others and not trace.models & recipe.names:
        return None
    found = _element(graph, trace.element)
    if found is None:
        return None
    path, node = found
    return LossCall(
        use.kind,
        node,
        use.site,
        path,
        steps=trace.steps,
        certain=certain,
        layer=use.made is not None,
        next_of=_argument(graph, use.next_of),
    )


def _argument(graph: Graph, place: int | str | None) -> str | None:
    """The name of the forward's argument that is passed at this place."""
    if not isinstance(place, int):
        return place
    names = list(inspect.signature(graph.model.forward).parameters)
    return names[place] if place < len(names) else None


def _element(graph: Graph, element: tuple[str, ...]) -> tuple[str, Node] | None:
    """The path and node of the traced part of the output."""
    outputs = _outputs(graph)
    if "output" in outputs and all(part.lstrip("-").isdigit() for part in element):
        return "output", outputs["output"]  # `output[0]` of a tensor is a part of it
    path = ".".join(element)
    if not element and len(outputs) == 1:
        path = next(iter(outputs))
    if element[-1:] == ("-1",):  # `outputs[-1]`
        last = [name for name in outputs if name.isdigit()]
        path = last[-1] if last and len(element) == 1 else path
    return (path, outputs[path]) if path in outputs else None


def _outputs(graph: Graph) -> dict[str, Node]:
    """What the forward returned, by its place: `output` for a single tensor, `0`, `logits`."""
    last = graph.nodes[-1] if graph.nodes else None
    if last is None or last.op != "output":
        return {}
    values: Any = last.args[0]
    return {
        name: node for name, node in values.items() if _is_node(node) and graph.is_floating(node)
    }


def _names_of_inner_models(graph: Graph) -> frozenset[str]:
    """Classes of the user's inside whose forward the only output is made: `self.net` of a wrapper."""
    if len(graph.outputs) != 1:
        return frozenset()
    names: set[str] = set()
    module = graph.model
    for part in graph.operation(graph.outputs[0]).module.split("."):
        module = getattr(module, part, None) or module
        kind = type(module)
        if not kind.__module__.startswith("torch.") and kind is not type(graph.model):
            names.add(kind.__name__)
    return frozenset(names)


# ---------------------------------------------------------------------- the way to the last layer


def _links(graph: Graph, scores: Node, steps: Sequence[Step]) -> Iterator[Link]:
    for step in steps:
        if step.name not in PLAIN_STEPS:
            yield Link(step.name, step.site, None, kept(step.name, step.values))
    node: Node | None = scores
    while node is not None and node.op == "call_function":
        name = graph.name(node)
        if name in _PLAIN:
            node = graph.data(node)
            continue
        if name in _MERGES:
            alike = [_head(graph, part) for part in graph.varying_inputs(node)]
            if alike and len({graph.name(part) for part in alike}) == 1:
                node = alike[0]  # time steps or heads, each made alike
                name = graph.name(node)
        yield Link(name, node, node, kept_by(graph, node))
        if graph.is_weighted(node) or len(graph.varying_inputs(node)) != 1:
            return
        node = graph.data(node)


def _head(graph: Graph, node: Node) -> Node:
    while graph.name(node) in _PLAIN and node.op == "call_function":
        source = graph.data(node)
        if source is None:
            break
        node = source
    return node


def _is_node(value: Any) -> bool:
    return hasattr(value, "all_input_nodes")
