"""NRM001 norm-features-mismatch."""

from __future__ import annotations

from collections.abc import Iterator

from trainlint.rule import (
    Finding,
    Graph,
    Severity,
    SourceEdits,
    blamed_source,
    describe_source,
    mismatches,
    rule,
    width_fixes,
    width_source,
)

NORMS = {"batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm", "module_error"}
CLASS_OF_RANK = {2: "1d", 3: "1d", 4: "2d", 5: "3d"}


@rule("NRM001", severity=Severity.ERROR, since="0.1", explains=["layer-input-mismatch"])
def norm_features_mismatch(graph: Graph, edits: SourceEdits) -> Iterator[Finding]:
    """A normalisation layer is built for another number of channels than it receives.

    BatchNorm keeps one mean, variance, scale and shift per channel: y = γ(x − μ)/√(σ² + ε) + β, with
    μ, σ², γ and β of length `num_features` (Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 1).
    If another number of channels arrives, the forward raises; nothing trains. The same holds for
    `num_channels` of GroupNorm, `normalized_shape` of LayerNorm, and for BatchNorm1d, 2d and 3d on a
    tensor of another rank.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 64, 3)
            self.bn1 = nn.BatchNorm2d(32)
            self.head = nn.Linear(64, 10)

        def forward(self, x):
            x = torch.relu(self.bn1(self.conv1(x)))
            return self.head(x.mean((2, 3)))
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 64, 3)
            self.bn1 = nn.BatchNorm2d(64)
            self.head = nn.Linear(64, 10)

        def forward(self, x):
            x = torch.relu(self.bn1(self.conv1(x)))
            return self.head(x.mean((2, 3)))
    ```

    ## When to ignore it
    Never: the forward cannot run. If the layer before it is the one that is wrong, mend that one.

    ## Fix safety
    Safe: the number that arrives is the only one with which the layer runs. It is offered as an edit
    where the number is written as a literal and every layer built by that call needs the same. Unsafe
    in a function or class that builds many, `block(i, o)`: there it is the name that the layer before it
    takes.

    ## References
    Seed B, section 1.3; Ioffe & Szegedy 2015; Wu & He 2018 (GroupNorm), arXiv:1803.08494.
    """
    for mismatch in mismatches(graph):
        node, wants = mismatch.node, mismatch.wants
        if graph.name(node) not in NORMS or not _is_norm(wants.argument):
            continue
        declared = f"{wants.layer}({_shown(wants.argument, wants.expected)})"
        yield Finding(
            f"{declared} receives {wants.received} {wants.what}"
            f"{describe_source(graph, mismatch.source)}{blamed_source(graph, mismatch)}",
            where=node,
            evidence={wants.argument: wants.expected, "received": wants.received},
            fixes=width_fixes(
                graph,
                edits,
                mismatch,
                f"{declared} → {wants.layer}({_shown(wants.argument, wants.received)})",
            ),
            fault=mismatch.fault,
            starved=1.0,
        )
    yield from _wrong_rank(graph, edits)


def _is_norm(argument: str) -> bool:
    return argument in ("num_features", "num_channels", "normalized_shape")


def _shown(argument: str, value: int) -> str:
    return f"…, {value}" if argument == "num_channels" else str(value)


def _wrong_rank(graph: Graph, edits: SourceEdits) -> Iterator[Finding]:
    for node in graph.faults:
        layer, data = graph.layer(node), graph.data(node)
        name = type(layer).__name__
        if graph.name(node) != "module_error" or data is None or not name.endswith("d"):
            continue
        dims = graph.shape(data)
        if "Norm" not in name or dims is None or len(dims) not in CLASS_OF_RANK:
            continue
        if not graph.inputs_given and width_source(graph, node).kind != "layer":
            continue
        right = name[:-2] + CLASS_OF_RANK[len(dims)]
        if right == name:
            continue
        site = graph.constructed(node)
        yield Finding(
            f"{name} receives a tensor of {len(dims)} dimensions, "
            f"{'×'.join(map(str, dims))}; that is what {right} is for",
            where=node,
            evidence={"dimensions": len(dims), "shape": list(dims)},
            fixes=[
                edits.callee(
                    [site],
                    name,
                    right,
                    title=f"{name} → {right}",
                    reason=f"{right} takes tensors of {len(dims)} dimensions, {name} does not",
                )
            ],
            fault=("rank", id(node)),
            starved=1.0,
        )
