"""The capture: one name for every spelling, the right module, shape and lines, and no fault lost."""

from __future__ import annotations

import importlib.util
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils import parametrizations, rnn
from torch.utils.checkpoint import checkpoint

from trainlint.capture.tracer import Recording, capture, single_node_functions
from trainlint.graph import Graph
from trainlint.sites import construction_site, recording


class Calls(nn.Module):
    """A model whose forward is the given function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def recorded(model: nn.Module | Callable[..., Any], *args: Any, **kwargs: Any) -> Recording:
    """A capture that met neither an exception nor a fault."""
    model = model if isinstance(model, nn.Module) else Calls(model)
    result = capture(model, args, kwargs)
    assert result.exception is None, result.exception
    assert [node.meta["operation"].error for node in result.faults] == []
    return result


def graph_of(model: nn.Module | Callable[..., Any], *args: Any, **kwargs: Any) -> Graph:
    result = recorded(model, *args, **kwargs)
    return Graph(result.graph, result.model)


def names(graph: Graph) -> list[str]:
    return [graph.name(node) for node in graph.calls_in_order]


def depends(node: Any, source: Any) -> bool:
    """Whether the value of `node` was computed from that of `source`."""
    stack, seen = [node], set()
    while stack:
        current = stack.pop()
        if current is source:
            return True
        if current not in seen:
            seen.add(current)
            stack += current.all_input_nodes
    return False


def load(folder: Path, source: str, name: str = "net") -> ModuleType:
    """Import a file as trainlint does: with the construction sites recorded."""
    path = folder / f"{name}.py"
    header = "import torch\nfrom torch import nn\nimport torch.nn.functional as F\n"
    path.write_text(header + textwrap.dedent(source), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"_{folder.name}_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with recording(), single_node_functions():
        spec.loader.exec_module(module)
    return module


def row_of(module: ModuleType, mark: str) -> int:
    """The row of the comment `# mark` in the module's file."""
    lines = Path(module.__file__ or "").read_text(encoding="utf-8").splitlines()
    found = [row for row, line in enumerate(lines, start=1) if line.endswith(f"# {mark}")]
    assert len(found) == 1, (mark, found)
    return found[0]


# ---------------------------------------------------------------------- names


def image() -> Tensor:
    return torch.randn(2, 4, 8, 8)


def table() -> Tensor:
    return torch.randn(2, 6)


KERNEL, BIAS = torch.randn(5, 4, 3, 3), torch.randn(5)
WEIGHT, ROWS = torch.randn(3, 6), torch.randn(6)
MEAN, VARIANCE = torch.zeros(4), torch.ones(4)

