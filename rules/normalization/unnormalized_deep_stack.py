"""NRM008 unnormalized-deep-stack."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trainlint.rule import Confidence, Finding, Fix, Graph, Severity, ops, rule

# They normalise by hand, or hold the signal's size by themselves (SELU, sine networks).
CALMING = ops.NORMALIZATIONS | set(
    "selu alpha_dropout feature_alpha_dropout sin cos normalize norm linalg_vector_norm "
    "linalg_norm var std var_mean std_mean rsqrt renorm".split()
)
MERGES = {"add", "sub", "lerp", "addcmul"}


@rule("NRM008", severity=Severity.INFO, since="0.1")
def unnormalized_deep_stack(graph: Graph, *, least: int = 10) -> Iterator[Finding]:
    """Many layers in series, with neither normalisation nor a residual connection.

    Signal and gradient are multiplied at each layer by how much its weights and its activation change
    their size: k per layer is kⁿ after n. Nothing sets the size right again on the way. PyTorch's
    default initialisation, Var w = 1/(3·fan_in), makes k² = 1/6 before a ReLU, that is 10⁻⁴ in
    deviation after 10 layers. He's initialisation makes k = 1 at the start, but only there. With
    normalisation the size is set anew at each layer; with x + f(x) the gradient has a path of slope 1.
    Networks of this kind therefore combine ReLU, BatchNorm and residual connections.

    A run counts from `least` layers on, in a model without any normalisation, sum of two streams, SELU,
    sine or normalised weights. 11 layers could just be trained from random weights in 2014; the
    deeper VGG nets were started from them.

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
    No edit is made: another function is learnt.

    ## References
    Seed A, problem 3, its last paragraph. He et al. 2015, arXiv:1502.01852, section 2.2; He et al. 2016,
    arXiv:1512.03385; Simonyan & Zisserman 2015, arXiv:1409.1556, section 3.1.
    """
    if any(_calms(graph, node) for node in graph.calls_in_order if graph.is_live(node)):
        return
    run = _longest_run(graph)
    if len(run) < least:
        return
    first, last = run[0], run[-1]
    yield Finding(
        f"{len(run)} layers in series, {graph.label(first)} to {graph.label(last)}, with neither "
        "normalisation nor a residual connection: the size of signal and gradient is a product of "
        f"{len(run)} factors",
        where=first,
        evidence={"layers": len(run), "modules": [graph.label(node) for node in run]},
        fixes=[
            Fix("BatchNorm or LayerNorm between each layer and its activation"),
            Fix("a residual connection, x + f(x), where the widths agree"),
        ],
        confidence=Confidence.POSSIBLE,
        affects=run,
    )


def _calms(graph: Graph, node: Any) -> bool:
    """Whether this holds the signal's size: a norm, a sum of two streams, a frozen norm, a tied weight."""
    name = graph.name(node)
    if name in CALMING or (name in MERGES and len(graph.varying_inputs(node)) > 1):
        return True
    if graph.is_weighted(node):
        return bool(graph.argument(node, "weight").op != "get_attr")  # weight or spectral norm
    if name in ("mul", "div"):
        return any(
            graph.is_constant(source) and max(graph.shape(source) or (1,), default=1) > 1
            for source in node.all_input_nodes
        )
    return False


def _longest_run(graph: Graph) -> list[Any]:
    """The layers of the longest chain in which each operation has one varying operand."""
    depth: dict[Any, int] = {}
    before: dict[Any, Any] = {}
    for node in graph.calls_in_order:
        sources = graph.varying_inputs(node)
        if len(sources) != 1 or not graph.is_live(node):
            continue
        before[node] = sources[0]
        depth[node] = depth.get(sources[0], 0) + graph.is_weighted(node)
    if not depth:
        return []
    run: dict[Any, Any] = {}  # by weight: a recurrent layer is one layer
    node = max(depth, key=lambda each: depth[each])
    while node in depth:
        if graph.is_weighted(node):
            run[graph.argument(node, "weight")] = node
        node = before[node]
    return list(run.values())[::-1]
