"""Small modules with awkward forwards, each with inputs known to be good.

Every module here trains as it stands unless its name ends in ``_unsound``, so that a finding on
any other one is a false alarm.
"""

import contextlib
import copy
import functools
import math
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, rnn
from torch.utils import checkpoint

from benchmarks.zoo_library import Entry

M = TypeVar("M", bound=nn.Module)
Inputs = Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]

_CASES: list[Entry] = []


def entries() -> list[Entry]:
    """Return every awkward module of this file."""
    return list(_CASES)


def given(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Pack a call."""
    return args, kwargs


def snake(name: str) -> str:
    """Turn a class name into an entry name."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def case(inputs: Inputs) -> Callable[[type[M]], type[M]]:
    """Register a class with a constructor that needs no arguments."""

    def register(cls: type[M]) -> type[M]:
        _CASES.append(Entry(f"awkward/{snake(cls.__name__)}", cls, inputs))
        return cls

    return register


def variant(name: str, build: Callable[[], nn.Module], inputs: Inputs) -> None:
    """Register a model that is not simply a class of this file."""
    _CASES.append(Entry(f"awkward/{name}", build, inputs))


def rows(*shape: int) -> Inputs:
    """Give one normal tensor as the only argument."""
    return lambda: given(torch.randn(*shape))


def tokens(vocab: int, *shape: int) -> Inputs:
    """Give one tensor of indices as the only argument."""
    return lambda: given(torch.randint(vocab, shape))


def mlp(width_in: int, hidden: int, width_out: int) -> nn.Sequential:
    """Build the two-layer perceptron that many of the modules below start from."""
    return nn.Sequential(nn.Linear(width_in, hidden), nn.ReLU(), nn.Linear(hidden, width_out))


# --- control flow -----------------------------------------------------------------------------


@case(rows(2, 3, 8))
class BranchOnRank(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(24, 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:
            x = x.flatten(1)
        elif x.shape[-1] != 24:
            raise ValueError(f"expected 24 features, got {x.shape[-1]}")
        return self.net(x)


@case(rows(2, 4, 32, 32))
class LoopOnShape(nn.Module):
    """Halves the image with one shared convolution until it is small."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.head = nn.Linear(4 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        while x.size(-1) > 4:
            x = F.relu(self.down(x))
        return self.head(x.reshape(len(x), -1))


@case(rows(2, 8))
class BranchOnValue(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = F.relu(h) if x.mean() > 0 else F.leaky_relu(h, 0.1)
        return self.last(h)


@case(rows(2, 8))
class WhileOnValueUnsound(nn.Module):
    """Halves the state until its norm, that of the whole batch, is small."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.body(x))
        steps = 0
        while h.norm() > 1.0 and steps < 10:
            h = h * 0.5
            steps += 1
        return self.head(h)


@case(rows(2, 8))
class BranchOnAny(nn.Module):
    """Refuses bad numbers and clips large ones."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(8, 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        if torch.isnan(x).any() or not torch.isfinite(x).all():
            raise ValueError("the input holds numbers that are not finite")
        if bool((x.abs() > 3).any()):
            x = x.clamp(-3, 3)
        y = self.net(x)
        assert not torch.isnan(y).any()
        return y


@case(rows(2, 8))
class ItemScaleUnsound(nn.Module):
    """Scales by the spread of the whole batch, read back as a python number."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(8, 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        scale = max(x.std().item(), 1e-3)
        return self.net(x / scale)


@case(lambda: given(torch.randn(7, 6), torch.tensor([3, 4])))
class ToListLengths(nn.Module):
    """Splits a flat batch by lengths read back as python numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, flat: Tensor, lengths: Tensor) -> Tensor:
        parts = torch.relu(self.embed(flat)).split(lengths.tolist())
        return self.head(torch.stack([part.mean(0) for part in parts]))


@case(lambda: given(torch.randn(2, 5, 6), torch.tensor([2, 5])))
class LoopOverSamples(nn.Module):
    """Iterates over the batch and slices with a length that is a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(6, 12, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        pooled = []
        for sample, length in zip(x, lengths, strict=True):
            pooled.append(sample[: int(length)].max(dim=0).values)
        return self.net(torch.stack(pooled))


@case(rows(2, 16, 8))
class NonzeroSelect(nn.Module):
    """Keeps the rows above their mean: the number of them depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(8, 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        score = flat.sum(-1)
        keep = (score >= score.mean()).nonzero().squeeze(1)
        return self.net(flat[keep]).mean(0)


@case(rows(2, 16, 8))
class BooleanMaskScatterUnsound(nn.Module):
    """Refines only the rows above the median of the whole batch, and writes them back."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.refine = mlp(8, 16, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.first(x))
        mask = x[..., 0] > x[..., 0].median()
        out = h.clone()
        out[mask] = h[mask] + self.refine(h[mask])
        return out


@case(rows(2, 8))
class TryExcept(nn.Module):
    """Falls back to a second path after a shape error it provokes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(8, 16, 4)
        self.gate = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.net(x)
        try:
            return y.view(2, 3) * self.gate
        except RuntimeError:
            return y * self.gate


# --- containers of inputs ---------------------------------------------------------------------


@case(lambda: given({"image": torch.randn(2, 3, 8, 8), "age": torch.rand(2, 1)}))
class DictInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.age = nn.Linear(1, 8)
        self.head = nn.Linear(16, 2)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        image = F.relu(self.conv(batch["image"])).mean((2, 3))
        age = F.relu(self.age(batch["age"]))
        return self.head(torch.cat([image, age], 1))


@dataclass
class Sample:
    """Two views of a batch and an optional scale."""

    left: Tensor
    right: Tensor
    scale: float = 1.0


@case(lambda: given(Sample(torch.randn(2, 6), torch.randn(2, 6), 0.5)))
class DataclassInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(6, 8)
        self.head = nn.Linear(16, 3)

    def forward(self, sample: Sample) -> Tensor:
        pair = [F.silu(self.encode(view * sample.scale)) for view in (sample.left, sample.right)]
        return self.head(torch.cat(pair, -1))


class Pair(NamedTuple):
    """A question and its context."""

    query: Tensor
    context: Tensor


@case(lambda: given(Pair(torch.randn(2, 3, 8), torch.randn(2, 5, 8))))
class NamedTupleInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(8, 8)
        self.k = nn.Linear(8, 8, bias=False)
        self.v = nn.Linear(8, 8)

    def forward(self, pair: Pair) -> Tensor:
        return F.scaled_dot_product_attention(
            self.q(pair.query), self.k(pair.context), self.v(pair.context)
        )


@case(lambda: given([[torch.randn(4), torch.randn(4)], [torch.randn(4), torch.randn(4)]]))
class NestedListInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(4, 8, 2)

    def forward(self, nested: list[list[Tensor]]) -> Tensor:
        bags = [torch.stack([self.net(item) for item in bag]).sum(0) for bag in nested]
        return torch.stack(bags)


class GraphBatch:
    """A batch of graphs as one graph."""

    def __init__(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> None:
        self.x = x
        self.edge_index = edge_index
        self.batch = batch

    @property
    def graphs(self) -> int:
        """Count the graphs."""
        return int(self.batch.max()) + 1


def two_graphs() -> GraphBatch:
    """Make a triangle and a pair."""
    edges = torch.tensor([[0, 1, 1, 2, 2, 0, 3, 4], [1, 0, 2, 1, 0, 2, 4, 3]])
    return GraphBatch(torch.randn(5, 6), edges, torch.tensor([0, 0, 0, 1, 1]))


class MessagePassing(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.own = nn.Linear(width, width)
        self.neighbour = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        source, target = edge_index
        gathered = torch.zeros_like(x).index_add(0, target, x[source])
        return self.own(x) + self.neighbour(gathered)


@case(lambda: given(two_graphs()))
class GraphInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.layers = nn.ModuleList(MessagePassing(8) for _ in range(2))
        self.head = nn.Linear(8, 2)

    def forward(self, graph: GraphBatch) -> Tensor:
        h = torch.relu(self.embed(graph.x))
        for layer in self.layers:
            h = torch.relu(layer(h, graph.edge_index))
        pooled = h.new_zeros(graph.graphs, h.size(1)).index_add_(0, graph.batch, h)
        return self.head(pooled)


@case(lambda: given(torch.randn(2, 4), torch.randn(2, 4), torch.randn(2, 4), scale=2.0))
class StarArgs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(4, 8, 4)

    def forward(self, *views: Tensor, **options: float) -> Tensor:
        return options.get("scale", 1.0) * sum(self.net(view) for view in views)


@case(lambda: given(x=torch.randn(2, 4), mask=torch.tensor([[1.0], [0.5]])))
class KeywordOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(4, 8, 4)

    def forward(self, *, x: Tensor, mask: Tensor | None = None, power: int = 1) -> Tensor:
        y = self.net(x)
        return y if mask is None else y * mask**power


@case(lambda: given(torch.randn(2, 6), "mean", None))
class StringAndNone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(6, 8, 4)

    def forward(self, x: Tensor, reduction: str, weight: Tensor | None) -> Tensor:
        y = self.net(x)
        if weight is not None:
            y = y * weight
        return {"mean": torch.mean, "sum": torch.sum}[reduction](y, dim=-1)


@case(lambda: given(iter([torch.randn(2, 4), torch.randn(2, 4)])))
class GeneratorInput(nn.Module):
    """Consumes an iterator: a second call with the same argument would find it empty."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(4, 8, 2)

    def forward(self, stream: Iterator[Tensor]) -> Tensor:
        return torch.stack([self.net(chunk) for chunk in stream]).mean(0)


# --- in-place work ----------------------------------------------------------------------------


@case(rows(2, 8))
class AddInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.inner = mlp(8, 16, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h += self.inner(x)
        h *= 0.5
        return self.head(F.relu(h))


@case(rows(2, 5, 8))
class SliceAssign(nn.Module):
    """Overwrites the first token with a learnt one."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(8) * 0.02)
        self.embed = nn.Linear(8, 8)
        self.mix = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        h[:, 0] = self.start
        return self.mix(h)


@case(rows(2, 4, 6, 6))
class WriteThroughView(nn.Module):
    """Adds a branch to a half of the channels through a view of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 8, 3, padding=1)
        self.branch = nn.Conv2d(4, 4, 1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        upper = h.narrow(1, 4, 4)
        upper.add_(self.branch(x))
        h.view(h.size(0), -1)[:, :3].mul_(0.5)
        return self.head(F.relu(h))


@case(rows(2, 8))
class UnderscoreMethods(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.second = nn.Linear(16, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu_()
        h = F.leaky_relu_(self.second(h), 0.1)
        return self.head(h).clamp_(-10, 10)


@case(rows(2, 3, 16, 16))
class InplaceActivations(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.SiLU(inplace=True),
            nn.Dropout2d(0.1, inplace=True),
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((-1, -2)))


@case(lambda: given(torch.randn(2, 5, 8), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])))
class MaskedFillInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qk = nn.Linear(8, 16, bias=False)
        self.v = nn.Linear(8, 8)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k = self.qk(x).chunk(2, -1)
        scores = torch.bmm(q, k.transpose(1, 2)) / math.sqrt(8)
        scores.masked_fill_(~mask[:, None, :], float("-inf"))
        return scores.softmax(-1) @ self.v(x)


@case(rows(2, 6, 8))
class CopyIntoPreallocated(nn.Module):
    """Fills a plain zero tensor step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNNCell(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros(x.shape)
        h = torch.zeros(x.size(0), 8)
        for step in range(x.size(1)):
            h = self.cell(x[:, step], h)
            out[:, step].copy_(h)
        return out


@case(rows(2, 8))
class IndexPut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(8, 8, 4)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        canvas = x.new_zeros(x.size(0), 8)
        canvas[:, torch.arange(0, 8, 2)] = self.net(x)
        canvas.index_add_(1, torch.tensor([1, 3]), x[:, :2])
        return self.head(canvas)


@case(rows(2, 8))
class OutArgumentUnsound(nn.Module):
    """Uses ``out=`` where nothing needs a gradient, to subtract the mean of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(8, 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        centred = torch.empty_like(x)
        torch.sub(x, x.mean(0, keepdim=True), out=centred)
        return self.net(centred)


@case(rows(2, 8))
class SetData(nn.Module):
    """Renormalises a weight outside of autograd on every forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.first.weight.renorm_(2, 0, 2.0)
        return self.head(F.relu(self.first(x)))


# --- the same net, spelled in several ways ----------------------------------------------------


@case(rows(2, 1, 12, 12))
class SpelledModules(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.pool = nn.MaxPool2d(2)
        self.act = nn.ReLU()
        self.flat = nn.Flatten()
        self.hidden = nn.Linear(150, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.flat(self.pool(self.act(self.conv(x))))
        return self.head(self.act(self.hidden(x)))


class SpelledBase(nn.Module):
    """Parameters of the net, without any layer objects."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(6, 1, 3, 3) / 3)
        self.kernel_bias = nn.Parameter(torch.zeros(6))
        self.w1 = nn.Parameter(torch.randn(16, 150) / math.sqrt(150))
        self.b1 = nn.Parameter(torch.zeros(16))
        self.w2 = nn.Parameter(torch.randn(4, 16) / 4)
        self.b2 = nn.Parameter(torch.zeros(4))


@case(rows(2, 1, 12, 12))
class SpelledFunctional(SpelledBase):
    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(F.conv2d(x, self.kernel, self.kernel_bias)), 2)
        x = F.relu(F.linear(torch.flatten(x, 1), self.w1, self.b1))
        return F.linear(x, self.w2, self.b2)


@case(rows(2, 1, 12, 12))
class SpelledTorch(SpelledBase):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(torch.conv2d(x, self.kernel, self.kernel_bias)), 2)
        x = torch.relu(torch.addmm(self.b1, torch.flatten(x, 1), torch.t(self.w1)))
        return torch.add(torch.matmul(x, torch.transpose(self.w2, 0, 1)), self.b2)


@case(rows(2, 1, 12, 12))
class SpelledMethods(SpelledBase):
    """Unfolds the convolution and the pooling by hand."""

    def forward(self, x: Tensor) -> Tensor:
        windows = x.unfold(2, 3, 1).unfold(3, 3, 1).flatten(-2).squeeze(1)
        h = windows.matmul(self.kernel.flatten(1).t()).add(self.kernel_bias).relu()
        h = h.permute(0, 3, 1, 2).unflatten(2, (5, 2)).unflatten(4, (5, 2)).amax((3, 5))
        h = h.flatten(1).mm(self.w1.T).add(self.b1).clamp(min=0)
        return h @ self.w2.mT + self.b2


# --- parametrizations -------------------------------------------------------------------------


def old_weight_norm(layer: nn.Module) -> nn.Module:
    """Apply the hook-based weight norm without its deprecation notice."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(layer)


class Wrapped(nn.Module):
    """A small net whose linear layers went through a function."""

    def __init__(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.first = wrap(nn.Linear(8, 8))
        self.last = wrap(nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.gelu(self.first(x)))


class Symmetric(nn.Module):
    """Mirrors the upper triangle."""

    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).transpose(-1, -2)


class Bounded(nn.Module):
    """Squashes the entries, with a way back for assignments."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)

    def right_inverse(self, y: Tensor) -> Tensor:
        return torch.atanh(y)


def symmetric(layer: nn.Module) -> nn.Module:
    """Make the weight symmetric."""
    return parametrize.register_parametrization(layer, "weight", Symmetric(), unsafe=True)


def chained(layer: nn.Module) -> nn.Module:
    """Put two parametrizations on the weight and one on the bias."""
    parametrize.register_parametrization(layer, "weight", Bounded())
    parametrize.register_parametrization(layer, "weight", Symmetric(), unsafe=True)
    return parametrize.register_parametrization(layer, "bias", Bounded())


for _name, _wrap in {
    "weight_norm_old": old_weight_norm,
    "weight_norm_new": parametrizations.weight_norm,
    "spectral_norm_old": nn.utils.spectral_norm,
    "spectral_norm_new": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "parametrize_symmetric": symmetric,
    "parametrize_chained": chained,
}.items():
    variant(_name, functools.partial(Wrapped, _wrap), rows(2, 8))


@case(rows(2, 8))
class ParametrizeCached(nn.Module):
    """Uses one parametrized weight three times under the cache."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = parametrizations.orthogonal(nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        with parametrize.cached():
            for _ in range(3):
                x = torch.tanh(self.cell(x))
        return x


# --- checkpointing ----------------------------------------------------------------------------


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.first = nn.Linear(8, 16)
        self.block = nn.Sequential(nn.ReLU(), nn.Linear(16, 16), nn.Dropout(0.1), nn.GELU())
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = checkpoint.checkpoint(self.block, h, use_reentrant=self.reentrant)
        return self.head(h)


variant("checkpoint_reentrant", functools.partial(Checkpointed, True), rows(2, 8))
variant("checkpoint_plain", functools.partial(Checkpointed, False), rows(2, 8))


@case(rows(2, 8))
class CheckpointSequential(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(4)))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint.checkpoint_sequential(self.body, 2, x, use_reentrant=False))


@case(rows(2, 8))
class CheckpointClosure(nn.Module):
    """Checkpoints a local function that closes over the module and returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.b = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        def run(inner: Tensor, *, slope: float) -> tuple[Tensor, Tensor]:
            h = F.leaky_relu(self.a(inner), slope)
            return h, self.b(h)

        return checkpoint.checkpoint(run, x, use_reentrant=False, slope=0.2)


# --- custom autograd functions ----------------------------------------------------------------


class Swish(torch.autograd.Function):
    """A function with everything in its forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gate = torch.sigmoid(x)
        ctx.save_for_backward(x, gate)
        return x * gate

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, gate = ctx.saved_tensors
        return grad * gate * (1 + x * (1 - gate))


class Cube(torch.autograd.Function):
    """A function with its context set up apart, and an argument without gradient."""

    @staticmethod
    def forward(x: Tensor, factor: float) -> Tensor:
        return factor * x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:  # noqa: ARG004
        x, ctx.factor = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return 3 * ctx.factor * x**2 * grad, None


class NumpySin(torch.autograd.Function):
    """A function that leaves torch in both of its directions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        array = x.detach().numpy()
        ctx.cosine = torch.from_numpy(np.cos(array))
        return torch.from_numpy(np.sin(array))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.cosine


class RoundThrough(torch.autograd.Function):
    """Rounds forwards and passes gradients as they are."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> Tensor | None:  # noqa: ARG004
        return grad


class ReverseGradient(torch.autograd.Function):
    """The identity, with the gradient turned round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * grad, None


swish = Swish.apply


class WithFunction(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.first = nn.Linear(8, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self.first(x)))


@case(rows(2, 8))
class FunctionAlias(nn.Module):
    """Calls the function by a name bound when this file was imported."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(swish(self.first(x)))


for _name, _function in {
    "function_plain": Swish.apply,
    "function_setup_context": lambda x: Cube.apply(x, 0.5),
    "function_numpy": NumpySin.apply,
    "function_round": lambda x: RoundThrough.apply(torch.tanh(x) * 4),
}.items():
    variant(_name, functools.partial(WithFunction, _function), rows(2, 8))


@case(rows(2, 8))
class GradientReversal(nn.Module):
    """Domain adversarial: two heads, one behind a reversed gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
        self.label = nn.Linear(16, 3)
        self.domain = mlp(16, 8, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.features(x)
        return self.label(h), self.domain(ReverseGradient.apply(h, 0.3))


# --- scripting and compiling ------------------------------------------------------------------


def fast_gelu(x: Tensor) -> Tensor:
    """Approximate gelu."""
    return 0.5 * x * (1.0 + torch.tanh(0.7978845608 * x * (1.0 + 0.044715 * x * x)))


def script(target: Any) -> Any:
    """Script without the deprecation notice."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(target)


@case(rows(2, 8))
class ScriptedSubmodule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = script(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x)))


@case(rows(2, 8))
class ScriptedFunction(WithFunction):
    def __init__(self) -> None:
        super().__init__(script(fast_gelu))


@case(rows(2, 8))
class TracedSubmodule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.body = torch.jit.trace(mlp(8, 16, 8), torch.zeros(2, 8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x)))


@case(rows(2, 8))
class CompiledSubmodule(nn.Module):
    """Compiles one block with the backend that runs the traced graph as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.compile(mlp(8, 16, 8), backend="eager")
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x)))


@case(rows(2, 8))
class CompileDisabled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(8, 16, 4)

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@case(rows(2, 3, 16, 16))
class FxTraced(nn.Module):
    """Holds a graph module made by symbolic tracing."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.fx.symbolic_trace(
            nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        )
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


# --- lazy modules -----------------------------------------------------------------------------


variant(
    "lazy_linear",
    lambda: nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(4)),
    rows(2, 8),
)
variant(
    "lazy_conv_norm",
    lambda: nn.Sequential(
        nn.LazyConv2d(8, 3, bias=False),
        nn.LazyBatchNorm2d(),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(4),
    ),
    rows(2, 3, 12, 12),
)


@case(rows(2, 8))
class LazyInForwardUnsound(nn.Module):
    """Makes a layer in its first forward: too late for an optimiser made before it."""

    def __init__(self) -> None:
        super().__init__()
        self.first: nn.Linear | None = None
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.first is None:
            self.first = nn.Linear(x.size(-1), 16)
        return self.head(torch.relu(self.first(x)))


# --- sharing ----------------------------------------------------------------------------------


@case(rows(2, 8))
class SharedBlock(nn.Module):
    """Applies one block three times."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU())
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = x + self.block(x)
        return self.head(x)


@case(rows(2, 8))
class OneModuleTwoNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(8, 8)
        self.right = self.left
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(torch.cat([self.left(x), self.right(-x)], 1)))


@case(tokens(20, 2, 7))
class TiedEmbedding(nn.Module):
    """Gives the output layer the very parameter of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.rnn = nn.GRU(16, 16, batch_first=True)
        self.out = nn.Linear(16, 20, bias=False)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.out.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.rnn(self.embed(ids))[0])


@case(rows(2, 12))
class TiedAutoencoder(nn.Module):
    """Decodes with the transposed weight of the encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(12, 6)
        self.bias = nn.Parameter(torch.zeros(12))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.sigmoid(self.encode(x)), self.encode.weight.t(), self.bias)