SPELLINGS: dict[str, list[tuple[Callable[[], Tensor], Any]]] = {
    "relu": [
        (table, function)
        for function in (
            nn.ReLU(), nn.ReLU(inplace=True), F.relu, F.relu_, torch.relu, torch.relu_,
            Tensor.relu, Tensor.relu_, lambda x: F.relu(x, inplace=True),
        )
    ],
    "sigmoid": [
        (table, function)
        for function in (
            nn.Sigmoid(), F.sigmoid, torch.sigmoid, Tensor.sigmoid, Tensor.sigmoid_,
            torch.special.expit,
        )
    ],
    "tanh": [(table, f) for f in (nn.Tanh(), F.tanh, torch.tanh, Tensor.tanh, Tensor.tanh_)],
    "softmax": [
        (table, function)
        for function in (
            nn.Softmax(-1), lambda x: F.softmax(x, -1), lambda x: torch.softmax(x, -1),
            lambda x: x.softmax(-1),
        )
    ],
    "log_softmax": [
        (table, function)
        for function in (
            nn.LogSoftmax(-1), lambda x: F.log_softmax(x, -1), lambda x: x.log_softmax(-1),
            lambda x: torch.log_softmax(x, -1),
        )
    ],
    "gelu": [(table, nn.GELU()), (table, F.gelu)],
    "silu": [(table, nn.SiLU()), (table, nn.SiLU(inplace=True)), (table, F.silu)],
    "elu": [(table, nn.ELU()), (table, F.elu), (table, F.elu_)],
    "leaky_relu": [(table, nn.LeakyReLU()), (table, F.leaky_relu), (table, F.leaky_relu_)],
    "prelu": [
        (table, nn.PReLU()), (table, lambda x: F.prelu(x, torch.ones(1))),
        (table, lambda x: torch.prelu(x, torch.ones(1))), (table, lambda x: x.prelu(torch.ones(1))),
    ],
    "dropout": [
        (table, nn.Dropout(0.5)), (table, lambda x: F.dropout(x, 0.5)),
        (table, lambda x: torch.dropout(x, 0.5, True)),
        (table, lambda x: F.dropout(x, 0.5, inplace=True)),
    ],
    "linear": [
        (table, nn.Linear(6, 3)), (table, lambda x: F.linear(x, WEIGHT)),
        (table, lambda x: torch._C._nn.linear(x, WEIGHT)),
    ],
    "conv2d": [
        (image, nn.Conv2d(4, 5, 3)), (image, lambda x: F.conv2d(x, KERNEL)),
        (image, lambda x: torch.conv2d(x, KERNEL, BIAS)),
    ],
    "batch_norm": [
        (image, nn.BatchNorm2d(4)),
        (image, lambda x: F.batch_norm(x, MEAN, VARIANCE, training=True)),
        (image, lambda x: torch.batch_norm(
            x, None, None, MEAN, VARIANCE, True, 0.1, 1e-5, False
        )),
    ],
    "layer_norm": [
        (table, nn.LayerNorm(6)), (table, lambda x: F.layer_norm(x, (6,))),
        (table, lambda x: torch.layer_norm(x, (6,))),
    ],
    "group_norm": [
        (image, nn.GroupNorm(2, 4)), (image, lambda x: F.group_norm(x, 2)),
        (image, lambda x: torch.group_norm(x, 2)),
    ],
    "max_pool2d": [
        (image, nn.MaxPool2d(2)), (image, lambda x: F.max_pool2d(x, 2)),
        (image, lambda x: torch.max_pool2d(x, 2)),
    ],
    "avg_pool2d": [(image, nn.AvgPool2d(2)), (image, lambda x: F.avg_pool2d(x, 2))],
    "adaptive_avg_pool2d": [
        (image, nn.AdaptiveAvgPool2d(1)), (image, lambda x: F.adaptive_avg_pool2d(x, 1)),
    ],
    "flatten": [
        (image, nn.Flatten()), (image, lambda x: torch.flatten(x, 1)),
        (image, lambda x: x.flatten(1)),
    ],
    "reshape": [
        (image, lambda x: x.view(2, -1)), (image, lambda x: x.reshape(2, -1)),
        (image, lambda x: torch.reshape(x, (2, -1))),
    ],
    "cat": [
        (table, lambda x: torch.cat([x, x], 1)), (table, lambda x: torch.concat([x, x], 1)),
        (table, lambda x: torch.concatenate([x, x], 1)),
    ],
    "add": [
        (table, function)
        for function in (
            lambda x: x + ROWS, lambda x: 1 + x, lambda x: torch.add(x, ROWS),
            lambda x: x.add(ROWS), lambda x: x.add_(ROWS), lambda x: x.__iadd__(ROWS),
        )
    ],
    "sub": [
        (table, function)
        for function in (
            lambda x: x - ROWS, lambda x: 1 - x, lambda x: torch.sub(x, ROWS),
            lambda x: torch.subtract(x, ROWS), lambda x: x.sub_(ROWS),
            lambda x: torch.rsub(x, ROWS),
        )
    ],
    "mul": [
        (table, function)
        for function in (
            lambda x: x * ROWS, lambda x: 2 * x, lambda x: torch.mul(x, ROWS),
            lambda x: torch.multiply(x, ROWS), lambda x: x.mul_(ROWS), lambda x: x.__imul__(2),
        )
    ],
    "div": [
        (table, function)
        for function in (
            lambda x: x / ROWS, lambda x: torch.div(x, ROWS), lambda x: torch.true_divide(x, ROWS),
            lambda x: torch.divide(x, ROWS), lambda x: x.div_(ROWS), lambda x: x.__itruediv__(2),
        )
    ],
    "matmul": [
        (table, function)
        for function in (
            lambda x: x @ WEIGHT.t(), lambda x: torch.matmul(x, WEIGHT.t()),
            lambda x: x.mm(WEIGHT.t()), lambda x: torch.mm(x, WEIGHT.t()),
            lambda x: torch.bmm(x[None], WEIGHT.t()[None])[0], lambda x: x.matmul(WEIGHT.t()),
        )
    ],
    "abs": [(table, abs), (table, torch.abs), (table, torch.absolute), (table, Tensor.abs_)],
    "clamp": [
        (table, lambda x: x.clamp(0, 1)), (table, lambda x: torch.clip(x, 0, 1)),
        (table, lambda x: x.clamp_(0, 1)),
    ],
    "transpose": [
        (table, lambda x: x.transpose(0, 1)), (table, lambda x: x.swapaxes(0, 1)),
        (table, lambda x: torch.swapdims(x, 0, 1)),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "place"),
    [(name, place) for name, cases in SPELLINGS.items() for place in range(len(cases))],
)
def test_every_spelling_of_an_operation_has_one_name(name: str, place: int) -> None:
    inputs, function = SPELLINGS[name][place]
    layer = function if isinstance(function, nn.Module) else Calls(function)
    # `.clone()` gives a tensor that an in-place spelling may write.
    model = Calls(lambda x: layer(x.clone()))
    model.layer = layer
    graph = graph_of(model, inputs())
    clone, *rest = graph.calls_in_order
    assert graph.name(clone) == "clone"
    assert [graph.name(node) for node in rest].count(name) == 1, names(graph)
    (operation,) = (node for node in rest if graph.name(node) == name)
    others = {graph.name(node) for node in rest if node is not operation}
    assert others <= {"t", "getitem", "ones"}, names(graph)


