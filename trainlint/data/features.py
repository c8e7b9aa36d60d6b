"""A few numbers of each sample: what two-sample tests compare, and what near copies have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from trainlint.data.columns import MOST_COLUMNS, channel_axis, kind_of

_GRID: Final = 4
_SIDE: Final = 12
_BUCKETS: Final = 256
_POSITIONS: Final = 64
# A copy may be shifted by so much, in any direction: a pixel, and more of a large image.
_STEPS_A_SIDE: Final = 48
SHIFTS: Final = tuple((dy, dx) for dy in (0, -1, 1) for dx in (0, -1, 1))


def summaries(name: str, values: Any) -> tuple[list[str], Tensor]:
    """(names, (N, D) figures) of a field of N samples.

    Of a table its features, of an image brightness and contrast by channel and by place, of a sequence mean
    and spread of each feature, of ids those at the first places and how many are not 0, of a text its
    length.
    """
    if not isinstance(values, Tensor):
        lengths = [[len(text), len(text.split())] for text in values]
        return [f"length of {name}", f"words of {name}"], torch.tensor(lengths).float()
    kind = kind_of(values[0], is_target=False)
    real = torch.view_as_real(values) if values.is_complex() else values
    real = real.detach().cpu().float()
    if kind == "image":
        return _of_images(name, real)
    if kind == "sequence":
        real = torch.cat([real.mean(1), real.std(1, correction=0)], 1)
        half = real.shape[1] // 2
        names = [
            f"{what} of {name}[{place}]" for what in ("mean", "spread") for place in range(half)
        ]
        return names[:MOST_COLUMNS], real[:, :MOST_COLUMNS]
    flat = real.reshape(len(real), -1)
    if kind == "ids":
        names = [f"{name}[{place}]" for place in range(min(_POSITIONS, flat.shape[1]))]
        filled = (flat != 0).sum(1, keepdim=True).float()
        return [*names, f"length of {name}"], torch.cat([flat[:, :_POSITIONS], filled], 1)
    if kind == "table":
        names = [f"{name}[{place}]" for place in range(min(MOST_COLUMNS, flat.shape[1]))]
        return names, flat[:, :MOST_COLUMNS]
    spread = flat.std(1, correction=0)
    return [f"mean of {name}", f"spread of {name}"], torch.stack([flat.mean(1), spread], 1)


def _channels_first(images: Tensor) -> Tensor:
    return images.movedim(-1, 1) if channel_axis(images.shape[1:]) == 2 else images


def _of_images(name: str, images: Tensor) -> tuple[list[str], Tensor]:
    images = _channels_first(images)
    channels = images.shape[1]
    means = images.mean((2, 3))
    spreads = images.std((2, 3), correction=0)
    cells = adaptive_avg_pool2d(images.mean(1, keepdim=True), _GRID).flatten(1)
    names = [
        *(f"brightness of {name}[{channel}]" for channel in range(channels)),
        *(f"contrast of {name}[{channel}]" for channel in range(channels)),
        *(f"brightness of {name} at ({c // _GRID}, {c % _GRID}) of 4 × 4" for c in range(_GRID**2)),
    ]
    return names, torch.cat([means, spreads, cells], 1)


def vectors(fields: Sequence[Any]) -> tuple[Tensor, Tensor | None] | None:
    """((N, D) vectors, (N, 9, E) fingerprints) of N samples; None of texts and ids.

    Vectors have the values, or 256 signed sums of more than 1024 of them; of an image alone they have its
    pixels, grey and small. Fingerprints are of images alone: 9 shifts of an inner part by a step, of mean 0
    and length 1, so that brightness, contrast and a new encoding change little; zeros where all is alike.
    """
    if not all(isinstance(values, Tensor) for values in fields):
        return None
    kinds = [kind_of(values[0], is_target=False) for values in fields]
    if kinds == ["image"]:
        grey = _channels_first(fields[0].detach().cpu().float()).mean(1, keepdim=True)
        return _small(grey), _of_shifted(grey)
    if not kinds or "ids" in kinds or any(values.is_complex() for values in fields):
        return None
    flat = torch.cat([v.detach().cpu().float().reshape(len(v), -1) for v in fields], 1)
    return (flat if flat.shape[1] <= MOST_COLUMNS else _sketched(flat)), None


def _small(grey: Tensor) -> Tensor:
    height, width = grey.shape[-2:]
    return adaptive_avg_pool2d(grey, (min(_SIDE, height), min(_SIDE, width))).flatten(1)


def _sketched(flat: Tensor) -> Tensor:
    """Sums of the values with random signs; distances stay as they are on average (Charikar 2002)."""
    generator = torch.Generator().manual_seed(0)
    size = flat.shape[1]
    bucket = torch.randint(_BUCKETS, (size,), generator=generator)
    signs = torch.randint(2, (size,), generator=generator) * 2.0 - 1
    return torch.zeros(len(flat), _BUCKETS).index_add_(1, bucket, flat * signs)


def _of_shifted(grey: Tensor) -> Tensor:
    height, width = grey.shape[-2:]
    step = max(1, round(min(height, width) / _STEPS_A_SIDE))
    inner = (height - 2 * step, width - 2 * step)
    found = []
    for dy, dx in SHIFTS:
        top, left = step * (1 + dy), step * (1 + dx)
        small = _small(grey[:, :, top : top + inner[0], left : left + inner[1]])
        small = small - small.mean(1, keepdim=True)
        length = small.norm(dim=1, keepdim=True)
        found.append(torch.where(length > 1e-6 * grey.abs().amax(), small / length, 0))
    return torch.stack(found, 1)
