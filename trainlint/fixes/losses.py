"""Edits at a loss function that a run was seen to call: what it is given, its kind, its arguments.

A loss is called at a site, `F.mse_loss(model(x), y)` or `criterion(model(x), y)`; in the latter case the
module is looked for where the name is assigned. No torch.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any, Final

from trainlint.fixes.activations import ACTIVATION_CLASSES, LOSS_CLASSES
from trainlint.fixes.changes import Refused
from trainlint.fixes.edit import Fix
from trainlint.fixes.patch import Occurrence, Patch
from trainlint.fixes.reading import (
    bound_to,
    call,
    is_path,
    last_name,
    refusable,
    scope,
    statement,
    with_keyword,
)
from trainlint.ops import ALIASES

if TYPE_CHECKING:
    from trainlint.fixes.source import SourceEdits, SourceText
    from trainlint.observe.trace import ModelTrace, SiteTrace, Trace
    from trainlint.sites import Site

_SIMPLE: Final = (ast.Name, ast.Attribute, ast.Call, ast.Subscript)
_OPERANDS: Final = (("input", "prediction", "output", "log_probs"), ("target", "other"))
_DETACHING: Final = ("item", "detach", "data", "numpy", "tolist", "cpu", "clone")


# ---------------------------------------------------------------------- what it is given


@refusable
def with_operand(
    edits: SourceEdits, site: Site | None, place: int, change: str, *, title: str
) -> Fix:
    """`change`, such as `{}.squeeze(1)` or `{} / 255`, of an operand of the call or operator at `site`."""
    text, operand = _operand(edits, site, place)
    source = ast.get_source_segment(text.text, operand) or ""
    if not source or isinstance(operand, ast.Starred):
        raise Refused("what the loss is given is unpacked")
    if not isinstance(operand, _SIMPLE):
        source = f"({source})"
    return edits.replaced_expression(text, operand, change.format(source), title=title)


def _operand(edits: SourceEdits, site: Site | None, place: int) -> tuple[SourceText, ast.expr]:
    text = None if site is None else edits.text(site.filename)
    span = None if site is None else site.span()
    if text is None or text.tree is None or site is None or span is None:
        raise Refused("the loss stands in no file of yours")
    row, end_row, column, end_column = span
    for node in ast.walk(text.tree):
        if isinstance(node, ast.BinOp):
            where = (node.lineno, node.end_lineno, node.col_offset, node.end_col_offset)
            if where == (row, end_row, column, end_column):
                return text, (node.left, node.right)[place]
    found = text.call_at(site)
    if found is None:
        raise Refused("the loss is not found in the source")
    if any(isinstance(given, ast.Starred) for given in found.args[: place + 1]):
        raise Refused("what the loss is given is unpacked")
    if len(found.args) > place:
        return text, found.args[place]
    named = [word.value for word in found.keywords if word.arg in _OPERANDS[place]]
    if len(named) != 1:
        raise Refused("what the loss is given is not found in the call")
    return text, named[0]


# ---------------------------------------------------------------------- its kind and arguments


def made(edits: SourceEdits, site: Site | None, kind: str) -> tuple[SourceText, ast.Call]:
    """The call that decides on the loss at `site`: itself where it is a function, else its module's."""
    text, called = call(edits, site, "the loss")
    name, layer = last_name(called.func), LOSS_CLASSES.get(kind, "")
    if name == kind or (layer and name == layer):
        return text, called
    if not is_path(called.func) or not layer:
        raise Refused("the loss is called in another way than by its name")
    value = bound_to(text, called.func)
    if isinstance(value, ast.Call) and last_name(value.func) == layer:
        return text, value
    assert text.tree is not None
    built = [
        node
        for node in ast.walk(text.tree)
        if isinstance(node, ast.Call) and last_name(node.func) == layer
    ]
    if len(built) != 1:
        raise Refused(f"{len(built)} calls of {layer} stand in the file")
    around = text.parents.get(built[0])
    targets = around.targets if isinstance(around, ast.Assign) else []
    if [last_name(target) for target in targets] != [name]:
        raise Refused(f"what {name} is, is decided elsewhere")
    return text, built[0]


