"""ARC005 cut-gradient-path."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from trainlint.rule import (
    Confidence,
    Finding,
    Fix,
    GradientCut,
    Graph,
    Location,
    Losses,
    Parameter,
    Patch,
    Reachability,
    Severity,
    Signal,
    Site,
    SourceEdits,
    construction_site,
    explained,
    is_initializer,
    places,
    removal_patches,
    resolved_methods,
    rule,
    source_of,
)

COMPARISONS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "eq": "==", "ne": "!="}
SPELLED = {
    "detach": ".detach()",
    "get_data": ".data",
    "tensor": "torch.tensor(...)",
    "new_tensor": ".new_tensor(...)",
    "item": ".item()",
    "tolist": ".tolist()",
    "numpy": ".numpy()",
    "array": "np.asarray(...)",
    "float": "float(...)",
    **{name: f"the comparison {sign}" for name, sign in COMPARISONS.items()},
}
NOISE = frozenset({"rand", "rand_like", "uniform"})
DRAWS = frozenset(
    "normal bernoulli multinomial poisson binomial _standard_gamma _sample_dirichlet".split()
)
# How a network is called that another one is copied to, at once or little by little.
TARGET = re.compile(
    r"target|teacher|momentum|\bema|ema\b|_ema|ema_|moving|slow|encoder_k|key_encoder|_k\b|shadow|polyak|"
    r"\bold|_old|frozen|reference|offline",
    re.IGNORECASE,
)


@rule(
    "ARC005",
    severity=Severity.ERROR,
    since="0.1",
    topics=["gradient-flow"],
    explains=["no-gradient", "learning-rate-too-low"],
)
def cut_gradient_path(
    graph: Graph, edits: SourceEdits, losses: Losses, signal: Signal | None
) -> Iterator[Finding]:
    """Parameters are used in the forward, but no gradient can come back to them.

    Backpropagation follows the operations that autograd recorded: ∂L/∂w is a sum over the paths from
    w to the loss, of the product of the derivatives along each. `.detach()`, `.data`, `.item()`,
    `.numpy()`, `torch.tensor(x)` and `torch.no_grad()` make a value without a record, and `argmax`,
    `round` or a comparison have none or a slope of 0. If every path of w passes through one of them, the
    sum is empty: w.grad stays None, the optimizer skips w, and the layer keeps its random values for ever.
    Nothing is raised as long as one other parameter is trained. The loss falls a little, since the
    layers behind the cut learn to make do with random features.

    The finding names the nearest cut on the way from the parameters to an output. It is an error where
    no input reaches an output along a differentiable path, a warning where one branch is cut, and advice
    where a part runs under `no_grad` as a whole, as frozen feature extractors do.

    Where nothing at all can learn, since all of the forward runs under `no_grad`, or it returns the classes
    that `argmax` picks, or every parameter is frozen, `backward()` itself raises. That is an error if the
    model is seen to be trained, by a loss or an optimizer. Else it is a model to be applied, such as a
    sampler, and so it is where the class has another method that uses the weights.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(16, 32), nn.ReLU())
            self.head = nn.Linear(32, 4)

        def forward(self, x):
            features = self.encoder(x).detach()
            return self.head(features)
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(16, 32), nn.ReLU())
            self.head = nn.Linear(32, 4)

        def forward(self, x):
            features = self.encoder(x)
            return self.head(features)
    ```

    ## When to ignore it
    Stop-gradients by design are silent where they can be told by their structure: a straight-through
    estimator x + (q - x).detach(), a target network that is a copy of a trained one, a sample of a
    distribution (REINFORCE, Boltzmann machines), frozen parameters, and whatever has another way to an
    output, as a router has by the weight beside its hard choice. If a part shall stay as it is, say so
    with `requires_grad_(False)`: the finding then disappears, and the optimizer needs no memory for it.

    ## Fix safety
    Unsafe: without the cut more of the model is trained, and memory is needed for its activations. A
    `with torch.no_grad():` is taken away where it only computes values, and nothing is written in place.

    ## References
    Straight-through: Bengio et al. 2013, arXiv:1308.3432; VQ-VAE: van den Oord et al. 2017,
    arXiv:1711.00937, section 3.2. Target networks: Grill et al. 2020, arXiv:2006.07733.
    """
    if losses.trained and not losses.may_unfreeze and _is_frozen(graph):
        yield _all_frozen(graph)
        return
    reach = Reachability(graph)
    severed = reach.is_severed
    groups: dict[Any, list[GradientCut]] = {}
    for cut in _unmeant(graph, reach):
        if signal is None and not _is_provable(graph, cut, severed):
            continue
        groups.setdefault(_place(graph, edits, reach, cut), []).append(cut)
    for place, cuts in groups.items():
        starved = _confirmed(signal, cuts)
        if starved:
            severity = _severity(graph, reach, cuts, losses)
            nothing = reach.learns_nothing
            found = _finding(graph, edits, cuts, starved, place, nothing, severity)
            known = signal is not None or (nothing and graph.complete)
            yield replace(
                found,
                evidence={
                    **found.evidence,
                    "gradient": "none, by the graph"
                    if signal is None
                    else "none in a backward pass that was made",
                },
                confidence=Confidence.CERTAIN if known else Confidence.LIKELY,
            )


# ---------------------------------------------------------------------- what is meant


def _unmeant(graph: Graph, reach: Reachability) -> Iterator[GradientCut]:
    """The cuts, with those of their parameters that no structure tells to be cut off by design."""
    cuts = reach.cuts()
    cut_off = {parameter.node for cut in cuts for parameter in cut.parameters}
    straight: dict[Any, bool] = {}
    for cut in cuts:
        rest = []
        for parameter in cut.parameters:
            for way in reach.ways_out(parameter):
                if way not in straight:
                    straight[way] = reach.passes_straight(way)
            if not any(straight[way] for way in reach.ways_out(parameter)):
                rest.append(parameter)
        remaining = replace(cut, parameters=tuple(rest))
        if (
            rest
            and not _is_drawn(graph, cut)
            and not _is_target_network(graph, reach, remaining, cut_off)
        ):
            yield remaining


def _is_drawn(graph: Graph, cut: GradientCut) -> bool:
    """A sample of a distribution that the parameters make: learnt by its log-probability or energy.

    `Normal(mu, std).sample()` runs without autograd; units of a Boltzmann machine are `p > rand`.
    """
    stack, seen = [cut.node], {cut.node}
    if cut.kind in ("flat", "discrete"):  # what the probability is compared with, one step away
        operands = [source for node in (cut.node, *cut.node.all_input_nodes) for source in
                    (node, *node.all_input_nodes)]  # fmt: skip
        return any(graph.name(node) in NOISE | DRAWS for node in operands)
    while cut.kind == "no_grad" and stack:
        node = stack.pop()
        if graph.name(node) in DRAWS:
            return True
        for user in node.users:
            runs_on = not graph.operation(user).grad_enabled and not graph.is_weighted(user)
            if runs_on and user not in seen:
                seen.add(user)
                stack.append(user)
    return False


def _is_target_network(
    graph: Graph, reach: Reachability, cut: GradientCut, cut_off: set[Any]
) -> bool:
    """Each cut parameter lies in a module that has a twin which is trained beside it, as its copy.

    Layers of one shape stand side by side in any model. A target network is called so; or it takes the
    inputs as they are, and is either more than a layer or equal to its twin.
    """
    behind, before = reach.descendants([cut.node]), reach.ancestors(cut.node)
    is_first = not any(p.node in before and p.node in reach.learning for p in graph.parameters)
    nodes = {parameter.name: parameter.node for parameter in graph.parameters}
    modules = dict(graph.model.named_modules())
    shapes = {path: _signature(module) for path, module in modules.items()}
    covered: set[str] = set()
    for path, signature in shapes.items():
        inside = [f"{path}.{name}" for name in signature]
        if not path or not any(nodes.get(name) in cut_off for name in inside):
            continue
        for other, theirs in shapes.items():
            if (
                other == path
                or theirs != signature
                or type(modules[other]) is not type(modules[path])
            ):
                continue
            twins = [twin for name in theirs if (twin := nodes.get(f"{other}.{name}")) is not None]
            is_beside = not any(user in behind | before for twin in twins for user in twin.users)
            is_copy = TARGET.search(path) or (
                is_first and (len(signature) > 2 or _is_equal(modules[path], modules[other]))
            )
            if is_copy and is_beside and any(twin in reach.learning for twin in twins):
                covered.update(inside)
    return all(parameter.name in covered for parameter in cut.parameters)


def _signature(module: Any) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(parameter.shape)
        for name, parameter in module.named_parameters()
        if not hasattr(parameter, "materialize")
    }


def _is_equal(one: Any, other: Any) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(not left.is_meta and left.equal(right) for left, right in pairs)


# ---------------------------------------------------------------------- what is known


def _is_provable(graph: Graph, cut: GradientCut, severed: bool) -> bool:
    """Whether the graph alone suffices: nothing in it may hide a way of the gradient."""
    if cut.kind == "discrete" and not severed:
        return False
    if not graph.complete or any(graph.calls("autograd_function")):
        return False
    # `w.data = f(w.data)`: the parameter itself gets a new value, and keeps its gradient.
    sources = cut.node.all_input_nodes
    return not (graph.name(cut.node) == "get_data" and sources and sources[0].op == "get_attr")


def _confirmed(signal: Signal | None, cuts: list[GradientCut]) -> list[Parameter]:
    """The parameters that a real backward pass left without a gradient as well."""
    found: list[Parameter] = []
    for cut in cuts:
        for parameter in cut.parameters:
            arrived = None if signal is None else signal.gradient(parameter)
            if arrived is None or (arrived == 0 and cut.kind == "flat"):
                found.append(parameter)
    return found


# ---------------------------------------------------------------------- what is said


def _finding(
    graph: Graph,
    edits: SourceEdits,
    cuts: list[GradientCut],
    starved: list[Parameter],
    place: Any,
    nothing_learns: bool,
    severity: Severity,
) -> Finding:
    cut = cuts[0]
    spelled = _spelled(graph, cut)
    share = graph.share_of_parameters(starved)
    names = [parameter.name for parameter in starved]
    more = f"{len(names) - 1} more parameter{'s' * (len(names) > 2)}"
    what = names[0] if len(names) == 1 else f"{names[0]} and {more}"
    cost = "it stays as initialised" if len(names) == 1 else "they stay as initialised"
    if nothing_learns:
        cost = "nothing is trained, and backward() raises"
    return Finding(
        f"{spelled} cuts off {what}, {share:.1%} of the model: no gradient reaches "
        f"{'it' if len(names) == 1 else 'them'}, so {cost}",
        where=place if place is not None else cut.node,
        module=graph.operation(cut.node).module,
        evidence={
            "cut": spelled,
            "kind": cut.kind,
            "parameters": names,
            "share_of_parameters": round(share, 4),
        },
        fixes=[_fix(graph, edits, cut, spelled, place, severity)],
        severity=severity,
        starved=share,
        affects=[cut.node, *(parameter.node for parameter in starved)],
        unreached=[parameter.name for parameter in starved],
    )


def _severity(
    graph: Graph, reach: Reachability, cuts: list[GradientCut], losses: Losses
) -> Severity:
    is_applied = reach.learns_nothing and (cuts[0].kind == "no_grad" or not graph.outputs)
    if is_applied and losses.trained:  # backward() raises, or the scores are not those of forward
        return Severity.INFO if _is_trained_otherwise(graph) else Severity.ERROR
    if is_applied and not graph.outputs and cuts[0].kind == "discrete":
        return Severity.INFO
    if cuts[0].kind == "no_grad":
        if not losses.calls and not any(
            graph.operation(n).grad_enabled for n in graph.calls_in_order
        ):
            return Severity.INFO  # made for inference: another class, or method, is trained
        if reach.learns_nothing:
            return Severity.WARNING
        if all(_runs_without_autograd(graph, cut) for cut in cuts):
            return Severity.INFO  # a frozen part, which only `requires_grad` does not know of
    return Severity.ERROR if reach.is_severed else Severity.WARNING


def _runs_without_autograd(graph: Graph, cut: GradientCut) -> bool:
    """Whether the parameters themselves are used under `no_grad`, not only what comes after them."""
    return all(
        not graph.operation(user).grad_enabled
        for parameter in cut.parameters
        if parameter.node is not None
        for user in parameter.node.users
    )


def _is_trained_otherwise(graph: Graph) -> bool:
    """Whether another method of the class uses its layers: `p_losses`, `neg_log_likelihood`.

    What forward itself calls does not count.
    """
    owner: Any = type(graph.model)
    methods, complete = resolved_methods(owner)
    named = {method.name: set(_own_names(method.tree)) for method in methods}
    within, stack = set(), ["forward"]
    while stack:
        name = stack.pop()
        if name not in within:
            within.add(name)
            stack += [other for other in named.get(name, ()) if other in named]
    parts = {name for name, _ in graph.model.named_children()}
    parts |= {name for name, _ in graph.model.named_parameters(recurse=False)}
    return not complete or any(
        names & parts
        for name, names in named.items()
        if name not in within and not is_initializer(name) and name != "configure_optimizers"
    )


def _own_names(tree: ast.AST) -> Iterator[str]:
    """The attributes of `self` that a method reads."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Load):
            continue
        if getattr(node.value, "id", "") == "self":
            yield node.attr


def _spelled(graph: Graph, cut: GradientCut) -> str:
    if cut.kind == "no_grad":
        return "torch.no_grad()"
    operation = graph.operation(cut.node)
    if operation.name == "output" and cut.node.all_input_nodes:
        return f"the index of {graph.name(cut.node.all_input_nodes[0])}"
    name = operation.escape if cut.kind == "read" else operation.name
    return SPELLED.get(name, name)


def _recorded(graph: Graph, edits: SourceEdits, place: Any) -> Fix:
    """Without the switch; live, with gradients for all that runs under it."""
    title = "take `torch.no_grad()` away, or freeze the part with `requires_grad_(False)`"
    reason = "within no_grad nothing is recorded, so that there is nothing to go back through"
    unrecorded = [
        node
        for node in graph.calls_in_order
        if not graph.operation(node).grad_enabled and graph.name(node) != "output"
    ]
    named = places(graph, unrecorded)
    patches = [] if named is None else [Patch.with_gradients(modules=named[0], calls=named[1])]
    if not isinstance(place, tuple):
        why = "where it is switched off is not seen"
        return Fix(title, reason=reason, obstacle=why, patches=patches)
    filename, row, column, _ = place
    start = Location(row, column)
    return edits.without_context(filename, start, title=title, reason=reason, patches=patches)


def _fix(
    graph: Graph, edits: SourceEdits, cut: GradientCut, spelled: str, place: Any, severity: Severity
) -> Fix:
    operation = graph.operation(cut.node)
    if cut.kind == "no_grad":
        if place is not None and severity != Severity.INFO:
            return _recorded(graph, edits, place)
        return Fix(
            "move it out of `torch.no_grad()`, or freeze the part with `requires_grad_(False)`",
            reason="within no_grad nothing is recorded, so that there is nothing to go back through",
            obstacle="a block would have to be divided",
        )
    if cut.kind == "read":
        title = f"keep it a tensor: leave out {spelled} and use torch's own operations"
        reason = "a Python or numpy number does not know what it was computed from"
        if operation.escape == "item":
            site = operation.escape_site
            return edits.replaced_calls([(site, _without_item)], title=title, reason=reason)
        obstacle = "what follows is computed outside of torch"
        return Fix(title, reason=reason, obstacle=obstacle)
    if cut.kind == "discrete":
        if not graph.outputs and all(user.op == "output" for user in cut.node.users):
            title = f"return the scores, and take {spelled} where predictions are made"
            reason = "an index has no derivative; losses of classes take scores"
            return edits.replaced_calls(
                [(operation.site, _without_argmax)], title=title, reason=reason
            )
        return Fix(
            f"{spelled} has no derivative: use softmax weights, F.gumbel_softmax or a "
            "straight-through estimator x + (q - x).detach()",
            reason="Bengio, Léonard & Courville 2013; Jang, Gu & Poole 2017: estimators of its gradient",
            obstacle="which of them suits depends on what the choice is for",
        )
    if cut.kind == "flat":
        title = (
            f"{spelled} has slope 0: pass the gradient straight through, "
            f"x + (torch.{spelled}(x) - x).detach()"
        )
        reason = "Bengio, Léonard & Courville 2013: the straight-through estimator"
        return explained(
            edits.replaced_calls([(operation.site, _straight_through)], title=title, reason=reason),
            obstacle="what it is applied to has no name of its own",
        )
    title = f"remove {spelled}"
    reason = f"{spelled} gives the values without what they were computed from"
    if graph.name(cut.node) in ("detach", "get_data"):
        patches = removal_patches(graph, [cut.node])
        text = None if operation.site is None else edits.text(operation.site.filename)
        attribute = None if text is None else _data_at(text, operation.site)
        if text is not None and attribute is not None:
            content = ast.get_source_segment(text.text, attribute.value) or ""
            return edits.replaced_expression(
                text, attribute, content, title=title, reason=reason, patches=patches
            )
        return edits.replaced_calls(
            [(operation.site, _without_detach)], title=title, reason=reason, patches=patches
        )
    return Fix(title, reason=reason, obstacle="it is no call that could be taken out")


def _data_at(text: Any, site: Any) -> ast.Attribute | None:
    """The `x.data` that the site's instruction reads."""
    span = site.span()
    found = [
        node
        for node in ast.walk(text.tree or ast.Module([], []))
        if isinstance(node, ast.Attribute)
        and node.attr == "data"
        and span is not None
        and (node.end_lineno, node.end_col_offset) == (span[1], span[3])
    ]
    return found[0] if len(found) == 1 else None


def _without_item(call: ast.Call, source: str) -> str | None:
    match = re.fullmatch(r"(.+?)\s*\.item\(\s*\)", source, re.DOTALL)
    return match[1] if match and isinstance(call.func, ast.Attribute) else None


def _straight_through(call: ast.Call, source: str) -> str | None:
    """`x + (torch.sign(x) - x).detach()` for `torch.sign(x)` and `x.sign()`."""
    if not isinstance(call.func, ast.Attribute) or len(call.args) > 1 or call.keywords:
        return None
    operand = call.args[0] if call.args else call.func.value
    if not isinstance(operand, ast.Name):
        return None
    return f"({operand.id} + ({source} - {operand.id}).detach())"


def _without_argmax(call: ast.Call, source: str) -> str | None:
    """The scores of `scores.argmax(1)` and `torch.argmax(scores, dim=1)`."""
    parsed = ast.parse(source, mode="eval").body
    if not isinstance(parsed, ast.Call) or not isinstance(call.func, ast.Attribute):
        return None
    callee = parsed.func
    if not isinstance(callee, ast.Attribute) or callee.attr != "argmax":
        return None
    of_torch = isinstance(callee.value, ast.Name) and callee.value.id == "torch"
    scores = (parsed.args[0] if parsed.args else None) if of_torch else callee.value
    return None if scores is None else ast.get_source_segment(source, scores)


def _without_detach(call: ast.Call, source: str) -> str | None:
    match = re.fullmatch(r"(.+?)\s*\.detach\(\s*\)", source, re.DOTALL)
    return match[1] if match and isinstance(call.func, ast.Attribute) else None


# ---------------------------------------------------------------------- all frozen


def _is_frozen(graph: Graph) -> bool:
    """Whether the forward uses parameters, none of them to be trained, on inputs that are not either."""
    frozen = list(graph.model.parameters())
    inputs = [graph.operation(node).tensor for node in graph.nodes if node.op == "placeholder"]
    return (
        bool(frozen)
        and not any(parameter.requires_grad for parameter in frozen)
        and any(graph.operation(node).origin == "parameter" for node in graph.nodes)
        and not any(tensor is not None and tensor.requires_grad for tensor in inputs)
    )


def _all_frozen(graph: Graph) -> Finding:
    parameters = list(graph.model.parameters())
    count = sum(parameter.numel() for parameter in parameters)
    parts = [
        name for name, part in graph.model.named_children() if any(True for _ in part.parameters())
    ]
    cure = (
        f"`model.{parts[-1]}.requires_grad_(True)` behind it"
        if parts
        else "freeze only a part of it"
    )
    return Finding(
        f"every parameter is frozen, all {count:,} weights: nothing can be trained, and backward() raises",
        where=_where_frozen(graph) or construction_site(graph.model),
        module="",
        evidence={"cut": "requires_grad=False", "weights": count, "share_of_parameters": 1.0},
        fixes=[
            Fix(
                f"leave the layers that shall learn out of it: {cure}",
                reason="backward() needs at least one parameter that asks for a gradient",
                obstacle="which layers shall learn, only you know",
                patches=[
                    Patch.unfreeze(
                        name
                        for name, _ in graph.model.named_parameters()
                        if not parts or name.startswith(f"{parts[-1]}.")
                    )
                ],
            )
        ],
        severity=Severity.ERROR,
        starved=1.0,
        affects=list(graph.calls_in_order),
    )


def _where_frozen(graph: Graph) -> tuple[str, int, int, int] | None:
    """The one place in the model's files where gradients are switched off by hand."""
    owner: Any = type(graph.model)
    site = construction_site(graph.model)
    files = [] if site is None else [site.project.filename]
    files += [method.filename for method in resolved_methods(owner)[0]]
    for filename in dict.fromkeys(files):
        text = source_of(filename)
        found = [] if text is None or text.tree is None else list(_freezing(text.tree))
        if text is not None and len(found) == 1:
            [node] = found
            start = text.location(node.lineno, node.col_offset)
            end = text.location(node.lineno, node.end_col_offset or node.col_offset)
            return (filename, start.row, start.column, end.column)
    return None


def _freezing(tree: ast.AST) -> Iterator[ast.stmt | ast.expr]:
    """`p.requires_grad = False`, `model.requires_grad_(False)`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            target = node.targets[0]
            is_flag = isinstance(target, ast.Attribute) and target.attr == "requires_grad"
            if is_flag and isinstance(node.value, ast.Constant) and node.value.value is False:
                yield node
        elif isinstance(node, ast.Call) and "requires_grad_(False)" in ast.unparse(node)[-21:]:
            yield node


# ---------------------------------------------------------------------- where it is


def _place(graph: Graph, edits: SourceEdits, reach: Reachability, cut: GradientCut) -> Any:
    """The `with torch.no_grad():` around the operation, else its call."""
    operation = graph.operation(cut.node)
    if cut.kind != "no_grad":
        return operation.escape_site if cut.kind == "read" else operation.site
    # The switch may stand around the call of a module that the operation is deep inside of.
    inside = [n for n in reach.descendants([cut.node]) if not graph.operation(n).grad_enabled]
    for node in sorted(inside, key=graph.position):
        for site in (graph.operation(node).site, graph.operation(node).returned):
            switch = None if site is None else _switch_around(edits, site)
            if switch is not None:
                return switch
    return _switch_of_forward(graph) or operation.site


def _switch_around(edits: SourceEdits, site: Site) -> tuple[str, int, int, int] | None:
    """Where autograd is switched off for the call, as (file, row, column, end column)."""
    text = edits.text(site.project.filename)
    if text is None or text.tree is None:
        return None
    around = [
        place
        for node in ast.walk(text.tree)
        if isinstance(node, ast.stmt)
        and node.lineno <= site.project.row <= (node.end_lineno or node.lineno)
        for place in _switches(node)
    ]
    if not around:
        return None
    place = max(around, key=lambda place: place.lineno)
    start = text.location(place.lineno, place.col_offset)
    end = text.location(place.lineno, place.end_col_offset or place.col_offset)
    return (text.filename, start.row, start.column, end.column)


def _switch_of_forward(graph: Graph) -> tuple[str, int, int, int] | None:
    """Where the model's forward switches autograd off for the methods that it calls."""
    owner: Any = type(graph.model)
    for method in resolved_methods(owner)[0]:
        text = source_of(method.filename) if method.name == "forward" else None
        switches = [] if text is None else _switches(method.tree)
        if text is not None and switches:
            start = text.location(switches[0].lineno, switches[0].col_offset)
            end = text.location(switches[0].lineno, switches[0].end_col_offset or 0)
            return (method.filename, start.row, start.column, end.column)
    return None


def _switches(node: ast.stmt) -> list[ast.expr]:
    """The expressions of a `with` or of decorators that switch autograd off."""
    found: list[ast.expr] = []
    if isinstance(node, (ast.With, ast.AsyncWith)):
        found = [item.context_expr for item in node.items]
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        found = list(node.decorator_list)
    return [
        expression
        for expression in found
        if re.search(r"no_grad|inference_mode|set_grad_enabled", ast.unparse(expression))
    ]
