"""ARC007 oversized-flatten."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from trainlint.rule import Finding, Fix, Graph, Severity, ops, rule

CHANNELS_FIRST = (
    ops.CONVOLUTIONS | ops.MAX_POOLS | ops.SPATIAL | {"batch_norm", "group_norm", "cat"}
)
BETWEEN = ops.REARRANGEMENTS | ops.DROPOUTS | ops.ACTIVATIONS - {"softmax", "log_softmax", "glu"}


@rule("ARC007", severity=Severity.INFO, since="0.1")
def oversized_flatten(
    graph: Graph, *, share: float = 0.5, least: int = 100_000
) -> Iterator[Finding]:
    """Most of the model's parameters stand in the first linear layer behind a flatten.

    A map of C channels and H x W places, flattened, needs C·H·W·n weights to reach n units: the convolution
    before it shares its weights over all places, the linear layer has one for each. VGG11 has 103
    million of its 133 million parameters there. Such a layer is where a small data set is memorised, it
    forgets that neighbouring pixels belong together, and it fixes the size of the images. Averaging over
    the places first leaves C·n weights.

    Reported if that layer holds more than `share` of the parameters, in a model of more than `least`.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 32, 3, stride=2, padding=1)
            self.conv2 = nn.Conv2d(32, 64, 3, stride=2, padding=1)
            self.fc1 = nn.Linear(64 * 16 * 16, 128)
            self.fc2 = nn.Linear(128, 10)

        def forward(self, x):
            x = F.relu(self.conv2(F.relu(self.conv1(x))))
            x = F.relu(self.fc1(x.flatten(1)))
            return self.fc2(x)


    example_inputs = torch.randn(2, 3, 64, 64)
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 32, 3, stride=2, padding=1)
            self.conv2 = nn.Conv2d(32, 64, 3, stride=2, padding=1)
            self.fc1 = nn.Linear(64, 128)
            self.fc2 = nn.Linear(128, 10)

        def forward(self, x):
            x = F.relu(self.conv2(F.relu(self.conv1(x))))
            x = F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1).flatten(1)))
            return self.fc2(x)


    example_inputs = torch.randn(2, 3, 64, 64)
    ```

    ## When to ignore it
    When the place itself carries the answer, as in board games or coordinates to be regressed, and the
    data are many.

    ## Fix safety
    Only shown: the linear layer's width changes with it, and so does what the model can learn.

    ## References
    Lin, Chen & Yan 2014, Network in Network, arXiv:1312.4400, section 3.2 (global average pooling);
    Simonyan & Zisserman 2015, arXiv:1409.1556 (VGG11).
    """
    total = sum(parameter.tensor.numel() for parameter in graph.parameters)
    if total <= least:
        return
    for node in graph.calls("linear"):
        flattened = _flattened_map(graph, node) if graph.is_live(node) else None
        weight = graph.shape(graph.argument(node, "weight")) if flattened else None
        if flattened is None or weight is None or math.prod(weight) <= share * total:
            continue
        yield _finding(graph, node, flattened, weight, total)


def _flattened_map(graph: Graph, node: Any) -> Any:
    """The map of shape (batch, channels, places...) whose flattening the layer receives."""
    source = graph.data(node) if graph.is_weighted(node) else None
    while source is not None and source.op == "call_function":
        after = graph.shape(source)
        inner = graph.data(source)
        before = graph.shape(inner) if inner is not None else None
        if graph.name(source) in ("reshape", "flatten") and inner is not None and after and before:
            joined = len(after) < len(before) and after[-1] > before[-1]
            if len(before) >= 3 and joined and math.prod(before[2:]) > 1:
                # The pixels of an image have no channels that could be averaged over it.
                return inner if _maker(graph, inner) is not None else None
        if not graph.is_transparent(source, BETWEEN):
            return None
        source = inner
    return None


def _maker(graph: Graph, flattened: Any) -> Any:
    """The operation whose results the map holds, None where it is the input itself."""
    if not graph.is_transparent(flattened, BETWEEN):
        return flattened if flattened.op == "call_function" else None
    maker, _ = graph.producer(flattened, BETWEEN)
    return maker if maker is not None and maker.op == "call_function" else None


def _pooling(graph: Graph, flattened: Any) -> tuple[str, int]:
    """The average over all places of the map, and how many features it leaves."""
    shape = graph.shape(flattened) or ()
    maker = _maker(graph, flattened)
    if len(shape) == 3 and (maker is None or graph.name(maker) not in CHANNELS_FIRST):
        return "x.mean(1)", shape[2]  # tokens: (batch, places, features)
    return f"nn.AdaptiveAvgPool{len(shape) - 2}d(1)", shape[1]


def _finding(
    graph: Graph, node: Any, flattened: Any, weight: tuple[int, ...], total: int
) -> Finding:
    count = math.prod(weight)
    before = graph.shape(flattened) or ()
    size = "x".join(map(str, before[1:]))
    pooling, features = _pooling(graph, flattened)
    after = total - count + weight[0] * features
    label = graph.label(node)
    return Finding(
        f"{label} holds {count:,} of {total:,} parameters ({count / total:.0%}), since it gets a "
        f"{size} map flattened: the likeliest place to overfit, and the size of the input is fixed",
        where=node,
        evidence={
            "map": list(before[1:]),
            "weights": count,
            "parameters": total,
            "share": round(count / total, 4),
            "parameters_after_pooling": after,
        },
        fixes=[
            Fix(
                f"{pooling} in place of the flatten, and {features} features into {label}: "
                f"{total:,} parameters become {after:,}",
                reason="Lin, Chen & Yan 2014: averages of maps have no weights that could overfit",
                obstacle="the forward and the layer's width change together",
            )
        ],
        affects=[node],
    )
