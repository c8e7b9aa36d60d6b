"""DAT008 no-augmentation."""

from __future__ import annotations

from collections.abc import Iterator

from trainlint.rule import Confidence, Data, FieldData, Finding, Fix, Severity, Trace, rule


@rule("DAT008", severity=Severity.INFO, since="0.1", own=["data", "loss"])
def no_augmentation(
    data: Data, trace: Trace, *, most: int = 10_000, gap: float = 0.05
) -> Iterator[Finding]:
    """A small set of images is learnt by heart, and each comes the same in every epoch.

    What leaves the label as it is (a shift by some pixels, a mirror image, other light) makes of each image
    many that a network has not seen, so that it cannot learn pixels by heart. On small sets nothing that
    does not bring in new data helps as much (Shorten & Khoshgoftaar 2019).

    Advice where there are at most `most` training images, the loader gives the same image again when
    asked twice, and overfitting is measured: with 95 % confidence the validation loss is more than `gap` of
    the best constant answer's loss above the training loss.

    ## Bad
    ```python
    x, y = torch.randn(160, 1, 8, 8), torch.randint(2, (160,))
    train_set = torch.utils.data.TensorDataset(x[:60], y[:60])
    val_set = torch.utils.data.TensorDataset(x[60:], y[60:])
    train_loader = torch.utils.data.DataLoader(train_set, batch_size=20, shuffle=True)
    val_loader = torch.utils.data.DataLoader(val_set, batch_size=50)
    model = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 2))
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    ```

    ## Good
    ```python
    y = torch.randint(2, (1100,))
    x = torch.randn(1100, 1, 8, 8) + y.reshape(-1, 1, 1, 1)
    train_set = torch.utils.data.TensorDataset(x[:1000], y[:1000])
    val_set = torch.utils.data.TensorDataset(x[1000:], y[1000:])
    train_loader = torch.utils.data.DataLoader(train_set, batch_size=20, shuffle=True)
    val_loader = torch.utils.data.DataLoader(val_set, batch_size=50)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 2))
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    ```

    ## Figures
    - `gap`: how much the loss on validation images is above that on training images, over that of the best
      answer that ignores the inputs; `bound`: how much it is at least, with 95% confidence.

    ## When to ignore it
    When nothing is known that leaves the labels as they are, as with spectra or board positions.

    ## Fix safety
    Only shown: which changes keep the label only you know. A 6 turned round is a 9.

    ## References
    Shorten & Khoshgoftaar 2019, "A survey on image data augmentation for deep learning", J. Big Data 6:60.
    Krizhevsky, Sutskever & Hinton 2012, section 4.1.
    """
    train, measured = data.train, trace.generalization
    image = next((given for given in train.inputs if given.kind == "image"), None)
    if image is None or train.repeatable is not True or train.size is None or train.size > most:
        return
    difference = None if measured is None else measured.gap()
    if measured is None or difference is None or not measured.overfits(gap):
        return
    yield Finding(
        f"{train.size} training images come the same in each epoch, and are learnt by heart: the "
        f"validation loss is {difference.mean:.0%} of a constant answer's above that of training (at least "
        f"{difference.bound:.0%})",
        where=train.site,
        evidence={
            "images": train.size,
            "gap": round(difference.mean, 4),
            "bound": round(difference.bound, 4),
            "steps": measured.last.step,
        },
        fixes=[
            Fix(
                f"shift the training images at random: {_shift(image)}",
                reason="He et al. 2016, section 4.2: crops of images padded by an eighth",
                obstacle="the data set's transforms are its own code",
            ),
            Fix(
                "and mirror them, where a mirror image means the same: transforms.RandomHorizontalFlip()",
                reason="Krizhevsky et al. 2012: twice as many samples of the same classes",
                obstacle="whether it means the same is its author's to say",
            ),
        ],
        confidence=Confidence.LIKELY,
    )


def _shift(image: FieldData) -> str:
    """Shifts by an eighth of the image, as He et al. 2016 pad 32 pixels by 4."""
    sizes = image.shape[-2:]
    if len(sizes) < 2 or any(size is None for size in sizes):
        return "transforms.RandomCrop(size, padding=size // 8)"
    height, width = (int(size or 0) for size in sizes)
    size = str(height) if height == width else f"({height}, {width})"
    return f"transforms.RandomCrop({size}, padding={max(1, min(height, width) // 8)})"
