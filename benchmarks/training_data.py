"""Small data sets of many kinds, made from a seed: what the runs of the calibration are trained on.

`DATASETS` holds them by name; `make(name, seed)` gives a `Data`. All inputs are of order 1, all regression
targets of variance about 1, as a careful author would have them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

TRAINING, HELD_OUT = 768, 256


@dataclass(frozen=True)
class Data:
    """Inputs and targets, of which the last `HELD_OUT` are for validation.

    `kind` says what an input is: `vector`, `image`, `sequence` (of vectors), `tokens`, `text` (tokens whose
    targets are the next ones), `set`, `graph` (node features and rows of the adjacency matrix beside each
    other), `mask` (an image whose target is a map). `task` is `classes`, `binary` (targets 0 and 1 in one
    column) or `regression`; `size` the features of an input, channels of an image or number of tokens,
    `outputs` the number of scores.
    """

    name: str
    kind: str
    task: str
    inputs: Tensor
    targets: Tensor
    size: int
    outputs: int

    @property
    def training(self) -> tuple[Tensor, Tensor]:
        return self.inputs[:-HELD_OUT], self.targets[:-HELD_OUT]

    @property
    def held_out(self) -> tuple[Tensor, Tensor]:
        return self.inputs[-HELD_OUT:], self.targets[-HELD_OUT:]


Maker = Callable[[torch.Generator, int], tuple[Tensor, Tensor]]
DATASETS: dict[str, tuple[str, str, int, int, Maker]] = {}


def dataset(kind: str, task: str, size: int, outputs: int) -> Callable[[Maker], Maker]:
    def add(maker: Maker) -> Maker:
        DATASETS[maker.__name__] = (kind, task, size, outputs, maker)
        return maker

    return add


@functools.cache
def make(name: str, seed: int) -> Data:
    """A data set, of which nobody may change a tensor."""
    kind, task, size, outputs, maker = DATASETS[name]
    generator = torch.Generator().manual_seed(1000 + seed)
    inputs, targets = maker(generator, TRAINING + HELD_OUT)
    return Data(name, kind, task, inputs, targets, size, outputs)


def _unit(values: Tensor) -> Tensor:
    return (values - values.mean(0)) / values.std(0)


# ---------------------------------------------------------------------- vectors


@dataset("vector", "classes", 10, 4)
def blobs(g: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    """Easy: four Gaussians far apart."""
    centres = 1.5 * torch.randn(4, 10, generator=g)
    y = torch.randint(4, (n,), generator=g)
    return _unit(centres[y] + torch.randn(n, 10, generator=g)), y


@dataset("vector", "classes", 20, 3)
def overlapping(g: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    """Hard: three Gaussians of which half cannot be told apart."""
    centres = 0.25 * torch.randn(3, 20, generator=g)
    y = torch.randint(3, (n,), generator=g)
    return centres[y] + torch.randn(n, 20, generator=g), y


@dataset("vector", "classes", 12, 2)
def imbalanced(g: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    """One in twelve is of the second class."""
    y = (torch.rand(n, generator=g) < 1 / 12).long()
    return torch.randn(n, 12, generator=g) + 1.2 * y[:, None] * torch.ones(12), y


@dataset("vector", "classes", 16, 5)
def teacher(g: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    """What a random two-layer net says."""
    x = torch.randn(n, 16, generator=g)
    hidden = torch.tanh(x @ torch.randn(16, 32, generator=g) / 2)
    return x, (hidden @ torch.randn(32, 5, generator=g)).argmax(1)


@dataset("vector", "classes", 2, 3)
def spirals(g: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    """Three arms: nothing linear in it."""
    y = torch.randint(3, (n,), generator=g)
    r = torch.rand(n, generator=g)
    angle = 4 * r + y * 2 * math.pi / 3 + 0.1 * torch.randn(n, generator=g)
    return _unit(torch.stack([r * angle.cos(), r * angle.sin()], 1)), y


@dataset("vector", "classes", 30, 10)
def glyph_vectors(g: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    """Ten binary patterns with bits flipped."""
    patterns = (torch.rand(10, 30, generator=g) < 0.5).float()
    y = torch.randint(10, (n,), generator=g)
    flips = (torch.rand(n, 30, generator=g) < 0.1).float()
    return (patterns[y] - flips).abs() * 2 - 1, y


@dataset("vector", "binary", 8, 1)
def ring(g: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    """Inside or outside of a sphere."""
    x = torch.randn(n, 8, generator=g)
    return x, (x[:, :3].norm(dim=1, keepdim=True) > 1.5).float()


@dataset("vector", "binary", 14, 1)
def risk(g: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    """A logistic model's draws: the labels are noisy."""
    x = torch.randn(n, 14, generator=g)
    score = x @ torch.randn(14, 1, generator=g)
    return x, (torch.rand(n, 1, generator=g) < torch.sigmoid(score)).float()


