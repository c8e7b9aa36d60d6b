"""ACT003 softmax-axis."""

from __future__ import annotations

import ast
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
    SourceEdits,
    Variants,
    ops,
    other_activations,
    places,
    rule,
)

SOFTMAXES = ("softmax", "log_softmax", "softmin", "gumbel_softmax")
# Without `dim`, torch takes axis 0 of tensors of these ranks, and axis 1 of all others.
FIRST_AXIS_RANKS = (0, 1, 3)
TURNING = ("transpose", "permute", "t", "get_T", "get_mT", "movedim", "matmul", "einsum")


@rule(
    "ACT003",
    severity=Severity.ERROR,
    since="0.1",
    topics=["independent-samples"],
    explains=[
        "batch-mixing",
        "constant-output",
        "loss-never-moves",
        "underfitting",
        "cannot-memorise",
        "learning-rate-too-low",
    ],
)
def softmax_axis(graph: Graph, edits: SourceEdits, variants: Variants) -> Iterator[Finding]:
    """A softmax runs over the samples of the batch, or over a single number.

    softmax(z)ᵢ = e^{zᵢ} / Σₖ e^{zₖ}, and the sum belongs over the classes of one sample. Over the batch
    axis the samples compete for each class instead: the average prediction is 1/batch whatever the
    model has learnt, one sample's answer changes with its neighbours, ∂pᵢ/∂zₖ = pᵢ(δᵢₖ − pₖ) carries
    the gradient of one sample into the others, and a single sample at inference always gets 1. The
    loss still falls for a while, which hides it. Over an axis of one number the result is always 1 and
    the slope p(1 − p) is 0, so nothing before it learns.

    trainlint captures the model once more with one more sample and sees which axis has grown. A first
    axis that a layer treats as time or space, and one that the outputs no longer have (pooling over a
    set or a bag), is not a batch. Left out, `dim` means axis 0 for tensors of one or three axes, and
    axis 1 of all others: often right, by luck, and then advice. Where
    trainlint had to make up the inputs, and the model takes a single sample without a batch axis as
    well, as policies in reinforcement learning do, this is advice only.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(20, 32)
            self.fc2 = nn.Linear(32, 10)

        def forward(self, x):
            x = torch.relu(self.fc1(x.flatten(1)))
            return torch.softmax(self.fc2(x), dim=0)
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(20, 32)
            self.fc2 = nn.Linear(32, 10)

        def forward(self, x):
            x = torch.relu(self.fc1(x.flatten(1)))
            return torch.softmax(self.fc2(x), dim=-1)
    ```

    ## When to ignore it
    When samples shall compete, as in attention across a batch or a balanced assignment to clusters.

    ## Fix safety
    Unsafe: the model computes something else. Weights that were trained with the wrong axis are of no
    use with the right one.

    ## References
    Bridle 1990, "Probabilistic interpretation of feedforward classification network outputs". The
    implicit axis: documentation of `torch.nn.functional.softmax`.
    """
    seen: set[Any] = set()
    for node in graph.calls(*SOFTMAXES):
        place = graph.place(node)
        key = node if place is None else place.key
        if key in seen or not graph.is_live(node) or graph.is_constant(node):
            continue
        finding = _judged(graph, edits, variants, node)
        if finding is not None:
            seen.add(key)
            yield finding


def _judged(graph: Graph, edits: SourceEdits, variants: Variants, node: Any) -> Finding | None:
    dims, stated = graph.shape(node), _stated_axis(graph, node)
    if dims is None or node in graph.faults or not graph.operation(node).grad_enabled:
        return None
    axis = _axis(dims, stated)
    if axis is None:
        return None
    if dims[axis] == 1 and (source := _only_score(graph, node, len(dims), axis)) is not None:
        return _constant(graph, edits, node, source, axis, stated)
    if stated is None and axis == 1:
        return _by_luck(graph, edits, node, dims)
    size = variants.batch_size
    # The pre-test, since the variant costs a capture: that axis could be the batch at all.
    if dims[axis] != size or (axis == len(dims) - 1 > 0 and not _is_turned(graph, node)):
        return None
    if variants.batch_axis(node) == axis:
        return _over_batch(graph, edits, variants, node, axis, stated)
    if stated is None and len(dims) == 3 and not variants.batch_is_known:
        return _implicit(graph, edits, node, dims)
    return None


