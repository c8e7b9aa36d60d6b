"""Changes of a live model: each does what it says, on a copy, and nothing else."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import trainlint
from trainlint.capture.inputs import Inputs
from trainlint.capture.tracer import capture
from trainlint.errors import UsageError
from trainlint.fixes.edit import Fix
from trainlint.fixes.occurrences import occurrence
from trainlint.fixes.patch import Occurrence, Patch
from trainlint.generalization.trials import copied
from trainlint.graph import Graph
from trainlint.probe.batches import ProbeProblem
from trainlint.probe.setup import Setup
from trainlint.surgery import KINDS, Patched, PatchProblem, patched


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(4, 8)
        self.act = nn.Sigmoid()
        self.body = nn.Sequential(nn.Linear(8, 8), nn.Sigmoid(), nn.Dropout(0.5))
        self.fc2 = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.fc1(x))
        x = torch.sigmoid(self.body(x))
        return self.fc2(x)


def loader_of(*shapes: Sequence[int], classes: int = 3, size: int = 32) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(size, *shape, generator=generator) for shape in shapes]
    targets = torch.randint(0, classes, (size,), generator=generator)
    return DataLoader(TensorDataset(*inputs, targets), batch_size=8)


def change(
    model: nn.Module,
    *patches: Patch,
    loader: Any = None,
    inputs: Tensor | None = None,
    optimizer: Callable[..., Any] = torch.optim.SGD,
    seed: int = 0,
) -> Patched:
    """The patches on a copy; whatever else there is, is as it was."""
    made = optimizer(model.parameters(), lr=0.1)
    setup = Setup(nn.CrossEntropyLoss(), made, loader)
    before, options = copy.deepcopy(model.state_dict()), copy.deepcopy(made.state_dict())
    hooks = [
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    ]
    kinds = [type(module) for module in model.modules()]
    random = torch.get_rng_state()
    given = None if inputs is None else Inputs((inputs,), {}, "given", given=True)
    try:
        return patched(copied(model, setup, made), patches, inputs=given, seed=seed)
    finally:
        assert torch.equal(random, torch.get_rng_state())
        now = model.state_dict()
        assert before.keys() == now.keys()
        assert all(torch.equal(before[name], now[name]) for name in before)
        assert options == made.state_dict()
        assert kinds == [type(module) for module in model.modules()]
        assert hooks == [
            len(module._forward_hooks) + len(module._forward_pre_hooks)
            for module in model.modules()
        ]


def trained(change: Patched, data: Tensor, target: Tensor, steps: int = 1) -> list[Tensor]:
    """Losses of plain steps, within what the setup asks for."""
    subject = change.subject
    losses = []
    with subject.setup.entered():
        subject.model.train()
        for _ in range(steps):
            subject.optimizer.zero_grad()
            loss = functional.cross_entropy(subject.model(data), target)
            loss.backward()
            subject.optimizer.step()
            losses.append(loss.detach())
    return losses


DATA = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
TARGET = torch.arange(16) % 3


def test_every_kind_says_what_it_does() -> None:
    assert all(kind.does.endswith(".") for kind in KINDS.values())
    with pytest.raises(PatchProblem, match="no kind of patch is called nonsense"):
        change(Net(), Patch("nonsense"))


# ---------------------------------------------------------------------- weights


@pytest.mark.parametrize(
    ("scheme", "values", "deviation"),
    [
        ("xavier_normal", {}, math.sqrt(2 / (200 + 300))),
        ("xavier_uniform", {"nonlinearity": "tanh"}, 5 / 3 * math.sqrt(2 / 500)),
        ("xavier_normal", {"gain": 2.0}, 2 * math.sqrt(2 / 500)),
        ("kaiming_normal", {"nonlinearity": "relu"}, math.sqrt(2 / 200)),
        ("kaiming_uniform", {"nonlinearity": "linear", "mode": "fan_out"}, math.sqrt(1 / 300)),
        ("normal", {"std": 0.02}, 0.02),
        ("zeros", {}, 0.0),
    ],
)
def test_initialise_draws_by_the_scheme(
    scheme: str, values: dict[str, Any], deviation: float
) -> None:
    model = nn.Sequential(nn.Linear(200, 300), nn.Linear(300, 2))
    made = change(model, Patch.initialise(["0.weight"], scheme, bias=0.5, **values)).subject.model
    weight = made.get_parameter("0.weight")
    assert weight.std().item() == pytest.approx(deviation, rel=0.03)
    assert torch.equal(made.get_parameter("0.bias"), torch.full((300,), 0.5))
    assert torch.equal(made.get_parameter("1.weight"), model[1].weight)


def test_initialise_by_another_seed_draws_others() -> None:
    patch = Patch.initialise(["fc1.weight"], "orthogonal")
    first, again, other = (
        change(Net(), patch, seed=seed).subject.model.get_parameter("fc1.weight")
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.allclose(first.T @ first, torch.eye(4), atol=1e-5)


def test_initialise_scales_and_resets() -> None:
    model = Net()
    nn.init.zeros_(model.fc2.weight)
    made = change(
        model,
        Patch.initialise(["fc1.weight"], "scaled", factor=0.5),
        Patch.initialise(["fc2.weight"], "default"),
    ).subject.model
    assert torch.equal(made.get_parameter("fc1.weight"), model.fc1.weight / 2)
    assert made.get_parameter("fc2.weight").abs().max() > 0
    assert torch.equal(made.get_parameter("fc2.bias"), model.fc2.bias)


def test_a_recurrent_layer_is_drawn_gate_by_gate() -> None:
    model = nn.Sequential(nn.LSTM(6, 6))
    made = change(model, Patch.initialise(["0.weight_hh_l0"], "orthogonal")).subject.model
    for gate in made.get_parameter("0.weight_hh_l0").split(6):
        assert torch.allclose(gate @ gate.T, torch.eye(6), atol=1e-5)


def test_a_parametrised_weight_is_set_through_its_parametrisation() -> None:
    model = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(20, 30)), nn.Linear(30, 2)
    )
    made = change(model, Patch.initialise(["0.weight"], "normal", std=3.0)).subject.model
    assert made[0].weight.std().item() == pytest.approx(3.0, rel=0.2)  # type: ignore[index]


@pytest.mark.parametrize(
    ("patch", "problem"),
    [
        (Patch.initialise(["nowhere.weight"], "zeros"), "no module nowhere"),
        (Patch.initialise(["fc1.gamma"], "zeros"), "no parameter fc1.gamma"),
        (Patch.initialise(["fc1.weight"], "magic"), "no magic_"),
        (Patch.initialise(["fc1.bias"], "xavier_normal"), "fewer than 2 dimensions"),
        (Patch.initialise(["fc1.weight"], "normal", gain=2), "takes no gain"),
        (
            Patch.initialise(["fc1.weight"], "xavier_normal", nonlinearity="gelu"),
            "no gain is known",
        ),
        (Patch.initialise([], "zeros"), "no parameter is named"),
    ],
)
def test_what_cannot_be_drawn_is_said(patch: Patch, problem: str) -> None:
    with pytest.raises(PatchProblem, match=problem):
        change(Net(), patch)


# ---------------------------------------------------------------------- activations and calls


def test_activation_of_layers_nested_and_shared() -> None:
    model = Net()
    model.body[1] = model.act  # one layer in two places
    made = change(model, Patch.activation("leaky_relu", modules=["act"])).subject.model
    assert isinstance(made.act, nn.LeakyReLU)
    assert made.body[1] is made.act  # type: ignore[index]


class Functional(nn.Module):
    """Sigmoids in every spelling, one of them the output's."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.inner = Net()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sigmoid(layer(x))
        x = self.inner(x).sigmoid()
        x = functional.sigmoid(x)
        return functional.softmax(x, dim=0)


