"""ARC003 unregistered-submodule."""

from __future__ import annotations

import ast
import copy
import re
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
    Site,
    SourceEdits,
    construction_site,
    hidden_weights,
    own_methods,
    rule,
)

WRAPPERS = {"list": "ModuleList", "tuple": "ModuleList", "dict": "ModuleDict"}
# Layers that shall be new in each forward: random convolutions as augmentation, random projections.
RANDOM_ON_PURPOSE = re.compile(r"rand|augment|noise|hash|sketch", re.IGNORECASE)
OPTIMIZER = re.compile(r"Adam|SGD|RMSprop|Ada|LBFGS|[Oo]ptim")
KEEPS = ("append", "add_module", "register_module", "extend", "insert", "setattr", "update")
PARAMETER_WRAPPERS = {"list": "ParameterList", "tuple": "ParameterList", "dict": "ParameterDict"}
REASON = "nn.Module registers modules and parameters that are attributes, and those of its own containers"


@rule(
    "ARC003",
    severity=Severity.ERROR,
    since="0.1",
    topics=["gradient-flow"],
    explains=["no-gradient", "random-in-eval", "dropout-always-on"],
)
def unregistered_submodule(graph: Graph, edits: SourceEdits) -> Iterator[Finding]:
    """Layers in a plain list, tuple or dict take part in the forward but are never trained.

    `nn.Module.__setattr__` registers what is assigned to an attribute only if it is itself a module or
    a parameter. A Python list of layers is neither, so that `model.parameters()` leaves them out. The
    update θ ← θ - η·∂L/∂θ runs over the parameters that the optimizer was given: the forgotten layers
    get gradients, nobody uses these, and the weights keep their random initial values. Nor are they in
    `state_dict()`, so that a saved model comes back with other random layers, nor are they moved by
    `.to(device)` or switched by `.eval()`.

    The same befalls a plain tensor with `requires_grad=True`, which is no `nn.Parameter`, and a layer
    that the forward itself constructs, `fc = nn.Linear(x.shape[1], 10)`: that one even draws new random
    weights for every batch, so that two passes over one input differ. If the forward keeps it, as
    `self.fc = nn.Linear(...)` in the first call does, the optimizer must be made after that call; that is
    advice.

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
    `__dict__`. Nor are plain tensors reported that the file hands to an optimizer or updates by
    their `.grad` itself, nor fixed ones without `requires_grad`.

    ## Fix safety
    Unsafe: the layers are trained from then on, and the keys of `state_dict()` grow.

    ## References
    PyTorch documentation, `torch.nn.ModuleList` and `torch.nn.ParameterList`.
    """
    for hidden in hidden_weights(graph):
        if hidden.made_at is not None:
            yield from _made_in_forward(graph, edits, hidden)
        elif not _is_hidden_on_purpose(graph, edits, hidden):
            yield _finding(graph, edits, hidden)


def _is_hidden_on_purpose(graph: Graph, edits: SourceEdits, hidden: HiddenWeights) -> bool:
    if hidden.is_plain:
        return _is_updated_by_hand(graph, edits, hidden)
    if not hidden.modules:
        return False
    if graph.model.training and not any(module.training for module in hidden.modules):
        return True  # nobody's `model.eval()` reaches it: someone has set it to eval
    # An assignment would have registered a module: this one was put into `__dict__` past it.
    return vars(hidden.holder).get(hidden.attribute) is hidden.modules[0]


def _is_updated_by_hand(graph: Graph, edits: SourceEdits, hidden: HiddenWeights) -> bool:
    """Whether code lists the tensor or reads its `.grad`: `Adam([net.w1, net.b1])`, `net.w1.grad`."""
    files = {
        method.filename
        for owner in type(hidden.holder).__mro__
        if owner.__module__ != "torch.nn.modules.module"
        for method in own_methods(owner)
        if method is not None
    }
    site = construction_site(graph.model)
    if site is not None:
        files.add(site.project.filename)
    for filename in files:
        text = edits.text(filename)
        if text is None or text.tree is None:
            return True  # what is done with it cannot be seen
        if any(
            _lists_or_updates(node, hidden.attribute) for node in _outside_of_forward(text.tree)
        ):
            return True
    return not files


def _outside_of_forward(tree: ast.AST) -> Iterator[ast.AST]:
    yield tree
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.FunctionDef) and child.name == "forward"):
            yield from _outside_of_forward(child)


def _lists_or_updates(node: ast.AST, attribute: str) -> bool:
    parts: Iterable[ast.AST | None] = ()
    if isinstance(node, (ast.List, ast.Tuple, ast.Set, ast.Yield)):
        parts = [node.value] if isinstance(node, ast.Yield) else node.elts
    elif isinstance(node, ast.Attribute) and node.attr in ("grad", "data"):
        parts = [node.value]
    elif isinstance(node, ast.AugAssign):
        parts = [node.target]
    elif isinstance(node, ast.Call) and OPTIMIZER.search(ast.unparse(node.func)):
        parts = [part for given in node.args for part in ast.walk(given)]
    return any(isinstance(part, ast.Attribute) and part.attr == attribute for part in parts)