@case(lambda: given(torch.randn(2, 8), torch.randn(2, 8)))
class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = mlp(8, 16, 8)
        self.log_scale = nn.Parameter(torch.tensor(0.0))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = (F.normalize(self.encode(side), dim=-1) for side in (a, b))
        return self.log_scale.exp() * a @ b.t()


@case(rows(2, 8))
class ViaClosure(nn.Module):
    """Registers its blocks, and reaches them only through functions in a plain dict."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, 2)

        def bind(block: nn.Module) -> Callable[[Tensor], Tensor]:
            return lambda x: torch.tanh(block(x))

        self._steps = {f"step{i}": bind(block) for i, block in enumerate(self.blocks)}

    def forward(self, x: Tensor) -> Tensor:
        for step in self._steps.values():
            x = step(x)
        return self.head(x)


@case(rows(2, 8))
class PlainListUnsound(nn.Module):
    """Hides its blocks in a plain list: they will never be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = [nn.Linear(8, 8) for _ in range(2)]
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = torch.relu(block(x))
        return self.head(x)


@case(rows(2, 8))
class ParameterContainers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(8, 8) / 3 for _ in range(2))
        self.extra = nn.ParameterDict({"shift": torch.zeros(8), "gain": torch.ones(8)})
        self.table = nn.ModuleDict({"relu": nn.ReLU(), "head": nn.Linear(8, 3)})

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = self.table["relu"](x @ weight)
        return self.table["head"](x * self.extra["gain"] + self.extra["shift"])