@pytest.mark.parametrize("inplace", [False, True])
def test_only_in_place_spellings_are_marked_as_writing(inplace: bool) -> None:
    graph = graph_of(lambda x: F.relu_(x * 1) if inplace else F.relu(x * 1), table())
    node = next(graph.calls("relu"))
    assert graph.operation(node).in_place is inplace


# ---------------------------------------------------------------------- module, shape, lines

SMALL_NET = """
    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.fc = nn.Linear(width, width)  # made fc
            self.act = nn.ReLU()  # made act

        def forward(self, x):
            x = self.fc(x)  # call fc
            return self.act(
                x  # inside
            )

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(Block(8) for _ in range(2))  # made blocks
            self.head = nn.Linear(8, 3)  # made head

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
            x = torch.tanh(x)  # call tanh
            return self.head(x)  # call head

    model = Net()  # made model
"""


def test_module_path_shape_call_site_and_construction_site(tmp_path: Path) -> None:
    net = load(tmp_path, SMALL_NET)
    graph = graph_of(net.model, torch.randn(2, 8))
    seen = [
        (graph.name(node), graph.operation(node).module, graph.shape(node))
        for node in graph.calls_in_order
    ]
    assert seen == [
        ("linear", "blocks.0.fc", (2, 8)),
        ("relu", "blocks.0.act", (2, 8)),
        ("linear", "blocks.1.fc", (2, 8)),
        ("relu", "blocks.1.act", (2, 8)),
        ("tanh", "", (2, 8)),
        ("linear", "head", (2, 3)),
    ]
    calls = [graph.operation(node).site for node in graph.calls_in_order]
    assert all(site is not None and site.filename == net.__file__ for site in calls)
    rows = [site.row for site in calls if site is not None]
    inside = row_of(net, "inside") - 1  # a call stands where it begins
    assert rows == [
        row_of(net, "call fc"), inside, row_of(net, "call fc"), inside,
        row_of(net, "call tanh"), row_of(net, "call head"),
    ]  # fmt: skip
    made = {
        "": "made model", "blocks": "made blocks", "blocks.0": "made blocks",
        "blocks.1": "made blocks", "blocks.0.fc": "made fc", "blocks.1.act": "made act",
        "head": "made head",
    }  # fmt: skip
    for path, mark in made.items():
        site = construction_site(net.model.get_submodule(path))
        assert site is not None, path
        assert (site.filename, site.row) == (net.__file__, row_of(net, mark)), path


