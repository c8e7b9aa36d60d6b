"""Edits of layers and operations: take one out, name it, initialise it, put another behind it."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any, Final

from trainlint.fixes.arguments import Wanted, argument_of, is_pure
from trainlint.fixes.changes import (
    Change,
    Refused,
    Rewrite,
    checked,
    expression,
    unwrapped,
    wrapped,
)
from trainlint.fixes.spelling import identity
from trainlint.fixes.statements import block_of, deleted, inserted
from trainlint.fixes.text import SourceText, significant

# Methods that give back the module that they are called on.
_RETURN_SELF: Final = frozenset(
    "to cuda cpu double float half bfloat16 train eval requires_grad_ apply".split()
)
_LIST_METHODS: Final = frozenset("remove sort clear index copy count reverse pop".split())


def is_self_attribute(node: ast.AST) -> bool:
    """Whether this is `self.name`."""
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    )


def is_layer(text: SourceText, call: ast.Call) -> bool:
    """Whether a call constructs one of torch's layers, as far as its name tells."""
    meaning = text.names.meaning(call.func) or ""
    return meaning.startswith("torch.nn.") and meaning.rpartition(".")[2][:1].isupper()


# ---------------------------------------------------------------------- taking out


def removed(text: SourceText, call: ast.Call) -> Change:
    """Without an operation or a layer. Raises `Refused`."""
    checked(text, call)
    parent = text.parents[call]
    if not is_layer(text, call):
        return _without_operation(text, call)
    if isinstance(parent, ast.Call) and parent.func is call:  # `nn.Softmax(1)(x)`
        if len(parent.args) != 1 or parent.keywords:
            raise Refused("the layer is given more than one argument")
        return _without_operation(text, parent)
    try:
        return _without_last(text, call)
    except Refused:
        return identity(text, call)


def operand_of(text: SourceText, call: ast.Call) -> ast.expr:
    """What an operation is applied to. Raises `Refused`."""
    callee = call.func
    if isinstance(callee, ast.Attribute) and text.names.meaning(callee) is None:
        is_own = isinstance(callee.value, ast.Name) and callee.value.id in ("self", "cls")
        first = call.args[0] if call.args else None
        takes_numbers = first is None or isinstance(first, (ast.Constant, ast.UnaryOp, ast.Starred))
        if not is_own and _is_tensor_method(callee.attr):
            if takes_numbers:
                return callee.value
            raise Refused(f"`{text.source(callee)}` may be a method or a layer")
    for keyword in call.keywords:
        if keyword.arg == "input":
            return keyword.value
    if not call.args:
        raise Refused("it is given no argument by position")
    return call.args[0]


def _is_tensor_method(name: str) -> bool:
    from torch import Tensor

    return hasattr(Tensor, name)


def _without_operation(text: SourceText, call: ast.Call) -> Change:
    statement = text.parents[call]
    if isinstance(statement, ast.Expr):
        return deleted(text, statement)
    return unwrapped(text, call, operand_of(text, call))


def _without_last(text: SourceText, call: ast.Call) -> Change:
    """Without the last element of a `Sequential`: the keys of the others stay."""
    element: ast.expr = call
    parent = text.parents[call]
    if isinstance(parent, ast.Tuple):  # `("name", nn.Softmax(1))` in an OrderedDict
        element, parent = parent, text.parents[parent]
    if isinstance(parent, ast.Call) and element in parent.args:
        elements, container = parent.args, parent
        if text.names.meaning(parent.func) != "torch.nn.Sequential" or parent.keywords:
            raise Refused("it stands in no Sequential")
        field = "args"
    elif isinstance(parent, ast.List) and _fills_sequential(text, parent):
        elements, container, field = parent.elts, parent, "elts"  # type: ignore[assignment]
    else:
        raise Refused("it stands in no Sequential")
    if len(elements) < 2 or elements[-1] is not element:
        raise Refused("it is not the last element")
    if any(isinstance(part, ast.Starred) for part in elements):
        raise Refused("the elements are given with a `*`")
    start = text.span(elements[-2])[1]
    own, end = text.span(element)
    for offset, character in significant(text.text, start, own):
        if character == ")":
            start = offset + 1
    for offset, character in significant(text.text, end, text.span(container)[1] - 1):
        if character == ")":
            end = offset + 1
    if text.comments(start, end):
        raise Refused("a comment stands in the text to be removed")

    def make(outer: Any) -> Any:
        setattr(outer, field, getattr(outer, field)[:-1])
        return outer

    change = Change(text, ((start, end, ""),), (Rewrite(container, "without the last", make),))
    if not change.agrees():
        raise Refused("the text there does not allow it")
    return change