@case(rows(2, 8))
class GetattrLayers(nn.Module):
    """Adds layers by name and finds them with ``getattr``."""

    def __init__(self) -> None:
        super().__init__()
        for i in range(3):
            self.add_module(f"layer{i}", nn.Linear(8, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(3):
            x = F.elu(getattr(self, f"layer{i}")(x))
        return self.head(x)


@case(rows(2, 8))
class DeepcopiedSubmodule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(3))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functools.reduce(lambda h, layer: layer(h), self.layers, x))


# --- complex numbers --------------------------------------------------------------------------


@case(rows(2, 9, 8))
class FourierMixing(nn.Module):
    """Mixes tokens with a Fourier transform."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.feed = mlp(8, 16, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = x + torch.fft.fft2(x, dim=(-2, -1), norm="ortho").real
        return h + self.feed(self.norm(h))


@case(rows(2, 3, 16))
class SpectralConv(nn.Module):
    """Multiplies a few frequencies with complex parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 6, 5, dtype=torch.cfloat) / 3)
        self.skip = nn.Conv1d(3, 6, 1)
        self.head = nn.Conv1d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x)
        out = torch.zeros(len(x), 6, spectrum.size(-1), dtype=torch.cfloat)
        out[..., :5] = torch.einsum("bik,iok->bok", spectrum[..., :5], self.weight)
        return self.head(F.gelu(torch.fft.irfft(out, n=x.size(-1)) + self.skip(x)))