def occurrences(model: nn.Module, operation: str, data: Tensor) -> list[Occurrence | None]:
    recording = capture(model, (data,))
    graph = Graph(recording.graph, recording.model)
    return [occurrence(graph, node) for node in graph.calls(operation)]


def test_occurrences_are_places_in_a_modules_own_code() -> None:
    found = occurrences(Functional(), "sigmoid", DATA)
    place = Occurrence("", "sigmoid", 0)
    assert found[:3] == [place] * 3  # a loop is one place
    layers = [None, None]  # calls of the layers act and body.1
    assert found[3:5] == layers
    assert found[5:] == [
        Occurrence("inner", "sigmoid", 0),
        Occurrence("", "sigmoid", 1),
        Occurrence("", "sigmoid", 2),
    ]


def test_activation_of_calls_changes_these_alone() -> None:
    model = Functional().eval()
    calls = [Occurrence("", "sigmoid", 0), Occurrence("inner", "sigmoid", 0)]
    made = change(model, Patch.activation("relu", calls=calls), inputs=DATA).subject.model
    x = DATA
    for layer in model.layers:
        x = layer(x).relu()
    inner = model.inner
    x = inner.fc2(inner.body(inner.act(inner.fc1(x))).relu())
    assert torch.allclose(made(DATA), functional.softmax(x.sigmoid().sigmoid(), dim=0))
    # The model that was changed can be copied, and then keeps its changes.
    assert torch.equal(copy.deepcopy(made)(DATA), made(DATA))


