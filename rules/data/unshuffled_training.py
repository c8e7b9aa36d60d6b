"""DAT003 unshuffled-training."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence

from trainlint.rule import (
    Confidence,
    Data,
    Finding,
    Fix,
    LoaderTrace,
    LossTrace,
    NotMeasurable,
    Patch,
    Severity,
    Site,
    SourceEdits,
    SplitData,
    Trace,
    explained,
    loading_fixes,
    rule,
)

_CLASSIFICATION = (
    "cross_entropy",
    "nll_loss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
)
_MOST_DEALT = 20_000


@rule(
    "DAT003",
    severity=Severity.WARNING,
    since="0.1",
    explains=[
        "loss-never-moves",
        "underfitting",
        "learning-rate-too-high",
        "exploding-gradient",
        "dead-relu",
    ],
    own=["data"],
)
def unshuffled_training(
    trace: Trace | None,
    data: Data | None,
    edits: SourceEdits | None,
    *,
    share: float = 0.25,
    batches: int = 5,
    size: int = 8,
) -> Iterator[Finding | NotMeasurable]:
    """The batches hold one class each: the training data come sorted by label.

    A step follows the gradient of its batch. If that is all of one class, the step that helps is to answer
    this class whatever the input is; the next class undoes it. The loss falls within each class and jumps
    where the next begins, the bias of the last layer swings, BatchNorm's statistics are those of
    single classes, and what was learnt first is forgotten at the end of the epoch. Stochastic gradient
    descent supposes that each batch is a random draw of all (Bottou 2012, section 4.1).

    Reported for classes, one a sample, over at least `batches` recorded steps of at least `size` labels,
    where the labels of a step have less than the `share` of the entropy that the same labels have when they
    are dealt to the same steps at random. Not reported: losses that only ever see one class (contrastive
    ones, a GAN's), several calls in one step with one class each, and classes that take turns step by step.

    ## Bad
    ```python
    x, y = torch.randn(960, 8), torch.arange(960) // 320
    x[:, 0] += y
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=16)
    for inputs, labels in loader:
        loss = F.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ```

    ## Good
    ```python
    x, y = torch.randn(960, 8), torch.arange(960) // 320
    x[:, 0] += y
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    dataset = torch.utils.data.TensorDataset(x, y)
    loader = torch.utils.data.DataLoader(dataset, batch_size=16, shuffle=True)
    for inputs, labels in loader:
        loss = F.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ```

    ## When to ignore it
    When the order is what is studied: continual learning, task after task.

    ## Fix safety
    Unsafe: a shuffled loader draws other batches. No edit is made where a sampler gives the order, or
    batches are made by hand.

    ## References
    Bottou 2012, "Stochastic Gradient Descent Tricks", section 4.1. Bengio 2012, arXiv:1206.5533, section
    2.1 (order of the examples). Wald & Wolfowitz 1940, Ann. Math. Statist. 11 (runs).
    """
    order = None if data is None else _order(data.train, share, edits)
    told = False
    for loss in trace.objectives if trace is not None else ():
        assert trace is not None
        if loss.kind not in _CLASSIFICATION or loss.targets is None:
            continue
        seen = [(s, b) for s, b in loss.targets.batches if sum(b.values()) >= size]
        if len(seen) < batches:
            continue
        steps, drawn = [s for s, _ in seen], [b for _, b in seen]
        least = min(sum(batch.values()) for batch in drawn)
        if (loss.classes or 2) > 1 and len({label for batch in drawn for label in batch}) == 1:
            if order is None and _is_sequential(trace, loss):
                yield NotMeasurable(
                    f"all labels of {len(drawn)} recorded steps are {next(iter(drawn[0]))}, from a loader "
                    "that does not shuffle: a run up to the next class would tell"
                )
            continue
        # What the loss was given settles it, whatever order the loader has.
        told = True
        entropy, dealt = _entropy(drawn), _entropy(_dealt(drawn))
        if entropy < share * dealt and dealt > 0.1 and not _takes_turns(steps, drawn):
            made = None if data is None else data.train.site
            yield _finding(trace, edits, loss, drawn, entropy, dealt, least, made)
    if order is not None and not told:
        yield order


def _order(train: SplitData, share: float, edits: SourceEdits | None) -> Finding | None:
    """The finding on data that are sorted by class, and a loader that leaves them so."""
    counts = {} if train.target is None else train.target.counts
    total = sum(counts.values())
    if train.shuffles is not False or train.runs is None or len(counts) < 2:
        return None
    # Wald & Wolfowitz 1940: the runs that a random order has on average.
    random_runs = 1 + total * (1 - sum((n / total) ** 2 for n in counts.values()))
    read = total / max(1.0, train.runs * random_runs)
    # Of a large set only some samples were read, which stand that much closer.
    length = read * (train.size or train.read) / train.read
    if train.runs >= share or length < 4 * train.batch_size:
        return None
    return Finding(
        f"{train.name} does not shuffle, and its {len(counts)} classes come one after the other: about "
        f"{length:.0f} samples of one class in a row, {length / train.batch_size:.0f} batches of "
        f"{train.batch_size}",
        where=train.site,
        evidence={
            "classes": len(counts),
            "samples_in_a_row": round(length),
            "batch_size": train.batch_size,
        },
        fixes=[_shuffled(edits, train.site)],
        confidence=Confidence.LIKELY,
    )


def _finding(
    trace: Trace,
    edits: SourceEdits | None,
    loss: LossTrace,
    drawn: Sequence[Mapping[int, int]],
    entropy: float,
    dealt: float,
    least: int,
    made: Site | None,
) -> Finding:
    pure = sum(len(batch) == 1 for batch in drawn)
    classes = len({label for batch in drawn for label in batch})
    loader = _loader(trace, loss)
    sequential = _is_sequential(trace, loss)
    cure = (
        _shuffled(edits, (loader.site if loader is not None else None) or made)
        if sequential
        else Fix(
            "shuffle before each epoch: order = torch.randperm(len(x)), and batches of x[order], y[order]",
            reason=WHY,
            obstacle="the batches are made by hand",
            patches=[Patch.training("shuffle")],
        )
    )
    return Finding(
        f"{pure} of {len(drawn)} recorded batches hold one class only, and {classes} classes come in all: "
        "the training data are sorted by label",
        where=(loader.site if loader is not None and sequential else loss.site) or made,
        evidence={
            "batches": len(drawn),
            "of_one_class": pure,
            "classes": classes,
            "labels_a_batch": least,
            "entropy": round(entropy, 4),
            "entropy_if_shuffled": round(dealt, 4),
        },
        fixes=[cure],
        confidence=Confidence.LIKELY,
    )


WHY = (
    "Bottou 2012, section 4.1: a step's gradient stands for all samples if they are drawn at random"
)


def _shuffled(edits: SourceEdits | None, site: Site | None) -> Fix:
    title = "shuffle the training data: shuffle=True in this DataLoader"
    made = (
        Fix(title)
        if edits is None
        else loading_fixes.with_option(edits, site, "shuffle", "True", title=title)
    )
    return explained(
        made,
        reason=WHY,
        obstacle="the source is not at hand",
        patches=[Patch.training("shuffle")],
    )


def _loader(trace: Trace, loss: LossTrace) -> LoaderTrace | None:
    place = None if loss.targets is None else loss.targets.loader
    return None if place is None else trace.loaders[place]


def _is_sequential(trace: Trace, loss: LossTrace) -> bool:
    loader = _loader(trace, loss)
    return loader is not None and loader.sampler == "SequentialSampler"


def _entropy(batches: Sequence[Mapping[int, int]]) -> float:
    """The mean entropy of the batches' labels, in nats."""
    total = 0.0
    for batch in batches:
        size = sum(batch.values())
        total -= sum(n / size * math.log(n / size) for n in batch.values())
    return total / len(batches)


def _dealt(batches: Sequence[Mapping[int, int]]) -> list[dict[int, int]]:
    """The same labels, dealt at random to batches of the same sizes; of many, the first ones."""
    labels = [label for batch in batches for label, n in batch.items() for _ in range(n)]
    random.Random(0).shuffle(labels)
    dealt, start = [], 0
    for batch in batches:
        end = start + sum(batch.values())
        counts: dict[int, int] = {}
        for label in labels[start:end]:
            counts[label] = counts.get(label, 0) + 1
        dealt.append(counts)
        start = end
        if start > _MOST_DEALT:
            break
    return dealt


def _takes_turns(steps: Sequence[int], batches: Sequence[Mapping[int, int]]) -> bool:
    """Whether the commonest class changes at most steps that follow each other: it is meant to."""
    most = [max(batch, key=lambda label: batch[label]) for batch in batches]
    changes = [most[i] != most[i + 1] for i in range(len(most) - 1) if steps[i + 1] == steps[i] + 1]
    return bool(changes) and sum(changes) > len(changes) / 2
