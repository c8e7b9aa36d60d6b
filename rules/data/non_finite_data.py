"""DAT002 non-finite-data."""

from __future__ import annotations

from collections.abc import Iterator

from trainlint.rule import Confidence, Data, FieldData, Finding, Fix, Severity, SplitData, rule


@rule(
    "DAT002",
    severity=Severity.ERROR,
    since="0.1",
    explains=["non-finite", "loss-never-moves", "exploding-gradient"],
)
def non_finite_data(data: Data) -> Iterator[Finding]:
    """There are NaN or infinite values in the data.

    A NaN in one input makes the outputs of its sample NaN, their loss NaN, and with it the mean over the
    batch; all gradients of that step are NaN, and after it all weights. So one value in a million
    ends a training, at the step that happens to draw it. They come from empty cells of a table, from a
    division by a spread of 0 when features are scaled, from the log of 0, and from damaged files.

    Looked at are the samples that can be read in a few seconds, training and validation, inputs and
    targets. Not reported: a mask of 0 and -inf as attention adds it, and data of a model or a loss whose
    source asks for NaN (`isnan`, `nan_to_num`, ...).

    ## Bad
    ```python
    model = nn.Linear(4, 1)
    criterion = nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x, y = torch.randn(256, 4), torch.randn(256, 1)
    x[:, 2] = 1.0  # a feature that never changes ...
    x = (x - x.mean(0)) / x.std(0)  # ... is 0 / 0 here
    dataset = torch.utils.data.TensorDataset(x, y)
    train_loader = torch.utils.data.DataLoader(dataset, batch_size=32, shuffle=True)
    ```

    ## Good
    ```python
    model = nn.Linear(4, 1)
    criterion = nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x, y = torch.randn(256, 4), torch.randn(256, 1)
    x[:, 2] = 1.0
    x = (x - x.mean(0)) / x.std(0).clamp(min=1e-6)
    dataset = torch.utils.data.TensorDataset(x, y)
    train_loader = torch.utils.data.DataLoader(dataset, batch_size=32, shuffle=True)
    ```

    ## When to ignore it
    When the training loop replaces them before the model sees them.

    ## Fix safety
    Only shown: whether a sample is left out, or its value replaced and by what, is a decision.

    ## References
    Little & Rubin 2019, "Statistical Analysis with Missing Data" (what to put in place of a missing value).
    """
    if data.handles_nan:
        return
    for split in (data.train, data.validation):
        if split is None:
            continue
        fields = [*split.inputs, *([split.target] if split.target is not None else [])]
        for field in fields:
            if field.non_finite:
                yield _finding(split, field)


def _finding(split: SplitData, field: FieldData) -> Finding:
    columns = dict(field.broken_columns)
    where = "the target" if field.name == "target" else "the input"
    if columns:
        first = ", ".join(f"{field.name}[{column}]" for column in list(columns)[:3])
        where = f"{first}{', ...' if len(columns) > 3 else ''}"
    indices = ", ".join(map(str, field.broken[:3])) + (", ..." if field.non_finite > 3 else "")
    plural = "s" if field.non_finite > 1 else ""
    return Finding(
        f"{field.non_finite} of {split.read} samples of {split.name} have NaN or infinity in {where}: "
        f"sample{plural} {indices}",
        where=split.site,
        evidence={
            "samples": field.non_finite,
            "read": split.read,
            "first": list(field.broken),
            "columns": {str(column): count for column, count in columns.items()},
        },
        fixes=_fixes(split, field),
        confidence=Confidence.CERTAIN,
        fault=(split.name, field.name),
    )


NAN = "0·NaN = NaN: one in a batch is one in the loss, and in every weight after the step"
MEANT = "what a missing value stands for is known where the data are made"


def _fixes(split: SplitData, field: FieldData) -> list[Fix]:
    whole = [column for column, count in field.broken_columns.items() if count == split.read]
    if whole:
        return [
            Fix(
                f"leave column {whole[0]} out, which has no finite value, or, where it was divided by "
                "a deviation of 0, divide by x.std(0).clamp(min=1e-6)",
                reason=NAN,
                obstacle=MEANT,
            )
        ]
    if field.name == "target":
        return [
            Fix(
                "leave these samples out: keep = torch.isfinite(y); x, y = x[keep], y[keep]",
                reason=NAN,
                obstacle=MEANT,
            )
        ]
    if field.kind == "table":
        return [
            Fix(
                "put the feature's mean over the training data in their place: "
                "torch.where(torch.isfinite(x), x, mean)",
                reason=NAN,
                obstacle=MEANT,
            ),
            Fix(
                "or leave these samples out: keep = torch.isfinite(x).all(1)",
                reason=NAN,
                obstacle=MEANT,
            ),
        ]
    return [
        Fix(
            "leave these samples out, and see what they are made of: they may be damaged files",
            reason=NAN,
            obstacle=MEANT,
        )
    ]
