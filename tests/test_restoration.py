"""What a probe or a watch leaves behind in any architecture, with any optimizer: nothing, bit for bit."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_preserve import VECTOR_PARTS, frozen, world
from torch import Tensor, nn

import trainlint
from trainlint.capture.tracer import single_node_functions
from trainlint.preserve import is_lazy, preserved_training
from trainlint.tree import tensors

if TYPE_CHECKING:
    from torch.optim import Optimizer

np = pytest.importorskip("numpy", reason="benchmarks/zoo_awkward.py needs it")
sys.path.insert(0, str(Path(__file__).parent.parent))
with single_node_functions(), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from benchmarks import zoo_awkward, zoo_library

pytestmark = pytest.mark.filterwarnings("ignore")

# ---------------------------------------------------------------------- architectures and optimizers


@dataclass(frozen=True)
class Architecture:
    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]


def rows(*shape: int) -> Callable[[], Any]:
    return lambda: ((torch.randn(*shape),), {})


class Tied(nn.Module):
    """A language model whose head is its table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table(x.abs().long() % 11))


class Generating(nn.Module):
    """Draws from generators of its own, and keeps lists of tensors and a plain object."""

    class State:
        def __init__(self) -> None:
            self.sums = [torch.zeros(6)]
            self.count = 0

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.torch_source = torch.Generator().manual_seed(1)
        self.python_source = random.Random(1)
        self.numpy_source = np.random.default_rng(1)
        self.state = self.State()
        self.bank: list[Any] = [torch.zeros(6), {"inner": torch.ones(6)}]

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn(6, generator=self.torch_source) * self.python_source.random()
        self.state.sums[0].add_(x.detach().mean(0))
        self.state.sums.append(noise)
        self.state.count += 1
        self.bank[0].data.sub_(1)
        self.bank[1]["inner"].mul_(0.5)
        return self.fc(x) + noise * self.numpy_source.random()