def test_modules_built_outside_of_recording_have_no_construction_site() -> None:
    model = nn.Linear(8, 3)
    assert construction_site(model) is None
    graph = graph_of(model, torch.randn(2, 8))
    assert graph.constructed(graph.calls_in_order[0]) is None


def test_several_outputs_are_items_of_one_node() -> None:
    graph = graph_of(lambda x: torch.add(*x.chunk(2, -1)), table())
    assert names(graph) == ["chunk", "output", "output", "add"]
    assert [graph.shape(node) for node in graph.calls("output")] == [(2, 3), (2, 3)]


def test_shared_module_keeps_its_first_name_in_every_call() -> None:
    layer = nn.Linear(6, 6)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    graph = graph_of(model, table())
    assert [graph.operation(node).module for node in graph.calls("linear")] == ["0", "0"]


# ---------------------------------------------------------------------- python on shapes and values


def test_python_branches_on_shapes_take_the_branch_that_they_take() -> None:
    def forward(x: Tensor) -> Tensor:
        while x.size(-1) > 4:
            x = F.avg_pool2d(x, 2)
        return torch.tanh(x) if x.shape[0] == 2 and len(x) == 2 else torch.sigmoid(x)

    graph = graph_of(forward, torch.randn(2, 3, 16, 16))
    assert names(graph) == ["avg_pool2d", "avg_pool2d", "tanh"]


def test_token_ids_masks_and_lengths_stay_real() -> None:
    seen: list[Any] = []

    def forward(ids: Tensor, lengths: Tensor) -> Tensor:
        mask = torch.arange(ids.size(1)) < lengths[:, None]
        seen.extend([int(ids.max()), lengths.tolist(), mask.sum().item()])
        return F.embedding(ids, torch.randn(10, 4)) * mask[..., None]

    graph_of(forward, torch.tensor([[1, 2, 7], [3, 0, 0]]), torch.tensor([3, 1]))
    assert seen == [7, [3, 1], 4]


def test_data_dependent_questions_are_answered_as_sound_data_would() -> None:
    weight = nn.Linear(6, 6)
    answers: list[bool] = []

    def forward(x: Tensor) -> Tensor:
        h = torch.sigmoid(weight(x))
        answers.append(bool(torch.isnan(h).any()))
        answers.append(bool(torch.isfinite(h).all()))
        answers.append(isinstance((h * 2).sum().item(), float))
        answers.append(0.0 < h.max().item() < 1.0)
        answers.append(float(h.mean()) > 1.0)
        return h

    graph_of(forward, table())
    assert answers == [False, True, True, True, False]


def test_boolean_masks_and_nonzero_take_a_part() -> None:
    layer = nn.Linear(4, 3)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        keep = x[:, 0] > x[:, 0].mean()
        places = (x[:, 1] > x[:, 1].mean()).nonzero().squeeze(1)
        return layer(x[keep]), layer(x[places])

    graph = graph_of(forward, torch.randn(64, 4))
    shapes = [graph.shape(node) for node in graph.calls("linear")]
    assert [shape[1] for shape in shapes if shape] == [3, 3]
    assert all(0 < shape[0] < 64 for shape in shapes if shape)


def test_where_with_one_argument_gives_its_indices() -> None:
    graph = graph_of(lambda x: x[torch.where(x > x.mean())], torch.randn(8, 8))
    (output,) = graph.outputs
    (length,) = graph.shape(output) or ()
    assert 0 < length < 64


def test_try_and_except_keep_their_meaning() -> None:
    layer = nn.Linear(6, 4)

    def forward(x: Tensor) -> Tensor:
        y = layer(x)
        try:
            return y.view(3, 3)
        except RuntimeError:
            return torch.tanh(y)

    assert names(graph_of(forward, table())) == ["linear", "tanh"]


def test_an_error_inside_a_finally_alone_is_a_fault() -> None:
    layer = nn.Linear(5, 4)

    def forward(x: Tensor) -> Tensor:
        try:
            y = layer(x)
        finally:
            del x
        return y

    assert len(capture(Calls(forward), (table(),)).faults) == 1


# ---------------------------------------------------------------------- writes in place