@case(lambda: given(torch.randn(2, 4, dtype=torch.cfloat)))
class ComplexLinear(nn.Module):
    """Complex in, complex out, with an activation on the magnitude."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8, dtype=torch.cfloat)
        self.last = nn.Linear(8, 3, dtype=torch.cfloat)
        self.bias = nn.Parameter(torch.full((8,), 0.1))

    def forward(self, z: Tensor) -> Tensor:
        h = self.first(z)
        return self.last(torch.polar(F.relu(h.abs() + self.bias), h.angle()))


@case(rows(2, 64))
class StftFeatures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(16))
        self.net = nn.Sequential(nn.Conv1d(9, 8, 3, padding=1), nn.ReLU(), nn.Conv1d(8, 2, 1))

    def forward(self, wave: Tensor) -> Tensor:
        frames = torch.stft(wave, 16, 8, window=self.window, return_complex=True)
        return self.net(torch.log1p(frames.abs() ** 2))


@case(rows(2, 2, 5, 8))
class RotaryComplex(nn.Module):
    """Rotates queries and keys by multiplying complex views."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(8, 8, bias=False)
        self.k = nn.Linear(8, 8, bias=False)
        self.v = nn.Linear(8, 8)
        angles = torch.outer(torch.arange(5.0), 100.0 ** -(torch.arange(4) / 4))
        self.register_buffer("turn", torch.polar(torch.ones(5, 4), angles), persistent=False)

    def rotate(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * self.turn).flatten(-2)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.rotate(self.q(x)), self.rotate(self.k(x))
        return F.scaled_dot_product_attention(q, k, self.v(x), is_causal=True)


# --- sequences --------------------------------------------------------------------------------


@case(lambda: given(torch.randn(2, 6, 5), torch.tensor([4, 6])))
class PackedLstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(5, 8, num_layers=2, batch_first=True, dropout=0.1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        padded, _ = rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return self.head(padded)


@case(lambda: given([torch.randn(6, 5), torch.randn(3, 5)]))
class PackedGruFromList(nn.Module):
    """Packs a list of sequences and works on the packed data directly."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.rnn = nn.GRU(8, 8, bidirectional=True)
        self.head = nn.Linear(16, 3)

    def forward(self, sequences: list[Tensor]) -> Tensor:
        packed = rnn.pack_sequence(sequences)
        packed = packed._replace(data=torch.relu(self.embed(packed.data)))
        _, last = self.rnn(packed)
        return self.head(torch.cat([last[0], last[1]], -1))


@case(rows(2, 6, 5))
class ProjectedLstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(5, 16, batch_first=True, bidirectional=True, proj_size=4)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0].mean(1))


@case(rows(2, 6, 5))
class GruCellLoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(5, 8)
        self.start = nn.Parameter(torch.zeros(8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.start.expand(x.size(0), -1)
        outputs = []
        for step in x.unbind(1):
            h = self.cell(step, h)
            outputs.append(self.head(h))
        return torch.stack(outputs, 1)


@case(rows(2, 4, 3, 8, 8))
class ConvLstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.Conv2d(3 + 6, 4 * 6, 3, padding=1)
        self.head = nn.Conv2d(6, 1, 1)

    def forward(self, video: Tensor) -> Tensor:
        batch, steps, _, height, width = video.shape
        h = c = video.new_zeros(batch, 6, height, width)
        for t in range(steps):
            i, f, o, g = self.gates(torch.cat([video[:, t], h], 1)).split(6, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.head(h)


@case(lambda: given(torch.randint(12, (2, 6)), torch.randint(12, (2, 4))))
class TeacherForcing(nn.Module):
    """Feeds back its own greedy choice on some steps."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.encoder = nn.GRU(8, 8, batch_first=True)
        self.decoder = nn.GRUCell(8, 8)
        self.out = nn.Linear(8, 12)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        h = self.encoder(self.embed(source))[1][0]
        token, logits = target[:, 0], []
        for step in range(target.size(1)):
            h = self.decoder(self.embed(token), h)
            logits.append(self.out(h))
            token = target[:, step] if step % 2 else logits[-1].argmax(-1)
        return torch.stack(logits, 1)


@case(lambda: given(torch.randint(30, (9,)), torch.tensor([0, 4])))
class EmbeddingBagOffsets(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(30, 8, mode="mean")
        self.head = mlp(8, 16, 4)

    def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
        return self.head(self.bag(ids, offsets))


@case(lambda: given(torch.tensor([[3, 5, 2, 0, 0], [1, 4, 6, 7, 2]])))
class PaddingIndex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8, padding_idx=0)
        self.head = mlp(8, 16, 3)

    def forward(self, ids: Tensor) -> Tensor:
        real = (ids != 0).unsqueeze(-1)
        pooled = (self.embed(ids) * real).sum(1) / real.sum(1).clamp(min=1)
        return self.head(pooled)


@case(lambda: given(torch.randint(30, (2, 6))))
class SparseGradEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 8, sparse=True)
        self.head = mlp(8, 16, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(ids).mean(1))


# --- routing ----------------------------------------------------------------------------------


@case(rows(2, 12, 8))
class TopkMixture(nn.Module):
    """Sends each token to two of four experts and adds their answers up by index."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(8, 4, bias=False)
        self.experts = nn.ModuleList(mlp(8, 16, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.size(-1))
        weight, chosen = self.router(flat).softmax(-1).topk(2, dim=-1)
        weight = weight / weight.sum(-1, keepdim=True)
        out = torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            token, slot = torch.where(chosen == i)
            out.index_add_(0, token, expert(flat[token]) * weight[token, slot, None])
        return out.view_as(x)


@case(rows(2, 12, 8))
class DenseMixture(nn.Module):
    """Runs all experts with one batched product."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(8, 4)
        self.up = nn.Parameter(torch.randn(4, 8, 16) / math.sqrt(8))
        self.down = nn.Parameter(torch.randn(4, 16, 8) / 4)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.router(x).softmax(-1)
        hidden = F.gelu(torch.einsum("btd,edh->beth", x, self.up))
        return torch.einsum("beth,ehd,bte->btd", hidden, self.down, gate)


@case(rows(2, 8))
class RandomLayerDrop(nn.Module):
    """Leaves out some residual layers at random while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(mlp(8, 16, 8) for _ in range(4))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if self.training and torch.rand(()) < 0.25:
                continue
            x = x + layer(x)
        return self.head(x)


@case(rows(2, 8))
class StochasticDepth(nn.Module):
    """Scales residual branches by a random mask per sample."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(mlp(8, 16, 8) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            branch = layer(x)
            if self.training:
                branch = branch * torch.bernoulli(torch.full((len(x), 1), 0.9)) / 0.9
            x = x + branch
        return x