class Expanded(nn.Module):
    """Buffers that are views of others, and one element shown many times."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.register_buffer("whole", torch.arange(6.0))
        self.register_buffer("first", self.whole[:3])
        self.register_buffer("wide", torch.ones(1).expand(6))

    def forward(self, x: Tensor) -> Tensor:
        self.first.add_(1)
        self.wide[:1].data.add_(1)
        return self.fc(x) * self.whole * self.wide


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(5), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(3))


OWN = [
    *(
        Architecture(name, functools.partial(build, 6), rows(4, 6))
        for name, build in VECTOR_PARTS.items()
    ),
    Architecture("tied", Tied, rows(4, 5)),
    Architecture("generating", Generating, rows(4, 6)),
    Architecture("expanded", Expanded, rows(4, 6)),
    Architecture("lazy", lazy, rows(4, 6)),
]
# Their second forward finds them as the first has left them, with a graph that is gone.
_ONCE = {"awkward/compiled_submodule", "awkward/traced_submodule"}
AWKWARD = [
    Architecture(entry.name, entry.build, entry.inputs)
    for entry in zoo_awkward.entries()
    if entry.name not in _ONCE and not entry.name.endswith("_unsound")
]
_LIBRARY = (
    "transformers/GPT2LM",
    "transformers/BertFor",
    "transformers/ViTFor",
    "transformers/LlamaFor",
)
LIBRARY = (
    []
    if importlib.util.find_spec("transformers") is None
    else [
        next(
            Architecture(entry.name, entry.build, entry.inputs)
            for entry in zoo_library.entries()
            if entry.name.startswith(part)
        )
        for part in _LIBRARY
    ]
)
ARCHITECTURES = [*OWN, *AWKWARD, *LIBRARY]

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=torch.tensor(1e-2)),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3, history_size=3),
}


def built(architecture: Architecture, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    with single_node_functions(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return architecture.build()


def a_step(model: nn.Module, architecture: Architecture, optimizer: Optimizer) -> float:
    def closure() -> Any:
        optimizer.zero_grad()
        args, kwargs = architecture.inputs()
        output = model(*args, **kwargs)
        losses = [t.abs().square().mean() for _, t in tensors(output) if t.requires_grad]
        loss = sum(losses, torch.zeros(()))
        if losses:
            loss.backward()
        return loss

    if isinstance(optimizer, torch.optim.LBFGS):
        return float(optimizer.step(closure))
    loss = closure()
    optimizer.step()
    return float(loss)


def of_optimizer(optimizer: Optimizer) -> Any:
    return {
        "groups": frozen(optimizer.param_groups),
        "state": [(id(p), frozen(value)) for p, value in optimizer.state.items()],
        "rest": {name: frozen(v) for name, v in vars(optimizer).items() if name != "state"},
        "parameters": [
            (frozen(p), p._version) for group in optimizer.param_groups for p in group["params"]
        ],
    }


def of_process() -> dict[str, Any]:
    return {
        "matmul": torch.get_float32_matmul_precision(),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "device": torch.get_default_device(),
        "modes": torch._C._len_torch_function_stack(),
        "fill": torch.utils.deterministic.fill_uninitialized_memory,
    }


def own_sources(model: nn.Module) -> list[Any]:
    found: list[Any] = []
    for module in model.modules():
        if isinstance(module, Generating):
            found += [
                module.torch_source.get_state().tolist(), module.python_source.getstate(),
                module.numpy_source.bit_generator.state, frozen(vars(module.state)),
            ]  # fmt: skip
    return found


@contextlib.contextmanager
def untouched(model: nn.Module, optimizer: Optimizer | None) -> Iterator[None]:
    def seen() -> dict[str, Any]:
        return {
            **world(model),
            "classes": [type(module) for module in model.modules()],
            "optimizer": None if optimizer is None else of_optimizer(optimizer),
            "sources": own_sources(model),
            **of_process(),
        }

    before = seen()
    yield
    after = seen()
    assert [key for key in before if before[key] != after.get(key)] == []
    assert before.keys() == after.keys()


# ---------------------------------------------------------------------- training steps, undone


@pytest.mark.parametrize("warm", [False, True], ids=["fresh", "warm"])
@pytest.mark.parametrize("place", range(len(ARCHITECTURES)), ids=lambda i: ARCHITECTURES[i].name)
def test_training_steps_are_undone(place: int, warm: bool) -> None:
    architecture = ARCHITECTURES[place]
    kinds = list(OPTIMIZERS.values())
    model = built(architecture)
    if architecture.name == "lazy" and warm:
        a_step(model, architecture, torch.optim.SGD(model.parameters(), lr=0.0))
    parameters = list(model.parameters())
    if any(map(is_lazy, parameters)) or "sparse_grad" in architecture.name:
        kinds = kinds[:1]
    optimizer = kinds[(place + 3 * warm) % len(kinds)](parameters) if parameters else None
    if optimizer is None:
        pytest.skip("it has no parameters")
    if warm:
        a_step(model, architecture, optimizer)
    with untouched(model, optimizer), preserved_training(model, optimizer):
        for _ in range(3):
            a_step(model, architecture, optimizer)


def mischief(model: nn.Module, optimizer: Optimizer, draw: random.Random) -> None:
    """What a training loop of the user's may do besides."""
    parameter = draw.choice([p for p in model.parameters() if p.is_leaf])
    deeds: list[Callable[[], Any]] = [
        model.eval,
        lambda: parameter.requires_grad_(False),
        lambda: parameter.register_hook(lambda g: g * 2) if parameter.requires_grad else None,
        lambda: setattr(parameter, "grad", torch.ones_like(parameter)),
        lambda: parameter.data.mul_(-0.0),
        lambda: setattr(parameter, "data", torch.full_like(parameter, torch.nan)),
        lambda: optimizer.param_groups[0].update(lr=0.5, extra=[1]),
        lambda: optimizer.register_step_post_hook(lambda *_: None),
        optimizer.state.clear,
        lambda: optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict())),
        lambda: (
            isinstance(optimizer, torch.optim.LBFGS)
            or optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
        ),
        lambda: model.register_forward_hook(lambda *_: None),
        lambda: model.register_buffer("added", torch.zeros(1)),
        lambda: torch.manual_seed(5),
        lambda: np.random.seed(5),
        lambda: torch.set_default_dtype(torch.float64),
        lambda: torch.use_deterministic_algorithms(True, warn_only=True),
        lambda: setattr(torch.backends.cudnn, "benchmark", True),
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: torch.set_grad_enabled(False),
        lambda: torch.autograd.set_detect_anomaly(True),
        lambda: torch.set_default_device("meta"),
        lambda: torch.nn.utils.parametrize.register_parametrization(
            next(m for m in model.modules() if "weight" in m._parameters), "weight", nn.Identity()
        ),
    ]
    for deed in draw.sample(deeds, 5):
        with contextlib.suppress(StopIteration, KeyError):
            deed()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from([*OWN, *AWKWARD]),
    st.sampled_from(sorted(OPTIMIZERS)),
    st.integers(0, 2),
    st.integers(0, 1000),
)
def test_whatever_a_loop_does_is_undone(
    architecture: Architecture, kind: str, warm: int, seed: int
) -> None:
    model = built(architecture, seed)
    for _ in range(1 if architecture.name == "lazy" else 0):
        model(*architecture.inputs()[0])
    if "sparse_grad" in architecture.name and kind != "sgd":
        return  # the others refuse it
    if not any(p.is_leaf and p.requires_grad for p in model.parameters()):
        return
    optimizer = OPTIMIZERS[kind](model.parameters())
    for _ in range(warm):
        a_step(model, architecture, optimizer)
    draw = random.Random(seed)
    with (
        untouched(model, optimizer),
        contextlib.suppress(RuntimeError, ValueError),  # the last step's, after mischief
        preserved_training(model, optimizer),
    ):
        a_step(model, architecture, optimizer)
        mischief(model, optimizer, draw)
        a_step(model, architecture, optimizer)


