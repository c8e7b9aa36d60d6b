"""ARC014 batch-size-changed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from trainlint.rule import (
    Confidence,
    Finding,
    Fix,
    Fold,
    Graph,
    Losses,
    Severity,
    SourceEdits,
    Variants,
    flatten_fixes,
    folds,
    ops,
    rule,
    suits_no_size,
)

ORDINALS = {0: "first", -1: "last"}


@rule("ARC014", severity=Severity.ERROR, since="0.1", explains=["oversized-flatten"])
def batch_size_changed(
    graph: Graph, variants: Variants, losses: Losses, edits: SourceEdits
) -> Iterator[Finding]:
    """The model returns another number of rows than it was given samples.

    A loss compares row i of the outputs with target i. `x.view(-1, k)` promises nothing of the kind: it
    cuts memory into rows of k numbers and lets -1 be whatever comes of it. From N samples of
    F = C·H·W numbers it makes N·F / k rows, which are N only if k = F. With a forgotten padding, another
    image size or a wrong product k ≠ F, and as long as k divides N·F nothing is raised: each row holds
    some channels of one sample, or parts of two, and the layers behind it take it for a sample. The
    loss then refuses the targets, or broadcasts over them and teaches noise. `x.flatten(1)` always keeps
    one row a sample, and a wrong width shows at once in the `nn.Linear` behind it.

    The same comes of indexing the batch's axis: a recurrent layer's last state is (layers, batch,
    hidden), whatever `batch_first` says, so that `h[:, -1]` is the last sample of the batch, and one
    answer is given for all of them. The last layer is `h[-1]`.

    trainlint captures the model once more with one sample more, to see which axis holds the samples.
    Reported are `view(-1, k)` of maps whose channels a layer made, cuts through the features of a token,
    and planes of pixels whose rows become samples, if a linear layer reads these rows and an output
    still has their number. Silent: rows that are whole tokens, such as the (B·T, V) scores of a
    language model, windows, patches and time steps that are brought together again, and a number of
    rows that the file itself names.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 32, 3)  # without padding: 30 x 30, pooled 15 x 15
            self.fc = nn.Linear(32 * 5 * 5, 10)

        def forward(self, x):
            x = F.max_pool2d(torch.relu(self.conv(x)), 2)
            return self.fc(x.view(-1, 32 * 5 * 5))  # nine rows a sample


    example_inputs = torch.randn(4, 1, 32, 32)
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 32, 3)
            self.fc = nn.Linear(32 * 15 * 15, 10)

        def forward(self, x):
            x = F.max_pool2d(torch.relu(self.conv(x)), 2)
            return self.fc(x.flatten(1))


    example_inputs = torch.randn(4, 1, 32, 32)
    ```

    ## When to ignore it
    When groups of channels or rows of pixels are your samples, with a target for each.

    ## Fix safety
    `x.flatten(1)` with the width that the layer then gets is unsafe: the layer gets other weights.

    ## References
    PyTorch, Tensor.view and torch.flatten; nn.LSTM, outputs: h_n is (D·layers, N, H) also with
    `batch_first=True`.
    """
    samples = variants.batch_size
    if not samples:
        return
    for fold in folds(graph, samples):
        if _is_settled(graph, variants, fold):
            yield _folded(graph, losses, edits, fold)
    yield from _picked(graph, edits, variants, samples)


# ---------------------------------------------------------------------- rows that are no samples


def _is_settled(graph: Graph, variants: Variants, fold: Fold) -> bool:
    """Whether these are the samples, and the inputs not to blame."""
    data = graph.data(fold.node)
    if data is None or not (graph.inputs_given or suits_no_size(graph, data, fold.width)):
        return False
    if variants.batch_is_known:
        return variants.batch_axis(data) == 0
    # With one sample more the reshape itself is refused: its rows do not go into the samples.
    return (fold.samples + 1) * fold.features % fold.width > 0


def _folded(graph: Graph, losses: Losses, edits: SourceEdits, fold: Fold) -> Finding:
    call = f"{fold.node.target.__name__}(-1, {fold.width})"  # type: ignore[union-attr]
    shape = "·".join(map(str, fold.sample))
    size = f"{shape} = {fold.features}" if len(fold.sample) > 1 else shape
    is_judged = any(call.node is None and not call.is_rearranged for call in losses.calls)
    is_certain = fold.kind == "torn" or is_judged
    return Finding(
        f"{call} makes {fold.rows} rows of {fold.samples} samples, which have {size} features "
        f"each: {_meaning(fold)}, and no longer goes with a target",
        where=fold.node,
        module=graph.operation(fold.node).module,
        evidence={
            "samples": fold.samples,
            "rows": fold.rows,
            "features_of_a_sample": fold.features,
            "features_of_a_row": fold.width,
        },
        fixes=_fixes(graph, edits, fold),
        severity=Severity.ERROR if is_certain else Severity.WARNING,
        confidence=Confidence.CERTAIN if fold.kind == "torn" else Confidence.LIKELY,
        affects=[fold.node, fold.linear],
    )


def _fixes(graph: Graph, edits: SourceEdits, fold: Fold) -> list[Fix]:
    if fold.kind == "torn" and fold.width == fold.sample[0]:
        place = ", ".join(map(str, (0, *range(2, len(fold.sample) + 1), 1)))
        meant = f"x.permute({place}) before it, for the {fold.width} channels of one place a row"
        reason = "a row is to hold what belongs together"
        unknown = "which of the two is meant, only you know"
        return [
            Fix(meant, reason=reason, obstacle=unknown),
            Fix("x.flatten(1) for one row a sample", reason=reason, obstacle=unknown),
        ]
    return flatten_fixes(graph, edits, fold.node)


def _meaning(fold: Fold) -> str:
    if fold.kind == "pixels":
        return "a row of pixels stands for a sample"
    if fold.kind == "several":
        return f"a row holds {fold.width // fold.features} samples"
    if fold.features % fold.width == 0:
        return f"a row is 1/{fold.features // fold.width} of a sample"
    return "a row is cut across samples"


# ---------------------------------------------------------------------- one sample for all


def _picked(
    graph: Graph, edits: SourceEdits, variants: Variants, samples: int
) -> Iterator[Finding]:
    """An index on the axis of the samples, where the outputs have no such axis any more."""
    for node in graph.calls("getitem", "select"):
        data = graph.data(node)
        axes = [] if data is None else _picked_axes(graph, node, data)
        before = None if data is None else graph.shape(data)
        if data is None or before is None:
            continue
        for axis, index in axes:
            if before[axis] != samples or not _leads_to_outputs_without(graph, node, samples):
                continue
            # What lies on axis 0 may as well be time, unless the layer before was told otherwise.
            if variants.batch_axis(data) == axis and (axis > 0 or _is_batch_first(graph, data)):
                yield _one_for_all(graph, edits, node, before, axis, index)


def _picked_axes(graph: Graph, node: Any, data: Any) -> list[tuple[int, int]]:
    """(axis, index) of each whole number in an index."""
    rank = len(graph.shape(data) or ())
    if graph.name(node) == "select":
        asked = node.args[1:3]
        if len(asked) == 2 and all(isinstance(part, int) for part in asked) and rank:
            return [(asked[0] % rank, asked[1])]
        return []
    index = node.args[1] if len(node.args) > 1 else ()
    parts = list(index) if isinstance(index, (tuple, list)) else [index]
    if any(part is None or hasattr(part, "all_input_nodes") for part in parts):
        return []
    if Ellipsis in parts:
        place = parts.index(Ellipsis)
        parts[place : place + 1] = [slice(None)] * (rank - len(parts) + 1)
    return [
        (axis, part)
        for axis, part in enumerate(parts[:rank])
        if isinstance(part, int) and not isinstance(part, bool)
    ]


def _leads_to_outputs_without(graph: Graph, node: Any, samples: int) -> bool:
    """Whether an output of weights comes of it, and no output has as many entries as there are samples."""
    if any(samples in (graph.shape(output) or ()) for output in graph.outputs):
        return False
    stack, seen = [node], {node}
    while stack:
        current = stack.pop()
        if current in graph.outputs and len(graph.shape(current) or ()) > 1:
            return graph.feeds_weights(node)
        for user in current.users:
            if user not in seen:
                seen.add(user)
                stack.append(user)
    return False


def _is_batch_first(graph: Graph, node: Any) -> bool:
    """Whether the recurrent or attention layer before it has its samples on axis 0."""
    while node is not None and node.op == "call_function":
        name = graph.name(node)
        if name in ops.RECURRENT or name in ops.ATTENTION:
            return getattr(graph.operation(node).owner, "batch_first", False) is True
        node = graph.data(node)
    return False


def _one_for_all(
    graph: Graph, edits: SourceEdits, node: Any, before: tuple[int, ...], axis: int, index: int
) -> Finding:
    which = ORDINALS.get(index, f"{index + 1}th")
    shape = ", ".join(map(str, before))
    is_state = axis == 1 and len(before) == 3 and _is_recurrent_state(graph, node)
    fix = "h[-1] for the last layer's state of every sample" if is_state else (
        "index the axis of time or layers, and keep that of the samples"
    )  # fmt: skip
    what = "a recurrent state's axes are (layers, samples, hidden), so " if is_state else ""
    return Finding(
        f"{what}index {index} on axis {axis} of ({shape}) takes the {which} of {before[axis]} "
        "samples, and the outputs are one answer for all of them",
        where=node,
        module=graph.operation(node).module,
        evidence={"shape": list(before), "axis": axis, "index": index},
        fixes=[_kept_samples(graph, edits, node, fix, is_state=is_state)],
        severity=Severity.ERROR if graph.inputs_given else Severity.WARNING,
        affects=[node],
    )


def _kept_samples(
    graph: Graph, edits: SourceEdits, node: Any, title: str, *, is_state: bool
) -> Fix:
    """`h[-1]` in the place of `h[:, -1]`."""
    reason = "a loss needs an answer for each sample"
    site = graph.operation(node).site
    text = None if site is None else edits.text(site.filename)
    span = None if site is None else site.span()
    if not is_state or text is None or text.tree is None or span is None:
        return Fix(title, reason=reason, obstacle="what the axes are meant to be, only you know")
    found = [
        part
        for part in ast.walk(text.tree)
        if isinstance(part, ast.Subscript)
        and (part.lineno, part.end_lineno, part.col_offset, part.end_col_offset) == span
    ]
    if len(found) != 1:
        return Fix(title, reason=reason, obstacle="the index is not written there as one")
    content = f"{ast.get_source_segment(text.text, found[0].value)}[-1]"
    return edits.replaced_expression(text, found[0], content, title=title, reason=reason)


def _is_recurrent_state(graph: Graph, node: Any) -> bool:
    data = graph.data(node)
    source = None if data is None else graph.data(data)
    return (
        data is not None
        and source is not None
        and graph.name(data) == "output"
        and graph.name(source) in ops.RECURRENT
    )
