"""The initial values that suit a layer, by the activation behind it, and the edit that sets them.

Glorot & Bengio (2010) keep the variance where the activation is near linear: Var w = gain²·2/(n + m), for a
uniform distribution within ±gain·√(6/(n + m)). He et al. (2015) make up for the half that a ReLU cuts off:
σ = √(2/n); Gehring et al. (2017) for what a gated linear unit does, σ = √(4/n). Here n is the fan-in, m
the fan-out. Imports no torch.
"""

from __future__ import annotations

import ast
import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from trainlint import ops
from trainlint.fixes import Fix, Safety, SourceEdits
from trainlint.graph import Graph, product
from trainlint.sites import INITIALIZATIONS, Site
from trainlint.theory.depth import scalings, series
from trainlint.theory.propagation import Propagation

if TYPE_CHECKING:
    from torch.fx import Node

# torch.nn.init.calculate_gain("tanh"): tanh shrinks what it is given, and more than linearly.
_TANH_GAIN: Final = 5 / 3
# Near enough to a ReLU for its initialisation: about half of the variance passes.
_RECTIFIERS: Final = frozenset(
    "relu relu6 elu celu gelu silu mish hardswish prelu rrelu softplus".split()
)
_SEEN_THROUGH: Final = ops.REARRANGEMENTS | ops.DROPOUTS | ops.MAX_POOLS | {"batch_norm"}
_ABOUT_AS_MUCH: Final = 0.7
_AS_FILLED: Final = 0.1  # decades
_SINGLE_INITIALISERS: Final = (
    "normal_|uniform_|trunc_normal_|constant_|ones_|xavier_uniform_|xavier_normal_|"
    "kaiming_uniform_|kaiming_normal_|orthogonal_"
)


@dataclass(frozen=True)
class Prescription:
    """One weight, what it has, and what suits it.

    `activation` is that behind it, "" where there is none. `function` and `options` are the call,
    `formula` the calculation with this layer's numbers. `deviation` is what suits, `present` what is, and
    `scale` the constant by which the layer's input is multiplied (equalised learning rates).
    """

    name: str
    node: Node
    activation: str
    function: str
    options: str
    formula: str
    fan_in: int
    fan_out: int
    deviation: float
    present: float
    scale: float = 1.0

    @property
    def decades(self) -> float:
        """log10 of the present standard deviation over the one that suits; 0 within what suits.

        Weights that a constant scales in the forward pass suit with it or without.
        """
        off = math.log10(max(self.present, 1e-300) / self.deviation)
        scaled = off + math.log10(self.scale)
        if off * scaled <= 0:
            return 0.0
        off = min(off, scaled, key=abs)
        # Xavier without the gain suits tanh as well: it loses a fraction of a decade in ten layers.
        slack = math.log10(_TANH_GAIN) + 0.05 if self.activation == "tanh" else 0.0
        return 0.0 if -slack <= off <= 0 else off

    def weight(self, graph: Graph) -> Node:
        """The weight's node."""
        node: Node = graph.argument(self.node, "weight")
        return node

    def where(self, graph: Graph) -> Any:
        """The user's call that set the weight, else the layer.

        The layer as well where something has scaled the weight since.
        """
        tensor = graph.operation(self.weight(graph)).tensor
        seen = None if tensor is None else INITIALIZATIONS.of(tensor)
        return seen[1] if seen is not None and _is_as_filled(graph, self) else self.node

    def call(self, target: str, module: str = "nn") -> str:
        """`nn.init.kaiming_normal_(self.fc1.weight, nonlinearity="relu")`."""
        return f"{module}.init.{self.function}({target}{self.options})"


def prescriptions(graph: Graph, propagation: Propagation) -> list[Prescription]:
    """What suits each weight of the model that a linear map or convolution uses directly."""
    names = {
        id(tensor): name
        for name, tensor in graph.model.named_parameters()
        if tensor.requires_grad and tensor.dim() >= 2
    }
    found: dict[str, Prescription] = {}
    for node in propagation.weights:
        weight = graph.argument(node, "weight")
        shape = graph.shape(weight) if hasattr(weight, "all_input_nodes") else None
        if shape is None or len(shape) < 2:
            continue
        name = names.get(id(graph.operation(weight).tensor))
        present = propagation.deviation_of(node)
        if name is None or name in found or present is None:
            continue
        prescription = _prescribed(graph, node, name, shape, present)
        if prescription is not None:
            scale = math.prod(factor for _, factor in scalings(graph, propagation, node))
            found[name] = replace(prescription, scale=scale)
    return list(found.values())