def _fills_sequential(text: SourceText, node: ast.List) -> bool:
    """Whether a list is that of `Sequential(*[...])` or `Sequential(OrderedDict([...]))`."""
    outer = text.parents[node]
    if isinstance(outer, ast.Starred):
        outer = text.parents[outer]
    elif isinstance(outer, ast.Call) and isinstance(outer.func, (ast.Name, ast.Attribute)):
        if (text.names.meaning(outer.func) or "").rpartition(".")[2] != "OrderedDict":
            return False
        outer = text.parents[outer]
    return isinstance(outer, ast.Call) and text.names.meaning(outer.func) == "torch.nn.Sequential"


# ---------------------------------------------------------------------- the name of a layer


def target_of(text: SourceText, call: ast.expr) -> tuple[str, ast.stmt]:
    """`self.layers[1]` for what is constructed by a call, and the statement that does. Raises `Refused`."""
    path = ""
    node: ast.AST = call
    while True:
        step, node_out = _step(text, node)
        if node_out is None:
            break
        path, node = step + path, node_out
    parent = text.parents[node]
    if isinstance(parent, ast.Expr) and isinstance(node, ast.Call):
        name = _kept_by_call(node, call)
        if name is not None:
            return name + path, parent
    if isinstance(parent, ast.Call) and isinstance(text.parents[parent], ast.Expr):
        name = _kept_by_call(parent, node)
        statement = text.statement_of(parent)
        if name is not None and statement is not None:
            return name + path, statement
    target: ast.expr | None = None
    if isinstance(parent, ast.Assign) and len(parent.targets) == 1:
        target = parent.targets[0]
    elif isinstance(parent, ast.AnnAssign):
        target = parent.target
    elif isinstance(parent, ast.Tuple) and isinstance(text.parents[parent], ast.Assign):
        assign = text.parents[parent]
        assert isinstance(assign, ast.Assign)
        names = assign.targets[0]
        if isinstance(names, ast.Tuple) and len(names.elts) == len(parent.elts):
            target = names.elts[parent.elts.index(node)]  # type: ignore[arg-type]
            parent = assign
    if isinstance(target, ast.Name) or (target is not None and is_self_attribute(target)):
        assert isinstance(parent, ast.stmt)
        return text.source(target) + path, parent
    raise Refused("the layer gets no name where it is made")


def _step(text: SourceText, node: ast.AST) -> tuple[str, ast.AST | None]:
    """One container further out: `[1]` and the Sequential, or nothing."""
    parent = text.parents[node]
    if isinstance(parent, ast.Attribute) and parent.attr in _RETURN_SELF:
        outer = text.parents[parent]
        return ("", outer) if isinstance(outer, ast.Call) and outer.func is parent else ("", None)
    if not isinstance(node, ast.expr):
        return "", None
    if isinstance(parent, ast.Call) and node in parent.args:
        plain = not any(isinstance(arg, ast.Starred) for arg in parent.args)
        if plain and _makes(text, parent, "Sequential"):
            return f"[{parent.args.index(node)}]", parent
    if isinstance(parent, ast.List) and not any(isinstance(e, ast.Starred) for e in parent.elts):
        outer = text.parents[parent]
        index = f"[{parent.elts.index(node)}]"
        if isinstance(outer, ast.Starred):
            outer = text.parents[outer]
            if isinstance(outer, ast.Call) and len(outer.args) == 1:
                return (index, outer) if _makes(text, outer, "Sequential") else ("", None)
        if _makes(text, outer, "ModuleList"):
            return index, outer
    if isinstance(parent, ast.Tuple) and len(parent.elts) == 2 and parent.elts[1] is node:
        elements = text.parents[parent]
        if isinstance(elements, ast.List) and _fills_sequential(text, elements):
            ordered = text.parents[elements]
            return f"[{elements.elts.index(parent)}]", text.parents[ordered]
    if isinstance(parent, ast.Dict) and node in parent.values:
        key = parent.keys[parent.values.index(node)]
        outer = text.parents[parent]
        if isinstance(key, ast.Constant) and _makes(text, outer, "ModuleDict"):
            return f"[{text.source(key)}]", outer
    return "", None


