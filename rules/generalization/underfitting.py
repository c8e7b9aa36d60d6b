"""GEN002 underfitting."""

from __future__ import annotations

from collections.abc import Iterator

from trainlint.rule import (
    Confidence,
    Finding,
    Fix,
    Generalization,
    Memorisation,
    Patch,
    Severity,
    Trace,
    rule,
)


@rule(
    "GEN002",
    severity=Severity.WARNING,
    since="0.1",
    explains=["loss-never-moves"],
    own=["data", "loss"],
    shows="losses",
)
def underfitting(
    trace: Trace,
    memory: Memorisation | None,
    *,
    excess: float = 0.05,
    flat: float = 0.02,
    left: float = 0.5,
) -> Iterator[Finding]:
    """The model no longer learns, and stays above what a simpler one reaches.

    Training and validation loss are both high, and no longer fall. A model that cannot represent what
    there is to learn looks so: too few units, no nonlinearity, a way on which most of the input is lost.
    So does one that is held back, by too much weight decay or dropout, or a learning rate that is far
    off.

    The curve counts as flat where, with 95 % confidence, the loss of training samples has fallen by
    less than `flat` of the loss of the best constant answer in the last two fifths of the steps. Then
    a linear model of the inputs is fitted to the same loss, with a little ridge. Reported where the
    losses of training samples and of validation samples both are above those that the linear model
    has on validation samples, by more than `excess` with 95 % confidence (Welch, and in pairs); and
    where they are within a tenth of the constant answer's while 16 samples alone keep more than the
    share `left` of theirs (LOS009). It has to come again in a probe of eight times as many steps:
    a plateau is no end. A high loss alone is no fault, since noise cannot be learnt.

    ## Bad
    ```python
    x = torch.randn(1000, 6)
    y = x @ torch.linalg.qr(torch.randn(6, 6))[0][:, :4]
    train_loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x[:800], y[:800]), batch_size=64, shuffle=True
    )
    val_loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x[800:], y[800:]), batch_size=64
    )
    model = nn.Sequential(nn.Linear(6, 1), nn.Tanh(), nn.Linear(1, 4))
    criterion = nn.MSELoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    ```

    ## Good
    ```python
    x = torch.randn(1000, 6)
    y = x @ torch.linalg.qr(torch.randn(6, 6))[0][:, :4]
    train_loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x[:800], y[:800]), batch_size=64, shuffle=True
    )
    val_loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x[800:], y[800:]), batch_size=64
    )
    model = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 4))
    criterion = nn.MSELoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    ```

    ## When to ignore it
    When the model is small on purpose, and what it reaches is enough.

    ## Fix safety
    Only shown: what is missing is its author's to say.

    ## References
    Goodfellow, Bengio & Courville 2016, "Deep Learning", section 5.2; Karpathy 2019, "A Recipe for
    Training Neural Networks" (simple baselines, overfit one batch).
    """
    measured = trace.generalization
    fall = None if measured is None else measured.fall()
    if measured is None or not measured.guess or fall is None or not fall.most < flat:
        return
    beaten = _is_beaten(measured, excess)
    is_stuck = memory is not None and memory.left > left
    near_guess = measured.last.train.mean > 0.9 * measured.guess
    if not beaten and not (is_stuck and near_guess):
        return
    last = measured.last
    train, validation = last.train, last.validation
    simpler = (
        f"a linear model has {measured.linear:.3g} on validation data"
        if beaten
        else f"a constant answer has {measured.guess:.3g}, and 16 samples are not learnt by heart"
    )
    evidence = {
        "steps": last.step,
        "training_loss": round(train.mean, 6),
        "training_error": round(train.error, 6),
        "validation_loss": round(validation.mean, 6),
        "validation_error": round(validation.error, 6),
        "constant_answer": round(measured.guess, 6),
        "fall": round(fall.mean, 4),
    }
    if measured.linear is not None:
        evidence["linear_model"] = round(measured.linear, 6)
    yield Finding(
        f"after {last.step} steps the loss no longer falls, at {train.mean:.3g} ± {train.error:.2g} on "
        f"training data and {validation.mean:.3g} ± {validation.error:.2g} on validation data; {simpler}",
        where=measured.site,
        evidence=evidence,
        fixes=[
            Fix(
                "give the narrowest layer more units, or add a nonlinear layer",
                reason="Goodfellow et al. 2016, section 5.2: too small a model has both errors high",
                obstacle="which layer is too narrow is its author's to say; `trainlint sweep` tries widths",
            ),
            Fix(
                "weaken decay and dropout, while training loss is what is high",
                reason="both keep the function flat, which is what it is already",
                obstacle="how much of them is needed is to be measured",
                patches=[Patch.training("weight-decay", value=0.0)],
            ),
            Fix(
                "take the learning rate from a range test",
                reason="Smith 2017: steps that are too short or too long end on a plateau as well",
                obstacle="it is known once it was measured",
                patches=[Patch.training("learning-rate", range_test=True)],
            ),
        ],
        confidence=Confidence.POSSIBLE,
    )


def _is_beaten(measured: Generalization, excess: float) -> bool:
    """Whether a linear model does better on new samples than this one on any."""
    over = measured.over_linear()
    return over is not None and min(difference.bound for difference in over) > excess