@dataset("vector", "regression", 10, 1)
def friedman(g: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    x = torch.rand(n, 10, generator=g)
    y = 10 * torch.sin(math.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2
    y = y + 10 * x[:, 3] + 5 * x[:, 4] + torch.randn(n, generator=g)
    return (x - 0.5) / 0.29, _unit(y[:, None])


@dataset("vector", "regression", 1, 1)
def wave(g: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    """A damped sine of one variable."""
    x = torch.rand(n, 1, generator=g) * 2 - 1
    return x, _unit(torch.sin(8 * x) * torch.exp(-x))


@dataset("vector", "regression", 18, 2)
def plane(g: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    """Two linear targets with a fifth of noise."""
    x = torch.randn(n, 18, generator=g)
    y = x @ torch.randn(18, 2, generator=g)
    return x, _unit(y + 2 * torch.randn(n, 2, generator=g))


@dataset("vector", "regression", 6, 3)
def heavy_tailed(g: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    """Products, with a few targets far out."""
    x = torch.randn(n, 6, generator=g)
    return x, _unit(torch.stack([x[:, 0] * x[:, 1], x[:, 2].abs(), x[:, 3] + x[:, 4] ** 2], 1))


# ---------------------------------------------------------------------- images


@dataset("image", "classes", 1, 10)
def glyphs(g: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    """Ten strokes of 6 × 4 dots each, moved about, with noise."""
    strokes = (torch.rand(10, 6, 4, generator=g) < 0.45).float()
    y = torch.randint(10, (n,), generator=g)
    x = 0.3 * torch.randn(n, 1, 10, 10, generator=g)
    for i in range(n):
        top, left = (int(v) for v in torch.randint(4, (2,), generator=g))
        x[i, 0, top : top + 6, left : left + 4] += strokes[y[i]]
    return _unit_image(x), y


@dataset("image", "classes", 3, 4)
def stripes(g: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    """Which way waves of a random phase and colour run."""
    y = torch.randint(4, (n,), generator=g)
    angle = y * math.pi / 4
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    along = angle.cos()[:, None, None] * columns + angle.sin()[:, None, None] * rows
    phase = 6 * torch.rand(n, 1, 1, generator=g)
    colour = torch.randn(n, 3, 1, 1, generator=g)
    x = colour * torch.sin(1.5 * along + phase)[:, None]
    return _unit_image(x + 0.5 * torch.randn(n, 3, 12, 12, generator=g)), y


@dataset("image", "classes", 3, 4)
def corners(g: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    """In which quarter a bright spot is."""
    y = torch.randint(4, (n,), generator=g)
    x = torch.randn(n, 3, 8, 8, generator=g)
    for i in range(n):
        row, column = (int(v) for v in torch.randint(3, (2,), generator=g))
        row, column = row + 4 * (int(y[i]) // 2), column + 4 * (int(y[i]) % 2)
        x[i, :, row : row + 2, column : column + 2] += 2
    return _unit_image(x), y


@dataset("image", "classes", 1, 3)
def textures(g: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    """Noise of three grains."""
    y = torch.randint(3, (n,), generator=g)
    x = torch.randn(n, 1, 12, 12, generator=g)
    smooth = torch.nn.functional.avg_pool2d(x, 3, 1, 1) * 3
    smoother = torch.nn.functional.avg_pool2d(smooth, 3, 1, 1) * 1.5
    pick = y[:, None, None, None]
    return _unit_image(torch.where(pick == 0, x, torch.where(pick == 1, smooth, smoother))), y


def _unit_image(x: Tensor) -> Tensor:
    return (x - x.mean()) / x.std()


def _grid(size: int) -> tuple[Tensor, Tensor]:
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return rows.float(), columns.float()


@dataset("mask", "binary", 1, 1)
def discs(g: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    """A noisy disc, and where it is."""
    rows, columns = _grid(12)
    centre = 3 + 6 * torch.rand(n, 2, 1, 1, generator=g)
    radius = 2 + 2 * torch.rand(n, 1, 1, generator=g)
    inside = ((rows - centre[:, 0]) ** 2 + (columns - centre[:, 1]) ** 2 < radius**2).float()
    x = inside[:, None] + 0.5 * torch.randn(n, 1, 12, 12, generator=g)
    return _unit_image(x), inside[:, None]


@dataset("mask", "classes", 3, 3)
def regions(g: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    """Three bands of different colours, each pixel with its class."""
    rows, _ = _grid(12)
    cuts = torch.stack([3 + 2 * torch.rand(n, generator=g), 7 + 2 * torch.rand(n, generator=g)], 1)
    y = (rows > cuts[:, 0, None, None]).long() + (rows > cuts[:, 1, None, None]).long()
    x = torch.eye(3)[y].permute(0, 3, 1, 2) + 0.7 * torch.randn(n, 3, 12, 12, generator=g)
    return _unit_image(x), y


# ---------------------------------------------------------------------- sequences


@dataset("sequence", "classes", 3, 3)
def tones(g: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    """Which of three frequencies a noisy sequence has."""
    y = torch.randint(3, (n,), generator=g)
    t = torch.arange(20.0)
    phase = 6 * torch.rand(n, 1, 3, generator=g)
    x = torch.sin((0.4 + 0.5 * y)[:, None, None] * t[None, :, None] + phase)
    return x + 0.3 * torch.randn(n, 20, 3, generator=g), y


@dataset("sequence", "classes", 4, 4)
def drifts(g: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    """The signs of the means of two of the channels."""
    x = torch.randn(n, 16, 4, generator=g) + 0.7 * torch.randn(n, 1, 4, generator=g)
    return x, (x[..., 0].mean(1) > 0).long() * 2 + (x[..., 1].mean(1) > 0).long()


@dataset("sequence", "regression", 2, 1)
def adding(g: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    """The sum of two marked values of twelve: hard, a plateau comes first."""
    values = torch.rand(n, 12, generator=g) * 2 - 1
    marks = torch.zeros(n, 12)
    marks.scatter_(1, torch.rand(n, 12, generator=g).topk(2).indices, 1.0)
    return torch.stack([values, marks], 2), _unit((values * marks).sum(1, keepdim=True))


@dataset("sequence", "regression", 2, 1)
def forecast(g: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    """The next value of a noisy oscillation."""
    t = torch.arange(17.0)
    frequency, phase = 0.3 + torch.rand(n, 1, generator=g), 6 * torch.rand(n, 1, generator=g)
    series = torch.sin(frequency * t + phase) + 0.1 * torch.randn(n, 17, generator=g)
    x = torch.stack([series[:, :-1], series[:, :-1].diff(dim=1, prepend=series[:, :1])], 2)
    return x, _unit(series[:, -1:])


# ---------------------------------------------------------------------- tokens


@dataset("tokens", "classes", 8, 8)
def majority(g: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    """The commonest of eight tokens."""
    y = torch.randint(8, (n,), generator=g)
    x = torch.randint(8, (n, 16), generator=g)
    return torch.where(torch.rand(n, 16, generator=g) < 0.35, y[:, None], x), y


@dataset("tokens", "classes", 12, 4)
def first_word(g: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    """To which of four groups the first token belongs."""
    x = torch.randint(12, (n, 10), generator=g)
    return x, x[:, 0] % 4


@dataset("tokens", "binary", 6, 1)
def mentions(g: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    """Whether token 0 occurs twice or more."""
    x = torch.randint(6, (n, 12), generator=g)
    return x, ((x == 0).sum(1, keepdim=True) >= 2).float()


@dataset("text", "classes", 10, 10)
def markov(g: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    """A chain in which each of ten letters has few successors."""
    chances = torch.softmax(2.5 * torch.randn(10, 10, generator=g), 1)
    letters = [torch.randint(10, (n,), generator=g)]
    for _ in range(16):
        letters.append(torch.multinomial(chances[letters[-1]], 1, generator=g)[:, 0])
    text = torch.stack(letters, 1)
    return text[:, :-1], text[:, 1:]


@dataset("text", "classes", 8, 8)
def copies(g: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    """Eight random letters, then the same eight again."""
    half = torch.randint(8, (n, 8), generator=g)
    text = torch.cat([half, half], 1)
    return text[:, :-1], text[:, 1:]


_TEXT = (
    "the loss falls while the weights move, and the weights move as the gradient says. where no gradient "
    "comes, no weight moves, and where no weight moves the loss stays as it was. a rate that is too high "
    "makes the loss rise, a rate that is too low makes it wait. the batch is small, the noise large, and "
    "the mean of many small steps is what learns in the end. "
) * 4


@dataset("text", "classes", 32, 32)
def prose(g: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    """Characters of English."""
    letters = sorted(set(_TEXT))
    codes = torch.tensor([letters.index(letter) for letter in _TEXT])
    starts = torch.randint(len(codes) - 25, (n,), generator=g)
    text = torch.stack([codes[s : s + 25] for s in starts])
    return text[:, :-1], text[:, 1:]


# ---------------------------------------------------------------------- sets and graphs


@dataset("set", "classes", 3, 3)
def shapes(g: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    """Points on a line, in a plane or in a ball."""
    y = torch.randint(3, (n,), generator=g)
    x = torch.randn(n, 10, 3, generator=g)
    x[y < 2, :, 2] *= 0.1
    x[y < 1, :, 1] *= 0.1
    return x, y


@dataset("set", "regression", 2, 1)
def spread(g: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    """The standard deviation of a set."""
    scale = 0.3 + torch.rand(n, 1, 1, generator=g)
    x = scale * torch.randn(n, 12, 2, generator=g)
    return x, _unit(x.std((1, 2))[:, None])


@dataset("graph", "classes", 14, 2)
def communities(g: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    """Whether ten nodes fall into two groups."""
    y = torch.randint(2, (n,), generator=g)
    group = torch.arange(10) < 5
    same = (group[:, None] == group[None, :]).float()
    chance = torch.where((y == 1)[:, None, None], 0.8 * same + 0.1, torch.full((10, 10), 0.45))
    edges = (torch.rand(n, 10, 10, generator=g) < chance).float().triu(1)
    features = torch.cat(
        [torch.randn(n, 10, 3, generator=g), group.float().expand(n, 10)[..., None]], 2
    )
    return torch.cat([features, edges + edges.mT], 2), y


@dataset("graph", "regression", 12, 1)
def degrees(g: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    """The number of edges between nodes whose feature is positive."""
    edges = (
        (torch.rand(n, 8, 8, generator=g) < 0.1 + 0.8 * torch.rand(n, 1, 1, generator=g))
        .float()
        .triu(1)
    )
    edges = edges + edges.mT
    features = torch.randn(n, 8, 4, generator=g)
    marked = (features[..., 0] > 0).float()
    count = (marked[:, :, None] * edges * marked[:, None, :]).sum((1, 2))
    return torch.cat([features, edges], 2), _unit(count[:, None])
