"""DAT009 channels-last-input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trainlint.rule import (
    Confidence,
    Finding,
    Fix,
    Graph,
    Patch,
    Severity,
    expectation,
    images_of,
    refuses_channels_last,
    rule,
)

_COLOURS = (1, 3, 4)


@rule(
    "DAT009",
    severity=Severity.WARNING,
    since="0.1",
    explains=["layer-input-mismatch", "incompatible-shapes", "oversized-flatten"],
)
def channels_last_input(graph: Graph, *, smallest: int = 8) -> Iterator[Finding]:
    """Images of shape (N, H, W, C) reach a Conv2d, which takes the second axis for the channels.

    PIL, OpenCV, numpy and TensorFlow keep the colours of a pixel side by side, (H, W, C); `nn.Conv2d` wants
    (N, C, H, W) and slides along the last two axes. Given the former, it raises where its `in_channels` is
    the number of colours. Where somebody made `in_channels` fit, it runs: each row of the image is then a
    channel with weights of its own, and the kernel slides along columns and colours, so that nothing is
    shared over the height, which is what a convolution is for.

    An error where the convolution raises and its `in_channels` is the last size; a warning where it runs
    although height and width are equal, at least `smallest`, the last size is 1, 3 or 4, and its kernel
    is wider than 1 in both directions. Only for inputs that are the user's.

    ## Bad
    ```python
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    images, labels = torch.randn(64, 32, 32, 3), torch.randint(4, (64,))
    dataset = torch.utils.data.TensorDataset(images, labels)
    train_loader = torch.utils.data.DataLoader(dataset, batch_size=16, shuffle=True)
    criterion = nn.CrossEntropyLoss()
    ```

    ## Good
    ```python
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    images, labels = torch.randn(64, 32, 32, 3).permute(0, 3, 1, 2), torch.randint(4, (64,))
    dataset = torch.utils.data.TensorDataset(images, labels)
    train_loader = torch.utils.data.DataLoader(dataset, batch_size=16, shuffle=True)
    criterion = nn.CrossEntropyLoss()
    ```

    ## When to ignore it
    When the second axis really is that of the channels: square maps of other quantities over 3 positions.

    ## Fix safety
    Only shown: the axes are best put in order where the images are read (`ToTensor` does it), for
    training, validation and use alike. `memory_format=torch.channels_last` is about memory, not about axes.

    ## References
    `torch.nn.Conv2d`, `torchvision.transforms.ToTensor`.
    """
    if not graph.inputs_given:
        return
    for node in graph.calls("conv2d"):
        images, wants = images_of(graph, node), expectation(graph, node)
        if images is None or wants is None:
            continue
        _, height, width, colours = images
        raises = refuses_channels_last(graph, node)
        if not raises and not (
            node not in graph.faults
            and colours in _COLOURS
            and height == width == wants.expected
            and height >= smallest
            and min(_kernel(graph, node)) > 1
        ):
            continue
        yield Finding(
            f"{graph.label(node)} gets images of shape (N, {height}, {width}, {colours}), with the "
            f"channels last, and takes the {height} rows for channels",
            where=node,
            evidence={"shape": f"(N, {height}, {width}, {colours})", "in_channels": wants.expected},
            fixes=[
                Fix(
                    "put the channels first where images are read: images.permute(0, 3, 1, 2)",
                    reason=f"conv2d takes (N, C, H, W): {wants.expected} channels first",
                    obstacle="where the images are read is not seen from the layer",
                    patches=[Patch.training("channels-first")],
                )
            ],
            severity=Severity.ERROR if raises else Severity.WARNING,
            confidence=Confidence.CERTAIN if raises else Confidence.LIKELY,
            starved=1.0 if raises else 0.0,
            affects=[node],
        )


def _kernel(graph: Graph, node: Any) -> tuple[int, ...]:
    weight = graph.shape(graph.argument(node, "weight"))
    return (1,) if weight is None else weight[2:]
