"""NRM002 batchnorm-after-activation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trainlint.rule import Confidence, Finding, Fix, Graph, Severity, batch_norms, ops, rule

THROUGH = ops.REARRANGEMENTS | ops.DROPOUTS | ops.SPATIAL | ops.MAX_POOLS
SQUASHING = {"sigmoid", "tanh", "hardsigmoid", "hardtanh", "softsign"}
ACTIVATIONS = ops.ACTIVATIONS - {"softmax", "log_softmax", "clamp", "clamp_min"}


@rule("NRM002", severity=Severity.INFO, since="0.1")
def batchnorm_after_activation(graph: Graph) -> Iterator[Finding]:
    """BatchNorm stands behind the activation of a layer, not between the layer and its activation.

    As described, BatchNorm normalises what goes into the activation: f(BN(Wx)). Wx is the roundest
    distribution there is in the layer; at mean β and deviation γ about half of the ReLUs are active and
    a sigmoid works near its steepest point. Behind the activation, BN(f(Wx)) leaves Wx to drift: units
    whose Wx falls below zero for all samples stay dead, squashed values stay squashed.

    For sigmoid and tanh this matters. For ReLU it is advice only: measurements go both ways, and some
    networks are built so on purpose. Pre-activation networks (ResNet v2, DenseNet), whose BatchNorm
    stands before the next activation, are not meant.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(8, 32)
            self.bn1 = nn.BatchNorm1d(32)
            self.fc2 = nn.Linear(32, 3)

        def forward(self, x):
            return self.fc2(self.bn1(torch.sigmoid(self.fc1(x))))
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(8, 32, bias=False)
            self.bn1 = nn.BatchNorm1d(32)
            self.fc2 = nn.Linear(32, 3)

        def forward(self, x):
            return self.fc2(torch.sigmoid(self.bn1(self.fc1(x))))
    ```

    ## When to ignore it
    With ReLU-like activations, where your own comparison favours this order, as in ConvMixer and in
    time-delay networks for speech.

    ## Fix safety
    Unsafe: another function is learnt, and weights trained in one order do not fit the other.

    ## References
    Seed B, section 1.3. Ioffe & Szegedy 2015, arXiv:1502.03167, section 3.2; for the other order
    Mishkin, Sergievskiy & Matas 2017, arXiv:1606.02228, on batch normalization.
    """
    found = [
        (norm, activation, layer)
        for norm in batch_norms(graph)
        for activation, layer in [_before(graph, norm)]
        if layer is not None
    ]
    if not found:
        return
    norm, activation, layer = found[0]
    names = sorted({graph.name(each) for _, each, _ in found})
    squashed = bool(SQUASHING & set(names))
    more = f", and {len(found) - 1} more like it" if len(found) > 1 else ""
    cost = "squashed before it is normalised" if squashed else "not normalised"
    yield Finding(
        f"{graph.label(norm)} follows {graph.name(activation)}: what {graph.label(layer)} feeds "
        f"the activation is {cost}{more}",
        where=norm,
        evidence={
            "order": [graph.label(layer), graph.name(activation), graph.label(norm)],
            "modules": list(dict.fromkeys(graph.path(each) for each, _, _ in found)),
        },
        fixes=[
            Fix(
                f"{graph.label(layer)}, {graph.label(norm)}, then {graph.name(activation)}",
                reason="Ioffe & Szegedy 2015, section 3.2: Wx is the roundest distribution in the layer",
                obstacle="two operations of the forward change places, and perhaps two of a Sequential",
            )
        ],
        confidence=Confidence.LIKELY if squashed else Confidence.POSSIBLE,
        affects=[each for each, _, _ in found],
    )


def _before(graph: Graph, norm: Any) -> tuple[Any, Any]:
    """The activation and the layer in front of a BatchNorm that only normalises these."""
    nothing = (None, None)
    activation, between = graph.producer(norm, THROUGH)
    if activation is None or graph.name(activation) not in ACTIVATIONS:
        return nothing
    layer, passed = graph.producer(activation, ops.REARRANGEMENTS)
    if layer is None or not graph.is_weighted(layer):
        return nothing
    # Read by others too, it is a stream, and the BatchNorm the first of a branch.
    if any(len(_live_users(graph, each)) > 1 for each in (activation, *between, *passed)):
        return nothing
    behind = {graph.name(user) for user in graph.consumers(norm, THROUGH)}
    return nothing if behind & ACTIVATIONS else (activation, layer)


def _live_users(graph: Graph, node: Any) -> list[Any]:
    return [user for user in node.users if graph.is_live(user)]
