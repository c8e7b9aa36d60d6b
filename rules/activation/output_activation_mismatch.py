"""ACT004 output-activation-mismatch."""

from __future__ import annotations

import math
from collections.abc import Iterator

from trainlint.rule import (
    Confidence,
    Data,
    FieldData,
    Finding,
    Fix,
    Graph,
    Link,
    LossCall,
    Losses,
    Range,
    Severity,
    SourceEdits,
    activation_patches,
    ops,
    other_activation,
    past_clamps,
    rule,
    without_activation,
)

# Bounds below this one cost nothing: a score of -3 has a probability of 5%.
LOWEST = -2.0
# Losses that a clamp of the scores adds without harm, as one to [-10, 10] does.
SLIGHT = 0.05
# These stop learning where they are 0; a softplus never does.
FLAT = ("relu", "relu6", "clamp", "clamp_min")
# What turns scores into probabilities, in the model or inside the loss.
NORMALIZERS = ("log_softmax", "softmax", "sigmoid", "logsigmoid", "log")
CLASSIFIERS = (
    "cross_entropy",
    "nll_loss",
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy",
)
CROSS_ENTROPIES = ("cross_entropy", "nll_loss")
WITH_LOGITS = ("cross_entropy", "binary_cross_entropy_with_logits")
REGRESSIONS = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")


@rule(
    "ACT004",
    severity=Severity.WARNING,
    since="0.1",
    explains=[
        "dead-units",
        "dead-relu",
        "loss-never-moves",
        "underfitting",
        "cannot-memorise",
        "learning-rate-too-low",
        "input-without-influence",
        "constant-output",
        "unscaled-target",
    ],
)
def output_activation_mismatch(
    graph: Graph, losses: Losses, edits: SourceEdits, data: Data | None
) -> Iterator[Finding]:
    """The last activation keeps the scores from where the loss wants them.

    Softmax and sigmoid turn any real scores into probabilities, and the loss needs their full range. A
    ReLU before them, or a `clamp(min=0)`, keeps every score ≥ 0. A class whose unit is negative for all
    samples then gets no gradient at all, since the ReLU's slope is 0 there; among two classes the better
    one can win by its score only, never by the other's being low; and a sigmoid behind a ReLU never
    answers below 1/2, so that a negative sample costs at least log 2. GELU, SiLU, ELU and softplus have
    a lower bound as well, and a slope that goes to 0 there.

    A tanh, sigmoid or clamp before cross entropy keeps the scores within a width R (2 or 1), and with C
    classes the loss above log(1 + (C − 1)·e⁻ᴿ): 0.80 or 1.46 for ten classes. An activation on the
    output of a regression is reported where targets are known and lie outside of its range; a ReLU
    on a single output is mentioned without them. Targets are known that are given, and those of a
    `train_loader` for a criterion that the file names and calls nowhere itself. Of a loader's, a few far
    ones may lie outside: a deviation from the mean must reach there, and the farthest half a deviation.

    Not reported: an activation with a scale or a pooling behind it (10·tanh(z), the averaged ReLU maps of
    Network in Network and SqueezeNet), and outputs whose loss is not known, unless they go through
    a softmax anyway.

    ## Bad
    ```python
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(784, 128)
            self.fc2 = nn.Linear(128, 10)

        def forward(self, x):
            x = F.relu(self.fc1(x.flatten(1)))
            return F.relu(self.fc2(x))


    def train(model, loader, optimizer):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
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
        for images, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
    ```

    ## When to ignore it
    When the bound is meant: scores that are counts, or evidence of a Dirichlet distribution.

    ## Fix safety
    Unsafe: the outputs lie elsewhere afterwards. What reads them with `argmax` sees the same order
    where they were positive.

    ## References
    Goodfellow, Bengio & Courville 2016, Deep Learning, section 6.2.2 (output units, and why a rectified
    output stops learning at negative values). Averaged ReLU maps: Lin et al. 2013, arXiv:1312.4400,
    section 3.2; Iandola et al. 2016, arXiv:1602.07360.
    """
    known = False
    for call in losses.calls:
        links = losses.links(call)
        if call.kind in CLASSIFIERS:
            known = True
            yield from _on_scores(graph, losses, edits, call, links)
            # A softmax in front of cross entropy is one fault, the activation before it another.
            behind = _behind_doubled(call, links)
            yield from _rectified(graph, edits, behind, losses.place(call), call)
        elif call.kind in REGRESSIONS:
            known = True
            yield from _on_regression(graph, losses, edits, data, call, links)
    if not known and len(graph.outputs) == 1:
        links = losses.links_to(graph.outputs[0])
        if len(links) > 1 and links[0].name in ("softmax", "log_softmax"):
            yield from _rectified(graph, edits, links[1:], f"the {links[0].name} behind it", None)


