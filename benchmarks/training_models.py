"""Architectures as people write them, small, for the runs of the calibration.

`ARCHITECTURES` holds them by name. `build(data)` gives a new model for a `Data`; what it draws comes from
torch's global generator.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrizations

from benchmarks.training_data import Data

Build = Callable[[Data], nn.Module]


@dataclass(frozen=True)
class Architecture:
    """`kinds` of data and `tasks` that it is for, and Adam's rate that suits it.

    `method` is how it is trained (`training_runs.METHODS`). `stable` tells that SGD trains it, too.
    """

    name: str
    kinds: tuple[str, ...]
    tasks: tuple[str, ...]
    build: Build
    rate: float
    method: str
    stable: bool


ARCHITECTURES: dict[str, Architecture] = {}
ALL = ("classes", "binary", "regression")


def architecture(
    *kinds: str,
    tasks: tuple[str, ...] = ALL,
    rate: float = 3e-3,
    method: str = "supervised",
    stable: bool = True,
) -> Callable[[Build], Build]:
    def add(build: Build) -> Build:
        name = build.__name__
        ARCHITECTURES[name] = Architecture(name, kinds, tasks, build, rate, method, stable)
        return build

    return add


def _plain(
    data: Data, width: int, depth: int, activation: Callable[[], nn.Module], *, norm: Any = None,
    dropout: float = 0.0, init: Callable[[Tensor], Any] | None = None, size: int | None = None,
) -> nn.Sequential:  # fmt: skip
    layers: list[nn.Module] = []
    inputs = size or data.size
    for _ in range(depth):
        linear = nn.Linear(inputs, width)
        if init is not None:
            init(linear.weight)
            nn.init.zeros_(linear.bias)
        layers.append(linear)
        if norm is not None:
            layers.append(norm(width))
        layers.append(activation())
        if dropout:
            layers.append(nn.Dropout(dropout))
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, data.outputs))


# ---------------------------------------------------------------------- vectors


@architecture("vector")
def mlp(data: Data) -> nn.Module:
    return _plain(data, 64, 2, nn.ReLU)


@architecture("vector")
def wide_mlp(data: Data) -> nn.Module:
    return _plain(data, 256, 1, nn.ReLU)


@architecture("vector", rate=1e-2)
def linear(data: Data) -> nn.Module:
    return nn.Linear(data.size, data.outputs)


@architecture("vector")
def tanh_mlp(data: Data) -> nn.Module:
    return _plain(data, 48, 2, nn.Tanh, init=nn.init.xavier_normal_)


@architecture("vector", rate=1e-2)
def sigmoid_mlp(data: Data) -> nn.Module:
    return _plain(data, 32, 1, nn.Sigmoid)


@architecture("vector")
def leaky_mlp(data: Data) -> nn.Module:
    return _plain(data, 64, 3, lambda: nn.LeakyReLU(0.1))


@architecture("vector")
def batchnorm_mlp(data: Data) -> nn.Module:
    return _plain(data, 64, 3, nn.ReLU, norm=nn.BatchNorm1d)


@architecture("vector")
def deep_batchnorm_mlp(data: Data) -> nn.Module:
    return _plain(data, 32, 5, nn.ReLU, norm=nn.BatchNorm1d)


@architecture("vector")
def layernorm_mlp(data: Data) -> nn.Module:
    return _plain(data, 64, 3, nn.GELU, norm=nn.LayerNorm)


@architecture("vector")
def dropout_mlp(data: Data) -> nn.Module:
    return _plain(data, 128, 2, nn.ReLU, dropout=0.5)


@architecture("vector", rate=1e-3)
def deep_he_mlp(data: Data) -> nn.Module:
    return _plain(
        data, 64, 8, nn.ReLU, init=lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu")
    )


@architecture("vector", rate=1e-3)
def selu_mlp(data: Data) -> nn.Module:
    return _plain(
        data, 48, 6, nn.SELU, init=lambda w: nn.init.kaiming_normal_(w, nonlinearity="linear")
    )


class Residual(nn.Module):
    """x + gate · f(x), with the gate as the caller likes."""

    def __init__(self, inner: nn.Module, gate: Tensor | None = None) -> None:
        super().__init__()
        self.inner = inner
        self.gate = None if gate is None else nn.Parameter(gate)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return x + (y if self.gate is None else self.gate * y)


def _block(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
    )


@architecture("vector")
def residual_mlp(data: Data) -> nn.Module:
    blocks = [Residual(_block(48)) for _ in range(4)]
    return nn.Sequential(
        nn.Linear(data.size, 48), *blocks, nn.LayerNorm(48), nn.Linear(48, data.outputs)
    )


@architecture("vector")
def rezero_mlp(data: Data) -> nn.Module:
    blocks = [
        Residual(nn.Sequential(nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 48)), torch.zeros(()))
        for _ in range(4)
    ]
    return nn.Sequential(nn.Linear(data.size, 48), *blocks, nn.Linear(48, data.outputs))


@architecture("vector")
def layerscale_mlp(data: Data) -> nn.Module:
    blocks = [Residual(_block(48), torch.full((48,), 1e-4)) for _ in range(4)]
    return nn.Sequential(
        nn.Linear(data.size, 48), *blocks, nn.LayerNorm(48), nn.Linear(48, data.outputs)
    )


class Highway(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.new = nn.Linear(width, width)
        self.gate = nn.Linear(width, width)
        nn.init.constant_(self.gate.bias, -3.0)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(x))
        return gate * torch.relu(self.new(x)) + (1 - gate) * x


@architecture("vector")
def highway(data: Data) -> nn.Module:
    return nn.Sequential(
        nn.Linear(data.size, 48), *[Highway(48) for _ in range(4)], nn.Linear(48, data.outputs)
    )


@architecture("vector")
def weight_norm(data: Data) -> nn.Module:
    model = _plain(data, 64, 3, nn.ReLU)
    for layer in model:
        if isinstance(layer, nn.Linear):
            parametrizations.weight_norm(layer)
    return model


@architecture("vector")
def spectral_norm(data: Data) -> nn.Module:
    model = _plain(data, 64, 2, nn.ReLU)
    for layer in model[:-1]:
        if isinstance(layer, nn.Linear):
            parametrizations.spectral_norm(layer)
    return model


class Experts(nn.Module):
    """Each sample goes to the best two of six experts."""

    def __init__(self, width: int, experts: int = 6) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, width))
            for _ in range(experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        chances, chosen = torch.softmax(self.router(x), -1).topk(2, -1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows, place = (chosen == number).nonzero(as_tuple=True)
            if len(rows):
                out = out.index_add(0, rows, chances[rows, place, None] * expert(x[rows]))
        return x + out


@architecture("vector")
def mixture_of_experts(data: Data) -> nn.Module:
    return nn.Sequential(
        nn.Linear(data.size, 32), nn.ReLU(), Experts(32), nn.Linear(32, data.outputs)
    )


class Sine(nn.Module):
    def __init__(self, inputs: int, outputs: int, omega: float, *, first: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.omega = omega
        bound = 1 / inputs if first else math.sqrt(6 / inputs) / omega
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.omega * self.linear(x))


@architecture("vector", tasks=("regression", "binary"), rate=1e-3, stable=False)
def siren(data: Data) -> nn.Module:
    return nn.Sequential(
        Sine(data.size, 48, 8.0, first=True), Sine(48, 48, 8.0), nn.Linear(48, data.outputs)
    )


class Fourier(nn.Module):
    """Random features that are not trained, behind them a small net."""

    frequencies: Tensor

    def __init__(self, data: Data) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(data.size, 32))
        self.body = _plain(data, 48, 2, nn.ReLU, size=64)

    def forward(self, x: Tensor) -> Tensor:
        angle = x @ self.frequencies
        return self.body(torch.cat([angle.sin(), angle.cos()], -1))


@architecture("vector")
def fourier_features(data: Data) -> nn.Module:
    return Fourier(data)


class GatedUnits(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.both = nn.Linear(inputs, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        return F.glu(self.both(x), -1)


@architecture("vector")
def gated_mlp(data: Data) -> nn.Module:
    return nn.Sequential(GatedUnits(data.size, 48), GatedUnits(48, 48), nn.Linear(48, data.outputs))


class WideAndDeep(nn.Module):
    def __init__(self, data: Data) -> None:
        super().__init__()
        self.wide = nn.Linear(data.size, data.outputs)
        self.deep = _plain(data, 48, 2, nn.ReLU)

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(x) + self.deep(x)


@architecture("vector")
def wide_and_deep(data: Data) -> nn.Module:
    return WideAndDeep(data)


class Adaptive(nn.Module):
    """A block that a condition scales and shifts, from zero on (adaLN-zero)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.condition = nn.Linear(width, 3 * width)
        nn.init.zeros_(self.condition.weight)
        nn.init.zeros_(self.condition.bias)
        self.inner = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift, gate = self.condition(F.silu(condition)).chunk(3, -1)
        return x + gate * self.inner(self.norm(x) * (1 + scale) + shift)


