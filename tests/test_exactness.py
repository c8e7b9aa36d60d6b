"""Watched is unwatched, bit for bit, in loops of every kind; and what is recorded is what happened."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import trainlint
from trainlint.observe.hooks import observed
from trainlint.observe.observer import TrainingObserver
from trainlint.observe.trace import Trace

# What a loop gives: losses, and everything that it trained.
Result = tuple[list[float], list[Tensor]]


def mlp(outputs: int = 2, *, dropout: float = 0.2) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 16), nn.Tanh(),
        nn.Linear(16, outputs),
    )  # fmt: skip


def batches(count: int, size: int = 16) -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(count):
        x = torch.randn(size, 8)
        yield x, (x[:, 0] > 0).long()


def state(*modules: nn.Module) -> list[Tensor]:
    return [tensor.clone() for module in modules for tensor in module.state_dict().values()]


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int = 8,
    loss_of: Callable[[Any, Tensor], Tensor] = functional.cross_entropy,
    call: Callable[..., Any] | None = None,
) -> Result:
    losses = []
    for x, y in batches(steps):
        optimizer.zero_grad()
        loss = loss_of((model if call is None else call)(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, state(model)


# ---------------------------------------------------------------------- loops of every kind


def loader_with_workers() -> Result:
    x = torch.randn(48, 8)
    data = TensorDataset(x, (x[:, 0] > 0).long())
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(2):
        for inputs, labels in DataLoader(data, 12, shuffle=True, num_workers=2):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(inputs), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses, state(model)


def compiled_module() -> Result:
    model = mlp()
    compiled = torch.compile(model, backend="eager")
    return train(model, torch.optim.SGD(model.parameters(), lr=0.1), call=compiled)


def compiled_ahead() -> Result:
    model = mlp()
    compiled = torch.compile(model, backend="aot_eager")
    return train(model, torch.optim.SGD(model.parameters(), lr=0.1), call=compiled)


def compiled_in_place() -> Result:
    model = mlp()
    model.compile(backend="eager")
    return train(model, torch.optim.SGD(model.parameters(), lr=0.1))


def compiled_step() -> Result:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []

    @torch.compile(backend="eager")
    def objective(x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(model(x), y)

    for x, y in batches(8):
        optimizer.zero_grad()
        loss = objective(x, y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, state(model)


def functional_training() -> Result:
    model = mlp(dropout=0.0)
    parameters = {name: p.detach().clone() for name, p in model.named_parameters()}

    def objective(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(torch.func.functional_call(model, weights, (x,)), y)

    losses = []
    for x, y in batches(8):
        gradients, loss = torch.func.grad_and_value(objective)(parameters, x, y)
        parameters = {name: p - 0.1 * gradients[name] for name, p in parameters.items()}
        losses.append(loss.item())
    return losses, list(parameters.values())


def gradients_per_sample() -> Result:
    model = nn.Linear(8, 2)

    def objective(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        scores = torch.func.functional_call(model, weights, (x.unsqueeze(0),))
        return functional.cross_entropy(scores, y.unsqueeze(0))

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for x, y in batches(6):
        weights = {name: p.detach() for name, p in model.named_parameters()}
        each = torch.vmap(torch.func.grad(objective), in_dims=(None, 0, 0))(weights, x, y)
        for name, parameter in model.named_parameters():
            parameter.grad = each[name].clamp(-1, 1).mean(0)
        optimizer.step()
        losses.append(float(parameter.grad.norm()))
    return losses, state(model)


def step_in_backward() -> Result:
    model = mlp()
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def update(parameter: Tensor) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(update)
    losses = []
    for x, y in batches(8):
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        losses.append(loss.item())
    return losses, state(model)


def foreach_step() -> Result:
    model = mlp()
    return train(model, torch.optim.AdamW(model.parameters(), lr=1e-2, foreach=True))


def fused_step() -> Result:
    model = mlp()
    return train(model, torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True))


def several_backwards() -> Result:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for x, y in batches(8):
        optimizer.zero_grad()
        scores = model(x)
        first = functional.cross_entropy(scores, y)
        second = 0.1 * scores.square().mean()
        first.backward(retain_graph=True)
        second.backward()
        optimizer.step()
        losses += [first.item(), second.item()]
    return losses, state(model)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.abs()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * 2 * x.abs()


class OwnFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(Doubled.apply(self.first(x)))


def own_function() -> Result:
    model = OwnFunction()
    return train(model, torch.optim.SGD(model.parameters(), lr=0.05))


def scripted() -> Result:
    model = torch.jit.script(mlp())
    return train(model, torch.optim.SGD(model.parameters(), lr=0.1))


def in_place() -> Result:
    model = nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(inplace=True), nn.Linear(16, 16), nn.LeakyReLU(0.1, inplace=True),
        nn.Linear(16, 2),
    )  # fmt: skip
    return train(model, torch.optim.SGD(model.parameters(), lr=0.1))


def parametrized() -> Result:
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(8, 16)), nn.ReLU(),
        parametrizations.spectral_norm(nn.Linear(16, 16)), nn.ReLU(),
        parametrizations.orthogonal(nn.Linear(16, 2)),
    )  # fmt: skip
    return train(model, torch.optim.Adam(model.parameters(), lr=1e-2))


def gradient_penalty() -> Result:
    critic = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-2)
    losses = []
    for x, _ in batches(8):
        fake = torch.randn_like(x)
        between = (x + torch.rand(len(x), 1) * (fake - x)).requires_grad_()
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        penalty = (slope.norm(dim=1) - 1).square().mean()
        loss = critic(fake).mean() - critic(x).mean() + 10 * penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, state(critic)


def averaged() -> Result:
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses, seen = [], []
    for x, y in batches(8):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        average.update_parameters(model)
        losses.append(loss.item())
        seen.append(x)
    torch.optim.swa_utils.update_bn(seen, average)
    average.eval()
    with torch.no_grad():
        losses += [functional.cross_entropy(average(x), y).item() for x, y in batches(3)]
    return losses, state(model, average)


class Twice(nn.Module):
    """One layer applied three times, and weights that encoder and decoder share."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 16)
        self.layer = nn.Linear(16, 16)
        self.head = nn.Linear(16, 12, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embed(tokens)
        for _ in range(3):
            hidden = torch.tanh(self.layer(hidden))
        return self.head(hidden)


def shared_weights() -> Result:
    model = Twice()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        tokens = torch.randint(0, 12, (4, 6))
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, state(model)


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.first, self.reentrant = nn.Linear(8, 16), reentrant
        self.body = nn.Sequential(nn.Linear(16, 16), nn.ReLU(inplace=True), nn.Dropout(0.3))
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.body, self.first(x).tanh(), use_reentrant=self.reentrant))