def _prescribed(
    graph: Graph, node: Node, name: str, shape: Sequence[int], present: float
) -> Prescription | None:
    field = product(list(shape[2:]))
    fan_in, fan_out = shape[1] * field, shape[0] * field
    activation, slope = _activation_behind(graph, node)
    if activation in ("sin", "softmax", "log_softmax", "exp"):
        return None  # they have rules of their own
    n, m = fan_in, fan_out
    if activation == "leaky_relu":
        deviation = math.sqrt(2 / (1 + slope**2) / n)
        function, options = "kaiming_normal_", f", a={slope:g}"
        formula = f"σ = √(2/((1 + {slope:g}²)·{n})) = {deviation:.3g}"
    elif activation in _RECTIFIERS:
        deviation = math.sqrt(2 / n)
        function, options = "kaiming_normal_", ', nonlinearity="relu"'
        formula = f"σ = √(2/n) = √(2/{n}) = {deviation:.3g}"
    elif activation == "glu":
        # A gate halves what it lets through, and half of the layer's results are gates.
        deviation = math.sqrt(4 / n)
        function, options = "normal_", f", std=(4 / {n}) ** 0.5"
        formula = f"σ = √(4/n) = √(4/{n}) = {deviation:.3g}"
    elif activation == "selu":
        deviation = math.sqrt(1 / n)
        function, options = "kaiming_normal_", ', nonlinearity="linear"'
        formula = f"σ = √(1/n) = √(1/{n}) = {deviation:.3g}"
    else:
        gain = _TANH_GAIN if activation == "tanh" else 1.0
        deviation = gain * math.sqrt(2 / (n + m))
        function, options = "xavier_uniform_", ", gain=5 / 3" if gain > 1 else ""
        times = "5/3·" if gain > 1 else ""
        formula = (
            f"a = {times}√(6/(n + m)) = {times}√(6/({n} + {m})) = "
            f"{gain * math.sqrt(6 / (n + m)):.3g}, variance {deviation**2:.3g}"
        )
    return Prescription(
        name, node, activation, function, options, formula, n, m, deviation, present
    )


def _activation_behind(graph: Graph, node: Node) -> tuple[str, float]:
    """Name of the activation that a layer feeds, and the slope of a leaky one; "" if there is none."""
    for consumer in graph.consumers(node, _SEEN_THROUGH):
        name = graph.name(consumer)
        if name == "leaky_relu":
            slope = consumer.kwargs.get("negative_slope")
            if slope is None:
                slope = consumer.args[1] if len(consumer.args) > 1 else 0.01
            return name, float(slope) if isinstance(slope, (int, float)) else 0.01
        if name in ops.ACTIVATIONS or name in ("sin", "exp"):
            return name, 0.0
    return "", 0.0


def unsuitable(wanted: Iterable[Prescription], *, decades: float = 0.1) -> list[Prescription]:
    """Those whose present deviation is off by more than `decades`."""
    return [
        prescription
        for prescription in wanted
        if abs(prescription.decades) > decades
        # An output layer's own scale belongs to the loss.
        and (prescription.activation or abs(prescription.decades) > 1)
    ]


def far_off(
    graph: Graph, suited: Iterable[Prescription], decades: float, least: int = 3
) -> list[list[Node]]:
    """Runs of at least three layers in series, each too small (too large) by more than `decades`.

    `decades` below 0 asks for those that are too small. Where one layer after the other is off by so much
    the initial values are the cause, however short the run.
    """
    sign = -1 if decades < 0 else 1
    off = {p.weight(graph) for p in suited if sign * p.decades > abs(decades)}
    runs = []
    for run in series(graph):
        for together, part in itertools.groupby(
            run, lambda node: graph.argument(node, "weight") in off
        ):
            nodes = list(part)
            if together and len({graph.argument(node, "weight") for node in nodes}) >= least:
                runs.append(nodes)
    return runs


def within(
    graph: Graph, wanted: Iterable[Prescription], part: Sequence[Node] | None
) -> list[Prescription]:
    """Those whose weight is used in this part of the model; all of them where there is none."""
    if part is None:
        return list(wanted)
    weights = {graph.argument(node, "weight") for node in part}
    return [prescription for prescription in wanted if prescription.weight(graph) in weights]


def heaviest(graph: Graph, wanted: Iterable[Prescription]) -> Prescription:
    """The first of those that were set by the line which does most harm.

    What one line sets counts together, as the layers of a loop do. Of lines that do about as much, the
    first.
    """
    lines: dict[Any, list[Prescription]] = {}
    for prescription in wanted:
        where = prescription.where(graph)
        site = where if isinstance(where, Site) else graph.place(where)
        lines.setdefault(where if site is None else site.key, []).append(prescription)
    harm = [abs(sum(p.decades for p in line)) for line in lines.values()]
    return next(
        line[0]
        for line, own in zip(lines.values(), harm, strict=True)
        if own >= _ABOUT_AS_MUCH * max(harm)
    )