def test_a_write_through_a_view_is_seen_in_the_base_and_in_its_siblings() -> None:
    stem, branch = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        base = stem(x)
        upper, sibling = base[:, 3:], base.view(-1)
        upper.add_(branch(x))
        return torch.tanh(base), torch.sigmoid(sibling), F.softplus(upper)

    graph = graph_of(forward, table())
    write = next(graph.calls("add"))
    assert graph.operation(write).in_place
    for name in ("tanh", "sigmoid", "softplus"):
        reader = next(graph.calls(name))
        assert depends(reader, write), name
        assert depends(reader, next(graph.calls("linear"))), name


def test_a_read_before_the_write_does_not_depend_on_it() -> None:
    stem = nn.Linear(6, 6)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        base = stem(x)
        early = torch.tanh(base)
        base[:, 0] = 0.0
        return early, torch.sigmoid(base)

    graph = graph_of(forward, table())
    write = next(graph.calls("setitem"))
    assert not depends(next(graph.calls("tanh")), write)
    assert depends(next(graph.calls("sigmoid")), write)


@pytest.mark.parametrize("read", [True, False])
def test_a_real_canvas_that_is_written_becomes_what_was_written(read: bool) -> None:
    layer = nn.Linear(6, 6)

    def forward(x: Tensor) -> Tensor:
        canvas = torch.zeros(2, 6)
        canvas[:, 2:].copy_(layer(x)[:, 2:])
        return torch.tanh(canvas) if read else canvas

    graph = graph_of(forward, table())
    assert depends(graph.outputs[0], next(graph.calls("linear")))
    assert graph.is_live(next(graph.calls("linear")))
    assert graph.complete


def test_the_inputs_are_not_written() -> None:
    x = table()
    before = x.clone()
    graph = graph_of(lambda x: x.mul_(2).add_(1), x)
    assert torch.equal(x, before)
    assert [graph.operation(node).in_place for node in graph.calls_in_order] == [True, True]


# ---------------------------------------------------------------------- larger pieces

FUNCTION = """
    class Swish(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            gate = torch.sigmoid(x)
            ctx.save_for_backward(x, gate)
            return x * gate

        @staticmethod
        def backward(ctx, grad):
            x, gate = ctx.saved_tensors
            return grad * gate * (1 + x * (1 - gate))

    swish = Swish.apply

    class Net(nn.Module):
        def __init__(self, alias):
            super().__init__()
            self.alias = alias
            self.fc = nn.Linear(6, 6)

        def forward(self, x):
            return (swish if self.alias else Swish.apply)(self.fc(x))

    direct, by_alias = Net(False), Net(True)
"""


@pytest.mark.parametrize("attribute", ["direct", "by_alias"])
def test_an_autograd_function_is_one_node(attribute: str, tmp_path: Path) -> None:
    model = getattr(load(tmp_path, FUNCTION), attribute)
    graph = graph_of(model, table())
    assert names(graph) == ["linear", "autograd_function"]
    node = graph.calls_in_order[-1]
    assert graph.operation(node).function == "Swish"
    assert graph.shape(node) == (2, 6)
    assert graph.outputs == (node,)


