"""How signal and gradient travel at initialisation, computed from the graph and the weights alone.

`propagate` walks the graph once forward and once back (`mean_field.py`) and gives a `Propagation`, which
rules ask for ratios of gradients, for the operation that loses them, and for what other initial values
would do. Nothing runs, so it also works for models without values and for those too large to run. Only
the walk itself imports torch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from trainlint import ops
from trainlint.graph import Graph

if TYPE_CHECKING:
    from torch.fx import Node

    from trainlint.theory.moments import Moments
    from trainlint.theory.passages import Gradient

_WEIGHTS = "weights"
_FARTHEST_STORY = 1.5  # decades


@dataclass(frozen=True)
class Loss:
    """What a kind of operation does to the gradient on the way back: `factor` in all, by `count`."""

    kind: str
    count: int
    factor: float

    @property
    def each(self) -> float:
        """The factor of one of them."""
        return math.exp(math.log(self.factor) / self.count)


@dataclass(frozen=True)
class Propagation:
    """Moments of all nodes and norms of the gradient, relative to that at the outputs.

    `unknown` names the operations that were passed as if they changed nothing.
    """

    graph: Graph = field(repr=False)
    moments: Mapping[Node, Moments] = field(repr=False)
    gradients: Mapping[Node, float] = field(repr=False)
    _deviations: Mapping[Node, float] = field(repr=False)
    _flows: Mapping[tuple[Node, Node], float] = field(repr=False)
    unknown: frozenset[str]
    _again: Callable[[Mapping[str, float]], Propagation] = field(repr=False)

    def of(self, node: Node) -> Moments | None:
        """The moments of a node's elements, None where none were computed."""
        return self.moments.get(node)

    def gradient(self, node: Node) -> float | None:
        """Norm of the gradient by the node's result, as a ratio to that by the outputs."""
        return self.gradients.get(node)

    def deviation_of(self, node: Node) -> float | None:
        """Root mean square of the weight that an operation applies."""
        return self._deviations.get(node)

    @cached_property
    def weights(self) -> tuple[Node, ...]:
        """The operations with weights of the model's own that a gradient reaches, in order."""
        return tuple(
            node
            for node in self.graph.calls_in_order
            if node in self.gradients
            and (self.graph.is_weighted(node) or self.graph.name(node) in ops.RECURRENT)
        )

    def ratio(self, first: Node, last: Node) -> float | None:
        """Norm of the gradient at `first` over that at `last`."""
        one, other = self.gradients.get(first), self.gradients.get(last)
        return one / other if one is not None and other else None

    def path(self, first: Node, last: Node) -> list[Node]:
        """The way on which most of the gradient comes back from `last` to `first`, `first` first."""
        reached = {last}
        for node in reversed(self.graph.nodes):
            if node not in reached and any(user in reached for user in node.users):
                reached.add(node)
        path, node = [first], first
        while node is not last:
            ahead = [user for user in node.users if user in reached and (node, user) in self._flows]
            if not ahead:
                return []
            here = node
            node = max(ahead, key=lambda user: self._flows[here, user])
            path.append(node)
        return path

    def losses(self, first: Node, last: Node) -> list[Loss]:
        """What becomes of the gradient from `last` back to `first`, by kind of operation.

        The factors multiply to the whole ratio; the largest loss comes first.
        """
        path = self.path(first, last)
        logs: dict[str, list[float]] = {}
        for node, user in itertools.pairwise(path):
            here, there = self.gradients[node], self.gradients[user]
            if here > 0 and there > 0:
                logs.setdefault(self._kind(user), []).append(math.log(here / there))
        found = [Loss(kind, len(steps), math.exp(sum(steps))) for kind, steps in logs.items()]
        return sorted(found, key=lambda loss: loss.factor)

    def decades_by_kind(self, first: Node, last: Node) -> dict[str, float]:
        """log10 of what each kind of operation makes of the gradient from `last` back to `first`."""
        return {loss.kind: math.log10(loss.factor) for loss in self.losses(first, last)}

    def _kind(self, node: Node) -> str:
        name = self.graph.name(node)
        if self.graph.is_weighted(node) or name == "matmul":
            return _WEIGHTS
        return name

    def story(
        self, first: Node, last: Node, *, measured: float | None = None, most: int = 3
    ) -> str:
        """The losses in words: `sigmoid ×0.22 at each of 9, weights ×0.58 at each of 9`.

        Nothing where the theory is far from the `measured` ratio: then it is no explanation.
        """
        predicted = self.ratio(first, last)
        if measured and (not predicted or abs(math.log10(predicted / measured)) > _FARTHEST_STORY):
            return ""
        told = [loss for loss in self.losses(first, last) if abs(math.log(loss.factor)) > 0.05]
        told.sort(key=lambda loss: -abs(math.log(loss.factor)))
        parts = []
        for loss in told[:most]:
            where = f" at each of {loss.count}" if loss.count > 1 else ""
            parts.append(f"{loss.kind} ×{loss.each:.2g}{where}")
        return ", ".join(parts)

    def reinitialised(self, variances: Mapping[str, float]) -> Propagation:
        """The same with the weights of these names drawn independently, of mean 0 and these variances."""
        return self._again(variances)


def propagate(
    graph: Graph,
    variances: Mapping[str, float] | None = None,
    *,
    judged: Sequence[Node] = (),
) -> Propagation:
    """Walk the graph. `variances` replaces those of parameters, by name.

    The gradient starts at the outputs that a loss has `judged`, where these are known, else at all.
    """
    from trainlint.theory.mean_field import Walk
    from trainlint.theory.passages import Gradient, joined

    chosen = dict(variances or {})
    walk = Walk(graph, chosen)
    gradients: dict[Node, Gradient] = {}
    for node in judged or graph.outputs:
        size = walk.size(node)
        along = math.sqrt(size * walk.of(node).second)
        gradients[node] = Gradient(float(size), along=along)
    start = sum(gradient.energy for gradient in gradients.values()) or 1.0
    flows: dict[tuple[Node, Node], float] = {}
    for node in reversed(graph.nodes):
        here = gradients.get(node)
        if here is None:
            continue
        for source, back in walk.passages.get(node, ()):
            flow = back(here)
            gradients[source] = joined(gradients.get(source), flow)
            flows[source, node] = flow.energy + walk.aligned(
                flow, walk.of(source), walk.size(source)
            )
    norms = {
        node: math.sqrt(
            (gradient.energy + walk.aligned(gradient, walk.of(node), walk.size(node))) / start
        )
        for node, gradient in gradients.items()
    }
    return Propagation(
        graph,
        walk.moments,
        norms,
        walk.deviations,
        flows,
        frozenset(walk.unknown),
        lambda more: propagate(graph, {**chosen, **more}, judged=judged),
    )
