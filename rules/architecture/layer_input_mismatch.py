"""ARC002 layer-input-mismatch."""

from __future__ import annotations

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
    blamed_source,
    describe_source,
    mismatches,
    refuses_channels_last,
    rule,
    width_fixes,
)

ARGUMENTS = {"in_features", "in_channels", "input_size", "num_embeddings", "embed_dim",
             "num_parameters"}  # fmt: skip


@rule("ARC002", severity=Severity.ERROR, since="0.1", explains=["incompatible-shapes"])
def layer_input_mismatch(graph: Graph, edits: SourceEdits) -> Iterator[Finding]:
    """A layer declares another input width than it receives.

    A Linear multiplies by a weight of (out_features, in_features), a convolution by one of
    (out_channels, in_channels, ...); the width that arrives must be that number, or the forward raises.
    All mismatches of a model are found in one run: each is repaired for the analysis of the rest.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 16, 3)
            self.fc1 = nn.Linear(16, 64)
            self.fc2 = nn.Linear(32, 10)

        def forward(self, x):
            x = torch.relu(self.conv(x)).mean((2, 3))
            return self.fc2(torch.relu(self.fc1(x)))
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 16, 3)
            self.fc1 = nn.Linear(16, 64)
            self.fc2 = nn.Linear(64, 10)

        def forward(self, x):
            x = torch.relu(self.conv(x)).mean((2, 3))
            return self.fc2(torch.relu(self.fc1(x)))
    ```

    ## When to ignore it
    When the inputs shown in the report's first line are not those of your data: give the right ones as
    `example_inputs` or `--inputs`. Mismatches that depend on the size of an input which trainlint made
    up are not reported.

    ## Fix safety
    Safe: the width that arrives is the only one with which the layer runs. Offered as an edit where the
    number is written as a literal and every layer built by that call needs the same.

    ## References
    `torch.nn.Linear`, `torch.nn.Conv2d`, `torch.nn.Embedding`, `torch.nn.LSTM`.
    """
    for mismatch in mismatches(graph):
        node, wants = mismatch.node, mismatch.wants
        if wants.argument not in ARGUMENTS:
            continue
        if wants.what == "ids":
            yield _too_few_rows(graph, edits, mismatch)
            continue
        yield Finding(
            f"{graph.label(node)}, a {wants.layer} of {wants.argument}={wants.expected}, receives "
            f"{wants.received} {wants.what}{describe_source(graph, mismatch.source)}"
            f"{blamed_source(graph, mismatch)}",
            where=node,
            evidence={wants.argument: wants.expected, "received": wants.received},
            # Where the axes are in another order, another width would only hide it.
            fixes=[_channels_first(graph, node)]
            if refuses_channels_last(graph, node)
            else width_fixes(
                graph,
                edits,
                mismatch,
                f"{wants.argument}={wants.expected} → {wants.received} in {graph.label(node)}",
            ),
            fault=mismatch.fault,
            starved=1.0,
        )


def _channels_first(graph: Graph, node: Any) -> Fix:
    return Fix(
        "x.permute(0, 3, 1, 2) before the first layer: (batch, channels, height, width)",
        reason=f"{graph.label(node)} takes channels on axis 1, and they arrive on the last",
        obstacle="the images may be turned where they are loaded, or in the forward",
        patches=[Patch.training("channels-first")],
    )


def _too_few_rows(graph: Graph, edits: SourceEdits, mismatch: Mismatch) -> Finding:
    node, wants = mismatch.node, mismatch.wants
    largest, name = wants.received - 1, graph.operation(node).module
    return Finding(
        f"{graph.label(node)}, an Embedding of {wants.expected} rows, is asked for row {largest}",
        where=node,
        evidence={"num_embeddings": wants.expected, "largest_id": largest},
        fixes=[
            edits.argument(
                graph.constructed(node), 0, "num_embeddings", wants.received, current=wants.expected,
                title=f"num_embeddings={wants.expected} → at least {wants.received}",
                safety=Safety.UNSAFE,
                reason=f"ids run from 0: {largest} is row number {wants.received}",
                patches=[Patch.rebuilt(name, num_embeddings=wants.received)] if name else [],
            )
        ],
        fault=mismatch.fault,
        starved=1.0,
    )  # fmt: skip
