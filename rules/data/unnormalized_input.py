"""DAT001 unnormalized-input."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence

from trainlint.rule import (
    ColumnData,
    Confidence,
    Data,
    FieldData,
    Finding,
    Fix,
    InputTrace,
    ModelTrace,
    Patch,
    Severity,
    SourceEdits,
    SplitData,
    Trace,
    explained,
    loading_fixes,
    rule,
)

_MEASURES = ("image", "table", "sequence")
_MOST_SHOWN = 16
_MOST_NAMED = 4


@rule(
    "DAT001",
    severity=Severity.WARNING,
    since="0.1",
    explains=[
        "learning-rate-too-high",
        "exploding-gradient",
        "initial-loss-off",
        "dead-relu",
        "saturated-units",
        "loss-never-moves",
        "underfitting",
        "split-shift",
        "learning-rate-too-low",
    ],
    own=["data"],
)
def unnormalized_input(
    trace: Trace | None,
    data: Data | None,
    edits: SourceEdits | None,
    *,
    scale: float = 20.0,
    offset: float = 10.0,
    orders: float = 1000.0,
    apart: float = 3.0,
) -> Iterator[Finding]:
    """The first layer gets numbers far from the scale that its initial weights are made for.

    Initial weights suppose inputs of mean 0 and variance 1: the result of a layer is as many times larger
    as its input is. Pixels 0 … 255 make scores of some hundred at the start, a first loss far above that of
    a guess, saturated sigmoids, and gradients of the first layer that are as many times too large as well:
    no learning rate suits it and the layers behind. Where columns differ by orders, the loss is a ravine,
    steep along the large ones and flat along the small. An offset that is large beside the deviation does
    the same, since all samples then look alike (LeCun et al. 1998, section 4.3).

    Measured is what reaches a layer with weights straight from the data, in the first recorded steps, so
    that a division in `forward` counts as done. Reported where the root mean square is above `scale`, or
    the mean is more than `offset` deviations from 0. Not reported: layers behind which a normalization
    takes the scale out, results of other layers and models, ids (they are whole numbers by type), and
    constant inputs. Advice where all that holds, and yet columns of a table differ by `orders` in scale.

    Validation inputs must be scaled by the figures of the training data. Reported where they are not: the
    deviations of the median channel or feature differ by `apart` times and more (ten times for tables of
    fewer than four columns); images of which one set has its pixels as they were read, and the other
    not; and tables where each set has mean 0 and deviation 1 to three places, so that it was scaled by
    itself.

    ## Bad
    ```python
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(20):
        y = torch.randint(10, (32,))
        pixels = (torch.randint(0, 180, (32, 1, 28, 28)) + 8 * y.reshape(-1, 1, 1, 1)).float()
        loss = F.cross_entropy(model(pixels), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ```

    ## Good
    ```python
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(20):
        y = torch.randint(10, (32,))
        pixels = (torch.randint(0, 180, (32, 1, 28, 28)) + 8 * y.reshape(-1, 1, 1, 1)).float()
        loss = F.cross_entropy(model((pixels / 255 - 0.4) / 0.2), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ```

    ## When to ignore it
    When the initial weights were made for this scale, as in a frozen or pretrained first layer.

    ## Fix safety
    Only shown: the same transform has to stand before validation and use of the model. Mean and deviation
    are to be taken from the training data alone.

    ## References
    LeCun, Bottou, Orr & Müller 1998, "Efficient BackProp", section 4.3. Ioffe & Szegedy 2015,
    arXiv:1502.03167 (why normalised layers do not mind).
    """
    for model in () if trace is None else trace.trained:
        yield from _unscaled(model, data, edits, scale, offset, orders)
    if data is not None and data.validation is not None:
        for train, validation in zip(data.train.inputs, data.validation.inputs, strict=False):
            said = _differ(data.train, data.validation, train, validation, apart)
            if said:
                yield _scaled_otherwise(data.train, data.validation, train, validation, said)
                break


def _unscaled(
    model: ModelTrace,
    data: Data | None,
    edits: SourceEdits | None,
    scale: float,
    offset: float,
    orders: float,
) -> Iterator[Finding]:
    for given in model.inputs:
        if given.normalized or not given.std > 0:  # also where it is NaN
            continue
        if given.rms > scale:
            yield _finding(model, given, _scale(given), data, edits)
            return
        if abs(given.mean) > offset * given.std:
            said = f"values of mean {given.mean:.3g} and deviation {given.std:.3g}, all alike beside it"
            yield _finding(model, given, said, data, edits)
            return
        sizes = [
            _size(mean, std) for mean, std in given.columns if std > 0 and not _is_flag(mean, std)
        ]
        if len(sizes) > 1 and max(sizes) > orders * min(sizes):
            said = f"columns of scales {min(sizes):.2g} … {max(sizes):.2g}"
            yield _finding(model, given, said, data, edits, Severity.INFO)
            return


def _size(mean: float, std: float) -> float:
    return math.hypot(mean, std)


def _is_flag(mean: float, std: float) -> bool:
    """Whether a column is of zeros and ones, whose scale is only how often it is set."""
    return abs(std * std - mean * (1 - mean)) <= 0.01 * std * std


def _scale(data: InputTrace) -> str:
    said = f"values of {data.least:.4g} … {data.largest:.4g}, root mean square {data.rms:.3g}"
    sizes = [_size(mean, std) for mean, std in data.columns if std > 0]
    if _are_pixels(data):
        return f"pixels 0 … 255 as they are (mean {data.mean:.3g}, deviation {data.std:.3g})"
    if len(sizes) > 1 and max(sizes) > 100 * min(sizes):
        return f"columns of scales {min(sizes):.2g} … {max(sizes):.2g} ({said})"
    return said


def _finding(
    model: ModelTrace,
    given: InputTrace,
    said: str,
    data: Data | None,
    edits: SourceEdits | None,
    severity: Severity = Severity.WARNING,
) -> Finding:
    layer = f"layer {given.layer}" if given.layer.isdigit() else given.layer or model.name
    return Finding(
        f"{layer} gets {said}, where its weights are made for mean 0 and deviation 1",
        where=model.site or (None if data is None else data.train.site),
        evidence={
            "layer": layer,
            "shape": list(given.shape),
            "mean": round(given.mean, 6),
            "std": round(given.std, 6),
            "least": round(given.least, 6),
            "largest": round(given.largest, 6),
        },
        fixes=[_cured(given, data, edits)],
        severity=severity,
        confidence=Confidence.LIKELY,
        affects=[path for path in model.layers if path],
    )


def _cured(given: InputTrace, data: Data | None, edits: SourceEdits | None) -> Fix:
    """The transform, at the tensors of both data sets where it can be written there."""
    title = f"normalise the inputs: {_cure(given, data)}"
    made, change = Fix(title), _change(given, data)
    if data is not None and edits is not None and change is not None:
        sites = [data.train.site]
        if data.validation is not None and data.validation.site is not None:
            sites.append(data.validation.site)
        made = loading_fixes.with_tensor(edits, sites, 0, change, title=title)
    return explained(
        made,
        reason="LeCun et al. 1998, section 4.3: inputs of mean 0 and deviation 1 give all weights steps of "
        f"one size; these have a root mean square of {given.rms:.3g}",
        obstacle="where the data are prepared is not seen",
        patches=[Patch.training("normalise-inputs")],
    )


def _change(given: InputTrace, data: Data | None) -> str | None:
    """What is written at a tensor, by the figures of the training data; None where these are many."""
    read = _as_read(given, data)
    if read is None or data is None or len(data.train.inputs) != 1:
        return None
    columns = read.columns
    if read.kind == "image" or not columns or len(columns) > _MOST_SHOWN:
        mean, std = read.mean, read.std
        is_byte = read.least >= 0 and 128 < read.largest <= 255
        if read.kind != "image":
            return None
        if is_byte:
            return f"({{}} / 255 - {mean / 255:.3g}) / {std / 255:.3g}"
        return f"({{}} - {mean:.4g}) / {std:.4g}"
    if len(columns) == 1:
        return f"({{}} - {columns[0].mean:.4g}) / {columns[0].std or 1.0:.4g}"
    means = ", ".join(f"{column.mean:.4g}" for column in columns)
    deviations = ", ".join(f"{column.std or 1.0:.4g}" for column in columns)
    return f"({{}} - torch.tensor([{means}])) / torch.tensor([{deviations}])"


def _cure(given: InputTrace, data: Data | None) -> str:
    read = _as_read(given, data)
    if read is not None:
        return _transform(read)
    if _are_pixels(given):
        mean, std = given.mean / 255, given.std / 255
        return f"(x / 255 - {mean:.2f}) / {std:.2f}: the mean and deviation of what was seen"
    if len(given.columns) > 1:
        return (
            "(x - x_train.mean(0)) / x_train.std(0), with figures of the training data for all sets"
        )
    return f"(x - {given.mean:.3g}) / {given.std:.3g}, the same for training, validation and use"


def _as_read(given: InputTrace, data: Data | None) -> FieldData | None:
    """The field of the data that reaches the layer as it was read, by its figures."""
    for found in () if data is None else data.train.inputs:
        if found.kind in _MEASURES and found.columns and found.std > 0:
            near = abs(found.mean - given.mean) <= 0.2 * given.std
            if near and 0.8 < found.std / given.std < 1.25:
                return found
    return None


def _transform(read: FieldData) -> str:
    """What brings it to mean 0 and deviation 1, by the figures of the training data."""
    columns = read.columns
    if read.kind == "image" and len(columns) in (1, 3):
        is_byte = read.least >= 0 and 128 < read.largest <= 255
        unit = 255.0 if is_byte else 1.0
        means = ", ".join(f"{column.mean / unit:.3f}" for column in columns)
        deviations = ", ".join(f"{(column.std or unit) / unit:.3f}" for column in columns)
        first = "x / 255 (as ToTensor does), then " if is_byte else ""
        return (
            f"{first}transforms.Normalize(mean=[{means}], std=[{deviations}]): the "
            "training data's figures, for "
            "all sets"
        )
    if len(columns) > _MOST_SHOWN:
        return (
            "(x - x_train.mean(0)) / x_train.std(0), with figures of the training data for all sets"
        )
    if len(columns) > _MOST_NAMED:  # the edit has them
        return (
            f"(x - mean) / deviation of each of the {len(columns)} columns of the training data, for "
            "all sets"
        )
    means = ", ".join(f"{column.mean:.4g}" for column in columns)
    deviations = ", ".join(f"{column.std or 1.0:.4g}" for column in columns)
    return (
        f"(x - torch.tensor([{means}])) / torch.tensor([{deviations}]): the training data's figures, for "
        "all sets"
    )


def _differ(
    one: SplitData, other: SplitData, train: FieldData, validation: FieldData, apart: float
) -> str:
    """How two sets of inputs show to be scaled in different ways; empty where they do not."""
    if (
        train.kind not in _MEASURES
        or train.kind != validation.kind
        or min(one.read, other.read) < 16
    ):
        return ""
    pairs = [(a, b) for a, b in _pairs(train, validation) if a.std > 0 and b.std > 0]
    if not pairs:
        return ""
    times = statistics.median(abs(math.log(b.std / a.std)) for a, b in pairs)
    # Of few columns of a table, one outlier decides; the pixels of images are many.
    limit = 10.0 if train.kind != "image" and len(pairs) < 4 else apart
    figures = (
        f"mean {validation.mean:.3g} and deviation {validation.std:.3g}, training inputs {train.mean:.3g} "
        f"and {train.std:.3g}"
    )
    if times > math.log(limit):
        return f"validation inputs have {figures}"
    if train.kind == "image" and times > math.log(1.5):
        for raw, scaled in ((train, validation), (validation, train)):
            if (
                raw.least >= 0
                and (raw.largest <= 1 or 128 < raw.largest <= 255)
                and scaled.least < -0.1
            ):
                return f"validation inputs have {figures}"
    alone = train.kind == "table" and _are_alone(one, pairs, 0) and _are_alone(other, pairs, 1)
    if alone and any((a.least, a.largest) != (b.least, b.largest) for a, b in pairs):  # other data
        return (
            "each column of the validation inputs has mean 0 and deviation 1, as has each of the "
            "training inputs: they were scaled by figures of their own"
        )
    return ""


def _pairs(train: FieldData, validation: FieldData) -> Sequence[tuple[ColumnData, ColumnData]]:
    if train.columns and len(train.columns) == len(validation.columns):
        return list(zip(train.columns, validation.columns, strict=True))
    one, other = (ColumnData(f.mean, f.std, f.least, f.largest) for f in (train, validation))
    return [(one, other)]


def _are_alone(
    split: SplitData, pairs: Sequence[tuple[ColumnData, ColumnData]], which: int
) -> bool:
    """Whether a whole set has mean 0 and deviation 1 in each column, as a part of another never has."""
    if split.size != split.read or len(pairs) < 2:
        return False
    close = 1e-3 + 1 / split.read  # the deviation with n or n - 1
    return all(abs(pair[which].mean) < 1e-3 and abs(pair[which].std - 1) < close for pair in pairs)


def _scaled_otherwise(
    one: SplitData, other: SplitData, train: FieldData, validation: FieldData, said: str
) -> Finding:
    return Finding(
        f"{other.name} and {one.name} are scaled differently: {said}",
        where=other.site or one.site,
        evidence={
            "input": train.name,
            "train_mean": round(train.mean, 6),
            "train_std": round(train.std, 6),
            "validation_mean": round(validation.mean, 6),
            "validation_std": round(validation.std, 6),
        },
        fixes=[
            Fix(
                "prepare both in the same way, with the mean and deviation of the training data (a scaler "
                "is fitted on these, and only applied to validation)",
                reason="weights fitted to x/σ answer otherwise to x: the figures belong to the model",
                obstacle="how the two sets are prepared is not seen",
                patches=[Patch.training("normalise-inputs")],
            )
        ],
        confidence=Confidence.LIKELY,
    )


def _are_pixels(data: InputTrace) -> bool:
    return (
        data.least >= 0 and 128 < data.largest <= 255 and data.whole > 0.99 and len(data.shape) > 1
    )