# ---------------------------------------------------------------------- made by the forward


def _made_in_forward(graph: Graph, edits: SourceEdits, hidden: HiddenWeights) -> Iterator[Finding]:
    """A layer that the forward constructs: new random weights for each batch."""
    assert hidden.made_at is not None
    maker = graph.operation(hidden.made_at)
    site, [layer] = maker.site, hidden.modules
    if RANDOM_ON_PURPOSE.search(f"{type(maker.owner).__name__} {maker.module}"):
        return
    count = sum(tensor.numel() for tensor in hidden.tensors)
    kind, name = type(layer).__name__, _name_in_forward(edits, site)
    is_kept = _is_kept(edits, site)
    what = (
        f"this {kind} is made in the first forward: an optimizer that was made before does not have its "
        f"{count:,} weights"
        if is_kept
        else f"this {kind} is made anew in each forward: its {count:,} weights are random for every batch "
        "and missing from model.parameters(), so that they are never trained"
    )
    made = _constructor(edits, site, layer)
    proviso = "" if graph.inputs_given else ", with the sizes of your inputs"
    yield Finding(
        what,
        where=site,
        module=maker.module,
        evidence={"weights": count, "number": 1, "attribute": "", "container": "", "kept": is_kept},
        fixes=[
            Fix(
                f"make it once, in __init__: `self.{name} = {made}`{proviso}; here call `self.{name}`",
                reason="a layer keeps what it learns only where the model has it as an attribute",
                obstacle="constructor and forward change together, and the sizes may depend on the input",
            )
        ],
        severity=Severity.INFO if is_kept else Severity.ERROR,
        affects=[hidden.node, *_makers(graph, hidden.node)],
    )


def _constructor(edits: SourceEdits, site: Site | None, layer: Any) -> str:
    """The source that makes the layer, with numbers in place of what only the forward knows."""
    _, statement = _statement_at(edits, site)
    value = statement.value if isinstance(statement, ast.Assign) else None
    if value is not None:
        names = {part.id for part in ast.walk(value) if isinstance(part, ast.Name)}
        if names <= {"nn", "torch"}:
            return ast.unparse(value)
    sizes = re.sub(r", bias=True$", "", layer.extra_repr())
    return f"nn.{type(layer).__name__}({sizes or '...'})"


def _makers(graph: Graph, node: Any) -> Iterator[Any]:
    """The operations that made and filled the layer's weights."""
    for source in node.all_input_nodes:
        if source.op == "call_function" and graph.is_constant(source):
            yield source
            yield from (user for user in source.users if graph.operation(user).in_place)
            yield from (maker for maker in source.all_input_nodes if graph.is_constant(maker))


def _statement_at(edits: SourceEdits, site: Site | None) -> tuple[Any, ast.stmt | None]:
    text = None if site is None else edits.text(site.filename)
    call = None if text is None or site is None else text.call_at(site)
    return text, None if text is None or call is None else text.statement_of(call)


def _name_in_forward(edits: SourceEdits, site: Site | None) -> str:
    """What the forward calls it."""
    _, statement = _statement_at(edits, site)
    target = statement.targets[0] if isinstance(statement, ast.Assign) else None
    if isinstance(target, ast.Attribute):
        return target.attr
    return target.id if isinstance(target, ast.Name) else "layer"


def _is_kept(edits: SourceEdits, site: Site | None) -> bool:
    """Whether the function around may keep the layer: in an attribute, a container, or by returning it."""
    text, statement = _statement_at(edits, site)
    if text is None or statement is None or _keeps(statement, None):
        return True
    around = [
        node
        for node in ast.walk(text.tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and any(part is statement for part in ast.walk(node))
    ]
    name = _name_in_forward(edits, site)
    return not around or any(_keeps(node, name) for node in ast.walk(around[-1]))


def _keeps(node: ast.AST, name: str | None) -> bool:
    """Whether this keeps what goes by the name, or, without one, whatever stands in it."""
    values: list[ast.expr | None] = []
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        callee = node.value.func
        called = callee.attr if isinstance(callee, ast.Attribute) else getattr(callee, "id", "")
        values = [*node.value.args] if called in KEEPS else []
    elif isinstance(node, ast.Return):
        is_applied = isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Call)
        values = [] if is_applied else [node.value]
    elif isinstance(node, ast.Assign) and isinstance(
        node.targets[0], (ast.Attribute, ast.Subscript)
    ):
        values = [node.value]
    if name is None:
        return bool(values)
    return any(isinstance(value, ast.Name) and value.id == name for value in values)


