"""NRM009 reused-batchnorm."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trainlint.rule import (
    Finding,
    Fix,
    Graph,
    Severity,
    batch_norms,
    chain_back,
    keeps_statistics,
    ops,
    rule,
)

THROUGH = ops.REARRANGEMENTS | ops.DROPOUTS | ops.SPATIAL | ops.MAX_POOLS | ops.ACTIVATIONS


@rule("NRM009", severity=Severity.WARNING, since="0.1")
def reused_batchnorm(graph: Graph) -> Iterator[Finding]:
    """One BatchNorm normalises the outputs of several layers, and its running statistics mix them.

    In training each call normalises by the mean and variance of its own input. The running statistics
    are common: call after call, r ← (1 − m)·r + m·(statistics of this call). In eval mode every call
    divides by that mixture, which fits none of them, so the model that is evaluated is another one than
    was trained. γ and β are shared as well. Activations have no state and may be shared; a BatchNorm
    belongs to one place.

    Where the layer in front or the layer behind is shared along with it, the whole block is used twice,
    as in a siamese network, over the levels of a pyramid or over time. That is a choice, and not
    reported.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 16, 3, bias=False)
            self.conv2 = nn.Conv2d(16, 16, 3, bias=False)
            self.bn = nn.BatchNorm2d(16)
            self.head = nn.Linear(16, 10)

        def forward(self, x):
            x = torch.relu(self.bn(self.conv1(x)))
            x = torch.relu(self.bn(self.conv2(x)))
            return self.head(x.mean((2, 3)))
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 16, 3, bias=False)
            self.bn1 = nn.BatchNorm2d(16)
            self.conv2 = nn.Conv2d(16, 16, 3, bias=False)
            self.bn2 = nn.BatchNorm2d(16)
            self.head = nn.Linear(16, 10)

        def forward(self, x):
            x = torch.relu(self.bn1(self.conv1(x)))
            x = torch.relu(self.bn2(self.conv2(x)))
            return self.head(x.mean((2, 3)))
    ```

    ## When to ignore it
    Where the streams have the same statistics by construction.

    ## Fix safety
    No edit is made: the constructor and the forward change together.

    ## References
    Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 2; Yu et al. 2019, arXiv:1812.08928, section 3,
    on one BatchNorm for networks of several widths, and why each needs its own.
    """
    calls: dict[Any, list[Any]] = {}
    for norm in batch_norms(graph):
        if keeps_statistics(graph, norm):
            calls.setdefault(graph.argument(norm, "running_mean"), []).append(norm)
    for norms in calls.values():
        before = {norm: _layer(graph, norm) for norm in norms}
        layers = {_weights(graph, layer): layer for layer in before.values() if layer is not None}
        feeds = {_feeds(graph, norm) for norm in norms}
        if len(layers) < 2 or (len(feeds) == 1 and feeds != {frozenset()}):
            continue
        names = [graph.label(layer) for layer in layers.values()]
        yield Finding(
            f"{graph.label(norms[0])} normalises the outputs of {len(layers)} layers "
            f"({', '.join(names[:3])}{', …' if len(names) > 3 else ''}): eval mode uses a mixture "
            "of their statistics",
            where=norms[0],
            evidence={"calls": len(norms), "modules": names},
            fixes=[Fix(_title(graph, norms[0], len(layers)))],
            affects=norms,
        )


def _title(graph: Graph, norm: Any, count: int) -> str:
    layer = graph.layer(norm)
    name = graph.label(norm)
    if layer is None:
        return "running statistics of its own for each"
    features = getattr(layer, "num_features", "…")
    each = ", ".join(f"{name}_{number}" for number in range(1, min(count, 3) + 1))
    return f"one each: {each}{', …' if count > 3 else ''} = nn.{type(layer).__name__}({features})"


def _layer(graph: Graph, norm: Any) -> Any:
    """The layer whose output the BatchNorm normalises, if one does that alone."""
    for node in chain_back(graph, norm):
        if graph.is_weighted(node):
            return node
        if not graph.is_transparent(node, THROUGH):
            break
    return None


def _weights(graph: Graph, layer: Any) -> frozenset[Any]:
    """What makes a layer's weight: a normalised weight is computed anew at each call."""
    leaves, stack = set(), [graph.argument(layer, "weight")]
    while stack:
        node = stack.pop()
        if node.op == "get_attr":
            leaves.add(node)
        stack.extend(node.all_input_nodes)
    return frozenset(leaves)


def _feeds(graph: Graph, norm: Any) -> frozenset[Any]:
    """The weights of the layers that take what the BatchNorm gives."""
    return frozenset(
        leaf
        for node in graph.consumers(norm, THROUGH)
        if graph.is_weighted(node)
        for leaf in _weights(graph, node)
    )
