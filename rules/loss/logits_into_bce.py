"""LOS004 logits-into-bce."""

from __future__ import annotations

import math
from collections.abc import Iterator

from trainlint.rule import (
    Confidence,
    Finding,
    Fix,
    Graph,
    Incident,
    Link,
    LossCall,
    Losses,
    Patch,
    Range,
    Severity,
    SourceEdits,
    Trace,
    activation_patches,
    explained,
    loss_fixes,
    ops,
    other_activation,
    other_loss,
    rule,
)

SCALING = ("add", "sub", "mul", "div", "neg")
UNBOUNDED = Range(-math.inf, math.inf)
# An epsilon that is added to a probability.
SLACK = 0.01


@rule("LOS004", severity=Severity.ERROR, since="0.1", own=["loss"])
def logits_into_bce(
    graph: Graph | None, losses: Losses | None, edits: SourceEdits | None, trace: Trace | None
) -> Iterator[Finding]:
    """BCELoss gets values outside of [0, 1], and refuses them.

    `binary_cross_entropy` computes −t·log(x) − (1 − t)·log(1 − x), so x must be a probability. PyTorch
    raises `all elements of input should be between 0 and 1` at the first value that is none; on a
    GPU the same check is an assertion in the kernel, which ends the process with a message that names
    neither. Raw scores of a linear layer leave [0, 1] in the first batch, and so do ReLU (up to ∞) and
    tanh (down to −1).

    The bounds of the output are computed from its last operations, 2·sigmoid(x) reaches 2. Sigmoid,
    softmax, clamp to [0, 1], a shifted tanh (tanh(x) + 1)/2 or exp of a log-probability are sound;
    where the bounds are not known nothing is said.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(30, 16)
            self.fc2 = nn.Linear(16, 1)

        def forward(self, x):
            return self.fc2(F.relu(self.fc1(x)))


    def train(model, loader, optimizer):
        criterion = nn.BCELoss()
        for features, labels in loader:
            optimizer.zero_grad()
            loss = criterion(model(features), labels)
            loss.backward()
            optimizer.step()
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(30, 16)
            self.fc2 = nn.Linear(16, 1)

        def forward(self, x):
            return torch.sigmoid(self.fc2(F.relu(self.fc1(x))))


    def train(model, loader, optimizer):
        criterion = nn.BCELoss()
        for features, labels in loader:
            optimizer.zero_grad()
            loss = criterion(model(features), labels)
            loss.backward()
            optimizer.step()
    ```

    ## When to ignore it
    When the values are brought into [0, 1] on a way that trainlint does not see.

    ## Fix safety
    Unsafe: the loss takes the sigmoid itself afterwards, so the model still returns raw scores, and a
    decision is z > 0 in place of p > 0.5. BCEWithLogitsLoss is the better of the two forms: it
    computes max(z, 0) − z·t + log(1 + e^−|z|), which neither overflows nor rounds to log 0.

    ## References
    The documentation of torch.nn.BCELoss and torch.nn.BCEWithLogitsLoss ("more numerically stable ... by
    the log-sum-exp trick").
    """
    found: list[Finding] = []
    if graph is not None and losses is not None and edits is not None:
        found += _in_graph(graph, losses, edits)
    yield from found
    if trace is not None and not found:  # else it was seen to happen, too
        yield from _watched(trace, edits)


def _in_graph(graph: Graph, losses: Losses, edits: SourceEdits) -> Iterator[Finding]:
    for call in losses.of("binary_cross_entropy"):
        bounds, links = losses.range(call), losses.links(call)
        if bounds is None or not links or bounds.within(0, 1):
            continue
        if math.isinf(bounds.width) or (_is_exact(links) and not bounds.within(-SLACK, 1 + SLACK)):
            yield _finding(graph, losses, edits, call, bounds, links)


def _is_exact(links: tuple[Link, ...]) -> bool:
    """Whether the bounds are reached: those of an activation, scaled and shifted at most."""
    place = 0
    while place < len(links) and links[place].name in SCALING:
        place += 1
    return place < len(links) and links[place].kept is not None