def test_calls_are_taken_out_and_given_other_arguments() -> None:
    model = Functional().eval()
    softmax = Occurrence("", "softmax")
    without = change(model, Patch.without(calls=[softmax]), inputs=DATA).subject.model
    assert torch.allclose(functional.softmax(without(DATA), dim=0), model(DATA))
    other = change(model, Patch.arguments([softmax], dim=1), inputs=DATA).subject.model
    assert torch.allclose(other(DATA), functional.softmax(without(DATA), dim=1))


class AlwaysDropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(self.fc(x), 0.5)


def test_a_call_can_be_given_the_mode_of_its_module() -> None:
    patch = Patch.arguments([Occurrence("", "dropout")], training="self.training")
    made = change(AlwaysDropping(), patch, inputs=DATA).subject.model
    assert torch.equal(made.eval()(DATA), made(DATA))
    assert not torch.equal(made.train()(DATA), made(DATA))


def test_a_call_that_does_not_come_is_said() -> None:
    patch = Patch.activation("relu", calls=[Occurrence("", "tanh")])
    with pytest.raises(PatchProblem, match="the model makes no call of tanh number 1"):
        change(Functional(), patch, inputs=DATA)


def test_without_a_layer() -> None:
    model = Net().eval()
    made = change(model, Patch.without(modules=["act", "body.2"]), inputs=DATA).subject.model
    assert isinstance(made.act, nn.Identity)
    with pytest.raises(PatchProblem, match="the changed model raised"):
        change(model, Patch.without(modules=["fc1"]), inputs=DATA)


# ---------------------------------------------------------------------- rebuilt


def test_rebuilt_keeps_all_other_arguments() -> None:
    model = nn.Sequential(
        nn.Conv2d(
            3,
            6,
            (3, 5),
            stride=2,
            padding=1,
            groups=3,
            bias=False,
            padding_mode="reflect",
        ),
        nn.BatchNorm2d(4, eps=1e-3, momentum=None, affine=True),
    ).double()
    model[1].eval()
    data = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    made = change(model, Patch.rebuilt("1", num_features=6), inputs=data)
    norm: Any = made.subject.model[1]  # type: ignore[index]
    assert (norm.num_features, norm.eps, norm.momentum, norm.training) == (6, 1e-3, None, False)
    assert norm.weight.dtype == torch.float64
    assert made.parameters == 4
    held = {id(p) for group in made.subject.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in made.subject.model.parameters()}

    conv: Any = change(model, Patch.rebuilt("0", bias=True)).subject.model[0]  # type: ignore[index]
    assert (conv.kernel_size, conv.stride, conv.groups, conv.padding_mode) == (
        (3, 5),
        (2, 2),
        3,
        "reflect",
    )
    assert torch.equal(conv.weight, model[0].weight)
    assert conv.bias.dtype == torch.float64


