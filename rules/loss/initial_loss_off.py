"""LOS010 initial-loss-off."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from trainlint.rule import (
    Confidence,
    Finding,
    Fix,
    Graph,
    LossCall,
    Losses,
    Severity,
    Signal,
    SourceEdits,
    Start,
    initialised,
    rule,
)

# Small beside 1/√n of any usual width.
STD = 0.01


@rule("LOS010", severity=Severity.WARNING, since="0.1")
def initial_loss_off(
    graph: Graph,
    losses: Losses,
    signal: Signal,
    edits: SourceEdits,
    *,
    excess: float = 3.0,
    deficit: float = 0.5,
) -> Iterator[Finding]:
    """Before any training, the cross entropy is far from that of a guess.

    A model that knows nothing should say that all C classes are equally likely, which costs log C: 2.30
    for 10 classes, 6.91 for 1000. If the loss starts far above, the scores are large although they mean
    nothing: with scores of standard deviation s it starts near log C + s²/2. The first epochs then only
    take the confident nonsense back (the loss curve looks like a hockey stick), with gradients that
    are large for all the wrong reasons and a softmax that is saturated from the first step on.

    Mostly the last layer's weights are too large: N(0, 1) in place of a width of 1/√n, an embedding of
    unit variance that is also used as the output layer, or a stack before it in which values grow.

    A loss that starts more than `excess` above log C is reported; 358 of 360 sound models start within
    2.7 of it, half of them within 0.02. Starting below `deficit` times log C is
    mentioned where the targets are given: the model was trained before, or its inputs show the
    answer. Only scores that come straight from a layer count: a contrastive loss with its temperature, or
    scores with a mask, start elsewhere. Without given inputs the values are those on normal numbers,
    and real data may be larger.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(64, 128)
            self.fc2 = nn.Linear(128, 10)
            nn.init.normal_(self.fc2.weight)

        def forward(self, x):
            return self.fc2(F.relu(self.fc1(x)))


    def train(model, loader, optimizer):
        for features, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(features), labels)
            loss.backward()
            optimizer.step()
    ```

    ## Good
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(64, 128)
            self.fc2 = nn.Linear(128, 10)
            nn.init.normal_(self.fc2.weight, std=0.01)

        def forward(self, x):
            return self.fc2(F.relu(self.fc1(x)))


    def train(model, loader, optimizer):
        for features, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(features), labels)
            loss.backward()
            optimizer.step()
    ```

    ## When to ignore it
    When trained weights are loaded by another program, or the scores are meant to be sharp from the start,
    as cosines times a fixed scale are.

    ## Fix safety
    Unsafe: the model starts from other weights. Its function space is the same.

    ## References
    Karpathy 2019, "A Recipe for Training Neural Networks" (verify the loss at initialisation). For normal
    scores z ~ N(0, s²) and many classes, log Σ exp z − z_y is log C + s²/2 on average. Thresholds:
    `benchmarks/initial_loss.py`.
    """
    call = losses.sole
    if call is None or signal.objective != "loss" or call.kind not in ("cross_entropy", "nll_loss"):
        return
    classes = losses.classes(call)
    head = _head(graph, losses, call)
    if head is None or not classes or classes < 2:
        return
    expected = math.log(classes)
    if signal.value > expected + excess:
        yield _too_high(graph, losses, edits, signal, call, classes, head)
    elif losses.targets is not None and signal.value < deficit * expected:
        yield _too_low(losses, signal, call, classes)


def _head(graph: Graph, losses: Losses, call: LossCall) -> Any:
    """The layer whose results are the scores, with nothing between: no temperature, no mask."""
    links = losses.links(call)
    if links and links[0].name == "log_softmax":
        links = links[1:]
    elif call.kind == "nll_loss":
        return None
    node = links[0].node if links else None
    if node is None or len(graph.varying_inputs(node)) != 1:
        return None
    return node if graph.is_weighted(node) or graph.name(node) == "matmul" else None


def _too_high(
    graph: Graph,
    losses: Losses,
    edits: SourceEdits,
    signal: Signal,
    call: LossCall,
    classes: int,
    head: Any,
) -> Finding:
    expected = math.log(classes)
    spread = math.sqrt(2 * (signal.value - expected))
    return Finding(
        f"before any training {losses.place(call)} is {signal.value:.3g}, and a guess among {classes} "
        f"classes costs log {classes} = {expected:.3g}: scores of spread {spread:.1f} that mean "
        "nothing have to be unlearnt first",
        where=head,
        evidence={
            "loss": round(signal.value, 4),
            "log_classes": round(expected, 4),
            "classes": classes,
            "score_spread": round(spread, 3),
            "inputs_given": signal.given,
        },
        fixes=[
            _smaller(graph, edits, head, classes, spread),
            Fix(
                "or normalise what goes into it",
                reason="Ba et al. 2016: of inputs of deviation 1 scores are as large as the weights' rows",
                obstacle="the first fix does it at the layer itself",
            ),
        ],
        confidence=Confidence.LIKELY if signal.given else Confidence.POSSIBLE,
        affects=[call.scores],
    )


def _smaller(graph: Graph, edits: SourceEdits, head: Any, classes: int, spread: float) -> Fix:
    """Small first weights of the head."""
    weight = graph.argument(head, "weight")
    tensor = graph.operation(weight).tensor if hasattr(weight, "all_input_nodes") else None
    std = STD
    if tensor is not None and not tensor.is_meta:  # for scores of a deviation of one half
        present = float(tensor.detach().square().mean().sqrt())
        # With few classes and large scores the loss grows as s itself, not as s²/2.
        std = min(STD, float(f"{present / max(2 * spread, spread**2):.0e}"))
    title = (
        f"make the first weights of {graph.label(head)} at least {spread:.0f} times smaller: "
        f"nn.init.normal_(weight, std={std:g})"
    )
    reason = (
        f"the loss starts near log {classes} + s²/2, and s = {spread:.1f} goes with the weights"
    )
    names = {id(p): name for name, p in graph.model.named_parameters()}
    name = names.get(id(tensor))
    if name is None or tensor is None:
        return Fix(title, reason=reason, obstacle="the scores are made by no weight of a layer")
    start = Start(name, tensor, head, "normal_", f", std={std:g}")
    return initialised(graph, edits, [start], title=title, reason=reason)


def _too_low(losses: Losses, signal: Signal, call: LossCall, classes: int) -> Finding:
    expected = math.log(classes)
    return Finding(
        f"before any training {losses.place(call)} is {signal.value:.3g}, below the {expected:.3g} of a "
        f"guess among {classes} classes: trained weights, or inputs that show the answer",
        where=call.where,
        evidence={
            "loss": round(signal.value, 4),
            "log_classes": round(expected, 4),
            "classes": classes,
        },
        severity=Severity.INFO,
        confidence=Confidence.POSSIBLE,
        affects=[call.scores],
    )