def _watched(trace: Trace, edits: SourceEdits | None) -> Iterator[Finding]:
    for incident in trace.of("scores-refused"):
        least, largest = incident.facts["least"], incident.facts["largest"]
        if math.isnan(least) or math.isnan(largest):  # where they come from is another finding
            continue
        yield Finding(
            f"{incident.facts['loss']} expects probabilities and gets values from {least:.3g} to "
            f"{largest:.3g} at step {incident.step}: it raises an error",
            where=incident.site,
            evidence={
                "loss": incident.facts["loss"],
                "low": least,
                "high": largest,
                "step": incident.step,
            },
            fixes=[_swapped(edits, incident), ANOTHER],
        )


TITLE = "use BCEWithLogitsLoss in place of BCELoss: it takes the sigmoid itself"
WHY = "max(z, 0) − z·t + log(1 + e^−|z|) takes any z; log p has no value outside of [0, 1]"
ANOTHER = Fix(
    "or make torch.sigmoid the model's last step",
    reason="BCELoss behind a sigmoid is the same function, but rounds log(1 − p) near p = 1",
    obstacle="the first fix is the better of the two",
)


def _swapped(edits: SourceEdits | None, incident: Incident) -> Fix:
    to = "binary_cross_entropy_with_logits"
    made = (
        Fix(TITLE)
        if edits is None
        else loss_fixes.swapped(edits, incident.site, "binary_cross_entropy", to, title=TITLE)
    )
    return explained(
        made,
        reason=WHY,
        obstacle="the source is not at hand",
        patches=[Patch.training("loss", to=to)],
    )


def _finding(
    graph: Graph,
    losses: Losses,
    edits: SourceEdits,
    call: LossCall,
    bounds: Range,
    links: tuple[Link, ...],
) -> Finding:
    link, layer = links[0], links[-1].node
    activation = link.name in (*ops.ACTIVATIONS, *SCALING) and bounds != UNBOUNDED
    if activation:
        names = [part.name for part in links if part.name in (*ops.ACTIVATIONS, *SCALING)]
        given = f"{' of '.join(names[:2])}, within {_shown(bounds)}"
    else:
        given = f"the raw scores of {graph.label(layer)}" if layer is not None else link.name
    fixes = [
        other_loss(
            graph,
            edits,
            call,
            "binary_cross_entropy_with_logits",
            title=TITLE,
            reason=WHY,
            patches=[Patch.training("loss", to="binary_cross_entropy_with_logits")],
        )
    ]
    if bounds.within(0, math.inf) and link.name in SCALING:
        fixes = [
            Fix(
                "give the loss the probabilities themselves, without the factor",
                reason="log(1 − p) has no value for p > 1",
                obstacle="what the factor is for is not seen",
            )
        ]
    elif link.name in ("relu", "tanh"):
        fixes = [
            other_activation(
                graph,
                edits,
                link,
                "sigmoid",
                title=f"use a sigmoid in place of this {link.name}",
                reason=f"log p and log(1 − p) need 0 ≤ p ≤ 1, and {link.name} gives {_shown(bounds)}",
                patches=[]
                if link.node is None
                else activation_patches(graph, [link.node], "sigmoid"),
            )
        ]
    return Finding(
        f"{losses.place(call)} expects probabilities and gets {given}: it raises an error at the first "
        "value outside of [0, 1], on a GPU an assertion that ends the process",
        where=link.where if activation or call.where is None else call.where,
        module=graph.operation(link.node).module if link.node is not None else None,
        evidence={
            "loss": call.kind,
            "gets": link.name,
            "low": None if math.isinf(bounds.low) else bounds.low,
            "high": None if math.isinf(bounds.high) else bounds.high,
        },
        fixes=[*fixes, ANOTHER],
        confidence=Confidence.CERTAIN if call.certain else Confidence.LIKELY,
        fault=("before-loss", link.where),
        affects=[call.scores],
    )


def _shown(bounds: Range) -> str:
    low = "(−∞" if math.isinf(bounds.low) else f"[{bounds.low:g}"
    high = "∞)" if math.isinf(bounds.high) else f"{bounds.high:g}]"
    return f"{low}, {high}"
