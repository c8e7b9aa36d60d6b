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


def test_batch_statistics_of_layers_in_a_list_do_not_hide_what_mixes() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = [nn.Linear(8, 8), nn.BatchNorm1d(8)]  # `eval()` does not reach these
            self.rnn, self.head = nn.GRU(8, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.hidden:
                x = layer(x)
            return self.head(self.rnn(x.unsqueeze(1))[0][:, 0])

    model = Net()
    mixing = measured(model, torch.randn(6, 8)).mixing
    assert mixing is not None
    assert mixing.mixer is not None
    assert mixing.mixer.name == "gru"
    assert model.hidden[1].training


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


def test_numbers_that_move_to_other_samples_are_found_without_anything_mixed() -> None:
    def rolled(self: Any, x: Tensor) -> Tensor:
        return torch.roll(plain(self, x), 1)

    def turned(self: Any, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        return plain(self, x).transpose(0, 1).reshape(batch, length, -1)

    for forward, shape, name in ((rolled, (4, 8), "roll"), (turned, (4, 5, 8), "reshape")):
        mixing = measured(net(forward, 8, 16, 4), torch.randn(shape)).mixing
        assert mixing is not None
        assert mixing.mixer is None
        assert mixing.spot is not None
        assert mixing.spot.name == name


def test_windows_of_a_sample_and_time_first_layers_keep_the_samples_apart() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        windows = self[0](x.reshape(batch * length // 2, 2, width))  # samples fold into axis 0
        steps = windows.reshape(batch, length, -1).transpose(0, 1).reshape(length * batch, -1)
        joined = torch.relu(steps).reshape(length, batch, -1).transpose(0, 1)
        return self[1](joined.softmax(0))

    mixing = measured(net(forward, 8, 16, 4), torch.randn(4, 6, 8)).mixing
    assert mixing is not None
    assert mixing.spot is not None
    assert mixing.spot.name == "softmax"


def test_classes_that_choose_rows_of_a_table_are_samples_beside_features() -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(9, 4), nn.Linear(8, 2)

        def forward(self, item: Tensor, x: Tensor) -> Tensor:
            torn = self.table(item).view(4, -1).t()
            return self.head(torch.cat([torn, x], 1))

    mixing = measured(Rows(), torch.randint(0, 9, (5,)), torch.randn(5, 4)).mixing
    assert mixing is not None
    assert mixing.spot is not None
    assert mixing.spot.name == "reshape"


def test_random_numbers_drawn_for_some_values_alone_are_no_mixing() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self[1](F.rrelu(self[0](x), training=True))

    assert measured(net(forward, 8, 16, 4), torch.randn(4, 8)).mixing is None

    def mixed(self: Any, x: Tensor) -> Tensor:
        return self[1](F.rrelu(self[0](x), training=True).softmax(0))

    assert measured(net(mixed, 8, 16, 4), torch.randn(4, 8)).mixing is not None


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


class LanguageWithLoss(nn.Module):
    """A recurrent model that returns its loss alone, with the targets in one of several ways."""

    def __init__(self, targets: str, *, looks_ahead: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(30, 16), nn.Linear(16, 30)
        self.rnn = nn.GRU(16, 16, batch_first=True)
        self.targets, self.looks_ahead = targets, looks_ahead

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        if self.looks_ahead:
            x = x + x.mean(1, keepdim=True)
        logits = self.head(self.rnn(x)[0])
        if self.targets == "flat":
            return F.cross_entropy(logits[:, :-1].reshape(-1, 30), ids[:, 1:].reshape(-1))
        if self.targets == "classes second":
            return F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:])
        if self.targets == "time first":
            return F.cross_entropy(
                logits[:, :-1].transpose(0, 1).flatten(0, 1), ids[:, 1:].t().flatten()
            )
        if self.targets == "left out":
            labels = F.pad(ids[:, 1:], (0, 1), value=-100)
            return F.nll_loss(logits.flatten(0, 1).log_softmax(-1), labels.flatten())
        return F.cross_entropy(logits.flatten(0, 1), ids.flatten())


@pytest.mark.parametrize("targets", ["flat", "classes second", "time first", "left out"])
def test_the_next_token_as_target_is_a_claim(targets: str) -> None:
    ids = torch.randint(0, 30, (2, 12))
    assert measured(LanguageWithLoss(targets, looks_ahead=False), ids).leak is None
    leak = measured(LanguageWithLoss(targets, looks_ahead=True), ids).leak
    assert leak is not None
    assert leak.is_target
    assert leak.shift is not None
    assert leak.shift > 1e-3
    assert leak.spot is not None
    assert leak.spot.name == "mean"  # and not the addition that hands it out


@pytest.mark.parametrize("looks_ahead", [False, True])
def test_the_next_values_as_target_are_a_claim(looks_ahead: bool) -> None:
    class Series(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(5, 8, batch_first=True, bidirectional=looks_ahead)
            self.head = nn.Linear(16 if looks_ahead else 8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return F.mse_loss(self.head(self.rnn(x)[0])[:, :-1], x[:, 1:, :2])

    leak = measured(Series(), torch.randn(4, 10, 5)).leak
    assert (leak is not None) == looks_ahead
    if leak is not None:
        assert leak.is_target
        assert leak.spot is not None
        assert leak.spot.name == "lstm"


def test_a_text_that_is_restored_claims_nothing() -> None:
    ids = torch.randint(0, 30, (2, 12))
    assert measured(LanguageWithLoss("itself", looks_ahead=True), ids).leak is None


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


def scaled_down(self: Any, x: Tensor) -> Tensor:
    for layer in list(self)[:-1]:
        x = torch.relu(layer(x))
    return self[-1](x)


def test_where_differences_die_at_once() -> None:
    def dead(self: Any, x: Tensor) -> Tensor:
        return self[1](torch.relu(self[0](x) - 50))

    def saturated_gate(self: Any, x: Tensor) -> Tensor:
        h = self[0](x)
        return self[1](h * (h - 300).sigmoid())  # zeros times live values

    def shape_alone(self: Any, x: Tensor) -> Tensor:
        return self[1](torch.zeros_like(self[0](x)) + 1)

    def zeros_as_factor(self: Any, x: Tensor) -> Tensor:
        h = self[0](x)
        return self[1](h * torch.relu(torch.zeros_like(h)))

    def mean_of_all(self: Any, x: Tensor) -> Tensor:
        h = torch.relu(self[0](x))
        return self[1](h.mean(0, keepdim=True).expand_as(h))

    cases = (
        (dead, "relu"),
        (saturated_gate, "sigmoid"),
        (shape_alone, "zeros_like"),
        (zeros_as_factor, "zeros_like"),
        (mean_of_all, "mean"),
    )
    for forward, name in cases:
        constant = measured(net(forward, 8, 16, 4), torch.randn(4, 8)).constant
        assert constant is not None
        assert constant.alike is not None
        assert constant.alike.spot.name == name
        assert constant.reacts == (name == "mean")


def test_where_differences_die_away_the_steepest_layer_is_named() -> None:
    model = net(scaled_down, 8, 16, 16, 16, 16, 4)
    for number in range(5):
        nn.init.normal_(
            model.get_parameter(f"{number}.weight"), std=0.0005 if number == 2 else 0.01
        )
    constant = measured(model, torch.randn(4, 8)).constant
    assert constant is not None
    assert constant.alike is not None
    assert constant.alike.spot.label == "2"
    assert constant.alike.after > 0


def test_an_input_that_leads_nowhere_is_to_blame_though_no_other_has_an_effect() -> None:
    def forward(self: Any, one: Tensor, two: Tensor) -> Tensor:
        del one
        h = self[0](two)
        return self[1](h - h.clone())

    found = measured(net(forward, 8, 16, 4), torch.randn(4, 8), torch.randn(4, 8))
    assert [unused.input for unused in found.unused] == ["input_0"]


def test_a_table_of_zeros_and_ones_may_be_without_effect_but_a_mask_may_as_well() -> None:
    class Graphs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(5, 3)

        def forward(self, x: Tensor, adjacency: Tensor, mask: Tensor) -> Tensor:
            del mask
            return self.fc(torch.zeros_like(adjacency) @ x + x)

    edges = (torch.rand(4, 6, 6) > 0.5).float()
    found = measured(Graphs(), torch.randn(4, 6, 5), edges, torch.ones(4, 6))
    assert [unused.input for unused in found.unused] == ["input_1"]


def test_positions_and_features_of_a_sequence() -> None:
    class Recurrent(nn.Module):
        def __init__(self, place: int) -> None:
            super().__init__()
            self.rnn, self.head = nn.GRU(6, 8, batch_first=True), nn.Linear(8, 2)
            self.place = place

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x * (torch.arange(6) > 0))[0][:, self.place])

    def parts(place: int) -> list[tuple[int | None, int, int]]:
        found = measured(Recurrent(place), torch.randn(4, 9, 6)).unused
        return [(u.axis, len(u.features), len(u.positions)) for u in found]

    assert parts(-1) == [(2, 1, 0)]
    assert parts(0) == [(1, 0, 8), (2, 1, 0)]
    assert parts(-3) == [(2, 1, 0)]  # two of nine: a window may leave them out


def test_points_below_the_maximum_are_not_without_effect() -> None:
    class Points(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lift, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lift(x).amax(1))

    assert measured(Points(), torch.randn(4, 30, 3)).unused == ()


def test_asking_in_train_mode_leaves_no_trace_in_what_is_asked_next() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(6, 2)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            del y
            return self.head(self.norm(x[:, :1].expand_as(x)))

    found = measured(Net(), torch.randn(4, 6), torch.randn(4, 3)).unused
    assert {(u.input, u.features) for u in found} == {("input_0", (1, 2, 3, 4, 5)), ("input_1", ())}


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
