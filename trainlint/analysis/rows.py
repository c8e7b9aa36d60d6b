"""Where `x.view(-1, k)` makes another number of rows than there are samples, and what would keep them.

Comes in: the graph and its number of samples. Rows that are whole tokens, as language models flatten
them, are none of this: what counts are rows cut out of a sample's channels, or several samples in a row.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Final

from trainlint import ops
from trainlint.analysis.layers import trace_axis
from trainlint.fixes.edit import Fix, Safety

if TYPE_CHECKING:
    from torch.fx import Node

    from trainlint.fixes.source import SourceEdits
    from trainlint.graph import Graph

# Of what they get, these leave every row where it is.
_ROW_BY_ROW: Final = (
    ops.DROPOUTS
    | ops.ACTIVATIONS
    | ops.NORMALIZATIONS
    | frozenset("contiguous clone to float double half bfloat16 add sub mul div".split())
)


@dataclass(frozen=True)
class Fold:
    """A reshape to rows of `width` features, of samples that have the shape `sample`.

    `kind` is `torn` where rows are cut out of samples, `several` where a row holds more than one, and
    `pixels` where the rows of an image count as samples. `linear` is the layer that reads them.
    """

    node: Node
    linear: Node
    kind: str
    samples: int
    rows: int
    sample: tuple[int, ...]
    width: int

    @property
    def features(self) -> int:
        """How many numbers one sample has there."""
        return prod(self.sample)


def flat_width(graph: Graph, node: Node) -> tuple[int, int] | None:
    """(rows, features) that a reshape to two axes asks for, -1 where it leaves the rows open."""
    if graph.name(node) != "reshape":
        return None
    sizes: Any = node.args[1:] or tuple(node.kwargs.values())[:1]
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        sizes = sizes[0]
    if len(sizes) != 2 or not all(isinstance(size, int) for size in sizes) or sizes[1] < 1:
        return None
    return int(sizes[0]), int(sizes[1])


def is_map(graph: Graph, data: Node) -> bool:
    """Whether its axis 1 holds channels that a layer of the model made, and space lies behind them."""
    return len(graph.shape(data) or ()) > 2 and trace_axis(graph, data, 1).kind == "layer"


def folds(graph: Graph, samples: int) -> list[Fold]:
    """The reshapes that mix up rows and samples all the way to an output."""
    found = (_fold(graph, node, samples) for node in graph.calls("reshape"))
    return [fold for fold in found if fold is not None]


def _fold(graph: Graph, node: Node, samples: int) -> Fold | None:
    wanted, data, after = flat_width(graph, node), graph.data(node), graph.shape(node)
    before = None if data is None else graph.shape(data)
    if wanted is None or wanted[0] != -1 or data is None or not before or not after:
        return None  # who names the number of rows means it
    if before[0] != samples or after[0] == samples or len(before) < 3 or node in graph.faults:
        return None
    kind = _kind(graph, data, before, wanted[1])
    linear = None if kind is None else read_by(graph, node)
    if kind is None or linear is None or not _stays(graph, linear, after[0]):
        return None
    return Fold(node, linear, kind, samples, after[0], before[1:], wanted[1])


def _kind(graph: Graph, data: Node, before: tuple[int, ...], width: int) -> str | None:
    if is_map(graph, data):
        return "several" if width % prod(before[1:]) == 0 else "torn"
    if _is_image(graph, data, before):
        return "pixels"
    last = before[-1]
    return "torn" if width % last and last % width else None


def _is_image(graph: Graph, data: Node, dims: tuple[int, ...]) -> bool:
    """Whether it is an input of square planes, grey or in three colours."""
    while data.op == "call_function" and graph.name(data) in _ROW_BY_ROW:
        source = graph.data(data)
        if source is None or graph.shape(source) != dims:
            return False
        data = source
    return data.op == "placeholder" and len(dims) == 4 and dims[1] in (1, 3) and dims[2] == dims[3]


def read_by(graph: Graph, node: Node) -> Node | None:
    """The first linear layer that takes these rows one by one."""
    stack, seen = [node], {node}
    while stack:
        for user in stack.pop(0).users:
            if user in seen or not graph.is_live(user):
                continue
            seen.add(user)
            if graph.name(user) == "linear" and graph.is_weighted(user):
                return user
            if graph.name(user) in _ROW_BY_ROW:
                stack.append(user)
    return None


def _stays(graph: Graph, node: Node, rows: int) -> bool:
    """Whether an output still has that many rows: then nothing brought the samples together again."""
    stack, seen = [node], {node}
    while stack:
        current = stack.pop()
        if current in graph.outputs and (graph.shape(current) or (0,))[0] == rows:
            return True
        # A loss or an average of all rows has no rows left; what follows a reshape may have others.
        for user in current.users:
            if user not in seen and (graph.shape(user) or (0,))[0] == rows:
                seen.add(user)
                stack.append(user)
    return False


def flatten_fixes(graph: Graph, edits: SourceEdits, node: Node) -> list[Fix]:
    """`x.flatten(1)` for this reshape, and the width that the layer behind it then gets.

    As one edit where both calls are the user's own and the layer's width is written there as a number.
    """
    data, linear = graph.data(node), read_by(graph, node)
    dims = None if data is None else graph.shape(data)
    if not dims or len(dims) < 2:
        return []
    features = prod(dims[1:])
    reason = (
        f"a sample has {'·'.join(map(str, dims[1:]))} = {features} features: one row, one target"
    )
    flat = edits.replaced_calls(
        [(graph.operation(node).site, _flattened)],
        title="x.flatten(1) keeps one row a sample",
        reason=reason,
    )
    weight: Any = None if linear is None else graph.argument(linear, "weight")
    sizes = graph.shape(weight) if hasattr(weight, "all_input_nodes") else None
    if linear is None or not sizes or len(sizes) != 2 or sizes[1] == features:
        return [flat]
    title = f"x.flatten(1), and in_features={sizes[1]} → {features} in {graph.label(linear)}"
    if len(graph.built_together(linear)) != 1:
        obstacle = "the line that makes the layer makes others as well"
        return [Fix(title, reason=reason, obstacle=obstacle)]
    wider = edits.argument(
        graph.constructed(linear), 0, "in_features", features,
        current=sizes[1], title=title, safety=Safety.UNSAFE,
    )  # fmt: skip
    return [edits.together(flat, wider, title=title, safety=Safety.UNSAFE, reason=reason)]


def _flattened(call: ast.Call, source: str) -> str | None:
    """`x.flatten(1)` for `x.view(...)`, `torch.flatten(x, 1)` for `torch.reshape(x, ...)`."""
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in ("view", "reshape"):
        return None
    if isinstance(call.func.value, ast.Name) and call.func.value.id == "torch":
        return f"torch.flatten({ast.unparse(call.args[0])}, 1)" if call.args else None
    del source
    return f"{ast.unparse(call.func.value)}.flatten(1)"