@pytest.mark.parametrize(
    ("layer", "changed"),
    [
        (nn.LSTM(4, 6, num_layers=2, bidirectional=True, batch_first=True, dropout=0.1), {"input_size": 5}),
        (nn.RNN(4, 6, nonlinearity="relu"), {"hidden_size": 7}),
        (nn.GRU(4, 6, bias=False), {"batch_first": True}),
        (nn.MultiheadAttention(8, 2, bias=False, add_zero_attn=True, batch_first=True), {"num_heads": 4}),
        (nn.MultiheadAttention(8, 2), {"embed_dim": 4}),
        (nn.Embedding(10, 4, padding_idx=0), {"num_embeddings": 20}),
        (nn.LayerNorm(8, elementwise_affine=True), {"normalized_shape": 6}),
        (nn.GroupNorm(2, 8, eps=1e-3), {"num_groups": 4}),
        (nn.ConvTranspose1d(4, 2, 3, output_padding=1, stride=2), {"in_channels": 6}),
        (nn.Softmax(dim=0), {"dim": 1}),
        (nn.Dropout2d(0.1, inplace=True), {"p": 0.3}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)  # fmt: skip
def test_layers_tell_how_they_were_made(layer: nn.Module, changed: dict[str, Any]) -> None:
    model = nn.Sequential(layer, nn.Linear(2, 2))
    made: Any = change(model, Patch.rebuilt("0", **changed)).subject.model[0]  # type: ignore[index]
    name, value = next(iter(changed.items()))
    assert getattr(made, name) in (value, (value,))
    differ = {
        key
        for key, before in vars(layer).items()
        if isinstance(before, (int, float, bool, str, tuple, type(None)))
        and vars(made)[key] != before
    }
    assert differ <= {name, "head_dim", "kdim", "vdim"}
    if name == "embed_dim":
        assert (made.kdim, made.vdim) == (value, value)
    assert {n for n, _ in made.named_parameters()} == {n for n, _ in layer.named_parameters()}


def test_a_tied_weight_stays_tied() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    made: Any = change(model, Patch.rebuilt("1", bias=False)).subject.model
    assert made[1].weight is made[0].weight
    assert made[1].bias is None


def test_one_of_several_faults_can_be_repaired_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(5), nn.Linear(7, 2))
    made = change(model, Patch.rebuilt("1", num_features=6), inputs=DATA).subject
    other = patched(made, [Patch.rebuilt("2", in_features=6)]).subject.model
    assert other(DATA).shape == (16, 2)


def test_what_cannot_be_made_anew_is_said() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    with pytest.raises(PatchProblem, match="parametrised"):
        change(model, Patch.rebuilt("0", in_features=3))
    with pytest.raises(PatchProblem, match="Linear takes no width"):
        change(model, Patch.rebuilt("1", width=3))
    with pytest.raises(PatchProblem, match="the model itself is this layer"):
        change(nn.Linear(2, 2), Patch.rebuilt("", in_features=3))


# ---------------------------------------------------------------------- training


def test_learning_rates_keep_their_ratio() -> None:
    def groups(parameters: Any, lr: float) -> torch.optim.Optimizer:
        first, *rest = parameters
        return torch.optim.SGD([{"params": [first], "lr": lr}, {"params": rest, "lr": lr / 10}])

    model = Net()
    made = change(model, Patch.training("learning-rate", factor=0.5), optimizer=groups)
    assert [group["lr"] for group in made.subject.optimizer.param_groups] == [0.05, 0.005]
    made = change(model, Patch.training("learning-rate", value=1.0), optimizer=groups)
    rates = [group["lr"] for group in made.subject.optimizer.param_groups]
    assert rates == pytest.approx([1.0, 0.1])


def test_clipping_holds_in_a_step_and_ends_with_the_training() -> None:
    made = change(Net(), Patch.training("clip", max_norm=1e-3))
    model, optimizer = made.subject.model, made.subject.optimizer
    before = [p.detach().clone() for p in model.parameters()]
    trained(made, DATA, TARGET)
    moved = torch.cat([(p - b).flatten() for p, b in zip(model.parameters(), before, strict=True)])
    assert moved.norm().item() == pytest.approx(0.1 * 1e-3, rel=1e-3)
    functional.cross_entropy(model(DATA), TARGET).backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    optimizer.step()
    assert torch.nn.utils.get_total_norm(
        [p.grad for p in model.parameters() if p.grad is not None]
    ) == pytest.approx(norm)


def test_clipping_reaches_into_a_closure() -> None:
    made = change(Net(), Patch.training("clip", value=1e-4), optimizer=torch.optim.LBFGS)
    model, optimizer = made.subject.model, made.subject.optimizer

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(DATA), TARGET)
        loss.backward()
        return loss

    with made.subject.setup.entered():
        optimizer.step(closure)
    assert max(p.grad.abs().max() for p in model.parameters() if p.grad is not None) <= 1e-4


