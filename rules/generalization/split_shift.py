"""GEN007 split-shift."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trainlint.rule import (
    Confidence,
    Data,
    Difference,
    Finding,
    Fix,
    Generalization,
    NotMeasurable,
    Severity,
    Shift,
    Trace,
    as_share,
    rule,
)


@rule(
    "GEN007",
    severity=Severity.WARNING,
    since="0.1",
    explains=["overfitting", "past-early-stop"],
    own=["data", "loss"],
)
def split_shift(
    trace: Trace, data: Data | None, *, gap: float = 0.05, chance: float = 0.001
) -> Iterator[Finding | NotMeasurable]:
    """Validation data differ from training data, so that their losses would differ for any model.

    A file that is split where it stands, sorted by class, time or patient, or two sources, or only one of
    the two sets scaled: validation then does not tell how good the model is on data like those that it
    was trained on, and a gap to the training loss looks like overfitting. No dropout mends it.

    Where the probe finds a gap, it trains again without some of the training samples. These are as new to
    the model as validation's are: what validation costs more than they do is the shift, reported where it
    is more than `gap` of the loss of the best constant answer with 95 % confidence (Welch) and p is below
    0.01 (of few samples by permutation, since losses are skewed), or where it is likely and a two-sample
    test of the inputs or targets has p below `chance`.
    Where that second training is not possible (a run that is only watched), the gap before any training
    counts, of a model that is then no better than a guess or with data that differ by such a test; not
    so where no training sample comes twice: mixed or augmented, they are other data.

    ## Bad
    ```python
    x = torch.randn(800, 10)
    y = 3 * x[:, :1] + x[:, 1:2] ** 2 + 0.1 * torch.randn(800, 1)
    order = x[:, 0].argsort()
    x, y = x[order], y[order]
    train_loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x[:600], y[:600]), batch_size=32, shuffle=True
    )
    val_loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x[600:], y[600:]), batch_size=64
    )
    model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))
    criterion = nn.MSELoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    ```

    ## Good
    ```python
    x = torch.randn(800, 10)
    y = 3 * x[:, :1] + x[:, 1:2] ** 2 + 0.1 * torch.randn(800, 1)
    train_loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x[:600], y[:600]), batch_size=32, shuffle=True
    )
    val_loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x[600:], y[600:]), batch_size=64
    )
    model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))
    criterion = nn.MSELoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    ```

    ## When to ignore it
    When validation is to be of another kind: a later time, another hospital, a harder benchmark.

    ## Fix safety
    Only shown: how samples belong together, and may be split, is known to who collected them.

    ## References
    Quiñonero-Candela et al. 2009, "Dataset Shift in Machine Learning"; Welch 1947, Biometrika 34;
    Rabanser, Günnemann & Lipton 2019, "Failing Loudly", arXiv:1810.11953.
    """
    measured = trace.generalization
    if measured is None:
        return
    if not measured.guess:
        yield NotMeasurable("the loss of a constant answer, the unit of the shift, is not known")
        return
    differs = None if data is None or data.shift is None else _differing(data.shift, chance)
    shift = measured.shift()
    if shift is not None:
        own = measured.overfit()
        # Where the loss alone leaves it open, two-sample tests of the data decide.
        is_open = own is not None and own.bound <= gap and shift.mean > max(gap, own.mean)
        if measured.is_shifted(gap) or (is_open and differs):
            yield _of_kept_out(measured, shift, differs)
        return
    before = None if measured.first is None else measured.gap(measured.first)
    if before is None or before.bound <= gap:
        return
    assert measured.first is not None
    if measured.altered:
        yield NotMeasurable(
            "no training sample comes twice: mixed or augmented, they are other data"
        )
    elif differs or measured.first.train.mean > 0.9 * measured.guess:
        yield _of_the_start(measured, before, differs)


def _differing(shift: Shift, chance: float) -> str:
    """What two-sample tests say, if anything."""
    said = []
    if shift.inputs is not None and shift.inputs < chance:
        by = f", {shift.feature} by {shift.distance:.2g} deviations" if shift.distance else ""
        said.append(f"inputs differ (p = {shift.inputs:.1g}{by})")
    if shift.labels is not None and shift.labels < chance:
        said.append(f"targets differ (p = {shift.labels:.1g})")
    return "; ".join(said)


def _of_kept_out(measured: Generalization, shift: Difference, differs: str | None) -> Finding:
    held_out = measured.held_out
    assert held_out is not None
    kept_out, validation = held_out.kept_out, held_out.validation
    return _finding(
        measured,
        f"training samples that were kept out of a training cost {kept_out.mean:.3g} ± "
        f"{kept_out.error:.2g} after it, validation samples {validation.mean:.3g} ± "
        f"{validation.error:.2g}: the two sets of data differ, by {as_share(shift.mean)} ± "
        f"{as_share(shift.error)} of the loss of a constant answer, {measured.guess:.3g}",
        differs,
        {
            "kept_out_loss": round(kept_out.mean, 6),
            "kept_out_error": round(kept_out.error, 6),
            "validation_loss": round(validation.mean, 6),
            "validation_error": round(validation.error, 6),
            "shift": round(shift.mean, 4),
            "bound": round(shift.bound, 4),
        },
    )


def _of_the_start(measured: Generalization, before: Difference, differs: str | None) -> Finding:
    first = measured.first
    assert first is not None
    return _finding(
        measured,
        f"before any training the loss is {first.train.mean:.3g} ± {first.train.error:.2g} on training "
        f"data and {first.validation.mean:.3g} ± {first.validation.error:.2g} on validation data: the two "
        f"differ, by at least {as_share(before.bound)} of the loss of a constant answer, "
        f"{measured.guess:.3g}",
        differs,
        {
            "training_loss": round(first.train.mean, 6),
            "validation_loss": round(first.validation.mean, 6),
            "shift": round(before.mean, 4),
            "bound": round(before.bound, 4),
        },
    )


def _finding(
    measured: Generalization, message: str, differs: str | None, evidence: dict[str, Any]
) -> Finding:
    return Finding(
        f"{message}; {differs}" if differs else message,
        where=measured.site,
        evidence={**evidence, "constant_answer": round(measured.guess or 0.0, 6)},
        fixes=[
            Fix(
                "shuffle before splitting, stratified by class; keep together what belongs together",
                reason="on samples of another distribution the error is another, however many there are",
                obstacle="what belongs together is known where the data are made",
            ),
            Fix(
                "prepare both sets with the same transform, fitted to training data",
                reason="weights fitted to x/σ answer otherwise to x: the figures belong to the model",
                obstacle="how the two sets are prepared is not seen",
            ),
        ],
        confidence=Confidence.LIKELY,
    )
