"""INI002 symmetric-weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trainlint.rule import (
    Finding,
    Graph,
    Parameter,
    Severity,
    SourceEdits,
    ops,
    rule,
    start_of,
    started,
)

FILLS_WITH_ONE_VALUE = {"constant_", "ones_", "fill_"}


@rule(
    "INI002",
    severity=Severity.ERROR,
    since="0.1",
    topics=["gradient-flow"],
    explains=[
        "vanishing-gradient",
        "exploding-gradient",
        "shrinking-init",
        "exploding-init",
        "loss-never-moves",
        "underfitting",
        "cannot-memorise",
        "learning-rate-too-low",
        "learning-rate-too-high",
    ],
)
def symmetric_weights(graph: Graph, edits: SourceEdits) -> Iterator[Finding]:
    """All units of a layer start from the same weights, so they compute, and learn, the same.

    If the rows of W are equal, all units y_i = w_i·x + b_i are equal; if the next layer treats them
    alike as well, their gradients are equal and they stay so at every step: a layer of 512 units is
    worth one. Random initial values exist to break this symmetry.

    One constant layer between random ones is not stuck, since its units get different gradients through
    the random weights behind it; it is reported as a warning, since its features start as copies.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(8, 16)
            self.fc2 = nn.Linear(16, 4)
            nn.init.constant_(self.fc1.weight, 0.1)
            nn.init.constant_(self.fc2.weight, 0.1)

        def forward(self, x):
            return self.fc2(torch.relu(self.fc1(x)))
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(8, 16)
            self.fc2 = nn.Linear(16, 4)
            nn.init.normal_(self.fc1.weight, 0.0, 0.5)
            nn.init.constant_(self.fc1.bias, 0.1)

        def forward(self, x):
            return self.fc2(torch.relu(self.fc1(x)))
    ```

    ## When to ignore it
    When another program loads trained weights into the model before it trains. Not reported where only
    layers with nothing behind them are constant: an output has a target of its own, so they part at once.

    ## Fix safety
    Unsafe: the model starts from other values. He's initialisation before a ReLU, Xavier's before tanh,
    sigmoid or none, at the call that filled the weights.

    ## References
    Seed B, section 1.1 (对称性问题). Goodfellow, Bengio & Courville 2016, Deep Learning, section 8.4.
    """
    symmetric: list[Parameter] = []
    layers, is_hidden = 0, False
    for node in graph.calls_in_order:
        is_recurrent = graph.name(node) in ops.RECURRENT
        if not graph.is_live(node) or not (is_recurrent or graph.is_weighted(node)):
            continue
        trained = [p for p in graph.parameters_of(node) if p.tensor.dim() >= 2]
        if not trained:
            continue
        layers += 1
        if is_recurrent:
            equal = all(_are_equal(parameter.tensor.detach()) for parameter in trained)
        else:
            equal = _has_equal_rows(graph, node, graph.argument(node, "weight"))
        if equal and trained[0] not in symmetric:
            symmetric.append(trained[0])
            is_hidden |= is_recurrent or graph.feeds_weights(node)
    if not is_hidden:
        return  # units of a last layer alone: each has a target of its own, which tells them apart
    everywhere = len(symmetric) >= layers
    units = sum(parameter.tensor.shape[0] for parameter in symmetric)
    names = ", ".join(parameter.name for parameter in symmetric[:4])
    more = f" and {len(symmetric) - 4} more" if len(symmetric) > 4 else ""
    first = symmetric[0]
    fate = "they stay equal for ever" if everywhere else "they start as copies of each other"
    seen = first.initialization
    starts = [start_of(graph, parameter) for parameter in symmetric]
    yield Finding(
        f"the rows of {names}{more} are all equal ({_shown(first)}): "
        f"{units} units in {len(symmetric)} layers compute the same, and {fate}",
        where=seen[1]
        if seen is not None and seen[0] in FILLS_WITH_ONE_VALUE
        else _user(graph, first),
        module=first.name.rpartition(".")[0],
        evidence={
            "symmetric": [parameter.name for parameter in symmetric],
            "layers": layers,
            "equal_units": units,
            "value": round(float(first.tensor.detach().flatten()[0]), 6),
        },
        fixes=[started(graph, edits, [start for start in starts if start is not None])],
        severity=Severity.ERROR if everywhere else Severity.WARNING,
        fault=("symmetric",),
        starved=graph.share_of_parameters(symmetric),
        affects=[user for p in symmetric if p.node is not None for user in p.node.users],
    )


def _has_equal_rows(graph: Graph, node: Any, weight: Any) -> bool:
    value = graph.value(weight)
    if value is None or value.dim() < 2:
        return False
    name = graph.name(node)
    units = value.transpose(0, 1) if "transpose" in name else value
    groups = graph.argument(node, "groups", 1) if name in ops.CONVOLUTIONS else 1
    if groups > 1 and groups >= units.shape[0] // 2:
        return False  # depthwise filters see different channels
    return _are_equal(units)


def _are_equal(units: Any) -> bool:
    rows = units.flatten(1)
    if rows.shape[0] < 2 or not bool(rows[0].any()):
        return False  # one unit, or zeros, which INI001 judges
    # The second row settles nearly every layer; only then compare them all.
    return bool((rows[1] == rows[0]).all()) and bool((rows == rows[:1]).all())


def _shown(parameter: Parameter) -> str:
    values = parameter.tensor.detach()
    first = float(values.flatten()[0])
    return f"every weight is {first:g}" if bool((values == first).all()) else "row by row"


def _user(graph: Graph, parameter: Parameter) -> Any:
    assert parameter.node is not None
    users = [user for user in parameter.node.users if graph.is_live(user)]
    return users[0] if users else None
