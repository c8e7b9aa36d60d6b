"""ARC003 unregistered-submodule."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from trainlint.rule import (
    Confidence,
    Finding,
    Fix,
    Graph,
    HiddenWeights,
    Severity,
    SourceEdits,
    construction_site,
    hidden_weights,
    rule,
)

WRAPPERS = {"list": "ModuleList", "tuple": "ModuleList", "dict": "ModuleDict"}
PARAMETER_WRAPPERS = {"list": "ParameterList", "tuple": "ParameterList", "dict": "ParameterDict"}


@rule("ARC003", severity=Severity.ERROR, since="0.1", explains=["no-gradient"])
def unregistered_submodule(graph: Graph, edits: SourceEdits) -> Iterator[Finding]:
    """Layers in a plain list, tuple or dict take part in the forward but are never trained.

    `nn.Module.__setattr__` registers what is assigned to an attribute only if it is itself a module or
    a parameter. A Python list of layers is neither, so that `model.parameters()` leaves them out. The
    update θ ← θ - η·∂L/∂θ runs over the parameters that the optimizer was given: the forgotten layers
    get gradients, nobody uses these, and the weights keep their random initial values. Nor are they in
    `state_dict()`, so that a saved model comes back with other random layers, nor are they moved by
    `.to(device)` or switched by `.eval()`.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = [nn.Linear(16, 16) for _ in range(3)]
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
            self.layers = nn.ModuleList([nn.Linear(16, 16) for _ in range(3)])
            self.head = nn.Linear(16, 4)

        def forward(self, x):
            for layer in self.layers:
                x = torch.relu(layer(x))
            return self.head(x)
    ```

    ## When to ignore it
    A fixed network that is hidden on purpose, such as the teacher in `self.teacher = [teacher]`, is not
    reported if it is frozen, in eval mode, runs under `no_grad`, or was put past the registration through
    `__dict__`.

    ## Fix safety
    Unsafe: the layers are trained from then on, and the keys of `state_dict()` grow.

    ## References
    PyTorch documentation, `torch.nn.ModuleList` and `torch.nn.ParameterList`.
    """
    for hidden in hidden_weights(graph):
        if not _is_hidden_on_purpose(graph, hidden):
            yield _finding(graph, edits, hidden)


def _is_hidden_on_purpose(graph: Graph, hidden: HiddenWeights) -> bool:
    if not hidden.modules:
        return False
    if graph.model.training and not any(module.training for module in hidden.modules):
        return True  # nobody's `model.eval()` reaches it: someone has set it to eval
    # An assignment would have registered a module: this one was put into `__dict__` past it.
    return vars(hidden.holder).get(hidden.attribute) is hidden.modules[0]


def _finding(graph: Graph, edits: SourceEdits, hidden: HiddenWeights) -> Finding:
    count = sum(tensor.numel() for tensor in hidden.tensors)
    what, number = _what(graph, hidden)
    held = f" in the {hidden.container} self.{hidden.attribute}" if hidden.attribute else ""
    one = number == 1
    return Finding(
        f"{what}{held} {'is' if one else 'are'} not registered: {'its' if one else 'their'} {count:,} "
        "weights are missing from model.parameters(), so that no optimizer trains them and no checkpoint "
        "holds them",
        where=_place(graph, edits, hidden),
        module=hidden.path if hidden.attribute else graph.operation(hidden.node).module,
        evidence={
            "weights": count,
            "number": number,
            "attribute": hidden.attribute,
            "container": hidden.container,
        },
        fixes=[_fix(edits, hidden)],
        confidence=Confidence.CERTAIN if hidden.attribute else Confidence.LIKELY,
        affects=[hidden.node],
    )


def _what(graph: Graph, hidden: HiddenWeights) -> tuple[str, int]:
    """What is hidden, in words, and how many of it."""
    if hidden.modules:
        kinds = Counter(type(module).__name__ for module in hidden.modules)
        words = [f"{count} {kind}s" if count > 1 else kind for kind, count in kinds.items()]
        return " and ".join(words), len(hidden.modules)
    layer = graph.layer(hidden.node) if not hidden.attribute else None
    if layer is not None:
        return f"a {type(layer).__name__} used here", 1
    number = len(hidden.tensors)
    return (f"{number} parameters" if number > 1 else "a parameter"), number


def _place(graph: Graph, edits: SourceEdits, hidden: HiddenWeights) -> Any:
    """The constructor of the outermost module that is not registered, else the assignment, else the use."""
    site = construction_site(hidden.modules[0]) if hidden.modules else None
    if site is not None:
        return site
    value = _assigned(edits, hidden)
    if value is not None:
        text, node = value
        start = text.location(node.lineno, node.col_offset)
        end = text.location(node.end_lineno, node.end_col_offset)
        same_row = node.end_lineno == node.lineno
        return (
            text.filename,
            start.row,
            start.column,
            end.column if same_row else start.column + 1,
        )
    return graph.constructed(hidden.node) or graph.operation(hidden.node).site


def _fix(edits: SourceEdits, hidden: HiddenWeights) -> Fix:
    wrappers = WRAPPERS if hidden.modules else PARAMETER_WRAPPERS
    wrapper = wrappers.get(hidden.container) if _is_flat(hidden) else None
    if wrapper is None:
        return Fix("assign it to an attribute of the model in __init__, which registers it")
    title = f"self.{hidden.attribute} = nn.{wrapper}(...)"
    value = _assigned(edits, hidden)
    if value is None:
        return Fix(title)
    text, node = value
    source = ast.get_source_segment(text.text, node)
    prefix = _nn_of(text.tree)
    if source is None or prefix is None:
        return Fix(title)
    empty = isinstance(node, (ast.List, ast.Tuple)) and not node.elts
    content = f"{prefix}.{wrapper}({'' if empty else source})"
    if isinstance(node, ast.Tuple) and not source.startswith("("):
        content = f"{prefix}.{wrapper}(({source}))"
    return edits.replaced_expression(text, node, content, title=title)


def _is_flat(hidden: HiddenWeights) -> bool:
    """Whether the container holds nothing but modules, or nothing but parameters, as torch's do."""
    held = vars(hidden.holder).get(hidden.attribute) if hidden.holder is not None else None
    if isinstance(held, dict):
        return _is_flat_list(held.values()) and all(isinstance(key, str) for key in held)
    return isinstance(held, (list, tuple)) and _is_flat_list(held)


def _is_flat_list(parts: Iterable[Any]) -> bool:
    kinds = {hasattr(part, "named_parameters"): hasattr(part, "requires_grad_") for part in parts}
    return len(kinds) == 1 and all(kinds.values())


def _assigned(edits: SourceEdits, hidden: HiddenWeights) -> tuple[Any, Any] | None:
    """The text and the value in the one `self.attribute = [...]` of the holder's class."""
    for owner in type(hidden.holder).__mro__ if hidden.holder is not None else ():
        init = vars(owner).get("__init__")
        code = getattr(init, "__code__", None)
        text = None if code is None else edits.text(code.co_filename)
        if text is None or text.tree is None:
            continue
        for scope in ast.walk(text.tree):
            if isinstance(scope, ast.ClassDef) and scope.name == owner.__name__:
                found = _values_of(scope, hidden.attribute)
                if found:
                    usable = len(found) == 1 and isinstance(
                        found[0], (ast.List, ast.ListComp, ast.Tuple, ast.Dict, ast.DictComp)
                    )
                    return (text, found[0]) if usable else None
    return None


def _values_of(scope: ast.ClassDef, attribute: str) -> list[ast.expr]:
    found: list[ast.expr] = []
    for node in ast.walk(scope):
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            targets, value = [node.target], node.value
        else:
            continue
        found += [
            value
            for target in targets
            if isinstance(target, ast.Attribute)
            and isinstance(target.value, ast.Name)
            and target.value.id == "self"
            and target.attr == attribute
        ]
    return found


def _nn_of(tree: ast.Module) -> str | None:
    """How the file names `torch.nn`."""
    names: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name: alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}": alias.asname or alias.name
                      for alias in node.names}  # fmt: skip
    if "torch.nn" in names:
        return names["torch.nn"]
    return f"{names['torch']}.nn" if "torch" in names else None