def checkpointed() -> Result:
    model = Checkpointed(reentrant=False)
    return train(model, torch.optim.SGD(model.parameters(), lr=0.1))


def checkpointed_reentrant() -> Result:
    model = Checkpointed(reentrant=True)
    return train(model, torch.optim.SGD(model.parameters(), lr=0.1))


def overflowing_scaler() -> Result:
    """Steps that a scaler skips, since a gradient overflowed."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60, growth_interval=3)
    losses = []
    for number, (x, y) in enumerate(batches(10)):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = functional.cross_entropy(model(x), y)
        scaler.scale(loss * (1e25 if number in (1, 4) else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        losses += [loss.item(), scaler.get_scale()]
    return losses, state(model)


def disabled_scaler() -> Result:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    losses = []
    for x, y in batches(8):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    return losses, state(model)


def recurrent() -> Result:
    model = nn.LSTM(8, 16, batch_first=True)
    head = nn.Linear(16, 2)
    optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=1e-2)
    losses = []
    for _ in range(6):
        x = torch.randn(4, 5, 8)
        optimizer.zero_grad()
        loss = functional.cross_entropy(head(model(x)[0][:, -1]), (x[:, -1, 0] > 0).long())
        loss.backward()
        nn.utils.clip_grad_norm_([*model.parameters(), *head.parameters()], 0.5)
        optimizer.step()
        losses.append(loss.item())
    return losses, state(model, head)


def closures() -> Result:
    model, losses = nn.Linear(8, 1), []
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
    x, y = torch.randn(32, 8), torch.randn(32, 1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.mse_loss(model(x), y)
        loss.backward()
        losses.append(loss.item())
        return loss

    for _ in range(4):
        optimizer.step(closure)
    return losses, state(model)


def sparse_gradients() -> Result:
    table, head = nn.Embedding(20, 8, sparse=True), nn.Linear(8, 2)
    optimizers = [
        torch.optim.SparseAdam(table.parameters(), lr=1e-2),
        torch.optim.SGD(head.parameters(), lr=0.1),
    ]
    losses = []
    for _ in range(8):
        tokens = torch.randint(0, 20, (16,))
        loss = functional.cross_entropy(head(table(tokens)), tokens % 2)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    return losses, state(table, head)


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.LazyLinear(16), nn.LazyLinear(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)))


def lazy() -> Result:
    model = Lazy()
    model(torch.randn(2, 8))
    return train(model, torch.optim.SGD(model.parameters(), lr=0.1))


def double_precision_and_complex() -> Result:
    model = nn.Linear(8, 8, dtype=torch.complex64)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for x, _ in batches(6):
        optimizer.zero_grad()
        loss = (model(x.to(torch.complex64)) - x).abs().square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, state(model)


LOOPS = [
    loader_with_workers, compiled_module, compiled_ahead, compiled_in_place, compiled_step,
    functional_training, gradients_per_sample, step_in_backward, foreach_step, fused_step,
    several_backwards, own_function, scripted, in_place, parametrized, gradient_penalty, averaged,
    shared_weights, checkpointed, checkpointed_reentrant, overflowing_scaler, disabled_scaler,
    recurrent, closures,
    sparse_gradients, lazy, double_precision_and_complex,
]  # fmt: skip


def seeded(loop: Callable[[], Result]) -> tuple[list[float], list[Tensor], Tensor, Any]:
    torch.manual_seed(0)
    random.seed(0)
    torch.compiler.reset()
    losses, trained = loop()
    return losses, trained, torch.get_rng_state(), random.getstate()


def watched(loop: Callable[[], Any], **options: Any) -> tuple[Any, Trace]:
    observer = TrainingObserver(**options)
    with observed(observer) as problem:
        result = loop()
    assert problem() is None
    assert observer.recorder.problem is None
    return result, observer.trace()


@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
def test_a_watched_loop_computes_the_same_and_is_found_sound(loop: Callable[[], Result]) -> None:
    losses, trained, random_state, python_state = seeded(loop)
    with trainlint.watch() as w:
        losses_now, trained_now, random_state_now, python_state_now = seeded(loop)
    assert losses_now == losses
    assert len(trained_now) == len(trained)
    assert all(map(torch.equal, trained_now, trained))
    assert torch.equal(random_state_now, random_state)
    assert python_state_now == python_state
    report = w.report()
    (target,) = report.targets
    assert (target.status, target.reason) == ("ok", None)
    assert not [note for note in target.notes if "stopped" in note]
    assert [(f.code, f.message) for f in report.findings if f.severity != "info"] == []


# ---------------------------------------------------------------------- what is recorded is what happened

Note = Callable[..., None]


def clipped(note: Note) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in batches(6):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.4)
        note(model)
        optimizer.step()


def accumulated(note: Note) -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for number, (x, y) in enumerate(batches(12)):
        (functional.cross_entropy(model(x), y) / 3).backward()
        if number % 3 == 2:
            note(model)
            optimizer.step()
            optimizer.zero_grad()


def tied(note: Note) -> None:
    model = Twice()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(6):
        tokens = torch.randint(0, 12, (4, 6))
        optimizer.zero_grad()
        functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
        note(model)
        optimizer.step()


def recomputed(note: Note) -> None:
    model = Checkpointed(reentrant=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in batches(6):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        note(model)
        optimizer.step()


def scaled_by(
    init_scale: float, *, fused: bool = False, unscale: bool = False
) -> Callable[[Note], None]:
    def loop(note: Note) -> None:
        model = mlp()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=init_scale)
        for x, y in batches(8):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = 100 * functional.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            scale = scaler.get_scale()
            if unscale:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 0.4)
                scale = 1.0
            if all(bool(p.grad.isfinite().all()) for p in model.parameters()):
                note(model, scale)
            scaler.step(optimizer)
            scaler.update()

    return loop


EXACT = {
    "clipped": clipped, "accumulated": accumulated, "tied": tied, "recomputed": recomputed,
    "scaled": scaled_by(2.0**16), "scaled and clipped": scaled_by(2.0**16, unscale=True),
    "scaled, with steps left out": scaled_by(2.0**126),
    "scaled in fused code": scaled_by(2.0**16, fused=True),
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_gradient_norms_are_those_of_the_unwatched_run(name: str) -> None:
    norms: list[dict[str, float]] = []

    def note(model: nn.Module, scale: float = 1.0) -> None:
        parts = {n: p.grad.double() / scale for n, p in model.named_parameters()}
        norms.append({n: float(gradient.norm()) for n, gradient in parts.items()})

    torch.manual_seed(0)
    EXACT[name](note)
    torch.manual_seed(0)
    _, trace = watched(lambda: EXACT[name](lambda *_: None), period=1)
    (model,) = trace.models
    assert trace.steps == len(norms)
    assert {p.name for p in model.parameters} == set(norms[0])
    for parameter in model.parameters:
        assert parameter.steps == list(range(len(norms)))
        assert parameter.gradient == pytest.approx([n[parameter.name] for n in norms], rel=1e-5)


def test_gradient_norms_of_two_optimizers_are_each_ones_own() -> None:
    norms: dict[str, list[float]] = {"Linear": [], "Sequential": []}

    def loop(*, noting: bool) -> None:
        generator, critic = nn.Linear(4, 8), mlp(outputs=1)
        d_step, g_step = (torch.optim.SGD(m.parameters(), lr=1e-2) for m in (critic, generator))

        def update(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
            optimizer.zero_grad()
            loss.backward()
            if noting:
                norms[type(model).__name__].append(float(next(model.parameters()).grad.norm()))
            optimizer.step()

        for x, _ in batches(6):
            fake = generator(torch.randn(16, 4))
            real = functional.softplus(-critic(x)).mean()
            update(critic, d_step, real + functional.softplus(critic(fake.detach())).mean())
            update(generator, g_step, functional.softplus(-critic(fake)).mean())

    torch.manual_seed(0)
    loop(noting=True)
    torch.manual_seed(0)
    _, trace = watched(lambda: loop(noting=False), period=1)
    for model in trace.models:
        assert model.parameters[0].gradient == pytest.approx(norms[model.name], rel=1e-5)


def test_what_a_clip_multiplied_by() -> None:
    factors = []

    def loop(*, noting: bool) -> None:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for x, y in batches(6):
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            before = model[0].weight.grad.clone()
            nn.utils.clip_grad_norm_(model.parameters(), 0.4)
            if noting:
                factors.append(float(model[0].weight.grad.norm() / before.norm()))
            optimizer.step()

    torch.manual_seed(0)
    loop(noting=True)
    torch.manual_seed(0)
    _, trace = watched(lambda: loop(noting=False))
    (clip,) = trace.clips
    assert min(factors) < 1
    assert clip.factor == pytest.approx(factors, rel=1e-5)


def test_losses_are_those_before_scaling() -> None:
    (losses, *_), trace = watched(lambda: seeded(overflowing_scaler))
    assert trace.losses[0][1] == pytest.approx(losses[0], rel=1e-6)


class Shown(nn.Module):
    """Keeps what its layers give: one before a ReLU, the ReLU's, and a layer that is used three times."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 2)
        self.seen: dict[tuple[str, str, int], list[Tensor]] = {}

    def keep(self, path: str, operation: str, index: int, value: Tensor) -> Tensor:
        self.seen.setdefault((path, operation, index), []).append(value.detach().float().clone())
        return value

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.keep("first", "linear", 0, self.first(x))
        hidden = self.keep("", "relu", 0, hidden.relu())
        for index in range(3):
            hidden = self.keep("again", "linear", index, self.again(hidden)).tanh()
        return self.last(hidden)


