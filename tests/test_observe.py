"""A loop under observation computes what it would have computed, and what is recorded is what happened."""

from __future__ import annotations

import random
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import trainlint
from trainlint.observe.hooks import observed
from trainlint.observe.observer import TrainingObserver
from trainlint.observe.trace import Trace
from trainlint.sites import Site


def mlp(width: int = 16, outputs: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(8, width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, width), nn.Tanh(),
        nn.Linear(width, outputs),
    )  # fmt: skip


def batches(count: int, size: int = 16) -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(count):
        x = torch.randn(size, 8)
        yield x, (x[:, 0] > 0).long()


# ---------------------------------------------------------------------- loops of every kind


def plain(steps: int = 12) -> list[float]:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for x, y in batches(steps):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def accumulating() -> list[float]:
    model, losses = mlp(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for number, (x, y) in enumerate(batches(16)):
        loss = nn.CrossEntropyLoss()(model(x), y) / 4
        loss.backward()
        if number % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(float(loss))
    return losses


def adversarial() -> list[float]:
    generator, critic = nn.Linear(4, 8), mlp(outputs=1)
    g_step = torch.optim.Adam(generator.parameters(), lr=1e-2)
    d_step = torch.optim.Adam(critic.parameters(), lr=1e-2)
    losses = []
    for x, _ in batches(8):
        fake = generator(torch.randn(16, 4))
        d_step.zero_grad()
        d_loss = (
            functional.softplus(-critic(x)).mean()
            + functional.softplus(critic(fake.detach())).mean()
        )
        d_loss.backward()
        d_step.step()
        g_step.zero_grad()
        g_loss = functional.softplus(-critic(fake)).mean()
        g_loss.backward()
        g_step.step()
        losses += [d_loss.item(), g_loss.item()]
    return losses


def closures() -> list[float]:
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
    return losses


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = (
            nn.Sequential(nn.Linear(8, 16), nn.ReLU(inplace=True)),
            nn.Linear(16, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.body, x, use_reentrant=False))


def checkpointed() -> list[float]:
    model, losses = Checkpointed(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in batches(8):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def mixed_precision() -> list[float]:
    model, losses = mlp(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    for x, y in batches(8):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = functional.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    return losses


def with_validation() -> list[float]:
    x = torch.randn(64, 8)
    loader = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=16, shuffle=True)
    model, losses = (
        nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2)),
        [],
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
    for _ in range(3):
        model.train()
        for inputs, labels in loader:
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        schedule.step()
        model.eval()
        with torch.no_grad():
            losses += [
                functional.cross_entropy(model(inputs), labels).item() for inputs, labels in loader
            ]
    return losses


def by_hand() -> list[float]:
    model, losses = mlp(), []
    for x, y in batches(6):
        loss = functional.cross_entropy(model(x), y)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= 0.1 * gradient
        losses.append(loss.item())
    return losses


LOOPS = [
    plain, accumulating, adversarial, closures, checkpointed, mixed_precision, with_validation, by_hand,
]  # fmt: skip


def seeded(loop: Callable[[], list[float]]) -> tuple[list[float], Any, Any]:
    torch.manual_seed(0)
    random.seed(0)
    return loop(), torch.get_rng_state().tolist(), random.getstate()


def observed_run(loop: Callable[[], Any], **options: Any) -> tuple[Any, Trace]:
    observer = TrainingObserver(**options)
    with observed(observer) as problem:
        result = loop()
    assert problem() is None
    assert observer.recorder.problem is None
    return result, observer.trace()


@pytest.mark.parametrize("every", [0, 1, 3])
@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
def test_a_loop_computes_the_same_bit_for_bit(loop: Callable[[], list[float]], every: int) -> None:
    bare = seeded(loop)
    seen, _ = observed_run(lambda: seeded(loop), period=every)
    assert seen == bare


@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
def test_a_sound_loop_has_no_findings(loop: Callable[[], list[float]]) -> None:
    torch.manual_seed(0)
    with trainlint.watch() as w:
        loop()
    assert [(f.code, f.message) for f in w.findings if f.severity != "info"] == []


def seams() -> dict[str, Any]:
    from torch.optim import Optimizer, lr_scheduler
    from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

    return {
        "call": nn.Module.__dict__["__call__"],
        "train": nn.Module.__dict__["train"],
        "backward": torch.autograd.backward,
        "method": Tensor.__dict__["backward"],
        "clip": nn.utils.clip_grad_norm_,
        "init": Optimizer.__dict__["__init__"],
        "step": lr_scheduler.StepLR.__dict__.get("step"),
        "scheduler": lr_scheduler.LRScheduler.__dict__["step"],
        "loader": DataLoader.__dict__["__iter__"],
        "warn": warnings.warn,
        "hooks": (len(_global_optimizer_pre_hooks), len(_global_optimizer_post_hooks)),
        "modes": torch._C._len_torch_function_stack(),
    }


def test_the_seams_are_closed_afterwards_also_after_an_exception() -> None:
    before = seams()

    def loop() -> None:
        plain(3)
        mlp()(torch.randn(2, 8))  # the mode is on
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), observed(TrainingObserver()):
        loop()
    assert seams() == before


