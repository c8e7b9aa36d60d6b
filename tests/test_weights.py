"""A layer is what applies a weight, whoever owns it: its series have gradients, updates and values."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

import trainlint
from trainlint.observe.series import series_of
from trainlint.observe.weights import Weights, opened
from trainlint.records import ModelSeries


class Conv1D(nn.Module):
    """A linear layer as GPT-2 has them, its weight the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8) / 4)
        self.bias = nn.Parameter(torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, 8), self.weight)
        return flat.view(x.shape)


class Odd(nn.Module):
    """Ids to two classes, hardly anything by a layer of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.places = nn.Parameter(torch.randn(1, 6, 8) / 4)
        self.conv1d = Conv1D()
        self.by_hand = nn.Parameter(torch.randn(8, 8) / 4)
        self.summed = nn.Parameter(torch.randn(8, 8) / 4)
        self.masked = nn.Linear(8, 8)
        self.register_buffer("mask", (torch.rand(8, 8) > 0.3).float())
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.other = nn.MultiheadAttention(8, 2, batch_first=True)
        self.normed = parametrizations.weight_norm(nn.Linear(8, 8))
        self.spectral = parametrizations.spectral_norm(nn.Linear(8, 8))
        self.head = nn.Linear(8, 2)
        self.memory = nn.LSTM(8, 8, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids) + self.places[:, : ids.shape[1]]
        x = functional.relu(self.conv1d(x))
        x = x @ self.by_hand.t() + torch.einsum("btc,dc->btd", x, self.summed)
        x = functional.linear(x, self.masked.weight * self.mask, self.masked.bias)
        x = x + self.attention(x, x, x)[0]
        x = x + self.other(x, x.flip(1), x.flip(1), need_weights=False)[0]
        x, _ = self.memory(self.spectral(torch.tanh(self.normed(x))))
        scores: Tensor = self.head(x.mean(1))
        return scores


def trained(*, is_watched: bool) -> tuple[list[float], ModelSeries | None]:
    """Losses of six steps; and the series, where they are watched."""
    torch.manual_seed(0)
    model = Odd()
    optimizer = torch.optim.Adam(model.parameters())
    ids, classes = torch.randint(0, 20, (16, 6)), torch.randint(0, 2, (16,))
    losses = []
    watching = trainlint.watch(model, every=1, stages=("probe",))
    with watching if is_watched else nullcontext():
        for _ in range(6):
            loss = functional.cross_entropy(model(ids), classes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    series = series_of(watching.trace)
    return losses, None if series is None else series.models[-1]


OWNERS = (
    "table", "places", "conv1d", "by_hand", "summed", "masked", "attention.in_proj",
    "attention.out_proj", "other.in_proj", "other.out_proj", "normed", "spectral", "head",
)  # fmt: skip


def test_whatever_owns_a_weight_has_its_gradient_its_updates_and_its_values() -> None:
    _, series = trained(is_watched=True)
    assert series is not None
    layers = {layer.name: layer for layer in series.layers}
    assert len(layers) == len(series.layers)
    for name in OWNERS:
        assert layers[name].gradient, name
        assert layers[name].update, name
    assert layers["memory.lstm"].gradient
    shown = {each.layer or each.name for each in series.activations if each.histograms}
    assert shown == {*OWNERS, "memory.lstm"}


def test_watching_what_attention_is_made_of_changes_nothing() -> None:
    bare, _ = trained(is_watched=False)
    watched, _ = trained(is_watched=True)
    assert watched == bare


def test_an_opened_function_computes_the_same() -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2)
    x = torch.randn(4, 3, 8)
    expected, _ = layer(x, x, x)
    found, _ = opened(functional.multi_head_attention_forward)(
        x, x, x, 8, 2, layer.in_proj_weight, layer.in_proj_bias, None, None, False, 0.0,
        layer.out_proj.weight, layer.out_proj.bias,
    )  # fmt: skip
    assert torch.equal(found, expected)


@pytest.mark.parametrize("value", ["masked", "scaled", "cut"])
def test_what_is_made_of_a_weight_alone_is_a_weight_and_no_activation(value: str) -> None:
    weight, x = nn.Parameter(torch.randn(4, 4)), torch.randn(4, 4)
    mask, gain = torch.ones(4, 4), torch.tensor(2.0, requires_grad=True)
    known = Weights()
    known.begin({id(weight): "fc.weight"})
    func, args = {
        "masked": (torch.mul, (weight, mask)),
        "scaled": (torch.mul, (weight, gain)),
        "cut": (Tensor.chunk, (weight, 2)),
    }[value]
    made = func(*args)  # type: ignore[operator]
    assert known.applied(func, args, {}, made) is None
    made = made[0] if isinstance(made, tuple) else made
    assert (
        known.applied(torch.matmul, (x, made.t()), {}, x @ made.t()) is None
    )  # unseen: the transpose
    known.applied(Tensor.t, (made,), {}, turned := made.t())
    assert known.applied(torch.matmul, (x, turned), {}, x @ turned) == "fc.weight"
    assert known.applied(torch.cat, ([x, made],), {}, torch.cat([x, made])) is None


def test_each_model_of_a_gan_has_its_gradients_and_its_graph() -> None:
    torch.manual_seed(0)
    # Of one class: they are told apart by their sizes.
    generator = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    critic = nn.Sequential(nn.Linear(2, 8), nn.Sigmoid(), nn.Linear(8, 8), nn.Linear(8, 1))
    of_generator = torch.optim.Adam(generator.parameters())
    of_critic = torch.optim.Adam(critic.parameters())
    norms: list[float] = []
    with trainlint.watch(every=1, graphs=True) as watching:
        for _ in range(5):
            made = generator(torch.randn(16, 4))
            made.register_hook(lambda gradient: norms.append(float(gradient.norm())))
            told_apart = critic(made.detach()).mean() - critic(torch.randn(16, 2)).mean()
            of_critic.zero_grad()
            told_apart.backward()
            of_critic.step()
            of_generator.zero_grad()
            (-critic(made).mean()).backward()
            of_generator.step()
    result = watching.report().targets[0]
    assert result.series is not None
    first, second = result.series.models
    points = first.layers[-1].gradients
    assert [float(value) for _, value in points] == pytest.approx(norms[: len(points)], rel=1e-3)
    assert len(points) >= 4  # the last step's comes behind the last that was seen to end
    assert all(layer.gradient for layer in (*first.layers, *second.layers))
    assert [len(graph.nodes) for graph in result.graphs] == [4, 5]
    assert [graph.nodes[-1].gradient for graph in result.graphs] == [
        model.layers[-1].gradient for model in (first, second)
    ]
