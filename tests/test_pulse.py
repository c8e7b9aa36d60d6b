"""The pulse: its figures are those of the real run, and the model is as before."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainlint.capture.batches import with_batch
from trainlint.capture.inputs import Inputs
from trainlint.capture.tracer import capture, single_node_functions
from trainlint.engine import FactUnavailable
from trainlint.graph import Graph
from trainlint.measure import pulse as pulse_module
from trainlint.measure.pulse import RECORDED, pulse, work_of
from trainlint.measure.signal import Signal, SiteSignal, decades


def measured(model: nn.Module, *args: Any, is_given: bool = True, **options: Any) -> Signal:
    inputs = Inputs(args, {}, "test", given=is_given)
    return pulse(model, inputs, graph_of(model, *args), **options)


def graph_of(model: nn.Module, *args: Any) -> Graph:
    recording = capture(model, args)
    assert recording.exception is None
    return Graph(recording.graph, recording.model, faults=recording.faults)


def site(signal: Signal, name: str, number: int = 0) -> SiteSignal:
    found = [s for node, s in signal.sites.items() if node.meta["operation"].name == name]
    return found[number]


# ---------------------------------------------------------------------- figures


def test_figures_are_those_of_the_real_run() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    x = torch.randn(8, 5)
    signal = measured(model, x, objective=lambda output: output.square().mean())
    hidden = model[0](x)
    hidden.retain_grad()
    active = model[1](hidden)
    output = model[2](active)
    output.square().mean().backward()
    assert hidden.grad is not None
    first, relu = site(signal, "linear"), site(signal, "relu")
    assert (signal.batch, signal.objective, signal.given) == (8, "loss", True)
    assert signal.value == pytest.approx(output.square().mean().item())
    assert first.mean == pytest.approx(hidden.mean().item(), abs=1e-6)
    assert first.std == pytest.approx(hidden.std(correction=0).item(), rel=1e-5)
    assert first.rms == pytest.approx(hidden.square().mean().sqrt().item(), rel=1e-5)
    assert first.spread == pytest.approx(hidden.std(0, correction=0).square().mean().sqrt().item())
    assert first.gradient == pytest.approx(float(hidden.grad.norm()), rel=1e-5)
    assert relu.zero == pytest.approx(float((active == 0).float().mean()))
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert signal.gradients[name] == pytest.approx(float(parameter.grad.norm()), rel=1e-5)


def test_saturation_is_the_share_of_inputs_in_the_flat_part() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return (
                torch.sigmoid(x * self.gain)
                + torch.tanh(x * self.gain)
                + nn.functional.relu(x * self.gain)
            )

    x = torch.tensor([[-5.0, -3.0, 0.0, 3.0, 5.0]]).repeat(2, 1)
    signal = measured(Net(), x)
    assert site(signal, "sigmoid").saturated == pytest.approx(0.4)
    assert site(signal, "tanh").saturated == pytest.approx(0.8)
    assert site(signal, "relu").saturated is None


def test_large_results_are_sampled_and_gradients_are_whole() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Tanh(), nn.Conv2d(32, 8, 3))
    signal = measured(model, torch.randn(4, 3, 48, 48))
    real = model[1](model[0](torch.randn(4, 3, 48, 48)))
    assert site(signal, "tanh").std == pytest.approx(float(real.std()), rel=0.1)
    assert site(signal, "conv2d", 1).gradient == pytest.approx((4 * 8 * 44 * 44) ** 0.5, rel=0.1)


def test_every_operation_of_a_shared_and_a_functional_layer_has_its_own_figures() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            for scale in (1.0, 10.0, 100.0):
                x = nn.functional.relu_(self.layer(x) * scale)
            return x.sum(1)

    model = Net()
    graph = graph_of(model, torch.randn(4, 6))
    signal = pulse(model, Inputs((torch.randn(4, 6),), {}, "", given=True), graph)
    sizes = [signal.sites[node].rms for node in graph.calls("relu")]
    assert len(sizes) == 3
    assert sizes[0] * 3 < sizes[1] < sizes[2] / 3
    assert all(signal.sites[node].gradient is not None for node in graph.calls("linear"))


def test_a_parameter_without_gradient_is_none_and_not_zero() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cut, self.dead = nn.Linear(3, 3), nn.Linear(3, 3)
            self.live, self.frozen = nn.Linear(3, 3), nn.Linear(3, 3).requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            x = self.frozen(self.cut(x).detach())
            self.dead(x)
            return self.live(x)

    gradients = measured(Net(), torch.randn(4, 3)).gradients
    assert gradients["cut.weight"] is None
    assert gradients["dead.weight"] is None
    assert "frozen.weight" not in gradients
    assert (gradients["live.weight"] or 0) > 0


def test_a_model_that_returns_its_loss_is_measured_by_it() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            y = self.layer(x)
            return {"logits": y, "loss": y.square().mean() + 7}

    signal = measured(Net(), torch.randn(4, 3))
    assert signal.objective == "loss"
    assert signal.value > 7


def test_tuples_dicts_caches_and_scalars_are_outputs() -> None:
    class Net(nn.Module):
        def __init__(self, what: str) -> None:
            super().__init__()
            self.layer, self.what = nn.Linear(3, 3), what

        def forward(self, x: Tensor) -> Any:
            y = self.layer(x)
            return {"tuple": (y, None, [y + 1]), "dict": {"out": y}, "scalar": y.mean()}[self.what]

    for what, objective in (("tuple", "projection"), ("dict", "projection"), ("scalar", "loss")):
        assert measured(Net(what), torch.randn(4, 3)).objective == objective


def test_a_recurrent_and_an_attention_layer_have_sites() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(4, 8, batch_first=True)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x, _ = self.rnn(x)
            return self.attention(x, x, x)[0]

    model = Net()
    graph = graph_of(model, torch.randn(2, 5, 4))
    signal = pulse(model, Inputs((torch.randn(2, 5, 4),), {}, "", given=False), graph)
    wanted = [n for n in graph.calls_in_order if graph.name(n) in RECORDED and graph.is_floating(n)]
    assert wanted
    assert set(signal.sites) == set(wanted)
    assert (site(signal, "lstm").gradient or 0) > 0


def test_an_autograd_function_is_one_operation() -> None:
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return nn.functional.relu(x) * 2

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
            return gradient * 2

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Any:
            return nn.functional.relu(Twice.apply(self.layer(x)))

    with single_node_functions():
        model = Net()
        signal = measured(model, torch.randn(4, 3))
    assert (site(signal, "autograd_function").gradient or 0) > 0
    assert site(signal, "relu").gradient is not None


def test_decades() -> None:
    assert decades(1e-3, 1.0) == pytest.approx(-3)
    assert decades(0.0, 1.0) is None
    assert decades(1.0, None) is None


def test_a_reentrant_checkpoint_is_measured_and_gradients_stay() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Any:
            x = self.first(x)
            return checkpoint(self.last, x, use_reentrant=True)

    model = Net()
    model.first(torch.randn(2, 3)).sum().backward()
    gradient = model.first.weight.grad
    assert gradient is not None
    before = gradient.clone()
    with single_node_functions():
        signal = measured(model, torch.randn(4, 3))
    assert all(value for value in signal.gradients.values())
    assert model.first.weight.grad is gradient
    assert torch.equal(gradient, before)
    assert model.last.weight.grad is None


# ---------------------------------------------------------------------- the batch


def test_made_up_samples_become_sixteen_and_given_ones_stay() -> None:
    model = nn.Linear(3, 2)
    assert measured(model, torch.randn(2, 3), is_given=False).batch == 16
    assert measured(model, torch.randn(5, 3)).batch == 5
    assert measured(model, torch.randn(40, 3)).batch == 16


def test_a_model_that_insists_on_its_batch_gets_it() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(x)
            return out.view(2, 2)

    assert measured(Net(), torch.randn(2, 3), is_given=False).batch == 2


def test_more_samples_are_drawn_from_the_same_distribution() -> None:
    images = torch.randn(2, 3, 8, 8) * 5 + 20
    ids = torch.randint(3, 9, (2, 12))
    mask = torch.ones(2, 12, dtype=torch.bool)
    lengths = torch.tensor([12, 7])
    made = with_batch(Inputs((images, ids, mask, lengths), {}, "", given=False), 16).args
    assert [tuple(value.shape) for value in made] == [(16, 3, 8, 8), (16, 12), (16, 12), (16,)]
    assert float(made[0].mean()) == pytest.approx(20, abs=1)
    assert float(made[0].std()) == pytest.approx(5, rel=0.1)
    assert len({float(row.sum()) for row in made[0]}) == 16
    assert set(made[1].unique().tolist()) <= set(range(3, 9))
    assert set(made[3].tolist()) == {12, 7}


def test_work_counts_multiplications_and_additions() -> None:
    assert work_of(graph_of(nn.Linear(10, 7), torch.randn(4, 10))) == 2 * 4 * 10 * 7
    conv = nn.Conv2d(8, 6, 3, groups=2)
    assert work_of(graph_of(conv, torch.randn(2, 8, 5, 5))) == 2 * (2 * 6 * 3 * 3) * (4 * 9)


# ---------------------------------------------------------------------- refusals


def test_what_cannot_be_measured_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        hollow = nn.Linear(3, 3)
    with pytest.raises(FactUnavailable, match="no values"):
        measured(hollow, torch.randn(4, 3))
    with pytest.raises(FactUnavailable, match=r"no trainable parameter|none of its outputs"):
        measured(nn.Linear(3, 3).requires_grad_(False), torch.randn(4, 3))

    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            if float(x.detach().sum()) != 1e9:
                raise ValueError("not these values")
            out: Tensor = self.layer(x)
            return out

    inputs = Inputs((torch.randn(4, 3),), {}, "", given=True)
    graph = graph_of(nn.Linear(3, 3), torch.randn(4, 3))
    with pytest.raises(
        FactUnavailable, match=r"raised ValueError: not these values at .*test_pulse"
    ):
        pulse(Picky(), inputs, graph)
    monkeypatch.setattr(pulse_module, "available_memory", lambda: 100)
    with pytest.raises(FactUnavailable, match="GiB are free"):
        measured(nn.Linear(3, 3), torch.randn(4, 3))


def test_a_pass_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse_module, "_MOST_SECONDS", -1.0)
    with pytest.raises(FactUnavailable, match="takes more than"):
        measured(nn.Linear(3, 3), torch.randn(4, 3))
    monkeypatch.setattr(pulse_module, "_MOST_WORK", 1.0)
    with pytest.raises(FactUnavailable, match="too many here"):
        measured(nn.Linear(3, 3), torch.randn(4, 3))


# ---------------------------------------------------------------------- NaN and infinity


class Chain(nn.Module):
    """A linear layer, then the operations to try."""

    def __init__(self, *steps: Any) -> None:
        super().__init__()
        self.layer, self.steps = nn.Linear(4, 4), steps

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        for step in self.steps:
            x = step(x)
        return x


def origin(*steps: Any) -> tuple[str, str, bool] | None:
    torch.manual_seed(0)
    found = measured(Chain(*steps), torch.randn(8, 4)).non_finite
    return (
        None if found is None else (found.node.meta["operation"].name, found.value, found.backward)
    )


def test_the_first_operation_that_made_it_is_named() -> None:
    assert origin(torch.log, torch.exp, torch.relu) == ("log", "nan", False)
    assert origin(lambda x: x * 1e30, torch.exp, torch.sin) == ("exp", "inf", False)
    assert origin(lambda x: x * 100, torch.exp, lambda x: x + 1) == ("exp", "inf", False)
    assert origin(lambda x: x - x, lambda x: x / x.sum(), torch.relu) == ("div", "nan", False)


def test_an_infinity_is_blamed_for_the_nan_that_is_made_of_it() -> None:
    assert origin(torch.relu, torch.log, nn.Linear(4, 4)) == ("log", "inf", False)
    assert origin(lambda x: x.abs() / torch.relu(x), nn.LayerNorm(4)) == ("div", "inf", False)
    # Here the infinity is a mask, and another operation makes the NaN.
    mask = torch.tensor([1.0, 1.0, 0.0, 0.0])
    steps = (lambda x: x + mask.log(), lambda x: x.softmax(-1), lambda x: (x - 2).sqrt())
    assert origin(*steps) == ("sqrt", "nan", False)


def test_a_gradient_that_is_not_finite_is_blamed_on_the_operation_whose_backward_made_it() -> None:
    assert origin(lambda x: x - x, torch.sqrt, lambda x: x * 2) == ("sqrt", "inf", True)
    # The classic: the branch that `where` does not take still passes its gradient, 0 times infinity.
    branches = origin(lambda x: torch.where(x > 0, x, (x - x).sqrt()), torch.tanh)
    assert branches == ("sqrt", "nan", True)


def test_masks_of_minus_infinity_are_no_fault() -> None:
    mask = torch.tensor([False, False, True, True])
    steps = (lambda x: x.masked_fill(mask, float("-inf")), lambda x: x.softmax(-1))
    assert origin(*steps) is None


# ---------------------------------------------------------------------- nothing is left behind


class Untidy(nn.Module):
    """Writes to nearly everything that a forward can write to."""

    def __init__(self, width: int, norm: bool, drop: float) -> None:
        super().__init__()
        self.first = nn.utils.parametrizations.spectral_norm(nn.Linear(4, width))
        self.norm = nn.BatchNorm1d(width) if norm else nn.Identity()
        self.drop = nn.Dropout(drop)
        self.last = nn.Linear(width, 2)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("average", torch.zeros(width))
        self.seen: list[int] = []
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.norm(self.first(x)))
        self.steps += 1
        self.average.mul_(0.9).add_(x.detach().mean(0))
        self.seen.append(len(x))
        self.cache["x"] = x
        self.last.weight.data.mul_(1.01)
        random.random()
        return self.last(x) + torch.randn(1)


def fingerprint(model: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {"rng": torch.get_rng_state(), "random": random.getstate()}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        grad = None if tensor.grad is None else tensor.grad.clone()
        found[name] = (id(tensor), tensor.data_ptr(), tensor.detach().clone(), grad)
    for name, module in model.named_modules():
        found[f"{name}()"] = (module.training, copy.copy(vars(module)), len(module._forward_hooks))
    if isinstance(model, Untidy):
        found["own"] = (list(model.seen), dict(model.cache))
    return found


def assert_same(left: Any, right: Any) -> None:
    if isinstance(left, Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert list(left) == list(right)
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, (tuple, list)):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    elif isinstance(left, nn.Module):
        assert left is right
    else:
        assert left == right


@given(
    st.integers(1, 40), st.booleans(), st.sampled_from([0.0, 0.5]), st.booleans(), st.booleans(),
    st.integers(2, 9),
)  # fmt: skip
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_pulse_leaves_nothing_behind(
    width: int, norm: bool, drop: float, training: bool, has_grad: bool, batch: int
) -> None:
    model = Untidy(width, norm, drop).train(training)
    x = torch.randn(batch, 4)
    if has_grad:
        model.last(torch.randn(3, width)).sum().backward()
    graph = graph_of(model, x)
    before, given_values = fingerprint(model), x.clone()
    pulse(model, Inputs((x,), {}, "", given=True), graph)
    assert_same(before, fingerprint(model))
    assert torch.equal(x, given_values)


def test_nothing_is_left_behind_by_a_pass_that_fails() -> None:
    class Late(Untidy):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            raise RuntimeError("too late")

    model = Late(6, True, 0.5)
    inputs = Inputs((torch.randn(4, 4),), {}, "", given=True)
    graph = graph_of(Untidy(6, True, 0.5), torch.randn(4, 4))
    before = fingerprint(model)
    with pytest.raises(FactUnavailable):
        pulse(model, inputs, graph)
    assert_same(before, fingerprint(model))


def test_the_seed_decides_the_draw() -> None:
    model, x = Untidy(6, True, 0.5), torch.randn(8, 4)
    first = measured(model, x)
    torch.randn(5)
    assert measured(model, x).value == first.value
    assert measured(model, x, seed=1).value != first.value
