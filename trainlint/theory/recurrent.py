"""Mean-field theory of fused recurrent layers: the moments of their states, and the gradient through time.

`nn.LSTM`, `nn.GRU` and `nn.RNN` are one operation each in the graph. Here their equations are written out
for a few steps with the moments of their own weights, gate by gate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch.fx import Node

from trainlint.theory.moments import Activation, Moments, WeightMoments, constant, plus, times

if TYPE_CHECKING:
    from trainlint.theory.mean_field import Walk
    from trainlint.theory.passages import Passages

_SIGMOID: Final = Activation(("sigmoid",), torch.sigmoid)
_TANH: Final = Activation(("tanh",), torch.tanh)
_RELU: Final = Activation(("relu",), torch.relu, True)
_GATES: Final = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
_MOST_STEPS: Final = 64  # by then the state is at its fixed point, or has exploded


def through_recurrence(
    walk: Walk, node: Node, sources: list[Node]
) -> tuple[Moments, Passages] | None:
    """Moments of the outputs of a recurrent layer, and its passage to its input."""
    from trainlint.theory.passages import Gradient

    place = _place_of_weights(walk, node)
    if place is None:
        return None
    weights, (biased, _, _, _, both_ways, *order) = node.args[place], node.args[place + 1 :]
    name, source = walk.graph.name(node), sources[0]
    dims = walk.dims(source)
    directions = 2 if both_ways else 1
    matrices = _chunks(list(weights), 4 if biased else 2)  # type: ignore[arg-type]
    cells = [_Cell(walk, _GATES[name], part) for part in matrices[::directions]]
    steps = dims[1 if order and order[0] else 0]
    last_only = _reads_the_last_step(walk, node)
    x, gain = walk.of(source), 1.0
    for layer, cell in enumerate(cells):
        ends_here = last_only and layer == len(cells) - 1
        x, through = _run(name, cell, x, min(steps, _MOST_STEPS), ends_here)
        gain *= through
    return x, [(source, lambda g: Gradient(g.energy * gain, 0.0, g.places))]


def _place_of_weights(walk: Walk, node: Node) -> int | None:
    """Which argument is the list of weights."""
    for place, value in enumerate(node.args):
        if isinstance(value, (list, tuple)) and len(value) >= 2 and place + 5 < len(node.args):
            first = value[0]
            if isinstance(first, Node) and first.op == "get_attr" and len(walk.dims(first)) == 2:
                return place
    return None


def _chunks(parts: list[Any], size: int) -> list[list[Any]]:
    return [parts[start : start + size] for start in range(0, len(parts), size)]


class _Cell:
    """One layer in one direction: the moments of its weights and biases, by gate."""

    def __init__(self, walk: Walk, gates: int, parts: list[Any]) -> None:
        own, hidden = parts[0], parts[1]
        rows = walk.dims(hidden)[1]
        self.inputs = walk.dims(own)[1]
        self.units = rows
        self.own: list[WeightMoments] = []
        self.hidden: list[WeightMoments] = []
        for gate in range(gates):
            span = slice(gate * rows, (gate + 1) * rows)
            for weight, into in ((own, self.own), (hidden, self.hidden)):
                into.append(
                    walk.weight(
                        weight,
                        (rows, walk.dims(weight)[1]),
                        arrange=lambda value, span=span: value[span],  # type: ignore[misc]
                        part=gate,
                    )
                )
        self.biases = [_bias(walk, parts[2:4], gate, rows) for gate in range(gates)]

    def into_gate(self, linear: _Linear, gate: int, x: Moments, h: Moments) -> Moments:
        """W x + U h + b of one gate."""
        z = plus(linear(self.own[gate], x), linear(self.hidden[gate], h))
        return plus(z, self.biases[gate])


class _Linear:
    """Independent weights; what is alike in two units is left out, since gates are drawn apart."""

    def __call__(self, w: WeightMoments, x: Moments) -> Moments:
        n = w.inputs * w.square
        return Moments(
            n * x.varying, n * x.common, w.inputs * w.mean * x.mean,
            varying_places=n * x.varying_places, common_places=n * x.common_places,
        ).bounded()  # fmt: skip


_LINEAR: Final = _Linear()


def _bias(walk: Walk, biases: list[Any], gate: int, rows: int) -> Moments:
    total = constant(0.0)
    for bias in biases:
        value = walk.graph.value(bias)
        if value is None:
            total = plus(total, walk.of(bias))
            continue
        part = value[gate * rows : (gate + 1) * rows].double()
        square, mean = float(part.square().mean()), float(part.mean())
        total = plus(total, Moments(0.0, square, mean, 0.0, mean * mean, 0.0, square))
    return total


def _reads_the_last_step(walk: Walk, node: Node) -> bool:
    """Whether only the state after the last step is used."""
    for part in node.users:
        if len(part.args) > 1 and part.args[1] == 0:
            for user in part.users:
                before, after = len(walk.dims(part)), len(walk.dims(user))
                if walk.graph.name(user) not in ("getitem", "select") or after >= before:
                    return False
    return True


def _run(name: str, cell: _Cell, x: Moments, steps: int, last_only: bool) -> tuple[Moments, float]:
    """Moments of the output and the energy gain from the outputs to the inputs."""
    if name == "lstm":
        return _lstm(cell, x, steps, last_only)
    if name == "gru":
        return _gru(cell, x, steps, last_only)
    return _plain(cell, x, steps, last_only, _TANH if name == "rnn_tanh" else _RELU)


def _back(w: WeightMoments) -> float:
    """Energy of a gradient through a weight: Σ over its outputs of w², for each input."""
    return w.outputs * w.square


def _arriving(step: int, steps: int, last_only: bool) -> float:
    """Mean square of the gradient at a step's output, where that over all steps has energy 1."""
    if last_only:
        return 1.0 if step == steps - 1 else 0.0
    return 1 / steps