class AdaptiveNet(nn.Module):
    def __init__(self, data: Data) -> None:
        super().__init__()
        self.embed, self.condition = nn.Linear(data.size, 48), nn.Linear(data.size, 48)
        self.blocks = nn.ModuleList(Adaptive(48) for _ in range(3))
        self.head = nn.Linear(48, data.outputs)

    def forward(self, x: Tensor) -> Tensor:
        condition, h = self.condition(x), self.embed(x)
        for block in self.blocks:
            h = block(h, condition)
        return self.head(h)


@architecture("vector")
def adaptive_norm_zero(data: Data) -> nn.Module:
    return AdaptiveNet(data)


def _pretrained(data: Data) -> nn.Sequential:
    """A net that has been trained on the same data for a while."""
    model = _plain(data, 64, 2, nn.ReLU)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    inputs, targets = data.training
    for step in range(60):
        part = slice(step * 64 % len(inputs), step * 64 % len(inputs) + 64)
        loss = supervised_loss(data, model(inputs[part]), targets[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.zero_grad(set_to_none=True)
    return model


def supervised_loss(data: Data, outputs: Tensor, targets: Tensor) -> Tensor:
    """The loss that a task asks for."""
    if data.task == "regression":
        return F.mse_loss(outputs, targets)
    if data.task == "binary":
        return F.binary_cross_entropy_with_logits(outputs, targets)
    if data.kind == "text":
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())
    return F.cross_entropy(outputs, targets)


@architecture("vector", rate=1e-2)
def linear_probe(data: Data) -> nn.Module:
    model = _pretrained(data)
    model[:-1].requires_grad_(False)
    model[-1].reset_parameters()
    return model


@architecture("vector", rate=1e-4, stable=False)
def fine_tuned(data: Data) -> nn.Module:
    return _pretrained(data)


class LowRank(nn.Module):
    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


@architecture("vector", rate=1e-2, stable=False)
def low_rank_adaptation(data: Data) -> nn.Module:
    model = _pretrained(data)
    for place, layer in enumerate(model):
        if isinstance(layer, nn.Linear):
            model[place] = LowRank(layer)
    return model


# ---------------------------------------------------------------------- methods on vectors


class TwoHeads(nn.Module):
    """A task and, beside it, the norm of the input."""

    def __init__(self, data: Data) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(data.size, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.main, self.side = nn.Linear(64, data.outputs), nn.Linear(64, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        return self.main(h), self.side(h)


@architecture("vector", method="multi_task")
def two_heads(data: Data) -> nn.Module:
    return TwoHeads(data)


@architecture("vector", method="distillation", tasks=("classes",))
def student(data: Data) -> nn.Module:
    return _plain(data, 32, 2, nn.ReLU)


@architecture("vector", method="mean_teacher", tasks=("classes",))
def mean_teacher(data: Data) -> nn.Module:
    return _plain(data, 64, 2, nn.ReLU, dropout=0.2)


@architecture("vector", method="autoencoding")
def autoencoder(data: Data) -> nn.Module:
    code = max(2, data.size // 3)
    return nn.Sequential(
        nn.Linear(data.size, 48), nn.ReLU(), nn.Linear(48, code), nn.Linear(code, 48), nn.ReLU(),
        nn.Linear(48, data.size),
    )  # fmt: skip


@architecture("vector", method="autoencoding")
def sparse_autoencoder(data: Data) -> nn.Module:
    return nn.Sequential(nn.Linear(data.size, 96), nn.ReLU(), nn.Linear(96, data.size))


class Variational(nn.Module):
    def __init__(self, data: Data, code: int = 4) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(data.size, 48), nn.ReLU(), nn.Linear(48, 2 * code))
        self.decoder = nn.Sequential(nn.Linear(code, 48), nn.ReLU(), nn.Linear(48, data.size))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, logvar = self.encoder(x).chunk(2, -1)
        code = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
        return self.decoder(code), mean, logvar


@architecture("vector", method="variational")
def variational_autoencoder(data: Data) -> nn.Module:
    return Variational(data)


@architecture("vector", method="denoising", rate=2e-3)
def diffusion(data: Data) -> nn.Module:
    return _plain(data, 96, 3, nn.SiLU, size=data.size + 1).append(
        nn.Linear(data.outputs, data.size)
    )


@architecture("vector", method="contrastive", tasks=("classes",))
def contrastive(data: Data) -> nn.Module:
    return nn.Sequential(nn.Linear(data.size, 64), nn.ReLU(), nn.Linear(64, 32))


@architecture("vector", method="triplet", tasks=("classes",))
def siamese(data: Data) -> nn.Module:
    return nn.Sequential(nn.Linear(data.size, 64), nn.ReLU(), nn.Linear(64, 16))


@architecture("vector", method="physics", tasks=("regression",), rate=2e-3, stable=False)
def physics_informed(_: Data) -> nn.Module:
    return nn.Sequential(
        nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)
    )


@architecture("vector", method="quantile", tasks=("regression",))
def quantiles(data: Data) -> nn.Module:
    return _plain(data, 64, 2, nn.ReLU)


@architecture("vector", method="bayesian", tasks=("classes", "binary"))
def bayes_by_backprop(data: Data) -> nn.Module:
    class Noisy(nn.Linear):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__(inputs, outputs)
            self.rho = nn.Parameter(torch.full_like(self.weight, -4.0))

        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight + F.softplus(self.rho) * torch.randn_like(self.weight)
            return F.linear(x, weight, self.bias)

    return nn.Sequential(Noisy(data.size, 48), nn.ReLU(), Noisy(48, data.outputs))


class Adversaries(nn.Module):
    """A generator and its discriminator, each with an optimizer of its own."""

    def __init__(self, data: Data) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, data.size))
        self.discriminator = nn.Sequential(
            nn.Linear(data.size, 48), nn.LeakyReLU(0.2), nn.Linear(48, 1)
        )


