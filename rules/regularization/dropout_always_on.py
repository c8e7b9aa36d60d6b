"""REG002 dropout-always-on."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from typing import Any

from trainlint.rule import (
    Confidence,
    Finding,
    Fix,
    Graph,
    Patch,
    Safety,
    Severity,
    Site,
    SourceEdits,
    Variants,
    construction_site,
    ops,
    places,
    rule,
)

ATTENTION = "scaled_dot_product_attention"
# Names and words by which people say that they mean it. Tacotron's prenet is never switched off.
ON_PURPOSE = re.compile(
    r"monte[\W_]*carlo|\bmc\b|mc[\W_]*(drop|sampl|infer|forward|pass|pred)|bayes|uncertain|epistemic|"
    r"prenet|always[\W_]*(on|active)",
    re.IGNORECASE,
)
ON_PURPOSE_AT_THE_CALL = re.compile(
    r"(at|in|during|for)[\W_]+(test|inference|eval|predict)|on purpose|intention|deliberate",
    re.IGNORECASE,
)


@rule(
    "REG002",
    severity=Severity.ERROR,
    since="0.1",
    topics=["same-in-eval"],
    explains=["random-in-eval"],
)
def dropout_always_on(graph: Graph, edits: SourceEdits, variants: Variants) -> Iterator[Finding]:
    """Functional dropout ignores `self.training`, and goes on dropping in eval mode.

    `model.eval()` sets `self.training = False` in every module. nn.Dropout looks at it; the function
    cannot: `F.dropout(x, p)` has the default `training=True`, and `scaled_dot_product_attention` drops
    whenever `dropout_p > 0`. Dropout is meant for training, where it averages over sub-networks; in
    eval mode the whole network shall answer. Left on, every prediction carries noise of variance
    x²·p/(1 − p): two calls on one input differ, validation is worse and noisier than the model is, and
    early stopping picks a lucky draw. The same goes for `nn.Dropout(p)(x)` in the forward: that layer
    is new each time, new layers are in train mode, and `model.eval()` has never met it.

    trainlint captures the model in eval mode, and reports the dropout that is still at work there.
    Not reported: dropout that is a layer of its own (a subclass of nn.Dropout that stays on does so on
    purpose), and code that says what it is for (Monte Carlo, Bayesian, uncertainty, a prenet) in the
    name or docstring of a class or function, or in a comment at the call. An explicit `training=True`
    is a warning, since it was written by someone who knew of the argument. A mask by hand that forgets
    about eval mode is random-in-eval's.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(20, 64)
            self.fc2 = nn.Linear(64, 10)

        def forward(self, x):
            x = F.dropout(torch.relu(self.fc1(x)), 0.5)
            return self.fc2(x)
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(20, 64)
            self.fc2 = nn.Linear(64, 10)

        def forward(self, x):
            x = F.dropout(torch.relu(self.fc1(x)), 0.5, training=self.training)
            return self.fc2(x)
    ```

    ## When to ignore it
    When the predictions are sampled on purpose, as in Monte Carlo dropout. A comment at the call that
    says so is enough.

    ## Fix safety
    Safe where the argument was left out: training is the same, and eval mode becomes what it is said
    to be. Unsafe for an explicit `training=True`.

    ## References
    Srivastava et al. 2014, "Dropout", section 4. Seed A, section on dropout: in testing and inference
    the whole network must be used. Documentation of `torch.nn.functional.dropout` and
    `scaled_dot_product_attention`. Monte Carlo dropout: Gal & Ghahramani 2016, arXiv:1506.02142.
    Tacotron's prenet: Shen et al. 2017, arXiv:1712.05884, section 2.2.
    """
    suspects = {
        site.key: node
        for node in reversed(list(_dropping(graph)))
        if (site := graph.operation(node).site) is not None
        # Only then is the capture in eval mode worth its time.
        and (_lost_layer(graph, node) or not _asks_for_the_mode(edits, site, node, graph))
        and not _is_on_purpose(graph, edits, node, site)
    }
    in_eval = variants.eval if suspects else None
    if in_eval is None:
        return
    for node in _dropping(in_eval):
        site = in_eval.operation(node).site
        if site is not None and site.key in suspects and in_eval.is_live(node):
            yield _finding(graph, edits, suspects.pop(site.key), site)


def _dropping(graph: Graph) -> Iterator[Any]:
    """Dropout at work that no mode reaches: called by the user's own code, or a layer nobody owns."""
    owned = {id(module) for module in graph.model.modules()}
    for node in graph.calls(*ops.DROPOUTS, ATTENTION):
        is_on = graph.name(node) == ATTENTION or graph.argument(node, "training", True) is True
        layer = _lost_layer(graph, node, owned)
        if is_on and _p(graph, node) > 0 and (layer or not _is_layer_of_torch(graph, node)):
            yield node


def _lost_layer(graph: Graph, node: Any, owned: set[int] | None = None) -> Any:
    """The nn.Dropout behind the call if it is none of the model's modules: `eval()` never meets it."""
    owner = graph.operation(node).owner
    if type(owner).__module__ != "torch.nn.modules.dropout":
        return None
    if owned is None:
        owned = {id(module) for module in graph.model.modules()}
    return None if id(owner) in owned else owner


def _p(graph: Graph, node: Any) -> float:
    name, default = ("dropout_p", 0.0) if graph.name(node) == ATTENTION else ("p", 0.5)
    p = graph.argument(node, name, default)
    return float(p) if isinstance(p, (int, float)) else 0.0


def _is_layer_of_torch(graph: Graph, node: Any) -> bool:
    """Whether it belongs to a layer that knows its mode, or to a kind of nn.Dropout of the user's."""
    kind = type(graph.operation(node).owner)
    return kind.__module__.startswith("torch.") or any(
        base.__module__ == "torch.nn.modules.dropout" for base in kind.__mro__
    )


# ---------------------------------------------------------------------- what the source says


def _call(edits: SourceEdits, site: Site, node: Any, graph: Graph) -> ast.Call | None:
    """The call of dropout itself; None where the source is not the user's, or shows another call."""
    text = edits.text(site.filename)
    call = None if text is None else text.call_at(site)
    name = "" if call is None else ast.unparse(call.func).rpartition(".")[2]
    return call if name == graph.name(node) else None


def _argument(call: ast.Call, graph: Graph, node: Any) -> ast.expr | None:
    """What is passed for `training`, or for the `dropout_p` of attention."""
    is_attention = graph.name(node) == ATTENTION
    names = ("dropout_p",) if is_attention else ("training", "train")
    position = 4 if is_attention else 2
    for keyword in call.keywords:
        if keyword.arg in names:
            return keyword.value
    return call.args[position] if len(call.args) > position else None


def _asks_for_the_mode(edits: SourceEdits, site: Site, node: Any, graph: Graph) -> bool:
    """Whether the source already shows that the call follows the mode."""
    call = _call(edits, site, node, graph)
    if call is not None:
        argument = _argument(call, graph, node)
        if argument is not None and "self.training" in ast.unparse(argument):
            return True
        if not isinstance(argument, ast.Name):
            return False
    # It is handed the mode by its caller, or it is a library's: does either look at it?
    forward = getattr(type(graph.operation(node).owner), "forward", None)
    codes = (site.code, getattr(inspect.unwrap(forward), "__code__", None) if forward else None)
    return any(code is not None and "training" in code.co_names for code in codes)


def _is_on_purpose(graph: Graph, edits: SourceEdits, node: Any, site: Site) -> bool:
    names = " ".join(_names(graph, node, site))
    text = edits.text(site.filename)
    comments, documentation = "", ""
    if text is not None:
        rows = [row for row in (site.row - 1, site.row) if 0 < row <= len(text.lines)]
        comments = " ".join(text.lines[row - 1].partition("#")[2] for row in rows)
        documentation = (text.tree and ast.get_docstring(text.tree)) or ""
    return bool(
        ON_PURPOSE.search(f"{names} {comments} {documentation}")
        or ON_PURPOSE_AT_THE_CALL.search(comments)
    )


def _names(graph: Graph, node: Any, site: Site) -> Iterator[str]:
    """What the code around the call is called, and what it says of itself."""
    modules = dict(graph.model.named_modules())
    parts = graph.operation(node).module.split(".")
    owners = [modules.get(".".join(parts[:depth])) for depth in range(len(parts) + 1)]
    for owner in (*owners, graph.operation(node).owner):
        if owner is not None:
            yield type(owner).__name__
            yield vars(type(owner)).get("__doc__") or ""
    if site.code is not None:
        yield site.code.co_name
        constants = site.code.co_consts  # the docstring is the first
        yield constants[0] if constants and isinstance(constants[0], str) else ""


# ---------------------------------------------------------------------- the finding


def _finding(graph: Graph, edits: SourceEdits, node: Any, site: Site) -> Finding:
    layer = _lost_layer(graph, node)
    if layer is not None:
        return _lost(graph, edits, node, layer, site)
    p = _p(graph, node)
    call = _call(edits, site, node, graph)
    argument = None if call is None else _argument(call, graph, node)
    is_attention = graph.name(node) == ATTENTION
    is_explicit = not is_attention and isinstance(argument, ast.Constant)
    what = graph.name(node) if call is None else ast.unparse(call.func)
    ignores = "says training=True" if is_explicit else "does not ask for self.training"
    noun = "attention weights" if is_attention else "values"
    fixes = [_fix(graph, edits, node, site, is_explicit)]
    if not is_attention:
        fixes.append(
            Fix(
                "or make it an nn.Dropout, which asks by itself",
                reason="a module knows its mode by train() and eval()",
                obstacle="the first fix does the same in one place",
            )
        )
    return Finding(
        f"{what} {ignores}: in eval mode it still drops {100 * p:.4g}% of the {noun}, so that "
        "predictions are random and validation looks worse than the model is",
        where=node,
        evidence={"p": p, "noise_to_signal": round(p / (1 - p), 4) if p < 1 else None},
        fixes=fixes,
        severity=Severity.WARNING if is_explicit or call is None else Severity.ERROR,
        confidence=Confidence.LIKELY if is_explicit else Confidence.CERTAIN,
        affects=[node],
    )


def _lost(graph: Graph, edits: SourceEdits, node: Any, layer: Any, site: Site) -> Finding:
    kind, p = type(layer).__name__, _p(graph, node)
    made = construction_site(layer)
    is_fresh = made is not None and made.code is site.code
    why = "is made anew in each forward, in train mode" if is_fresh else "is no module of the model"
    inline = edits.replaced_calls(
        [(site, _as_function)],
        title=f"call the function: F.{graph.name(node)}(…, {p:g}, self.training)",
        safety=Safety.SAFE,
        reason=WHY,
    )
    made_once = Fix(
        f"make nn.{kind}({p:g}) in __init__, as an attribute or in an nn.ModuleList",
        reason="model.eval() goes through modules(): only what is registered is told",
        obstacle="a line in __init__ and one in forward belong together",
    )
    return Finding(
        f"nn.{kind}({p:g}) {why}, and model.eval() does not reach it: it still drops "
        f"{100 * p:.4g}% of the values, so that predictions are random and validation looks worse than "
        "the model is",
        where=site,
        module=graph.operation(node).module,
        evidence={"p": p, "noise_to_signal": round(p / (1 - p), 4) if p < 1 else None},
        fixes=[inline, made_once] if inline.edits else [made_once, inline],
        affects=[node],
    )


def _as_function(_: ast.Call, source: str) -> str | None:
    """`nn.Dropout(0.4)(x)` as `nn.functional.dropout(x, 0.4, self.training)`."""
    tree = ast.parse(source, mode="eval").body
    if not isinstance(tree, ast.Call) or not isinstance(layer := tree.func, ast.Call):
        return None
    if len(tree.args) != 1 or tree.keywords or not isinstance(layer.func, ast.Attribute):
        return None
    named = [word.value for word in layer.keywords if word.arg == "p"]
    if len(layer.args) + len(named) > 1 or len(layer.keywords) != len(named):
        return None  # in place as well
    written = [*layer.args, *named]
    p = ast.unparse(written[0]) if written else "0.5"
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", layer.func.attr).lower()
    owner = ast.unparse(layer.func.value)
    return f"{owner}.functional.{name}({ast.unparse(tree.args[0])}, {p}, self.training)"


def _fix(graph: Graph, edits: SourceEdits, node: Any, site: Site, is_explicit: bool) -> Fix:
    is_attention = graph.name(node) == ATTENTION
    title = "dropout_p=… if self.training else 0.0" if is_attention else "training=self.training"
    code = site.code
    if code is None or not (code.co_varnames[:1] == ("self",) or "self" in code.co_freevars):
        return Fix(
            f"hand the mode on from the module: {title}",
            reason=WHY,
            obstacle="the call stands in no method of a module",
            patches=_patches(graph, node),
        )

    def rewrite(call: ast.Call, source: str) -> str | None:
        tree = ast.parse(source, mode="eval").body
        if not isinstance(tree, ast.Call) or _call(edits, site, node, graph) is not call:
            return None
        argument = _argument(tree, graph, node)
        if argument is None:
            body = source[:-1].rstrip().removesuffix(",")
            return None if is_attention else f"{body}, training=self.training)"
        before = ast.unparse(argument)
        after = f"{before} if self.training else 0.0" if is_attention else "self.training"
        return _replaced(source, argument, after)

    safety = Safety.UNSAFE if is_explicit else Safety.SAFE
    return edits.replaced_calls(
        [(site, rewrite)],
        title=f"ask for the mode: {title}",
        safety=safety,
        reason=WHY,
        patches=_patches(graph, node),
    )


WHY = "Srivastava et al. 2014, section 4: the whole network answers in eval mode; x·m/(1 − p) has mean x"


def _patches(graph: Graph, node: Any) -> list[Patch]:
    named = places(graph, [node])
    if named is None or not named[1] or graph.name(node) == ATTENTION:
        return []
    return [Patch("arguments", calls=named[1], values={"training": "self.training"})]


def _replaced(source: str, node: ast.expr, content: str) -> str:
    """The source of a call with one of its arguments replaced."""
    lines = source.splitlines(keepends=True)

    def offset(row: int, column: int) -> int:
        passed = "".join(lines[: row - 1])
        return len(passed) + len(lines[row - 1].encode()[:column].decode())

    start = offset(node.lineno, node.col_offset)
    end = offset(node.end_lineno or node.lineno, node.end_col_offset or 0)
    return source[:start] + content + source[end:]
