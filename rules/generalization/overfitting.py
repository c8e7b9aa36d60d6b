"""GEN001 overfitting."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trainlint.rule import (
    Confidence,
    Difference,
    Finding,
    Fix,
    Generalization,
    NotMeasurable,
    Patch,
    Remedies,
    Severity,
    Trace,
    as_share,
    explained,
    rule,
)


@rule(
    "GEN001",
    severity=Severity.WARNING,
    since="0.1",
    explains=["past-early-stop"],
    own=["data", "loss"],
    shows="losses",
)
def overfitting(
    trace: Trace,
    remedies: Remedies | None,
    *,
    gap: float = 0.05,
    much: float = 0.25,
    epochs: float = 1.0,
) -> Iterator[Finding | NotMeasurable]:
    """What is learnt of the training samples does not hold for validation samples.

    A model with room for it learns, beside what the samples have in common, what is peculiar to each of
    them. Its loss then goes on falling on those, and no more on others. How much that costs is the gap:
    validation loss over training loss, here in units of the loss of the best constant answer, so that 1
    is as much as the whole task is worth.

    Both losses are those of single samples (up to 512 of each set, the same ones at each of six
    checkpoints) in eval mode, so that the gap has an error: Welch's test of a difference of means.
    Reported where the gap is more than `gap` with 95 % confidence, and has grown to that since before
    the training, as far as samples differed then already. A probe trains again without some of the training
    samples, to see whether these cost as much: a difference between the two sets of data is no overfitting
    (GEN007). At the end of a whole training there mostly is a gap: in a run of your own loop it is advice,
    unless it is more than `much`, validation is worse than a constant answer, or its loss has risen since
    its best and accuracy or R² has not held. Not measurable before each sample was seen in `epochs`
    epochs, and where the loss of a constant answer is not known. That nothing is reported does not say
    that nothing will come: a probe of 50 steps sees few epochs of a large set.

    ## Bad
    ```python
    x, y = torch.randn(264, 40), torch.randint(2, (264,))
    y[:200] = (x[:200, :4].sum(1) + torch.randn(200) > 0).long()
    y[200:] = (x[200:, :4].sum(1) + torch.randn(64) > 0).long()
    train_loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x[:64], y[:64]), batch_size=32, shuffle=True
    )
    val_loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x[64:], y[64:]), batch_size=64
    )
    model = nn.Sequential(nn.Linear(40, 256), nn.ReLU(), nn.Linear(256, 2))
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    ```

    ## Good
    ```python
    x = torch.randn(2200, 40)
    y = (x[:, :4].sum(1) + torch.randn(2200) > 0).long()
    train_loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x[:2000], y[:2000]), batch_size=64, shuffle=True
    )
    val_loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x[2000:], y[2000:]), batch_size=64
    )
    model = nn.Sequential(nn.Linear(40, 16), nn.ReLU(), nn.Linear(16, 2))
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    ```

    ## Figures
    - `training loss`, `validation loss`: the means over samples, with their standard errors, `training
      error` and `validation error`.
    - `constant answer`: the loss of the best answer that ignores the inputs.
    - `gap`: how much the loss on validation samples is above that on training samples, over that of the
      constant answer; `bound`: how much it is at least, with 95% confidence.

    ## When to ignore it
    When a model is to learn its data by heart (a compressed scene, a lookup), or validation loss still
    falls and only that counts: GEN003 says when it does no more.

    ## Fix safety
    Only shown. `check` tries what is said to help on copies of the model, beside an unchanged training of
    as many steps: weight decay, an L1 penalty, dropout, noise on the inputs or shifted images, each at a
    few strengths with two seeds, and stopping early; and half of the training data. The strength is chosen
    on one half of the validation samples and judged on the other, so that the figures hold for others.
    What is named lowered the validation loss with 95 % confidence for all that was tried at once; what
    helps in so few steps may not be what helps most in the end.

    ## References
    Welch 1947, Biometrika 34 (unequal variances); Zhang et al. 2017, arXiv:1611.03530; Goodfellow,
    Bengio & Courville 2016, "Deep Learning", chapter 7.
    """
    measured = trace.generalization
    if measured is None:
        if trace.unmeasured:
            yield NotMeasurable(trace.unmeasured)
        return
    if not measured.guess:
        yield NotMeasurable("the loss of a constant answer, the unit of the gap, is not known")
        return
    if measured.epochs is None:
        yield NotMeasurable("how often each training sample was seen is not known")
        return
    if measured.epochs < epochs:
        yield NotMeasurable(f"{measured.epochs:.2g} of an epoch was seen")
        return
    difference = measured.gap()
    if difference is None or difference.bound <= gap:
        return
    # A probe is so short that a gap in it is much; at the end of a whole training there mostly is one.
    hurts = "loop" not in trace.own or _hurts(measured, difference, much)
    if measured.held_out is not None:
        if measured.overfits(gap):
            yield _finding(measured, difference, remedies, hurts=hurts)
    elif _has_grown(measured, gap):
        yield _finding(measured, difference, remedies, hurts=hurts)


def _has_grown(measured: Generalization, gap: float) -> bool:
    """Whether the gap came by training, so that it is no difference between the two sets of samples."""
    before = None if measured.first is None else measured.gap(measured.first)
    grown = measured.grown()
    if before is None or grown is None or before.bound <= gap:
        return True
    return grown.bound > gap


def _hurts(measured: Generalization, gap: Difference, much: float) -> bool:
    """Whether a gap that stands at the end of a whole training is much, or came with a loss."""
    assert measured.guess
    rise = measured.rise()
    has_risen = rise is not None and rise.bound > 0
    worse = has_risen and measured.metric_fell() is not False
    return worse or gap.bound > much or measured.last.validation.mean > measured.guess


def _finding(
    measured: Generalization, gap: Difference, remedies: Remedies | None, *, hurts: bool
) -> Finding:
    last, metric = measured.last, measured.metric
    train, validation = last.train, last.validation
    beside = ""
    evidence: dict[str, Any] = {
        "steps": last.step,
        "epochs": round(measured.epochs or 0.0, 2),
        "training_loss": round(train.mean, 6),
        "training_error": round(train.error, 6),
        "validation_loss": round(validation.mean, 6),
        "validation_error": round(validation.error, 6),
        "constant_answer": round(measured.guess or 0.0, 6),
        "gap": round(gap.mean, 4),
        "bound": round(gap.bound, 4),
    }
    if metric and train.metric is not None and validation.metric is not None:
        beside = f"; {metric} {train.metric:.3g} and {validation.metric:.3g}"
        evidence |= {"metric": metric, "training_metric": round(train.metric, 4)}
        evidence |= {"validation_metric": round(validation.metric, 4)}
    return Finding(
        f"after {last.step} steps ({measured.epochs:.2g} epochs) the loss is {train.mean:.3g} ± "
        f"{train.error:.2g} on training data and {validation.mean:.3g} ± {validation.error:.2g} on "
        f"validation data, more by at least {as_share(gap.bound)} of that of a constant answer, "
        f"{measured.guess:.3g}{beside}",
        where=measured.site,
        evidence=evidence | ({} if remedies is None else remedies.evidence()),
        fixes=_fixes(measured) if remedies is None else _tried(measured, remedies),
        confidence=Confidence.LIKELY,
        severity=None if hurts else Severity.INFO,
    )


def _fixes(measured: Generalization) -> list[Fix]:
    """What is worth trying, from what costs least on."""
    best = measured.best()
    fixes = []
    if best is not measured.last and best.step:
        fixes.append(
            Fix(
                f"stop early: validation loss was least, {best.validation.mean:.3g}, at step {best.step}",
                reason="Prechelt 1998: what is learnt behind the minimum is learnt by heart",
                obstacle="the loop is to keep and restore a state",
            )
        )
    return [
        *fixes,
        Fix(
            "decay the weights: AdamW with weight_decay=0.01 to 0.1; or dropout behind hidden layers",
            reason="Krogh & Hertz 1991, Srivastava et al. 2014: it bends less for single samples",
            obstacle="how much helps is to be measured: `trainlint check` tries it",
            patches=[Patch.training("weight-decay", value=0.01, apart=True)],
        ),
        Fix(
            "train on more data, or on other views of the samples that there are",
            reason="the gap falls as 1/√n with the number of samples",
            obstacle="they are to be had",
        ),
        Fix(
            "take a smaller model",
            reason="Geman et al. 1992: fewer weights, less variance; `trainlint sweep` finds the width",
            obstacle="which width is to be measured",
        ),
    ]


def _tried(measured: Generalization, remedies: Remedies) -> list[Fix]:
    """What was measured to help, then what remains where nothing did."""
    told = [
        explained(
            fix,
            reason=f"measured beside an unchanged training, on {remedies.samples} validation samples",
            obstacle="where it stands in the source is its author's to choose",
        )
        for fix in remedies.fixes()
    ]
    return told if remedies.helpful or remedies.more else [*told, *_fixes(measured)[-2:]]
