"""ARC004 unused-module."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from trainlint.rule import (
    Confidence,
    Finding,
    Fix,
    Graph,
    Severity,
    Signal,
    construction_site,
    is_initializer,
    resolved_methods,
    rule,
    source_of,
    unused_modules,
)

CONTAINERS = ("ModuleList", "ModuleDict", "Sequential")
# Reaching children without naming them.
WALKS = frozenset("children named_children modules named_modules _modules get_submodule".split())


@rule("ARC004", severity=Severity.WARNING, since="0.1", explains=["no-gradient"])
def unused_module(graph: Graph, signal: Signal | None) -> Iterator[Finding]:
    """A layer with weights was registered, but the forward never comes to it.

    Its output enters no sum that leads to the loss L, so ∂L/∂w does not exist for its weights: they keep
    their initial values, whatever the training does. Most often a layer was replaced and the old one
    left behind, or the forward calls the same layer twice (`self.conv1` where `self.conv2` was
    meant), so that the network is shallower than its author believes. The weights still cost memory
    and are stored with each checkpoint, and DistributedDataParallel stops with "Expected to have finished
    reduction in the prior iteration", since it waits for their gradients.

    It is a warning only where no method that the class resolves to, and no other code of its file, names
    the layer. A layer that a method names may be used for other inputs, in another mode, or by the
    training script: that is advice.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(16, 32)
            self.fc2 = nn.Linear(32, 32)
            self.fc3 = nn.Linear(32, 4)

        def forward(self, x):
            x = torch.relu(self.fc1(x))
            return self.fc3(x)
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(16, 32)
            self.fc2 = nn.Linear(32, 32)
            self.fc3 = nn.Linear(32, 4)

        def forward(self, x):
            x = torch.relu(self.fc1(x))
            x = torch.relu(self.fc2(x))
            return self.fc3(x)
    ```

    ## When to ignore it
    If the layer is there for the keys of an old checkpoint, or another file calls it directly.

    ## Fix safety
    Only shown: whether to use the layer or to remove it is the author's decision.

    ## References
    PyTorch documentation, `DistributedDataParallel`, argument `find_unused_parameters`.
    """
    if not graph.complete:
        return
    modules = dict(graph.model.named_modules())
    for path, module in unused_modules(graph):
        if type(_holder(modules, path)).__module__.startswith("torch."):
            continue  # a layer of PyTorch's knows what it does with its parts
        if signal is not None and _was_trained(signal, path):
            continue  # which of the experts run depends on the numbers
        yield _finding(graph, path, module, is_named=_is_named(graph, modules, path))


def _was_trained(signal: Signal, path: str) -> bool:
    """Whether a gradient came to it in the pass with real numbers."""
    return any(
        name.startswith(f"{path}.") and gradient is not None
        for name, gradient in signal.gradients.items()
    )


def _holder(modules: dict[str, Any], path: str) -> Any:
    """The module of a class of its own that registered this one, through containers."""
    parent = modules[path.rpartition(".")[0]]
    while type(parent).__name__ in CONTAINERS and path:
        path = path.rpartition(".")[0]
        parent = modules[path.rpartition(".")[0]]
    return parent


def _is_named(graph: Graph, modules: dict[str, Any], path: str) -> bool:
    """Whether some code names the module: its attribute, or the container that it is an entry of."""
    parent, _, name = path.rpartition(".")
    while type(modules[parent]).__name__ in CONTAINERS and parent:
        used = {id(graph.operation(node).tensor) for node in graph.nodes if node.op == "get_attr"}
        if any(id(parameter) in used for parameter in modules[parent].parameters()):
            return True  # one of several experts, branches or stages
        parent, _, name = parent.rpartition(".")
    if name.isdigit():
        return True  # the model is itself a container
    owner: type = type(modules[parent])
    methods, complete = resolved_methods(owner)
    if not complete:
        return True
    if any(_names(method.tree, name, in_init=is_initializer(method.name)) for method in methods):
        return True
    return any(_elsewhere(filename, name) for filename in {method.filename for method in methods})


def _names(tree: ast.AST, name: str, *, in_init: bool) -> bool:
    """Whether a function reads the attribute, or reaches attributes by computed names.

    In what fills weights only functions kept for later count: `self.step = lambda x: self.fc(x)`.
    """
    if in_init:
        inner = [n for n in ast.walk(tree) if n is not tree and _is_function(n)]
        return any(_names(function, name, in_init=False) for function in inner)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            if node.attr == name or node.attr in WALKS:
                return True
        elif isinstance(node, ast.Constant):
            if node.value == name:
                return True
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            known = len(node.args) > 1 and isinstance(node.args[1], ast.Constant)
            if node.func.id == "getattr" and not known:
                return True
    return False


def _is_function(node: ast.AST) -> bool:
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))


def _elsewhere(filename: str, name: str) -> bool:
    """Whether code of the file outside of methods reads an attribute of that name: `gan.critic(x)`."""
    source = source_of(filename)
    if source is None or source.tree is None:
        return True
    return any(
        isinstance(node, ast.Attribute) and node.attr == name and isinstance(node.ctx, ast.Load)
        for statement in source.tree.body
        if not isinstance(statement, ast.ClassDef)
        for node in ast.walk(statement)
    )


def _finding(graph: Graph, path: str, module: Any, *, is_named: bool) -> Finding:
    count = sum(_size(parameter) for parameter in module.parameters())
    trained = [parameter for parameter in graph.parameters if parameter.name.startswith(f"{path}.")]
    share = graph.share_of_parameters(trained)
    what = f"{path} ({type(module).__name__}, {count:,} weights)"
    return Finding(
        f"{what} takes no part in this forward; other inputs or another mode may use it"
        if is_named
        else f"{what} is not used in the forward: it gets no gradient and keeps its initial values",
        where=construction_site(module) or construction_site(graph.model),
        module=path,
        evidence={"weights": count, "share_of_parameters": round(share, 4), "named": is_named},
        fixes=[
            Fix(
                f"use {path} in the forward, or remove it",
                reason="what the forward does not use gets no gradient: ∂L/∂w is not even zero",
                obstacle="whether it was meant to be used, and where, only you know",
            )
        ],
        severity=Severity.INFO if is_named else Severity.WARNING,
        confidence=Confidence.POSSIBLE if is_named else Confidence.CERTAIN,
        starved=0.0 if is_named else share,
        affects=[parameter.name for parameter in trained],
        unreached=[parameter.name for parameter in trained],
    )


def _size(parameter: Any) -> int:
    return 0 if hasattr(parameter, "materialize") else int(parameter.numel())