@refusable
def swapped(edits: SourceEdits, site: Site | None, old: str, new: str, *, title: str) -> Fix:
    """The loss `new` in the place of `old`, whose first arguments are the same."""
    text, deciding = made(edits, site, old)
    if deciding.keywords or len(deciding.args) > 2:
        raise Refused("the loss has options of its own")
    callee = deciding.func
    if not isinstance(callee, ast.Attribute):
        raise Refused(f"{last_name(callee)} is imported by its name")
    name = new if callee.attr == old else LOSS_CLASSES[new]
    source = f"{ast.unparse(callee.value)}.{name}"
    return edits.replaced_expression(text, callee, source, title=title)


@refusable
def with_argument(
    edits: SourceEdits, site: Site | None, kind: str, name: str, value: str, *, title: str
) -> Fix:
    """A further keyword argument of the loss: `ignore_index=255`, `weight=...`."""
    text, deciding = made(edits, site, kind)
    if any(word.arg in (name, None) for word in deciding.keywords):
        raise Refused(f"{name} is given already")
    limit = 2 if last_name(deciding.func) == kind else 0
    if len(deciding.args) > limit or any(isinstance(a, ast.Starred) for a in deciding.args):
        raise Refused("the loss has options of its own")
    source = ast.get_source_segment(text.text, deciding) or ""
    if "#" in source or not source.endswith(")"):
        raise Refused("a comment stands in the call")
    return edits.replaced_expression(text, deciding, with_keyword(source, name, value), title=title)


# ---------------------------------------------------------------------- an activation before it


def without(
    trace: Trace,
    edits: SourceEdits,
    site: Site | None,
    module: str | None,
    name: str,
    *,
    title: str,
) -> Fix:
    """The activation `name` taken out, which a run saw at `site` in the module of that path."""
    seen = _seen(trace, module, name)
    patches = [] if seen is None else [_without(*seen)]
    try:
        layer = ACTIVATION_CLASSES.get(name, "")
        model = None if seen is None else seen[0]
        made_at = None if model is None or module is None else model.layers.get(module)
        if made_at is not None:
            text = edits.text(made_at.filename)
            built = None if text is None else text.call_at(made_at)
            if text is not None and built is not None and last_name(built.func) == layer:
                if not isinstance(built.func, ast.Attribute):
                    raise Refused(f"{layer} is imported by its name")
                owner = ast.unparse(built.func.value)
                return edits.replaced_expression(
                    text, built, f"{owner}.Identity()", title=title, patches=patches
                )
        text, called = call(edits, site, name)
        return _unwrapped(edits, text, called, name, title, patches)
    except Refused as refusal:
        return Fix(title, obstacle=str(refusal), patches=patches)


def renamed(
    trace: Trace, edits: SourceEdits, site: Site | None, module: str | None, old: str, new: str, *,
    title: str,
) -> Fix:  # fmt: skip
    """The activation `new` in the place of `old`, which a run saw at `site` in the module of that path."""
    seen = _seen(trace, module, old)
    patches = [] if seen is None else [_named(Patch.activation, *seen, to=new)]
    model = None if seen is None else seen[0]
    made_at = None if model is None or module is None else model.layers.get(module)
    classes = ACTIVATION_CLASSES.get(old, ""), ACTIVATION_CLASSES.get(new, "")
    fix = edits.callee([made_at], *classes, title=title, patches=patches)
    if fix.edits:
        return fix
    fix = edits.callee([site], old, new, title=title, patches=patches)
    if fix.edits:
        return fix
    try:
        text, called = call(edits, site, old)
        for node in [part for part in ast.walk(called) if isinstance(part, ast.Call)]:
            if isinstance(node.func, ast.Attribute) and node.func.attr == old:
                source = f"{ast.unparse(node.func.value)}.{new}"
                return edits.replaced_expression(
                    text, node.func, source, title=title, patches=patches
                )
        raise Refused(f"the call of {old} is not found in the source")
    except Refused as refusal:
        return Fix(title, obstacle=str(refusal), patches=patches)


