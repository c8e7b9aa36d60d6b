"""DAT005 class-imbalance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from trainlint.rule import (
    Confidence,
    Data,
    Finding,
    Fix,
    Generalization,
    LossTrace,
    Patch,
    Severity,
    SourceEdits,
    Trace,
    explained,
    loss_fixes,
    rule,
)

_PLAIN = ("cross_entropy", "nll_loss")


@rule("DAT005", severity=Severity.INFO, since="0.1", own=["data", "loss"])
def class_imbalance(
    data: Data,
    trace: Trace | None,
    edits: SourceEdits | None,
    *,
    ratio: float = 10.0,
    beta: float = 0.999,
    learnt: float = 0.2,
    expected: float = 5.0,
) -> Iterator[Finding]:
    """Some classes have many times more samples than others.

    A mean over samples weighs a class by how often it comes: 1 % of the samples is 1 % of the loss, and
    a model that never answers that class is 99 % right. Weights of 1/n overdo it, since samples of one
    class repeat each other; Cui et al. (2019) count the effective number E(n) = (1 − βⁿ)/(1 − β), which is
    n for few samples and 1/(1 − β) at most, and weigh a class by 1/E(n).

    Advice, with the counts, where the commonest class has `ratio` times as many samples as the rarest. A
    warning where it is measured to hurt: a plain cross entropy without weights, batches drawn as the data
    are, at least `learnt` of the best constant answer's loss learnt in an epoch or more, and of the rare
    class, of which at least `expected` validation samples were judged, not one predicted. That must still
    be so after eight times as many steps. `beta` is β.

    ## Bad
    ```python
    counts = torch.tensor([480, 400, 8])
    labels = torch.arange(3).repeat_interleave(counts)
    inputs = torch.randn(888, 8) + 2 * F.one_hot(labels, 8)
    dataset = torch.utils.data.TensorDataset(inputs, labels)
    train_loader = torch.utils.data.DataLoader(dataset, batch_size=32, shuffle=True)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    criterion = nn.CrossEntropyLoss()
    ```

    ## Good
    ```python
    counts = torch.tensor([300, 300, 288])
    labels = torch.arange(3).repeat_interleave(counts)
    inputs = torch.randn(888, 8) + 2 * F.one_hot(labels, 8)
    dataset = torch.utils.data.TensorDataset(inputs, labels)
    train_loader = torch.utils.data.DataLoader(dataset, batch_size=32, shuffle=True)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    criterion = nn.CrossEntropyLoss()
    ```

    ## Figures
    - `counts`: the samples of each class; `effective`: their effective number E(n).
    - `never predicted`: the classes that no validation sample is recognised as.

    ## When to ignore it
    When the answer is to be a probability that holds as it is (clicks, risks), or the rare class costs no
    more than others if it is missed. Weights change what the probabilities mean.

    ## Fix safety
    Only shown: weights or another sampler are another objective, and help the rare class at the expense
    of the common ones.

    ## References
    Cui, Jia, Lin, Song & Belongie 2019, arXiv:1901.05555. Buda, Maki & Mazurowski 2018, arXiv:1710.05381
    (what imbalance does to convolutional networks, and oversampling against weights).
    """
    target = data.train.target
    if target is None or target.kind != "classes" or len(target.counts) < 2:
        return
    if any(size != 1 for size in target.shape):  # one label a sample
        return
    counts = dict(sorted(target.counts.items()))
    rarest, most = min(counts, key=lambda c: counts[c]), max(counts, key=lambda c: counts[c])
    if not counts[rarest] or counts[most] < ratio * counts[rarest]:
        return
    loss = None if trace is None else _plain_loss(trace)
    missed = (
        {}
        if trace is None or loss is None
        else _missed(data, trace, counts, learnt, expected, ratio)
    )
    hurts = bool(missed) and loss is not None and not _is_balanced(loss, counts, rarest)
    said = (
        f"class {rarest} has {counts[rarest]} of {sum(counts.values())} samples, class {most} has "
        f"{counts[most]}: {counts[most] / counts[rarest]:.0f} times as many"
    )
    if hurts:
        who = ", ".join(str(c) for c in missed)
        number = round(sum(missed.values()))
        said += (
            f"; the loss weighs all samples alike, and of about {number} validation samples of class {who} "
            "none is recognised as such"
        )
    yield Finding(
        said,
        where=data.train.site,
        evidence={
            "counts": {str(c): n for c, n in list(counts.items())[:32]},
            "effective": {
                str(c): round(_effective(n, beta), 1) for c, n in list(counts.items())[:32]
            },
            **({"never_predicted": [int(c) for c in missed]} if hurts else {}),
        },
        fixes=_cures(counts, beta, trace, edits),
        severity=Severity.WARNING if hurts else Severity.INFO,
        confidence=Confidence.POSSIBLE if hurts else Confidence.CERTAIN,
    )


def _plain_loss(trace: Trace) -> LossTrace | None:
    """The one loss, if it counts all samples alike."""
    if len(trace.objectives) != 1:
        return None
    loss = trace.objectives[0]
    return loss if loss.kind in _PLAIN and loss.is_plain else None


def _missed(
    data: Data,
    trace: Trace,
    counts: Mapping[int, int],
    learnt: float,
    expected: float,
    ratio: float,
) -> dict[int, float]:
    """How many validation samples were judged of each rare class that never was predicted."""
    measured, validation = trace.generalization, data.validation
    if measured is None or validation is None or validation.target is None:
        return {}
    if not _has_learnt(measured, learnt):
        return {}
    predicted = measured.last.validation.predicted
    there = validation.target.counts
    judged = sum(predicted.values()) / max(1, sum(there.values()))
    most = max(counts.values())
    return {
        c: there.get(c, 0) * judged
        for c, n in counts.items()
        if n * ratio <= most and not predicted.get(c) and there.get(c, 0) * judged >= expected
    }


def _has_learnt(measured: Generalization, learnt: float) -> bool:
    if not measured.guess or (measured.epochs or 0.0) < 1 or not measured.last.validation.predicted:
        return False
    return 1 - measured.last.train.mean / measured.guess >= learnt


def _is_balanced(loss: LossTrace, counts: Mapping[int, int], rarest: int) -> bool:
    """Whether the batches have the rare class more often than the data: a sampler, or batches by hand."""
    if loss.targets is None:
        return True
    drawn: dict[int, int] = {}
    for _, batch in loss.targets.batches:
        for label, n in batch.items():
            drawn[label] = drawn.get(label, 0) + n
    total = sum(drawn.values())
    natural = total * counts[rarest] / sum(counts.values())
    # Three standard deviations of a Poisson number above what chance gives, and twice as many.
    return not total or drawn.get(rarest, 0) > 2 * natural + 3 * natural**0.5


def _effective(number: int, beta: float) -> float:
    return (1 - beta**number) / (1 - beta)


def _cures(
    counts: Mapping[int, int], beta: float, trace: Trace | None, edits: SourceEdits | None
) -> list[Fix]:
    if sorted(counts) != list(range(len(counts))):
        return [
            Fix(
                "weigh the classes in the loss by 1 / effective number, or take a WeightedRandomSampler",
                reason=WEIGHED,
                obstacle="the numbers of the classes have gaps: which score is whose is not seen",
            )
        ]
    inverse = [1 / _effective(n, beta) for n in counts.values()]
    mean = sum(inverse) / len(inverse)
    values = [float(f"{w / mean:.3g}") for w in inverse]
    if len(counts) > 10:
        weights = f"(1 - {beta:g}) / (1 - {beta:g} ** counts), over their mean"
    else:
        weights = f"torch.tensor([{', '.join(f'{value:g}' for value in values)}])"
    cures = [
        explained(
            _weighed(
                trace,
                edits,
                ("cross_entropy", "nll_loss"),
                "weight",
                weights if len(counts) <= 10 else None,
                f"weigh the classes: nn.CrossEntropyLoss(weight={weights}), 1 / effective number of mean 1",
            ),
            reason=WEIGHED,
            patches=[Patch.training("class-weights", weights=values)],
        ),
        Fix(
            "or draw them alike: WeightedRandomSampler(weights[labels], len(labels)) for shuffle=True",
            reason="each class is then met as often, the rare ones' samples several times",
            obstacle="where the labels are, is the data set's own",
        ),
        Fix(
            "and judge by the recall of each class or the F1, not by accuracy",
            reason="an answer that is always the common class has its share for an accuracy",
            obstacle="it is a figure, and changes nothing",
        ),
    ]
    if len(counts) == 2:
        times = float(f"{counts[0] / counts[1]:.3g}")
        positive = f"torch.tensor({times:g})"
        cures.insert(
            1,
            explained(
                _weighed(
                    trace,
                    edits,
                    ("binary_cross_entropy_with_logits",),
                    "pos_weight",
                    positive,
                    f"with one output: nn.BCEWithLogitsLoss(pos_weight={positive})",
                ),
                reason=f"{counts[1]} positives then weigh as much as {counts[0]} negatives",
                patches=[Patch.training("class-weights", weights=[times])],
            ),
        )
        kinds = {loss.kind for loss in trace.objectives} if trace is not None else set()
        if kinds == {"binary_cross_entropy_with_logits"}:
            cures[:2] = cures[1::-1]
    return cures


WEIGHED = "Cui et al. 2019: n samples are worth (1 − βⁿ)/(1 − β), and their class its inverse"


def _weighed(
    trace: Trace | None,
    edits: SourceEdits | None,
    kinds: Sequence[str],
    name: str,
    value: str | None,
    title: str,
) -> Fix:
    """The weights in the one loss that there is."""
    losses = [] if trace is None else [loss for loss in trace.objectives if loss.kind in kinds]
    if edits is None or len(losses) != 1 or value is None:
        return Fix(title, obstacle="the loss that they belong to is not seen in the source")
    (loss,) = losses
    return loss_fixes.with_argument(edits, loss.site, loss.kind, name, value, title=title)