def test_an_autograd_function_that_leaves_torch_is_one_node() -> None:
    pytest.importorskip("numpy")

    class Sine(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            import numpy as np

            return torch.from_numpy(np.sin(x.detach().numpy()))

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad

    layer = nn.Linear(6, 3)
    graph = graph_of(lambda x: Sine.apply(layer(x)), table())
    assert names(graph) == ["linear", "autograd_function"]
    assert graph.shape(graph.calls_in_order[-1]) == (2, 3)


def test_apply_is_the_original_again_afterwards() -> None:
    before = torch.autograd.Function.__dict__["apply"]
    call = nn.Module.__dict__["__call__"]
    recorded(nn.Linear(6, 3), table())
    assert torch.autograd.Function.__dict__["apply"] is before
    assert nn.Module.__dict__["__call__"] is call


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_parts_show_their_body(reentrant: bool) -> None:
    first, body = nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 5), nn.Tanh())
    graph = graph_of(lambda x: checkpoint(body, first(x), use_reentrant=reentrant).sum(-1), table())
    assert names(graph) == ["linear", "linear", "tanh", "sum"]
    body_node = graph.calls_in_order[1]
    assert not graph.stops_gradient(body_node)
    assert depends(graph.calls_in_order[-1], graph.calls_in_order[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*torch.jit.*")
def test_a_scripted_module_is_one_opaque_node() -> None:
    model = nn.Sequential(
        torch.jit.script(nn.Sequential(nn.Linear(6, 5), nn.ReLU())), nn.Linear(5, 3)
    )
    graph = graph_of(model, table())
    assert names(graph) == ["call", "linear"]
    opaque = graph.calls_in_order[0]
    assert graph.shape(opaque) == (2, 5)
    assert {parameter.name for parameter in graph.parameters_of(opaque)} == {
        "0.0.weight",
        "0.0.bias",
    }


def test_lazy_layers_run_in_a_copy() -> None:
    model = nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(3))
    result = recorded(model, torch.randn(2, 4, 8, 8))
    assert result.model is not model
    assert isinstance(model[0].weight, nn.parameter.UninitializedParameter)
    assert type(model[3]) is nn.LazyLinear
    graph = Graph(result.graph, result.model)
    assert names(graph) == ["conv2d", "batch_norm", "flatten", "linear"]
    weight = graph.argument(next(graph.calls("linear")), "weight")
    assert graph.shape(weight) == (3, 8 * 6 * 6)
    assert str(weight.target) == "3.weight"


def test_packed_sequences() -> None:
    lstm, head = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 2)

    def forward(x: Tensor, lengths: Tensor) -> Tensor:
        packed = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        output, _ = rnn.pad_packed_sequence(lstm(packed)[0], batch_first=True)
        return head(output)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = lstm, head

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            return forward(x, lengths)

    graph = graph_of(Net(), torch.randn(3, 7, 4), torch.tensor([2, 7, 4]))
    assert graph.shape(graph.outputs[0]) == (3, 7, 2)
    (recurrent,) = graph.calls("lstm")
    assert graph.operation(recurrent).module == "lstm"
    assert depends(graph.outputs[0], recurrent)


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrized_weights_are_computed_from_their_originals(wrap: Any) -> None:
    model = nn.Sequential(wrap(nn.Linear(6, 5)), nn.ReLU(), nn.Linear(5, 2))
    graph = graph_of(model, table())
    first, second = graph.calls("linear")
    owners = {parameter.name.partition(".")[0] for parameter in graph.parameters_of(first)}
    assert owners == {"0"}
    assert any("parametrizations" in parameter.name for parameter in graph.parameters_of(first))
    assert {parameter.name for parameter in graph.parameters_of(second)} == {"2.weight", "2.bias"}


def test_complex_numbers() -> None:
    layer = nn.Linear(4, 3, dtype=torch.cfloat)
    graph = graph_of(lambda x: layer(torch.fft.rfft(x)).abs(), torch.randn(2, 6))
    assert names(graph) == ["fft_rfft", "linear", "abs"]
    dtypes = [graph.operation(node).shape.dtype for node in graph.calls_in_order]  # type: ignore[union-attr]
    assert dtypes == [torch.complex64, torch.complex64, torch.float32]


def test_vmap() -> None:
    layer = nn.Linear(4, 3)
    graph = graph_of(torch.vmap(lambda row: torch.tanh(layer(row))), torch.randn(5, 4))
    assert [name for name in names(graph) if name in ("linear", "tanh")] == ["linear", "tanh"]
    assert graph.shape(graph.outputs[0]) == (5, 3)


def test_the_stance_of_torch_compile_does_not_leak() -> None:
    import torch._dynamo
    from torch._dynamo import eval_frame

    during: list[str] = []

    def forward(x: Tensor) -> Tensor:
        during.append(eval_frame._stance.stance)
        return x * 2

    before = eval_frame._stance.stance
    graph = graph_of(torch.compile(forward, backend="eager"), table())
    assert (before, during, eval_frame._stance.stance) == ("default", ["force_eager"], "default")
    assert names(graph) == ["mul"]


