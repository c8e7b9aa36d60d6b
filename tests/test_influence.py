"""Influence: what is measured is what a direct experiment shows, and the model is as before."""

from __future__ import annotations

import copy
import itertools
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from trainlint.capture.inputs import Inputs
from trainlint.capture.tracer import capture, single_node_functions
from trainlint.engine import FactUnavailable
from trainlint.graph import Graph
from trainlint.measure.influence import Influence
from trainlint.measure.perturbation import influence
from trainlint.sites import recording


def measured(model: nn.Module, *args: Any, is_given: bool = True) -> Influence:
    recorded = capture(model, args)
    assert recorded.exception is None
    graph = Graph(recorded.graph, recorded.model, faults=recorded.faults)
    return influence(model, Inputs(args, {}, "test", given=is_given), graph)


def net(forward: Any, *widths: int) -> nn.Module:
    """A model of linear layers `self[0]`, `self[1]`, ... with this forward."""

    class Net(nn.ModuleList):
        def forward(self, *args: Tensor) -> Any:
            return forward(self, *args)

    torch.manual_seed(0)
    pairs = itertools.pairwise(widths)
    with recording(), single_node_functions():
        return Net([nn.Linear(*pair) for pair in pairs])


def plain(self: Any, x: Tensor) -> Tensor:
    return self[1](torch.relu(self[0](x)))


# ---------------------------------------------------------------------- sound models


@pytest.mark.parametrize("is_given", [True, False])
@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_a_sound_model_shows_nothing(batch: int, is_given: bool) -> None:
    found = measured(net(plain, 8, 16, 4), torch.randn(batch, 8), is_given=is_given)
    assert found == Influence(batch=found.batch, given=is_given)


def test_the_model_and_the_random_states_are_as_before() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(4, 6)
    states = torch.get_rng_state().clone(), random.getstate()
    measured(model, x)
    assert model.training
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


def test_models_without_values_are_refused() -> None:
    with torch.device("meta"):
        model = nn.Linear(4, 2)
    with pytest.raises(FactUnavailable, match="meta"):
        measured(model, torch.randn(2, 4))


# ---------------------------------------------------------------------- samples that mix


def over_samples(self: Any, x: Tensor) -> Tensor:
    return self[1](F.softmax(self[0](x), dim=0))


def batch_scale(self: Any, x: Tensor) -> Tensor:
    return plain(self, x / x.std().item())


def mean_under_no_grad(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        center = x.mean(0)
    return plain(self, x - center)


@pytest.mark.parametrize(
    ("forward", "operation", "by_gradient"),
    [
        (over_samples, "softmax", True),
        (batch_scale, "div", False),
        (mean_under_no_grad, "mean", False),
    ],
)
def test_what_mixes_is_named(forward: Any, operation: str, by_gradient: bool) -> None:
    mixing = measured(net(forward, 8, 16, 4), torch.randn(4, 8)).mixing
    assert mixing is not None
    assert mixing.shift > 1e-3
    assert mixing.gradient is not None
    assert (mixing.gradient > 1e-6) == by_gradient
    assert mixing.spot is not None
    assert mixing.spot.name == operation
    assert not mixing.is_lost


def test_the_reshape_that_loses_the_samples_is_named_and_not_what_mixes_later() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        torn = x.reshape(length, batch, width)
        return self[1](torch.relu(self[0](torn))).mean(0)

    mixing = measured(net(forward, 8, 16, 4), torch.randn(2, 5, 8)).mixing
    assert mixing is not None
    assert mixing.is_lost
    assert mixing.spot is not None
    assert mixing.mixer is not None
    assert (mixing.spot.name, mixing.mixer.name) == ("reshape", "mean")


def test_a_recurrence_over_the_samples_is_seen_though_the_first_sample_is_safe() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(8, 8)
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0][:, -1])

    mixing = measured(Net(), torch.randn(4, 6, 8)).mixing
    assert mixing is not None
    assert mixing.reaches_axis_1
    assert mixing.spot is not None
    assert mixing.spot.name == "gru"


def test_time_first_models_hold_independent_samples_on_axis_1() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(8, 8)
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0])

    mixing = measured(Net(), torch.randn(6, 4, 8)).mixing
    assert mixing is not None
    assert not mixing.reaches_axis_1


