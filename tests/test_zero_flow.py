"""What is zero and stays zero, told from the graph, against what training with numbers shows."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from trainlint.analysis.zero_flow import ZeroFlow, never_learning, stuck_weights, zero_parameters
from trainlint.capture.tracer import capture
from trainlint.graph import Graph

WIDTH = 4


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(torch.relu(self.a(x)))


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.value(x) * torch.sigmoid(self.gate(x))


class Product(nn.Module):
    """Both factors zero: neither moves. One zero: it does."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(WIDTH, WIDTH, bias=False)
        self.right = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) * self.right(x)


class LowRank(nn.Module):
    """LoRA beside a live layer."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(WIDTH, WIDTH)
        self.down, self.up = (
            nn.Parameter(torch.randn(WIDTH, 2)),
            nn.Parameter(torch.randn(2, WIDTH)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down @ self.up


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.scale = nn.Linear(WIDTH, WIDTH), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * torch.tanh(self.inner(x))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(-1, 2, WIDTH // 2) for layer in (self.q, self.k, self.v))
        return F.scaled_dot_product_attention(q, k, v).flatten(1)


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, 2), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x), torch.tanh(self.b(x))], 1)


class Convolved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.conv(x[:, None]))[:, 0]


PARTS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "linear without bias": lambda: nn.Linear(WIDTH, WIDTH, bias=False),
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
    "leaky": lambda: nn.LeakyReLU(0.1),
    "layer norm": lambda: nn.LayerNorm(WIDTH),
    "batch norm": lambda: nn.BatchNorm1d(WIDTH),
    "residual": Residual,
    "gate": Gate,
    "product": Product,
    "low rank": LowRank,
    "scale": Scale,
    "attention": Attention,
    "concat": Concat,
    "conv": Convolved,
}


def trained(model: nn.Module, seed: int) -> set[str]:
    """The parameters that are all zero, with all-zero gradients, in each of three steps of SGD."""
    generator = torch.Generator().manual_seed(seed)
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    stuck = {name for name, parameter in parameters.items() if not parameter.any()}
    optimizer = torch.optim.SGD(parameters.values(), lr=0.05)
    for _ in range(3):
        data = torch.randn(16, WIDTH, generator=generator, dtype=torch.double)
        output = model(data)
        # A loss whose gradient is random too: no symmetry of the data may hide a path.
        weights = torch.randn(output.shape, generator=generator, dtype=torch.double)
        optimizer.zero_grad()
        (output * weights).sum().backward()
        optimizer.step()
        for name in list(stuck):
            gradient = parameters[name].grad
            if parameters[name].any() or (gradient is not None and gradient.any()):
                stuck.discard(name)
    return stuck


def predicted(model: nn.Module) -> set[str]:
    result = capture(model, (torch.randn(3, WIDTH, dtype=torch.double),))
    assert result.exception is None, result.exception
    graph = Graph(result.graph, result.model, faults=result.faults)
    assert graph.faults == ()
    zero = zero_parameters(graph)
    stuck, _ = stuck_weights(graph, zero)
    return {parameter.name for parameter in zero if parameter.node in stuck}


def build(names: list[str], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(*(PARTS[name]() for name in names), nn.Linear(WIDTH, 3)).double()
    for parameter in model.parameters():
        if not parameter.any():  # a bias that PyTorch starts at zero is not our subject
            nn.init.normal_(parameter)
    return model


def zeroed(model: nn.Module, which: list[str]) -> nn.Module:
    """With these parameters zero, and the biases beside them positive.

    Behind a zero weight and negative biases alone, a ReLU is dead for another reason.
    """
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name in which:
            parameters[name].zero_()
            bias = f"{name.rpartition('.')[0]}.bias"
            if bias in parameters:
                parameters[bias].abs_()
    return model


@st.composite
def networks(draw: st.DrawFn) -> tuple[list[str], int, list[str]]:
    names = draw(st.lists(st.sampled_from(sorted(PARTS)), min_size=1, max_size=4))
    seed = draw(st.integers(0, 1000))
    parameters = [name for name, _ in build(names, seed).named_parameters()]
    wholes = sorted({name.rpartition(".")[0] for name in parameters})
    layers = draw(st.lists(st.sampled_from(wholes), max_size=3, unique=True))
    single = draw(st.lists(st.sampled_from(parameters), max_size=3, unique=True))
    chosen = [n for n in parameters if n in single or n.rpartition(".")[0] in layers]
    return names, seed, chosen


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(networks())
def test_stuck_weights_are_those_that_training_leaves_at_zero(drawn: Any) -> None:
    names, seed, chosen = drawn
    model = zeroed(build(names, seed), chosen)
    found, seen = predicted(model), trained(model, seed)
    assert found <= seen
    # Two things that the flow does not look for, so that it claims less than it could: a value that
    # does not vary over the batch or the tokens (BatchNorm makes zero of it, the scores of an attention
    # get no gradient from it), and zeros in a part of a tensor only.
    blind = [
        f"{n}."
        for n, part in enumerate(names)
        if part in ("concat", "attention") or (part == "batch norm" and f"{n}.weight" in chosen)
    ]
    if not any(name.startswith(tuple(blind)) for name in chosen):
        assert found == seen


def dense(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double()


@pytest.mark.parametrize(
    ("zero", "stuck"),
    [
        ([0, 1, 2], {0, 1, 2}),  # all: only the last bias moves
        ([0, 1], {0, 1}),  # a ReLU between that gets zeros from a zero layer
        ([2], set()),  # the last alone wakes up
        ([1], {1}),  # relu(0) = 0 with slope 0: it keeps itself
        ([0], {0}),
    ],
)
def test_layers_in_series(zero: list[int], stuck: set[int]) -> None:
    model = dense(WIDTH, 5, 5, 3)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    names = [f"{2 * n}.{kind}" for n in zero for kind in ("weight", "bias")]
    zeroed(model, names)
    found = predicted(model)
    assert found == trained(model, 0)
    assert {int(name[0]) // 2 for name in found if name.endswith("weight")} == stuck


def test_a_gradient_that_comes_later_frees_what_was_blocked() -> None:
    """Step by step: the last layer wakes at once, the ones before it after it."""
    model = nn.Sequential(nn.Linear(WIDTH, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    zeroed(model, ["0.weight", "2.weight", "2.bias"])
    assert predicted(model) == trained(model, 0) == set()


def test_an_all_zero_input_buffer_starves_what_it_meets() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(WIDTH, 3).double(), nn.Linear(WIDTH, 3, bias=False).double()
            self.register_buffer("state", torch.zeros(1, WIDTH, dtype=torch.double))

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(self.state)

    model = zeroed(Net(), ["b.weight"])
    assert predicted(model) == trained(model, 0) == {"b.weight"}


def test_never_learning_names_what_is_cut_off() -> None:
    model = zeroed(dense(WIDTH, 5, 3), ["2.weight", "2.bias"])
    result = capture(model, (torch.randn(3, WIDTH, dtype=torch.double),))
    graph = Graph(result.graph, result.model)
    flow = ZeroFlow(graph, [p.node for p in zero_parameters(graph) if p.node is not None])
    assert {p.name for p in never_learning(graph, flow)} == {"0.weight", "0.bias"}
    assert never_learning(graph, ZeroFlow(graph, ())) == []