def reinitialise(
    edits: SourceEdits, wanted: Sequence[Prescription], graph: Graph, before: float, after: float
) -> Fix:
    """The calls that set these values: in place of the user's own, else behind the constructors.

    `before` and `after` are the predicted ratios of the gradient at the first to that at the last layer.
    """
    first = wanted[0]
    others = len(wanted) - 1
    more = f" and likewise {others} other{'s' * (others > 1)}" if others else ""
    title = (
        f"{first.call('self.' + first.name)}{more}: {first.formula}, now σ = {first.present:.3g}; "
        f"predicted gradient at the first layers over that at the last: {before:.1g} → {after:.1g}"
    )
    if not all(_is_as_filled(graph, prescription) for prescription in wanted):
        return Fix(title)  # what changed them afterwards would change the new values as well
    replaced = _replaced(edits, wanted, graph, title)
    if replaced.edits or any(_is_set_elsewhere(graph, prescription) for prescription in wanted):
        return replaced
    return _inserted(edits, wanted, graph, title)


def _is_as_filled(graph: Graph, prescription: Prescription) -> bool:
    """Whether the weight has the deviation that its last known call gave it: nothing scaled it since."""
    from trainlint.theory.moments import declared

    tensor = graph.operation(prescription.weight(graph)).tensor
    given = None if tensor is None else declared(tensor)
    if given is None or not given[0] or not prescription.present:
        return True
    return abs(math.log10(prescription.present / math.sqrt(given[0]))) < _AS_FILLED


def _is_set_elsewhere(graph: Graph, prescription: Prescription) -> bool:
    """Whether another call than the layer's constructor set the weight: it may come later."""
    where, made = prescription.where(graph), graph.constructed(prescription.node)
    return isinstance(where, Site) and (made is None or where.key != made.key)


def _replaced(edits: SourceEdits, wanted: Sequence[Prescription], graph: Graph, title: str) -> Fix:
    calls: dict[Any, tuple[Site, tuple[str, str]]] = {}
    for prescription in wanted:
        weight = graph.argument(prescription.node, "weight")
        tensor = graph.operation(weight).tensor
        seen = None if tensor is None else INITIALIZATIONS.of(tensor)
        if seen is None:
            return Fix(title)
        call = (prescription.function, prescription.options)
        known = calls.setdefault(seen[1].key, (seen[1], call))
        if known[1] != call and prescription.activation:
            # One call fills layers that need different values. The output layer's does not matter.
            return Fix(title)
    module = _module_of(edits, graph.constructed(wanted[0].node))
    changes = [(site, _rewriter(*call, module)) for site, call in calls.values()]
    return edits.replaced_calls(changes, title=title)


def _rewriter(function: str, options: str, module: str | None) -> Any:
    def rewrite(call: ast.Call, source: str) -> str | None:
        match = re.match(rf"([\w.]*\binit\.)(?:{_SINGLE_INITIALISERS})\s*\(", source)
        if match is not None and call.args:
            return f"{match[1]}{function}({ast.unparse(call.args[0])}{options})"
        target = _filled_by_method(call)
        if target is None or module is None:
            return None
        return f"{module}.init.{function}({target}{options})"

    return rewrite


def _filled_by_method(call: ast.Call) -> str | None:
    """`m.weight` of `m.weight.data.normal_(0, 0.02)`."""
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in ("normal_", "uniform_"):
        return None
    target = call.func.value
    if isinstance(target, ast.Attribute) and target.attr == "data":
        target = target.value
    return ast.unparse(target) if isinstance(target, ast.Attribute) else None


def _inserted(edits: SourceEdits, wanted: Sequence[Prescription], graph: Graph, title: str) -> Fix:
    made = []
    for prescription in wanted:
        site = graph.constructed(prescription.node)
        module = _module_of(edits, site)
        if module is None:
            return Fix(title)
        fix = edits.inserted_after(
            site,
            lambda target, p=prescription, m=module: p.call(f"{target}.weight", m),  # type: ignore[misc]
            title=title,
        )
        if not fix.edits:
            return Fix(title)
        made += [edit for edit in fix.edits if edit not in made]
    return Fix(title, Safety.UNSAFE, made)


def _module_of(edits: SourceEdits, site: Site | None) -> str | None:
    """How the user's file calls torch.nn: the `nn` of `nn.Linear(8, 16)`."""
    text = None if site is None else edits.text(site.filename)
    call = None if text is None or site is None else text.call_at(site)
    if call is None or not isinstance(call.func, ast.Attribute):
        return None
    return ast.unparse(call.func.value)