def test_outputs_for_the_whole_batch_and_states_that_drift_prove_nothing() -> None:
    def pooled(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.relu(self[0](x))
        weights = torch.softmax(h.sum(1), 0)
        return weights, self[1](weights @ h)

    assert measured(net(pooled, 8, 16, 4), torch.randn(4, 8)).mixing is None

    class Drifting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 4)
            self.register_buffer("seen", torch.zeros(8))

        def forward(self, x: Tensor) -> Tensor:
            self.seen += x.detach().mean(0)
            return self.fc(x + self.seen)

    assert measured(Drifting(), torch.randn(4, 8)).mixing is None


# ---------------------------------------------------------------------- later positions


class Language(nn.Module):
    """Attention blocks, each with a mask or without."""

    def __init__(self, *causal: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 16)
        self.layers = nn.ModuleList([nn.Linear(16, 48) for _ in causal])
        self.head = nn.Linear(16, 30)
        self.causal = causal

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer, causal in zip(self.layers, self.causal, strict=True):
            q, k, v = layer(x).chunk(3, -1)
            scores = q @ k.transpose(1, 2) / 4
            if causal:
                future = torch.ones(ids.shape[1], ids.shape[1]).triu(1).bool()
                scores = scores.masked_fill(future, float("-inf"))
            x = x + scores.softmax(-1) @ v
        return self.head(x)


def test_a_causal_model_does_not_leak_and_an_open_block_is_found() -> None:
    ids = torch.randint(0, 30, (2, 12))
    assert measured(Language(True, True), ids).leak is None
    leak = measured(Language(True, False, True), ids).leak
    assert leak is not None
    assert leak.shift is not None
    assert leak.shift > 1e-5
    assert (len(leak.causal), len(leak.open)) == (2, 1)
    assert leak.spot is not None
    assert leak.spot.name == "softmax"


def test_an_encoder_leaks_without_a_claim() -> None:
    leak = measured(Language(False, False), torch.randint(0, 30, (2, 12))).leak
    assert leak is not None
    assert leak.causal == ()
    assert leak.shift is None  # nobody needs it, so it costs nothing


# ---------------------------------------------------------------------- inputs, constants, randomness


def test_inputs_and_columns_without_effect() -> None:
    def forward(self: Any, x: Tensor, t: Tensor) -> Tensor:
        del t
        return plain(self, x[:, :8])

    unused = measured(net(forward, 8, 16, 4), torch.randn(4, 10), torch.randn(4, 3)).unused
    assert [(u.input, u.features) for u in unused] == [("input_0", (8, 9)), ("input_1", ())]


def test_a_gate_of_zero_hides_an_input_only_until_the_first_step() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.side = nn.Linear(8, 4), nn.Linear(3, 4)
            self.gate = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.body(x) + self.gate * self.side(t)

    assert measured(Gated(), torch.randn(4, 8), torch.randn(4, 3)).unused == ()


def test_constant_outputs_but_not_those_of_zero_weights() -> None:
    model = net(plain, 8, 16, 4)
    nn.init.constant_(model.get_parameter("0.bias"), -50.0)
    found = measured(model, torch.randn(4, 8))
    assert found.constant is not None
    assert found.unused == ()  # no input is to blame
    model = net(plain, 8, 16, 4)
    nn.init.zeros_(model.get_parameter("1.weight"))
    assert measured(model, torch.randn(4, 8)).constant is None


def dropout_by_function(self: Any, x: Tensor) -> Tensor:
    return self[1](F.dropout(self[0](x), 0.5))


def mask_by_hand(self: Any, x: Tensor) -> Tensor:
    h = self[0](x)
    return self[1](h * (torch.rand_like(h) < 0.7) / 0.7)


def sampled_latent(self: Any, x: Tensor) -> Tensor:
    h = self[0](x)
    return self[1](h + torch.randn_like(h) * h.exp())


def spikes(self: Any, x: Tensor) -> Tensor:
    p = torch.sigmoid(self[0](x))
    return self[1]((torch.rand_like(p) < p).float())


@pytest.mark.parametrize(
    ("forward", "kind"),
    [
        (dropout_by_function, "dropout"),
        (mask_by_hand, "mask"),
        (sampled_latent, "noise"),
        (spikes, "noise"),
    ],
)
def test_what_is_random_in_eval_mode_and_what_for(forward: Any, kind: str) -> None:
    randomness = measured(net(forward, 8, 16, 4), torch.randn(4, 8)).randomness
    assert randomness is not None
    assert [draw.kind for draw in randomness.draws] == [kind]


def test_numbers_drawn_for_nothing_are_no_randomness() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        torch.rand(3)
        return plain(self, x)

    assert measured(net(forward, 8, 16, 4), torch.randn(4, 8)).randomness is None