@pytest.mark.parametrize(
    "move",
    [
        lambda x: x.to("cuda"),
        lambda x: x.cuda(),
        lambda x: x.cuda(0, non_blocking=True),
        lambda x: x.cuda().cpu(),
        lambda x: x.to(torch.device("cuda", 0), torch.float32),
        lambda x: x.to(device="cuda") + torch.zeros(6, device="cuda"),
        lambda x: x + x.new_zeros(2, 6, device="cuda"),
        lambda x: x + torch.zeros_like(x, device="cuda"),
        lambda x: x + torch.arange(6, device="cuda"),
    ],
)
def test_requests_for_a_gpu_are_granted_in_name(move: Any) -> None:
    layer = nn.Linear(6, 3)
    devices: list[str] = []

    def forward(x: Tensor) -> Tensor:
        y = layer(move(x))
        devices.append(f"{y.device} {y.is_meta}")
        return y

    graph = graph_of(forward, table())
    assert graph.shape(graph.outputs[0]) == (2, 3)
    assert devices == ["cpu False"]


def test_without_grad_is_noted() -> None:
    layer = nn.Linear(6, 6)

    def forward(x: Tensor) -> Tensor:
        with torch.no_grad():
            fixed = layer(x)
        return fixed + layer(x)

    graph = graph_of(forward, table())
    assert [graph.stops_gradient(node) for node in graph.calls("linear")] == [True, False]


# ---------------------------------------------------------------------- faults


class ManyFaults(nn.Module):
    """Six layers of a wrong width, one product and one sum that do not fit."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3)
        self.norm1 = nn.BatchNorm2d(16)  # wrong: 8
        self.conv2 = nn.Conv2d(4, 8, 3)  # wrong: 8
        self.norm2 = nn.GroupNorm(2, 12)  # wrong: 8
        self.fc1 = nn.Linear(10, 6)  # wrong: 8
        self.norm3 = nn.LayerNorm(7)  # wrong: 6
        self.rnn = nn.GRU(5, 4, batch_first=True)  # wrong: 6
        self.fc2 = nn.Linear(4, 4)
        self.table = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x)).relu()
        x = self.norm2(self.conv2(x)).relu()
        x = self.norm3(self.fc1(x.mean((2, 3))))
        x = self.fc2(self.rnn(x[:, None])[0])[:, 0]
        return x @ self.table


def test_all_faults_are_found_in_one_pass_with_the_words_of_eager_and_no_follow_ups() -> None:
    model = ManyFaults()
    result = capture(model, (torch.randn(2, 3, 12, 12),))
    assert result.exception is None
    found = {node.meta["operation"].module: node.meta["operation"].error for node in result.faults}
    assert list(found) == ["norm1", "conv2", "norm2", "fc1", "norm3", "rnn", ""]
    assert len(result.faults) == 7
    given = {
        "norm1": (2, 8, 10, 10), "conv2": (2, 8, 10, 10), "norm2": (2, 8, 8, 8), "fc1": (2, 8),
        "norm3": (2, 6), "rnn": (2, 1, 6),
    }  # fmt: skip
    for path, shape in given.items():
        with pytest.raises((RuntimeError, ValueError)) as eager:
            model.get_submodule(path)(torch.randn(shape))
        assert str(found[path]) == str(eager.value), path
        assert type(found[path]) is eager.type, path
    with pytest.raises(RuntimeError) as eager:
        torch.randn(2, 4) @ model.table
    assert str(found[""]) == str(eager.value)
    assert tuple(result.output.shape) == (2, 3)


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda x: x + torch.randn(2, 7), (2, 7)),
        (lambda x: torch.cat([x, torch.randn(3, 6)], 1), (2, 12)),
        (lambda x: x.view(2, 7), (2, 7)),
        (lambda x: F.scaled_dot_product_attention(x, torch.randn(2, 5), x), (2, 6)),
        (lambda x: F.mse_loss(x, torch.randn(2, 5)), ()),
    ],
)
def test_a_function_that_fails_gives_its_promised_shape(function: Any, shape: Any) -> None:
    layer = nn.Linear(6, 6)
    result = capture(Calls(lambda x: torch.tanh(function(layer(x)))), (table(),))
    assert result.exception is None
    assert len(result.faults) == 1
    assert tuple(result.output.shape) == shape
    assert result.faults[0].meta["operation"].site is not None


def test_a_meta_kernel_that_is_stricter_than_eager_is_no_fault() -> None:
    """Eager broadcasts; only what it refuses counts."""
    graph = graph_of(lambda x: torch.bucketize(x, torch.tensor([0.0, 1.0])).float(), table())
    assert graph.shape(graph.outputs[0]) == (2, 6)


def test_an_index_beyond_the_table_is_a_fault_with_its_range() -> None:
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2))
    result = capture(model, (torch.tensor([[0, 11]]),))
    assert result.exception is None
    embedding = next(n for n in result.graph.nodes if n.meta["operation"].name == "embedding")
    assert embedding.meta["operation"].index_range == (0, 11)


# ---------------------------------------------------------------------- exceptions

RAISING = """
    class Net(nn.Module):
        def __init__(self, error):
            super().__init__()
            self.fc, self.error = nn.Linear(6, 3), error

        def forward(self, x):
            y = self.fc(x)
            return self.check(y)

        def check(self, y):
            raise self.error  # raised
