"""ARC010 dead-branch."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from typing import Any

from trainlint.rule import (
    Confidence,
    Finding,
    Fix,
    Graph,
    Severity,
    SourceEdits,
    dead_ends,
    heavy,
    ops,
    rule,
)

WRITES = frozenset(
    "setitem copy index_add index_copy index_put index_fill scatter scatter_add masked_scatter fill "
    "zero seen_through module_error".split()
)
SEVERAL_RESULTS = ops.PARTS | {"topk", "max", "min", "sort", "unique", "median", "mode", "aminmax"}


@rule("ARC010", severity=Severity.WARNING, since="0.1", explains=["no-gradient", "unused-module"])
def dead_branch(graph: Graph, edits: SourceEdits) -> Iterator[Finding]:
    """The forward computes something with weights and then throws it away.

    A value that leads to no output adds nothing to the loss: the weights on that branch get no
    gradient, ∂L/∂w does not exist, and the time and memory are lost. Often the result was to be
    assigned: PyTorch's functions return a new tensor, so that `self.conv2(x)` or `F.relu(x)` on a
    line of its own changes nothing, and the layer is missing from the model although the code seems to
    use it. Or a skip connection was computed and never added.

    A call that stands on a line of its own is reported whatever it costs; any other branch only if a
    product with weights, a convolution or an embedding is in it.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
            self.shortcut = nn.Conv2d(3, 16, 1)
            self.head = nn.Linear(16, 4)

        def forward(self, x):
            skip = self.shortcut(x)
            x = torch.relu(self.conv1(x))
            return self.head(x.mean(dim=(2, 3)))


    example_inputs = torch.randn(2, 3, 8, 8)
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
            self.shortcut = nn.Conv2d(3, 16, 1)
            self.head = nn.Linear(16, 4)

        def forward(self, x):
            skip = self.shortcut(x)
            x = torch.relu(self.conv1(x) + skip)
            return self.head(x.mean(dim=(2, 3)))


    example_inputs = torch.randn(2, 3, 8, 8)
    ```

    ## When to ignore it
    If the value goes to a list outside of the model, or the branch is there for another mode. What a
    module keeps as an attribute, or what is read as a Python number, counts as used.

    ## Fix safety
    Only shown: where the value belongs is the author's decision.

    ## References
    Measured on 175 models of public libraries: without the conditions above 85 of them have such ends
    (masks, counters, parts of tuples), with them two, both of them computed for nothing.
    """
    parameters = {parameter.node: parameter for parameter in graph.parameters}
    for end, branch in dead_ends(graph):
        if not _is_a_value(graph, end):
            continue
        bare = _is_bare(graph, edits, end)
        costly = heavy(graph, branch)
        if not costly and not (bare and graph.layer(end) is None):
            continue
        idle = [
            parameter
            for node, parameter in parameters.items()
            if node is not None and node.users and all(user in branch for user in node.users)
        ]
        yield _finding(graph, end, branch, costly, idle, bare)


def _is_a_value(graph: Graph, end: Any) -> bool:
    """A floating-point result that was neither written in place nor is one part of several."""
    operation = graph.operation(end)
    return not (
        operation.in_place
        or operation.name in WRITES
        or operation.name in SEVERAL_RESULTS
        or operation.error is not None
        or not operation.grad_enabled
        or not graph.is_floating(end)
        or graph.is_constant(end)
        or _writes_into_its_input(end)
    )


def _writes_into_its_input(node: Any) -> bool:
    """`F.relu(x, True)`, `nn.ReLU(inplace=True)(x)`: the caller goes on with x."""
    return bool(node.kwargs.get("inplace")) or True in [arg for arg in node.args if arg is True]


def _is_bare(graph: Graph, edits: SourceEdits, end: Any) -> bool:
    """Whether the call is a statement of its own, so that nothing can follow from its result."""
    site = graph.operation(end).site
    text = None if site is None else edits.text(site.filename)
    call = None if text is None or site is None else text.call_at(site)
    statement = None if text is None or call is None else text.statement_of(call)
    return isinstance(statement, ast.Expr) and statement.value is call


def _finding(
    graph: Graph,
    end: Any,
    branch: Collection[Any],
    costly: list[Any],
    idle: list[Any],
    bare: bool,
) -> Finding:
    operation = graph.operation(end)
    share = graph.share_of_parameters(idle)
    label = graph.label(end)
    cost = (
        f"; {len(idle)} parameters, {share:.0%} of the model, get no gradient"
        if idle
        else f"; {len(branch)} operations for nothing"
        if len(branch) > 1
        else ""
    )
    what = "returns a new tensor, which is not assigned" if bare else "is computed and never used"
    return Finding(
        f"the result of {label} {what}{cost}",
        where=operation.site or end,
        module=operation.module,
        evidence={
            "operations": len(branch),
            "with_weights": len(costly),
            "parameters": [parameter.name for parameter in idle],
            "share_of_parameters": round(share, 4),
        },
        fixes=[Fix("assign it: x = ..." if bare else "use the result, or remove the branch")],
        confidence=Confidence.CERTAIN if bare else Confidence.LIKELY,
        starved=share,
        affects=list(branch),
    )