def _on_scores(
    graph: Graph, losses: Losses, edits: SourceEdits, call: LossCall, links: tuple[Link, ...]
) -> Iterator[Finding]:
    rest = _scores(call, links)
    if not rest or rest[0].kept is None or rest[0].name not in ops.ACTIVATIONS - {"softmax"}:
        return
    costs = _least_losses(losses, call, rest[0].kept)
    if math.isinf(rest[0].kept.width) or max(costs) < SLIGHT:
        yield from _rectified(graph, edits, rest, losses.place(call), call)
    elif call.kind in CROSS_ENTROPIES or rest[0].name not in NORMALIZERS:  # two sigmoids are LOS003
        yield _squashed(graph, losses, edits, call, rest[0])


def _scores(call: LossCall, links: tuple[Link, ...]) -> tuple[Link, ...]:
    """The links before the function that makes probabilities, in the model or inside of the loss."""
    rest = links
    while rest and rest[0].name in NORMALIZERS and call.kind not in WITH_LOGITS:
        rest = rest[1:]
    if rest and rest[0].name == "log_softmax":
        rest = rest[1:]
    return () if call.kind not in WITH_LOGITS and len(rest) == len(links) else rest


def _behind_doubled(call: LossCall, links: tuple[Link, ...]) -> tuple[Link, ...]:
    """The links before a softmax or sigmoid that the loss computes once more; none if there is none."""
    rest = past_clamps(links)
    is_doubled = call.kind in WITH_LOGITS and [link.name in NORMALIZERS for link in rest[:1]] == [
        True
    ]
    return rest[1:] if is_doubled else ()


def _least_losses(losses: Losses, call: LossCall, kept: Range) -> tuple[float, float]:
    """The least loss of a sample: of the negative and the positive class, or the same for all."""
    if call.kind in CROSS_ENTROPIES:
        least = math.log1p(((losses.classes(call) or 2) - 1) * math.exp(-kept.width))
        return least, least
    return _log1p_exp(kept.low), _log1p_exp(-kept.high)


def _log1p_exp(score: float) -> float:
    """The binary cross entropy at this score of a sample whose class is the other one."""
    return score if score > 100 else math.log1p(math.exp(score))


def _rectified(
    graph: Graph, edits: SourceEdits, links: tuple[Link, ...], loss: str, call: LossCall | None
) -> Iterator[Finding]:
    """An activation with a lower bound directly behind a layer with weights, or its normalisation."""
    if len(links) < 2 or links[0].kept is None or links[0].name not in ops.ACTIVATIONS:
        return
    link, before, low = links[0], links[1], links[0].kept.low
    is_layer = before.node is not None and graph.is_weighted(before.node)
    if low < LOWEST or not (is_layer or before.name in ops.NORMALIZATIONS):
        return
    binary = call is not None and call.kind.startswith("binary")
    if binary:
        cost = (
            f"no probability falls below {1 / (1 + math.exp(-low)):.2g}, and a negative sample costs at "
            f"least {_log1p_exp(low):.2f}"
        )
    elif link.name in FLAT:
        cost = "a class whose score is negative for all samples gets no gradient, and none can be ruled out"
    else:
        cost = "a class that is low for all samples gets hardly any gradient, and none can be ruled out"
    yield Finding(
        f"{_shown(link)} keeps the scores for {loss} at {low:.2g} or above: {cost}",
        where=link.where,
        evidence={
            "activation": link.name,
            "loss": call.kind if call is not None else None,
            "lowest_score": low,
        },
        fixes=[
            without_activation(
                graph,
                edits,
                link,
                title=f"remove this {link.name}: raw scores",
                reason="the loss applies its own softmax or sigmoid, to numbers of any sign",
            )
        ],
        severity=Severity.WARNING if binary or link.name in FLAT else Severity.INFO,
        confidence=Confidence.CERTAIN if call is None or call.certain else Confidence.LIKELY,
        fault=("before-loss", link.where),
        affects=[node for node in (link.node, before.node) if node is not None],
    )


def _shown(link: Link) -> str:
    if link.kept is None or not link.name.startswith("clamp"):
        return link.name
    sides = zip(("min", "max"), link.kept, strict=True)
    return (
        f"clamp({', '.join(f'{side}={value:g}' for side, value in sides if math.isfinite(value))})"
    )


def _squashed(
    graph: Graph, losses: Losses, edits: SourceEdits, call: LossCall, link: Link
) -> Finding:
    kept = link.kept or Range(0.0, 1.0)
    negative, positive = _least_losses(losses, call, kept)
    if call.kind in CROSS_ENTROPIES:
        classes = losses.classes(call) or 2
        formula = f"log(1 + {classes - 1}·e^−{kept.width:g})"
        cost = f"with {classes} classes the loss cannot fall below {formula} = {negative:.2f}"
    else:
        within = ", ".join(f"{1 / (1 + math.exp(-bound)):.2g}" for bound in kept)
        cost = (
            f"the probabilities stay within [{within}], and a negative sample costs at least "
            f"{negative:.2f}, a positive one {positive:.2f}"
        )
    return Finding(
        f"{_shown(link)} keeps the scores for {losses.place(call)} {_interval(kept)}: {cost}",
        where=link.where,
        evidence={
            "activation": link.name,
            "loss": call.kind,
            "least_loss": round(min(negative, positive), 4),
        },
        fixes=[
            without_activation(
                graph,
                edits,
                link,
                title=f"remove this {link.name}: raw scores",
                reason="the loss applies its own softmax or sigmoid, to numbers of any sign",
            )
        ],
        confidence=Confidence.CERTAIN if call.certain else Confidence.LIKELY,
        fault=("before-loss", link.where),
        affects=[call.scores],
    )


