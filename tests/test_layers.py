"""What each layer expects, what decided the width that arrives, and who is to blame."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from trainlint.analysis.layers import (
    agreed_width,
    blames_the_model,
    doubtful_faults,
    expectation,
    mismatches,
    trace_axis,
    width_source,
)
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


def graph_of(model: nn.Module, *args: Any, given: bool = True) -> Graph:
    result = capture(model, args)
    assert result.exception is None, result.exception
    return Graph(result.graph, result.model, faults=result.faults, inputs_given=given)


# ---------------------------------------------------------------------- expectations

LAYERS: list[tuple[nn.Module, Any, tuple[str, str, int, int, int]]] = [
    (nn.Linear(5, 2), (2, 6), ("Linear", "in_features", 0, 5, 6)),
    (nn.Conv1d(5, 2, 3), (2, 6, 9), ("Conv1d", "in_channels", 0, 5, 6)),
    (nn.Conv2d(5, 2, 3), (2, 6, 9, 9), ("Conv2d", "in_channels", 0, 5, 6)),
    (nn.Conv2d(5, 2, 3), (6, 9, 9), ("Conv2d", "in_channels", 0, 5, 6)),
    (nn.Conv2d(4, 4, 3, groups=2), (2, 6, 9, 9), ("Conv2d", "in_channels", 0, 4, 6)),
    (nn.Conv3d(5, 2, 3), (2, 6, 9, 9, 9), ("Conv3d", "in_channels", 0, 5, 6)),
    (nn.ConvTranspose1d(5, 2, 3), (2, 6, 9), ("ConvTranspose1d", "in_channels", 0, 5, 6)),
    (nn.ConvTranspose2d(5, 2, 3), (2, 6, 9, 9), ("ConvTranspose2d", "in_channels", 0, 5, 6)),
    (nn.BatchNorm1d(5), (2, 6), ("BatchNorm1d", "num_features", 0, 5, 6)),
    (nn.BatchNorm2d(5), (2, 6, 9, 9), ("BatchNorm2d", "num_features", 0, 5, 6)),
    (nn.BatchNorm3d(5), (2, 6, 3, 3, 3), ("BatchNorm3d", "num_features", 0, 5, 6)),
    (
        nn.InstanceNorm2d(5, affine=True), (2, 6, 9, 9),
        ("InstanceNorm2d", "num_features", 0, 5, 6),
    ),
    (nn.GroupNorm(5, 5), (2, 6, 9), ("GroupNorm", "num_channels", 1, 5, 6)),
    (nn.LayerNorm(5), (2, 3, 6), ("LayerNorm", "normalized_shape", 0, 5, 6)),
    (nn.RMSNorm(5), (2, 3, 6), ("RMSNorm", "normalized_shape", 0, 5, 6)),
    (nn.LSTM(5, 4), (3, 2, 6), ("LSTM", "input_size", 0, 5, 6)),
    (nn.GRU(5, 4, batch_first=True), (3, 2, 6), ("GRU", "input_size", 0, 5, 6)),
    (nn.RNN(5, 4), (3, 2, 6), ("RNN", "input_size", 0, 5, 6)),
    (nn.GRUCell(5, 4), (2, 6), ("GRUCell", "input_size", 0, 5, 6)),
    (nn.LSTMCell(5, 4), (2, 6), ("LSTMCell", "input_size", 0, 5, 6)),
    (nn.PReLU(5), (2, 6, 9), ("PReLU", "num_parameters", 0, 5, 6)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("layer", "shape", "wanted"), LAYERS, ids=[f"{case[0]}" for case in LAYERS]
)
def test_every_layer_says_what_it_expects(layer: nn.Module, shape: Any, wanted: Any) -> None:
    graph = graph_of(nn.Sequential(layer), torch.randn(shape))
    (fault,) = graph.faults
    found = expectation(graph, fault)
    assert found is not None
    assert (found.layer, found.argument, found.position, found.expected, found.received) == wanted


def test_attention_says_its_width() -> None:
    graph = graph_of(
        Net(lambda self, x: self.a(x, x, x)[0], a=nn.MultiheadAttention(4, 2)), torch.randn(3, 2, 6)
    )
    (fault,) = graph.faults
    found = expectation(graph, fault)
    assert found is not None
    assert (found.layer, found.argument, found.expected, found.received) == (
        "MultiheadAttention", "embed_dim", 4, 6,
    )  # fmt: skip


def test_an_embedding_counts_ids() -> None:
    graph = graph_of(nn.Embedding(10, 4), torch.tensor([[0, 12]]))
    (node,) = graph.calls("embedding")
    found = expectation(graph, node)
    assert found is not None
    assert (found.what, found.expected, found.received) == ("ids", 10, 13)


def test_a_sound_layer_expects_what_it_gets_and_others_expect_nothing() -> None:
    graph = graph_of(nn.Sequential(nn.Linear(6, 4), nn.ReLU()), torch.randn(2, 6))
    linear, relu = graph.calls_in_order
    found = expectation(graph, linear)
    assert found is not None
    assert found.expected == found.received == 6
    assert expectation(graph, relu) is None


# ---------------------------------------------------------------------- where an axis comes from


@pytest.mark.parametrize(
    ("change", "axis", "kind"),
    [
        (lambda h: h, 1, "layer"),
        (lambda h: h.relu().clone() * 2, 1, "layer"),
        (lambda h: h.permute(0, 2, 3, 1), 3, "layer"),
        (lambda h: h.permute(0, 2, 3, 1), 1, "other"),
        (lambda h: h.permute((0, -2, -1, 1)), -1, "layer"),
        (lambda h: h.transpose(1, -1), 3, "layer"),
        (lambda h: h.transpose(1, 2).transpose(-1, 2), 3, "layer"),
        (lambda h: h.flatten(2), 1, "layer"),
        (lambda h: h.flatten(2).transpose(1, 2), 2, "layer"),
        (lambda h: h.reshape(2, 7, -1), 1, "layer"),
        (lambda h: h.flatten(1), 1, "flatten"),
        (lambda h: h.view(2, -1), 1, "flatten"),
        (lambda h: h.mean((2, 3)), 1, "layer"),
        (lambda h: h.mean((2, 3), keepdim=True).squeeze(-1).squeeze(-1), 1, "layer"),
        (lambda h: h.amax(-1).amax(-1), 1, "layer"),
        (lambda h: F.adaptive_avg_pool2d(h, 1).flatten(1), 1, "flatten"),
        (lambda h: F.max_pool2d(h, 2), 1, "layer"),
        (lambda h: h.unsqueeze(1), 2, "layer"),
        (lambda h: torch.cat([h, h], 1), 1, "cat"),
        (lambda h: F.dropout(F.gelu(h)).contiguous(), 1, "layer"),
        (lambda h: h[:, :, 0, 0], 1, "layer"),
    ],
)
def test_an_axis_is_traced_to_the_convolution(change: Any, axis: int, kind: str) -> None:
    model = Net(lambda self, x: change(self.conv(x)).exp(), conv=nn.Conv2d(3, 7, 3))
    graph = graph_of(model, torch.randn(2, 3, 11, 13))
    (exp,) = graph.calls("exp")
    data = graph.data(exp)
    assert data is not None
    rank = len(graph.shape(data) or ())
    source = trace_axis(graph, data, axis % rank)
    assert source.kind == kind
    if kind == "layer":
        assert source.node is not None
        assert graph.operation(source.node).module == "conv"


@pytest.mark.parametrize(
    ("change", "axis", "origin"),
    [
        (lambda x: x, 1, 1),
        (lambda x: x.transpose(1, 2), 1, 2),
        (lambda x: x.permute(2, 0, 1) * 2, 0, 2),
        (lambda x: x.mT, 2, 1),
        (lambda x: x.mean(1), 1, 2),
    ],
)
def test_an_axis_is_traced_to_the_input(change: Any, axis: int, origin: int) -> None:
    graph = graph_of(Net(lambda self, x: change(x).exp()), torch.randn(2, 5, 7))
    (exp,) = graph.calls("exp")
    data = graph.data(exp)
    assert data is not None
    source = trace_axis(graph, data, axis)
    assert (source.kind, source.axis) == ("input", origin)


def test_the_width_behind_a_recurrent_layer_is_its_hidden_size() -> None:
    model = Net(
        lambda self, x: self.head(self.rnn(x)[0][:, -1]),
        rnn=nn.LSTM(4, 6, batch_first=True), head=nn.Linear(7, 2),
    )  # fmt: skip
    graph = graph_of(model, torch.randn(2, 3, 4))
    (fault,) = graph.faults
    source = width_source(graph, fault)
    assert source.kind == "layer"
    assert source.node is not None
    assert graph.operation(source.node).module == "rnn"


# ---------------------------------------------------------------------- who is to blame


def test_a_single_complaint_blames_the_layer_that_complains() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(4, 2))
    (found,) = mismatches(graph_of(model, torch.randn(2, 6)))
    assert not found.source_is_to_blame
    assert (found.wants.expected, found.wants.received) == (4, 5)


def test_two_layers_that_agree_against_the_source_blame_it() -> None:
    with recording():
        model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3))
    first, *others = mismatches(graph_of(model, torch.randn(2, 3, 8, 8)))
    assert first.source_is_to_blame
    assert {other.fault for other in others} <= {first.fault}
    assert first.source.node is not None


def test_a_third_that_is_content_acquits_the_source() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        h = self.stem(x)
        return self.a(h), self.b(h), self.c(h)

    with recording():
        model = Net(
            forward, stem=nn.Linear(6, 5),
            a=nn.Linear(4, 2), b=nn.Linear(4, 2), c=nn.Linear(5, 2),
        )  # fmt: skip
    found = mismatches(graph_of(model, torch.randn(2, 6)))
    assert len(found) == 2
    assert not any(one.source_is_to_blame for one in found)
    assert len({one.fault for one in found}) == 2


def test_two_that_disagree_with_each_other_acquit_the_source() -> None:
    model = Net(
        lambda self, x: (self.a(self.stem(x)), self.b(self.stem(x))),
        stem=nn.Linear(6, 5), a=nn.Linear(4, 2), b=nn.Linear(3, 2),
    )  # fmt: skip
    assert not any(one.source_is_to_blame for one in mismatches(graph_of(model, torch.randn(2, 6))))


def pooled(side: int, width: int) -> nn.Module:
    body = (nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(side), nn.Dropout(), nn.Flatten())
    return nn.Sequential(*body, nn.Linear(width, 2))


WIDTHS_FROM_THE_INPUT = [
    (nn.Linear(5, 2), (2, 6)),
    (nn.Sequential(nn.ReLU(), nn.Linear(5, 2)), (2, 6)),
    (nn.Conv2d(5, 2, 3), (2, 6, 9, 9)),
    (nn.Sequential(nn.MaxPool2d(2), nn.BatchNorm2d(5)), (2, 6, 8, 8)),
    (nn.Sequential(nn.Flatten(), nn.Linear(50, 2)), (2, 3, 4, 4)),
    (nn.LSTM(5, 4), (3, 2, 6)),
    (Net(lambda self, x: self.fc(x.mean(1)), fc=nn.Linear(5, 2)), (2, 3, 6)),
    (Net(lambda self, x: self.fc(torch.cat([x, x], -1)), fc=nn.Linear(5, 2)), (2, 6)),
    (Net(lambda self, x: self.fc(x.transpose(1, 2)), fc=nn.Linear(5, 2)), (2, 6, 3)),
    # 128 = 8 channels of a 4 x 4 map: an image of another size fits.
    (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(128, 2)), (2, 3, 8, 8)),
]


@pytest.mark.parametrize(("model", "shape"), WIDTHS_FROM_THE_INPUT)
def test_a_made_up_input_is_never_an_accusation(model: nn.Module, shape: Any) -> None:
    made_up = graph_of(nn.Sequential(model), torch.randn(shape), given=False)
    assert len(made_up.faults) == 1
    assert not blames_the_model(made_up, made_up.faults[0])
    assert mismatches(made_up) == []
    theirs = graph_of(nn.Sequential(model), torch.randn(shape), given=True)
    assert blames_the_model(theirs, theirs.faults[0])
    assert len(mismatches(theirs)) == 1


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.Linear(6, 5), nn.Linear(4, 2)), (2, 6)),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(9)), (2, 3, 9, 9)),
        (nn.Sequential(nn.Embedding(9, 4), nn.LayerNorm(5)), None),
        # No number of pixels times 8 channels is 130.
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(130, 2)), (2, 3, 8, 8)),
        # 16 = 8 x 2, but whatever the image, the pooling leaves one pixel, or four.
        (pooled(1, 16), (2, 3, 8, 8)),
        (pooled(2, 64), (2, 3, 8, 8)),
    ],
)
def test_what_another_layer_decided_is_the_models_fault_whatever_the_input(
    model: nn.Module, shape: Any
) -> None:
    x = torch.zeros(2, 3, dtype=torch.long) if shape is None else torch.randn(shape)
    graph = graph_of(model, x, given=False)
    assert len(graph.faults) == 1
    assert blames_the_model(graph, graph.faults[0])
    assert len(mismatches(graph)) == 1


def test_agreed_width_of_one_constructor() -> None:
    with recording():
        blocks = [nn.Linear(4, 6) for _ in range(2)]
    same = graph_of(
        Net(lambda self, x: self.a(x) + self.b(x), a=blocks[0], b=blocks[1]), torch.randn(2, 6)
    )
    assert agreed_width(same, same.faults[0]) == 6
    series = graph_of(nn.Sequential(*blocks), torch.randn(2, 5))
    assert agreed_width(series, series.faults[0]) is None  # the first gets 5, the second 6


def test_a_cat_of_different_ranks_is_traced_without_failing() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(16, 8)

        def forward(self, hidden: Tensor, encoded: Tensor) -> Tensor:
            first: Tensor = self.project(torch.cat((hidden.reshape(-1), encoded), 1))
            return first

    recording = capture(Attention(), (torch.randn(2, 8), torch.randn(2, 8)))
    graph = Graph(recording.graph, recording.model, faults=recording.faults, inputs_given=False)
    assert [graph.name(node) for node in graph.faults][:1] == ["cat"]
    doubtful_faults(graph)


@pytest.mark.parametrize(
    "other",
    [
        lambda self, h: h + torch.zeros(2, 5, 64),
        lambda self, h: h.view(2, 5, 4, 16).flatten(2),
        lambda self, h: h.view(10, 64).unflatten(0, (2, 5)),
    ],
)
def test_a_sum_or_reshape_that_wants_the_layers_width_blames_what_made_the_other(
    other: Callable[..., Any],
) -> None:
    model = Net(
        lambda self, x: (lambda h: (other(self, h), self.ff(h)))(self.emb(x)),
        emb=nn.Linear(16, 48),
        ff=nn.Linear(64, 64),
    )
    graph = graph_of(model, torch.randn(2, 5, 16))
    found = mismatches(graph)
    assert len(found) == 1
    assert found[0].source_is_to_blame
    assert {graph.name(node) for node in found[0].agreeing} >= {"linear"}


def test_a_sum_that_wants_another_width_blames_nobody() -> None:
    model = Net(
        lambda self, x: (lambda h: (h + torch.zeros(2, 96), self.ff(h)))(self.emb(x)),
        emb=nn.Linear(16, 48),
        ff=nn.Linear(64, 64),
    )
    graph = graph_of(model, torch.randn(2, 16))
    assert [found.source_is_to_blame for found in mismatches(graph)] == [False]
