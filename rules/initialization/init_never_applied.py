"""INI006 init-never-applied."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainlint.rule import (
    Confidence,
    Finding,
    Fix,
    Graph,
    Method,
    Severity,
    SourceEdits,
    own_methods,
    rule,
    source_of,
)

NAME = re.compile(
    r"_*((re)?(init|initiali[sz]e|reset)_*(all_*)?(the_*)?(weights?|params|parameters)(_*init)?"
    r"|(weights?|params|parameters)_*init|xavier_init|kaiming_init|init_layers?)_*",
    re.IGNORECASE,
)
FILLS = re.compile(
    r"\binit\.\w+_\(|\.(normal_|uniform_|fill_|zero_|copy_|constant_)\(|\b(xavier|kaiming|orthogonal|"
    r"trunc_normal)_\w*\(|\.data\s*="
)
# Of these a weight is drawn, as a normalisation's γ is not.
RANDOM = re.compile(
    r"\b(xavier|kaiming|orthogonal|trunc_normal|normal|uniform)_\w*\(|\.(normal|uniform)_\("
)
LARGEST_NEIGHBOURHOOD = 400


@rule("INI006", severity=Severity.WARNING, since="0.1")
def init_never_applied(graph: Graph, edits: SourceEdits) -> Iterator[Finding]:
    """An initialisation was written, but it never runs or matches no layer.

    PyTorch calls no method of a user's module by name: `_initialize_weights` takes effect only if
    `__init__` calls it, `init_weights(m)` only through `self.apply(...)`. Otherwise the layers keep
    the default of `reset_parameters`, U(-1/√n, 1/√n) for fan-in n. Its variance 1/(3n) is a sixth of He's
    2/n: with ReLU behind, the signal's RMS shrinks by 1/√6 = 0.41 a layer, 10 layers keep 10⁻⁴ of it.
    The same holds for `.apply(f)` where each `isinstance` test of f names a kind of layer that the
    model does not have. Nothing fails; the network only starts elsewhere than its author thinks.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(64, 128)
            self.fc2 = nn.Linear(128, 10)

        def _initialize_weights(self):
            for m in self.modules():
                if isinstance(m, nn.Linear):
                    nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
                    nn.init.zeros_(m.bias)

        def forward(self, x):
            return self.fc2(F.relu(self.fc1(x)))
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(64, 128)
            self.fc2 = nn.Linear(128, 10)
            self._initialize_weights()

        def _initialize_weights(self):
            for m in self.modules():
                if isinstance(m, nn.Linear):
                    nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
                    nn.init.zeros_(m.bias)

        def forward(self, x):
            return self.fc2(F.relu(self.fc1(x)))
    ```

    ## When to ignore it
    If another program calls the method. Calls in the same file, in files beside it that import it,
    and by a base class are seen, as are methods that have filled a weight of this model.

    ## Fix safety
    Unsafe: training starts from other weights.

    ## References
    He et al. 2015, arXiv:1502.01852, section 2.2. PyTorch documentation, `torch.nn.Module.apply`.
    """
    seen: set[Any] = set()
    for owner in dict.fromkeys(base for m in graph.model.modules() for base in type(m).__mro__):
        for method in own_methods(owner, within=lambda name: edits.text(name) is not None):
            if method is None:
                continue
            place = (method.filename, method.tree.lineno)
            if place not in seen:
                seen.add(place)
                yield from _judged(graph, edits, method)


def _judged(graph: Graph, edits: SourceEdits, method: Method) -> Iterator[Finding]:
    for call in ast.walk(method.tree):
        if isinstance(call, ast.Call) and _is_self_apply(call):
            yield from _matching_nothing(graph, edits, method, call)
    if not NAME.fullmatch(method.name) or not _fills(edits, method):
        return
    takes_module = _takes_one_module(method)
    if takes_module is None or _has_run(graph, method) or _is_called(edits, method):
        return
    yield _never_called(graph, edits, method, takes_module=takes_module)


# ---------------------------------------------------------------------- whether it runs


def _fills(edits: SourceEdits, method: Method) -> bool:
    """Whether it sets values itself, and does not only ask its parts to reset themselves."""
    text = edits.text(method.filename)
    source = ast.get_source_segment(text.text, method.tree) if text is not None else None
    return source is not None and FILLS.search(source) is not None


def _takes_one_module(method: Method) -> bool | None:
    """False for `f(self)`, True for `f(self, module)`, None where it must be given something else."""
    arguments = method.tree.args
    positional = [*arguments.posonlyargs, *arguments.args]
    if any(isinstance(line, ast.Name) and line.id == "staticmethod"
           for line in method.tree.decorator_list):  # fmt: skip
        positional = [ast.arg("self"), *positional]
    required = len(positional) - 1 - len(arguments.defaults)
    if any(default is None for default in arguments.kw_defaults) or required > 1:
        return None
    if required <= 0:
        return False
    name = positional[1].arg
    return True if name in ("m", "module", "layer", "mod", "net", "model", "submodule") else None


def _has_run(graph: Graph, method: Method) -> bool:
    """Whether a weight of the model was last filled from within the method."""
    last = method.tree.end_lineno or method.tree.lineno
    for parameter in graph.parameters:
        filled = parameter.initialization
        if (
            filled is not None
            and filled[1].filename == method.filename
            and method.tree.lineno <= filled[1].row <= last
        ):
            return True
    return False


def _is_called(edits: SourceEdits, method: Method) -> bool:
    """Whether its file, a base class, or a file beside it that imports it mentions the name."""
    text = edits.text(method.filename)
    if text is None or text.tree is None or _mentions(text.tree, method.name):
        return True
    for base in method.owner.__mro__[1:]:
        if base.__module__ in ("builtins", "torch.nn.modules.module"):
            continue
        code = next((m for m in own_methods(base) if m is not None), None)
        source = source_of(code.filename) if code is not None else None
        if source is None:
            if any(callable(value) for value in vars(base).values()):
                return True  # a library that cannot be read
        elif (
            source.tree is None
            or _mentions(source.tree, method.name)
            or any(
                isinstance(node, ast.FunctionDef) and node.name == method.name
                for node in ast.walk(source.tree)
            )
        ):
            return True
    return any(_mentions(tree, method.name) for tree in _importers(method.filename))


def _mentions(tree: ast.AST, name: str) -> bool:
    """Whether the name is read anywhere: called, handed over, or looked up as a string."""
    return any(
        (isinstance(node, ast.Attribute) and node.attr == name)
        or (isinstance(node, ast.Name) and node.id == name)
        or (isinstance(node, ast.Constant) and node.value == name)
        for node in ast.walk(tree)
    )


def _importers(filename: str) -> Iterator[ast.Module]:
    """The files of the same folder and the folders around it that import this one."""
    path = Path(filename)
    stem = re.escape(path.stem if path.stem != "__init__" else path.parent.name)
    imports = re.compile(rf"^\s*(from|import)\s[^\n]*\b{stem}\b", re.MULTILINE)
    count = 0
    for folder in (path.parent, path.parent.parent):
        for other in sorted(folder.glob("*.py")):
            count += 1
            if count > LARGEST_NEIGHBOURHOOD:
                return
            source = source_of(str(other)) if other != path else None
            if source is not None and imports.search(source.text) and source.tree is not None:
                yield source.tree


def _never_called(
    graph: Graph, edits: SourceEdits, method: Method, *, takes_module: bool
) -> Finding:
    call = f"self.apply(self.{method.name})" if takes_module else f"self.{method.name}()"
    owner = method.owner.__name__
    module = next((n for n, m in graph.model.named_modules() if isinstance(m, method.owner)), "")
    return Finding(
        f"{owner}.{method.name} is never called: {owner} keeps PyTorch's default initialisation",
        where=_name_of(edits, method),
        module=module,
        evidence={"method": method.name, "class": owner},
        fixes=[_added_to_init(edits, method, call)],
        confidence=Confidence.LIKELY,
    )


def _name_of(edits: SourceEdits, method: Method) -> Any:
    """The `def` line up to the name."""
    text = edits.text(method.filename)
    assert text is not None
    start = text.location(method.tree.lineno, method.tree.col_offset)
    words = 10 if isinstance(method.tree, ast.AsyncFunctionDef) else 4
    return (text.filename, start.row, start.column, start.column + words + len(method.name))


def _added_to_init(edits: SourceEdits, method: Method, call: str) -> Fix:
    """The call as the last line of the class's own `__init__`."""
    title = f"call {call} at the end of __init__"
    reason = "torch calls no method of a module by name but reset_parameters of its own layers"
    text = edits.text(method.filename)
    init = next(
        (m for m in own_methods(method.owner) if m is not None and m.name == "__init__"), None
    )
    if text is None or text.tree is None or init is None or init.filename != method.filename:
        return Fix(title, reason=reason, obstacle=f"{method.owner.__name__} has no __init__ there")
    last = init.tree.body[-1]
    if isinstance(last, (ast.Return, ast.Raise)):
        return Fix(title, reason=reason, obstacle="__init__ does not end at its last line")
    # `edits` has a tree of its own.
    own = next(
        node
        for node in ast.walk(text.tree)
        if type(node) is type(last)
        and (node.lineno, node.col_offset) == (last.lineno, last.col_offset)
    )
    assert isinstance(own, ast.stmt)
    return edits.beside(text, own, after=call, title=title, reason=reason)


# ---------------------------------------------------------------------- whether it matches


def _is_self_apply(call: ast.Call) -> bool:
    """`self.apply(f)` or `self.apply(self.f)`."""
    return (
        isinstance(call.func, ast.Attribute)
        and call.func.attr == "apply"
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == "self"
        and len(call.args) == 1
        and isinstance(call.args[0], (ast.Name, ast.Attribute))
    )


def _matching_nothing(
    graph: Graph, edits: SourceEdits, method: Method, call: ast.Call
) -> Iterator[Finding]:
    text = edits.text(method.filename)
    function = _function_given(text, method, call.args[0]) if text is not None else None
    wanted = None if function is None else _tested_classes(function)
    if text is None or function is None or not wanted:
        return
    owners = [m for m in graph.model.modules() if isinstance(m, method.owner)]
    there = {base.__name__ for m in owners for part in m.modules() for base in type(part).__mro__}
    if any(_fits(test, there) for test in wanted):
        return
    start = text.location(call.lineno, call.col_offset)
    end = text.location(call.end_lineno or call.lineno, call.end_col_offset or call.col_offset)
    names = sorted({name for _, name in wanted})
    yield Finding(
        f"{function.name} only looks for {' and '.join(names)}, and {method.owner.__name__} has none: "
        "no layer is initialised by it",
        where=(text.filename, start.row, start.column, end.column),
        module=next((n for n, m in graph.model.named_modules() if m is owners[0]), ""),
        evidence={"function": function.name, "tests": names},
        fixes=[_tested_for(text, edits, function, owners[0])],
        confidence=Confidence.LIKELY,
    )


def _tested_for(text: Any, edits: SourceEdits, function: ast.FunctionDef, owner: Any) -> Fix:
    """The test of the branch that fills weights, for the one kind of layer that has any to fill."""
    kinds = _weighted_kinds(owner)
    title = f"test for the layers that there are: {', '.join(kinds)}"
    reason = f"{function.name} is given each module, and leaves alone what no test names"
    matrices = {
        type(part).__name__
        for part in owner.modules()
        if any(p.dim() > 1 for p in part.parameters(recurse=False))
    }
    tests = [
        node.test
        for node in ast.walk(text.tree)
        if isinstance(node, ast.If)
        and function.lineno <= node.lineno <= (function.end_lineno or 0)
        and "Norm" not in ast.unparse(node.test)
        and any(RANDOM.search(ast.unparse(line)) for line in node.body)
    ]
    if len(tests) != 1 or len(matrices) != 1:
        obstacle = "which values its layers shall start from is not said"
        return Fix(title, reason=reason, obstacle=obstacle)
    (test,), (kind,) = tests, matrices
    if isinstance(test, ast.Compare) and isinstance(test.left, ast.Call) and test.left.args:
        return edits.replaced_expression(
            text, test.left.args[0], f'"{kind}"', title=title, reason=reason
        )
    if isinstance(test, ast.Call) and len(test.args) == 2:
        tested = test.args[1]
        first = tested.elts[0] if isinstance(tested, ast.Tuple) and tested.elts else tested
        if isinstance(first, ast.Attribute):
            prefix = ast.unparse(first.value)
            parts = tested.elts if isinstance(tested, ast.Tuple) else [tested]
            listed = ", ".join([*map(ast.unparse, parts), f"{prefix}.{kind}"])
            return edits.replaced_expression(
                text, tested, f"({listed})", title=title, reason=reason
            )
    return Fix(title, reason=reason, obstacle="the test is spelled in another way")


def _fits(test: tuple[str, str], there: set[str]) -> bool:
    kind, name = test
    return any(name in other for other in there) if kind == "part" else name in there


def _weighted_kinds(module: Any) -> list[str]:
    kinds = {
        type(part).__name__ for part in module.modules() if list(part.parameters(recurse=False))
    }
    return sorted(kinds)[:4]


def _function_given(text: Any, method: Method, given: ast.expr) -> ast.FunctionDef | None:
    """The one function of that name: a method of the class, or one of the module."""
    name = given.attr if isinstance(given, ast.Attribute) else getattr(given, "id", "")
    if isinstance(given, ast.Attribute):
        if not (isinstance(given.value, ast.Name) and given.value.id == "self"):
            return None
        found = [m.tree for m in own_methods(method.owner) if m is not None and m.name == name]
    else:
        found = [
            n for n in ast.walk(text.tree) if isinstance(n, ast.FunctionDef) and n.name == name
        ]
    only = found[0] if len(found) == 1 else None
    return only if isinstance(only, ast.FunctionDef) else None


def _tested_classes(function: ast.FunctionDef) -> list[tuple[str, str]] | None:
    """(`class` or `part` of a name, name) of all tests; None where it does anything outside of them."""
    tests: list[tuple[str, str]] = []
    names: set[str] = set()
    for statement in function.body:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue
        if isinstance(statement, ast.Assign) and "__name__" in ast.unparse(statement.value):
            names |= {t.id for t in statement.targets if isinstance(t, ast.Name)}
            continue
        branch: Any = statement
        while isinstance(branch, ast.If):
            found = _tests_of(branch.test, names)
            if not found:
                return None
            tests += found
            if not branch.orelse:
                break
            branch = branch.orelse[0] if len(branch.orelse) == 1 else None
        else:
            return None
    return tests


def _tests_of(test: ast.expr, names: set[str]) -> list[tuple[str, str]]:
    """What a condition asks of the module's class; empty where that cannot be told."""
    if isinstance(test, ast.BoolOp):
        parts = [_tests_of(value, names) for value in test.values]
        if isinstance(test.op, ast.And):
            return next((part for part in parts if part), [])
        return [item for part in parts for item in part] if all(parts) else []
    if isinstance(test, ast.Call) and isinstance(test.func, ast.Name) and len(test.args) == 2:
        return _classes(test.args[1]) if test.func.id == "isinstance" else []
    if not isinstance(test, ast.Compare) or len(test.ops) != 1:
        return []
    left, right = test.left, test.comparators[0]
    if isinstance(left, ast.Call) and isinstance(left.func, ast.Name) and left.func.id == "type":
        return _classes(right) if isinstance(test.ops[0], (ast.Eq, ast.Is, ast.In)) else []
    return _name_test(left, right, test.ops[0], names)


def _name_test(
    left: ast.expr, right: ast.expr, operator: ast.cmpop, names: set[str]
) -> list[tuple[str, str]]:
    """`classname.find("Conv") != -1` and `"Conv" in classname`."""
    if (
        isinstance(operator, ast.NotEq)
        and isinstance(left, ast.Call)
        and isinstance(left.func, ast.Attribute)
        and left.func.attr == "find"
        and isinstance(left.func.value, ast.Name)
        and left.func.value.id in names
        and left.args
        and isinstance(left.args[0], ast.Constant)
    ):
        return [("part", str(left.args[0].value))]
    is_in = isinstance(operator, ast.In) and isinstance(left, ast.Constant)
    if is_in and isinstance(right, ast.Name) and right.id in names:
        return [("part", str(getattr(left, "value", "")))]
    return []


def _classes(node: ast.expr) -> list[tuple[str, str]]:
    parts = node.elts if isinstance(node, (ast.Tuple, ast.List, ast.Set)) else [node]
    found: list[tuple[str, str]] = []
    for part in parts:
        if isinstance(part, ast.Attribute):
            found.append(("class", part.attr))
        elif isinstance(part, ast.Name) and part.id[:1].isupper() and not part.id.isupper():
            found.append(("class", part.id))
        else:
            return []
    return found
