"""GEN006 more-parameters-than-samples."""

from __future__ import annotations

import math
from collections.abc import Iterator

from trainlint.rule import Data, Finding, Fix, Severity, Trace, rule


@rule("GEN006", severity=Severity.INFO, since="0.1", own=["data"])
def more_parameters_than_samples(
    data: Data, trace: Trace | None, *, ratio: float = 10.0
) -> Iterator[Finding]:
    """The model has many more trainable parameters than there are training samples.

    A model with more parameters than samples can store them all (Zhang et al. 2017). Whether it then
    also generalises is another question: networks with a hundred parameters a sample may do so well, and
    error can fall again beyond the point where all is stored (Belkin et al. 2019). In 1300 trainings of
    ours, "more than 10 parameters a sample" as a sign of overfitting gave 34 to 60 % false alarms. So
    this is no fault, but a reason to measure.

    Advice where there are more than `ratio` trainable parameters a sample, with the measured gap between
    training and validation. Not where a sample has many targets, as a text or a map has.

    ## Bad
    ```python
    x, y = torch.randn(100, 20), torch.randint(2, (100,))
    dataset = torch.utils.data.TensorDataset(x, y)
    train_loader = torch.utils.data.DataLoader(dataset, batch_size=20, shuffle=True)
    model = nn.Sequential(nn.Linear(20, 100), nn.ReLU(), nn.Linear(100, 2))
    criterion = nn.CrossEntropyLoss()
    ```

    ## Good
    ```python
    x, y = torch.randn(1000, 20), torch.randint(2, (1000,))
    dataset = torch.utils.data.TensorDataset(x, y)
    train_loader = torch.utils.data.DataLoader(dataset, batch_size=20, shuffle=True)
    model = nn.Sequential(nn.Linear(20, 100), nn.ReLU(), nn.Linear(100, 2))
    criterion = nn.CrossEntropyLoss()
    ```

    ## When to ignore it
    When the gap is small, or the validation error is what you want it to be.

    ## Fix safety
    Only shown: whether a smaller model is a better one is to be measured.

    ## References
    Zhang, Bengio, Hardt, Recht & Vinyals 2017, arXiv:1611.03530. Belkin, Hsu, Ma & Mandal 2019,
    arXiv:1812.11118 (double descent).
    """
    size = data.train.size
    if not size or data.trainable <= ratio * size:
        return
    target = data.train.target
    if target is not None and math.prod(axis or 2 for axis in target.shape) > 1:
        return
    measured = None if trace is None else trace.generalization
    gap = None if measured is None else measured.gap()
    if gap is None or measured is None:
        said = "the gap between training and validation was not measured"
    else:
        said = (
            f"after {measured.last.step} steps the gap between training and validation loss is "
            f"{gap.mean:.0%} of a constant answer's loss (95 % bound {gap.bound:.0%})"
        )
    yield Finding(
        f"{data.trainable} trainable parameters and {size} training samples, "
        f"{data.trainable / size:.0f} a sample; {said}",
        where=data.train.site,
        evidence={
            "parameters": data.trainable,
            "samples": size,
            "parameters_per_sample": round(data.trainable / size, 1),
            "gap": None if gap is None else round(gap.mean, 4),
        },
        fixes=[
            Fix(
                "measure the error with its deviation between folds: trainlint check --kfold 5",
                reason="Hastie et al. 2009, section 7.10: one split of few samples is one draw",
                obstacle="it is a command",
            ),
            Fix(
                "see whether a narrower model does as well: trainlint sweep",
                reason="Geman et al. 1992: fewer weights, less variance",
                obstacle="it is a command",
            ),
        ],
    )
