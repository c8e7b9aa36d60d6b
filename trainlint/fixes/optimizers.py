"""Edits of the call that makes an optimizer: its options, its kind, the parameters that it is given."""

from __future__ import annotations

import ast
import contextlib
import inspect
import sys
from typing import TYPE_CHECKING, Any

from trainlint.fixes.changes import Refused
from trainlint.fixes.edit import Fix, Safety
from trainlint.fixes.reading import call, is_path, last_name, refusable, statement
from trainlint.fixes.statements import block_of

if TYPE_CHECKING:
    from trainlint.fixes.source import SourceEdits, SourceText
    from trainlint.observe.trace import ModelTrace, OptimizerTrace, Trace


def made_rate(optimizer: OptimizerTrace | None) -> float | None:
    """The learning rate that the optimizer was made with, where all groups have one."""
    if optimizer is None:
        return None
    rates = {group.get("lr") for group in optimizer.groups}
    (rate,) = rates if len(rates) == 1 else (None,)
    return float(rate) if isinstance(rate, (int, float)) else None


@refusable
def with_option(
    edits: SourceEdits,
    optimizer: OptimizerTrace | None,
    name: str,
    value: Any,
    *,
    title: str,
    safety: Safety = Safety.UNSAFE,
) -> Fix:
    """Another value for an option, `lr` or `betas`, at the constructor's call or where it comes from."""
    if optimizer is None or optimizer.site is None:
        raise Refused("where the optimizer is made was not seen")
    held = [group.get(name) for group in optimizer.groups]
    if len(held) != 1:
        raise Refused(f"the optimizer has {len(held)} groups of parameters")
    text, made = call(edits, optimizer.site, "the optimizer")
    if any(word.arg is None for word in made.keywords) or any(
        isinstance(given, ast.Starred) for given in made.args
    ):
        raise Refused("its arguments are unpacked from elsewhere")
    position, default = _declared(optimizer.kind, name)
    own = [
        value_
        for group in ast.walk(made)
        if isinstance(group, ast.Dict)
        for key, value_ in zip(group.keys, group.values, strict=True)
        if isinstance(key, ast.Constant) and key.value == name
    ]
    if own:  # of a group, which comes before the call's
        if len(own) > 1 or _constant(own[0]) != held[0]:
            raise Refused(f"`{name}` of the group is no number in the call")
        return edits.replaced_expression(text, own[0], _shown(value), title=title)
    written = next((word.value for word in made.keywords if word.arg == name), None)
    if written is None and position is not None and len(made.args) > position:
        written = made.args[position]
    if isinstance(value, tuple):
        if written is None or _constant(written) != tuple(held[0] or ()):
            raise Refused(f"`{name}` is not written in the call")
        return edits.replaced_expression(text, written, _shown(value), title=title)
    if written is None and default != held[0]:
        raise Refused(f"`{name}` is not written in the call")
    return edits.argument(
        optimizer.site,
        99 if position is None else position,
        name,
        value,
        current=held[0],
        title=title,
        safety=safety,
    )


def _declared(kind: str, name: str) -> tuple[int | None, Any]:
    """Place and default of a parameter of torch's optimizer of this kind, if it is one."""
    torch = sys.modules.get("torch")
    made = getattr(torch.optim, kind, None) if torch is not None else None
    names = list(inspect.signature(made).parameters.values()) if made is not None else []
    for place, parameter in enumerate(names):
        if parameter.name == name:
            by_keyword = parameter.kind is parameter.KEYWORD_ONLY
            return None if by_keyword else place, parameter.default
    return None, inspect.Parameter.empty


def _constant(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_shown, value))})"
    return f"{value:g}" if isinstance(value, float) else repr(value)


@refusable
def decoupled(edits: SourceEdits, optimizer: OptimizerTrace, decay: float, *, title: str) -> Fix:
    """AdamW for Adam, with a `weight_decay` that is usual there."""
    _, made = call(edits, optimizer.site, "the optimizer")
    if optimizer.kind != "Adam" or last_name(made.func) != "Adam":
        raise Refused(f"{optimizer.kind} has no decoupled twin")
    renamed = edits.callee([optimizer.site], "Adam", "AdamW", title=title)
    valued = with_option(edits, optimizer, "weight_decay", decay, title=title)
    return edits.together(renamed, valued, title=title)