def test_a_graph_from_before_can_still_be_run_backwards() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    optimizer = torch.optim.Adam(model.parameters())
    x = torch.randn(8, 4)
    twin = copy.deepcopy(model)
    loss = model(x).square().mean()
    with preserved_training(model, optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            model(x).mean().backward()
            optimizer.step()
    loss.backward()
    twin(x).square().mean().backward()
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine.grad, other.grad)


def test_training_after_a_preserved_one_goes_as_without() -> None:
    def run(probed: bool) -> list[float]:
        architecture = next(a for a in OWN if a.name == "generating")
        model = built(architecture)
        optimizer = OPTIMIZERS["lbfgs"](model.parameters())
        losses = [a_step(model, architecture, optimizer) for _ in range(2)]
        if probed:
            with preserved_training(model, optimizer):
                for _ in range(3):
                    a_step(model, architecture, optimizer)
        return losses + [a_step(model, architecture, optimizer) for _ in range(3)]

    assert run(True) == run(False)


# ---------------------------------------------------------------------- watching changes nothing


def bits(values: Any) -> list[bytes]:
    """What the tensors hold, without who they are."""
    return [
        t.detach().to_dense().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for _, t in tensors(values)
        if not is_lazy(t) and not t.is_meta
    ]


def training(architecture: Architecture, kind: str, around: Any) -> dict[str, Any]:
    """Four steps, and all that came of them; `around` is entered while they run."""
    model = built(architecture)
    if any(is_lazy(p) for p in model.parameters()):
        model(*architecture.inputs()[0])
    optimizer = OPTIMIZERS[kind](list(model.parameters()))
    with around:
        losses = [a_step(model, architecture, optimizer) for _ in range(4)]
    return {
        "losses": losses,
        "weights": bits(list(model.parameters())),
        "buffers": bits(list(model.buffers())),
        "gradients": bits([p.grad for p in model.parameters() if p.grad is not None]),
        "optimizer": bits(list(optimizer.state_dict()["state"].values())),
        "modes": [module.training for module in model.modules()],
        "attributes": [list(vars(module)) for module in model.modules()],
        "hooks": [len(p._backward_hooks or ()) for p in model.parameters()],
        "random": (torch.rand(2).tolist(), random.random(), np.random.rand()),
        "sources": [s for s in own_sources(model) if not isinstance(s, tuple)],
        **{key: value for key, value in of_process().items() if key != "device"},
    }


@pytest.mark.parametrize("place", range(len(ARCHITECTURES)), ids=lambda i: ARCHITECTURES[i].name)
def test_watching_changes_no_bit(place: int) -> None:
    architecture = ARCHITECTURES[place]
    kind = sorted(OPTIMIZERS)[place % len(OPTIMIZERS)]
    if "sparse_grad" in architecture.name:
        kind = "sgd"  # others refuse
    if "coupling_flow" in architecture.name:
        pytest.skip("this loss drives it to NaN, which it refuses")
    if not list(built(architecture).parameters()):
        pytest.skip("it has no parameters")
    bare = training(architecture, kind, contextlib.nullcontext())
    w = trainlint.watch()
    seen = training(architecture, kind, w)
    assert [key for key in bare if bare[key] != seen[key]] == []
    assert w.report().targets[0].status == "ok", w.report().targets[0].reason
