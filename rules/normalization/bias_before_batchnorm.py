"""NRM005 bias-before-batchnorm."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from trainlint.rule import (
    Finding,
    Fix,
    Graph,
    Parameter,
    Patch,
    Safety,
    Severity,
    SourceEdits,
    axis_after,
    batch_norms,
    ops,
    rule,
    unit_axis,
)

# Position of `bias` among the constructor's arguments.
POSITIONS = {
    "Linear": 2,
    **dict.fromkeys(("Conv1d", "Conv2d", "Conv3d"), 7),
    **dict.fromkeys(("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"), 7),
}


@rule("NRM005", severity=Severity.INFO, since="0.1")
def bias_before_batchnorm(graph: Graph, edits: SourceEdits) -> Iterator[Finding]:
    """The bias of a layer is subtracted again by the BatchNorm right behind it.

    BatchNorm subtracts each channel's mean over the batch. A bias b shifts that mean by b as well:
    (z + b) − mean(z + b) = z − mean(z). In training the bias therefore changes nothing and its gradient
    is zero, up to rounding; the shift that the layer can learn is BatchNorm's own β. The bias costs
    memory and time, also in the optimizer, and in weight decay.

    trainlint reports only what is exact: nothing but the BatchNorm reads the layer, each bias falls on
    one channel, and the BatchNorm uses the batch's statistics. A linear layer whose units are spread
    over space, as at the start of a generator (`view(-1, 128, 7, 7)`), keeps its bias.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 16, 3)
            self.bn = nn.BatchNorm2d(16)
            self.head = nn.Linear(16, 10)

        def forward(self, x):
            x = torch.relu(self.bn(self.conv(x)))
            return self.head(x.mean((2, 3)))
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 16, 3, bias=False)
            self.bn = nn.BatchNorm2d(16)
            self.head = nn.Linear(16, 10)

        def forward(self, x):
            x = torch.relu(self.bn(self.conv(x)))
            return self.head(x.mean((2, 3)))
    ```

    ## When to ignore it
    Where checkpoints with the bias must still load, or where BatchNorm will be folded into the layer.

    ## Fix safety
    Safe: the function that is learnt is the same. The names in the state dict are not, and fewer random
    numbers are drawn at initialisation. It is offered for calls that build only such layers.

    ## References
    Ioffe & Szegedy 2015, arXiv:1502.03167, section 3.2: "the bias b can be ignored".
    """
    found = {
        node: bias
        for norm in batch_norms(graph)
        for node, bias in [_removed_bias(graph, norm)]
        if node is not None and bias is not None
    }
    # A layer that is used several times must be followed by a BatchNorm each time.
    found = {
        node: bias for node, bias in found.items() if set(_users(graph, bias.node)) <= set(found)
    }
    if not found:
        return
    layers = list(dict.fromkeys(graph.label(node) for node in found))
    count = sum(bias.tensor.numel() for bias in {b.name: b for b in found.values()}.values())
    shown = ", ".join(layers[:2]) + (", …" if len(layers) > 2 else "")
    what = (
        f"the bias of {shown} is subtracted by its BatchNorm"
        if len(layers) == 1
        else f"the biases of {len(layers)} layers ({shown}) are subtracted by their BatchNorms"
    )
    cost = f"{count} parameters get" if count > 1 else "1 parameter gets"
    yield Finding(
        f"{what}: {cost} no gradient",
        where=next(iter(found)),
        evidence={
            "modules": list(dict.fromkeys(graph.path(node) for node in found)),
            "parameters": count,
        },
        fixes=[_fix(graph, edits, list(found))],
        affects=list(found),
    )


def _removed_bias(graph: Graph, norm: Any) -> tuple[Any, Parameter | None]:
    """The layer in front of a BatchNorm and its trained bias, if the BatchNorm removes just that."""
    node, passed = graph.producer(norm, ops.REARRANGEMENTS)
    nothing = (None, None)
    if node is None or not graph.is_weighted(node):
        return nothing
    bias = graph.argument(node, "bias")
    parameter = next((p for p in graph.parameters if p.node is bias), None)
    if bias is None or parameter is None:
        return nothing
    if any(len(_users(graph, each)) > 1 for each in (node, *passed)):
        return nothing
    if any(graph.name(each) in ("mul", "div") and len(each.all_input_nodes) > 1 for each in passed):
        return nothing  # a factor that differs from place to place leaves some of the bias
    if axis_after(graph, node, unit_axis(graph, node), passed) != 1:
        return nothing
    return node, parameter


def _users(graph: Graph, node: Any) -> list[Any]:
    return [user for user in node.users if graph.is_live(user)]


def _fix(graph: Graph, edits: SourceEdits, nodes: list[Any]) -> Fix:
    """`bias=False` at every constructor that builds nothing else."""
    layers = {id(graph.layer(node)) for node in nodes}
    sites = {}
    for node in nodes:
        site, kind = graph.constructed(node), type(graph.layer(node)).__name__
        together = graph.built_together(node)
        if site is not None and kind in POSITIONS and {id(m) for m in together} <= layers:
            sites[site.key] = (site, lambda call, text, kind=kind: without_bias(call, text, kind))
    title = "bias=False" if len(layers) == 1 else f"bias=False in these {len(layers)} layers"
    reason = (
        "BatchNorm subtracts the mean, and a constant with it (Ioffe & Szegedy 2015, section 3.2)"
    )
    names = dict.fromkeys(graph.operation(node).module for node in nodes if graph.layer(node))
    patches = [Patch.rebuilt(name, bias=False) for name in names if name]
    editable = [
        change for change in sites.values() if edits.replaced_calls([change], title=title).edits
    ]
    if not editable:
        obstacle = "no call makes only such layers, by arguments that are written there"
        return Fix(title, reason=reason, obstacle=obstacle, patches=patches)
    if len(editable) < len(sites) or not all(_covered(graph, node, sites) for node in nodes):
        title += f" ({len(editable)} calls as an edit)"
    return edits.replaced_calls(
        editable, title=title, safety=Safety.SAFE, reason=reason, patches=patches
    )


def _covered(graph: Graph, node: Any, sites: dict[Any, Any]) -> bool:
    site = graph.constructed(node)
    return site is not None and site.key in sites


def without_bias(call: ast.Call, source: str, kind: str) -> str | None:
    """The constructor call with `bias=False`, or None where it cannot be written in safely."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name != kind or len(call.args) > POSITIONS[kind]:
        return None
    if any(isinstance(arg, ast.Starred) for arg in call.args):
        return None
    try:
        parsed = ast.parse(source, mode="eval").body
    except SyntaxError:
        return None
    assert isinstance(parsed, ast.Call)
    if any(word.arg is None for word in parsed.keywords):
        return None
    for word in parsed.keywords:
        if word.arg == "bias":
            is_true = isinstance(word.value, ast.Constant) and word.value.value is True
            return _spliced(source, word.value, "False", replace=True) if is_true else None
    parts = [*parsed.args, *(word.value for word in parsed.keywords)]
    last = max(parts, key=lambda part: (part.end_lineno, part.end_col_offset))
    return _spliced(source, last, ", bias=False", replace=False)


def _spliced(source: str, node: ast.expr, text: str, *, replace: bool) -> str | None:
    """Put text in the place of an expression, or behind it. Columns are in bytes."""
    lines = source.encode().split(b"\n")

    def offset(row: int, column: int) -> int:
        return sum(len(line) + 1 for line in lines[: row - 1]) + column

    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    end = offset(node.end_lineno, node.end_col_offset)
    start = offset(node.lineno, node.col_offset) if replace else end
    raw = source.encode()
    return (raw[:start] + text.encode() + raw[end:]).decode()
