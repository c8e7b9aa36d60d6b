"""Edits of a training loop: where it clears, clips and steps, which mode it is in, what it keeps.

What a `Trace` saw of a loop are sites: of steps, backward passes, forwards. An edit is offered where the
source at these sites shows one plain loop: one optimizer, one `backward()` and one `step()`, in one
function and one block. What is driven by others (a `GradScaler`, a closure, a trainer) or stands under an
`if` is left to its author, with the reason.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite
from statistics import median
from typing import TYPE_CHECKING, Final

from trainlint.fixes.changes import Refused
from trainlint.fixes.edit import Fix
from trainlint.fixes.reading import (
    around,
    call,
    is_path,
    last_name,
    refusable,
    scope,
    statement,
    statement_of_site,
)
from trainlint.fixes.statements import block_of, has_own_lines

if TYPE_CHECKING:
    from trainlint.fixes.source import SourceEdits, SourceText
    from trainlint.observe.trace import ModelTrace, Trace
    from trainlint.sites import Site


# Norms so many times those of the first few steps are of a run that has diverged.
_DIVERGED: Final = 100.0
_FIRST: Final = 5


# ---------------------------------------------------------------------- one plain loop


@dataclass(frozen=True)
class Loop:
    """One optimizer's step and the backward pass before it, which `anchor` holds, in the step's block."""

    text: SourceText
    step: ast.Call
    backward: ast.Call
    anchor: ast.stmt
    optimizer: str

    @property
    def stepping(self) -> ast.stmt:
        """The statement of the step."""
        return statement(self.text, self.step)


def loop_of(trace: Trace, edits: SourceEdits, *, steps_first: bool = False) -> Loop:
    """The only loop that trains. Raises `Refused` where there are others, or it is not plain.

    Plain is that step() stands behind backward(), or with `steps_first` before it.
    """
    if "loop" not in trace.own:
        raise Refused("the training loop that was run is not one of yours")
    stepping = [optimizer for optimizer in trace.optimizers if optimizer.steps]
    if len(stepping) != 1:
        raise Refused(f"{len(stepping)} optimizers step")
    (optimizer,) = stepping
    if optimizer.driver == "GradScaler":
        raise Refused("a GradScaler steps: gradients are to be unscaled first")
    if optimizer.driver:
        raise Refused("the step is given a closure")
    text, step = _only(edits, optimizer.stepped_at, "step()")
    where, backward = _only(edits, optimizer.backward_at, "backward()")
    if not isinstance(step.func, ast.Attribute) or step.func.attr != "step" or step.args:
        raise Refused("step() is called in another way than optimizer.step()")
    if not is_path(step.func.value):
        raise Refused("what steps is no name")
    if not isinstance(backward.func, ast.Attribute) or backward.func.attr != "backward":
        raise Refused("backward() is called in another way than loss.backward()")
    if where is not text or scope(text, step) is not scope(where, backward):
        raise Refused("backward() and step() are called in different functions")
    statements = block_of(text, statement(text, step))
    anchors = [found for found in around(text, backward) if found in statements]
    if not anchors:
        raise Refused("step() stands under an `if` or a loop that backward() is not in")
    anchor = anchors[0]
    if isinstance(anchor, ast.If):
        raise Refused("backward() stands under an `if`")
    first, second = statements.index(anchor), statements.index(statement(text, step))
    if first == second or (second < first) != steps_first:
        raise Refused(f"step() does not stand {'before' if steps_first else 'behind'} backward()")
    return Loop(text, step, backward, anchor, ast.unparse(step.func.value))


def _only(
    edits: SourceEdits, sites: Sequence[Site | None], what: str
) -> tuple[SourceText, ast.Call]:
    if len(sites) != 1:
        raise Refused(f"{what} is called at {len(sites)} places")
    return call(edits, sites[0], what)


def model_of(loop: Loop, edits: SourceEdits, model: ModelTrace) -> str:
    """How the function of the loop calls its model: `model`, `self.net`."""
    for site in model.trained_at:
        text, forward = call(edits, site, "the model")
        inside = scope(text, forward) is scope(loop.text, loop.step)
        if text is loop.text and inside and is_path(forward.func):
            return ast.unparse(forward.func)
    raise Refused("the model is called in another function than step()")


def _line_before(
    edits: SourceEdits, text: SourceText, inner: ast.stmt, line: str, *, title: str
) -> Fix:
    if not has_own_lines(text, inner) and isinstance(inner, (ast.Expr, ast.Assign, ast.AugAssign)):
        raise Refused("the line holds several statements")
    return edits.beside(text, inner, before=line + text.newline, title=title)


def zeroed(trace: Trace, edits: SourceEdits, *, title: str = "") -> Fix:
    """`optimizer.zero_grad()` before the backward pass."""
    title = title or "clear the gradients before each backward pass: optimizer.zero_grad()"
    try:
        loop = loop_of(trace, edits)
        line = f"{loop.optimizer}.zero_grad()"
        return _line_before(edits, loop.text, loop.anchor, line, title=title)
    except Refused as refusal:
        return Fix(title, obstacle=str(refusal))


def clipped(trace: Trace, edits: SourceEdits, limit: float, *, title: str = "") -> Fix:
    """`clip_grad_norm_` between the backward pass and the step."""
    title = title or f"clip the gradient's norm to {limit:g} between backward() and step()"
    try:
        loop = loop_of(trace, edits)
        names = loop.text.names
        function, imports = names.spelled("torch.nn.utils.clip_grad_norm_", loop.step)
        if imports.splices:
            raise Refused("torch is not imported in that file")
        trained = trace.trained
        if len(trained) == 1:
            given = f"{model_of(loop, edits, trained[0])}.parameters()"
        else:
            raise Refused(f"{len(trained)} models are trained")
        line = f"{function}({given}, {limit!r})"
        return _line_before(edits, loop.text, loop.stepping, line, title=title)
    except Refused as refusal:
        return Fix(title, obstacle=str(refusal))


def before_divergence(norms: Sequence[float]) -> list[float]:
    """Of gradients' norms, step by step, those of the steps before the run diverged: all, if it did not.

    It has from the first on that is not finite, or that is a hundred times those of the first steps, as
    what follows is in the median. A single spike is none.
    """
    for place, norm in enumerate(norms):
        if not isfinite(norm):
            return list(norms[:place])
        if not place:
            continue
        bound = _DIVERGED * median(norms[: min(place, _FIRST)])
        rest = [each if isfinite(each) else inf for each in norms[place:]]
        if norm > bound > 0 and median(rest) > bound:
            return list(norms[:place])
    return list(norms)


# ---------------------------------------------------------------------- the order of a loop


@refusable
def clipped_before_step(trace: Trace, edits: SourceEdits, site: Site | None, *, title: str) -> Fix:
    """The clipping at `site`, which stands behind the step, moved to before it."""
    loop = loop_of(trace, edits)
    text, clipping = call(edits, site, "the clipping")
    inner = statement(text, clipping)
    if text is not loop.text or inner not in block_of(loop.text, loop.stepping):
        raise Refused("the clipping does not stand in the block of step()")
    return edits.moved(text, inner, loop.stepping, title=title)


@refusable
def zeroed_earlier(trace: Trace, edits: SourceEdits, *, title: str) -> Fix:
    """The `zero_grad()` between the backward pass and the step, moved to before the backward pass."""
    loop = loop_of(trace, edits)
    statements = block_of(loop.text, loop.stepping)
    between = statements[statements.index(loop.anchor) + 1 : statements.index(loop.stepping)]
    found = [inner for inner in between if _clears(inner)]
    if len(found) != 1:
        raise Refused("zero_grad() does not stand between backward() and step()")
    return edits.moved(loop.text, found[0], loop.anchor, title=title)


@refusable
def stepped_later(trace: Trace, edits: SourceEdits, *, title: str) -> Fix:
    """The step that stands before the backward pass, behind a `zero_grad()`, moved to behind it."""
    loop = loop_of(trace, edits, steps_first=True)
    statements = block_of(loop.text, loop.stepping)
    before = statements[: statements.index(loop.stepping)]
    if not isinstance(loop.stepping, ast.Expr) or not any(map(_clears, before)):
        raise Refused("no zero_grad() stands before step() in its block")
    return edits.moved(loop.text, loop.stepping, loop.anchor, after=True, title=title)


def _clears(inner: ast.stmt) -> bool:
    return (
        isinstance(inner, ast.Expr)
        and isinstance(inner.value, ast.Call)
        and last_name(inner.value.func) == "zero_grad"
    )


@refusable
def scheduled_after(trace: Trace, edits: SourceEdits, site: Site | None, *, title: str) -> Fix:
    """The scheduler's step at `site` moved to behind what holds the optimizer's, in its own block."""
    loop = loop_of(trace, edits)
    text, scheduling = call(edits, site, "the scheduler's step()")
    inner = statement(text, scheduling)
    if text is not loop.text or not isinstance(inner, ast.Expr):
        raise Refused("the scheduler steps in another file than the optimizer")
    statements = block_of(text, inner)
    later = [
        found
        for found in around(text, loop.step)
        if found in statements and statements.index(found) > statements.index(inner)
    ]
    if not later:
        raise Refused("the optimizer does not step behind it in the same block")
    return edits.moved(text, inner, later[-1], after=True, title=title)


@refusable
def scheduled_by_epoch(trace: Trace, edits: SourceEdits, site: Site | None, *, title: str) -> Fix:
    """The scheduler's step at `site` moved out of the loop over batches, to behind it."""
    loop = loop_of(trace, edits)
    text, scheduling = call(edits, site, "the scheduler's step()")
    inner = statement(text, scheduling)
    if text is not loop.text or not isinstance(inner, ast.Expr):
        raise Refused("the scheduler steps in another file than the optimizer")
    outer = text.parents.get(inner)
    if not isinstance(outer, (ast.For, ast.While)) or inner not in outer.body:
        raise Refused("the scheduler does not step in a loop over batches")
    if loop.stepping not in outer.body or not any(
        isinstance(found, (ast.For, ast.While)) for found in around(text, outer)[1:]
    ):
        raise Refused("there is no loop over epochs around that over batches")
    return edits.moved(text, inner, outer, after=True, title=title)


