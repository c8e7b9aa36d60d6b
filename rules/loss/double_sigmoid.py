"""LOS003 double-sigmoid."""

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
    Severity,
    SourceEdits,
    Trace,
    explained,
    loss_fixes,
    other_loss,
    past_clamps,
    rule,
    without_activation,
)

PROBABILITIES = ("sigmoid", "softmax", "hardsigmoid")


@rule(
    "LOS003",
    severity=Severity.ERROR,
    since="0.1",
    explains=["loss-never-moves", "underfitting", "cannot-memorise", "learning-rate-too-low"],
    own=["loss"],
)
def double_sigmoid(
    graph: Graph | None, losses: Losses | None, edits: SourceEdits | None, trace: Trace | None
) -> Iterator[Finding]:
    """BCEWithLogitsLoss gets probabilities, and takes the sigmoid of them once more.

    `binary_cross_entropy_with_logits` expects raw scores z and computes σ(z) itself. Behind a sigmoid (or
    a softmax) of the model's own it sees p in [0, 1], and σ(p) lies between 0.5 and 0.731: the model can
    never answer "no" with more than 50%, nor "yes" with more than 73.1%. A negative sample costs at
    least log 2 = 0.693, a positive one at least log(1 + 1/e) = 0.313, however well it is classified.

    The gradient passes the slope of the second sigmoid as well, σ'(z) = p(1 − p) ≤ 1/4, and a confident
    wrong answer, p(1 − p) ≈ 0, is not corrected any more, which is what the logits form is meant to avoid.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(30, 16)
            self.fc2 = nn.Linear(16, 1)
            self.sigmoid = nn.Sigmoid()

        def forward(self, x):
            return self.sigmoid(self.fc2(F.relu(self.fc1(x))))


    def train(model, loader, optimizer):
        criterion = nn.BCEWithLogitsLoss()
        for features, labels in loader:
            optimizer.zero_grad()
            loss = criterion(model(features).squeeze(1), labels.float())
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
            return self.fc2(F.relu(self.fc1(x)))


    def train(model, loader, optimizer):
        criterion = nn.BCEWithLogitsLoss()
        for features, labels in loader:
            optimizer.zero_grad()
            loss = criterion(model(features).squeeze(1), labels.float())
            loss.backward()
            optimizer.step()
    ```

    ## When to ignore it
    When a published result is to be repeated that was trained so.

    ## Fix safety
    Unsafe: the model returns raw scores afterwards, and p > 0.5 becomes z > 0. BCELoss behind the sigmoid
    is the same function, but rounds log(1 − p) to −∞ where p is near 1, which is why PyTorch cuts it at
    −100.

    ## References
    Seed A, problem 5. The documentation of torch.nn.BCEWithLogitsLoss (which "combines a Sigmoid layer and
    the BCELoss in one single class") and of torch.nn.BCELoss (the cut at −100).
    """
    found: list[Finding] = []
    if graph is not None and losses is not None and edits is not None:
        found += _in_graph(graph, losses, edits)
    yield from found
    if trace is not None and not found:  # else it was seen to happen, too
        yield from _watched(trace, edits)


def _in_graph(graph: Graph, losses: Losses, edits: SourceEdits) -> Iterator[Finding]:
    for call in losses.of("binary_cross_entropy_with_logits", "binary_cross_entropy"):
        links = past_clamps(losses.links(call))
        again = f"inside of {losses.place(call)}"
        if call.kind == "binary_cross_entropy":  # which takes none itself
            links, again = links[1:] if links and links[0].name == "sigmoid" else (), "behind it"
        if links and links[0].name in PROBABILITIES:
            yield _finding(graph, edits, call, links[0], again)


def _watched(trace: Trace, edits: SourceEdits | None) -> Iterator[Finding]:
    for incident in trace.of("sigmoid-twice"):
        loss, gets = incident.facts["loss"], incident.facts["gets"]
        yield Finding(
            f"{loss} gets the result of a {gets} and takes the sigmoid of it: its probabilities stay "
            f"within [0.5, 0.73], so that a negative sample costs at least {math.log(2):.2f}",
            where=incident.site,
            module=incident.facts["module"],
            evidence={"loss": loss, "gets": gets, "least_loss_negative": round(math.log(2), 4)},
            fixes=[_removed(trace, edits, incident)],
        )


WHY = (
    "the gradient by the score is σ(z) − t with one sigmoid; a second puts p(1 − p) ≤ 1/4 before it"
)


def _removed(trace: Trace, edits: SourceEdits | None, incident: Incident) -> Fix:
    gets, module = incident.facts["gets"], incident.facts["module"]
    title = f"remove this {gets}; the loss has it"
    made = (
        Fix(title)
        if edits is None
        else loss_fixes.without(trace, edits, incident.site, module, gets, title=title)
    )
    return explained(made, reason=WHY, obstacle="the source is not at hand")


def _finding(graph: Graph, edits: SourceEdits, call: LossCall, link: Link, again: str) -> Finding:
    negative, positive = math.log(2), math.log(1 + 1 / math.e)
    first = (
        "sigmoid runs twice: here, and" if link.name == "sigmoid" else f"{link.name} here, sigmoid"
    )
    fixes = [
        without_activation(
            graph,
            edits,
            link,
            title=f"remove this {link.name}; one is enough",
            reason=WHY,
        )
    ]
    if link.name == "sigmoid" and call.kind != "binary_cross_entropy":
        title = "or keep it and take BCELoss, which rounds off near 0 and 1"
        fixes.append(
            other_loss(
                graph,
                edits,
                call,
                "binary_cross_entropy",
                title=title,
                reason="the same function; log(1 − p) is cut at −100",
                patches=[Patch.training("loss", to="binary_cross_entropy")],
            )
        )
    return Finding(
        f"{first} {again}: its probabilities stay within [0.5, 0.73], so that a "
        f"negative sample costs at least {negative:.2f} and a positive one {positive:.2f}",
        where=link.where,
        evidence={
            "loss": call.kind,
            "gets": link.name,
            "least_loss_negative": round(negative, 4),
            "least_loss_positive": round(positive, 4),
        },
        fixes=fixes,
        confidence=Confidence.CERTAIN if call.certain else Confidence.LIKELY,
        fault=("before-loss", link.where),
        affects=[call.scores],
    )