def _plain(
    cell: _Cell, x: Moments, steps: int, last_only: bool, activation: Activation
) -> tuple[Moments, float]:
    h = constant(0.0)
    slopes = []
    for _ in range(steps):
        h, slope = activation(cell.into_gate(_LINEAR, 0, x, h))
        slopes.append(slope.square)
    later = total = 0.0
    for step in reversed(range(steps)):
        z = (_arriving(step, steps, last_only) + later) * slopes[step]
        total += z * _back(cell.own[0]) * cell.inputs / cell.units
        later = z * _back(cell.hidden[0])
    return h, total


def _lstm(cell: _Cell, x: Moments, steps: int, last_only: bool) -> tuple[Moments, float]:
    h = c = constant(0.0)
    seen = []
    for _ in range(steps):
        gates = [cell.into_gate(_LINEAR, gate, x, h) for gate in range(4)]
        (i, i_slope), (f, f_slope), (o, o_slope) = (_SIGMOID(gates[k]) for k in (0, 1, 3))
        g, g_slope = _TANH(gates[2])
        before = c
        c = plus(times(f, c), times(i, g))
        out, out_slope = _TANH(c)
        h = times(o, out)
        seen.append(
            (
                out.second * o_slope.square,
                o.second * out_slope.square,
                g.second * i_slope.square,
                before.second * f_slope.square,
                i.second * g_slope.square,
                f.second,
            )
        )
    later_h = later_c = total = 0.0
    for step in reversed(range(steps)):
        to_o, to_c, by_i, by_f, by_g, keep = seen[step]
        at_h = _arriving(step, steps, last_only) + later_h
        at_c = at_h * to_c + later_c
        at = (at_c * by_i, at_c * by_f, at_c * by_g, at_h * to_o)
        total += (
            sum(z * _back(w) for z, w in zip(at, cell.own, strict=True)) * cell.inputs / cell.units
        )
        later_h = sum(z * _back(w) for z, w in zip(at, cell.hidden, strict=True))
        later_c = at_c * keep
    return h, total


def _gru(cell: _Cell, x: Moments, steps: int, last_only: bool) -> tuple[Moments, float]:
    h = constant(0.0)
    seen = []
    for _ in range(steps):
        (r, r_slope), (z, z_slope) = (_SIGMOID(cell.into_gate(_LINEAR, k, x, h)) for k in (0, 1))
        held = _LINEAR(cell.hidden[2], h)
        n, n_slope = _TANH(plus(plus(_LINEAR(cell.own[2], x), times(r, held)), cell.biases[2]))
        away = 1 - 2 * z.mean + z.second  # E[(1 − z)²]
        seen.append(
            (
                away * n_slope.square,
                (n.second + h.second) * z_slope.square,
                held.second * r_slope.square,
                r.second,
                z.second,
            )
        )
        complement = plus(constant(1.0), z.scaled(-1.0))
        h = plus(times(complement, n), times(z, h))
    later = total = 0.0
    for step in reversed(range(steps)):
        to_n, to_z, to_r, through_r, keep = seen[step]
        at_h = _arriving(step, steps, last_only) + later
        at_n = at_h * to_n
        at = (at_n * to_r, at_h * to_z, at_n)
        total += (
            sum(q * _back(w) for q, w in zip(at, cell.own, strict=True)) * cell.inputs / cell.units
        )
        later = at_h * keep + sum(
            q * _back(w) * (through_r if gate == 2 else 1.0)
            for gate, (q, w) in enumerate(zip(at, cell.hidden, strict=True))
        )
    return h, total
