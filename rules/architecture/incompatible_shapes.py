"""ARC013 incompatible-shapes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from trainlint.rule import (
    Finding,
    Fix,
    Graph,
    Mismatch,
    Patch,
    Safety,
    Severity,
    SourceEdits,
    blames_the_model,
    disagreement,
    expectation,
    flat_width,
    flatten_fixes,
    is_follow_up,
    is_map,
    mismatches,
    rule,
    trace_axis,
)


@rule("ARC013", severity=Severity.ERROR, since="0.1")
def incompatible_shapes(graph: Graph, edits: SourceEdits) -> Iterator[Finding]:
    """An operation in the forward refuses its operands.

    Sums, concatenations, matrix products and reshapes have conditions on the shapes of their operands;
    where they do not hold, PyTorch raises at that line. trainlint confirms the error with eager PyTorch
    on the CPU, reports it with the shapes, and goes on behind it.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.left = nn.Linear(8, 16)
            self.right = nn.Linear(8, 24)

        def forward(self, x):
            return self.left(x) + self.right(x)


    example_inputs = torch.randn(4, 8)
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.left = nn.Linear(8, 16)
            self.right = nn.Linear(8, 16)

        def forward(self, x):
            return self.left(x) + self.right(x)


    example_inputs = torch.randn(4, 8)
    ```

    ## When to ignore it
    When the inputs are not those of your data: give the right ones as `example_inputs` or `--inputs`.
    With inputs that trainlint made up such an error is no finding; it is the reason why the model could
    not be analysed.

    ## Fix safety
    A `view(-1, k)` of a map becomes `x.flatten(1)`, with the width that the layer behind it then gets; it
    is unsafe, since that layer gets other weights. Elsewhere the numbers that would fit are named, without
    an edit: which of the operands is wrong only you know.

    ## References
    Broadcasting semantics, in the PyTorch documentation.
    """
    wrong_widths = mismatches(graph)
    explained = {mismatch.node for mismatch in wrong_widths}
    for node in graph.faults:
        error = graph.operation(node).error
        wrong_rank_norm = (
            graph.name(node) == "module_error"
            and "Norm" in type(graph.operation(node).owner).__name__
        )
        if node in explained or wrong_rank_norm or not blames_the_model(graph, node):
            continue
        if is_follow_up(graph, node):
            continue  # the shape that it refuses was only guessed
        shapes = [graph.shape(source) for source in node.all_input_nodes if graph.shape(source)]
        shown = " and ".join("(" + ", ".join(map(str, dims)) + ")" for dims in shapes[:3] if dims)
        reason = str(error).strip().partition("\n")[0]
        cause = next(
            (
                wrong.fault
                for wrong in wrong_widths
                if node in wrong.agreeing
                or (graph.position(wrong.node) < graph.position(node)
                    and _has_same_cause(graph, node, wrong, shapes))
            ),
            ("shapes", id(node)),
        )  # fmt: skip
        called = getattr(node.target, "__name__", "").strip("_") or graph.name(node)
        wrong_flat = _wrong_flat(graph, node)
        yield Finding(
            f"`{called}` refuses {shown}: {wrong_flat or reason.rstrip('.')}",
            where=node if graph.layer(node) is None else graph.operation(node).site,
            module=graph.operation(node).module,
            evidence={"shapes": [list(dims) for dims in shapes if dims]},
            fixes=_fixes(graph, edits, node, is_flat=wrong_flat is not None),
            fault=cause,
            starved=1.0,
        )


# ---------------------------------------------------------------------- remedies


def _wrong_flat(graph: Graph, node: Any) -> str | None:
    """What is wrong with the numbers of a `view(-1, k)` of a map, that is meant as a flatten."""
    wanted, data = flat_width(graph, node), graph.data(node)
    dims = None if data is None else graph.shape(data)
    if wanted is None or data is None or not dims or wanted[0] not in (-1, dims[0]):
        return None
    if not is_map(graph, data):
        return None
    product = "·".join(map(str, dims[1:]))
    return f"a sample has {product} = {math.prod(dims[1:])} features there, not {wanted[1]}"


def _fixes(graph: Graph, edits: SourceEdits, node: Any, *, is_flat: bool) -> list[Fix]:
    if is_flat:
        return flatten_fixes(graph, edits, node)
    reason = "the operation takes equal sizes, or 1, on every axis but that of a concatenation"
    if graph.name(node) != "cat":
        made = _equal_makers(graph, edits, node, reason)
        if made is not None:
            return [made]
    wanted = _fitting_part(graph, node) if graph.name(node) == "cat" else _fitting_term(graph, node)
    obstacle = (
        "constructor and forward change together"
        if wanted
        else "which of them is wrong is not known"
    )
    title = wanted or "make the shapes agree at this line"
    return [Fix(title, reason=reason, obstacle=obstacle)]


def _equal_makers(graph: Graph, edits: SourceEdits, node: Any, reason: str) -> Fix | None:
    """As many units in the one layer as in the other, whose results are added."""
    title, sizes = _fitting_term(graph, node), disagreement(graph, node)
    if title is None or sizes is None or not title.startswith("as many units"):
        return None
    maker = _maker_of(graph, node.all_input_nodes[0], sizes[0])
    layer = None if maker is None else graph.layer(maker)
    out = next((n for n in ("out_features", "out_channels") if hasattr(layer, n)), None)
    if maker is None or out is None:
        return None
    name = graph.operation(maker).module
    return edits.argument(
        graph.constructed(maker),
        1,
        out,
        sizes[1],
        current=sizes[0],
        title=title,
        safety=Safety.UNSAFE,
        reason=reason,
        patches=[Patch.rebuilt(name, **{out: sizes[1]})] if name else [],
        built=max(len(graph.built_together(maker)), 1),
        suits=1,
    )


def _fitting_part(graph: Graph, node: Any) -> str | None:
    """The shape with which a concatenation of two would suit the layer behind it, and who has it."""
    parts = node.all_input_nodes
    axis = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    wants = next(
        (wants for user in graph.consumers(node) if (wants := expectation(graph, user))), None
    )
    if len(parts) != 2 or wants is None or not isinstance(axis, int):
        return None
    for kept, other in (parts, parts[::-1]):
        dims, refused = graph.shape(kept), graph.shape(other)
        if not dims or not refused or len(dims) != len(refused):
            continue
        place = axis % len(dims)
        lost = abs(dims[-1] - refused[-1])
        if place == 1 and len(dims) == 4 and 0 < 3 * lost < max(dims[-1], refused[-1]):
            return (
                f"padding in the convolutions that lost {lost} rows and columns, or "
                "F.interpolate(x, size=skip.shape[2:]) before torch.cat"
            )
        fitting = (*dims[:place], wants.expected - dims[place], *dims[place + 1 :])
        maker = trace_axis(graph, kept, place).node
        found = [
            call
            for call in graph.calls_in_order[: graph.calls_in_order.index(node)]
            if graph.shape(call) == fitting and trace_axis(graph, call, place).node is not maker
        ]
        if fitting[place] > 0 and found:
            site = graph.operation(found[-1]).site
            line = "" if site is None else f" in line {site.row}"
            return (
                f"concatenate {_shown(fitting)}, as {graph.label(found[-1])} returns{line}, instead "
                f"of {_shown(refused)}: the next layer expects {wants.expected} {wants.what}, "
                f"{dims[place]} + {fitting[place]}"
            )
    return None


def _fitting_term(graph: Graph, node: Any) -> str | None:
    """The layer that a shortcut needs to be added; or, of two layers, the widths to make equal."""
    sizes, terms = disagreement(graph, node), node.all_input_nodes
    shapes = [graph.shape(term) for term in terms]
    if sizes is None or graph.name(node) not in ("add", "sub") or len(terms) != 2:
        return None
    for shortcut, branch in (terms, terms[::-1]):
        source, target = graph.shape(shortcut), graph.shape(branch)
        if source and target and len(source) == len(target) and _leads_to(shortcut, branch):
            return _projection(source, target)
    makers = [_maker(graph, term, size) for term, size in zip(terms, sizes, strict=True)]
    if shapes[0] and None not in makers:
        return f"as many units in {makers[0]} ({sizes[0]}) as in {makers[1]} ({sizes[1]})"
    return None


def _projection(source: tuple[int, ...], target: tuple[int, ...]) -> str | None:
    """The map from the shortcut to the branch: a 1 x 1 convolution with a stride, or a linear layer."""
    if len(source) == 4 and all(source[2:]) and all(target[2:]):
        stride, rest = divmod(source[2], target[2])
        is_even = not rest and source[3] == stride * target[3]
        if not is_even:
            return None
        step = f", stride={stride}" if stride > 1 else ""
        return f"nn.Conv2d({source[1]}, {target[1]}, 1{step}) on the shortcut"
    if source[:-1] == target[:-1]:
        return f"nn.Linear({source[-1]}, {target[-1]}) on the shortcut"
    return None


def _maker(graph: Graph, term: Any, size: int) -> str | None:
    node = _maker_of(graph, term, size)
    return None if node is None else graph.label(node)


def _maker_of(graph: Graph, term: Any, size: int) -> Any:
    places = [place for place, other in enumerate(graph.shape(term) or ()) if other == size]
    source = trace_axis(graph, term, places[-1]) if places else None
    return source.node if source is not None and source.kind == "layer" else None


def _leads_to(source: Any, node: Any) -> bool:
    stack, seen = [source], {source}
    while stack:
        for user in stack.pop().users:
            if user is node:
                return True
            if user not in seen:
                seen.add(user)
                stack.append(user)
    return False


def _shown(dims: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, dims))})"


# ---------------------------------------------------------------------- causes


def _has_same_cause(graph: Graph, node: Any, wrong: Mismatch, shapes: list[Any]) -> bool:
    """Whether it is refused for the width that a layer was refused for; a reshape for many times that."""
    expected, received = wrong.wants.expected, wrong.wants.received
    sizes = {size for dims in shapes for size in dims or ()} | set(_numbers(node.args))
    if {expected, received} <= sizes:
        return True
    found = disagreement(graph, node) if graph.name(node) == "reshape" else None
    return found is not None and found[0] * expected == found[1] * received


def _numbers(value: Any) -> Iterator[int]:
    """The whole numbers in an argument: a reshape names its sizes."""
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from _numbers(part)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield value
