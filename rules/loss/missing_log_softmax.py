"""LOS002 missing-log-softmax."""

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
    LossTrace,
    Patch,
    Severity,
    SourceEdits,
    Trace,
    activation_patches,
    explained,
    loss_fixes,
    other_activation,
    other_loss,
    past_clamps,
    rule,
)

# Their results are no logarithms of probabilities, whatever they are given.
POSITIVE = ("softmax", "sigmoid", "tanh", "relu", "hardsigmoid", "softplus")


@rule(
    "LOS002",
    severity=Severity.ERROR,
    since="0.1",
    explains=[
        "loss-never-moves",
        "underfitting",
        "cannot-memorise",
        "learning-rate-too-low",
        "learning-rate-too-high",
    ],
    own=["loss"],
)
def missing_log_softmax(
    graph: Graph | None, losses: Losses | None, edits: SourceEdits | None, trace: Trace | None
) -> Iterator[Finding]:
    """NLLLoss, KLDivLoss or CTCLoss gets something else than logarithms of probabilities.

    `nll_loss` does no more than pick the right class's entry and change its sign: L = −x_y. That is the
    negative log-likelihood only if x holds log-probabilities, all ≤ 0, as `log_softmax` returns
    them.

    Of raw scores, L = −z_y has no lower bound: the optimizer lets all scores grow, the loss falls to
    −1000 and beyond, and nothing ever compares one class with another. Of probabilities (softmax without
    the log), L = −p_y stays within [−1, 0], and its gradient p_y(1 − p_y) vanishes just where the
    answer is wrong, p_y ≈ 0, while −log p_y has the gradient 1 − p_y there. `kl_div` wants
    its first argument as logarithms, too, since it computes Σ t·(log t − x), and `ctc_loss` sums e^x
    over alignments, which is a probability only if each step's e^x sum to 1.

    An output is reported where its bounds show that it cannot be a log-probability: the layer before
    the loss is linear, a softmax, a sigmoid or another activation with positive values.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(784, 128)
            self.fc2 = nn.Linear(128, 10)

        def forward(self, x):
            return self.fc2(F.relu(self.fc1(x.flatten(1))))


    def train(model, loader, optimizer):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = F.nll_loss(model(images), labels)
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
            return F.log_softmax(self.fc2(F.relu(self.fc1(x.flatten(1)))), dim=1)


    def train(model, loader, optimizer):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = F.nll_loss(model(images), labels)
            loss.backward()
            optimizer.step()
    ```

    ## When to ignore it
    When `nll_loss` only serves to pick entries, as in a policy gradient with weights of its own.

    ## Fix safety
    Unsafe: another loss is computed. Cross entropy on raw scores and NLLLoss behind log_softmax are
    the same function.

    ## References
    The documentation of torch.nn.NLLLoss ("the input ... is expected to contain log-probabilities"), of
    torch.nn.KLDivLoss and of torch.nn.CTCLoss. Goodfellow, Bengio & Courville 2016, Deep Learning,
    section 6.2.2.3 (why the log undoes the exp of the softmax).
    """
    found: list[Finding] = []
    if graph is not None and losses is not None and edits is not None:
        found += _in_graph(graph, losses, edits)
    yield from found
    if trace is not None and not found:  # else it was seen to happen, too
        yield from _watched(trace, edits)


def _in_graph(graph: Graph, losses: Losses, edits: SourceEdits) -> Iterator[Finding]:
    for call in losses.of("nll_loss", "kl_div", "ctc_loss"):
        bounds = losses.range(call)
        links = past_clamps(losses.links(call))
        if bounds is None or not links or bounds.high <= 0:
            continue
        if math.isinf(bounds.high) or links[0].name in POSITIVE:
            yield _finding(graph, losses, edits, call, links)


def _watched(trace: Trace, edits: SourceEdits | None) -> Iterator[Finding]:
    for incident in trace.of("no-logarithm"):
        loss, gets = incident.facts["loss"], incident.facts["gets"]
        yield Finding(
            f"{loss} expects log-probabilities and gets the probabilities of a {gets}: its gradient "
            "vanishes where the answer is wrong",
            where=incident.site,
            module=incident.facts["module"],
            evidence={"loss": loss, "gets": gets},
            fixes=[_renamed(trace, edits, incident)],
        )
    for loss in trace.objectives:
        # Logarithms of probabilities are at most 0, but for rounding.
        largest = loss.largest or 0.0
        if loss.kind not in ("nll_loss", "kl_div") or not 0.001 < largest < math.inf:
            continue  # where a NaN comes from is another finding
        if loss.made_by not in ("Softmax", "Sigmoid"):
            yield Finding(
                f"{loss.kind} expects log-probabilities, which are at most 0, and gets values up to "
                f"{largest:.3g}: the loss falls for ever and compares no classes",
                where=loss.site,
                evidence={"loss": loss.kind, "largest": round(largest, 4)},
                fixes=_of_scores(edits, loss),
            )


