"""A check leaves no trace: models, gradients, hooks, modes and random states are bit for bit as before."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import random
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import trainlint
from trainlint.capture.tracer import capture
from trainlint.preserve import preserved

# ---------------------------------------------------------------------- what must be as before


def frozen(value: Any, depth: int = 6) -> Any:
    """A deep description of a value: tensors by identity and bits, containers by identity and contents."""
    if isinstance(value, Tensor):
        if isinstance(value, nn.parameter.UninitializedTensorMixin):
            return ("lazy", id(value), type(value))
        if value.layout != torch.strided:
            return ("sparse", id(value), value.layout, frozen(value.detach().to_dense())[-2])
        plain = value.detach().contiguous()
        bits = ctypes.string_at(plain.data_ptr(), plain.nbytes) if plain.nbytes else b""
        flags = (value.requires_grad, value.is_leaf, value.dtype, value.device, value.layout)
        return (
            "tensor", id(value), type(value), tuple(value.shape), value.stride(), value.data_ptr(),
            *flags, frozen(value.grad) if value.is_leaf else None, bits,
            len(value._backward_hooks or ()),
        )  # fmt: skip
    if depth == 0 or isinstance(value, nn.Module):
        return (id(value), type(value))
    if isinstance(value, dict):
        items = [(key, frozen(part, depth - 1)) for key, part in value.items()]
        return ("dict", id(value), type(value), items)
    if isinstance(value, (list, tuple, deque)):
        return (type(value), id(value), [frozen(part, depth - 1) for part in value])
    if isinstance(value, set):
        return ("set", id(value), sorted(map(repr, value)))
    if isinstance(value, (int, float, str, bool, bytes, type(None))):
        return repr(value)
    return (id(value), type(value))


def world(model: nn.Module) -> dict[str, Any]:
    """Everything of the model and of the process that a check could have touched."""
    seen: dict[str, Any] = {
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "modes": torch._C._is_torch_function_mode_enabled(),
        "call": nn.Module.__dict__["__call__"],
        "init": nn.Module.__dict__["__init__"],
        "apply": torch.autograd.Function.__dict__["apply"],
    }
    if "numpy.random" in sys.modules:
        name, keys, *rest = sys.modules["numpy.random"].get_state()
        seen["numpy"] = (name, keys.tolist(), rest)
    hidden = [part for m in model.modules() if isinstance(m, Hiding) for part in m.parts()]
    named = [*model.named_modules(), *((f"hidden {n}", m) for n, m in enumerate(hidden))]
    for path, module in named:
        seen[f"module {path}"] = frozen(vars(module))
        seen[f"training {path}"] = module.training
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
            seen[f"{name} {path}"] = list(getattr(module, name))
    return seen


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    before = world(model)
    yield
    after = world(model)
    assert before.keys() == after.keys()
    assert [key for key in before if before[key] != after[key]] == []


# ---------------------------------------------------------------------- random architectures


class Stateful(nn.Module):
    """Keeps books in Python and in buffers, as users' modules do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)
        self.calls = 0
        self.seen: list[Any] = [1]
        self.cache: dict[str, Any] = {}
        self.order: OrderedDict[str, int] = OrderedDict(a=1, b=2)
        self.kinds: set[str] = {"x"}
        self.recent: deque[Any] = deque([0], maxlen=2)
        self.plain = torch.zeros(width)
        self.register_buffer("average", torch.zeros(width))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("counts", torch.zeros(3, dtype=torch.int32), persistent=False)
        self.late: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(tuple(x.shape))
        self.cache["last"] = x
        self.cache.setdefault("mask", torch.ones(x.shape[-1]))
        self.order.move_to_end("a")
        self.kinds.add("y")
        self.recent.append(x)
        self.plain.add_(1)
        self.average.mul_(0.9).add_(x.reshape(-1, x.shape[-1]).mean(0) * 0.1)
        self.steps += 1
        self.counts[1] += 2
        self.late = torch.rand(2)
        self.new_attribute = random.random()
        if "numpy.random" in sys.modules:
            sys.modules["numpy.random"].rand()
        torch.randn(3)
        return self.fc(x) * self.cache["mask"]