def _unwrapped(
    edits: SourceEdits,
    text: SourceText,
    called: ast.Call,
    name: str,
    title: str,
    patches: list[Patch],
) -> Fix:
    """The call itself, or what the loss is given, in place of the activation of it."""
    first = called.args[0] if called.args else None
    for node in (called, first):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        bare = node.func.attr.strip("_")
        if ALIASES.get(bare, bare) != name:
            continue
        owner = ast.unparse(node.func.value)
        is_function = owner.rpartition(".")[2] in ("F", "torch", "functional")
        operand = node.args[0] if is_function and node.args else node.func.value
        if is_function and not node.args:
            break
        source = ast.get_source_segment(text.text, operand) or ""
        content = source if isinstance(operand, _SIMPLE) else f"({source})"
        return edits.replaced_expression(text, node, content, title=title, patches=patches)
    raise Refused(f"the call of {name} is not found in the source")


def last_of(trace: Trace, name: str) -> tuple[ModelTrace, SiteTrace] | None:
    """The model that is trained and ends in this activation, and where."""
    ends = [
        (model, model.sites[-1])
        for model in trace.trained
        if model.sites and model.sites[-1].place.operation == name
    ]
    return ends[0] if len(ends) == 1 else None


def _seen(trace: Trace, module: str | None, name: str) -> tuple[ModelTrace, SiteTrace] | None:
    found = [
        (model, site)
        for model in trace.trained
        for site in model.sites
        if site.place.operation == name and site.place.path == module
    ]
    return found[-1] if found else None


def _without(model: ModelTrace, site: SiteTrace) -> Patch:
    return _named(Patch.without, model, site)


def _named(make: Any, model: ModelTrace, site: SiteTrace, **values: Any) -> Patch:
    """A patch of a layer or a call, whichever the operation is."""
    path = site.place.path
    is_leaf = bool(path) and not any(
        other.startswith(f"{path}.")
        for other in (*model.layers, *(p.name for p in model.parameters))
    )
    if is_leaf:
        patch: Patch = make(modules=[path], **values)
    else:
        patch = make(calls=[Occurrence(path, site.place.operation, site.place.index)], **values)
    return patch


# ---------------------------------------------------------------------- its graph


@refusable
def reattached(trace: Trace, edits: SourceEdits, *, title: str) -> Fix:
    """The line taken out that makes a number, or a new leaf, of the loss before `backward()`."""
    text, backward = _backward(trace, edits)
    assert isinstance(backward.func, ast.Attribute)
    loss = backward.func.value
    if not isinstance(loss, ast.Name):
        raise Refused("backward() is called on an expression")
    around = scope(text, backward)
    last = statement(text, backward)
    cuts = [
        node
        for node in ast.walk(around or last)
        if isinstance(node, ast.Assign)
        and len(node.targets) == 1
        and ast.unparse(node.targets[0]) == loss.id
        and node.lineno < last.lineno
        and _source_of(node.value) is not None
    ]
    if len(cuts) != 1:
        raise Refused("where the graph is dropped is not seen in the lines before backward()")
    (cut,) = cuts
    inner = _source_of(cut.value)
    assert inner is not None
    if inner.id != loss.id:
        return edits.replaced_expression(text, cut.value, inner.id, title=title)
    return edits.deleted(text, cut, title=title)


def _backward(trace: Trace, edits: SourceEdits) -> tuple[SourceText, ast.Call]:
    sites = {incident.site for incident in trace.of("loss-without-graph")}
    if len(sites) != 1:
        raise Refused(f"backward() is called at {len(sites)} places")
    text, backward = call(edits, next(iter(sites)), "backward()")
    if not isinstance(backward.func, ast.Attribute):
        raise Refused("backward() is called in another way than loss.backward()")
    return text, backward


def _source_of(value: ast.expr) -> ast.Name | None:
    """`loss` of `torch.tensor(loss.item(), requires_grad=True)`, of `loss.detach()`; else None."""
    node: ast.expr = value
    dropped = False
    while True:
        if isinstance(node, ast.Call) and last_name(node.func) in (
            "tensor",
            "as_tensor",
            "Variable",
        ):
            if len(node.args) != 1:
                return None
            node, dropped = node.args[0], True
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in (*_DETACHING, "requires_grad_")
        ):
            dropped = dropped or node.func.attr in ("item", "detach", "numpy", "tolist")
            node = node.func.value
        elif isinstance(node, ast.Attribute) and node.attr == "data":
            node, dropped = node.value, True
        else:
            break
    return node if dropped and isinstance(node, ast.Name) else None
