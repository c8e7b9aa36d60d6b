"""LOS001 double-softmax."""

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
    Severity,
    SourceEdits,
    Trace,
    explained,
    loss_fixes,
    past_clamps,
    rule,
    without_activation,
)


@rule(
    "LOS001",
    severity=Severity.ERROR,
    since="0.1",
    explains=[
        "initial-loss-off",
        "loss-never-moves",
        "underfitting",
        "cannot-memorise",
        "learning-rate-too-low",
    ],
    own=["loss"],
)
def double_softmax(
    graph: Graph | None, losses: Losses | None, edits: SourceEdits | None, trace: Trace | None
) -> Iterator[Finding]:
    """Cross entropy gets probabilities, and takes the softmax of them once more.

    `cross_entropy` and `nn.CrossEntropyLoss` expect raw scores z: they compute −log softmax(z)_y
    themselves. Behind a softmax of the model's own the scores are p in [0, 1], so that even a perfect
    answer, 1 for the right class and 0 for the C − 1 others, costs log(1 + (C − 1)/e): 1.46 for 10
    classes, 5.91 for 1000. The model trains, but slowly, and the loss seems to be stuck there.

    The gradient shrinks as well. It passes the Jacobian diag(p) − ppᵀ of the extra softmax, whose norm is
    at most 1/2; at the start, where p is about 1/C, it is 1/C: ten classes learn ten times more slowly,
    and a confident wrong answer gets next to no gradient.

    A softmax that is only used when the model is not training is sound and not reported. A
    `log_softmax` before cross entropy changes nothing, since log_softmax(log_softmax(z)) =
    log_softmax(z), and is only mentioned.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(784, 128)
            self.fc2 = nn.Linear(128, 10)

        def forward(self, x):
            x = F.relu(self.fc1(x.flatten(1)))
            return F.softmax(self.fc2(x), dim=1)


    def train(model, loader, optimizer):
        criterion = nn.CrossEntropyLoss()
        for images, labels in loader:
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(784, 128)
            self.fc2 = nn.Linear(128, 10)

        def forward(self, x):
            x = F.relu(self.fc1(x.flatten(1)))
            return self.fc2(x)


    def train(model, loader, optimizer):
        criterion = nn.CrossEntropyLoss()
        for images, labels in loader:
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()


    def predict(model, images):
        return F.softmax(model(images), dim=1)
    ```

    ## When to ignore it
    When a published result is to be repeated that was trained so.

    ## Fix safety
    Unsafe: the model returns raw scores afterwards. `argmax` picks the same class; where probabilities
    are wanted, take the softmax outside of the model.

    ## References
    Seed A, problem 5. The documentation of torch.nn.CrossEntropyLoss ("unnormalized logits"). Norm of
    the softmax's Jacobian: Gao & Pavel 2017, arXiv:1704.00805, proposition 2. The floor is the loss at
    a one-hot p: −log(e/(e + C − 1)).
    """
    found: list[Finding] = []
    if graph is not None and losses is not None and edits is not None:
        found += _in_graph(graph, losses, edits)
    yield from found
    if trace is not None and not found:  # else it was seen to happen, too
        yield from _watched(trace, edits)


def _in_graph(graph: Graph, losses: Losses, edits: SourceEdits) -> Iterator[Finding]:
    for call in losses.of("cross_entropy", "nll_loss"):
        links = past_clamps(losses.links(call))
        names = [link.name for link in links]
        if call.kind == "cross_entropy":
            if names[:1] == ["softmax"]:
                yield _double(
                    graph, losses, edits, call, links[0], f"inside of {losses.place(call)}"
                )
            elif names[:1] == ["log_softmax"]:
                yield _redundant(graph, losses, edits, call, links[0])
        elif names[:2] == ["log_softmax", "softmax"]:
            yield _double(graph, losses, edits, call, links[1], "in the log_softmax behind it")


def _watched(trace: Trace, edits: SourceEdits | None) -> Iterator[Finding]:
    for incident in trace.of("softmax-twice"):
        classes = incident.facts["classes"]
        floor = math.log(1 + (classes - 1) / math.e)
        yield Finding(
            f"cross_entropy gets the result of a softmax and takes the softmax of it once more; with "
            f"{classes} classes the loss cannot fall below log(1 + {classes - 1}/e) = {floor:.2f}",
            where=incident.site,
            module=incident.facts["module"],
            evidence={"loss": "cross_entropy", "classes": classes, "least_loss": round(floor, 4)},
            fixes=[_removed(trace, edits, incident, floor)],
        )


def _why(floor: float | None) -> str:
    at = "" if floor is None else f", and the loss ≥ {floor:.2f}"
    return f"the gradient by the scores is p − t with one softmax; with two p ≤ e/(e + C − 1){at}"


def _removed(trace: Trace, edits: SourceEdits | None, incident: Incident, floor: float) -> Fix:
    title = "remove this softmax; cross_entropy takes raw scores"
    module = incident.facts["module"]
    made = (
        Fix(title)
        if edits is None
        else loss_fixes.without(trace, edits, incident.site, module, "softmax", title=title)
    )
    return explained(made, reason=_why(floor), obstacle="the source is not at hand")


def _double(
    graph: Graph, losses: Losses, edits: SourceEdits, call: LossCall, link: Link, again: str
) -> Finding:
    classes = losses.classes(call)
    cost = "the scores stay within [0, 1], and so the loss far from 0"
    evidence: dict[str, object] = {"loss": call.kind}
    floor = 0.0
    if classes is not None and classes > 1:
        floor = math.log(1 + (classes - 1) / math.e)
        cost = (
            f"with {classes} classes the loss cannot fall below log(1 + {classes - 1}/e) = "
            f"{floor:.2f}, and the first gradients are {classes} times too small"
        )
        evidence |= {
            "classes": classes,
            "least_loss": round(floor, 4),
            "initial_loss": round(math.log(classes), 4),
            "initial_gradient_factor": round(1 / classes, 6),
        }
    return Finding(
        f"softmax runs twice: here, and {again}; {cost}",
        where=link.where,
        evidence=evidence,
        fixes=[
            without_activation(
                graph,
                edits,
                link,
                title="remove this softmax; the other one takes raw scores",
                reason=_why(None if classes is None or classes < 2 else floor),
            ),
            Fix(
                "or take log_softmax here, and NLLLoss on what it gives",
                reason="−log softmax(z)_y is the same function, in two steps",
                obstacle="two places would change for one",
            ),
        ],
        confidence=Confidence.CERTAIN if call.certain else Confidence.LIKELY,
        fault=("before-loss", link.where),
        affects=[call.scores],
    )


def _redundant(
    graph: Graph, losses: Losses, edits: SourceEdits, call: LossCall, link: Link
) -> Finding:
    return Finding(
        f"log_softmax is computed here and again inside of {losses.place(call)}; the second changes "
        "nothing, and costs a pass over the scores",
        where=link.where,
        evidence={"loss": call.kind},
        fixes=[
            without_activation(
                graph,
                edits,
                link,
                title="remove it, or take NLLLoss, which expects it",
                reason="log Σ exp of log-probabilities is 0: the second changes nothing",
            )
        ],
        severity=Severity.INFO,
        fault=("before-loss", link.where),
    )
