"""LOS006 regression-loss-for-classes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from trainlint.rule import (
    Confidence,
    Finding,
    Fix,
    LossTrace,
    Patch,
    Severity,
    SourceEdits,
    Trace,
    explained,
    loss_fixes,
    rule,
)

REGRESSION = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")


@rule(
    "LOS006",
    severity=Severity.WARNING,
    since="0.1",
    explains=["loss-never-moves", "underfitting", "cannot-memorise", "learning-rate-too-low"],
    own=["loss", "data"],
)
def regression_loss_for_classes(
    trace: Trace,
    edits: SourceEdits,
    *,
    steps: int = 5,
    least_targets: int = 100,
    evenness: float = 0.9,
) -> Iterator[Finding]:
    """A squared or absolute error is taken for classes, behind a sigmoid or softmax or of class numbers.

    Behind a sigmoid, the gradient of (p − t)² by the score is 2(p − t)·p(1 − p). It vanishes where the
    answer is wrong and sure of itself: at p = 0.01 for t = 1 it is −0.02, where binary cross entropy's,
    p − t, is −0.99. The same holds for a softmax and one-hot targets. Learning starts late or sticks on
    the samples that matter most; with two layers of sigmoids it may not start at all.

    Class *numbers* as targets say that class 7 lies between 6 and 8 and that 0 for 9 is nine times as wrong
    as 0 for 1. An unsure model answers with a class in the middle.

    Reported are losses that were called at least `steps` recorded times on at least `least-targets`
    targets: a sigmoid or softmax and rows that are one-hot, or a sigmoid with one column and targets 0
    and 1, mixed in each batch. As info, since ratings and counts look alike, whole numbers 0 … K − 1 in
    one column where all K ≥ 3 came about equally often: their entropy is at least `evenness` of log K.
    Targets that are the model's own input (autoencoders) and many bits a row are left alone, and so is a
    raw score with targets 0 or 1 (least-squares GANs).

    ## Bad
    ```python
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1), nn.Sigmoid())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(40):
        x = torch.randn(32, 2)
        y = (x[:, :1] * x[:, 1:] > 0).float()
        loss = F.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ```

    ## Good
    ```python
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(40):
        x = torch.randn(32, 2)
        y = (x[:, :1] * x[:, 1:] > 0).float()
        loss = F.binary_cross_entropy_with_logits(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ```

    ## When to ignore it
    When the Brier score is what shall be optimised, or robustness to wrong labels is worth the slower
    learning. For numbers that have an order (ratings, counts), a regression is sound.

    ## Fix safety
    Unsafe: the sigmoid or softmax goes at the same time, and predictions are read otherwise. No edit is
    made where one of the two places cannot be edited.

    ## References
    Goodfellow, Bengio & Courville 2016, Deep Learning, section 6.2.2.2. Golik, Doetsch & Ney 2013,
    "Cross-Entropy vs. Squared Error Training: a Theoretical and Experimental Comparison". Against it: Hui &
    Belkin 2021, arXiv:2006.07322 (raw scores, rescaled).
    """
    for loss in trace.objectives:
        targets = loss.targets
        if loss.kind not in REGRESSION or targets is None or targets.inputs:
            continue
        if len(loss.steps) < steps or sum(targets.counts) < least_targets:
            continue
        bounded = loss.made_by in ("Sigmoid", "Softmax")
        if bounded and targets.one_hot:
            yield _bounded(trace, edits, loss, "one-hot rows")
        elif loss.made_by == "Sigmoid" and targets.columns == 1 and targets.mixed:
            if len(targets.counts) == 2:
                yield _bounded(trace, edits, loss, "targets 0 and 1")
        elif not bounded and targets.columns == 1 and _are_even(targets.counts, evenness):
            yield _numbers(loss, len(targets.counts))


def _bounded(trace: Trace, edits: SourceEdits, loss: LossTrace, what: str) -> Finding:
    made_by = loss.made_by.lower()
    several = made_by == "softmax" or what == "one-hot rows"
    better = "cross_entropy" if several else "binary_cross_entropy_with_logits"
    return Finding(
        f"{loss.kind} of a {made_by} and {what}: its gradient has the factor p(1 − p), which is gone "
        "where the answer is wrong and sure of itself",
        where=loss.site,
        evidence={"loss": loss.kind, "scores_from": made_by, "targets": what},
        fixes=[_swapped(trace, edits, loss, made_by, better)],
        confidence=Confidence.LIKELY,
    )


def _swapped(trace: Trace, edits: SourceEdits, loss: LossTrace, made_by: str, better: str) -> Fix:
    """The loss, and the activation that it takes itself, in one transaction."""
    title = f"use F.{better}(scores, targets), with the raw scores before the {made_by}"
    end = loss_fixes.last_of(trace, made_by)
    site, module = (None, None) if end is None else (end[1].site, end[1].place.path)
    raw = loss_fixes.without(trace, edits, site, module, made_by, title=title)
    other = loss_fixes.swapped(edits, loss.site, loss.kind, better, title=title)
    return explained(
        edits.together(raw, other, title=title),
        reason="cross entropy's gradient by the score is p − t, the squared error's 2(p − t)·p(1 − p)",
        patches=[*raw.patches, Patch.training("loss", to=better)],
    )


def _numbers(loss: LossTrace, classes: int) -> Finding:
    return Finding(
        f"{loss.kind} of targets that are the whole numbers 0 … {classes - 1}, each about as often: if "
        f"they are classes, it takes class {classes - 1} for {classes - 1} times as far from 0 as class 1",
        where=loss.site,
        evidence={"loss": loss.kind, "classes": classes},
        fixes=[
            Fix(
                f"give the model {classes} outputs, and take F.cross_entropy(scores, targets.long())",
                reason="a class is no number: 9 for 0 is as wrong as 1 for 0",
                obstacle="whether they are classes is its author's to say",
            )
        ],
        severity=Severity.INFO,
        confidence=Confidence.POSSIBLE,
    )


def _are_even(counts: Sequence[int], evenness: float) -> bool:
    total = sum(counts)
    if len(counts) < 3 or min(counts) == 0:
        return False
    entropy = -sum(count / total * math.log(count / total) for count in counts)
    return entropy >= evenness * math.log(len(counts))