"""


def test_an_exception_of_the_users_is_returned_with_its_place(tmp_path: Path) -> None:
    net = load(tmp_path, RAISING)
    error = ValueError("six features, please")
    result = capture(net.Net(error), (table(),))
    assert result.exception is error
    assert result.exception_site is not None
    assert (result.exception_site.filename, result.exception_site.row) == (
        net.__file__,
        row_of(net, "raised"),
    )
    assert [node.meta["operation"].name for node in result.graph.nodes][-1] == "linear"


def test_an_unrepairable_call_is_an_exception_at_its_line(tmp_path: Path) -> None:
    net = load(
        tmp_path,
        """
        class Net(nn.Module):
            def forward(self, x):
                return torch.einsum("ij,jk->ik", x, torch.randn(5, 3))  # product
        """,
    )
    result = capture(net.Net(), (table(),))
    assert isinstance(result.exception, RuntimeError)
    assert result.exception_site is not None
    assert result.exception_site.row == row_of(net, "product")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interruption_passes_through(error: type[BaseException]) -> None:
    original = nn.Module.__call__

    def forward(x: Tensor) -> Tensor:
        raise error

    with pytest.raises(error):
        capture(Calls(forward), (table(),))
    assert nn.Module.__call__ is original
    assert not torch._C._is_torch_function_mode_enabled()


def test_given_a_model_on_meta_it_works_as_well() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    graph = graph_of(model, table())
    assert names(graph) == ["linear", "relu", "linear"]


def test_nested_inputs_have_names_of_their_own() -> None:
    graph = graph_of(
        lambda batch, scale: batch["image"].flatten(1) @ batch["pair"][0] * scale,
        {"image": image(), "pair": (torch.randn(256, 3), None)},
        scale=torch.tensor(2.0),
    )
    inputs = [str(node.target) for node in graph.nodes if node.op == "placeholder"]
    assert inputs == ["input_0_image", "input_0_pair_0", "scale"]


# ---------------------------------------------------------------------- what leaves the forward


def test_values_that_leave_the_forward_say_how() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.history: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            self.penalty = self.fc(x).square().sum()
            self.history.append(x.sin())
            scale = x.mean().item()
            table = torch.from_numpy(x.exp().detach().numpy())
            return x * scale + table

    escapes = {
        node.meta["operation"].name: node.meta["operation"].escape
        for node in recorded(Keeps(), torch.randn(2, 4)).graph.nodes
    }
    assert escapes["sum"] == "attribute"
    assert escapes["sin"] == "attribute"
    assert escapes["mean"] == "item"
    assert escapes["detach"] == "numpy"
    assert escapes["linear"] == ""
    assert escapes["mul"] == ""


def test_reading_a_value_is_located() -> None:
    def read(x: Tensor) -> Tensor:
        return x * x.max().item()

    operation = next(
        node.meta["operation"]
        for node in recorded(read, torch.randn(3)).graph.nodes
        if node.meta["operation"].escape
    )
    assert operation.escape_site is not None
    assert operation.escape_site.row == read.__code__.co_firstlineno + 1
