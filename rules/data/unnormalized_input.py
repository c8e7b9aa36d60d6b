"""DAT001 unnormalized-input."""

from __future__ import annotations

from collections.abc import Iterator

from trainlint.rule import Confidence, Finding, Fix, InputTrace, ModelTrace, Severity, Trace, rule


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
    ],
    own=["data"],
)
def unnormalized_input(
    trace: Trace, *, scale: float = 20.0, offset: float = 10.0
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
    constant inputs.

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
    for model in trace.trained:
        for data in model.inputs:
            if data.normalized or not data.std > 0:  # also where it is NaN
                continue
            if data.rms > scale:
                yield _finding(model, data, _scale(data))
                break
            if abs(data.mean) > offset * data.std:
                said = f"values of mean {data.mean:.3g} and deviation {data.std:.3g}, all alike beside it"
                yield _finding(model, data, said)
                break


def _scale(data: InputTrace) -> str:
    said = f"values of {data.least:.4g} … {data.largest:.4g}, root mean square {data.rms:.3g}"
    sizes = [(mean**2 + std**2) ** 0.5 for mean, std in data.columns if std > 0]
    if _are_pixels(data):
        return f"pixels 0 … 255 as they are (mean {data.mean:.3g}, deviation {data.std:.3g})"
    if len(sizes) > 1 and max(sizes) > 100 * min(sizes):
        return f"columns of scales {min(sizes):.2g} … {max(sizes):.2g} ({said})"
    return said


def _finding(model: ModelTrace, data: InputTrace, said: str) -> Finding:
    layer = data.layer or model.name
    return Finding(
        f"{layer} gets {said}, where its weights are made for mean 0 and deviation 1",
        where=model.site,
        evidence={
            "layer": layer,
            "shape": list(data.shape),
            "mean": round(data.mean, 6),
            "std": round(data.std, 6),
            "least": round(data.least, 6),
            "largest": round(data.largest, 6),
        },
        fixes=[Fix(_cure(data))],
        confidence=Confidence.LIKELY,
    )


def _cure(data: InputTrace) -> str:
    if _are_pixels(data):
        mean, std = data.mean / 255, data.std / 255
        return f"(x / 255 - {mean:.2f}) / {std:.2f}: the mean and deviation of what was seen"
    if len(data.columns) > 1:
        return (
            "(x - x_train.mean(0)) / x_train.std(0), with figures of the training data for all sets"
        )
    return f"(x - {data.mean:.3g}) / {data.std:.3g}, the same for training, validation and use"


def _are_pixels(data: InputTrace) -> bool:
    return (
        data.least >= 0 and 128 < data.largest <= 255 and data.whole > 0.99 and len(data.shape) > 1
    )