# ---------------------------------------------------------------------- normalisations and sums


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.same = nn.Conv2d(6, 6, 3, padding=1)
        self.unused = nn.Linear(2, 2)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.same(self.conv(x).relu())
        return self.fc(x.mean((2, 3)))


IMAGES = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * 3 + 1


@pytest.mark.parametrize("kind", ["batch", "layer", "group"])
def test_a_normalisation_behind_a_layer(kind: str) -> None:
    def groups(parameters: Any, lr: float) -> torch.optim.Optimizer:
        head, *rest = reversed(list(parameters))
        return torch.optim.SGD([{"params": [head], "lr": lr}, {"params": rest, "lr": lr / 10}])

    model = Convolutional()
    patch = Patch.norm(kind, after=["conv", "fc"])
    made = change(model, patch, inputs=IMAGES, optimizer=groups)
    found: list[Tensor] = []
    copied_model: Any = made.subject.model
    assert made.parameters == 2 * 6 + 2 * 3
    assert copied_model.conv.in_channels == 3  # the layer itself stays in its place
    copied_model.train()
    copied_model.conv.register_forward_hook(lambda _, __, output: found.append(output))
    output = copied_model(IMAGES)
    axes = {"batch": (0, 2, 3), "layer": (1,), "group": (2, 3)}[kind]
    if kind == "group":
        norm = copied_model.conv.norm
        assert (norm.num_groups, norm.num_channels) == (3, 6)
        found[0] = found[0].unflatten(1, (3, 2)).movedim(1, -1).flatten(1, 3)
        axes = (1,)
    assert torch.allclose(found[0].mean(axes), torch.tensor(0.0), atol=1e-5)
    assert output.shape == (5, 3)
    # Its parameters are trained at the rate of the layer's.
    group = made.subject.optimizer.param_groups[1]["params"]
    assert {id(p) for p in copied_model.conv.norm.parameters()} <= {id(p) for p in group}


def test_a_normalisation_of_features_of_sequences() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    data = torch.randn(5, 7, 4)
    made: Any = change(model, Patch.norm("batch", after=["0"]), inputs=data).subject.model
    hidden = made.train()[0](data)
    assert hidden.shape == (5, 7, 6)
    assert torch.allclose(hidden.mean((0, 1)), torch.zeros(6), atol=1e-5)


@pytest.mark.parametrize(
    ("patch", "problem"),
    [
        (Patch.norm("batch", after=["unused"]), "unused is never called"),
        (Patch.norm("spectral", after=["conv"]), "no normalisation 'spectral'"),
        (Patch.norm("group", after=["conv"], groups=4), "6 channels do not make 4 groups"),
        (Patch.residual(["conv"]), r"goes in, \(5, 3, 8, 8\), and what comes out, \(5, 6, 8, 8\)"),
        (Patch.residual([""]), "around the whole model"),
        (Patch.attribute(["conv"], p=0.5), "conv is Conv2d, which has no p"),
        (Patch.attribute(["conv"], weight=0.5), "conv.weight is no plain value"),
        (Patch.activation("magic", modules=["conv"]), "no activation magic"),
        (Patch.rebuilt("fc", in_features=9), "the changed model raised"),
        (Patch.unfreeze([]), "no parameter is named"),
    ],
)
def test_what_cannot_be_changed_is_said(patch: Patch, problem: str) -> None:
    with pytest.raises(PatchProblem, match=problem):
        change(Convolutional(), patch, inputs=IMAGES)


