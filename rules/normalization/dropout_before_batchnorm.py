"""NRM007 dropout-before-batchnorm."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trainlint.rule import (
    Confidence,
    Finding,
    Fix,
    Graph,
    Severity,
    SourceEdits,
    batch_norms,
    chain_back,
    dropped_share,
    keeps_statistics,
    ops,
    removal_patches,
    rule,
)

PASSED = ops.REARRANGEMENTS | ops.SPATIAL | ops.MAX_POOLS | ops.ACTIVATIONS


@rule("NRM007", severity=Severity.INFO, since="0.1")
def dropout_before_batchnorm(
    graph: Graph, edits: SourceEdits, *, least: float = 0.1
) -> Iterator[Finding]:
    """BatchNorm learns its statistics from values that dropout spreads, and meets others in eval mode.

    Dropout keeps a value with probability q = 1 − p and divides it by q. The mean stays, the variance
    does not: with mean c and variance v, training shows (c² + v)/q − c², eval mode v. BatchNorm stores
    the first as running variance and divides the second by it, so that in eval mode its outputs shrink
    by √(v/((c² + v)/q − c²)). That is √q at mean zero, 0.71 for p = 0.5, and less for any other mean. A
    layer between them passes most of the shift on. Accuracy in eval mode falls behind what training
    shows.

    A dropout with a smaller share than `least` counts only right before the BatchNorm.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(8, 32)
            self.dropout = nn.Dropout(0.5)
            self.bn = nn.BatchNorm1d(32)
            self.fc2 = nn.Linear(32, 3)

        def forward(self, x):
            x = self.bn(self.dropout(self.fc1(x)))
            return self.fc2(torch.relu(x))
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(8, 32, bias=False)
            self.bn = nn.BatchNorm1d(32)
            self.dropout = nn.Dropout(0.5)
            self.fc2 = nn.Linear(32, 3)

        def forward(self, x):
            x = torch.relu(self.bn(self.fc1(x)))
            return self.fc2(self.dropout(x))
    ```

    ## When to ignore it
    Where p is small and eval-mode accuracy is what training promised, as in wide residual networks.

    ## Fix safety
    Unsafe: less regularisation. With dropout behind the last BatchNorm the statistics are those of
    eval mode.

    ## References
    Li, Chen, Hu & Yang 2018, arXiv:1801.05134, section 3; the formula holds for PyTorch's inverted
    dropout (Srivastava et al. 2014, section 10).
    """
    found = [
        (norm, dropout, layers)
        for norm in batch_norms(graph)
        if keeps_statistics(graph, norm)
        for dropout, layers in [_before(graph, norm, least)]
        if dropout is not None
    ]
    if not found:
        return
    norm, dropout, layers = max(found, key=lambda item: (-item[2], dropped_share(graph, item[1])))
    share = dropped_share(graph, dropout)
    through = " through one layer" if layers else ""
    bound = "about" if layers else "at least"
    more = f" ({len(found)} such places)" if len(found) > 1 else ""
    times = f"{bound} 1/(1−p) = {1 / (1 - share):.3g} times" if share < 1 else "nothing like"
    yield Finding(
        f"{graph.label(dropout)} (p={share:g}) feeds {graph.label(norm)}{through}: the variance it "
        f"stores is {times} that of eval mode{more}",
        where=dropout,
        evidence={
            "p": share,
            "layers_between": layers,
            "places": [
                [graph.label(each), graph.label(behind), dropped_share(graph, each)]
                for behind, each, _ in found
            ],
        },
        fixes=_fixes(graph, edits, [each for _, each, _ in found]),
        confidence=Confidence.POSSIBLE if layers else Confidence.LIKELY,
        affects=[node for behind, each, _ in found for node in (behind, each)],
    )


def _fixes(graph: Graph, edits: SourceEdits, dropouts: list[Any]) -> list[Fix]:
    dropouts = list(dict.fromkeys(dropouts))
    moved = Fix(
        "dropout behind the last BatchNorm, before the last layer",
        reason="Li et al. 2018: there no BatchNorm stores the variance that dropout adds",
        obstacle="where it belongs depends on what the layers behind are for",
    )
    sites = {
        site.key: site for node in dropouts for site in [graph.place(node)] if site is not None
    }
    removed = [edits.removed(site, title="") for site in sites.values()]
    without = edits.together(
        *removed,
        title="no dropout",
        reason="BatchNorm regularises by itself (Ioffe & Szegedy 2015, section 3.4)",
        patches=removal_patches(graph, dropouts),
    )
    return [moved, without]


def _before(graph: Graph, norm: Any, least: float) -> tuple[Any, int]:
    """The active dropout in front of a BatchNorm, and how many layers (0 or 1) lie between."""
    layers = 0
    for node in chain_back(graph, norm):
        name = graph.name(node)
        if name in ops.DROPOUTS:
            if dropped_share(graph, node) > (least if layers else 0.0):
                return node, layers
        elif graph.is_weighted(node) and layers == 0:
            layers = 1
        elif not graph.is_transparent(node, PASSED):
            break
    return None, 0