def test_a_model_keeps_no_hook_and_no_attribute() -> None:
    model = mlp()
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with trainlint.watch(model, every=1):
        for x, y in batches(4):
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    assert all(not parameter._backward_hooks for parameter in model.parameters())
    assert all(not module._forward_hooks for module in model.modules())


# ---------------------------------------------------------------------- exactness


def test_recorded_gradient_norms_are_those_of_an_unobserved_run() -> None:
    def loop(note: Callable[[nn.Module], None]) -> None:
        torch.manual_seed(0)
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for x, y in batches(6):
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            note(model)
            optimizer.step()

    norms: list[dict[str, float]] = []
    loop(lambda model: norms.append({n: float(p.grad.norm()) for n, p in model.named_parameters()}))
    _, trace = observed_run(lambda: loop(lambda _: None), period=1)
    (model,) = trace.models
    for parameter in model.parameters:
        assert parameter.steps == list(range(6))
        assert parameter.gradient == pytest.approx([n[parameter.name] for n in norms], rel=1e-5)


def test_recorded_activations_and_their_gradients_are_those_of_the_run() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    results: list[Tensor] = []

    def loop() -> None:
        for x, y in batches(3):
            optimizer.zero_grad()
            hidden = model[0](x)
            hidden.retain_grad()
            results.append(hidden)
            functional.cross_entropy(model[2](model[1](hidden)), y).backward()
            optimizer.step()

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.inner[0](x)
            hidden.retain_grad()
            results.append(hidden)
            return self.inner[2](self.inner[1](hidden))

    whole = Whole()

    def run() -> None:
        for x, y in batches(3):
            optimizer.zero_grad()
            functional.cross_entropy(whole(x), y).backward()
            optimizer.step()

    _, trace = observed_run(run, period=1)
    site = trace.models[0].sites[0]
    assert site.weight == "inner.0.weight"
    assert site.mean == pytest.approx([float(h.mean()) for h in results], abs=1e-6)
    assert site.std == pytest.approx([float(h.std(correction=0)) for h in results], rel=1e-4)
    assert site.gradient == pytest.approx([float(h.grad.norm()) for h in results], rel=1e-5)


def test_gradients_under_a_scaler_are_the_unscaled_ones() -> None:
    _, trace = observed_run(lambda: seeded(mixed_precision), period=1)
    for parameter in trace.models[0].parameters:
        assert max(g for g in parameter.gradient if g is not None) <= 1.0 + 1e-4  # the clip's limit


def test_accumulation_is_one_step_of_several_backward_passes() -> None:
    _, trace = observed_run(accumulating)
    assert trace.steps == 4
    assert trace.optimizers[0].backwards == {4: 4}


def test_what_each_model_was_called_for() -> None:
    _, trace = observed_run(with_validation)
    (model,) = trace.models
    assert model.forwards == {("train", True): 12, ("evaluation", False): 12}
    assert trace.objectives[0].classes == 2


