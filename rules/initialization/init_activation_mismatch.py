"""INI005 init-activation-mismatch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from trainlint.rule import (
    Confidence,
    Finding,
    Graph,
    Prescription,
    Propagation,
    Severity,
    SourceEdits,
    heaviest,
    predicted_trend,
    prescriptions,
    reinitialise,
    rule,
    series,
    unsuitable,
    within,
)


@rule(
    "INI005",
    severity=Severity.INFO,
    since="0.1",
    explains=["unnormalized-deep-stack", "exploding-gradient"],
)
def init_activation_mismatch(
    graph: Graph,
    propagation: Propagation,
    edits: SourceEdits,
    *,
    decades: float = 1.0,
    least: int = 5,
) -> Iterator[Finding]:
    """The initial values suit another activation than the one behind the layer, in a deep chain.

    Xavier's Var w = 2/(n + m) keeps the variance where an activation is near linear; a ReLU cuts half of
    it off, so that a gradient shrinks by √½ at each layer: by 32 over ten of them. He's 2/n makes up for
    that. PyTorch's own default, Var w = 1/(3n), loses a factor of √6 a layer before a ReLU and √3 before
    tanh. In a short or normalised net this costs little; along a plain chain it multiplies.

    Advice, for at least `least` layers in series with neither normalisation nor a merge between them, where
    the mismatches multiply to more than `decades` decades. That is an upper bound: what saturates loses
    less. Where signal and gradient are measured to collapse, shrinking-init says so instead.

    He's values before tanh are no mismatch: n·Var w = 2 lies between Xavier's 1 and the 2.8 of the usual
    gain 5/3. Over twenty layers of 96 units the gradient grows by 10^0.3 with them, by 10^0.9 with the
    gain, and falls to 10^-0.5 with Xavier's own.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(9))
            self.head = nn.Linear(64, 4)
            for layer in self.layers:
                nn.init.xavier_uniform_(layer.weight)

        def forward(self, x):
            for layer in self.layers:
                x = torch.relu(layer(x))
            return self.head(x)
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(9))
            self.head = nn.Linear(64, 4)
            for layer in self.layers:
                nn.init.xavier_uniform_(layer.weight, gain=nn.init.calculate_gain("tanh"))

        def forward(self, x):
            for layer in self.layers:
                x = torch.tanh(layer(x))
            return self.head(x)
    ```

    ## Figures
    - `powers of ten at most`: the logarithm, to the base 10, of the product of the mismatches: −2 says that
      signal and gradient come out a hundred times too small at worst.
    - `layers`: the weights with their standard deviation σ, and the one that suits.

    ## When to ignore it
    When it trains well, or when trained weights are loaded.

    ## Fix safety
    Unsafe: the model starts from other values.

    ## References
    Seed B, section 1.1. Glorot & Bengio 2010, section 4.2; He et al. 2015, arXiv:1502.01852, section 2.2.
    """
    suited = [p for p in prescriptions(graph, propagation) if p.activation]
    for stretch in _stretches(graph, suited):
        wanted = unsuitable(within(graph, suited, stretch))
        total = sum(p.decades for p in wanted)
        if len(wanted) < least or abs(total) <= decades:
            continue
        before = predicted_trend(graph, propagation)
        changed = propagation.reinitialised({p.name: p.deviation**2 for p in wanted})
        after = predicted_trend(graph, changed)
        worst, kind = heaviest(graph, wanted), _kind(wanted)
        yield Finding(
            f"{len(wanted)} layers in series start too {'small' if total < 0 else 'large'} for the "
            f"{kind} behind them: the gradient {'loses' if total < 0 else 'gains'} at most "
            f"{abs(total):.1f} decades on the way through",
            where=worst.where(graph),
            module=graph.operation(worst.node).module,
            evidence={
                "powers_of_ten_at_most": round(total, 2),
                "layers": [f"{p.name}: σ = {p.present:.3g}, {p.formula}" for p in wanted],
            },
            fixes=[
                reinitialise(edits, wanted, graph)
                if before is None or after is None
                else reinitialise(edits, wanted, graph, before.ends, after.ends)
            ],
            confidence=Confidence.LIKELY,
            affects=[p.node for p in wanted],
        )
        return


def _kind(wanted: list[Prescription]) -> str:
    names = sorted({p.activation for p in wanted})
    return " and ".join(names)


def _stretches(graph: Graph, suited: list[Prescription]) -> Iterator[list[Any]]:
    """Layers in series, each with an activation behind it."""
    activated = {p.weight(graph) for p in suited}
    for run in series(graph):
        parts = itertools.groupby(run, lambda node: graph.argument(node, "weight") in activated)
        yield from (list(part) for has, part in parts if has)
