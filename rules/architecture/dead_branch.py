"""ARC010 dead-branch."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from itertools import takewhile
from typing import Any

from trainlint.rule import (
    Finding,
    Fix,
    Graph,
    Severity,
    dead_ends,
    heavy,
    ops,
    rule,
    source_of,
)

WRITES = frozenset(
    "setitem copy index_add index_copy index_put index_fill scatter scatter_add masked_scatter fill "
    "zero seen_through module_error".split()
)
BARE, ASSIGNED = "bare", "assigned"
SEVERAL_RESULTS = ops.PARTS | {"topk", "max", "min", "sort", "unique", "median", "mode", "aminmax"}


@rule("ARC010", severity=Severity.WARNING, since="0.1", explains=["no-gradient", "unused-module"])
def dead_branch(graph: Graph) -> Iterator[Finding]:
    """The forward computes something with weights and then throws it away.

    A value that leads to no output adds nothing to the loss: the weights on that branch get no
    gradient, ∂L/∂w does not exist, and the time and memory are lost. Often the result was to be
    assigned: PyTorch's functions return a new tensor, so that `self.conv2(x)` or `F.relu(x)` on a
    line of its own changes nothing, and the layer is missing from the model although the code seems to
    use it. Or a skip connection was computed and never added.

    Reported where the source drops the value plainly: a call on a line of its own, or a variable that
    nothing reads afterwards, if it holds the result of weights, an activation or a normalisation.

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
    If the call is made for a side effect. Not reported: a call whose inner results a hook or an
    attribute hands out, what a module keeps as an attribute, what is read as a Python number, one of
    several results, and a variable that other code of the function reads, for other inputs or in another
    mode.

    ## Fix safety
    Only shown: where the value belongs is the author's decision.

    ## References
    Measured on 175 models of public libraries: without the conditions above 85 of them have such ends
    (masks, counters, parts of tuples), with them two, both of them computed for nothing.
    """
    parameters = {parameter.node: parameter for parameter in graph.parameters}
    for end, branch in dead_ends(graph):
        how, source = _how_it_is_dropped(graph, end) if _is_a_value(graph, end) else ("", "")
        costly = heavy(graph, branch)
        if not how or not (costly or _is_called_for_its_result(graph, end, how)):
            continue
        if _is_used_inside(graph, end, branch, source):
            continue
        idle = [
            parameter
            for node, parameter in parameters.items()
            if node is not None and node.users and all(user in branch for user in node.users)
        ]
        yield _finding(graph, end, branch, costly, idle, how, source)


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


def _is_used_inside(graph: Graph, end: Any, branch: Collection[Any], source: str) -> bool:
    """Whether a step within the call is used: hooks, or the module's attributes, hand features out.

    The call's operations ran one after the other, up to the end of the branch.
    """
    called = source.removeprefix("self.").split(".")
    path = graph.operation(end).module.split(".")
    ends = [
        place + len(called) for place in range(len(path)) if path[place:][: len(called)] == called
    ]
    if not source.startswith("self.") or not ends:
        return False
    inside = path[: ends[-1]]
    within = list(
        takewhile(
            lambda node: graph.operation(node).module.split(".")[: len(inside)] == inside,
            reversed(graph.calls_in_order[: graph.calls_in_order.index(end) + 1]),
        )
    )
    last = [node for node in within if graph.operation(node).owner is graph.operation(end).owner]
    is_called_twice = sum(graph.name(node) == graph.name(end) for node in last) > 1
    return not is_called_twice and any(node not in branch for node in within)


def _writes_into_its_input(node: Any) -> bool:
    """`F.relu(x, True)`, `nn.ReLU(inplace=True)(x)`, `torch.add(x, y, out=x)`: x itself is used."""
    if node.kwargs.get("inplace") or node.kwargs.get("out") is not None:
        return True
    return any(argument is True for argument in node.args)


def _is_called_for_its_result(graph: Graph, end: Any, how: str) -> bool:
    """A step of the network that costs nothing: an activation or a normalisation without statistics."""
    if how == BARE and graph.layer(end) is None:
        return True
    return graph.name(end) in ops.ACTIVATIONS | ops.DROPOUTS | {"layer_norm", "group_norm"}


# ---------------------------------------------------------------------- what the source does with it


def _how_it_is_dropped(graph: Graph, end: Any) -> tuple[str, str]:
    """How the source plainly drops the value, and the call; empty where it may be used on another way."""
    operation = graph.operation(end)
    site = operation.returned or operation.site
    text = None if site is None or operation.is_part else source_of(site.filename)
    call = None if text is None or site is None else text.call_at(site)
    statement = None if text is None or call is None else text.statement_of(call)
    if text is None or call is None or statement is None:
        return "", ""
    source = ast.unparse(call.func)
    if isinstance(statement, ast.Expr) and statement.value is call:
        return BARE, source
    if not isinstance(statement, ast.Assign) or statement.value is not call:
        return "", ""
    names = {target.id for target in statement.targets if isinstance(target, ast.Name)}
    if any(name.startswith("_") for name in names):
        return "", ""  # dropped on purpose
    if len(names) != len(statement.targets) or _is_read_later(text.tree, statement, names):
        return "", ""
    return ASSIGNED, source


def _is_read_later(tree: Any, statement: ast.stmt, names: set[str]) -> bool:
    """Whether a later statement of the function reads one of the names before it is set anew."""
    function = _innermost_function(tree, statement)
    if function is None:
        return True
    block = next(
        (
            body
            for node in ast.walk(function)
            for body in (getattr(node, "body", None), getattr(node, "orelse", None))
            if isinstance(body, list) and statement in body
        ),
        None,
    )
    for later in block[block.index(statement) + 1 :] if block is not None else []:
        if _reads(later, names):
            return True
        if isinstance(later, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id in names for target in later.targets
        ):
            return False
    if block is function.body:
        return False
    return any(
        _reads(node, names) for node in ast.walk(function) if node is not statement
    )  # at the end of a branch or a loop: what comes next is not followed


def _innermost_function(tree: Any, statement: ast.stmt) -> Any:
    found = None
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and any(
            part is statement for part in ast.walk(node)
        ):
            found = node
    return found


def _reads(node: ast.AST, names: set[str]) -> bool:
    return any(
        isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load) and part.id in names
        for part in ast.walk(node)
    )


# ---------------------------------------------------------------------- what is said


def _finding(
    graph: Graph,
    end: Any,
    branch: Collection[Any],
    costly: list[Any],
    idle: list[Any],
    how: str,
    source: str,
) -> Finding:
    operation = graph.operation(end)
    share = graph.share_of_parameters(idle)
    cost = (
        f"; {len(idle)} parameters, {share:.1%} of the model, get no gradient"
        if idle
        else f"; {len(branch)} operations for nothing"
        if len(branch) > 1
        else ""
    )
    what = "is not assigned" if how == BARE else "is assigned and never read"
    return Finding(
        f"the result of {source}(...) {what}{cost}",
        where=operation.returned or operation.site or end,
        module=operation.module,
        evidence={
            "operations": len(branch),
            "with_weights": len(costly),
            "parameters": [parameter.name for parameter in idle],
            "share_of_parameters": round(share, 4),
        },
        fixes=[Fix("assign it: x = ..." if how == BARE else "use it, or remove the branch")],
        starved=share,
        affects=list(branch),
    )
