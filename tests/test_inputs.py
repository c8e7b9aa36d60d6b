"""Inputs: given as values, as text, or found by trying, the same each time."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import trainlint
from trainlint.capture.inputs import fits_signature, from_text, from_value
from trainlint.capture.search import synthesize
from trainlint.errors import InputError
from trainlint.targets.specs import DTYPES, parse_spec


class Takes(nn.Module):
    """A model with the signature of the given function."""

    def __init__(self, forward: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self._function = forward
        self.forward = forward.__get__(self)  # type: ignore[method-assign]
        for name, part in parts.items():
            setattr(self, name, part)


ONE = Takes(lambda self, batch: batch)
TWO = Takes(lambda self, image, mask=None: image)
ANY = Takes(lambda self, **options: options)
X, Y = torch.randn(2, 3), torch.randn(2)


class Pair(NamedTuple):
    left: Any
    right: Any


# ---------------------------------------------------------------------- given


@pytest.mark.parametrize(
    ("value", "model", "args", "kwargs"),
    [
        (X, ONE, (X,), {}),
        ((X, Y), TWO, (X, Y), {}),
        ([X, Y], TWO, (X, Y), {}),
        (Pair(X, Y), ONE, (Pair(X, Y),), {}),
        ({"image": X, "mask": Y}, TWO, (), {"image": X, "mask": Y}),
        ({"image": X}, TWO, (), {"image": X}),
        ({"other": X}, ANY, (), {"other": X}),
        ({"image": X, "age": Y}, ONE, ({"image": X, "age": Y},), {}),
        ({"image": X, "age": Y}, TWO, ({"image": X, "age": Y},), {}),
        ({3: X}, TWO, ({3: X},), {}),
        (lambda: X, ONE, (X,), {}),
        (lambda: (X, Y), TWO, (X, Y), {}),
        (lambda: {"image": X}, TWO, (), {"image": X}),
        ("words", ONE, ("words",), {}),
        ((), ONE, (), {}),
    ],
)
def test_values_become_arguments(value: Any, model: Any, args: Any, kwargs: Any) -> None:
    found = from_value(value, model, "given")
    assert (found.args, found.kwargs, found.given) == (args, kwargs, True)


def test_whether_they_fit_the_signature() -> None:
    assert fits_signature(from_value((X, Y), TWO, ""), TWO)
    assert not fits_signature(from_value((X, Y), ONE, ""), ONE)
    assert not fits_signature(from_value((), ONE, ""), ONE)


def test_inputs_describe_themselves() -> None:
    found = from_value({"image": X, "mask": 3}, TWO, "given")
    assert found.describe() == "image=(2, 3) float32, mask=3"
    assert from_value(((X, X), {"a": 1}), TWO, "").describe() == "tuple, dict"
    assert from_value((), ONE, "").describe() == "none"


# ---------------------------------------------------------------------- as text

SIZES = st.lists(st.integers(0, 40), max_size=4).map(tuple)


@given(st.lists(st.tuples(SIZES, st.sampled_from([None, *DTYPES])), min_size=1, max_size=4))
def test_specs_say_what_they_were_written_from(arguments: list[Any]) -> None:
    parts = []
    for sizes, kind in arguments:
        kind = kind or ("float" if not sizes else None)
        parts.append("x".join(map(str, sizes)) + (f":{kind}" if kind else ""))
    wanted = [(sizes, DTYPES[kind or "float"]) for sizes, kind in arguments]
    assert parse_spec(",".join(parts)) == wanted
    assert parse_spec(" , ".join(parts)) == wanted


@pytest.mark.parametrize(
    ("text", "shapes", "dtypes"),
    [
        ("2x3x32x32", [(2, 3, 32, 32)], [torch.float32]),
        ("2x16:long,2", [(2, 16), (2,)], [torch.int64, torch.float32]),
        ("2x4:bool,3:half,:long", [(2, 4), (3,), ()], [torch.bool, torch.float16, torch.int64]),
        ("2:complex", [(2,)], [torch.complex64]),
        ("0x3", [(0, 3)], [torch.float32]),
    ],
)
def test_text_becomes_tensors(text: str, shapes: Any, dtypes: Any) -> None:
    args = from_text(text).args
    assert [tuple(value.shape) for value in args] == shapes
    assert [value.dtype for value in args] == dtypes


@pytest.mark.parametrize(
    "text",
    ["", ",", "2x", "x2", "2xx3", "axb", "-1x3", "2.5", "2x3:flaot", "2x3,", "2*3", "2:3:4"],
)
def test_bad_text_is_an_error_that_quotes_it(text: str) -> None:
    with pytest.raises(InputError, match="--inputs: "):
        parse_spec(text)


def test_an_unknown_type_lists_the_known() -> None:
    with pytest.raises(InputError, match="unknown type 'flaot'; known: float, double, half, long"):
        parse_spec("2x3:flaot")


def test_ids_lie_below_the_smallest_embedding() -> None:
    model = nn.ModuleList([nn.Embedding(50, 2), nn.Embedding(3, 2)])
    (ids,) = from_text("8x64:long", model).args
    assert ids.min() >= 0
    assert ids.max() == 2
    assert torch.equal(from_text("5x5").args[0], from_text("5x5").args[0])


# ---------------------------------------------------------------------- found


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(50, 8), nn.Parameter(torch.zeros(1, 16, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.body, self.head = nn.TransformerEncoder(layer, 1), nn.Linear(8, 50)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids)
        return self.head(self.body(h + self.place[:, : h.shape[1]]))


class Timed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.time = nn.Conv2d(3, 8, 3, padding=1), nn.Embedding(100, 8)
        self.out = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.out(self.conv(x) + self.time(t)[:, :, None, None])


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(5, 4), nn.Linear(7, 4), nn.Linear(8, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head(torch.cat([self.left(left), self.right(right)], 1))


class Ratings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(9, 4), nn.Embedding(5, 4)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return (self.users(user) * self.items(item)).sum(-1)


class Stateful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x: Tensor, hidden: Any) -> Any:
        y, hidden = self.rnn(x, hidden)
        return self.head(y[:, -1]), hidden


def lenet(pixels: int = 400) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(pixels, 120), nn.ReLU(), nn.Linear(120, 10),
    )  # fmt: skip


MODELS: dict[str, tuple[Callable[[], nn.Module], list[tuple[int, ...]] | None]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 2)), [(2, 20)]),
    "flattened image": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), [(2, 784)]),
    "cnn": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1)), None),
    "lenet": (lenet, [(2, 3, 32, 32)]),
    "signal": (lambda: nn.Sequential(nn.Conv1d(2, 4, 9), nn.ReLU(), nn.Conv1d(4, 1, 9)), None),
    "volume": (lambda: nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2)), None),
    "autoencoder": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(4, 3, 4, 2, 1)
        ),
        None,
    ),
    "tokens": (Tokens, [(2, 16)]),
    "rnn": (lambda: nn.LSTM(6, 8, batch_first=True), None),
    "rnn with state": (Stateful, None),
    "diffusion": (Timed, None),
    "two inputs": (Joined, [(2, 5), (2, 7)]),
    "ratings": (Ratings, [(2,), (2,)]),
    "attention": (lambda: nn.TransformerEncoderLayer(8, 2, 16), None),
    "norm first": (lambda: nn.Sequential(nn.LayerNorm(7), nn.Linear(7, 3)), None),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(2)), None),
}


@pytest.mark.parametrize("name", MODELS)
def test_inputs_are_found_that_eager_runs(name: str) -> None:
    build, shapes = MODELS[name]
    torch.manual_seed(0)
    model = build()
    found = synthesize(model)
    assert found.recording.exception is None
    assert found.recording.faults == []
    assert not found.inputs.given
    model(*found.inputs.args, **found.inputs.kwargs)
    if shapes is not None and name != "ratings":
        assert [tuple(value.shape) for value in found.inputs.args] == shapes


@pytest.mark.parametrize(
    ("pixels", "shape"), [(400, (32, 32)), (16 * 4 * 4, (28, 28)), (16 * 5 * 6, None)]
)
def test_the_size_is_searched_behind_a_flatten(pixels: int, shape: Any) -> None:
    model = lenet(pixels)
    found = synthesize(model)
    assert found.recording.faults == []
    (image,) = found.inputs.args
    model(image)
    if shape is not None:
        assert tuple(image.shape[-2:]) == shape


def test_a_width_that_no_image_gives_is_reported() -> None:
    report = trainlint.check(lenet(401))
    assert report.targets[0].status == "ok", report.targets[0].reason
    (finding,) = report.findings
    assert (finding.module, finding.severity) == ("7", "error")
    assert finding.evidence.get("expected", 401) == 401


def test_a_size_that_an_image_could_have_is_not_accused() -> None:
    """16 channels x 7 x 7 comes from 40 x 40; no finding on inputs that are made up."""
    report = trainlint.check(lenet(16 * 7 * 7))
    assert report.findings == []
    assert report.targets[0].status == "ok"
    assert "40, 40" in (report.targets[0].inputs or "")


@pytest.mark.parametrize("name", ["lenet", "tokens", "two inputs"])
def test_the_same_inputs_each_time_and_no_trace_in_the_random_states(name: str) -> None:
    model = MODELS[name][0]()
    torch.manual_seed(5)
    random.seed(5)
    states = torch.get_rng_state(), random.getstate()
    first = synthesize(model).inputs
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    torch.manual_seed(6)
    second = synthesize(model).inputs
    assert all(torch.equal(a, b) for a, b in zip(first.args, second.args, strict=True))
    assert first.origin == second.origin


def test_where_nothing_is_accepted_the_first_refusal_is_told() -> None:
    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            raise LookupError(f"not {tuple(x.shape)}")

    with pytest.raises(InputError) as caught:
        synthesize(Picky())
    assert isinstance(caught.value.refusal, LookupError)
    report = trainlint.check(Picky())
    assert report.targets[0].status == "error"
    assert "LookupError: not (2, 3)" in (report.targets[0].reason or "")
    assert report.exit_status() == 2


def test_the_models_own_example_is_used() -> None:
    model = nn.Linear(3, 2)
    model.example_input_array = torch.randn(7, 3)
    found = synthesize(model).inputs
    assert tuple(found.args[0].shape) == (7, 3)
    assert "example_input_array" in found.origin
