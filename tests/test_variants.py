"""Variants of a capture: eval mode, and which axis of a node holds the samples."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from trainlint.analysis.variants import Variants
from trainlint.capture.batches import batch_size, batch_variants, with_batch
from trainlint.capture.inputs import Inputs
from trainlint.capture.tracer import capture
from trainlint.graph import Graph


def variants_of(
    model: nn.Module, *args: Any, given: bool = True, **kwargs: Any
) -> tuple[Variants, Graph]:
    inputs = Inputs(args, kwargs, "of the test", given=given)
    recording = capture(model, args, kwargs)
    assert recording.exception is None
    graph = Graph(recording.graph, recording.model, faults=recording.faults)
    return Variants(inputs, graph), graph


def axes(model: nn.Module, *args: Any, **options: Any) -> dict[str, int | None]:
    """The batch axis of each call, by its name; the last one of a name counts."""
    variants, graph = variants_of(model, *args, **options)
    return {graph.name(node): variants.batch_axis(node) for node in graph.calls_in_order}


class Runs(nn.Module):
    """A model whose forward is the given function of itself and the inputs."""

    def __init__(self, forward: Any, **parts: nn.Module) -> None:
        super().__init__()
        self._forward_function = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward_function(self, *args, **kwargs)


# ---------------------------------------------------------------------- the samples' axis


def test_the_axis_is_followed_through_rearrangements() -> None:
    model = Runs(lambda m, x: m.fc(x.relu()).t().unsqueeze(0).sigmoid(), fc=nn.Linear(5, 7))
    found = axes(model, torch.randn(3, 5))
    assert found == {"relu": 0, "linear": 0, "t": 1, "unsqueeze": 2, "sigmoid": 2}


def test_axes_of_the_same_length_as_the_batch_are_told_apart() -> None:
    model = Runs(
        lambda m, x: m.attend(x, x, x)[0] + torch.eye(4) @ x,
        attend=nn.MultiheadAttention(4, 2, batch_first=True),
    )
    variants, graph = variants_of(model, torch.randn(4, 4, 4))
    assert variants.batch_is_known
    assert [variants.batch_axis(output) for output in graph.outputs] == [0]


def test_weights_and_tables_have_no_samples() -> None:
    model = Runs(lambda m, x: m.fc(x) + torch.zeros(2), fc=nn.Linear(2, 2))
    variants, graph = variants_of(model, torch.randn(2, 2))
    found = {graph.name(node): variants.batch_axis(node) for node in graph.nodes[:-1]}
    assert found["parameter"] is None
    assert found["zeros"] is None
    assert found["add"] == 0


def test_an_axis_that_holds_more_than_the_samples_is_none() -> None:
    found = axes(Runs(lambda m, x: x.reshape(-1, 4).tanh().sum()), torch.randn(3, 5, 4))
    assert found == {"reshape": None, "tanh": None, "sum": None}


def test_a_table_of_samples_against_samples_has_two_axes_and_so_none() -> None:
    assert axes(Runs(lambda m, x: x @ x.t()), torch.randn(3, 5))["matmul"] is None


def test_a_batch_of_one_can_grow() -> None:
    found = axes(Runs(lambda m, x: m.fc(x), fc=nn.Linear(4, 1)), torch.randn(1, 4))
    assert found["linear"] == 0


# ---------------------------------------------------------------------- where it cannot be known


@pytest.mark.parametrize(
    ("forward", "parts"),
    [
        (lambda m, x: m.fc(x.view(2, 6)), {"fc": nn.Linear(6, 1)}),
        (lambda m, x: torch.stack([m.fc(row) for row in x]), {"fc": nn.Linear(6, 1)}),
        (lambda m, x: x.relu() if x.size(0) % 2 else x.tanh(), {}),
        (lambda m, x: m.bilinear(x, x[:2]), {"bilinear": nn.Bilinear(6, 6, 1)}),
    ],
    ids=["fixed size", "a loop over samples", "a branch by size", "a fixed partner"],
)
def test_a_model_that_runs_another_way_or_not_at_all_is_not_compared(
    forward: Any, parts: dict[str, nn.Module]
) -> None:
    variants, graph = variants_of(Runs(forward, **parts), torch.randn(2, 6))
    assert not variants.batch_is_known
    assert [variants.batch_axis(node) for node in graph.calls_in_order].count(None) == len(
        graph.calls_in_order
    )


def test_faults_that_only_the_larger_batch_has_say_nothing_of_the_model() -> None:
    model = Runs(lambda m, x: m.fc(x.t()), fc=nn.Linear(2, 3))  # the batch as features
    variants, _ = variants_of(model, torch.randn(2, 6))
    assert not variants.batch_is_known


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.LSTM(6, 6), (5, 2, 6)),
        (nn.GRU(6, 6, bidirectional=True), (5, 2, 6)),
        (nn.RNN(6, 6), (5, 6)),
        (nn.MultiheadAttention(6, 2), (5, 2, 6)),
        (nn.MultiheadAttention(6, 2), (5, 6)),
    ],
    ids=["lstm", "gru", "one sequence", "attention", "attention in one sequence"],
)
def test_a_first_axis_of_time_is_no_batch(layer: nn.Module, shape: tuple[int, ...]) -> None:
    def forward(m: Any, x: Tensor) -> Any:
        return m.layer(x, x, x)[0] if isinstance(layer, nn.MultiheadAttention) else m.layer(x)[0]

    variants, graph = variants_of(Runs(forward, layer=layer), torch.randn(shape))
    assert variants.batch_size == 5
    assert not variants.batch_is_known
    assert variants.batch_axis(graph.outputs[0]) is None


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_batch_before_recurrence_is_one(batch_first: bool) -> None:
    def forward(m: Any, x: Tensor) -> Any:
        states, _ = m.lstm(x if batch_first else x.transpose(0, 1))
        return m.fc(states[:, -1] if batch_first else states[-1])

    lstm = nn.LSTM(6, 6, batch_first=batch_first)
    found = axes(Runs(forward, lstm=lstm, fc=nn.Linear(6, 2)), torch.randn(3, 5, 6))
    assert found["linear"] == 0


def test_one_picture_without_a_batch_axis_has_none() -> None:
    model = Runs(
        lambda m, x: nn.functional.conv2d(x.transpose(0, 1), m.conv.weight), conv=nn.Conv2d(3, 4, 3)
    )
    variants, _ = variants_of(model, torch.randn(9, 3, 9))  # a row of pixels, not a sample
    assert not variants.batch_is_known


def test_without_tensors_there_is_nothing_to_grow() -> None:
    model = Runs(lambda m, n: m.fc(torch.ones(n, 3)), fc=nn.Linear(3, 1))
    variants, _ = variants_of(model, 4)
    assert variants.batch_size is None
    assert not variants.batch_is_known


# ---------------------------------------------------------------------- awkward inputs


class Recurrent(nn.Module):
    def __init__(self, layers: int, kind: type[nn.RNNBase] = nn.GRU) -> None:
        super().__init__()
        self.rnn = kind(4, 8, layers, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Any, state: Any = None) -> Any:
        states, last = self.rnn(x, state)
        if isinstance(states, PackedSequence):
            states = pad_packed_sequence(states, batch_first=True)[0]
        return self.head(states[:, -1]), last


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("samples", [1, 2, 3])
def test_hidden_states_grow_on_their_second_axis(layers: int, samples: int) -> None:
    x, state = torch.randn(samples, 5, 4), torch.zeros(layers, samples, 8)
    variants, graph = variants_of(Recurrent(layers), x, state)
    assert variants.batch_is_known
    assert [variants.batch_axis(output) for output in graph.outputs] == [0, 1]


def test_a_pair_of_states_grows_as_well() -> None:
    state = (torch.zeros(2, 2, 8), torch.zeros(2, 2, 8))
    variants, _ = variants_of(Recurrent(2, nn.LSTM), torch.randn(2, 5, 4), state)
    assert variants.batch_is_known


@pytest.mark.parametrize("is_sorted", [True, False])
def test_packed_sequences_grow_by_a_sequence(is_sorted: bool) -> None:
    lengths = [5, 3, 2] if is_sorted else [3, 5, 2]
    packed = pack_padded_sequence(
        torch.randn(3, 5, 4), torch.tensor(lengths), batch_first=True, enforce_sorted=is_sorted
    )
    inputs = Inputs((packed,), {}, "", given=True)
    assert batch_size(inputs) == 3
    larger = with_batch(inputs, 4).args[0]
    _, new_lengths = pad_packed_sequence(larger)
    assert len(new_lengths) == 4
    assert set(new_lengths.tolist()) == set(lengths)
    assert (larger.sorted_indices is None) == is_sorted
    padded, _ = pad_packed_sequence(with_batch(inputs, 2).args[0], batch_first=True)
    expected, _ = pad_packed_sequence(packed, batch_first=True)
    assert torch.equal(padded, expected[:2, : padded.shape[1]])
    variants, graph = variants_of(Recurrent(1), packed)
    assert variants.batch_is_known
    assert variants.batch_axis(graph.outputs[0]) == 0


def test_lengths_stay_sorted_with_what_they_measure() -> None:
    def forward(m: Any, x: Tensor, lengths: Tensor) -> Any:
        packed = pack_padded_sequence(x, lengths, batch_first=True)
        return m.head(m.rnn(packed)[1][-1])

    model = Runs(forward, rnn=nn.GRU(4, 8, batch_first=True), head=nn.Linear(8, 1))
    inputs = Inputs((torch.randn(3, 5, 4), torch.tensor([5, 3, 2])), {}, "", given=True)
    larger = with_batch(inputs, 7)
    x, lengths = larger.args
    assert lengths.tolist() == sorted(lengths.tolist(), reverse=True)
    for row, length in zip(x, lengths, strict=True):
        assert torch.equal(row, inputs.args[0][[5, 3, 2].index(int(length))])
    assert variants_of(model, *inputs.args)[0].batch_is_known


def test_dicts_keywords_and_scalars() -> None:
    def forward(m: Any, scale: Tensor, batch: dict[str, Any], *, mask: Tensor) -> Tensor:
        return m.fc(batch["inner"]["x"]) * scale * mask

    inputs = {"inner": {"x": torch.randn(3, 4)}, "name": "a batch"}
    mask = torch.ones(3, 1, dtype=torch.bool)
    model = Runs(forward, fc=nn.Linear(4, 2))
    variants, graph = variants_of(model, torch.tensor(2.0), inputs, mask=mask)
    assert variants.batch_size == 3
    assert variants.batch_axis(graph.outputs[0]) == 0


def test_containers_that_cannot_be_rebuilt_give_no_answer() -> None:
    class Batch(UserDict[str, Tensor]):
        pass

    model = Runs(lambda m, batch: m.fc(batch["x"]), fc=nn.Linear(4, 2))
    variants, _ = variants_of(model, Batch(x=torch.randn(3, 4)))
    assert variants.batch_size == 3
    assert not variants.batch_is_known


def test_a_graph_grows_by_a_node_and_keeps_its_edges() -> None:
    def forward(m: Any, x: Tensor, edges: Tensor) -> Tensor:
        return m.fc(x).index_add(0, edges[1], m.fc(x)[edges[0]])

    edges = torch.tensor([[0, 1, 2], [1, 2, 3]])
    inputs = Inputs((torch.randn(5, 4), edges), {}, "", given=True)
    larger = with_batch(inputs, 6)
    assert larger.args[0].shape == (6, 4)
    assert larger.args[1] is edges
    assert not variants_of(Runs(forward, fc=nn.Linear(4, 2)), *inputs.args)[0].batch_is_known


def test_the_model_is_as_before() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    variants, _ = variants_of(model, torch.randn(3, 4))
    assert variants.batch_is_known
    assert variants.eval is not None
    assert [part.training for part in model] == [True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# ---------------------------------------------------------------------- the inputs that are made


def test_more_samples_that_we_made_up_differ_and_look_alike() -> None:
    ids, x = torch.randint(3, 9, (2, 400)), torch.rand(2, 400) + 1
    mask, targets = torch.ones(2, 400), torch.tensor([1, 4])
    made = with_batch(Inputs((ids, x, mask, targets), {}, "", given=False), 5).args
    assert [len(tensor) for tensor in made] == [5] * 4
    assert torch.equal(made[0][:2], ids)
    assert made[0].dtype == ids.dtype
    assert (made[0].min(), made[0].max()) == (3, 8)
    assert len({tuple(row.tolist()) for row in made[1]}) == 5
    assert float(made[1][2:].mean()) == pytest.approx(float(x.mean()), abs=0.05)
    assert float(made[1].min()) >= float(x.min())
    assert bool((made[2] == 1).all())
    assert made[3].tolist() == [1, 1, 1, 4, 4]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([[float("-inf"), 0.0], [0.0, 0.0]]),
        torch.empty(2, 3, device="meta"),
        torch.zeros(2, 3),
        torch.zeros(2, 0),
        torch.randn(2, 3, dtype=torch.complex64),
        torch.tensor([[1.5]]),
        torch.zeros(2, 3, dtype=torch.uint8),
        torch.randn(2, 3, dtype=torch.float16),
    ],
    ids=["-inf", "meta", "mask", "empty", "complex", "one number", "uint8", "half"],
)
def test_every_kind_of_tensor_can_be_grown_and_shortened(tensor: Tensor) -> None:
    for given in (True, False):
        inputs = Inputs((tensor,), {}, "", given=given)
        for size in (1, 4):
            made = with_batch(inputs, size).args[0]
            assert made.shape == (size, *tensor.shape[1:])
            assert (made.dtype, made.device) == (tensor.dtype, tensor.device)
            assert made.is_meta or not made.isnan().any()


def test_given_samples_are_repeated_and_fewer_are_the_first() -> None:
    x = torch.arange(6).view(3, 2)
    inputs = Inputs((x,), {"y": torch.arange(3)}, "", given=True)
    assert with_batch(inputs, 3) is inputs
    more = with_batch(inputs, 4)
    assert more.kwargs["y"].tolist() == [0, 0, 1, 2]
    assert torch.equal(more.args[0], x[[0, 0, 1, 2]])
    assert with_batch(inputs, 2).kwargs["y"].tolist() == [0, 1]


def test_only_doubtful_inputs_have_a_second_reading() -> None:
    plain = Inputs((torch.randn(2, 5), torch.randn(2, 7)), {}, "", given=True)
    assert len(list(batch_variants(plain, 3))) == 1
    states = Inputs((torch.randn(2, 5, 4), torch.zeros(2, 2, 8)), {}, "", given=True)
    first, second = batch_variants(states, 3)
    assert first.args[1].shape == (3, 2, 8)
    assert second.args[1].shape == (2, 3, 8)


# ---------------------------------------------------------------------- one sample


def test_a_model_of_vectors_takes_one_without_a_batch() -> None:
    variants, _ = variants_of(nn.Sequential(nn.Linear(4, 3), nn.Softmax(dim=0)), torch.randn(2, 4))
    assert variants.single is not None
    assert [variants.single.shape(output) for output in variants.single.outputs] == [(3,)]


@pytest.mark.parametrize(
    "forward",
    [lambda m, x: m.fc(x.flatten(1)), lambda m, x: m.fc(x.view(x.size(0), -1))],
    ids=["flatten", "view"],
)
def test_a_model_that_needs_its_batch_has_no_single(forward: Any) -> None:
    variants, _ = variants_of(Runs(forward, fc=nn.Linear(4, 3)), torch.randn(2, 4))
    assert variants.single is None


def test_packed_sequences_have_no_single() -> None:
    packed = pack_padded_sequence(torch.randn(2, 5, 4), torch.tensor([5, 3]), batch_first=True)
    assert variants_of(Recurrent(1), packed)[0].single is None


# ---------------------------------------------------------------------- eval mode


def dropout_at_work(graph: Graph | None) -> list[bool]:
    assert graph is not None
    return [graph.argument(node, "training") for node in graph.calls("dropout")]


def test_eval_mode_shows_the_dropout_that_goes_on() -> None:
    model = Runs(lambda m, x: nn.functional.dropout(m.drop(x), 0.5), drop=nn.Dropout(0.5))
    variants, graph = variants_of(model, torch.randn(2, 4))
    assert dropout_at_work(graph) == [True, True]
    assert dropout_at_work(variants.eval) == [False, True]


def test_a_model_in_eval_mode_is_its_own_variant() -> None:
    variants, graph = variants_of(
        nn.Sequential(nn.Linear(4, 4), nn.Dropout()).eval(), torch.ones(2, 4)
    )
    assert variants.eval is graph


def test_an_eval_of_the_users_own_is_respected() -> None:
    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def train(self, mode: bool = True) -> Stubborn:
            return super().train(True)

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(x)

    variants, _ = variants_of(Stubborn(), torch.randn(2, 4))
    assert dropout_at_work(variants.eval) == [True]

    class Refusing(nn.Linear):
        def eval(self) -> Refusing:
            raise RuntimeError("not this one")

    assert variants_of(Refusing(4, 4), torch.randn(2, 4))[0].eval is None


def test_an_eval_path_that_fails_is_none() -> None:
    model = Runs(lambda m, x: m.fc(x) if m.training else m.missing(x), fc=nn.Linear(4, 4))
    assert variants_of(model, torch.randn(2, 4))[0].eval is None


def test_lazy_layers_keep_the_shapes_they_got() -> None:
    model = nn.Sequential(nn.LazyLinear(5), nn.Dropout())
    variants, graph = variants_of(model, torch.randn(2, 4))
    assert variants.batch_axis(graph.outputs[0]) == 0
    assert variants.eval is not None
    assert variants.eval.model is graph.model


def test_each_variant_is_captured_once_and_only_if_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import trainlint.capture.tracer

    calls = []

    def counting(*args: Any) -> Any:
        calls.append(args)
        return capture(*args)

    variants, graph = variants_of(nn.Sequential(nn.Linear(4, 4), nn.Dropout()), torch.ones(2, 4))
    monkeypatch.setattr(trainlint.capture.tracer, "capture", counting)
    assert variants.batch_size == 2
    assert calls == []
    for node in graph.calls_in_order:
        variants.batch_axis(node)
    assert len(calls) == 1
    assert variants.eval is variants.eval
    assert len(calls) == 2