def test_a_layer_without_one_output_is_not_normalised() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(x)[0]

    with pytest.raises(PatchProblem, match="lstm gives a tuple, no tensor"):
        change(Recurrent(), Patch.norm("layer", after=["lstm"]), inputs=torch.randn(3, 2, 4))


def test_a_residual_connection() -> None:
    model = Convolutional().eval()
    made: Any = change(model, Patch.residual(["same"]), inputs=IMAGES).subject.model
    x = model.conv(IMAGES).relu()
    assert torch.allclose(made(IMAGES), model.fc((x + model.same(x)).mean((2, 3))), atol=1e-6)


def test_residual_connections_around_layers_with_their_activations() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Sigmoid())
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for layer in self.layers:
                x = torch.sigmoid(layer(x))
            return torch.tanh(x)

    model = Deep()
    layers = ["first.0", *(f"layers.{i}" for i in range(3))]
    patch = Patch.residual(layers, until=["first.2"], calls=[Occurrence("", "sigmoid")])
    made = change(model, patch, inputs=DATA).subject.model
    x = DATA + model.first(DATA)
    for layer in model.layers:
        x = x + layer(x).sigmoid()
    assert torch.allclose(made(DATA), x.tanh())
    assert torch.allclose(copy.deepcopy(made)(DATA), x.tanh())


# ---------------------------------------------------------------------- attributes, unfreezing


def test_attributes_of_layers() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.9))
    made: Any = change(
        model,
        Patch.attribute(["2"], p=0.1),
        Patch.attribute(["1"], eps=1e-2, track_running_stats=False, training=False),
    ).subject.model
    assert (made[2].p, made[1].eps, made[1].training) == (0.1, 1e-2, False)
    hidden = made[1](DATA)  # without running statistics, those of the batch count
    assert torch.allclose(hidden.mean(0), torch.zeros(4), atol=1e-5)
    tracking: Any = change(made, Patch.attribute(["1"], track_running_stats=True)).subject.model
    tracking[1].train()(DATA)
    assert tracking[1].running_mean.abs().max() > 0


def test_unfrozen_parameters_join_their_neighbours() -> None:
    model = Net()
    model.fc1.requires_grad_(requires_grad=False)
    made = change(
        model,
        Patch.unfreeze(["fc1.weight", "fc1.bias"]),
        optimizer=lambda parameters, lr: torch.optim.SGD(
            [p for p in parameters if p.requires_grad], lr
        ),
    )
    assert made.parameters == 4 * 8 + 8
    before = made.subject.model.get_parameter("fc1.weight").detach().clone()
    trained(made, DATA, TARGET)
    assert not torch.equal(before, made.subject.model.get_parameter("fc1.weight"))


# ---------------------------------------------------------------------- what cannot be changed


