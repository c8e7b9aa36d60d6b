"""What the gradient reaches, what is dropped, and what nobody owns, on graphs of a few operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainlint.analysis.methods import is_initializer, resolved_methods
from trainlint.analysis.reachability import Reachability, dead_ends, hidden_weights, unused_modules
from trainlint.capture.tracer import capture, single_node_functions
from trainlint.graph import Graph


class Net(nn.Module):
    """Two layers, a head and a forward that the test gives."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)
        self.function = function

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


def graph_of(function: Callable[..., Any] | nn.Module, *inputs: Any) -> Graph:
    model = function if isinstance(function, nn.Module) else Net(function)
    with single_node_functions():
        result = capture(model, inputs or (torch.randn(3, 4),))
    assert result.exception is None, result.exception
    return Graph(result.graph, result.model)


def cuts(function: Callable[..., Any]) -> list[tuple[str, str, list[str]]]:
    """(operation, kind, modules cut off) of each cut."""
    graph = graph_of(function)
    return [
        (
            graph.name(cut.node),
            cut.kind,
            sorted({parameter.name.rpartition(".")[0] for parameter in cut.parameters}),
        )
        for cut in Reachability(graph).cuts()
    ]


# ---------------------------------------------------------------------- cuts


def test_a_plain_forward_has_no_cut() -> None:
    assert cuts(lambda net, x: net.head(torch.relu(net.first(x)))) == []


def test_the_nearest_cut_is_named() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        h = net.first(x).detach()
        return net.head(torch.argmax(net.second(h), -1, keepdim=True).float().expand(-1, 4))

    assert cuts(forward) == [("detach", "copy", ["first"]), ("argmax", "discrete", ["second"])]


def test_another_way_to_the_output_is_no_cut() -> None:
    assert cuts(lambda net, x: net.head(net.first(x).detach() + net.first(x))) == []


def test_the_ways_to_leave_autograd() -> None:
    def through_numpy(net: Net, x: Tensor) -> Tensor:
        return net.head(torch.from_numpy(net.first(x).detach().cpu().numpy()))

    def copied(net: Net, x: Tensor) -> Tensor:
        return net.head(torch.tensor(net.first(x)))

    assert cuts(through_numpy) == [("to", "read", ["first"])]
    assert cuts(copied) == [("tensor", "copy", ["first"])]
    assert cuts(lambda net, x: net.head(net.first(x).data)) == [("get_data", "copy", ["first"])]
    assert cuts(lambda net, x: net.head(x) * net.first(x).mean().item()) == [
        ("mean", "read", ["first"])
    ]
    assert cuts(lambda net, x: net.head(net.first(x).round())) == [("round", "flat", ["first"])]


def test_no_grad_cuts_what_comes_before_and_what_is_in_it() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        h = net.first(x)
        with torch.no_grad():
            h = net.second(h)
        return net.head(h)

    assert cuts(forward) == [("linear", "no_grad", ["first", "second"])]


def test_weights_that_are_written_under_no_grad_still_learn() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        with torch.no_grad():
            net.first.weight.clamp_(-1, 1)
        net.second.weight.data.mul_(0.5)
        return net.head(net.second(net.first(x)))

    assert cuts(forward) == []


def test_checkpoints_and_kept_losses_pass_the_gradient() -> None:
    def kept(net: Net, x: Tensor) -> Tensor:
        net.penalty = net.second(x).square().mean()
        return net.head(x)

    def recomputed(net: Net, x: Tensor) -> Tensor:
        return net.head(checkpoint(net.first, x, use_reentrant=True))

    assert cuts(kept) == []
    assert cuts(recomputed) == []


def test_a_shape_is_no_way_to_the_output() -> None:
    assert cuts(lambda net, x: net.head(x) + torch.zeros_like(net.first(x)).sum()) == []


def test_severed_means_that_no_input_has_a_way() -> None:
    assert Reachability(graph_of(lambda net, x: net.head(net.first(x).detach()))).is_severed
    assert not Reachability(graph_of(lambda net, x: net.head(x + net.first(x).detach()))).is_severed


def hard(net: Net, z: Tensor) -> Tensor:
    """A parameter's value that has no other way to the output."""
    return net.second.weight.sum(0) + torch.zeros_like(z)


