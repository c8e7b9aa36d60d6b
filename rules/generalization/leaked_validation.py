"""GEN005 leaked-validation."""

from __future__ import annotations

from collections.abc import Iterator

from trainlint.rule import Confidence, Data, Finding, Fix, Overlap, Severity, rule


@rule("GEN005", severity=Severity.ERROR, since="0.1")
def leaked_validation(data: Data, *, share: float = 0.005) -> Iterator[Finding]:
    """Samples of the validation data stand in the training data as well.

    A validation loss is to tell what the model does with data that it has not seen. A sample that it was
    trained on is learnt by heart instead: the score is too good, overfitting stays hidden, and the model
    that is chosen by it is the one that remembers best (Kaufman et al. 2012). It comes from copies that
    were there before the split (oversampling, several files of one patient, scraped images), from a loader
    that takes the wrong dataset, and from two splits with different seeds.

    Compared are the samples that can be read in a few seconds, by their inputs: the same entries of a
    dataset that both loaders hold; equal inputs, if more of them stand on both sides than a random split of
    these data would leave there, or such values are never equal by chance; and near copies, images that
    were saved again, shifted by a pixel or made brighter, rows that were rounded or have a little noise, if
    no two training samples are ever as near by chance. Reported from the `share` of validation samples on.
    Samples that carry no information, as blank images, are not compared.

    ## Bad
    ```python
    model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 2))
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters())
    x = torch.randn(400, 10)
    y = (x[:, 0] > 0).long()
    dataset = torch.utils.data.TensorDataset(x, y)
    train_set, _ = torch.utils.data.random_split(dataset, [320, 80])
    _, val_set = torch.utils.data.random_split(dataset, [320, 80])
    train_loader = torch.utils.data.DataLoader(train_set, batch_size=32, shuffle=True)
    val_loader = torch.utils.data.DataLoader(val_set, batch_size=80)
    ```

    ## Good
    ```python
    model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 2))
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters())
    x = torch.randn(400, 10)
    y = (x[:, 0] > 0).long()
    dataset = torch.utils.data.TensorDataset(x, y)
    train_set, val_set = torch.utils.data.random_split(dataset, [320, 80])
    train_loader = torch.utils.data.DataLoader(train_set, batch_size=32, shuffle=True)
    val_loader = torch.utils.data.DataLoader(val_set, batch_size=80)
    ```

    ## When to ignore it
    When the loader is there to measure the training loss: give it another name than that of a validation
    loader.

    ## Fix safety
    Only shown: which of the two sets is to lose the samples is a decision, and scores change.

    ## References
    Kaufman, Rosset, Perlich & Stitelman 2012, "Leakage in Data Mining". Barz & Denzler 2020,
    arXiv:1902.00423 (near copies in CIFAR). Levina & Bickel 2004, "Maximum Likelihood Estimation of
    Intrinsic Dimension" (the tail of distances).
    """
    overlap, validation = data.overlap, data.validation
    if overlap is None or validation is None or not validation.read:
        return
    # Of the training data that were not read, as many would be copies.
    part = overlap.against / (data.train.size or data.train.read) if not overlap.same else 1.0
    if overlap.excess > 0 and overlap.excess >= share * validation.read * min(1.0, part):
        yield Finding(
            _said(data, overlap),
            where=validation.site or data.train.site,
            evidence={
                "exact": overlap.exact,
                "near": overlap.near,
                "same_entries": overlap.same,
                "compared": overlap.compared,
                "against": overlap.against,
                "twins_in_training": round(overlap.usual, 4),
                "beyond_chance": round(overlap.excess, 1),
                "pairs": [list(pair) for pair in overlap.pairs],
            },
            fixes=_fixes(overlap),
            confidence=Confidence.CERTAIN if overlap.same else Confidence.LIKELY,
        )


def _said(data: Data, overlap: Overlap) -> str:
    assert data.validation is not None
    name, train = data.validation.name, data.train.name
    count = max(overlap.same, overlap.exact + overlap.near)
    kinds = [
        f"{n} {what}" for n, what in ((overlap.exact, "equal"), (overlap.near, "near copies")) if n
    ]
    how = "the same entries of one dataset" if overlap.same else " and ".join(kinds)
    said = f"{count} of {data.validation.read} samples of {name} stand in {train} as well ({how}"
    if overlap.pairs and not overlap.same:
        said += f"; sample {overlap.pairs[0][0]} is {overlap.pairs[0][1]} there"
    said += ")"
    if overlap.usual > 0:
        said += f", where {overlap.usual:.1%} of the training samples have a twin among themselves"
    return said


WHY = "Kaufman et al. 2012: a sample that was learnt by heart judges the memory, not the model"
MEANT = "which of the two sets is to lose the samples is a decision, and scores change"


def _fixes(overlap: Overlap) -> list[Fix]:
    if overlap.same:
        return [
            Fix(
                "split once, and take both sets of it: train_set, val_set = torch.utils.data.random_split("
                "dataset, [0.8, 0.2], generator=torch.Generator().manual_seed(0))",
                reason=WHY,
                obstacle=MEANT,
            )
        ]
    first = ", ".join(str(pair[0]) for pair in overlap.pairs)
    more = ", ..." if len(overlap.pairs) < max(overlap.same, overlap.exact + overlap.near) else ""
    return [
        Fix(
            "split first, then copy, oversample or augment the training part only; of copies that come "
            "with the data each is to go with the others: "
            "copy_of = torch.unique(x.flatten(1), dim=0, return_inverse=True)[1], then "
            "sklearn.model_selection.GroupShuffleSplit(test_size=0.2).split(x, groups=copy_of)",
            reason=WHY,
            obstacle=MEANT,
        ),
        Fix(
            f"or leave these out of the validation data: {first}{more}",
            reason=WHY,
            obstacle="where the validation data are read is their own code",
        ),
    ]
