"""INI001 zero-weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trainlint.rule import (
    Finding,
    Fix,
    Graph,
    Parameter,
    Severity,
    SourceEdits,
    ZeroFlow,
    never_learning,
    rule,
    start_of,
    started,
    stuck_weights,
    zero_parameters,
)

FILLS_WITH_ZERO = {"zeros_", "constant_", "fill_", "zero_"}


@rule(
    "INI001",
    severity=Severity.ERROR,
    since="0.1",
    topics=["gradient-flow"],
    explains=[
        "vanishing-gradient",
        "shrinking-init",
        "constant-output",
        "loss-never-moves",
        "underfitting",
        "cannot-memorise",
        "dead-relu",
        "learning-rate-too-low",
    ],
)
def zero_weights(graph: Graph, edits: SourceEdits) -> Iterator[Finding]:
    """A weight is all zero and keeps itself, or what comes before it, from learning.

    For y = Wx the gradients are ∂L/∂W = ∂L/∂y·xᵀ and ∂L/∂x = Wᵀ·∂L/∂y. With W = 0 nothing flows back
    through the layer; if its input is zero too, or a ReLU behind it is fed zeros, W itself gets no
    gradient either and stays zero for ever. trainlint decides this on the graph, not by a list of
    names: it asks which values are identically zero, which weights therefore get no gradient, frees
    those that do get one, and repeats until nothing changes. What is left can never learn.

    A zero-initialised *branch* is not that fault. The last γ or convolution of a residual block, LoRA's
    B, ReZero's scale, adaLN-zero and ControlNet's zero convolutions are added to a live path: their
    input is not zero, so they leave zero at the first step, and the gradient of all the rest flows
    around them meanwhile. A zero output layer behind live features is harmless as well.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(8, 16)
            self.fc2 = nn.Linear(16, 4)
            for layer in (self.fc1, self.fc2):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

        def forward(self, x):
            return self.fc2(torch.relu(self.fc1(x)))
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(8, 16)  # torch's own initial values
            self.fc2 = nn.Linear(16, 4)
            nn.init.kaiming_normal_(self.fc1.weight, nonlinearity="relu")  # or He's, before a ReLU
            nn.init.zeros_(self.fc1.bias)

        def forward(self, x):
            return self.fc2(torch.relu(self.fc1(x)))
    ```

    ```python
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(8, 16)
            self.fc2 = nn.Linear(16, 8)
            self.head = nn.Linear(8, 4)
            nn.init.zeros_(self.fc2.weight)  # the branch starts as nothing, and wakes up
            nn.init.zeros_(self.fc2.bias)

        def forward(self, x):
            return self.head(x + self.fc2(torch.relu(self.fc1(x))))
    ```

    ## When to ignore it
    When another program loads trained weights into the model before it trains.

    ## Fix safety
    Unsafe: the model starts from other values. He's initialisation (Var w = 2/n_in) before a ReLU, Xavier's
    (Var w = 2/(n_in + n_out)) before tanh, sigmoid or none, 1 for a normalisation's γ. What ends a branch
    beside a live path, as LoRA's B, is left at zero.

    ## References
    Seed B, section 1.1 (the symmetry problem). Glorot & Bengio 2010, equation 16; He et al. 2015,
    arXiv:1502.01852, equation 10. Zero branches: Goyal et al. 2017 (arXiv:1706.02677, section 5.1),
    Hu et al. 2021 (LoRA, arXiv:2106.09685), Bachlechner et al. 2020 (ReZero, arXiv:2003.04887),
    Peebles & Xie 2022 (adaLN-zero, arXiv:2212.09748).
    """
    zero = zero_parameters(graph)
    if not zero or not graph.outputs or not graph.complete:
        return
    stuck_nodes, flow = stuck_weights(graph, zero)
    # What no gradient would reach with other values either is cut off, which is another fault.
    reachable = ZeroFlow(graph, ()).learning
    stuck = [p for p in zero if p.node in stuck_nodes and p.node in reachable]
    # Biases behind a stuck weight are stuck with it; the weights are the story.
    stuck = [p for p in stuck if _is_weight(p)] or stuck
    if stuck:
        yield _stuck(graph, edits, stuck, flow)
        return
    blocked = never_learning(graph, ZeroFlow(graph, [p.node for p in zero if p.node is not None]))
    blocked = [p for p in blocked if p not in zero]
    if blocked:
        for parameter in zero:
            if _is_weight(parameter) and _stands_in_every_path(graph, parameter):
                yield _late_start(graph, edits, parameter, blocked)
                return


def _is_weight(parameter: Parameter) -> bool:
    return parameter.tensor.dim() >= 2


def _stuck(graph: Graph, edits: SourceEdits, stuck: list[Parameter], flow: ZeroFlow) -> Finding:
    silent = never_learning(graph, flow)
    share = graph.share_of_parameters(silent)
    names = _listed([parameter.name for parameter in stuck])
    them = (
        "is all zero and never gets a gradient"
        if len(stuck) == 1
        else ("are all zero and never get a gradient")
    )
    return Finding(
        f"{names} {them}: {share:.1%} of the trainable parameters stay as they are",
        where=_where(graph, stuck[0]),
        module=stuck[0].name.rpartition(".")[0],
        evidence={
            "stuck": [parameter.name for parameter in stuck],
            "never_learning": [parameter.name for parameter in silent],
            "share_never_learning": round(share, 4),
        },
        fixes=[_initialize(graph, edits, stuck)],
        fault=("zero", "stuck"),
        starved=share,
        affects=[*_users(graph, [*stuck, *silent]), *_same_for_all(graph, stuck, flow)],
    )


def _late_start(
    graph: Graph, edits: SourceEdits, parameter: Parameter, blocked: list[Parameter]
) -> Finding:
    share = graph.share_of_parameters(blocked)
    return Finding(
        f"{parameter.name} is all zero and lies on every path: {share:.1%} of the parameters get no "
        "gradient at the first step, and all samples look alike behind it",
        where=_where(graph, parameter),
        module=parameter.name.rpartition(".")[0],
        evidence={"zero": parameter.name, "share_without_first_gradient": round(share, 4)},
        fixes=[_initialize(graph, edits, [parameter])],
        severity=Severity.WARNING,
        fault=("zero", parameter.name),
        starved=share,
        affects=[*_users(graph, [parameter, *blocked]), *_same_for_all(graph, [parameter])],
    )


def _users(graph: Graph, parameters: list[Parameter]) -> list[Any]:
    """The operations that these parameters take part in."""
    nodes = [parameter.node for parameter in parameters if parameter.node is not None]
    return [user for node in nodes for user in node.users if graph.is_live(user)]


def _same_for_all(
    graph: Graph, parameters: list[Parameter], flow: ZeroFlow | None = None
) -> list[Any]:
    """What is identically zero, and the results of these weights up to the next ones."""
    zero = () if flow is None else flow.zero
    found = [node for node in graph.calls_in_order if node in zero]
    waiting = [node for node in _users(graph, parameters) if graph.is_weighted(node)]
    while waiting:
        for node in waiting.pop().users:
            if graph.is_live(node) and not graph.is_weighted(node) and node not in found:
                found.append(node)
                waiting.append(node)
    return found


def _stands_in_every_path(graph: Graph, parameter: Parameter) -> bool:
    assert parameter.node is not None
    users = [user for user in parameter.node.users if graph.is_live(user)]
    return any(
        graph.is_weighted(user) and not graph.is_bypassed(user) and graph.feeds_weights(user)
        for user in users
    )


def _where(graph: Graph, parameter: Parameter) -> Any:
    """The call that wrote the zeros if the user made it, else the layer that holds the weight."""
    seen = parameter.initialization
    if seen is not None and seen[0] in FILLS_WITH_ZERO:
        return seen[1]
    assert parameter.node is not None
    users = [user for user in parameter.node.users if graph.is_live(user)]
    return users[0] if users else None


def _initialize(graph: Graph, edits: SourceEdits, parameters: list[Parameter]) -> Fix:
    """The initialisation that suits each weight, at the call that wrote the zeros."""
    left = _left_at_zero(graph, parameters)
    starts = [start_of(graph, parameter) for parameter in parameters if parameter not in left]
    suited = [start for start in starts if start is not None]
    if suited:
        return started(graph, edits, suited)
    return Fix(
        f"initial values other than zero for {parameters[0].name}",
        reason="∂L/∂x = Wᵀ·∂L/∂y is zero where W is",
        obstacle="which values suit a parameter of this kind is not known",
    )


def _left_at_zero(graph: Graph, stuck: list[Parameter]) -> list[Parameter]:
    """Those that end a branch beside a live path and do no harm once the others are no longer zero."""
    left: list[Parameter] = []
    for parameter in reversed(stuck):
        users = _users(graph, [parameter])
        lines = [p.initialization[1].key for p in stuck if p is not parameter and p.initialization]
        own = parameter.initialization
        alone = own is None or own[1].key not in lines
        if alone and users and all(graph.is_bypassed(user) for user in users):
            still, _ = stuck_weights(graph, [*left, parameter])
            if not still:
                left.append(parameter)
    return left if len(left) < len(stuck) else []


def _listed(names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    if len(names) <= 4:
        return ", ".join(names[:-1]) + f" and {names[-1]}"
    return f"{names[0]}, {names[1]} and {len(names) - 2} more weights"