@architecture("vector", method="adversarial", rate=1e-3, stable=False)
def generative_adversarial(data: Data) -> nn.Module:
    return Adversaries(data)


class ActorCritic(nn.Module):
    def __init__(self, actions: int, size: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(size, 32), nn.Tanh(), nn.Dropout(dropout))
        self.actor, self.critic = nn.Linear(32, actions), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        return self.actor(h), self.critic(h)


@architecture("vector", method="actor_critic", tasks=("classes",), stable=False)
def actor_critic(data: Data) -> nn.Module:
    return ActorCritic(data.outputs, data.size)


@architecture("vector", method="actor_critic", tasks=("classes",), stable=False)
def actor_critic_with_dropout(data: Data) -> nn.Module:
    return ActorCritic(data.outputs, data.size, 0.1)


@architecture("vector", method="q_learning", tasks=("classes",), rate=1e-3, stable=False)
def q_learning(data: Data) -> nn.Module:
    return _plain(data, 64, 2, nn.ReLU)


# ---------------------------------------------------------------------- images


class Pooled(nn.Module):
    """A convolutional body, the mean over its positions, a linear head."""

    def __init__(self, body: nn.Module, width: int, outputs: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


@architecture("image")
def cnn(data: Data) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(data.size, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d(2), nn.Flatten(),
        nn.Linear(96, 48), nn.ReLU(), nn.Linear(48, data.outputs),
    )  # fmt: skip


class FunctionalCnn(nn.Module):
    def __init__(self, data: Data) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(data.size, 10, 3), nn.Conv2d(10, 20, 3)
        self.drop = nn.Dropout(0.25)
        self.fc1, self.fc2 = nn.Linear(80, 40), nn.Linear(40, data.outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = F.adaptive_max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(self.drop(F.relu(self.fc1(x.flatten(1)))))


@architecture("image")
def functional_cnn(data: Data) -> nn.Module:
    return FunctionalCnn(data)


def _conv_bn(inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


@architecture("image")
def batchnorm_cnn(data: Data) -> nn.Module:
    body = nn.Sequential(_conv_bn(data.size, 12), _conv_bn(12, 16, 2), _conv_bn(16, 24))
    return Pooled(body, 24, data.outputs)


class BasicBlock(nn.Module):
    def __init__(self, width: int, *, zero: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = (
            nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2)
        )
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        if zero:
            nn.init.zeros_(self.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


@architecture("image")
def resnet(data: Data) -> nn.Module:
    blocks = [BasicBlock(16, zero=False) for _ in range(2)]
    return Pooled(nn.Sequential(_conv_bn(data.size, 16, 2), *blocks), 16, data.outputs)


@architecture("image")
def resnet_zero_gamma(data: Data) -> nn.Module:
    blocks = [BasicBlock(16, zero=True) for _ in range(3)]
    return Pooled(nn.Sequential(_conv_bn(data.size, 16, 2), *blocks), 16, data.outputs)


@architecture("image")
def groupnorm_cnn(data: Data) -> nn.Module:
    body = nn.Sequential(
        nn.Conv2d(data.size, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.SiLU(),
        nn.Conv2d(16, 24, 3, 2, 1), nn.GroupNorm(4, 24), nn.SiLU(),
    )  # fmt: skip
    return Pooled(body, 24, data.outputs)


@architecture("image")
def mobile_net(data: Data) -> nn.Module:
    def separable(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            _conv_bn(inputs, inputs, groups=inputs),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU6(),
        )

    body = nn.Sequential(_conv_bn(data.size, 12, 2), separable(12, 24), separable(24, 24))
    return Pooled(body, 24, data.outputs)


class Convnext(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.down(F.gelu(self.up(h)))).permute(0, 3, 1, 2)


@architecture("image")
def convnext(data: Data) -> nn.Module:
    body = nn.Sequential(nn.Conv2d(data.size, 16, 2, 2), *[Convnext(16) for _ in range(2)])
    return Pooled(body, 16, data.outputs)


class SqueezeExcite(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, width // 4), nn.Linear(width // 4, width)

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
        return x * scale[:, :, None, None]


@architecture("image")
def squeeze_excite(data: Data) -> nn.Module:
    body = nn.Sequential(
        _conv_bn(data.size, 16, 2), SqueezeExcite(16), _conv_bn(16, 16), SqueezeExcite(16)
    )
    return Pooled(body, 16, data.outputs)


class Dense(nn.Module):
    def __init__(self, inputs: int, growth: int = 8) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


@architecture("image")
def densenet(data: Data) -> nn.Module:
    stem = nn.Conv2d(data.size, 8, 3, 2, 1, bias=False)
    return Pooled(
        nn.Sequential(stem, Dense(8), Dense(16), Dense(24), nn.BatchNorm2d(32)), 32, data.outputs
    )


class Attention(nn.Module):
    def __init__(self, width: int, heads: int = 2, *, causal: bool = False) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads, self.causal = heads, causal

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(y.transpose(1, 2).reshape(batch, length, width))


class PreNormBlock(nn.Module):
    def __init__(self, width: int, *, causal: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, causal=causal)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.attention(self.norm1(x)))
        return x + self.drop(self.mlp(self.norm2(x)))


class VisionTransformer(nn.Module):
    def __init__(self, data: Data, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(data.size, width, 2, 2)
        positions = (data.inputs.shape[-1] // 2) ** 2
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, positions + 1, width))
        self.blocks = nn.Sequential(PreNormBlock(width), PreNormBlock(width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, data.outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x)[:, 0]))


@architecture("image", rate=2e-3, stable=False)
def vision_transformer(data: Data) -> nn.Module:
    return VisionTransformer(data)


class MixerBlock(nn.Module):
    def __init__(self, positions: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.across = nn.Sequential(nn.Linear(positions, 32), nn.GELU(), nn.Linear(32, positions))
        self.within = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.within(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self, data: Data, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(data.size, width, 2, 2)
        positions = (data.inputs.shape[-1] // 2) ** 2
        self.blocks = nn.Sequential(MixerBlock(positions, width), MixerBlock(positions, width))
        self.head = nn.Linear(width, data.outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


@architecture("image", stable=False)
def mlp_mixer(data: Data) -> nn.Module:
    return Mixer(data)


@architecture("image", method="autoencoding")
def convolutional_autoencoder(data: Data) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(data.size, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 12, 3, 1, 1), nn.ReLU(),
        nn.ConvTranspose2d(12, 12, 2, 2), nn.ReLU(), nn.Conv2d(12, data.size, 3, 1, 1),
    )  # fmt: skip


class UNet(nn.Module):
    def __init__(self, data: Data, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()

        def double(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, padding=1), norm(outputs), nn.ReLU(),
                nn.Conv2d(outputs, outputs, 3, padding=1), norm(outputs), nn.ReLU(),
            )  # fmt: skip

        self.down, self.middle = double(data.size, 12), double(12, 24)
        self.up = nn.ConvTranspose2d(24, 12, 2, 2)
        self.join, self.head = double(24, 12), nn.Conv2d(12, data.outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        left = self.down(x)
        right = self.up(self.middle(F.max_pool2d(left, 2)))
        return self.head(self.join(torch.cat([left, right], 1)))


@architecture("mask")
def u_net(data: Data) -> nn.Module:
    return UNet(data, nn.BatchNorm2d)


@architecture("mask")
def u_net_without_norm(data: Data) -> nn.Module:
    return UNet(data, lambda _: nn.Identity())


# ---------------------------------------------------------------------- sequences, tokens, text


class Embedded(nn.Module):
    """What tokens, or vectors, become before the body of a sequence model."""

    def __init__(self, data: Data, width: int) -> None:
        super().__init__()
        tokens = data.kind in ("tokens", "text")
        self.layer = nn.Embedding(data.size, width) if tokens else nn.Linear(data.size, width)
        self.positions = nn.Parameter(0.02 * torch.randn(1, data.inputs.shape[1], width))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.positions


class Recurrent(nn.Module):
    def __init__(self, data: Data, kind: Any, width: int = 32, **options: Any) -> None:
        super().__init__()
        tokens = data.kind in ("tokens", "text")
        self.embed = nn.Embedding(data.size, 16) if tokens else None
        self.rnn = kind(16 if tokens else data.size, width, batch_first=True, **options)
        both = 2 if options.get("bidirectional") else 1
        self.head = nn.Linear(both * width, data.outputs)
        self.every, self.both = data.kind == "text", both == 2

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.rnn(x if self.embed is None else self.embed(x))
        # The last position has seen all forwards, and backwards only itself.
        return self.head(h if self.every else h.mean(1) if self.both else h[:, -1])


@architecture("sequence", "tokens", "text", rate=1e-2)
def lstm(data: Data) -> nn.Module:
    return Recurrent(data, nn.LSTM)


@architecture("sequence", "tokens", "text", rate=1e-2)
def gru(data: Data) -> nn.Module:
    return Recurrent(data, nn.GRU)


@architecture("sequence", "tokens", rate=5e-3)
def two_way_gru(data: Data) -> nn.Module:
    return Recurrent(data, nn.GRU, 24, bidirectional=True, num_layers=2, dropout=0.1)


@architecture("sequence", "text")
def tanh_rnn(data: Data) -> nn.Module:
    model = Recurrent(data, nn.RNN)
    nn.init.orthogonal_(model.rnn.weight_hh_l0)
    return model


class CellLoop(nn.Module):
    """An LSTM cell in a loop of one's own, with a forget bias of 1."""

    def __init__(self, data: Data, width: int = 24) -> None:
        super().__init__()
        self.gates = nn.Linear(data.size + width, 4 * width)
        nn.init.constant_(self.gates.bias[width : 2 * width], 1.0)
        self.head, self.width = nn.Linear(width, data.outputs), width

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(len(x), self.width)
        for t in range(x.shape[1]):
            i, f, o, g = self.gates(torch.cat([x[:, t], h], 1)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.head(h)


@architecture("sequence", rate=1e-2)
def lstm_by_hand(data: Data) -> nn.Module:
    return CellLoop(data)


@architecture("sequence")
def temporal_convolutions(data: Data) -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            widths = (data.size, 24, 24, 24)
            self.layers = nn.ModuleList(
                nn.Conv1d(a, b, 3, padding=2**i, dilation=2**i)
                for i, (a, b) in enumerate(pairwise(widths))
            )
            self.head = nn.Linear(24, data.outputs)

        def forward(self, x: Tensor) -> Tensor:
            x = x.transpose(1, 2)
            for place, layer in enumerate(self.layers):
                x = F.relu(layer(x)) + (x if place else 0)
            return self.head(x.mean(2))

    return Net()


class TransformerClassifier(nn.Module):
    def __init__(self, data: Data, blocks: nn.Module, width: int = 32) -> None:
        super().__init__()
        self.embed, self.blocks = Embedded(data, width), blocks
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, data.outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embed(x))).mean(1))


@architecture("sequence", "tokens", rate=2e-3, stable=False)
def pre_norm_transformer(data: Data) -> nn.Module:
    return TransformerClassifier(
        data, nn.Sequential(*[PreNormBlock(32, dropout=0.1) for _ in range(2)])
    )


@architecture("sequence", "tokens", rate=1e-3, stable=False)
def post_norm_transformer(data: Data) -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.1, batch_first=True)
    return TransformerClassifier(data, nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


class TinyGpt(nn.Module):
    def __init__(self, data: Data, *, tied: bool, width: int = 32) -> None:
        super().__init__()
        self.embed = Embedded(data, width)
        self.blocks = nn.Sequential(*[PreNormBlock(width, causal=True) for _ in range(2)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, data.outputs, bias=False)
        for layer in self.modules():
            if isinstance(layer, (nn.Linear, nn.Embedding)):
                nn.init.normal_(layer.weight, 0.0, 0.1 if tied else 0.05)
        if tied:
            self.head.weight = self.embed.layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embed(x))))


@architecture("text", stable=False)
def gpt(data: Data) -> nn.Module:
    return TinyGpt(data, tied=False)


@architecture("text", stable=False)
def gpt_tied(data: Data) -> nn.Module:
    return TinyGpt(data, tied=True)


class BagOfWords(nn.Module):
    def __init__(self, data: Data) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(data.size, 24, mode="mean")
        self.head = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, data.outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bag(x))


@architecture("tokens", rate=1e-2)
def bag_of_words(data: Data) -> nn.Module:
    return BagOfWords(data)


class TextCnn(nn.Module):
    def __init__(self, data: Data) -> None:
        super().__init__()
        self.embed = nn.Embedding(data.size, 16)
        self.convs = nn.ModuleList(nn.Conv1d(16, 16, k, padding=k // 2) for k in (1, 3, 5))
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(48, data.outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x).transpose(1, 2)
        return self.head(self.drop(torch.cat([F.relu(c(h)).amax(2) for c in self.convs], 1)))


@architecture("tokens", rate=5e-3)
def text_cnn(data: Data) -> nn.Module:
    return TextCnn(data)


class MaskedTransformer(nn.Module):
    """Attention with a key padding mask, through torch's own layer."""

    def __init__(self, data: Data) -> None:
        super().__init__()
        self.embed = Embedded(data, 32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, data.outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        length = x.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool).triu(1)
        return self.head(
            self.norm(h + self.attention(h, h, h, attn_mask=mask, need_weights=False)[0])
        )


@architecture("text", stable=False)
def one_layer_attention(data: Data) -> nn.Module:
    return MaskedTransformer(data)


# ---------------------------------------------------------------------- sets and graphs


class DeepSets(nn.Module):
    def __init__(self, data: Data) -> None:
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(data.size, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
        self.rho = nn.Sequential(nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, data.outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.rho(self.phi(x).mean(1))


@architecture("set")
def deep_sets(data: Data) -> nn.Module:
    return DeepSets(data)


class PointNet(nn.Module):
    def __init__(self, data: Data) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(data.size, 24, 1), nn.Conv1d(24, 48, 1)
        self.bn1, self.bn2 = nn.BatchNorm1d(24), nn.BatchNorm1d(48)
        self.head = nn.Linear(48, data.outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x.transpose(1, 2))))
        return self.head(F.relu(self.bn2(self.conv2(x))).amax(2))


@architecture("set")
def point_net(data: Data) -> nn.Module:
    return PointNet(data)


class GraphNet(nn.Module):
    """Features and adjacency come side by side; `attend` weighs neighbours by attention."""

    def __init__(self, data: Data, *, attend: bool) -> None:
        super().__init__()
        self.nodes = data.inputs.shape[1]
        width = data.size - self.nodes
        self.layers = nn.ModuleList([nn.Linear(width, 32), nn.Linear(32, 32)])
        self.own = nn.ModuleList([nn.Linear(width, 32), nn.Linear(32, 32)])
        self.score = nn.Linear(32, 1) if attend else None
        self.head = nn.Linear(32, data.outputs)

    def forward(self, x: Tensor) -> Tensor:
        h, edges = x[..., : -self.nodes], x[..., -self.nodes :]
        for layer, own in zip(self.layers, self.own, strict=True):
            message = layer(h)
            if self.score is None:
                weights = edges / edges.sum(-1, keepdim=True).clamp_min(1)
            else:
                scores = F.leaky_relu(self.score(message)).mT.masked_fill(edges == 0, -1e9)
                weights = torch.softmax(scores, -1)
            h = F.relu(own(h) + weights @ message)
        return self.head(h.mean(1))


@architecture("graph")
def graph_convolutions(data: Data) -> nn.Module:
    return GraphNet(data, attend=False)


@architecture("graph")
def graph_attention(data: Data) -> nn.Module:
    return GraphNet(data, attend=True)


def twin(model: nn.Module) -> nn.Module:
    """A copy that is not trained."""
    return copy.deepcopy(model).requires_grad_(False)
