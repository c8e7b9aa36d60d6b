"""NRM008 unnormalized-deep-stack."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trainlint.rule import (
    Confidence,
    Finding,
    Graph,
    Severity,
    SourceEdits,
    normalised,
    ops,
    residual,
    rule,
)

# They normalise by hand, or hold the signal's size by themselves (SELU, sine networks).
CALMING = ops.NORMALIZATIONS | set(
    "selu alpha_dropout feature_alpha_dropout sin cos normalize norm linalg_vector_norm "
    "linalg_norm var std var_mean std_mean rsqrt renorm".split()
)


@rule("NRM008", severity=Severity.INFO, since="0.1")
def unnormalized_deep_stack(
    graph: Graph, edits: SourceEdits, *, least: int = 10
) -> Iterator[Finding]:
    """Many layers in series, with neither normalisation nor a residual connection.

    Signal and gradient are multiplied at each layer by how much its weights and its activation change
    their size: k per layer is kⁿ after n. Nothing sets the size right again on the way. PyTorch's
    default initialisation, Var w = 1/(3·fan_in), makes k² = 1/6 before a ReLU, that is 10⁻⁴ in
    deviation after 10 layers. He's initialisation makes k = 1 at the start, but only there. With
    normalisation the size is set anew at each layer; with x + f(x) the gradient has a path of slope 1.
    Networks of this kind therefore combine ReLU, BatchNorm and residual connections.

    A run counts from `least` layers on. It ends where streams meet, where another part of the model reads
    along (a skip connection), and at normalisation, SELU, sine and normalised weights; a run that is
    itself bypassed by a residual connection is none. 11 layers could just be trained from random
    weights in 2014; the deeper VGG nets were started from them.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(12))
            for layer in self.layers:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            self.head = nn.Linear(16, 4)

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
            self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(12))
            self.head = nn.Linear(16, 4)

        def forward(self, x):
            for layer in self.layers:
                x = x + torch.relu(layer(x))
            return self.head(x)
    ```

    ## When to ignore it
    Where the weights come from training, or the stack is known to train with its initialisation.

    ## Fix safety
    Unsafe: another function is learnt.

    ## References
    Seed A, problem 3, its last paragraph. He et al. 2015, arXiv:1502.01852, section 2.2; He et al. 2016,
    arXiv:1512.03385; Simonyan & Zisserman 2015, arXiv:1409.1556, section 3.1.
    """
    run = _longest_run(graph, least)
    if not run:
        return
    first, last = run[0], run[-1]
    yield Finding(
        f"{len(run)} layers in series, {graph.label(first)} to {graph.label(last)}, with neither "
        "normalisation nor a residual connection: the size of signal and gradient is a product of "
        f"{len(run)} factors",
        where=first,
        evidence={"layers": len(run), "modules": [graph.path(node) for node in run]},
        fixes=[
            normalised(
                graph,
                edits,
                [node for node in run if graph.feeds_weights(node)],
                title="BatchNorm or LayerNorm between each layer and its activation",
                reason="Ioffe & Szegedy 2015: the size of the signal is set anew at each layer",
            ),
            residual(
                graph,
                edits,
                [(node, _activation(graph, node)) for node in run],
                title="a residual connection, x + f(x), where the widths agree",
                reason="He et al. 2016: the gradient has a path of slope 1",
            ),
        ],
        confidence=Confidence.POSSIBLE,
        affects=run,
    )


def _activation(graph: Graph, node: Any) -> Any:
    """The activation right behind a layer, else the layer itself."""
    users = [user for user in node.users if graph.is_live(user)]
    return users[0] if len(users) == 1 and graph.name(users[0]) in ops.ACTIVATIONS else node


def _calms(graph: Graph, node: Any) -> bool:
    """Whether this sets or holds the signal's size: a norm, also a frozen one, or a weight under one."""
    name = graph.name(node)
    if name in CALMING or name in ops.RECURRENT or name in ops.ATTENTION:
        return True
    if graph.is_weighted(node):
        return bool(graph.argument(node, "weight").op != "get_attr")  # weight or spectral norm
    if name in ("mul", "div"):
        return any(
            graph.is_constant(source) and max(graph.shape(source) or (1,), default=1) > 1
            for source in node.all_input_nodes
        )
    return False


def _longest_run(graph: Graph, least: int) -> list[Any]:
    """The layers of the longest chain of operations, each the only one that reads the one before."""
    depth: dict[Any, int] = {}
    before: dict[Any, Any] = {}
    for node in graph.calls_in_order:
        sources = graph.varying_inputs(node)
        if len(sources) != 1 or not graph.is_live(node) or _calms(graph, node):
            continue
        alone = sum(graph.is_live(user) for user in sources[0].users) == 1
        before[node] = sources[0] if alone else None
        depth[node] = graph.is_weighted(node) + (depth.get(sources[0], 0) if alone else 0)
    ends = depth.keys() - before.values()
    runs = {end: _layers(graph, end, before) for end in ends if depth[end] >= least}
    for end, run in sorted(runs.items(), key=lambda item: (-len(item[1]), graph.position(item[0]))):
        if len(run) >= least and not _is_bypassed(graph, end, before):
            return run
    return []


def _layers(graph: Graph, node: Any, before: dict[Any, Any]) -> list[Any]:
    run: dict[Any, Any] = {}  # by weight: a recurrent layer is one layer
    while node in before:
        if graph.is_weighted(node):
            run[graph.argument(node, "weight")] = node
        node = before[node]
    return list(run.values())[::-1]


def _is_bypassed(graph: Graph, last: Any, before: dict[Any, Any]) -> bool:
    """Whether what goes into the run is added to, or set beside, what comes out of it."""
    run, node = {last}, last
    while before.get(node) is not None:
        node = before[node]
        run.add(node)
    start = graph.data(node)
    # On to where it meets another stream.
    while True:
        users = [user for user in last.users if graph.is_live(user)]
        if len(users) != 1 or users[0].op == "output":
            return False
        meets = users[0]
        others = [source for source in graph.varying_inputs(meets) if source is not last]
        if others:
            return any(start is other or start in _behind_of(graph, other, run) for other in others)
        last = meets


def _behind_of(graph: Graph, node: Any, run: set[Any]) -> set[Any]:
    """Everything from which the node is computed without the run."""
    found, stack = {node}, [node]
    while stack:
        for source in graph.varying_inputs(stack.pop()):
            if source not in found and source not in run:
                found.add(source)
                stack.append(source)
    return found