def test_updates_are_relative_changes_of_the_weights() -> None:
    model = nn.Linear(8, 2, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with trainlint.watch(model, every=1) as w:
        before = model.weight.detach().clone()
        functional.cross_entropy(model(torch.randn(16, 8)), torch.randint(0, 2, (16,))).backward()
        optimizer.step()
    change = (model.weight.detach() - before).norm() / before.norm()
    assert w.trace.models[0].parameters[0].update == pytest.approx([float(change)], rel=1e-4)


# ---------------------------------------------------------------------- long runs, other threads, trouble


def test_a_step_without_any_gradient_is_recorded() -> None:
    def loop() -> None:
        torch.optim.SGD(mlp().parameters(), lr=0.1).step()

    _, trace = observed_run(loop, period=1)
    assert trace.steps == 1


def test_memory_is_bounded_however_long_the_run() -> None:
    _, trace = observed_run(lambda: plain(400), period=1)
    assert trace.steps == 400
    assert len(trace.recorded) <= 160
    site = trace.models[0].sites[0]
    assert len(site.steps) <= 160
    assert site.steps[-1] > 350


def test_another_thread_is_not_observed() -> None:
    losses: list[list[float]] = []

    def elsewhere() -> None:
        losses.append(plain(3))

    def start() -> None:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()

    _, trace = observed_run(start)
    assert losses
    assert trace.steps == 0


def test_an_observer_that_fails_is_never_heard_by_the_loop() -> None:
    class Failing(TrainingObserver):
        def step_begins(self, *args: Any) -> None:
            raise RuntimeError("ours")

    with observed(Failing()) as problem:
        assert len(plain(4)) == 4
    assert str(problem()) == "ours"


def test_warnings_name_the_line_of_the_loop() -> None:
    def loop() -> None:
        model = nn.Linear(8, 1)
        functional.mse_loss(model(torch.randn(4, 8)), torch.randn(4))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        observed_run(loop, period=1)
    assert [w.filename for w in caught] == [__file__]


def test_a_mode_of_the_user_keeps_its_place() -> None:
    class Counting(TorchFunctionMode):
        calls = 0

        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.calls += 1
            return func(*args, **(kwargs or {}))

    def loop() -> int:
        model = mlp()
        with Counting() as mode:
            model(torch.randn(2, 8))
        return mode.calls

    calls, trace = observed_run(loop, period=1)
    assert calls == loop()
    assert any("another torch function mode" in note for note in trace.notes)


def test_a_default_device_is_kept_and_does_not_matter() -> None:
    def loop() -> None:
        torch.set_default_device("cpu")
        try:
            model = mlp()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for x, y in batches(3):
                scores = model(x)
                with torch.device("meta"):
                    assert torch.empty(1).is_meta
                optimizer.zero_grad()
                functional.cross_entropy(scores, y).backward()
                assert not torch.empty(1).is_meta
                optimizer.step()
        finally:
            torch.set_default_device(None)
        assert torch._C._len_torch_function_stack() == 0

    _, trace = observed_run(loop, period=1)
    assert trace.notes == []
    assert trace.models[0].sites


def test_models_that_are_made_and_dropped_are_told_apart() -> None:
    """One may lie where another lay: their figures are not mixed, and neither is lost."""

    def loop() -> None:
        for width in range(1, 21):
            model = nn.Linear(8, width)
            model(torch.randn(2, 8))
            del model

    _, trace = observed_run(loop, period=1)
    assert [model.parameters[0].elements for model in trace.models] == [8 * n for n in range(1, 21)]


@pytest.mark.parametrize("every", [1, 5])
def test_what_is_held_does_not_grow_with_the_run(every: int) -> None:
    observer = TrainingObserver(period=every)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x, y = torch.randn(4, 4), torch.randint(0, 2, (4,))
    held = []
    with observed(observer) as problem:
        for step in range(3000):
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            if step % 100 == 99:
                held.append(numbers_in(observer) - 2 * len(observer._losses))
    assert problem() is None
    assert observer.recorder.problem is None
    # Values of a loss function are, as the losses of all steps, thinned out from 4096 on.
    assert max(held[15:]) <= 1.2 * max(held[:15]) + 2 * 3000 / every


def numbers_in(observer: TrainingObserver) -> int:
    """How many numbers it holds, in containers and tensors."""
    count, seen = 0, set()
    waiting: list[Any] = [vars(observer)]
    while waiting:
        value = waiting.pop()
        if isinstance(value, (int, float)):
            count += 1
        elif isinstance(value, Tensor):
            count += value.numel()
        elif id(value) not in seen and not isinstance(value, (nn.Module, type, Site)):
            seen.add(id(value))
            if isinstance(value, dict):
                waiting += [*value.keys(), *value.values()]
            elif isinstance(value, (list, tuple, set, frozenset, deque)):
                waiting += value
            elif type(value).__module__.startswith("trainlint"):
                slots = getattr(value, "__slots__", ())
                waiting += [getattr(value, name) for name in slots if hasattr(value, name)]
                waiting += vars(value).values() if hasattr(value, "__dict__") else []
    return count


def test_gradients_of_several_shapes_are_whole_in_the_record() -> None:
    """Of a sparse table, a complex and a large parameter, too; and by results too large to be held."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(50, 512, sparse=True)
            self.turn = nn.Parameter(torch.randn(512, dtype=torch.complex64))
            self.wide = nn.Linear(512, 300)

        def forward(self, ids: Tensor) -> Tensor:
            return self.wide((self.table(ids) * self.turn).abs())

    torch.manual_seed(0)
    model = Mixed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    norms: list[dict[str, float]] = []
    results: list[Tensor] = []
    with trainlint.watch(model, every=1) as w:
        for _ in range(3):
            optimizer.zero_grad()
            scores = model(torch.randint(0, 50, (256,)))
            scores.retain_grad()
            results.append(scores)
            functional.cross_entropy(scores, torch.randint(0, 300, (256,))).backward()
            norms.append(
                {
                    name: float(
                        p.grad.coalesce().values().norm() if p.grad.is_sparse else p.grad.norm()
                    )
                    for name, p in model.named_parameters()
                    if p.grad is not None
                }
            )
            optimizer.step()
    (traced,) = w.trace.models
    for parameter in traced.parameters:
        expected = [n[parameter.name] for n in norms]
        assert parameter.gradient == pytest.approx(expected, rel=1e-5)
    wide = next(site for site in traced.sites if site.weight == "wide.weight")
    grads = [float(r.grad.norm()) for r in results if r.grad is not None]
    assert wide.gradient == pytest.approx(grads, rel=1e-5)
