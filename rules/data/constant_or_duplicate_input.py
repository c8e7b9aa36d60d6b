"""DAT006 constant-or-duplicate-input."""

from __future__ import annotations

from collections.abc import Iterator

from trainlint.rule import Confidence, Data, FieldData, Finding, Fix, Severity, SplitData, rule

_MOST_NAMED = 8


@rule(
    "DAT006",
    severity=Severity.WARNING,
    since="0.1",
    explains=["loss-never-moves", "underfitting", "learning-rate-too-low"],
)
def constant_or_duplicate_input(
    data: Data, *, samples: int = 16, commonest: float = 0.5, duplicates: float = 0.1
) -> Iterator[Finding]:
    """Inputs that tell nothing: the same for all samples, or for many of them.

    From equal inputs a model can only give equal answers: what their targets differ in is noise for it.
    Where all samples are the same, a dataset returns the wrong one (`self.x[0]`), or files could not be
    read and became zeros. A feature that is constant in training and not in validation meets weights that
    no training has ever moved, since it was one with the bias. Copies in the training data count as often
    as they come, make an epoch longer than it says, and leak into the validation data when these are split
    off.

    A warning: at least `samples` training samples are all equal; or the share `commonest` of images,
    sequences or texts is; or a feature is constant in training, and in most of the validation samples it is
    something else. Advice: of images, sequences or real features the share `duplicates` are copies of
    earlier ones. Not reported: features that are constant everywhere, as borders of images and
    rare categories; equal rows of few possible values.

    ## Bad
    ```python
    class Rows(torch.utils.data.Dataset):
        def __init__(self, x, y):
            self.x, self.y = x, y

        def __len__(self):
            return len(self.x)

        def __getitem__(self, index):
            return self.x[0], self.y[index]


    model = nn.Linear(8, 1)
    criterion = nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    dataset = Rows(torch.randn(256, 8), torch.randn(256, 1))
    train_loader = torch.utils.data.DataLoader(dataset, batch_size=32, shuffle=True)
    ```

    ## Good
    ```python
    class Rows(torch.utils.data.Dataset):
        def __init__(self, x, y):
            self.x, self.y = x, y

        def __len__(self):
            return len(self.x)

        def __getitem__(self, index):
            return self.x[index], self.y[index]


    model = nn.Linear(8, 1)
    criterion = nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    dataset = Rows(torch.randn(256, 8), torch.randn(256, 1))
    train_loader = torch.utils.data.DataLoader(dataset, batch_size=32, shuffle=True)
    ```

    ## When to ignore it
    When rare samples are repeated on purpose, after the validation data were split off.

    ## Fix safety
    Only shown: what a copy is for is not in the data.

    ## References
    Lee et al. 2022, arXiv:2107.06499 (copies in training data). Barz & Denzler 2020, arXiv:1902.00423.
    """
    train = data.train
    if train.read >= samples and train.commonest == train.read:
        yield _equal(train, "all")
        return
    fields = [field for field in train.inputs if field.kind in ("image", "sequence", "text")]
    if fields and train.read >= samples and train.commonest >= commonest * train.read:
        yield _equal(train, str(train.commonest))
        return
    yield from _new_in_validation(data)
    has_values = any(_has_many_values(field) for field in train.inputs)
    if has_values and train.duplicates >= max(samples, duplicates * train.read):
        yield Finding(
            f"{train.duplicates} of {train.read} samples of {train.name} are copies of earlier ones",
            where=train.site,
            evidence={"copies": train.duplicates, "read": train.read},
            fixes=[
                Fix(
                    "leave the copies out; weights in the loss make samples count more",
                    reason="a sample that is there k times has k times its weight in every mean",
                    obstacle="which copies are meant is known where the data are made",
                )
            ],
            severity=Severity.INFO,
            confidence=Confidence.LIKELY,
        )


def _has_many_values(field: FieldData) -> bool:
    if field.kind in ("image", "sequence"):
        return True
    return field.kind == "table" and any(c.std > 0 for c in field.columns) and not field.whole


def _equal(train: SplitData, which: str) -> Finding:
    return Finding(
        f"{which} of {train.read} samples of {train.name} have equal inputs"
        if which != "all"
        else f"all {train.read} samples of {train.name} that were read have equal inputs",
        where=train.site,
        evidence={"equal": train.commonest, "read": train.read},
        fixes=[
            Fix(
                "use the index in __getitem__: see what dataset[0] and dataset[1] return; an index that is "
                "not used, or files that could not be read",
                reason="equal inputs have one answer: with different labels the best is their mean",
                obstacle="what the data set does with its index is its own code",
            )
        ],
        confidence=Confidence.LIKELY,
    )


def _new_in_validation(data: Data) -> Iterator[Finding]:
    """Features of a table that are constant in training, and in most of the validation samples another."""
    if data.validation is None:
        return
    for field, other in zip(data.train.inputs, data.validation.inputs, strict=False):
        if field.kind != "table" or len(field.columns) != len(other.columns):
            continue
        found = [
            place
            for place, (column, its) in enumerate(zip(field.columns, other.columns, strict=True))
            if column.std == 0
            and its.least != its.largest
            and abs(its.mean - column.mean) > its.std
        ]
        if found:
            first = field.columns[found[0]], other.columns[found[0]]
            named = ", ".join(f"{field.name}[{place}]" for place in found[:_MOST_NAMED])
            yield Finding(
                f"{named} {'is' if len(found) == 1 else 'are'} constant in {data.train.name} "
                f"({first[0].mean:.4g}), and in {data.validation.name} {first[1].mean:.4g} ± "
                f"{first[1].std:.2g}: no training has moved the weights of it",
                where=data.train.site,
                evidence={"features": found[:_MOST_NAMED], "count": len(found)},
                fixes=[
                    Fix(
                        "leave these features out, or prepare both sets in the same way",
                        reason="for a constant x ∂loss/∂w = δ·x is a bias's: nothing fitted the weight",
                        obstacle="how the two sets are prepared is not seen",
                    )
                ],
                confidence=Confidence.LIKELY,
            )