def _makes(text: SourceText, node: ast.AST, *layers: str) -> bool:
    """Whether a node is a call of `torch.nn.Sequential`, or of whichever layers are named."""
    names = [f"torch.nn.{layer}" for layer in layers]
    return isinstance(node, ast.Call) and text.names.meaning(node.func) in names


def _kept_by_call(outer: ast.Call, node: ast.AST) -> str | None:
    """`layers[-1]` behind `layers.append(node)`, `self.fc` behind `self.add_module("fc", node)`."""
    callee = outer.func
    if not isinstance(callee, ast.Attribute) or node not in outer.args:
        return None
    owner = ast.unparse(callee.value)
    if callee.attr == "append" and isinstance(callee.value, (ast.Name, ast.Attribute)):
        return f"{owner}[-1]"
    if callee.attr in ("add_module", "register_module") and len(outer.args) == 2:
        name = outer.args[0]
        if isinstance(name, ast.Constant) and isinstance(name.value, str) and owner == "self":
            return f"self.{name.value}" if name.value.isidentifier() else None
    return None


def initialised(text: SourceText, call: ast.Call, code: str) -> Change:
    """A line behind the one that makes a layer, `{}` in it for the layer. Raises `Refused`."""
    target, statement = target_of(text, call)
    line, needed = text.names.respelled(code.replace("{}", target), statement)
    made = [ast.dump(node) for node in ast.parse(line).body]
    if set(made) <= {ast.dump(node) for node in block_of(text, statement)}:
        raise Refused("it stands there already")
    change = inserted(text, statement, line, after=True) + needed
    if needed.splices and not change.agrees():
        raise Refused("the text there does not allow it")
    return change


# ---------------------------------------------------------------------- more around a layer


def normalised(
    text: SourceText, call: ast.Call, layer: str, size: Wanted, uses: Sequence[ast.Call]
) -> Change:
    """A layer made behind `self.a = Conv(...)`, and called around its only call. Raises `Refused`."""
    target, statement = target_of(text, call)
    if not isinstance(target_node := expression(target), ast.Attribute):
        raise Refused(f"`{target}` is no attribute of its own")
    if len(uses) != 1:
        raise Refused(f"`{target}` is called in {len(uses)} places")
    attribute = target_node.attr
    others = [
        node
        for node in text.walk(ast.Attribute)
        if isinstance(node, ast.Attribute) and node.attr == attribute
    ]
    stores = [node for node in others if not isinstance(node.ctx, ast.Load)]
    if len(stores) != 1:
        raise Refused(f"`{target}` is set in {len(stores)} places")
    if ast.unparse(uses[0].func) != target:
        raise Refused(f"`{target}` is called as `{ast.unparse(uses[0].func)}`")
    calls = [node for node in others if isinstance(text.parents[node], ast.Call)]
    if [text.parents[node] for node in calls] != [uses[0]]:
        raise Refused(f"`{target}` is called in {len(calls)} places")
    written = argument_of(text, call, size)
    if written is None or not is_pure(written):
        raise Refused(f"`{size.name}` is computed where the layer is made")
    name = f"{attribute}_norm"
    if name in {n.attr for n in text.walk(ast.Attribute) if isinstance(n, ast.Attribute)}:
        raise Refused(f"the name `{name}` is taken")
    code = f"self.{name} = {layer}({text.source(written)})"
    line, needed = text.names.respelled(code, statement)
    change = inserted(text, statement, line, after=True) + needed
    change += wrapped(text, uses[0], f"self.{name}(", ")")
    if not change.agrees():
        raise Refused("the text there does not allow it")
    return change


def residual(text: SourceText, call: ast.Call) -> Change:
    """`x + self.f(x)` for `self.f(x)`. Raises `Refused`."""
    if len(call.args) != 1 or call.keywords or not isinstance(call.args[0], ast.Name):
        raise Refused("the call is not of the form `f(x)`")
    name = call.args[0].id
    outer = text.parents[call]
    if isinstance(outer, ast.BinOp) and isinstance(outer.op, ast.Add):
        sides = [outer.left, outer.right]
        if any(isinstance(side, ast.Name) and side.id == name for side in sides):
            raise Refused("it stands there already")
    return wrapped(text, call, f"{name} + ", "")