def _by_luck(graph: Graph, edits: SourceEdits, node: Any, dims: tuple[int, ...]) -> Finding:
    """Without `dim`, axis 1 of two or four axes: right for scores and maps, not for attention."""
    weighs = len(dims) > 3 and any(
        graph.name(user) in ("matmul", "einsum") for user in graph.consumers(node, ops.DROPOUTS)
    )
    label, count = graph.label(node), {2: "two", 4: "four", 5: "five"}.get(len(dims), len(dims))
    evidence = {"axis": 1, "shape": list(dims)}
    if weighs:
        return Finding(
            f"{label} has no `dim`: with {count} axes, {dims}, that means axis 1, the heads, but its "
            "result weighs the last axis, whose numbers then do not sum to 1",
            where=node,
            evidence=evidence,
            fixes=[_other_axis(graph, edits, node, dims, (0, 1), None)],
            severity=Severity.WARNING,
            confidence=Confidence.LIKELY,
            affects=[node],
        )
    rewrite = _with_dim(graph.name(node), 1)
    title, reason = "dim=1, as now", "which axis it is no longer depends on how many there are"
    patches = _patches(graph, node, 1)
    return Finding(
        f"{label} has no `dim`: with {count} axes, {dims}, that means axis 1, but axis 0 as soon as "
        "there are three; leaving it out is deprecated",
        where=node,
        evidence=evidence,
        fixes=[
            edits.replaced_calls(
                [(graph.place(node), rewrite)],
                title=title,
                safety=Safety.SAFE,
                reason=reason,
                patches=patches,
            )
        ],
        severity=Severity.INFO,
        affects=[node],
    )


def _stated_axis(graph: Graph, node: Any) -> int | None:
    default = -1 if graph.name(node) == "gumbel_softmax" else None
    axis = graph.argument(node, "dim", default)
    return axis if isinstance(axis, int) else None


def _axis(dims: tuple[int, ...], stated: int | None) -> int | None:
    if not dims:
        return None
    if stated is None:
        return 0 if len(dims) in FIRST_AXIS_RANKS else 1
    return stated % len(dims) if -len(dims) <= stated < len(dims) else None


def _is_turned(graph: Graph, node: Any) -> bool:
    """Whether the last axis, that of the features in most layers, may hold something else."""
    source = graph.data(node)
    return source is not None and graph.name(source) in TURNING


# ---------------------------------------------------------------------- over the batch


def _over_batch(
    graph: Graph, edits: SourceEdits, variants: Variants, node: Any, axis: int, stated: int | None
) -> Finding | None:
    reached = [output for output in graph.outputs if _depends(output, node)]
    kept = [output for output in reached if graph.shape(output)]  # a loss holds no samples
    if not kept or any(variants.batch_axis(output) is None for output in kept):
        return None  # the samples were pooled: a set or a bag, and not a batch
    dims = graph.shape(node) or ()
    implied = "" if stated is not None else " (its `dim` is left out)"
    fix = _other_axis(graph, edits, node, dims, (axis,), stated)
    if not graph.inputs_given and _suits_one_sample(graph, variants, node):
        return Finding(
            f"{graph.label(node)} runs over axis {axis}: right for one sample without a batch axis, but "
            f"in a batch, {dims}, the samples compete",
            where=node,
            evidence={"axis": axis, "shape": list(dims)},
            fixes=[fix],
            severity=Severity.INFO,
            confidence=Confidence.POSSIBLE,
            affects=[node],
        )
    return Finding(
        f"{graph.label(node)} runs over axis {axis} of {dims}{implied}, which is the batch: the "
        f"{dims[axis]} samples compete, and a sample's own numbers do not sum to 1",
        where=node,
        evidence={"axis": axis, "shape": list(dims), "batch": dims[axis]},
        fixes=[fix],
        fault=("softmax", id(node)),
        affects=[node],
    )


def _suits_one_sample(graph: Graph, variants: Variants, node: Any) -> bool:
    """Whether the model takes a single sample as well, whose own numbers then lie on that axis."""
    place, single = graph.place(node), variants.single
    return single is not None and any(
        (dims := single.shape(other)) is not None
        and (axis := _axis(dims, _stated_axis(single, other))) is not None
        and dims[axis] > 1
        for other in single.calls(graph.name(node))
        if place is not None and getattr(single.place(other), "key", None) == place.key
    )


def _implicit(graph: Graph, edits: SourceEdits, node: Any, dims: tuple[int, ...]) -> Finding:
    return Finding(
        f"{graph.label(node)} has no `dim`: with three axes, {dims}, that means axis 0, which is "
        "usually the batch",
        where=node,
        evidence={"axis": 0, "shape": list(dims)},
        fixes=[_other_axis(graph, edits, node, dims, (0,), None)],
        severity=Severity.WARNING,
        affects=[node],
    )