class _Wrapped(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


class DistributedDataParallel(_Wrapped):
    pass


class OptimizedModule(_Wrapped):
    pass


@pytest.mark.parametrize(
    ("wrap", "problem"),
    [
        (DistributedDataParallel, "the model is wrapped in DistributedDataParallel"),
        (OptimizedModule, "the model is compiled"),
        (lambda net: nn.Sequential(OptimizedModule(net)), "0 is compiled"),
        (lambda net: torch.jit.trace(net.eval(), DATA), "the model is scripted"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_wrapped_model_is_refused(wrap: Callable[[nn.Module], Any], problem: str) -> None:
    wrapped = wrap(Net())
    path = "0.module.act" if isinstance(wrapped, nn.Sequential) else "module.act"
    with pytest.raises(PatchProblem, match=problem):
        change(wrapped, Patch.activation("relu", modules=[path]))


def test_a_lazy_layer_has_no_shape_to_draw() -> None:
    model = nn.Sequential(nn.LazyLinear(4))
    with pytest.raises(PatchProblem, match="no shape before the first forward"):
        patched(copied(model, Setup(), None), [Patch.initialise(["0.weight"], "zeros")])


def test_lazy_layers_beside_others_stay_lazy() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.Sigmoid())
    fix = Fix("relu", patches=[Patch.activation("relu", modules=["2"])])
    made: Any = trainlint.patched(model, fix, DATA)
    assert made[0].has_uninitialized_params()
    assert made(DATA).min() == 0
    assert model[0].has_uninitialized_params()


def test_modules_in_plain_lists_are_changed_as_well() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.act = nn.Sigmoid()
            self.steps = [self.fc, (self.act, {"again": self.act})]

        def forward(self, x: Tensor) -> Tensor:
            fc, (act, others) = self.steps  # type: ignore[misc]
            return others["again"](act(fc(x)))

    made: Any = change(
        Listed(), Patch.activation("relu", modules=["act"]), inputs=DATA
    ).subject.model
    assert torch.equal(made(DATA), made.fc(DATA).relu())


# ---------------------------------------------------------------------- trainlint.patched


def test_patched_gives_a_repaired_copy() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(4))
    fix = Fix("num_features=6", patches=[Patch.rebuilt("1", num_features=6)])
    repaired: Any = trainlint.patched(model, fix, IMAGES)
    assert repaired(IMAGES).shape == (5, 6, 6, 6)
    assert model[1].num_features == 4
    with pytest.raises(UsageError, match="one of a finding's fixes, not Sequential and str"):
        trainlint.patched(model, "num_features=6")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"'clip' changes the training \(clip\)"):
        trainlint.patched(model, Fix("clip", patches=[Patch.training("clip", max_norm=1.0)]))
    with pytest.raises(UsageError, match="'by hand' is not made on a live model: why"):
        trainlint.patched(model, Fix("by hand", obstacle="why"))
    with pytest.raises(UsageError, match="cannot be made on this model: the model has no module 7"):
        trainlint.patched(model, Fix("x", patches=[Patch.without(modules=["7"])]))


def test_a_copied_optimizer_steps_itself_also_with_a_scheduler() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    subject = copied(model, Setup(), optimizer)
    before = copy.deepcopy(model.state_dict())
    for each in (model, subject.model):
        functional.cross_entropy(each(DATA), TARGET).backward()
    subject.optimizer.step()
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    assert not torch.equal(before["fc2.bias"], subject.model.get_parameter("fc2.bias"))


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = 1.0 * x
        functional.relu(x, True)
        x.tanh_()
        functional.elu(x, inplace=True)
        return x


def test_calls_that_write_in_place_go_on_writing() -> None:
    calls = [Occurrence("", operation) for operation in ("relu", "tanh", "elu")]
    patch = Patch.activation("sigmoid", calls=calls)
    made = patched(copied(InPlace(), Setup(), None), [patch]).subject.model
    assert torch.allclose(made(DATA), DATA.sigmoid().sigmoid().sigmoid())


def test_places_keep_the_order_of_the_mode_in_which_they_were_counted() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                x = self.fc(x).sigmoid()
            return x.sigmoid()

    patch = Patch.activation("relu", calls=[Occurrence("", "sigmoid", 0)])
    made = change(Auxiliary(), patch, inputs=DATA).subject.model
    assert torch.equal(made.eval()(DATA), DATA.sigmoid())
    assert torch.equal(made.train()(DATA), made.get_submodule("fc")(DATA).relu().sigmoid())


def test_a_single_sample_is_enough_to_see_that_the_changed_model_runs() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(5), nn.Sigmoid())
    patches = [Patch.rebuilt("1", num_features=6), Patch.activation("relu", modules=["2"])]
    made = change(model, *patches, inputs=DATA[:1]).subject.model
    assert made.training
    assert made(DATA).shape == (16, 6)