# ---------------------------------------------------------------------- what is said


def _finding(graph: Graph, edits: SourceEdits, hidden: HiddenWeights) -> Finding:
    count = sum(tensor.numel() for tensor in hidden.tensors)
    what, number = _what(graph, hidden)
    held = f" in the {hidden.container} self.{hidden.attribute}" if hidden.attribute else ""
    if hidden.container in ("Tensor", "Parameter"):
        held = ""
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
        affects=[hidden.node, *_calls_within(graph, hidden)],
    )


def _calls_within(graph: Graph, hidden: HiddenWeights) -> Iterator[Any]:
    """What the hidden layers compute, those without weights as well: no mode reaches them either."""
    inner = {id(layer) for module in hidden.modules for layer in module.modules()}
    return (node for node in graph.calls_in_order if id(graph.operation(node).owner) in inner)


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
    if hidden.is_plain and hidden.container == "Tensor":
        return f"self.{hidden.attribute}, a plain tensor with requires_grad,", 1
    return (f"{number} parameters" if number > 1 else "a parameter"), number


def _place(graph: Graph, edits: SourceEdits, hidden: HiddenWeights) -> Any:
    """The constructor of the outermost module that is not registered, else the assignment, else the use."""
    site = construction_site(hidden.modules[0]) if hidden.modules else None
    if site is not None:
        return site
    value = _assigned(edits, hidden, any_value=hidden.is_plain)
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
    if hidden.is_plain and hidden.container == "Tensor":
        return _as_parameter(edits, hidden)
    if wrapper is None:
        return Fix(
            "assign it to an attribute of the model in __init__, which registers it",
            reason=REASON,
            obstacle="what holds it holds other things as well, or lies outside of the model",
        )
    title = f"self.{hidden.attribute} = nn.{wrapper}(...)"
    value = _assigned(edits, hidden)
    if value is None:
        obstacle = f"self.{hidden.attribute} is not made by one list that is written there"
        return Fix(title, reason=REASON, obstacle=obstacle)
    text, node = value
    source = ast.get_source_segment(text.text, node)
    prefix = _nn_of(text.tree)
    if source is None or prefix is None:
        return Fix(title, reason=REASON, obstacle="the file does not import torch.nn")
    empty = isinstance(node, (ast.List, ast.Tuple)) and not node.elts
    content = f"{prefix}.{wrapper}({'' if empty else source})"
    if isinstance(node, ast.Tuple) and not source.startswith("("):
        content = f"{prefix}.{wrapper}(({source}))"
    return edits.replaced_expression(text, node, content, title=title, reason=REASON)


def _as_parameter(edits: SourceEdits, hidden: HiddenWeights) -> Fix:
    """`nn.Parameter(...)` around the value, which then needs no `requires_grad` of its own."""
    title = f"self.{hidden.attribute} = nn.Parameter(...)"
    value = _assigned(edits, hidden, any_value=True)
    if value is None:
        obstacle = f"self.{hidden.attribute} is assigned in several places"
        return Fix(title, reason=REASON, obstacle=obstacle)
    text, node = value
    prefix = _nn_of(text.tree)
    flags = [
        part
        for part in ast.walk(node)
        if isinstance(part, ast.Call) and any(word.arg == "requires_grad" for word in part.keywords)
    ]
    if prefix is None or len(flags) != 1:
        obstacle = "requires_grad is not set by one call there"
        return Fix(title, reason=REASON, obstacle=obstacle)
    plain = copy.deepcopy(node)
    for part in ast.walk(plain):
        if isinstance(part, ast.Call):
            part.keywords = [word for word in part.keywords if word.arg != "requires_grad"]
    content = f"{prefix}.Parameter({ast.unparse(plain)})"
    title = f"self.{hidden.attribute} = {content}"
    return edits.replaced_expression(text, node, content, title=title, reason=REASON)


def _is_flat(hidden: HiddenWeights) -> bool:
    """Whether the container holds nothing but modules, or nothing but parameters, as torch's do."""
    held = vars(hidden.holder).get(hidden.attribute) if hidden.holder is not None else None
    if isinstance(held, dict):
        return _is_flat_list(held.values()) and all(isinstance(key, str) for key in held)
    return isinstance(held, (list, tuple)) and _is_flat_list(held)


def _is_flat_list(parts: Iterable[Any]) -> bool:
    kinds = {hasattr(part, "named_parameters"): hasattr(part, "requires_grad_") for part in parts}
    return len(kinds) == 1 and all(kinds.values())


def _assigned(
    edits: SourceEdits, hidden: HiddenWeights, *, any_value: bool = False
) -> tuple[Any, Any] | None:
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
                    usable = len(found) == 1 and (
                        any_value
                        or isinstance(
                            found[0], (ast.List, ast.ListComp, ast.Tuple, ast.Dict, ast.DictComp)
                        )
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
