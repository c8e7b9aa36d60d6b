"""GEN001 overfitting."""

from __future__ import annotations

from collections.abc import Iterator

from trainlint.rule import Confidence, Finding, Fix, NotMeasurable, Severity, Trace, rule


@rule("GEN001", severity=Severity.WARNING, since="0.1", own=["data", "loss"])
def overfitting(
    trace: Trace, *, gap: float = 0.05, epochs: float = 1.0
) -> Iterator[Finding | NotMeasurable]:
    """What is learnt of the training data does not hold for the validation data.

    ## Bad
    ```python
    x, y = torch.randn(264, 40), torch.randint(2, (264,))
    ```

    ## Good
    ```python
    x, y = torch.randn(264, 40), torch.randint(2, (264,))
    ```
    """
    measured = trace.generalization
    if measured is None or not measured.guess:
        return
    if measured.epochs is not None and measured.epochs < epochs:
        yield NotMeasurable(f"{measured.epochs:.2g} of an epoch was seen")
        return
    difference = measured.gap()
    if difference is None or difference.bound <= gap:
        return
    last = measured.last
    yield Finding(
        f"after {last.step} steps the loss is {last.train.mean:.3g} on training data and "
        f"{last.validation.mean:.3g} on validation data",
        where=measured.site,
        evidence={"gap": difference.mean, "bound": difference.bound, "t": difference.t},
        fixes=[Fix("weight decay, dropout, a smaller model, more data")],
        confidence=Confidence.LIKELY,
    )