def test_what_was_taken_out_may_have_had_several_arguments() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = self.Inner()

        class Inner(nn.Module):
            def forward(self, x: Tensor, mask: Tensor) -> Tensor:
                return x * mask

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x, mask=torch.zeros_like(x))

    made = patched(copied(Masked(), Setup(), None), [Patch.without(modules=["inner"])])
    assert torch.equal(made.subject.model(DATA), DATA)


def test_a_checkpoint_runs_changed_calls_again() -> None:
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Net()

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = checkpoint(self.inner, x, use_reentrant=False)
            return result

    torch.manual_seed(0)
    model = Checkpointed().eval()
    patch = Patch.activation("relu", calls=[Occurrence("inner", "sigmoid")])
    made: Any = change(model, patch, inputs=DATA).subject.model
    made(DATA).sum().backward()
    inner = model.inner
    inner.fc2(inner.body(inner.act(inner.fc1(DATA))).relu()).sum().backward()
    assert torch.allclose(made.inner.fc1.weight.grad, inner.fc1.weight.grad)


# ---------------------------------------------------------------------- more behind, more of one


def test_an_activation_comes_behind_a_layer() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    made = change(model, Patch.activation_behind(["0"], "relu"), inputs=DATA).subject.model
    with torch.no_grad():
        wanted = made[1](functional.relu(functional.linear(DATA, made[0].weight, made[0].bias)))
    assert torch.equal(made(DATA), wanted)
    assert [name for name, _ in made.named_parameters()] == [n for n, _ in model.named_parameters()]
    with pytest.raises(PatchProblem, match="no activation nonsense"):
        change(model, Patch.activation_behind(["0"], "nonsense"), inputs=DATA)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.a(x))
        return self.b(self.norm(100 * h + 50))


def test_each_call_of_a_layer_has_a_copy_of_its_own() -> None:
    change_made = change(Shared(), Patch.separate("norm", 2), inputs=DATA)
    made = change_made.subject.model
    first, second = made.norm.parts
    assert change_made.parameters == 16
    before = second.weight.detach().clone()
    losses = trained(change_made, DATA, TARGET, 30)
    assert losses[-1] < losses[0]
    assert not torch.equal(second.weight, before)
    # Each has the statistics of its own stream: far apart, they were a mixture.
    assert second.running_mean.mean() > 30
    assert first.running_mean.abs().max() < 5
    assert made.norm.num_features == 8
    with pytest.raises(PatchProblem, match="need no copies"):
        change(Shared(), Patch.separate("norm", 1), inputs=DATA)


class Unrecorded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.scale, self.b = nn.Linear(4, 8), nn.Parameter(torch.ones(8)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = torch.mul(self.a(x), self.scale)
        return self.b(h)


def test_what_runs_under_no_grad_is_recorded() -> None:
    patch = Patch.with_gradients(modules=["a"], calls=[Occurrence("", "mul")])
    made = change(Unrecorded(), patch, inputs=DATA).subject.model
    made(DATA).sum().backward()
    assert all(p.grad is not None for p in made.parameters())
    with torch.no_grad():
        assert not made(DATA).requires_grad
    with pytest.raises(PatchProblem, match="nothing is named"):
        change(Unrecorded(), Patch.with_gradients(), inputs=DATA)


@pytest.mark.parametrize(("values", "shape"), [({"unsqueeze": 1}, (8, 1)), ({"squeeze": 1}, (8,))])
def test_targets_get_the_shape_of_the_predictions(
    values: dict[str, Any], shape: tuple[int, ...]
) -> None:
    target = torch.randn(32) if "unsqueeze" in values else torch.randn(32, 1)
    loader = DataLoader(TensorDataset(torch.randn(32, 4), target), batch_size=8)
    made = change(Net(), Patch.training("target-shape", **values), loader=loader)
    assert {tuple(y.shape) for _, y in made.subject.setup.train_loader} == {shape}
    with pytest.raises(ProbeProblem, match="no axis 3"):
        change(Net(), Patch.training("target-shape", squeeze=3), loader=loader)
