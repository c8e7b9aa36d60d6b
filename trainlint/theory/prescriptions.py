"""The initial values that suit a layer, by the activation behind it, and the edit that sets them.

Glorot & Bengio (2010) keep the variance where the activation is near linear: Var w = gain²·2/(n + m), for a
uniform distribution within ±gain·√(6/(n + m)). He et al. (2015) make up for the half that a ReLU cuts off:
σ = √(2/n); Gehring et al. (2017) for what a gated linear unit does, σ = √(4/n). Here n is the fan-in, m
the fan-out. Imports no torch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from trainlint import ops
from trainlint.fixes import Fix, SourceEdits
from trainlint.fixes.initialisation import Start, as_code, initialised, is_as_filled
from trainlint.graph import Graph, Parameter, product
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
_HE: Final = ', nonlinearity="relu"'
_SOURCES: Final = {
    "kaiming_normal_": "He et al. 2015",
    "glu": "Gehring et al. 2017",
    "selu": "Klambauer et al. 2017",
    "xavier_uniform_": "Glorot & Bengio 2010",
}


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
        return seen[1] if seen is not None and is_as_filled(tensor) else self.node

    @property
    def reason(self) -> str:
        """Who says so, with this layer's numbers."""
        source = _SOURCES.get(self.activation) or _SOURCES[self.function]
        return f"{source}: {self.formula}, now σ = {self.present:.3g}"

    def start(self, graph: Graph) -> Start:
        """What the weight shall start from."""
        tensor = graph.operation(self.weight(graph)).tensor
        decisive, reason = bool(self.activation), self.reason
        return Start(self.name, tensor, self.node, self.function, self.options, decisive, reason)


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
        function, options = "kaiming_normal_", _HE
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
    edits: SourceEdits,
    wanted: Sequence[Prescription],
    graph: Graph,
    before: float | None = None,
    after: float | None = None,
) -> Fix:
    """The calls that set these values: in place of the user's own, else behind the constructors.

    `before` and `after` are the predicted ratios of the gradient at the first to that at the last layer.
    """
    gained = (
        ""
        if before is None or after is None
        else (
            f"; predicted gradient at the first layers over that at the last: {before:.1g} → {after:.1g}"
        )
    )
    return started(
        graph, edits, [prescription.start(graph) for prescription in wanted], more=gained
    )


def started(graph: Graph, edits: SourceEdits, starts: Sequence[Start], *, more: str = "") -> Fix:
    """The fix that gives all these parameters their initial values, titled by the first."""
    first, others = starts[0], len(starts) - 1
    likewise = f", and likewise {others} other{'s' * (others > 1)}" if others else ""
    title = f"nn.init.{first.function}({as_code(first.name)}{first.options}){likewise}"
    return initialised(graph, edits, starts, title=title, reason=first.reason + more)


def start_of(graph: Graph, parameter: Parameter) -> Start | None:
    """What a parameter shall start from, whatever kind of layer it belongs to; None for a bias."""
    name, tensor = parameter.name, parameter.tensor
    users = [] if parameter.node is None else [u for u in parameter.node.users if graph.is_live(u)]
    for user in users:
        if graph.is_weighted(user) and graph.argument(user, "weight") is parameter.node:
            prescription = suits(graph, user)
            if prescription is not None:
                return prescription.start(graph)
        if graph.name(user) in ops.NORMALIZATIONS and name.endswith("weight"):
            reason = "γ = 1 leaves what is normalised at variance 1 (Ioffe & Szegedy 2015)"
            return Start(name, tensor, user, "ones_", reason=reason)
    if tensor.dim() < 2:
        return None
    node = users[0] if users else None
    if "weight_hh" in name:
        reason = "Saxe et al. 2014: an orthogonal map keeps the state's size from step to step"
        return Start(name, tensor, node, "orthogonal_", reason=reason)
    field = product(list(tensor.shape[2:]))
    n, m = tensor.shape[1] * field, tensor.shape[0] * field
    behind = _activation_behind(graph, node)[0] if node is not None else ""
    if behind in _RECTIFIERS:
        reason = f"He et al. 2015: σ = √(2/n) = √(2/{n}) = {math.sqrt(2 / n):.3g}"
        return Start(name, tensor, node, "kaiming_normal_", _HE, reason=reason)
    bound = f"±√(6/({n} + {m})) = ±{math.sqrt(6 / (n + m)):.3g}"
    reason = f"Glorot & Bengio 2010: uniform within {bound}"
    return Start(name, tensor, node, "xavier_uniform_", reason=reason)


def suits(graph: Graph, node: Node) -> Prescription | None:
    """What suits the weight of this linear map or convolution; None where a rule of its own says so."""
    weight = graph.argument(node, "weight")
    if not hasattr(weight, "all_input_nodes"):
        return None
    shape, tensor = graph.shape(weight), graph.operation(weight).tensor
    name = next((n for n, p in graph.model.named_parameters() if p is tensor), None)
    if name is None or tensor is None or shape is None or len(shape) < 2:
        return None
    present = 0.0 if tensor.is_meta else float(tensor.detach().double().std(correction=0))
    return _prescribed(graph, node, name, shape, present)
