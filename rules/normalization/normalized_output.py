"""NRM006 normalized-output."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from trainlint.rule import (
    Confidence,
    Finding,
    Fix,
    Graph,
    Losses,
    Severity,
    SourceEdits,
    heads,
    ops,
    removal_patches,
    rule,
)

PROBABILITIES = {"sigmoid", "softmax", "log_softmax", "logsigmoid"}
NORMS = ops.NORMALIZATIONS - {"local_response_norm"}
PER_TOKEN = {"layer_norm", "rms_norm"}
SAME = ops.REARRANGEMENTS | ops.DROPOUTS
BETWEEN = ops.REARRANGEMENTS | ops.SPATIAL
CLASSIFIES = {
    "cross_entropy",
    "nll_loss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
}
REGRESSES = {"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"}


@rule("NRM006", severity=Severity.WARNING, since="0.1")
def normalized_output(
    graph: Graph,
    edits: SourceEdits,
    losses: Losses | None,
    *,
    narrow: int = 16,
    narrow_map: int = 4,
) -> Iterator[Finding]:
    """The model's last layer is normalised, so that its scores cannot say what they should.

    BatchNorm gives each output γ as deviation and β as mean over the batch, whatever the inputs say: a
    batch of easy samples gets the same spread of logits as one of hard ones, and a regression target's
    range must be learnt by γ and β alone. In training a sample's score depends on the rest of the batch;
    in eval mode on running statistics. LayerNorm fixes the mean and the spread of each sample's scores
    instead: the largest softmax probability is bounded, and of a single output nothing is left but β.

    Reported are outputs that are scores: judged by a classification loss, turned into probabilities, as
    wide as the vocabulary, at most `narrow` wide, or maps and images of at most `narrow_map` channels.
    Wider ones may be features: embeddings and projections (ArcFace, SimSiam) end in a BatchNorm on
    purpose, backbones and residual streams in a norm. Those are not reported, nor what a loss on features
    judges.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(8, 32)
            self.fc2 = nn.Linear(32, 3)
            self.bn = nn.BatchNorm1d(3)

        def forward(self, x):
            return self.bn(self.fc2(torch.relu(self.fc1(x))))
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(8, 32, bias=False)
            self.bn = nn.BatchNorm1d(32)
            self.fc2 = nn.Linear(32, 3)

        def forward(self, x):
            return self.fc2(torch.relu(self.bn(self.fc1(x))))
    ```

    ## When to ignore it
    Where the outputs are features of fixed scale for another model.

    ## Fix safety
    Unsafe: another function is learnt. `nn.Identity()` in its place keeps the numbering of a Sequential.

    ## References
    Seed B, section 1.3: normalisation belongs between a layer and its activation. Radford et al. 2016,
    arXiv:1511.06434, section 3, leaves it out at the generator's output.
    """
    judged = {} if losses is None else {call.scores: call.kind for call in losses.calls}
    for scores in dict.fromkeys([*judged, *graph.outputs]):
        norm, activation = _last_norm(graph, scores)
        if norm is None:
            continue
        layers = heads(graph, norm, SAME)
        if not layers or graph.feeds_weights(norm):
            continue
        width = _width(graph, norm)
        limit = narrow if len(graph.shape(norm) or ()) == 2 else narrow_map
        loss = judged.get(scores)
        if graph.name(norm) in PER_TOKEN and len(graph.shape(norm) or ()) > 2:
            limit = 0  # features of tokens may be as narrow as they like
        if width is not None and (
            _is_score(loss, activation, is_narrow=width <= limit)
            or (loss is None and width in _vocabularies(graph))
        ):
            yield _finding(graph, edits, norm, layers, width, sure=loss is not None)


def _last_norm(graph: Graph, output: Any) -> tuple[Any, str]:
    """The normalisation that the output comes from, and the activation seen on the way."""
    node, activation = output, ""
    while node is not None and node.op == "call_function":
        name = graph.name(node)
        if name in NORMS:
            return node, activation
        if name in PROBABILITIES | {"tanh"}:
            activation = name
        elif not graph.is_transparent(node, BETWEEN):
            break
        node = graph.data(node)
    return None, activation


def _is_score(loss: str | None, activation: str, *, is_narrow: bool) -> bool:
    if loss in CLASSIFIES or activation in PROBABILITIES:
        return True
    return (loss is None or loss in REGRESSES) and is_narrow


def _width(graph: Graph, norm: Any) -> int | None:
    """How many outputs are normalised, for each sample, token or pixel."""
    shape = graph.shape(norm)
    if shape is None or len(shape) < 2:
        return None
    return shape[-1] if graph.name(norm) in PER_TOKEN else shape[1]


def _vocabularies(graph: Graph) -> set[int]:
    """The numbers of ids that the model looks up, unless they are also the width of what it finds."""
    tables = [
        graph.shape(weight)
        for node in graph.calls("embedding")
        for weight in [graph.argument(node, "weight")]
        if weight is not None
    ]
    return {table[0] for table in tables if table and table[0] > table[1]}


def _finding(
    graph: Graph, edits: SourceEdits, norm: Any, layers: list[Any], width: int, *, sure: bool
) -> Finding:
    by_batch = graph.name(norm) == "batch_norm"
    cost = (
        "the batch gets a fixed mean and spread of scores, whatever its samples"
        if by_batch
        else "every sample gets scores of one mean and spread"
    )
    behind = " and ".join(dict.fromkeys(graph.label(layer) for layer in layers[-2:]))
    outputs = f"{width} outputs" if width > 1 else "one output"
    return Finding(
        f"{graph.label(norm)} normalises the model's {outputs} behind {behind}: {cost}",
        where=norm,
        evidence={"layer": behind, "outputs": width},
        fault=("normalized output", id(norm)),
        fixes=[_fix(graph, edits, norm)],
        confidence=Confidence.CERTAIN if sure else Confidence.LIKELY,
        affects=[norm, *layers],
    )


def _fix(graph: Graph, edits: SourceEdits, norm: Any) -> Fix:
    title = f"remove {graph.label(norm)}; normalise before the last layer"
    reason = "scores and predictions have a mean and a spread of their own (seed B, section 1.3)"
    patches = removal_patches(graph, [norm])
    layer = graph.layer(norm)
    if layer is None:
        site = graph.operation(norm).site
        return edits.removed(site, title=title, reason=reason, patches=patches)
    if len(graph.built_together(norm)) != 1:
        obstacle = "the line that makes it makes others as well"
        return Fix(title, reason=reason, obstacle=obstacle, patches=patches)

    def identity(call: ast.Call, _: str) -> str | None:
        prefix = ast.unparse(call.func).rpartition(type(layer).__name__)
        return f"{prefix[0]}Identity()" if prefix[0].endswith(".") and not prefix[2] else None

    made = graph.constructed(norm)
    fix = edits.replaced_calls([(made, identity)], title=title, reason=reason, patches=patches)
    return fix if fix.edits else edits.removed(made, title=title, reason=reason, patches=patches)