def _on_regression(
    graph: Graph,
    losses: Losses,
    edits: SourceEdits,
    data: Data | None,
    call: LossCall,
    links: tuple[Link, ...],
) -> Iterator[Finding]:
    if not links or links[0].kept is None or links[0].name not in ops.ACTIVATIONS:
        return
    link, bounds, targets = links[0], losses.range(call), losses.target_range()
    loaded = _loaded(losses, data, call) if targets is None else None
    if loaded is not None:
        targets = Range(loaded.least, loaded.largest)
    fix = without_activation(
        graph,
        edits,
        link,
        title=f"remove this {link.name}: a linear output",
        reason="a regression's output must reach wherever its targets do",
    )
    certainty = Confidence.CERTAIN if call.certain else Confidence.LIKELY
    missed = bounds is not None and targets is not None and not targets.within(*bounds)
    if loaded is not None and bounds is not None:
        missed = _reaches_beyond(loaded, bounds)
    if missed and bounds is not None and targets is not None:
        yield Finding(
            f"the targets of {losses.place(call)} reach from {targets.low:.3g} to {targets.high:.3g}, and "
            f"{_shown(link)} keeps the outputs {_interval(bounds)}: the rest can never be met",
            where=link.where,
            evidence={
                "activation": link.name,
                "loss": call.kind,
                "targets": [targets.low, targets.high],
            },
            fixes=[fix, _scaled(bounds)],
            confidence=certainty,
            fault=("before-loss", link.where),
            affects=[call.scores],
        )
    elif targets is None and _is_flat_at_zero(link) and _is_one_value(graph, call, links):
        yield Finding(
            f"{_shown(link)} keeps the outputs for {losses.place(call)} at 0 or above: targets below 0 are "
            "never met, and an output that is negative for all samples gets no gradient",
            where=link.where,
            evidence={"activation": link.name, "loss": call.kind},
            fixes=[fix, _softplus(graph, edits, link)],
            severity=Severity.INFO,
            confidence=Confidence.POSSIBLE,
            fault=("before-loss", link.where),
        )


def _loaded(losses: Losses, data: Data | None, call: LossCall) -> FieldData | None:
    """The loader's targets, where the loss gets them as they are: no line of the file calls it."""
    if data is None or call.function is None or len(losses.calls) != 1:
        return None
    target = data.train.target
    if target is None or target.kind in ("classes", "ids", "text"):
        return None
    return target if 0 < target.std < math.inf else None


def _reaches_beyond(target: FieldData, bounds: Range) -> bool:
    """Whether more than a few far ones lie outside."""
    below = bounds.low > max(target.mean - target.std, target.least + target.std / 2)
    return below or bounds.high < min(target.mean + target.std, target.largest - target.std / 2)


def _scaled(bounds: tuple[float, float]) -> Fix:
    return Fix(
        f"or scale the targets into [{bounds[0]:g}, {bounds[1]:g}]",
        reason="then every target can be met, and errors of all outputs weigh alike",
        obstacle="where the targets are made is not part of the model",
    )


def _softplus(graph: Graph, edits: SourceEdits, link: Link) -> Fix:
    title = "or softplus, where targets are positive"
    reason = "its slope σ(x) is never 0, so that no output stays at 0 for ever"
    patches = [] if link.node is None else activation_patches(graph, [link.node], "softplus")
    return other_activation(
        graph, edits, link, "softplus", title=title, reason=reason, patches=patches
    )


def _is_flat_at_zero(link: Link) -> bool:
    return link.name in FLAT and link.kept is not None and link.kept.low == 0


def _is_one_value(graph: Graph, call: LossCall, links: tuple[Link, ...]) -> bool:
    """One unit alone: if it is dead, so is the model. Features and images may well be rectified."""
    shape = graph.shape(call.scores)
    return (
        shape is not None
        and math.prod(shape[1:]) == 1
        and "linear" in [link.name for link in links[1:2]]
    )


def _interval(bounds: Range) -> str:
    if math.isinf(bounds.low):
        return f"≤ {bounds.high:g}"
    return (
        f"≥ {bounds.low:g}"
        if math.isinf(bounds.high)
        else f"within [{bounds.low:g}, {bounds.high:g}]"
    )