class Hiding(nn.Module):
    """Holds layers where `modules()` does not see them: in a list, and in a dict of tuples."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = [nn.Linear(width, width), nn.BatchNorm1d(width)]
        self.more = {"last": (nn.Sequential(nn.BatchNorm1d(width), nn.Dropout(0.5)),)}

    def parts(self) -> list[nn.Module]:
        return [*self.layers, *self.more["last"][0].modules()]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.more["last"][0](x)


class Overwriting(nn.Module):
    """Replaces its buffer and writes to its weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width))
        self.register_buffer("centre", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        self.centre = x.detach().reshape(-1, x.shape[-1]).mean(0)
        with torch.no_grad():
            self.weight.clamp_(-1, 1)
            self.weight.data = self.weight.data * 0.5
        return (x - self.centre) * self.weight


class Switching(nn.Module):
    """Freezes a part of itself and changes its mode in the forward."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.frozen, self.free = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        self.frozen.requires_grad_(False)
        self.frozen.eval()
        return self.free(x) + self.frozen(x)


class Recurrent(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(width, width, batch_first=True, dropout=0.1, num_layers=2)
        self.state: Any = None

    def forward(self, x: Tensor) -> Tensor:
        y, self.state = self.rnn(x[:, None] if x.dim() == 2 else x)
        return y[:, -1]


class Raises(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        torch.rand(1), random.random()
        raise ValueError(f"not of my taste: {tuple(x.shape)}")


def hooked(width: int) -> nn.Module:
    layer = nn.Linear(width, width)
    log: list[str] = []
    layer.log = log
    layer.register_forward_hook(lambda module, args, output: log.append("after") or output * 2)
    layer.register_forward_pre_hook(lambda module, args: log.append("before"))
    layer.register_full_backward_hook(lambda module, got, gave: None)
    return layer


def shared(width: int) -> nn.Module:
    layer = nn.Linear(width, width)
    return nn.Sequential(layer, nn.ReLU(inplace=True), layer)


VECTOR_PARTS: dict[str, Callable[[int], nn.Module]] = {
    "linear": lambda width: nn.Linear(width, width),
    "norm": nn.BatchNorm1d,
    "layer_norm": nn.LayerNorm,
    "dropout": lambda width: nn.Dropout(0.3),
    "stateful": Stateful,
    "overwriting": Overwriting,
    "switching": Switching,
    "recurrent": Recurrent,
    "hooked": hooked,
    "shared": shared,
    "hiding": Hiding,
    "spectral": lambda width: parametrizations.spectral_norm(nn.Linear(width, width)),
    "weight_norm": lambda width: parametrizations.weight_norm(nn.Linear(width, width)),
    "half": lambda width: nn.Linear(width, width).to(torch.float32).eval(),
}
FAULTS: dict[str, Callable[[int], nn.Module]] = {
    "linear": lambda width: nn.Linear(width + 1, width),
    "norm": lambda width: nn.BatchNorm1d(width + 1),
    "layer_norm": lambda width: nn.LayerNorm(width + 1),
}
IMAGE_PARTS: dict[str, Callable[[int], nn.Module]] = {
    "conv": lambda width: nn.Conv2d(width, width, 3, padding=1),
    "norm": nn.BatchNorm2d,
    "instance": lambda width: nn.InstanceNorm2d(width, track_running_stats=True),
    "group": lambda width: nn.GroupNorm(2, width),
    "dropout": lambda width: nn.Dropout2d(0.3),
}


@st.composite
def models(draw: st.DrawFn) -> tuple[nn.Module, Any]:
    """A model and inputs for it (None: they are found), with gradients, modes and flags of every kind."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    width = draw(st.sampled_from([4, 6]))
    kind = draw(st.sampled_from(["vector", "image", "tokens"]))
    parts: list[nn.Module] = []
    inputs: Any = torch.randn(3, width)
    if kind == "image":
        inputs = torch.randn(2, width, 6, 6)
        chosen = draw(st.lists(st.sampled_from(sorted(IMAGE_PARTS)), min_size=1, max_size=3))
        parts += [IMAGE_PARTS[name](width) for name in chosen]
        parts += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    elif kind == "tokens":
        inputs = torch.randint(0, 9, (3,))
        parts.append(nn.Embedding(9, width, max_norm=draw(st.sampled_from([None, 1.0]))))
    for name in draw(st.lists(st.sampled_from(sorted(VECTOR_PARTS)), min_size=1, max_size=4)):
        parts.append(VECTOR_PARTS[name](width))
    for name in draw(st.lists(st.sampled_from(sorted(FAULTS)), max_size=2)):
        parts.insert(draw(st.integers(1, len(parts))), FAULTS[name](width))
    if draw(st.integers(0, 4)) == 0:
        parts.insert(draw(st.integers(1, len(parts))), Raises())
    model = nn.Sequential(*parts)
    for parameter in model.parameters():
        if draw(st.integers(0, 3)) == 0:
            parameter.grad = torch.randn_like(parameter)
        elif draw(st.integers(0, 3)) == 0:
            parameter.requires_grad_(False)
    for module in model.modules():
        if draw(st.integers(0, 4)) == 0:
            module.training = not module.training
    return model, inputs


@st.composite
def models_without_inputs(draw: st.DrawFn) -> nn.Module:
    """Models whose inputs are found quickly: nothing in them raises."""
    model, _ = draw(models().filter(lambda drawn: not any(map(is_raising, drawn[0]))))
    return model


def is_raising(module: nn.Module) -> bool:
    return isinstance(module, Raises)


QUICKLY = settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@QUICKLY
@given(drawn=models(), grad=st.booleans())
def test_a_check_leaves_no_trace(drawn: tuple[nn.Module, Any], grad: bool) -> None:
    model, inputs = drawn
    given_before = inputs.clone()
    with torch.set_grad_enabled(grad), untouched(model):
        report = trainlint.check(model, inputs)
    assert len(report.targets) == 1
    assert torch.equal(inputs, given_before)
    assert inputs.grad is None
    assert not inputs.requires_grad


@settings(parent=QUICKLY, max_examples=8)
@given(model=models_without_inputs())
def test_a_search_for_inputs_leaves_no_trace(model: nn.Module) -> None:
    with untouched(model):
        trainlint.check(model)


@settings(parent=QUICKLY, max_examples=15)
@given(drawn=models())
def test_a_second_check_finds_the_same(drawn: tuple[nn.Module, Any]) -> None:
    model, inputs = drawn
    first, second = (trainlint.check(model, inputs) for _ in range(2))
    assert first.findings == second.findings
    assert [t.status for t in first.targets] == [t.status for t in second.targets]


# ---------------------------------------------------------------------- single cases


@pytest.mark.parametrize("part", [*VECTOR_PARTS, "raises"])
def test_each_kind_of_part_alone(part: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), Raises() if part == "raises" else VECTOR_PARTS[part](4))
    inputs = torch.randn(3, 4)
    with untouched(model):
        result = capture(model, (inputs,))
    assert (result.exception is not None) == (part == "raises")