LOG = "use log_softmax in place of softmax"
WHOLE = "use cross_entropy in place of nll_loss: it takes the log_softmax itself"
WHY = "−log softmax(z)_y has the gradient p − t, which is largest where the answer is wrong"
ANOTHER = Fix(
    "or make F.log_softmax(scores, dim=1) the model's last step",
    reason="NLLLoss behind a log_softmax is cross entropy",
    obstacle="the first fix does the same in one place",
)


def _renamed(trace: Trace, edits: SourceEdits | None, incident: Incident) -> Fix:
    gets, module = incident.facts["gets"], incident.facts["module"]
    made = (
        Fix(LOG)
        if edits is None or gets != "softmax"
        else loss_fixes.renamed(
            trace, edits, incident.site, module, "softmax", "log_softmax", title=LOG
        )
    )
    return explained(made, reason=WHY, obstacle=f"it is a {gets} that the loss is given")


def _of_scores(edits: SourceEdits | None, loss: LossTrace) -> list[Fix]:
    """For raw scores that a run was seen to give to a loss of logarithms."""
    if loss.kind != "nll_loss":
        title = f"give {loss.kind} logarithms: F.log_softmax(scores, dim=1)"
        change = "{}.log_softmax(1)"
        made = (
            Fix(title)
            if edits is None
            else loss_fixes.with_operand(edits, loss.site, 0, change, title=title)
        )
        why = "Σ exp of a log_softmax is 1: only then is it a distribution that is compared"
        return [explained(made, reason=why, obstacle="the source is not at hand")]
    made = (
        Fix(WHOLE)
        if edits is None
        else loss_fixes.swapped(edits, loss.site, "nll_loss", "cross_entropy", title=WHOLE)
    )
    patches = [Patch.training("loss", to="cross_entropy")]
    whole = explained(made, reason=WHY, obstacle="the source is not at hand", patches=patches)
    return [whole, ANOTHER]


def _finding(
    graph: Graph, losses: Losses, edits: SourceEdits, call: LossCall, links: tuple[Link, ...]
) -> Finding:
    link, layer = links[0], links[-1].node
    raw = link.name not in POSITIVE
    loss = losses.place(call)
    if call.kind == "kl_div":
        cost = "its Σ t·(log t − x) is then no divergence, and can fall below 0"
    elif call.kind == "ctc_loss":
        cost = (
            "their exponentials do not sum to 1, so that the loss can fall below 0 by scale alone"
        )
    elif link.name == "softmax":
        cost = "−p_y stays within [−1, 0], and its gradient p_y(1 − p_y) vanishes where the answer is wrong"
    elif raw:
        cost = "−z_y has no lower bound and compares no classes, so that the loss falls for ever"
    else:
        cost = "−x_y compares no classes"
    given = f"the scores of {graph.label(layer)}" if raw and layer is not None else link.name
    return Finding(
        f"{loss} expects log-probabilities and gets {given}: {cost}",
        where=call.where if raw and call.where is not None else link.where,
        module=graph.operation(link.node).module if link.node is not None else None,
        evidence={"loss": call.kind, "gets": link.name},
        fixes=_fixes(graph, edits, call, link, raw=raw),
        confidence=Confidence.CERTAIN if call.certain else Confidence.LIKELY,
        fault=("before-loss", link.where),
        affects=[call.scores],
    )


def _fixes(graph: Graph, edits: SourceEdits, call: LossCall, link: Link, *, raw: bool) -> list[Fix]:
    if link.name == "softmax":
        return [
            other_activation(
                graph,
                edits,
                link,
                "log_softmax",
                title=LOG,
                reason=WHY,
                patches=[]
                if link.node is None
                else activation_patches(graph, [link.node], "log_softmax"),
            )
        ]
    if call.kind == "nll_loss" and raw:
        return [
            other_loss(
                graph,
                edits,
                call,
                "cross_entropy",
                title=WHOLE,
                reason=WHY,
                patches=[Patch.training("loss", to="cross_entropy")],
            ),
            ANOTHER,
        ]
    axis = 2 if call.kind == "ctc_loss" else 1
    where = call.where
    site = graph.place(where) if hasattr(where, "all_input_nodes") else where
    return [
        explained(
            loss_fixes.with_operand(
                edits,
                site,
                0,
                f"{{}}.log_softmax({axis})",
                title=f"give {call.kind} logarithms: F.log_softmax(scores, dim={axis})",
            ),
            reason="Σ exp of a log_softmax is 1: only then is it a distribution that is compared",
        )
    ]