@pytest.mark.parametrize(
    ("forward", "passes"),
    [
        (lambda net, z: z + (hard(net, z) - z).detach(), True),
        (lambda net, z: z - (z - hard(net, z)).detach(), True),
        (lambda net, z: hard(net, z).detach() + z - z.detach(), True),
        (lambda net, z: z - z.data + hard(net, z).data, True),
        (lambda net, z: z.reshape(-1) + (hard(net, z).flatten() - z.flatten()).detach(), True),
        (lambda net, z: z + hard(net, z).detach(), False),
        (lambda net, z: z - hard(net, z).detach(), False),  # a difference from a constant
        (lambda net, z: z + (z + hard(net, z)).detach(), False),  # a residual block, then cut
        (lambda net, z: z + torch.relu((hard(net, z) - z).detach()), False),
    ],
)
def test_straight_through_is_one_value_twice_with_opposite_signs(
    forward: Callable[[Net, Tensor], Tensor], passes: bool
) -> None:
    graph = graph_of(lambda net, x: net.head(forward(net, net.first(x)).reshape(3, 4)))
    reach = Reachability(graph)
    (weight,) = (p for p in graph.parameters if p.name == "second.weight")
    ways = reach.ways_out(weight)
    assert ways
    assert any(reach.passes_straight(way) for way in ways) is passes


# ---------------------------------------------------------------------- dead ends


def ends(function: Callable[..., Any]) -> list[str]:
    graph = graph_of(function)
    return [graph.name(node) for node, _ in dead_ends(graph)]


def test_dead_ends_are_the_last_operations_of_what_nobody_uses() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        torch.relu(net.first(x))
        net.kept = net.second(x)
        assert net.second(x).sum().item() < 1e9
        return net.head(x)

    assert ends(forward) == ["relu"]


def test_a_result_is_traced_to_the_outermost_call_that_gave_it() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x)

    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.sin(), x.cos()

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.two = Block(), Two()

        def forward(self, x: Tensor) -> Tensor:
            self.block(x)
            return self.two(x)[0]

    graph = graph_of(Whole())
    dropped, part = (graph.operation(node) for node, _ in dead_ends(graph))
    assert dropped.returned is not None
    assert dropped.returned.row == Whole.forward.__code__.co_firstlineno + 1
    assert not dropped.is_part
    assert part.is_part


# ---------------------------------------------------------------------- not owned, not used


def test_hidden_weights_are_found_where_they_are_kept() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = [nn.Linear(4, 4), (nn.Linear(4, 4),)]
            self.scale = {"x": nn.Parameter(torch.ones(4))}
            self.frozen = [nn.Linear(4, 4).requires_grad_(False)]
            self.known = nn.Linear(4, 4)
            self.again = [self.known]
            unseen = nn.Linear(4, 4)
            self.function = lambda x: unseen(x) * 2

        def forward(self, x: Tensor) -> Tensor:
            x = self.layers[1][0](self.layers[0](x))  # type: ignore[index, operator]
            x = self.again[0](self.frozen[0](x)) * self.scale["x"]
            with torch.no_grad():
                x = x + nn.Linear(4, 4)(x)
            return self.function(x)

    found = hidden_weights(graph_of(Holder()))
    assert [(h.attribute, h.container, len(h.modules), len(h.tensors)) for h in found] == [
        ("layers", "list", 2, 4),
        ("scale", "dict", 0, 1),
        ("", "", 0, 2),
    ]


def test_unused_modules_are_the_topmost_ones() -> None:
    model = nn.ModuleDict({"used": nn.Linear(4, 2), "unused": nn.Sequential(nn.Linear(4, 4))})

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = model
            self.frozen = nn.Linear(4, 4).requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.parts["used"](x)

    assert [path for path, _ in unused_modules(graph_of(Wrapper()))] == ["parts.unused"]


# ---------------------------------------------------------------------- methods


class Base:
    def run(self) -> None:
        """Overridden without super()."""

    def step(self) -> None:
        """Overridden with super()."""


class Derived(Base):
    def run(self) -> None:
        """Hides Base.run."""

    def step(self) -> None:
        super().step()

    @property
    def size(self) -> int:
        return 1


def test_resolved_methods_are_those_that_a_call_can_reach() -> None:
    methods, complete = resolved_methods(Derived)
    assert complete
    assert sorted((method.owner.__name__, method.name) for method in methods) == [
        ("Base", "step"),
        ("Derived", "run"),
        ("Derived", "size"),
        ("Derived", "step"),
    ]


def test_names_of_initializers() -> None:
    for name in ("__init__", "_init_weights", "reset_parameters", "initialize", "weights_init"):
        assert is_initializer(name)
    for name in ("forward", "initial_state", "preset"):
        assert not is_initializer(name)