@refusable
def over_all(
    trace: Trace,
    edits: SourceEdits,
    optimizer: OptimizerTrace | None,
    model: ModelTrace,
    *,
    title: str,
) -> Fix:
    """`model.parameters()` in place of a part of it, where the call is given parts of one model alone."""
    if optimizer is None:
        raise Refused("where the optimizer is made was not seen")
    text, made = call(edits, optimizer.site, "the optimizer")
    given = _given(made)
    if given is None or len(optimizer.groups) != 1:
        raise Refused("its parameters are given in groups, or from elsewhere")
    if len(trace.trained) != 1:
        raise Refused(f"{len(trace.trained)} models are trained")
    roots = {
        _root_of(node.func.value)
        for node in ast.walk(given)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("parameters", "named_parameters")
    }
    (root,) = roots if len(roots) == 1 else (None,)
    if root is None or root not in _names_of(edits, model, text, made):
        raise Refused("what it is given is no part of one model by its name")
    if ast.unparse(given) == f"{root}.parameters()":
        raise Refused("it is given all that the model had when it was made")
    return edits.replaced_expression(text, given, f"{root}.parameters()", title=title)


@refusable
def made_later(
    trace: Trace,
    edits: SourceEdits,
    optimizer: OptimizerTrace | None,
    model: str,
    *,
    title: str,
) -> Fix:
    """The optimizer's statement moved to behind the last one that makes or changes its model."""
    if optimizer is None:
        raise Refused("where the optimizer is made was not seen")
    text, made = call(edits, optimizer.site, "the optimizer")
    given = _given(made)
    inner = statement(text, made)
    if not isinstance(inner, ast.Assign) or inner.value is not made or given is None:
        raise Refused("the optimizer is not assigned to a name in a statement of its own")
    roots = {node.id for node in ast.walk(given) if isinstance(node, ast.Name)}
    called = {
        name
        for traced in trace.models
        if traced.name == model
        for name in _names_of(edits, traced, text, made)
    }
    own = roots & called
    if len(own) != 1 or len(inner.targets) != 1 or not is_path(inner.targets[0]):
        raise Refused("it is not given the parameters of the model by its name")
    statements = block_of(text, inner)
    behind = statements[statements.index(inner) + 1 :]
    changing = [found for found in behind if _changes(found, next(iter(own)))]
    if not changing:
        raise Refused("nothing behind it changes the model in its block")
    between = behind[: behind.index(changing[-1]) + 1]
    name = ast.unparse(inner.targets[0])
    if any(
        isinstance(node, (ast.Name, ast.Attribute)) and ast.unparse(node) == name
        for found in between
        for node in ast.walk(found)
    ):
        raise Refused("the optimizer is used before the model is complete")
    return edits.moved(text, inner, changing[-1], after=True, title=title)


def _given(made: ast.Call) -> ast.expr | None:
    """What the parameters are."""
    given = made.args[0] if made.args else None
    given = given or next((word.value for word in made.keywords if word.arg == "params"), None)
    return None if isinstance(given, ast.Starred) else given


def _names_of(edits: SourceEdits, model: ModelTrace, text: SourceText, made: ast.Call) -> set[str]:
    """What the model is called by where it is called, in this file, or where the optimizer is `made`."""
    names = set(model.called if text.function_of(made) is None else ())
    for site in model.trained_at or (model.site,):
        with contextlib.suppress(Refused):
            where, forward = call(edits, site, "the model")
            if where is text and isinstance(forward.func, ast.Name):
                names.add(forward.func.id)
    return names


def _changes(inner: ast.stmt, model: str) -> bool:
    """`model = ...`, `model.head = ...`, `model[4] = ...`."""
    return isinstance(inner, ast.Assign) and any(
        _root_of(target) == model for target in inner.targets
    )


def _root_of(node: ast.expr) -> str | None:
    """`model` of `model.head[0]`."""
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None