@refusable
def scheduled_by_batch(trace: Trace, edits: SourceEdits, site: Site | None, *, title: str) -> Fix:
    """The scheduler's step at `site` moved from behind the loop over batches to behind the step in it."""
    loop = loop_of(trace, edits)
    text, scheduling = call(edits, site, "the scheduler's step()")
    inner = statement(text, scheduling)
    if text is not loop.text or not isinstance(inner, ast.Expr):
        raise Refused("the scheduler steps in another file than the optimizer")
    statements = block_of(text, inner)
    if not any(found in statements for found in around(text, loop.step)[1:]):
        raise Refused("the scheduler does not step beside the loop over batches")
    return edits.moved(text, inner, loop.stepping, after=True, title=title)


@refusable
def divided(trace: Trace, edits: SourceEdits, passes: int, *, title: str) -> Fix:
    """`(loss / k).backward()`."""
    loop = loop_of(trace, edits)
    assert isinstance(loop.backward.func, ast.Attribute)
    loss = loop.backward.func.value
    if not is_path(loss):
        raise Refused("backward() is called on an expression")
    return edits.replaced_expression(
        loop.text, loss, f"({ast.unparse(loss)} / {passes})", title=title
    )


# ---------------------------------------------------------------------- what it keeps


@refusable
def released(trace: Trace, edits: SourceEdits, site: Site | None, *, title: str) -> Fix:
    """`loss.detach()` where the statement at `site` keeps the loss that `backward()` is called on."""
    text, inner = statement_of_site(edits, site)
    sites = [s for optimizer in trace.optimizers for s in optimizer.backward_at]
    where, backward = _only(edits, sites, "backward()")
    if text is not where or not isinstance(backward.func, ast.Attribute):
        raise Refused("the loss is kept in another file than that of backward()")
    if statement(text, backward) is inner or not isinstance(backward.func.value, ast.Name):
        raise Refused("no variable is found that keeps the losses")
    if scope(text, backward) is not scope(text, inner):
        raise Refused("the loss is kept in another function than that of backward()")
    name = backward.func.value.id
    kept = [
        node
        for node in ast.walk(inner)
        if isinstance(node, ast.Name)
        and node.id == name
        and isinstance(node.ctx, ast.Load)
        and not isinstance(text.parents.get(node), ast.Attribute)
    ]
    if len(kept) != 1:
        raise Refused(f"`{name}` is not what the statement keeps, or is there more than once")
    return edits.replaced_expression(text, kept[0], f"{name}.detach()", title=title)