def module_list(text: SourceText, call: ast.Call) -> Change:
    """`nn.ModuleList(...)` around the list that is kept as an attribute. Raises `Refused`."""
    value, attribute = _list_around(text, call)
    name = attribute.attr
    if isinstance(value, ast.Tuple) and not text.source(value).startswith("("):
        raise Refused("the layers stand in a tuple without parentheses")
    inner = value.elt if isinstance(value, ast.ListComp) else None
    parts = value.elts if isinstance(value, (ast.List, ast.Tuple)) else [inner]
    if any(isinstance(part, (ast.List, ast.ListComp, ast.Tuple, ast.Dict)) for part in parts):
        raise Refused(f"`self.{name}` holds lists of lists")
    for node in text.walk(ast.Attribute):
        assert isinstance(node, ast.Attribute)
        if node is not attribute and node.attr == name and is_self_attribute(node):
            _refuse_list_use(text, node)
    function = text.function_of(attribute)
    if function is not None:
        start = text.span(attribute)[0]
        made = [
            node
            for node in ast.walk(function)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "__init__"
        ]
        if getattr(function, "name", "") == "__init__" and not any(
            text.span(node)[0] < start for node in made
        ):
            raise Refused("it stands before `super().__init__()`")
    spelling, needed = text.names.spelled("torch.nn.ModuleList", value)
    change = wrapped(text, value, f"{spelling}(", ")") + needed
    if needed.splices and not change.agrees():
        raise Refused("the text there does not allow it")
    return change


def _list_around(
    text: SourceText, call: ast.Call
) -> tuple[ast.List | ast.Tuple | ast.ListComp, ast.Attribute]:
    """The list that a layer is put into, and the attribute that the list is kept as."""
    owner = text.class_of(call)
    for outer in text.around(call):
        if _makes(text, outer, "ModuleList", "ModuleDict"):
            raise Refused("it stands there already")
        if isinstance(outer, ast.Call) and isinstance(outer.func, ast.Attribute):
            kept = outer.func.value
            if outer.func.attr == "append" and isinstance(kept, ast.Attribute):
                return _only_list(text, kept.attr, owner)
        if isinstance(outer, ast.stmt):
            target = getattr(outer, "target", None)
            if isinstance(outer, ast.Assign) and len(outer.targets) == 1:
                target = outer.targets[0]
            if isinstance(target, ast.Attribute):
                return _only_list(text, target.attr, owner)
            break
    raise Refused("the list is not kept as an attribute of the module")


def _only_list(
    text: SourceText, name: str, owner: ast.ClassDef | None
) -> tuple[ast.List | ast.Tuple | ast.ListComp, ast.Attribute]:
    found: list[tuple[ast.Attribute, ast.expr | None]] = []
    for node in ast.walk(owner) if owner is not None else ():
        if not isinstance(node, ast.Attribute) or isinstance(node.ctx, ast.Load):
            continue
        if is_self_attribute(node) and node.attr == name:
            parent = text.parents[node]
            plain = isinstance(parent, (ast.Assign, ast.AnnAssign))
            found.append((node, parent.value if plain else None))  # type: ignore[attr-defined]
    if len(found) != 1:
        raise Refused(f"`self.{name}` is set in {len(found)} places")
    attribute, value = found[0]
    if not isinstance(value, (ast.List, ast.Tuple, ast.ListComp)):
        raise Refused(f"`self.{name}` is no list that is written there")
    return value, attribute


def _refuse_list_use(text: SourceText, node: ast.Attribute) -> None:
    """Raise `Refused` where a `ModuleList` would not do what a list does."""
    shown, parent = f"self.{node.attr}", text.parents[node]
    if isinstance(parent, ast.Attribute) and parent.attr in _LIST_METHODS:
        raise Refused(f"`{shown}.{parent.attr}` is called, which a ModuleList does not have")
    if isinstance(parent, (ast.BinOp, ast.Compare)):
        raise Refused(f"`{shown}` is added or compared as a list")
    if isinstance(parent, ast.Starred):
        raise Refused(f"`*{shown}` registers the layers elsewhere")
    if isinstance(parent, ast.Call) and node in parent.args:
        callee = text.names.meaning(parent.func) or ast.unparse(parent.func)
        if callee in ("torch.nn.Sequential", "torch.nn.ModuleList"):
            raise Refused(f"`{callee}({shown})` registers the layers elsewhere")
        if callee == "isinstance":
            raise Refused(f"`{shown}` is asked for its type")