def test_lazy_layers_stay_lazy() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d())
    inputs = torch.randn(3, 7)
    with untouched(model):
        trainlint.check(model, inputs)


def test_the_default_dtype_and_modes_of_the_process_stay() -> None:
    model = nn.Linear(4, 4).double()
    torch.set_default_dtype(torch.float64)
    try:
        with untouched(model), torch.no_grad():
            report = trainlint.check(model)
        assert torch.get_default_dtype() is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert report.targets[0].status == "ok"


def test_training_goes_on_as_if_nothing_had_been() -> None:
    """The same losses with and without a check between the steps."""

    def losses(check: bool) -> list[float]:
        torch.manual_seed(0)
        model = nn.Sequential(Stateful(4), nn.BatchNorm1d(4), nn.Dropout(0.5), Overwriting(4))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        found = []
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(torch.randn(8, 4)).square().mean()
            loss.backward()
            if check:
                trainlint.check(model, torch.randn(0, 4).new_ones(2, 4))
            optimizer.step()
            found.append(float(loss))
        return found

    assert losses(check=True) == losses(check=False)


def test_a_bare_exception_inside_restores_as_well() -> None:
    model = Stateful(4)

    def disturb() -> None:
        with preserved(model):
            with torch.no_grad():
                model.steps += 3
                model.plain.add_(1)
            model.train(False)
            model.cache["new"] = 1
            model.extra = 1
            del model.calls
            weight = model.fc.weight
            del model.fc.weight
            model.fc.weight = weight
            torch.rand(1)
            raise KeyboardInterrupt

    with untouched(model), pytest.raises(KeyboardInterrupt):
        disturb()
    assert list(model.fc._parameters) == ["weight", "bias"]


def test_the_dictionaries_stay_the_same_objects() -> None:
    model = Stateful(4)
    books, buffers = vars(model), model._buffers
    trainlint.check(model, torch.randn(3, 4))
    assert vars(model) is books
    assert model._buffers is buffers


def test_a_copy_of_the_model_computes_the_same_afterwards() -> None:
    model = nn.Sequential(nn.Linear(4, 4), parametrizations.spectral_norm(nn.Linear(4, 4))).eval()
    twin = copy.deepcopy(model)
    trainlint.check(model)
    x = torch.randn(3, 4)
    assert torch.equal(model(x), twin(x))