# ---------------------------------------------------------------------- modes


@refusable
def in_train_mode(trace: Trace, edits: SourceEdits, model: ModelTrace, *, title: str) -> Fix:
    """`model.train()` before the loop over batches; in it, where that loop evaluates as well."""
    loop = loop_of(trace, edits)
    name = model_of(loop, edits, model)
    loops = [
        found for found in around(loop.text, loop.step) if isinstance(found, (ast.For, ast.While))
    ]
    if loops and not _evaluates(loops[0], name):
        target: ast.stmt = loops[0]
    else:
        target = _forward(loop, edits, model)
    return _line_before(edits, loop.text, target, f"{name}.train()", title=title)


def _evaluates(loop: ast.stmt, name: str) -> bool:
    """Whether it calls `eval()`, or hands the model to something that may."""
    for node in ast.walk(loop):
        if isinstance(node, ast.Call):
            given = [*node.args, *(word.value for word in node.keywords)]
            if any(ast.unparse(each) == name for each in given) or last_name(node.func) == "eval":
                return True
    return False


def _forward(loop: Loop, edits: SourceEdits, model: ModelTrace) -> ast.stmt:
    """The statement of the step's block in which the model is called."""
    text, forward = _only(edits, model.trained_at, "the model")
    statements = block_of(loop.text, loop.stepping)
    found = [each for each in around(text, forward) if each in statements]
    if text is not loop.text or not found:
        raise Refused("the model is called in another block than step()")
    return found[0]


@refusable
def evaluated(trace: Trace, edits: SourceEdits, site: Site | None, *, title: str) -> Fix:
    """`model.eval()` before the pass whose forward is at `site`, and `model.train()` behind it."""
    text, forward = call(edits, site, "the model")
    if not is_path(forward.func):
        raise Refused("what is called is no name")
    sites = [s for optimizer in trace.optimizers for s in optimizer.stepped_at]
    steps = [found for s in sites if s is not None and (found := text.call_at(s)) is not None]
    passes = [
        found
        for found in around(text, forward)
        if not any(step is node for node in ast.walk(found) for step in steps)
    ]
    if not passes:
        raise Refused("the pass and the training are one statement")
    whole, name = passes[-1], ast.unparse(forward.func)
    if any(isinstance(node, (ast.Return, ast.Yield)) for node in ast.walk(whole)):
        raise Refused("the pass ends in a return")
    before, after = f"{name}.eval()", f"{name}.train()"
    return edits.enclosed(text, whole, before=before, after=after, title=title)
