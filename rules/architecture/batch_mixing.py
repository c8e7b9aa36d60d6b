"""ARC006 batch-mixing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from trainlint.rule import (
    Confidence,
    Finding,
    Fix,
    Graph,
    Influence,
    Mixing,
    Patch,
    Severity,
    SourceEdits,
    Spot,
    Variants,
    explained,
    ops,
    rule,
)

# Constructors of torch.nn that take batch_first, and count time along the first axis without it.
TIME_FIRST = {"LSTM", "GRU", "RNN", "MultiheadAttention", "Transformer"}
TIME_FIRST |= {"TransformerEncoderLayer", "TransformerDecoderLayer"}
SIMILARITIES = {"matmul", "einsum", "cdist", "cosine_similarity", "linear"}
# Routing: what is chosen for one sample leaves less room for the others.
CHOICES = {"topk", "sort", "argsort", "cumsum", "kthvalue", "nonzero"}
# Elements mix here only if the index does: tokens are handed to experts of limited capacity.
CHOICES |= {"getitem", "setitem", "index_select", "gather", "scatter", "scatter_add", "index_add"}
CHOICES |= {"index_put", "masked_select"}
STATISTICS = {
    "mean",
    "sum",
    "std",
    "var",
    "var_mean",
    "std_mean",
    "amax",
    "amin",
    "norm",
    "logsumexp",
}
SHIFTS = {"roll", "flip", "fliplr", "rot90"}
STATISTICS |= {"max", "min", "median", "linalg_norm", "linalg_vector_norm"}
REASON = "at inference there are other neighbours, or none: an answer must come of its own sample"


@rule(
    "ARC006",
    severity=Severity.ERROR,
    since="0.1",
    topics=["independent-samples"],
    explains=["constant-output"],
)
def batch_mixing(
    graph: Graph,
    influence: Influence,
    edits: SourceEdits,
    variants: Variants,
    *,
    shift: float = 1e-4,
) -> Iterator[Finding]:
    """One sample's output depends on another sample's input.

    The samples of a batch are drawn independently, and the loss of one is meant to teach the model
    about that one: L = 1/B · Σ l(f(xᵢ), yᵢ). If f(xᵢ) also reads xⱼ, the model learns from whoever
    happens to stand next to a sample, the loss may even fall (the labels of neighbours leak in through
    ∂lᵢ/∂xⱼ ≠ 0), and at inference, with other neighbours or none, the answers change. It raises no
    error: the shapes fit. The usual causes are a `reshape` or `view` where a `transpose` was meant, a
    recurrent or attention layer without `batch_first=True`, a softmax or mean over axis 0, and
    normalising by the mean of the whole batch.

    trainlint runs the model in eval mode on three samples, and runs it again with two of them replaced:
    the outputs of the third must stay. A backward from these outputs to the inputs of the others
    measures the same as a gradient; what is computed under `no_grad` or through `.item()` shows only in
    the outputs. `shift` is the least movement, relative to the outputs' scale, that counts: regrouped
    sums make up to 1e-7 in sound models, and solvers that stop when the whole batch has converged
    about 1e-5. Where it moved, two more runs find the operation behind which no element belongs to one
    sample any more.

    Silent: outputs without a sample axis (a loss, a similarity matrix), batch statistics that
    BatchNorm keeps, or that are appended as a feature map, similarities between the samples of a flat
    batch, routing to places of limited number, graphs whose edges index the samples, and models whose
    second axis holds independent samples as well: these count time along the first. Random numbers of
    which a layer draws as many as its values ask for (`rrelu`) are no mixing. Where trainlint had to make
    up the inputs and the model takes one sample without a batch axis too, as policies in reinforcement
    learning do, what runs over axis 0 is advice: it may never see a batch.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(8, 32)  # time is axis 0 here, and axis 1 in what follows
            self.head = nn.Linear(32, 5)

        def forward(self, x):
            out, _ = self.lstm(x)
            return self.head(out[:, -1])


    example_inputs = torch.randn(4, 12, 8)
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(8, 32, batch_first=True)
            self.head = nn.Linear(32, 5)

        def forward(self, x):
            out, _ = self.lstm(x)
            return self.head(out[:, -1])


    example_inputs = torch.randn(4, 12, 8)
    ```

    ## Figures
    - `shift`: how far the outputs of one sample moved when the other samples were replaced, over their
      size.
    - `gradient of others`: the share of the gradient of these outputs that goes to the other samples.
    - `operation`: where samples mix, or where it was lost track of them; `mixed by`: what mixes them then.

    ## When to ignore it
    When samples shall see each other: attention across a batch, a set as a batch, statistics over it.

    ## Fix safety
    `batch_first=True` is unsafe: another axis becomes time. The other remedies are shown without edits.

    ## References
    PyTorch, nn.LSTM and nn.MultiheadAttention: shapes with and without `batch_first`. Statistics of a
    batch on purpose: Ioffe & Szegedy 2015, arXiv:1502.03167; Karras et al. 2018, arXiv:1710.10196,
    section 3 (minibatch standard deviation). Seed B, section 1.3, sets BatchNorm against LayerNorm.
    """
    mixing = influence.mixing
    if mixing is None or mixing.shift <= shift or _is_meant(graph, influence, mixing):
        return
    spot = mixing.spot
    is_advice = _is_flat_sequence(graph, mixing) or _suits_one_sample(graph, variants, mixing)
    yield Finding(
        f"{_reason(graph, mixing)}: a sample's output moves by {_percent(mixing.shift)} "
        "when only the other samples change, so the model learns from a sample's neighbours",
        where=None if spot is None else spot.where,
        module=None if spot is None else spot.module,
        evidence={
            "shift": mixing.shift,
            "gradient_of_others": mixing.gradient,
            "samples": influence.batch,
            "operation": None if spot is None else spot.name,
            "mixed_by": None if mixing.mixer is None else mixing.mixer.name,
        },
        fixes=[_fix(graph, edits, mixing)],
        severity=Severity.INFO if is_advice else Severity.ERROR,
        confidence=_confidence(mixing, is_advice=is_advice),
        affects=[s.node for s in (spot, mixing.mixer) if s is not None and s.node is not None],
    )


# ---------------------------------------------------------------------- by design


def _is_meant(graph: Graph, influence: Influence, mixing: Mixing) -> bool:
    mixer = mixing.mixer
    if not mixing.reaches_axis_1:
        return True
    if mixer is None:
        return False
    if mixer.name == "batch_norm" or mixer.name in CHOICES or mixer.name.endswith("_loss"):
        return True  # a loss in the middle is that of an inner training loop
    batch = influence.batch
    compares = mixer.name in SIMILARITIES and (mixer.result or ())[-2:] == (batch, batch)
    attends = mixer.name in ops.ATTENTION
    if (compares or attends) and _is_flat(graph):
        return True  # attention across samples, or one sequence without a batch
    return mixer.name in STATISTICS | {"sub"} and _is_appended(graph, mixer)


def _is_flat(graph: Graph) -> bool:
    """Whether all inputs are rows: of samples, or of one sequence."""
    shapes = [graph.shape(node) for node in graph.nodes if node.op == "placeholder"]
    return all(shape is not None and len(shape) <= 2 for shape in shapes) and not any(
        graph.name(node) == "embedding" for node in graph.calls_in_order
    )


def _is_flat_sequence(graph: Graph, mixing: Mixing) -> bool:
    """Whether a recurrent layer reads the rows of a flat batch as the steps of one sequence."""
    mixer = mixing.mixer
    return (
        mixer is not None
        and mixer.name in ops.RECURRENT
        and not mixer.name.endswith("_cell")
        and _is_flat(graph)
    )


def _suits_one_sample(graph: Graph, variants: Variants, mixing: Mixing) -> bool:
    """Whether what runs over axis 0 finds several numbers there in a single sample without a batch."""
    spot = mixing.spot
    if graph.inputs_given or spot is None or spot.node is None or mixing.is_lost:
        return False
    over_all = spot.name in STATISTICS and not {"dim", "1"} & spot.arguments.keys()
    if _axis(spot) is None and not over_all:
        return False
    place, single = graph.place(spot.node), variants.single
    return single is not None and any(
        data is not None and (single.shape(data) or (1,))[0] > 1
        for other in single.calls(spot.name)
        if place is not None and getattr(single.place(other), "key", None) == place.key
        for data in (single.data(other),)
    )


def _confidence(mixing: Mixing, *, is_advice: bool) -> Confidence:
    if is_advice:
        return Confidence.POSSIBLE
    return Confidence.CERTAIN if mixing.gradient else Confidence.LIKELY


def _is_appended(graph: Graph, mixer: Spot) -> bool:
    """Whether the statistic becomes a feature beside the others before any weight sees it."""
    if mixer.node is None:
        return False
    for node in graph.unavoidable(mixer.node):
        if graph.name(node) in ("cat", "concat") and len(graph.varying_inputs(node)) > 1:
            return True
        if graph.is_weighted(node) or graph.name(node) == "matmul":
            return False
    return False


# ---------------------------------------------------------------------- words


def _reason(graph: Graph, mixing: Mixing) -> str:
    spot = mixing.spot
    if spot is None:
        return "samples of a batch are mixed"
    if _is_flat_sequence(graph, mixing):
        return f"{spot.label} reads the rows of the batch as the steps of one sequence"
    if spot.name in SHIFTS:
        return f"{spot.label} moves numbers of one sample to another"
    if mixing.is_lost:
        before, after = _shapes(graph, spot)
        way = f" from {_shown(before)} to {_shown(after)}" if before and after else ""
        return f"{spot.label}{way} tears the samples apart"
    if _takes_time_first(graph, spot):
        return f"{spot.label} has batch_first=False and runs along axis 0, where the samples are"
    axis = _axis(spot)
    if axis is not None:
        return f"{spot.label} runs over axis {axis}, the samples of the batch"
    if spot.name in STATISTICS:
        return f"{spot.label} is taken over all samples of the batch"
    return f"{spot.label} mixes the samples of a batch"


def _percent(shift: float) -> str:
    return f"{shift:.0%}" if 0.01 <= shift < 10 else f"{shift:.1g} of its size"


def _shown(dims: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, dims))})"


def _shapes(graph: Graph, spot: Spot) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """Of the operation's data and result, with the user's own batch where that is known."""
    if spot.node is not None:
        data = graph.data(spot.node)
        return None if data is None else graph.shape(data), graph.shape(spot.node)
    return (spot.shapes[0] if spot.shapes else None), spot.result


def _axis(spot: Spot) -> int | None:
    """The axis that the operation was told to run over, if it is the first."""
    if spot.name in ("softmax", "log_softmax", *STATISTICS, "flip", "roll", "cummax"):
        axis = spot.arguments.get("dim", spot.arguments.get("1"))
        rank = len(spot.shapes[0]) if spot.shapes else 0
        if isinstance(axis, int) and not isinstance(axis, bool) and axis in (0, -rank):
            return 0
    return None


def _takes_time_first(graph: Graph, spot: Spot) -> bool:
    owner = None if spot.node is None else graph.operation(spot.node).owner
    return (spot.name in ops.RECURRENT or spot.name in ops.ATTENTION) and (
        getattr(owner, "batch_first", True) is False
    )


def _fix(graph: Graph, edits: SourceEdits, mixing: Mixing) -> Fix:
    spot = mixing.spot
    unknown = "what the axes are meant to be, only you know"
    if spot is None:
        return Fix(
            "keep axis 0 for the samples in every reshape, transpose, softmax and mean",
            reason=REASON,
            obstacle="the place where they meet was not found",
        )
    if _is_flat_sequence(graph, mixing):
        title = "x.unsqueeze(1) and batch_first=True for one step a sample, or an nn.Linear"
        return Fix(title, reason=REASON, obstacle="constructor and forward change together")
    if spot.name in SHIFTS:
        title = f"{spot.name} over the features of each sample: dims=-1"
        return Fix(title, reason=REASON, obstacle=unknown)
    if mixing.is_lost:
        before, after = _shapes(graph, spot)
        if before and after and sorted(before) == sorted(after) and len(before) > 1:
            return _permuted(graph, edits, spot, before, after)
        title = f"keep the samples on axis 0: x.{spot.name}(x.shape[0], ...)"
        return Fix(title, reason=REASON, obstacle=unknown)
    if spot.node is not None and _takes_time_first(graph, spot):
        title = f"batch_first=True in {spot.label}"
        path = graph.operation(spot.node).module
        return explained(
            edits.replaced_calls([(graph.place(spot.node), _batch_first)], title=title),
            reason="without it the axes are (time, batch, features), and the samples are taken for time",
            obstacle="its constructor's arguments are not written there",
            patches=[Patch.attribute([path], batch_first=True)] if path else [],
        )
    if _axis(spot) is not None:
        title = f"{spot.name} over the features of each sample: dim=-1"
        return Fix(title, reason=REASON, obstacle=unknown)
    if spot.name in STATISTICS or not mixing.gradient:
        return Fix(
            "take statistics of each sample: x.mean(dim=tuple(range(1, x.dim())), keepdim=True), or "
            "a layer that keeps running ones (nn.BatchNorm)",
            reason=REASON,
            obstacle=unknown,
        )
    return Fix("keep axis 0 for the samples up to this line", reason=REASON, obstacle=unknown)


def _permuted(
    graph: Graph, edits: SourceEdits, spot: Spot, before: tuple[int, ...], after: tuple[int, ...]
) -> Fix:
    """The axes moved instead of the memory cut anew, where each size names its axis."""
    order = _permutation(before, after)
    title = f"move the axes with x.permute({order}); {spot.name} only cuts memory anew"
    site = None if spot.node is None else graph.operation(spot.node).site
    if len(set(before)) < len(before):
        obstacle = "two axes have one size: which of them goes where, only you know"
        return Fix(title, reason=REASON, obstacle=obstacle)
    if not order.startswith("0"):
        # The samples leave axis 0 here: what follows must be made to fit that.
        obstacle = "what follows takes the samples from another axis, or none"
        return Fix(title, reason=REASON, obstacle=obstacle)

    def permuted(call: ast.Call, _: str) -> str | None:
        if not isinstance(call.func, ast.Attribute) or call.func.attr not in ("view", "reshape"):
            return None
        owner = ast.unparse(call.func.value)
        return None if owner == "torch" else f"{owner}.permute({order})"

    return edits.replaced_calls([(site, permuted)], title=title, reason=REASON)


def _permutation(before: tuple[int, ...], after: tuple[int, ...]) -> str:
    left = list(range(len(before)))
    order: list[int] = []
    for size in after:
        axis = next(axis for axis in left if before[axis] == size)
        left.remove(axis)
        order.append(axis)
    return ", ".join(map(str, order))


def _batch_first(call: ast.Call, source: str) -> str | None:
    name: Any = call.func.attr if isinstance(call.func, ast.Attribute) else None
    name = call.func.id if isinstance(call.func, ast.Name) else name
    known = {keyword.arg for keyword in call.keywords}
    if (
        name not in TIME_FIRST
        or "batch_first" in known
        or None in known
        or not source.endswith(")")
    ):
        return None
    inside = source[:-1].rstrip()
    comma = "" if inside.endswith((",", "(")) else ","
    return f"{inside}{comma} batch_first=True)"