@pytest.mark.parametrize("autocast", [False, True])
def test_activations_are_those_of_the_unwatched_run(autocast: bool) -> None:
    def loop() -> Shown:
        model = Shown()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for x, y in batches(4):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                loss = functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
        return model

    torch.manual_seed(0)
    seen = loop().seen
    torch.manual_seed(0)
    _, trace = watched(loop, period=1)
    sites = {
        (site.place.path, site.place.operation, site.place.index): site
        for site in trace.models[0].sites
    }
    assert seen.keys() <= sites.keys()
    for key, values in seen.items():
        site = sites[key]
        assert site.mean == pytest.approx([float(v.mean()) for v in values], abs=1e-6)
        assert site.std == pytest.approx([float(v.std(correction=0)) for v in values], rel=1e-4)
        assert site.rms == pytest.approx(
            [float(v.square().mean().sqrt()) for v in values], rel=1e-5
        )
        assert site.zero == pytest.approx(
            [float((v == 0).float().mean()) for v in values], abs=1e-7
        )


@pytest.mark.parametrize("part", ["whole", "layer", "function", "in place"])
def test_nothing_is_compiled_otherwise_or_again(part: str) -> None:
    def loop() -> int:
        torch.manual_seed(0)
        torch.compiler.reset()
        compiled = []

        def backend(graph: Any, inputs: Any) -> Any:
            compiled.append(graph.code)
            return graph.forward

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 2)
                self.between = torch.relu

            def forward(self, x: Tensor) -> Tensor:
                return self.last(self.between(self.first(x)))

        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        call: Any = model
        if part == "whole":
            call = torch.compile(model, backend=backend, fullgraph=True)
        elif part == "layer":
            model.first = torch.compile(model.first, backend=backend)
        elif part == "function":
            model.between = torch.compile(lambda x: torch.relu(x) * 2, backend=backend)
        else:
            model.compile(backend=backend, fullgraph=True)
        train(model, optimizer, call=call)
        return len(compiled)

    def warned(run: Callable[[], Any]) -> tuple[Any, set[str]]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            return run(), {str(warning.message) for warning in caught}

    bare, expected = warned(loop)
    (count, trace), told = warned(lambda: watched(loop, period=1))
    assert count == bare == 1
    assert told <= expected
    assert trace.steps == 8
    assert any("compiled code" in note for note in trace.notes)