@case(rows(2, 8))
class GumbelRouter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Linear(8, 3)
        self.branches = nn.ModuleList(mlp(8, 8, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        choice = F.gumbel_softmax(self.logits(x), tau=1.0, hard=True)
        stacked = torch.stack([branch(x) for branch in self.branches], 1)
        return (choice.unsqueeze(-1) * stacked).sum(1)


# --- hooks ------------------------------------------------------------------------------------


@case(rows(2, 8))
class ForwardHook(nn.Module):
    """Lets a hook add the residual."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(8, 16, 8)
        self.head = nn.Linear(8, 2)
        self.body.register_forward_hook(lambda _module, args, output: output + args[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x)))


@case(rows(2, 8))
class PreHook(nn.Module):
    """Normalises the input of a layer in a hook, and passes a keyword in another."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = KeywordOnly()
        self.first = nn.Linear(8, 4)
        self.first.register_forward_pre_hook(lambda _module, args: (F.layer_norm(args[0], (8,)),))
        self.inner.register_forward_pre_hook(
            lambda _module, args, kwargs: (args, {**kwargs, "power": 2}), with_kwargs=True
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x=torch.tanh(self.first(x)), mask=x[:, :1])


@case(rows(2, 3, 12, 12))
class HookedFeatures(nn.Module):
    """Collects features with hooks and reads them afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.features: dict[str, Tensor] = {}
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU()
        )
        self.head = nn.Linear(14, 4)
        for index in (1, 3):
            self.body[index].register_forward_hook(functools.partial(self.keep, str(index)))

    def keep(self, name: str, _module: nn.Module, _args: Any, output: Tensor) -> None:
        self.features[name] = output

    def forward(self, x: Tensor) -> Tensor:
        self.body(x)
        pooled = [feature.mean((2, 3)) for feature in self.features.values()]
        self.features = {}
        return self.head(torch.cat(pooled, 1))


@case(rows(2, 8))
class BackwardHooks(nn.Module):
    """Clips gradients in a module hook and in a tensor hook."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.act = nn.ReLU()
        self.head = nn.Linear(16, 4)
        self.act.register_full_backward_hook(
            lambda _module, grads, _output: tuple(grad.clamp(-1, 1) for grad in grads)
        )
        self.head.register_full_backward_pre_hook(lambda _module, grads: grads)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.first(x))
        if h.requires_grad:
            h.register_hook(lambda grad: grad * 0.5)
        return self.head(h)


# --- buffers ----------------------------------------------------------------------------------


@case(rows(2, 8))
class RunningMean(nn.Module):
    """Keeps its own running mean in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("steps", torch.tensor(0))
        self.net = mlp(8, 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.steps += 1
                self.mean.lerp_(x.mean(0), 0.1)
        return self.net(x - self.mean)


@case(rows(2, 8))
class FeatureQueue(nn.Module):
    """Compares with a queue of older features which it overwrites in a ring."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = mlp(8, 16, 8)
        self.register_buffer("queue", F.normalize(torch.randn(8, 16), dim=0))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        start = int(self.pointer)
        self.queue[:, start : start + len(keys)] = keys.t()
        self.pointer[0] = (start + len(keys)) % self.queue.size(1)

    def forward(self, x: Tensor) -> Tensor:
        q = F.normalize(self.encode(x), dim=1)
        logits = q @ self.queue.clone().detach() / 0.2
        self.push(q.detach())
        return logits


@case(rows(2, 6, 8))
class NonPersistentBuffer(nn.Module):
    """Masks with a buffer that stays out of the state dict and grows when it must."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(4, 4).tril().bool(), persistent=False)
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        n = x.size(1)
        if self.mask.size(0) < n:
            self.register_buffer("mask", torch.ones(n, n).tril().bool(), persistent=False)
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask[:n, :n]))


@case(rows(2, 8))
class RemembersOutput(nn.Module):
    """Keeps a detached copy of its last output as a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(8, 16, 8)
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.net(x if self.last is None else x + 0.1 * self.last)
        self.last = y.detach()
        return y


# --- ways of calling --------------------------------------------------------------------------


@case(rows(2, 8))
class DirectForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.act = nn.ReLU()
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head.forward(self.act.forward(self.first.forward(x)))


@case(rows(2, 8))
class OverriddenCall(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(8, 16, 4)

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return super().__call__(F.layer_norm(x, x.shape[-1:]), *args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@case(rows(2, 8))
class PartialActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = functools.partial(F.leaky_relu, negative_slope=0.2)
        norm = functools.partial(nn.LayerNorm, eps=1e-6)
        self.first, self.norm = nn.Linear(8, 16), norm(16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.norm(self.first(x))))


@case(rows(2, 8))
class PatchedForward(nn.Module):
    """Replaces the forward of one instance."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)
        original = self.layer.forward
        self.layer.forward = lambda x: torch.tanh(original(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x))


@case(rows(2, 3, 8, 8))
class SequentialSubclass(nn.Sequential):
    """Grows after its construction and indexes itself."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
        self.extend([nn.Flatten(), nn.Linear(64, 3)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in list(self)[:-1]:
            x = layer(x)
        return self[-1](x)


@case(rows(2, 8))
class DataParallelWrapper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.DataParallel(mlp(8, 16, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


# --- torch.func -------------------------------------------------------------------------------


@case(rows(2, 5, 8))
class VmapForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(8, 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.vmap(self.net)(x)


@case(rows(2, 8))
class FunctionalCall(nn.Module):
    """Takes one inner gradient step and runs the net with the new weights."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(8, 16, 8)

    def forward(self, x: Tensor) -> Tensor:
        weights = dict(self.net.named_parameters())
        inner = F.mse_loss(torch.func.functional_call(self.net, weights, (x,)), x)
        grads = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
        fast = {name: w - 0.1 * g for (name, w), g in zip(weights.items(), grads, strict=True)}
        return torch.func.functional_call(self.net, fast, (x,))


@case(rows(2, 4))
class JacrevForward(nn.Module):
    """Returns the output with the trace of its Jacobian."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        jacobian = torch.func.vmap(torch.func.jacrev(self.net))(x)
        return self.net(x), jacobian.diagonal(dim1=-2, dim2=-1).sum(-1)


@case(rows(2, 5, 3))
class EnergyForces(nn.Module):
    """Derives forces from an energy inside the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 16), nn.SiLU(), nn.Linear(16, 1))

    def forward(self, positions: Tensor) -> dict[str, Tensor]:
        with torch.enable_grad():
            positions = positions.detach().requires_grad_(True)
            offset = positions.unsqueeze(2) - positions.unsqueeze(1)
            distance = (offset.square().sum(-1, keepdim=True) + 1e-6).sqrt()
            energy = self.net(distance).sum((1, 2, 3))
            (gradient,) = torch.autograd.grad(energy.sum(), positions, create_graph=True)
        return {"energy": energy, "forces": -gradient}


# --- modes ------------------------------------------------------------------------------------


@case(rows(2, 8))
class AutocastInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            h = F.relu(self.first(x))
        with torch.autocast("cpu", enabled=False):
            return self.head(h.float())


@case(rows(2, 8))
class MomentumTeacher(nn.Module):
    """Follows the student with a frozen average that never gets a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.student = mlp(8, 16, 8)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            pairs = zip(self.teacher.parameters(), self.student.parameters(), strict=True)
            for slow, fast in pairs:
                slow.mul_(0.99).add_(fast, alpha=0.01)
            target = self.teacher(x)
        return self.student(x), target


@case(rows(2, 8))
class FrozenBackbone(nn.Module):
    """Trains a head on a frozen body that is kept in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.body.requires_grad_(False)
        self.head = nn.Linear(16, 4)

    def train(self, mode: bool = True) -> "FrozenBackbone":
        super().train(mode)
        self.body.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.body(x)
        return self.head(features)


@case(lambda: given(torch.randn(2, 8)))
class DeviceJuggling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.first.weight.device, non_blocking=True).cpu()
        ramp = torch.arange(8, device=x.device, dtype=x.dtype) / 8
        shift = torch.zeros(x.size(0), 8, device=next(self.parameters()).device) + ramp
        device = "cuda" if x.is_cuda else x.device.type
        return self.head(torch.relu(self.first((x + shift).to(device))))


@case(lambda: given(torch.randn(2, 8, dtype=torch.float64)))
class DoubleJuggling(nn.Module):
    """Takes doubles, works in floats and sums in doubles."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.head = nn.Linear(16, 4, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x.to(self.first.weight.dtype)))
        return self.head(h.double()).float()


@case(rows(2, 8))
class HalfJuggling(nn.Module):
    """Holds one layer in bfloat16 and passes through half on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16).to(torch.bfloat16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.first(x.bfloat16())).half().type_as(x)
        return self.head(h)


@case(lambda: given(torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)))
class ByteImages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1))
        self.conv = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 2)

    def forward(self, image: Tensor) -> Tensor:
        x = image.float().div_(255).sub_(self.mean)
        return self.head(F.relu(self.conv(x)).mean((2, 3)))


@case(rows(2, 8))
class MultipleContexts(nn.Module):
    """Stacks context managers around its work."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(8, 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(torch.random.fork_rng(devices=[]))
            stack.enter_context(torch.profiler.record_function("body"))
            noise = torch.randn_like(x)
            return self.net(x + 0.01 * noise)


# --- outputs ----------------------------------------------------------------------------------


class OutputBase(nn.Module):
    """Two heads on one body."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
        self.label = nn.Linear(16, 3)
        self.box = nn.Linear(16, 4)


@case(rows(2, 8))
class DictOutput(OutputBase):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.body(x)
        return {"label": self.label(h), "box": self.box(h).exp()}


@dataclass
class Detection:
    """Two tensors and a plain number."""

    label: Tensor
    box: Tensor
    count: int


@case(rows(2, 8))
class DataclassOutput(OutputBase):
    def forward(self, x: Tensor) -> Detection:
        h = self.body(x)
        return Detection(self.label(h), self.box(h), len(x))


class Heads(NamedTuple):
    """Both heads by name."""

    label: Tensor
    box: Tensor


@case(rows(2, 8))
class NamedTupleOutput(OutputBase):
    def forward(self, x: Tensor) -> Heads:
        h = self.body(x)
        return Heads(box=self.box(h), label=self.label(h))


@case(rows(2, 8))
class NestedOutput(OutputBase):
    def forward(self, x: Tensor) -> tuple[Tensor, list[dict[str, Any]]]:
        h = self.body(x)
        boxes = [{"box": box, "index": i} for i, box in enumerate(self.box(h).unbind())]
        return self.label(h), boxes


@case(lambda: given(torch.randn(2, 8), torch.tensor([0, 2])))
class ReturnsLoss(nn.Module):
    """Computes its loss itself when it is given targets."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(8, 16, 3)

    def forward(self, x: Tensor, target: Tensor | None = None) -> Tensor:
        logits = self.net(x)
        return logits if target is None else F.cross_entropy(logits, target)


# --- unusual initial values -------------------------------------------------------------------


@case(rows(2, 8))
class ReZero(nn.Module):
    """Weighs each residual branch with a scalar that starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(mlp(8, 16, 8) for _ in range(2))
        self.scales = nn.ParameterList(torch.tensor(0.0) for _ in range(2))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer, scale in zip(self.layers, self.scales, strict=True):
            x = x + scale * layer(x)
        return self.head(x)


class ZeroGammaBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


variant(
    "zero_gamma_resnet",
    lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        ZeroGammaBlock(8),
        ZeroGammaBlock(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    ),
    rows(2, 3, 16, 16),
)


class LowRank(nn.Module):
    """A frozen linear layer with a trainable product beside it that starts at zero."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2.0 * self.up(self.down(x))


@case(rows(2, 8))
class LowRankAdapters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = LowRank(nn.Linear(8, 16), 2)
        self.head = LowRank(nn.Linear(16, 4), 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.first(x)))


@case(lambda: given(torch.randn(2, 5, 8), torch.randn(2, 6)))
class AdaptiveNormZero(nn.Module):
    """Conditions a block through shift, scale and gate of a projection that starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8, elementwise_affine=False)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(6, 24))
        self.feed = mlp(8, 16, 8)
        self.out = nn.Linear(8, 8)
        nn.init.zeros_(self.modulation[1].weight)
        nn.init.zeros_(self.modulation[1].bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(condition).unsqueeze(1).chunk(3, dim=-1)
        h = x + gate * self.feed(self.norm(x) * (1 + scale) + shift)
        return self.out(h)


@case(lambda: given(torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)))
class ZeroConvControl(nn.Module):
    """Adds a trainable copy to a frozen block through convolutions that start at zero."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.SiLU())
        self.control = copy.deepcopy(block)
        self.block = block.requires_grad_(False)
        self.zero_out = nn.Conv2d(4, 4, 1)
        nn.init.zeros_(self.zero_out.weight)
        nn.init.zeros_(self.zero_out.bias)

    def forward(self, x: Tensor, hint: Tensor) -> Tensor:
        return self.block(x) + self.zero_out(self.control(x + hint))


class SineLayer(nn.Module):
    """A linear layer with the matching wide start for a sine."""

    def __init__(self, fan_in: int, fan_out: int, first: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(fan_in, fan_out)
        bound = 1 / fan_in if first else math.sqrt(6 / fan_in) / 30
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(30 * self.linear(x))


variant(
    "siren",
    lambda: nn.Sequential(SineLayer(2, 32, True), SineLayer(32, 32, False), nn.Linear(32, 3)),
    rows(2, 2),
)


# --- generative and iterative models ----------------------------------------------------------


class Coupling(nn.Module):
    """Transforms one half of the features by the other."""

    def __init__(self, width: int, flip: bool) -> None:
        super().__init__()
        self.flip = flip
        self.net = mlp(width // 2, 16, width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.chunk(2, -1)
        if self.flip:
            a, b = b, a
        log_scale, shift = self.net(a).chunk(2, -1)
        log_scale = torch.tanh(log_scale)
        return torch.cat([a, b * log_scale.exp() + shift], -1), log_scale.sum(-1)


@case(rows(2, 8))
class CouplingFlow(nn.Module):
    """Returns the log-likelihood under a chain of couplings."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList(Coupling(8, bool(i % 2)) for i in range(4))
        self.register_buffer("loc", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        total = x.new_zeros(len(x))
        for step in self.steps:
            x, log_det = step(x)
            total = total + log_det
        prior = torch.distributions.Normal(self.loc, torch.ones_like(self.loc))
        return prior.log_prob(x).sum(-1) + total


@case(rows(2, 6, 8))
class VectorQuantiser(nn.Module):
    """Replaces codes with their nearest entry and passes the gradient straight through."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(8, 4)
        self.book = nn.Embedding(16, 4)
        self.decode = mlp(4, 16, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encode(x)
        index = torch.cdist(z.reshape(-1, 4), self.book.weight).argmin(-1)
        q = self.book(index).view_as(z)
        loss = F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())
        return self.decode(z + (q - z).detach()), loss


@case(rows(2, 12))
class VariationalAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(12, 16), nn.ReLU())
        self.mean, self.log_var = nn.Linear(16, 3), nn.Linear(16, 3)
        self.decode = mlp(3, 16, 12)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.encode(x)
        posterior = torch.distributions.Normal(self.mean(h), (0.5 * self.log_var(h)).exp())
        prior = torch.distributions.Normal(torch.zeros(3), torch.ones(3))
        divergence = torch.distributions.kl_divergence(posterior, prior).sum(-1)
        return self.decode(posterior.rsample()), divergence


@case(lambda: given(torch.randn(2, 6), torch.randn(2, 4)))
class HyperNetwork(nn.Module):
    """Computes the weights of a layer from data, one set for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Linear(4, 6 * 8 + 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        weight, bias = self.make(context).split([48, 8], -1)
        h = torch.bmm(weight.view(-1, 8, 6), x.unsqueeze(-1)).squeeze(-1) + bias
        return self.head(torch.relu(h))


@case(rows(2, 3, 8, 8))
class DynamicConvolution(nn.Module):
    """Makes one kernel for each sample and runs them as a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Linear(3, 6 * 3 * 9)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.size(0)
        kernel = self.make(x.mean((2, 3))).view(batch * 6, 3, 3, 3)
        h = F.conv2d(x.reshape(1, -1, 8, 8), kernel, padding=1, groups=batch)
        return self.head(F.relu(h.view(batch, 6, 8, 8)))


@case(rows(2, 4))
class NeuralOde(nn.Module):
    """Integrates a field with fixed fourth-order steps."""

    def __init__(self) -> None:
        super().__init__()
        self.field = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 4))

    def slope(self, t: float, y: Tensor) -> Tensor:
        return self.field(torch.cat([y, torch.full_like(y[:, :1], t)], 1))

    def forward(self, y: Tensor) -> Tensor:
        dt = 0.25
        for i in range(4):
            t = i * dt
            k1 = self.slope(t, y)
            k2 = self.slope(t + dt / 2, y + dt / 2 * k1)
            k3 = self.slope(t + dt / 2, y + dt / 2 * k2)
            k4 = self.slope(t + dt, y + dt * k3)
            y = y + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return y


@case(rows(2, 8))
class DeepEquilibrium(nn.Module):
    """Iterates to a fixed point without gradients, then takes one step with them."""

    def __init__(self) -> None:
        super().__init__()
        self.inject = nn.Linear(8, 8)
        self.cell = nn.Linear(8, 8, bias=False)
        self.head = nn.Linear(8, 2)
        with torch.no_grad():
            self.cell.weight.mul_(0.5)

    def forward(self, x: Tensor) -> Tensor:
        drive = self.inject(x)
        with torch.no_grad():
            z = torch.zeros_like(drive)
            for _ in range(20):
                new = torch.tanh(self.cell(z) + drive)
                done = (new - z).abs().max() < 1e-4
                z = new
                if done:
                    break
        return self.head(torch.tanh(self.cell(z) + drive))


@case(lambda: given(torch.randn(2, 1, 8, 8), torch.randint(10, (2,))))
class NoisePredictor(nn.Module):
    """Adds noise by a schedule and predicts it, with sinusoidal steps."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("alpha", torch.linspace(0.99, 0.1, 10))
        self.time = mlp(8, 16, 8)
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.out = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, image: Tensor, step: Tensor) -> Tensor:
        noise = torch.randn_like(image)
        alpha = self.alpha[step].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * image + (1 - alpha).sqrt() * noise
        angle = step[:, None] * torch.exp(-torch.arange(4) * math.log(100) / 4)
        time = self.time(torch.cat([angle.sin(), angle.cos()], -1))
        h = F.silu(self.norm(self.stem(noisy) + time[..., None, None]))
        return F.mse_loss(self.out(h), noise)


# --- single operations ------------------------------------------------------------------------


@case(rows(2, 6, 8))
class EinsumAttention(nn.Module):
    """Splits heads and joins them again with plain reshapes."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24, bias=False)
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        weight = torch.einsum("bhid,bhjd->bhij", q, k).mul((width // 2) ** -0.5).softmax(-1)
        mixed = torch.einsum("bhij,bhjd->bihd", weight, v)
        return self.out(mixed.reshape(batch, length, width))


@case(rows(2, 3, 16, 16))
class PatchMixer(nn.Module):
    """Cuts patches with reshape and permute, and mixes across them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(48, 16)
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.token, self.channel = mlp(16, 32, 16), mlp(16, 32, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(len(x), 3, 4, 4, 4, 4).movedim((2, 4), (1, 2)).flatten(1, 2).flatten(2)
        x = self.embed(x)
        x = x + self.token(self.norm1(x).mT).mT
        x = x + self.channel(self.norm2(x))
        return self.head(x.mean(1))


@case(rows(2, 5, 6))
class SparseAdjacency(nn.Module):
    """Multiplies with a sparse matrix held as a buffer."""

    def __init__(self) -> None:
        super().__init__()
        index = torch.tensor([[0, 0, 1, 2, 3, 4], [1, 2, 0, 3, 4, 0]])
        values = torch.full((6,), 0.5)
        self.register_buffer("adjacency", torch.sparse_coo_tensor(index, values, (5, 5)))
        self.first = nn.Linear(6, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.stack([torch.sparse.mm(self.adjacency, sample) for sample in self.first(x)])
        return self.head(torch.relu(h))


@case(lambda: given(torch.randn(4, 6), torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]])))
class SparseBuiltInForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        size = (len(x), len(x))
        matrix = torch.sparse_coo_tensor(edges, torch.ones(edges.size(1)), size).coalesce()
        return self.head(torch.relu(torch.sparse.mm(matrix, self.first(x))))


@case(rows(2, 8))
class WhereScalars(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        sign = torch.where(x > 0, 1.0, -1.0)
        h = self.first(x * sign)
        return self.head(torch.where(h > 0, h, 0.1 * h))


@case(rows(2, 4, 8, 8))
class UnfoldFold(nn.Module):
    """Processes overlapping patches and averages them back."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(36, 32, 36)

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, 3, padding=1, stride=2)
        out = self.net(patches.transpose(1, 2)).transpose(1, 2)
        ones = F.unfold(torch.ones_like(x), 3, padding=1, stride=2)
        total = F.fold(out, x.shape[-2:], 3, padding=1, stride=2)
        return total / F.fold(ones, x.shape[-2:], 3, padding=1, stride=2)


@case(rows(2, 3, 16, 16))
class SkipUnet(nn.Module):
    """Goes down and up again with transposed convolutions and pads to match."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.down2 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.up1 = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.up2 = nn.ConvTranspose2d(16, 8, 3, stride=2, padding=1)
        self.head = nn.Conv2d(11, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.down1(x))
        b = F.relu(self.down2(a))
        up = torch.cat([F.relu(self.up1(b)), a], 1)
        up = F.relu(self.up2(up))
        up = F.pad(up, (0, x.size(-1) - up.size(-1), 0, x.size(-2) - up.size(-2)))
        return self.head(torch.cat([up, x], 1))


@case(rows(2, 8, 12, 12))
class SeparableConvs(nn.Module):
    """Depthwise, pointwise, grouped and dilated convolutions with a shuffle of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.point = nn.Conv2d(8, 16, 1)
        self.grouped = nn.Conv2d(16, 16, 3, padding="same", dilation=2, groups=4)
        self.shuffle = nn.ChannelShuffle(4)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self.point(F.hardswish(self.norm(self.depth(x)))))
        return self.head(F.relu(self.grouped(self.shuffle(h))))


@case(rows(2, 3, 8, 8))
class SubPixel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1, padding_mode="reflect")
        self.last = nn.Conv2d(12, 3 * 16, 3, padding=1)
        self.up = nn.PixelShuffle(4)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.interpolate(x, scale_factor=4, mode="bilinear", align_corners=False)
        return self.up(self.last(F.prelu(self.first(x), torch.tensor(0.25)))) + skip


@case(rows(2, 8, 10))
class GatedUnits(nn.Module):
    """A gate over channels, one over features, and one with a silu."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(8, 16, 3, padding=1)
        self.feature = nn.Sequential(nn.Linear(10, 20), nn.GLU())
        self.gate, self.up = nn.Linear(10, 16, bias=False), nn.Linear(10, 16, bias=False)
        self.down = nn.Linear(16, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.feature(F.glu(self.conv(x), dim=1))
        return self.down(F.silu(self.gate(h)) * self.up(h))


def padding_mask() -> Tensor:
    """Mark the last two of five keys of the second sample as padding."""
    return torch.tensor([[False] * 5, [False] * 3 + [True] * 2])


@case(lambda: given(torch.randn(2, 5, 8), padding_mask()))
class AttentionMasks(nn.Module):
    """Calls attention with both kinds of mask, with and without the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.local = nn.MultiheadAttention(8, 2, batch_first=True)
        self.wide = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        causal = torch.ones(x.size(1), x.size(1), dtype=torch.bool).triu(1)
        x = x + self.local(x, x, x, attn_mask=causal, need_weights=False)[0]
        h = self.norm(x)
        out, weight = self.wide(h, h, h, key_padding_mask=padding, average_attn_weights=False)
        return x + out, weight


@case(lambda: given(torch.randn(4, 2, 8), torch.randn(6, 2, 5)))
class CrossAttention(nn.Module):
    """Sequence first, with keys of another width."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, kdim=5, vdim=5)

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:
        out, _ = self.attend(query, memory, memory)
        return query + out


@case(lambda: given(torch.randint(20, (2, 5)), padding_mask()))
class EncoderStack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True)
        self.embed = nn.Embedding(20, 16)
        self.place = nn.Parameter(torch.randn(1, 5, 16) * 0.02)
        self.body = nn.TransformerEncoder(layer, 2, nn.LayerNorm(16), enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, ids: Tensor, padding: Tensor) -> Tensor:
        h = self.embed(ids) + self.place[:, : ids.size(1)]
        return self.head(self.body(h, src_key_padding_mask=padding)[:, 0])


@case(lambda: given(torch.randn(2, 4, 16), torch.randn(2, 6, 16)))
class DecoderStack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(16, 4, 32, batch_first=True, activation="gelu")
        self.body = nn.TransformerDecoder(layer, 2)
        self.head = nn.Linear(16, 3)

    def forward(self, target: Tensor, memory: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.size(1))
        return self.head(self.body(target, memory, tgt_mask=mask, tgt_is_causal=True))


@case(lambda: given(torch.randn(2, 6, 16), torch.randn(2, 4, 16)))
class WholeTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Transformer(16, 2, 1, 1, 32, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.head(self.body(source, target))


@case(lambda: given(torch.randn(2, 5), torch.randn(2, 7)))
class BilinearPair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Bilinear(5, 7, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(a, b)))


@case(lambda: given(torch.randn(2, 8), torch.randn(3, 8)))
class Similarities(nn.Module):
    """Cosine, distances and an outer product of two sets."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(8, 6)
        self.head = nn.Linear(3, 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = torch.tanh(self.encode(a)), torch.tanh(self.encode(b))
        cosine = F.cosine_similarity(a.unsqueeze(1), b.unsqueeze(0), dim=-1)
        distance = torch.cdist(a, b).square()
        return self.head(torch.stack([cosine, torch.exp(-distance), a @ b.t()], -1))


@case(lambda: given(torch.randn(2, 6, 8), torch.tensor([[0, 1, 1, 2, 0, 2], [2, 2, 1, 0, 1, 0]])))
class ScatterGather(nn.Module):
    """Pools tokens into groups and hands the pools back to the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor, group: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        index = group.unsqueeze(-1).expand_as(h)
        pools = h.new_zeros(x.size(0), 3, 8).scatter_add(1, index, h)
        peaks = h.new_zeros(x.size(0), 3, 8).scatter_reduce(1, index, h, "amax")
        return self.head(torch.cat([pools.gather(1, index), peaks.gather(1, index)], -1))


@case(rows(2, 10, 8))
class TopkSortPool(nn.Module):
    """Ranks tokens by a learnt score and weighs the best of them by it."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(8, 1)
        self.head = mlp(16, 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        score = self.score(x).squeeze(-1)
        best, index = score.topk(3, dim=1)
        chosen = torch.take_along_dim(x, index.unsqueeze(-1), dim=1)
        weighed = (chosen * best.sigmoid().unsqueeze(-1)).mean(1)
        spread = x.sort(dim=1, descending=True).values[:, 0]
        return self.head(torch.cat([weighed, spread], -1))


@case(lambda: given(torch.rand(2, 6) * 10, torch.randint(4, (2, 6))))
class DiscreteFeatures(nn.Module):
    """Buckets, one-hot codes and running sums."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("edges", torch.linspace(1, 9, 7))
        self.bucket = nn.Embedding(8, 8)
        self.kind = nn.Linear(4, 8, bias=False)
        self.head = mlp(8, 16, 2)

    def forward(self, value: Tensor, kind: Tensor) -> Tensor:
        h = self.bucket(torch.bucketize(value, self.edges))
        h = h + self.kind(F.one_hot(kind, 4).float())
        steps = torch.arange(1, h.size(1) + 1).view(-1, 1)
        return self.head(h.cumsum(1) / steps)


@case(rows(2, 8, 13, 11))
class PoolsAndNorms(nn.Module):
    """Adaptive pooling over odd sizes and one of each norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(8, 8, 3, bias=False)
        self.instance = nn.InstanceNorm2d(8, affine=True)
        self.conv2 = nn.Conv2d(8, 8, 3, bias=False)
        self.group = nn.GroupNorm(4, 8)
        self.pool = nn.AdaptiveAvgPool2d((3, None))
        self.layer = nn.LayerNorm([8, 3, 7])
        self.rms = nn.RMSNorm(21)
        self.head = nn.Linear(21, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.instance(self.conv1(x)))
        h = F.relu(self.group(self.conv2(h)))
        h = F.relu(self.layer(self.pool(h))).flatten(2)
        return self.head(F.gelu(self.rms(h)).amax(1))


@case(lambda: given(torch.randn(2, 3, 8, 8), torch.rand(2, 5, 5, 2) * 2 - 1))
class GridSampling(nn.Module):
    """Samples features at given places and at places it computes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.locate = nn.Linear(6, 6)
        self.head = nn.Conv2d(12, 2, 1)
        nn.init.zeros_(self.locate.weight)
        with torch.no_grad():
            self.locate.bias.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0]))

    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        h = F.relu(self.conv(x))
        theta = self.locate(h.mean((2, 3))).view(-1, 2, 3)
        own = F.affine_grid(theta, [len(x), 6, 5, 5], align_corners=False)
        sampled = [F.grid_sample(h, places, align_corners=False) for places in (grid, own)]
        return self.head(torch.cat(sampled, 1))


@case(rows(2, 6, 6))
class LinearAlgebra(nn.Module):
    """Works on a covariance with decompositions and a solve."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.head = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        covariance = h @ h.mT + 0.5 * torch.eye(6)
        factor = torch.linalg.cholesky(covariance)
        solved = torch.linalg.solve(covariance, h.mean(-1, keepdim=True)).squeeze(-1)
        return self.head(torch.cat([factor.diagonal(dim1=-2, dim2=-1).log(), solved], -1))


@case(rows(2, 8))
class RunsOnNumpy(nn.Module):
    """Prepares its input with numpy, outside of autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(8, 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        ranks = x.detach().cpu().numpy().argsort(-1).argsort(-1)
        return self.net(x + 0.1 * torch.as_tensor(ranks, dtype=x.dtype))


@case(lambda: given([torch.randn(3, 9, 7), torch.randn(3, 6, 10)]))
class ImagesOfManySizes(nn.Module):
    """Pads a list of images into one batch with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, 2)

    def forward(self, images: list[Tensor]) -> Tensor:
        height = max(image.shape[1] for image in images)
        width = max(image.shape[2] for image in images)
        batch = images[0].new_zeros(len(images), 3, height, width)
        mask = torch.zeros(len(images), 1, height, width)
        for i, image in enumerate(images):
            batch[i, :, : image.shape[1], : image.shape[2]].copy_(image)
            mask[i, :, : image.shape[1], : image.shape[2]] = 1
        h = F.relu(self.conv(batch)) * mask
        return self.head(h.sum((2, 3)) / mask.sum((2, 3)))


@case(rows(2, 6, 8))
class KeyValueCache(nn.Module):
    """Decodes step by step over a growing list of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        keys: list[Tensor] = []
        values: list[Tensor] = []
        outputs = []
        for step in range(x.size(1)):
            q, k, v = self.qkv(x[:, step : step + 1]).chunk(3, -1)
            keys.append(k)
            values.append(v)
            mixed = F.scaled_dot_product_attention(q, torch.cat(keys, 1), torch.cat(values, 1))
            outputs.append(self.out(mixed))
        return torch.cat(outputs, 1)


@case(lambda: given(torch.randn(2, 8), torch.tensor([3, 15])))
class AdaptiveSoftmax(nn.Module):
    """Ends in the softmax that needs targets to run."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
        self.out = nn.AdaptiveLogSoftmaxWithLoss(16, 20, [10])

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return self.out(self.body(x), target).loss


class ScaledTensor(Tensor):
    """A subclass of Tensor that carries nothing of its own."""


@case(lambda: given(torch.randn(2, 8).as_subclass(ScaledTensor)))
class TensorSubclass(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(8, 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).as_subclass(Tensor)


@case(rows(2, 8))
class OperatorsAndBuiltins(nn.Module):
    """Leans on operators, python builtins and in-place powers of temporaries."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.mix = nn.Parameter(torch.ones(3) / 3)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        outs = [abs(layer(x)) ** 0.5 for layer in self.layers]
        h = sum(weight * out for weight, out in zip(self.mix, outs, strict=True))
        return self.head(-h + 1 - (x / 2) % 1)