def _depends(output: Any, node: Any) -> bool:
    stack, seen = [output], {output}
    while stack:
        current = stack.pop()
        if current is node:
            return True
        fresh = [source for source in current.all_input_nodes if source not in seen]
        seen.update(fresh)
        stack.extend(fresh)
    return False


def _other_axis(
    graph: Graph,
    edits: SourceEdits,
    node: Any,
    dims: tuple[int, ...],
    wrong: tuple[int, ...],
    stated: int | None,
) -> Fix:
    """The axis of a sample's own numbers: channels of a map, else the last that holds several."""
    others = [axis for axis, length in enumerate(dims) if axis not in wrong and length > 1]
    if not others:
        return Fix(
            "sigmoid, as each sample has one number; or give the layer before it more outputs",
            reason="softmax of a single number is always 1",
            obstacle="how many outputs the layer should have, only you know",
        )
    is_map = len(dims) >= 4 and not any(
        graph.name(user) in ("matmul", "einsum") for user in graph.consumers(node)
    )
    right = 1 if is_map and 1 in others else others[-1]
    shown = -1 if right == len(dims) - 1 else right
    title = f"dim={shown}: over the {dims[right]} numbers of each sample"
    site = graph.place(node)
    reason = (
        "exp(x_i)/Σ exp(x_j) sums to 1 over this axis: the alternatives of one sample lie on it"
    )
    patches = _patches(graph, node, shown)
    if stated is None:
        rewrite = _with_dim(graph.name(node), shown)
        return edits.replaced_calls([(site, rewrite)], title=title, reason=reason, patches=patches)
    is_first = graph.layer(node) is not None or type(node.target).__name__ == "method_descriptor"
    place = 4 if graph.name(node) == "gumbel_softmax" else int(not is_first)
    return edits.argument(
        site,
        place,
        "dim",
        shown,
        current=stated,
        title=title,
        safety=Safety.UNSAFE,
        reason=reason,
        patches=patches,
    )


def _patches(graph: Graph, node: Any, axis: int) -> list[Patch]:
    """The same axis for the layer, or for the call."""
    named = places(graph, [node])
    if named is None:
        return []
    if named[0]:
        return [Patch.attribute(named[0], dim=axis)]
    return [Patch("arguments", calls=named[1], values={"dim": axis})]


def _with_dim(name: str, axis: int) -> Any:
    def rewrite(call: ast.Call, source: str) -> str | None:
        callee = ast.unparse(call.func).rpartition(".")[2].replace("_", "").lower()
        if callee != name.replace("_", "") or any(word.arg == "dim" for word in call.keywords):
            return None
        if call.args and isinstance(call.args[-1], ast.Constant):
            return None  # an axis that is None by position
        body = source[:-1].rstrip().removesuffix(",")
        return f"{body}{'' if body.endswith('(') else ', '}dim={axis})"

    return rewrite


# ---------------------------------------------------------------------- over one number


def _sigmoid(graph: Graph, edits: SourceEdits, node: Any) -> Fix:
    title, reason = "sigmoid, for one score a sample", "softmax of a single number is always 1"
    if graph.name(node) != "softmax":
        obstacle = "its result is a logarithm, a sigmoid's is none"
        return Fix(title, reason=reason, obstacle=obstacle)
    return other_activations(graph, edits, [node], "sigmoid", title=title, reason=reason)


def _only_score(graph: Graph, node: Any, rank: int, axis: int) -> Any:
    """The layer whose single output feature makes this axis one long, and not some input."""
    source, passed = graph.producer(node, ops.DROPOUTS)
    if source is None or passed or not graph.is_weighted(source):
        return None
    features = rank - 1 if graph.name(source) == "linear" else 1
    routes = ("topk", "argmax", "sort", "gather")  # to the one expert that there is
    is_routed = any(graph.name(user) in routes for user in graph.consumers(node))
    return source if axis == features and not is_routed else None


def _constant(
    graph: Graph, edits: SourceEdits, node: Any, source: Any, axis: int, stated: int | None
) -> Finding:
    dims = graph.shape(node) or ()
    result = "0" if graph.name(node) == "log_softmax" else "1"
    fixes = [_sigmoid(graph, edits, node)]
    if len(dims) > 2:
        fixes = [_other_axis(graph, edits, node, dims, (0, axis), stated), *fixes]
    return Finding(
        f"{graph.label(node)} runs over axis {axis} of {dims}, a single number: the result is "
        f"always {result}, and {graph.label(source)} gets no gradient through it",
        where=node,
        evidence={"axis": axis, "shape": list(dims)},
        fixes=fixes,
        affects=[node, source],
    )
