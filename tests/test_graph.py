"""The questions that rules ask of a captured graph, with answers known beforehand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from trainlint import ops
from trainlint.capture.tracer import capture
from trainlint.graph import Graph
from trainlint.sites import recording


class Net(nn.Module):
    """A model of named parts whose forward is the given function of (model, *inputs)."""

    def __init__(self, forward: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self._forward = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any) -> Any:
        return self._forward(self, *args)


def graph_of(model: nn.Module, *args: Any, **options: Any) -> Graph:
    result = capture(model, args)
    assert result.exception is None, result.exception
    return Graph(result.graph, result.model, faults=result.faults, **options)


def only(graph: Graph, name: str) -> Any:
    (node,) = graph.calls(name)
    return node


def table() -> Tensor:
    return torch.randn(2, 6)


# ---------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    "call",
    [
        lambda x, w, b, m, v: F.batch_norm(x, m, v, w, b, True),
        lambda x, w, b, m, v: F.batch_norm(
            x, weight=w, bias=b, running_var=v, running_mean=m, training=True
        ),
        lambda x, w, b, m, v: torch.batch_norm(x, w, b, m, v, True, 0.1, 1e-5, False),
        lambda x, w, b, m, v: torch.batch_norm(
            x, w, b, running_mean=m, running_var=v, training=True, momentum=0.1, eps=1e-5,
            cudnn_enabled=False,
        ),
    ],
    ids=["F", "F keywords", "torch", "torch keywords"],
)  # fmt: skip
def test_batch_norm_in_both_orders(call: Any) -> None:
    model = Net(
        lambda self, x: call(x, self.w, self.b, self.m, self.v),
        w=nn.Parameter(torch.rand(6)), b=nn.Parameter(torch.rand(6)),
    )  # fmt: skip
    model.register_buffer("m", torch.zeros(6))
    model.register_buffer("v", torch.ones(6))
    graph = graph_of(model, table())
    node = only(graph, "batch_norm")
    found = {
        name: str(graph.argument(node, name).target)
        for name in ("input", "weight", "bias", "running_mean", "running_var")
    }
    assert found == {
        "input": "input_0", "weight": "w", "bias": "b", "running_mean": "m", "running_var": "v",
    }  # fmt: skip
    assert graph.argument(node, "training") is True


@pytest.mark.parametrize(
    ("call", "operation", "wanted"),
    [
        (lambda x: F.linear(x, torch.ones(3, 6)), "linear", {"bias": None}),
        (lambda x: F.linear(x, bias=None, weight=torch.ones(3, 6)), "linear", {"bias": None}),
        (lambda x: F.softmax(x, 1), "softmax", {"dim": 1}),
        (lambda x: F.softmax(x, dim=1), "softmax", {"dim": 1}),
        (lambda x: x.softmax(1), "softmax", {"dim": 1}),
        (lambda x: torch.softmax(dim=1, input=x), "softmax", {"dim": 1}),
        (lambda x: F.dropout(x, 0.25, False), "dropout", {"p": 0.25, "training": False}),
        (lambda x: F.dropout(x, p=0.25), "dropout", {"p": 0.25}),
        (lambda x: F.pad(x, (1, 2), value=3.0), "pad", {"pad": (1, 2), "value": 3.0}),
        (lambda x: F.layer_norm(x, (6,)), "layer_norm", {"normalized_shape": (6,), "weight": None}),
        (
            lambda x: F.conv1d(x[:, None], torch.ones(4, 1, 3), None, 2, 1),
            "conv1d",
            {"stride": 2, "padding": 1, "bias": None},
        ),
        (
            lambda x: F.conv_transpose1d(
                x[:, None], torch.ones(1, 4, 3), stride=2, output_padding=1
            ),
            "conv_transpose1d",
            {"stride": 2, "output_padding": 1},
        ),
    ],
)
def test_arguments_by_name_however_they_were_passed(call: Any, operation: str, wanted: Any) -> None:
    graph = graph_of(Net(lambda self, x: call(x)), table())
    node = only(graph, operation)
    assert {name: graph.argument(node, name) for name in wanted} == wanted


def test_an_argument_that_was_not_given_is_the_default() -> None:
    graph = graph_of(nn.Softmax(-1), table())
    assert graph.argument(only(graph, "softmax"), "no_such", 7) == 7


# ---------------------------------------------------------------------- constant and live


def test_constant_is_what_depends_on_no_input() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        scale = torch.tanh(self.scale)
        position = torch.arange(6).float()
        return torch.sigmoid(x * scale + position)

    graph = graph_of(Net(forward, scale=nn.Parameter(torch.rand(6))), table())
    constant = {graph.name(node): graph.is_constant(node) for node in graph.calls_in_order}
    assert constant == {
        "tanh": True, "arange": True, "float": True, "mul": False, "add": False, "sigmoid": False,
    }  # fmt: skip
    assert [str(n.target) for n in graph.varying_inputs(only(graph, "mul"))] == ["input_0"]


def test_live_is_what_an_output_depends_on() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        torch.tanh(self.unused(x))
        return torch.sigmoid(self.used(x))

    model = Net(forward, unused=nn.Linear(6, 6), used=nn.Linear(6, 6))
    graph = graph_of(model, table())
    live = [(graph.name(node), graph.is_live(node)) for node in graph.calls_in_order]
    assert live == [("linear", False), ("tanh", False), ("linear", True), ("sigmoid", True)]
    parameters = {p.name: p.node is not None and graph.is_live(p.node) for p in graph.parameters}
    assert parameters == {
        "unused.weight": False, "unused.bias": False, "used.weight": True, "used.bias": True,
    }  # fmt: skip


def test_parameters_that_the_forward_does_not_touch_have_no_node() -> None:
    model = Net(lambda self, x: self.a(x), a=nn.Linear(6, 2), b=nn.Linear(6, 2))
    nodes = {parameter.name: parameter.node for parameter in graph_of(model, table()).parameters}
    assert nodes["b.weight"] is None
    assert nodes["a.weight"] is not None


def test_outputs_are_the_floating_tensors_that_are_returned() -> None:
    graph = graph_of(
        Net(lambda self, x: {"y": torch.tanh(x), "best": x.argmax(-1), "all": [x.sigmoid(), 3]}),
        table(),
    )
    assert [graph.name(node) for node in graph.outputs] == ["tanh", "sigmoid"]


# ---------------------------------------------------------------------- neighbours


def test_producer_and_consumers_look_through_transparent_operations() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = F.dropout(self.a(x).permute(0, 2, 1).contiguous() * 2.0, 0.1)
        return self.b((h + self.shift).transpose(1, 2)), torch.tanh(h)

    model = Net(forward, a=nn.Linear(6, 5), b=nn.Linear(5, 2), shift=nn.Parameter(torch.zeros(1)))
    graph = graph_of(model, torch.randn(2, 4, 6))
    first, second = graph.calls("linear")
    source, passed = graph.producer(second)
    assert source is first
    assert [graph.name(node) for node in passed] == [
        "transpose", "add", "dropout", "mul", "contiguous", "permute",
    ]  # fmt: skip
    assert {graph.name(node) for node in graph.consumers(first)} == {"linear", "tanh"}
    assert graph.consumers(first, through=()) == []or {
        graph.name(node) for node in graph.consumers(first, through=())
    } == {"permute"}  # fmt: skip


def test_a_merge_of_two_data_is_not_transparent() -> None:
    model = Net(lambda self, x: self.b(self.a(x) + x), a=nn.Linear(6, 6), b=nn.Linear(6, 2))
    graph = graph_of(model, table())
    _, second = graph.calls("linear")
    source, passed = graph.producer(second)
    assert (graph.name(source), passed) == ("add", [])


def test_feeds_weights() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Sigmoid(), nn.Linear(6, 2), nn.Softmax(-1))
    graph = graph_of(model, table())
    assert graph.feeds_weights(only(graph, "sigmoid"))
    assert not graph.feeds_weights(only(graph, "softmax"))
    attention = Net(lambda self, x: F.scaled_dot_product_attention(x.tanh(), x.tanh(), x.tanh()))
    graph = graph_of(attention, torch.randn(2, 3, 4))
    assert all(graph.feeds_weights(node) for node in graph.calls("tanh"))


def test_weighted_means_own_weights_on_data() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        own = self.a(x)
        made = F.linear(x, x)  # a weight that depends on the input
        table = F.linear(self.a.weight, self.a.weight)  # constants only
        return own.sum() + made.sum() + table.sum()

    graph = graph_of(Net(forward, a=nn.Linear(6, 6)), table())
    assert [graph.is_weighted(node) for node in graph.calls("linear")] == [True, False, False]


# ---------------------------------------------------------------------- paths


def slopes(graph: Graph) -> Callable[[Any], float | None]:
    return lambda node: ops.MAX_SLOPE.get(graph.name(node))


def bound(graph: Graph, parameter: str) -> float | None:
    """The largest product of slopes on a path from the output to the parameter."""
    node = next(p.node for p in graph.parameters if p.name == parameter)
    assert node is not None
    path = graph.best_gradient_paths(slopes(graph)).get(node)
    return None if path is None else path.bound


def test_series_multiply() -> None:
    layers = [layer for _ in range(4) for layer in (nn.Linear(6, 6), nn.Sigmoid())]
    graph = graph_of(nn.Sequential(*layers), table())
    assert [bound(graph, f"{2 * n}.weight") for n in range(4)] == [
        0.25**4, 0.25**3, 0.25**2, 0.25,
    ]  # fmt: skip
    first = next(p.node for p in graph.parameters if p.name == "0.weight")
    path = graph.best_gradient_paths(slopes(graph))[first]
    assert path.nodes == tuple(graph.calls("sigmoid"))


def test_a_residual_goes_around() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.stem(x)
        return h + torch.sigmoid(self.branch(h))

    graph = graph_of(Net(forward, stem=nn.Linear(6, 6), branch=nn.Linear(6, 6)), table())
    assert bound(graph, "stem.weight") == 1.0
    assert bound(graph, "branch.weight") == 0.25
    sigmoid = only(graph, "sigmoid")
    assert graph.is_bypassed(sigmoid)
    assert not graph.is_bypassed(next(graph.calls("linear")))
    stem = next(graph.calls("linear"))
    assert [graph.name(node) for node in graph.unavoidable(stem)] == ["add"]
    assert [graph.name(node) for node in graph.unavoidable(sigmoid)] == ["add"]


def test_a_gate_leaves_the_other_operand_open() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.stem(x)
        return h * torch.sigmoid(self.gate(h))

    graph = graph_of(Net(forward, stem=nn.Linear(6, 6), gate=nn.Linear(6, 6)), table())
    assert bound(graph, "stem.weight") == 1.0
    assert bound(graph, "gate.weight") == 0.25
    assert graph.is_bypassed(only(graph, "sigmoid"))


def test_the_best_of_parallel_paths_counts() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.stem(x)
        return torch.sigmoid(torch.sigmoid(h)) + torch.softmax(h, -1)

    graph = graph_of(Net(forward, stem=nn.Linear(6, 6)), table())
    assert bound(graph, "stem.weight") == 0.5
    stem = next(graph.calls("linear"))
    path = graph.best_gradient_paths(slopes(graph))[stem]
    assert [graph.name(node) for node in path.nodes] == ["softmax"]


@pytest.mark.parametrize(
    "cut", [lambda h: h.detach(), lambda h: h.argmax(-1, keepdim=True).float(), torch.round]
)
def test_no_gradient_passes_a_cut(cut: Any) -> None:
    model = Net(lambda self, x: self.b(cut(self.a(x))), a=nn.Linear(6, 6), b=nn.LazyLinear(2))
    graph = graph_of(model, table())
    assert bound(graph, "a.weight") is None
    assert bound(graph, "b.weight") == 1.0


def test_under_no_grad_nothing_passes() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.a(x)
        return self.b(h)

    graph = graph_of(Net(forward, a=nn.Linear(6, 6), b=nn.Linear(6, 2)), table())
    assert bound(graph, "a.weight") is None
    assert bound(graph, "b.weight") == 1.0


def test_unavoidable_is_the_chain_of_post_dominators() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        both = torch.relu(h) + torch.sigmoid(h)
        return torch.exp(both)

    graph = graph_of(Net(forward, a=nn.Linear(6, 6)), table())
    start = next(graph.calls("linear"))
    assert [graph.name(node) for node in graph.unavoidable(start)] == ["tanh", "add", "exp"]
    assert [graph.name(node) for node in graph.unavoidable(only(graph, "relu"))] == ["add", "exp"]
    assert graph.unavoidable(only(graph, "exp")) == []
    assert not graph.is_bypassed(only(graph, "exp"))


def test_two_outputs_have_no_common_operation() -> None:
    graph = graph_of(Net(lambda self, x: (x.tanh().exp(), x.tanh().sigmoid())), table())
    (start,) = (node for node in graph.nodes if node.op == "placeholder")
    assert graph.unavoidable(start) == []


# ---------------------------------------------------------------------- parameters and values


def test_parameters_of_a_node() -> None:
    model = Net(
        lambda self, x: F.linear(x, self.a * self.b.exp(), self.c),
        a=nn.Parameter(torch.rand(3, 6)), b=nn.Parameter(torch.rand(3, 1)),
        c=nn.Parameter(torch.rand(3)), d=nn.Parameter(torch.rand(3)),
    )  # fmt: skip
    graph = graph_of(model, table())
    node = only(graph, "linear")
    assert [parameter.name for parameter in graph.parameters_of(node)] == ["a", "b", "c"]


def test_frozen_and_integer_parameters_are_not_trained() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2))
    model[0].requires_grad_(False)
    model[1].counts = nn.Parameter(torch.zeros(3, dtype=torch.long), requires_grad=False)
    graph = graph_of(model, table())
    assert [parameter.name for parameter in graph.parameters] == ["1.weight", "1.bias"]


def test_the_value_of_a_constant_is_computed() -> None:
    model = Net(lambda self, x: x @ (self.a.t() * 2 + 1), a=nn.Parameter(torch.randn(3, 6)))
    graph = graph_of(model, table())
    weight = only(graph, "matmul").args[1]
    value = graph.value(weight)
    assert value is not None
    assert torch.equal(value, model.a.detach().t() * 2 + 1)
    assert not value.requires_grad
    assert graph.value(only(graph, "matmul")) is None


def test_a_value_never_writes_into_the_model() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.a.mul_(2)
            torch.add(self.a, 1, out=self.b)
        return x @ self.a + self.b.sum()

    model = Net(forward, a=nn.Parameter(torch.randn(6, 3)))
    model.register_buffer("b", torch.zeros(6, 3))
    before = model.a.detach().clone()
    result = capture(model, (table(),))
    graph = Graph(result.graph, result.model, faults=result.faults)
    for node in graph.nodes:
        graph.value(node)
    assert torch.equal(model.a, before)
    assert not model.b.any()


def test_a_value_shares_no_gradient_and_meta_weights_have_none() -> None:
    with torch.device("meta"):
        model = nn.Linear(6, 3)
    graph = graph_of(model, table())
    assert graph.value(graph.argument(only(graph, "linear"), "weight")) is None
    assert graph.parameters == ()


def test_share_of_parameters() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))  # 24 + 4 + 8 + 2
    graph = graph_of(model, table())
    first = [p for p in graph.parameters if p.name.startswith("0")]
    assert graph.share_of_parameters(first) == pytest.approx(28 / 38)
    assert graph.share_of_parameters(graph.parameters) == 1.0
    assert graph.share_of_parameters([]) == 0.0
    assert graph_of(nn.ReLU(), table()).share_of_parameters([]) == 0.0


# ---------------------------------------------------------------------- places and names


def test_built_together() -> None:
    with recording():
        model = nn.Sequential(*[nn.Linear(6, 6) for _ in range(3)], nn.Linear(6, 2))
    graph = graph_of(model, table())
    *loop, last = graph.calls("linear")
    assert graph.built_together(loop[1]) == [model[0], model[1], model[2]]
    assert graph.built_together(last) == [model[3]]


def test_modules_of_no_known_construction_are_built_with_none() -> None:
    graph = graph_of(nn.Linear(6, 2), table())
    assert graph.built_together(only(graph, "linear")) == []


def test_layer_is_a_torch_layer_not_a_container_or_the_users_own() -> None:
    class Mine(nn.Linear):
        pass

    def forward(self: Any, x: Tensor) -> Tensor:
        return torch.tanh(self.mine(self.body(x)))

    model = Net(forward, body=nn.Sequential(nn.Linear(6, 6)), mine=Mine(6, 6))
    graph = graph_of(model, table())
    first, second = graph.calls("linear")
    assert graph.layer(first) is model.body[0]
    assert graph.layer(second) is model.mine
    assert graph.layer(only(graph, "tanh")) is None
    assert [graph.label(node) for node in graph.calls_in_order] == ["body.0", "mine", "tanh"]


def test_a_graph_is_complete_unless_something_came_from_outside() -> None:
    assert graph_of(nn.Linear(6, 2), table()).complete
    assert not graph_of(nn.Linear(6, 2), table(), complete=False).complete
