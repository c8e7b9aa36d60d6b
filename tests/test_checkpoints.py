"""Training against validation error in a watched loop, and that measuring it changes nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
)

import trainlint
from trainlint.generalization.curves import Generalization
from trainlint.observe.hooks import observed
from trainlint.observe.observer import TrainingObserver
from trainlint.observe.passes import MOST_CHECKPOINTS, MOST_SAMPLES
from trainlint.observe.trace import Trace


def sets(train: int = 96, validation: int = 80, *, classes: bool = True) -> list[TensorDataset]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(train + validation, 8, generator=generator)
    y = (x[:, 0] > 0).long() if classes else x[:, :1] + x[:, 1:2]
    return [TensorDataset(x[:train], y[:train]), TensorDataset(x[train:], y[train:])]


def net(outputs: int = 2) -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, outputs)
    )


@dataclass
class Loop:
    """A training with a validation pass after each epoch; tests replace its parts."""

    model: nn.Module = field(default_factory=net)
    train_set: Any = None
    val_set: Any = None
    epochs: int = 4
    loss: Callable[..., Tensor] = functional.cross_entropy
    shuffle_validation: bool = False
    val_losses: list[float] = field(default_factory=list)
    train_losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        known = sets()
        self.train_set, self.val_set = self.train_set or known[0], self.val_set or known[1]
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2)

    def run(self) -> None:
        train_loader = DataLoader(self.train_set, batch_size=16, shuffle=True)
        val_loader = DataLoader(self.val_set, batch_size=32, shuffle=self.shuffle_validation)
        for _ in range(self.epochs):
            self.model.train()
            for x, y in train_loader:
                self.step(x, y)
            self.validate(val_loader)

    def step(self, x: Tensor, y: Tensor) -> None:
        self.optimizer.zero_grad()
        self.loss(self.model(x), y).backward()
        self.optimizer.step()

    @torch.no_grad()
    def validate(self, loader: Any) -> None:
        self.model.eval()
        total, count = 0.0, 0
        for x, y in loader:
            total += self.loss(self.model(x), y).item() * len(y)
            count += len(y)
        self.val_losses.append(total / count)

    @torch.no_grad()
    def note_training_loss(self) -> None:
        """What the model makes of all training samples now; not to be watched."""
        self.model.eval()
        x, y = self.train_set.tensors
        self.train_losses.append(float(self.loss(self.model(x), y)))


def watched(loop: Callable[[], Any], **options: Any) -> Trace:
    observer = TrainingObserver(**{"period": 1, "measuring": 60.0, **options})
    with observed(observer) as problem:
        loop()
    assert problem() is None
    assert observer.recorder.problem is None
    return observer.trace()


def measured(loop: Callable[[], Any], **options: Any) -> Generalization:
    trace = watched(loop, **options)
    assert trace.unmeasured == ""
    assert trace.generalization is not None
    return trace.generalization


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    random.seed(0)


# ---------------------------------------------------------------------- the figures


def test_losses_are_those_that_the_loop_has_and_would_have() -> None:
    class Noting(Loop):
        def validate(self, loader: Any) -> None:
            super().validate(loader)
            self.note_training_loss()

    torch.manual_seed(0)
    bare = Noting()
    bare.run()
    torch.manual_seed(0)
    loop = Loop()
    found = measured(loop.run)
    assert loop.val_losses == bare.val_losses
    assert [point.step for point in found.checkpoints] == [0, 6, 12, 18, 24]
    later = found.checkpoints[1:]
    assert [p.validation.mean for p in later] == pytest.approx(bare.val_losses, rel=1e-5)
    assert [p.train.mean for p in later] == pytest.approx(bare.train_losses, rel=1e-5)
    assert {len(p.train.losses) for p in found.checkpoints} == {96}
    assert {len(p.validation.losses) for p in found.checkpoints} == {80}
    assert (found.loss, found.unit, found.metric) == ("cross_entropy", "sample", "accuracy")
    assert (found.epochs, found.samples) == (4.0, 96)
    assert found.guess == pytest.approx(0.69, abs=0.02)
    assert found.site is not None
    assert found.gap() is not None
    assert found.rise() is not None


def test_the_first_checkpoint_is_of_the_untrained_model() -> None:
    torch.manual_seed(0)
    loop = Loop()
    before = {name: tensor.clone() for name, tensor in loop.model.state_dict().items()}
    found = measured(loop.run)
    loop.model.load_state_dict(before)
    loop.val_losses.clear()
    loop.validate(DataLoader(loop.val_set, batch_size=32))
    loop.note_training_loss()
    assert found.first is not None
    assert found.first.validation.mean == pytest.approx(loop.val_losses[0], rel=1e-5)
    assert found.first.train.mean == pytest.approx(loop.train_losses[0], rel=1e-5)


def test_accuracy_and_answers_are_counted() -> None:
    loop = Loop(epochs=3)
    found = measured(loop.run)
    with torch.no_grad():
        x, y = loop.val_set.tensors
        answers = loop.model.eval()(x).argmax(1)
    assert found.last.validation.metric == pytest.approx(float((answers == y).float().mean()))
    assert found.last.validation.predicted == {
        int(c): int((answers == c).sum()) for c in answers.unique()
    }


def test_regression_has_r_squared() -> None:
    train_set, val_set = sets(classes=False)
    loop = Loop(net(1), train_set, val_set, loss=functional.mse_loss)
    found = measured(loop.run)
    with torch.no_grad():
        x, y = val_set.tensors
        residual = (loop.model.eval()(x) - y).square().mean() / y.var(unbiased=False)
    assert found.metric == "R²"
    assert found.last.validation.metric == pytest.approx(1 - float(residual), rel=1e-4)


@pytest.mark.parametrize("shuffle", [False, True])
def test_samples_are_matched_from_pass_to_pass(shuffle: bool) -> None:
    torch.manual_seed(0)
    ordered = measured(Loop().run)
    torch.manual_seed(0)
    found = measured(Loop(shuffle_validation=shuffle).run)
    first, last = found.checkpoints[0].validation, found.last.validation
    assert len(first.losses) == len(last.losses) == 80
    # Before the training both are of one model, so that the samples show in their losses.
    assert sorted(first.losses) == pytest.approx(sorted(ordered.checkpoints[0].validation.losses))


def test_at_most_sixteen_checkpoints_with_the_last_pass_and_512_samples() -> None:
    train_set, val_set = sets(900, 700)
    loop = Loop(train_set=train_set, val_set=val_set, epochs=41)
    found = measured(loop.run)
    assert len(found.checkpoints) <= MOST_CHECKPOINTS + 1
    assert found.last.step == 41 * 57
    assert found.last.validation.mean == pytest.approx(loop.val_losses[-1], rel=0.3)
    assert len(found.last.train.losses) <= MOST_SAMPLES
    assert len(found.last.validation.losses) == MOST_SAMPLES


def test_a_model_that_returns_its_loss_has_one_figure_a_batch() -> None:
    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net()

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.body(x)
            return {"loss": functional.cross_entropy(logits, labels), "logits": logits}

    class Own(Loop):
        def step(self, x: Tensor, y: Tensor) -> None:
            self.optimizer.zero_grad()
            self.model(x, labels=y)["loss"].backward()
            self.optimizer.step()

        @torch.no_grad()
        def validate(self, loader: Any) -> None:
            self.model.eval()
            losses = [self.model(x, labels=y)["loss"].item() for x, y in loader]
            self.val_losses.append(sum(losses) / len(losses))

    loop = Own(WithLoss())
    found = measured(loop.run)
    assert (found.unit, found.loss) == ("batch", "")
    assert len(found.last.validation.losses) == 3
    assert found.last.validation.mean == pytest.approx(loop.val_losses[-1], rel=1e-5)


def test_tokens_of_a_sequence_are_no_samples() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 12), nn.Linear(12, 9)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.embed(ids))

    ids = torch.randint(0, 9, (120, 7))
    data = [TensorDataset(ids[:60, :-1], ids[:60, 1:]), TensorDataset(ids[60:, :-1], ids[60:, 1:])]

    def flat(scores: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(scores.flatten(0, 1), targets.flatten())

    found = measured(Loop(Words(), *data, loss=flat).run)
    assert found.unit == "batch"
    assert len(found.last.validation.losses) == 2

    def by_sample(scores: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(scores.transpose(1, 2), targets)

    found = measured(Loop(Words(), *data, loss=by_sample).run)
    assert found.unit == "sample"
    assert len(found.last.validation.losses) == 60


# ---------------------------------------------------------------------- which data


def test_loops_over_tensors_tell_training_from_validation_data() -> None:
    """A function that evaluates both sets, without a `DataLoader`."""
    train_set, val_set = sets(60, 200)

    class InMemory(Loop):
        def run(self) -> None:
            x, y = self.train_set.tensors
            for _ in range(10):
                self.model.train()
                for rows in torch.randperm(len(x)).split(20):
                    self.step(x[rows], y[rows])
                for data in (self.train_set, self.val_set):
                    self.validate([data.tensors])

    loop = InMemory(train_set=train_set, val_set=val_set)
    found = measured(loop.run)
    assert found.last.validation.mean == pytest.approx(loop.val_losses[-1], rel=1e-5)
    assert found.last.train.mean == pytest.approx(loop.val_losses[-2], rel=1e-5)
    assert found.epochs == pytest.approx(10)
    assert found.samples is None


def test_one_dataset_split_by_samplers() -> None:
    data = sets(160, 20)[0]

    class Split(Loop):
        def run(self) -> None:
            parts = [list(range(100)), list(range(100, 160))]
            train_loader, val_loader = (
                DataLoader(data, batch_size=20, sampler=SubsetRandomSampler(p)) for p in parts
            )
            for _ in range(3):
                self.model.train()
                for x, y in train_loader:
                    self.step(x, y)
                self.validate(val_loader)

    found = measured(Split().run)
    assert (found.samples, found.epochs) == (100, 3.0)
    assert {len(p.validation.losses) for p in found.checkpoints} == {60}


def test_the_training_data_alone_are_no_validation() -> None:
    data = sets()[0]
    assert watched(Loop(train_set=data, val_set=data).run).generalization is None


def test_a_test_set_at_the_end_is_not_the_validation_set() -> None:
    class Tested(Loop):
        def run(self) -> None:
            super().run()
            self.validate(DataLoader(sets(96, 300)[1], batch_size=32))

    loop = Tested()
    found = measured(loop.run)
    assert len(found.last.validation.losses) == 80
    assert found.last.validation.mean == pytest.approx(loop.val_losses[-2], rel=1e-5)


def test_less_than_an_epoch_is_said() -> None:
    class Short(Loop):
        def run(self) -> None:
            for number, (x, y) in enumerate(DataLoader(self.train_set, batch_size=16)):
                self.model.train()
                self.step(x, y)
                if number == 2:
                    break
            self.validate(DataLoader(self.val_set, batch_size=32))

    assert measured(Short().run).epochs == pytest.approx(0.5)


# ---------------------------------------------------------------------- where it is left out


def test_two_losses_behind_one_forward_are_not_told_apart() -> None:
    def mixed(scores: Tensor, labels: Tensor) -> Tensor:
        turned = functional.cross_entropy(scores, labels.flip(0))
        return 0.7 * functional.cross_entropy(scores, labels) + 0.3 * turned

    assert watched(Loop(loss=mixed).run).generalization is None


def test_hooks_of_the_users_are_not_called() -> None:
    calls: list[int] = []

    def run() -> None:
        loop = Loop()
        loop.model[0].register_forward_hook(lambda *_: calls.append(1))
        loop.run()

    run()
    bare = len(calls)
    trace = watched(run)
    assert len(calls) == 2 * bare
    assert trace.generalization is None
    assert trace.unmeasured == "it has forward hooks"


def test_a_model_that_writes_to_its_buffers_in_evaluation_is_left_alone() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.body(x)

    trace = watched(Loop(Counting()).run)
    assert trace.generalization is None
    assert "writes" in trace.unmeasured


def test_nothing_is_measured_without_time() -> None:
    assert watched(Loop().run, measuring=0.0).generalization is None


def test_losses_in_train_mode_are_not_compared() -> None:
    class Forgetful(Loop):
        @torch.no_grad()
        def validate(self, loader: Any) -> None:
            for x, y in loader:
                self.loss(self.model(x), y)

    assert watched(Forgetful().run).generalization is None


# ---------------------------------------------------------------------- nothing changes

SEEN: list[int] = []
COUNT = 0


class Noticing(nn.Module):
    """Everything that a forward can do beside computing: draw, count, print, remember."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()
        self.calls = 0
        self.last: Tensor | None = None
        self.history: list[float] = []
        self.generator = torch.Generator().manual_seed(1)

    def forward(self, x: Tensor) -> Tensor:
        global COUNT
        COUNT += 1
        SEEN.append(len(x))
        self.calls += 1
        self.history.append(float(x.sum()))
        self.last = x
        print(f"forward {self.calls}")
        noise = torch.rand(len(x), 1) + torch.rand(1, generator=self.generator)
        return self.body(x + 0.01 * noise * random.random() * np.random.rand())


def everything(loop: Loop) -> list[Any]:
    loop.run()
    model = loop.model
    found: list[Any] = [*loop.val_losses, *model.state_dict().values(), torch.get_rng_state()]
    found += [
        random.getstate(),
        np.random.get_state()[1].tolist(),
        [m.training for m in model.modules()],
    ]
    found += [p.grad for p in model.parameters()] + [p._version for p in model.parameters()]
    if isinstance(model, Noticing):
        found += [
            COUNT,
            list(SEEN),
            model.calls,
            model.history,
            model.last,
            model.generator.get_state(),
        ]
    return found


def same(first: list[Any], second: list[Any]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b) if isinstance(a, Tensor) else a == b
        for a, b in zip(first, second, strict=True)
    )


def inferring(loop: Loop) -> Loop:
    original = type(loop).validate.__wrapped__  # type: ignore[attr-defined]
    loop.validate = torch.inference_mode()(lambda loader: original(loop, loader))  # type: ignore[method-assign]
    return loop


KINDS: dict[str, Callable[[], Loop]] = {
    "dropout and batch norm": Loop,
    "noticing": lambda: Loop(Noticing()),
    "inference mode": lambda: inferring(Loop()),
    "weights shared": lambda: Loop(_tied()),
    "recurrent": lambda: Loop(_Recurrent()),
    "spectral": lambda: Loop(
        nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)), nn.Linear(8, 2))
    ),
}


def _tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    model[2].weight = model[0].weight
    return model


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(2, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x.unflatten(1, (4, 2)))[0][:, -1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_measured_loop_is_the_same_bit_for_bit(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> list[Any]:
        global COUNT
        COUNT = 0
        SEEN.clear()
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        return everything(KINDS[kind]())

    bare, printed = run(), capsys.readouterr()
    observer = TrainingObserver(period=1, measuring=60.0)
    with observed(observer) as problem:
        found = run()
    assert problem() is None
    assert same(bare, found)
    assert capsys.readouterr() == printed
    measured = observer.trace().generalization
    assert measured is not None
    assert len(measured.checkpoints) == 5


def test_mixed_precision_and_accumulation_are_measured() -> None:
    class Mixed(Loop):
        number = 0

        def step(self, x: Tensor, y: Tensor) -> None:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = self.loss(self.model(x), y) / 2
            loss.backward()
            self.number += 1
            if self.number % 2 == 0:
                self.optimizer.step()
                self.optimizer.zero_grad()

        def validate(self, loader: Any) -> None:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                super().validate(loader)

    loop = Mixed(epochs=3)
    found = measured(loop.run)
    assert found.last.validation.mean == pytest.approx(loop.val_losses[-1], rel=1e-2)
    assert found.epochs == 3.0
    assert found.samples == 96


def test_two_watches_at_once_measure_alike() -> None:
    loop = Loop()
    with trainlint.watch(every=1) as outer, trainlint.watch(every=1) as inner:
        loop.run()
    assert not [n for w in (outer, inner) for n in w.report().targets[0].notes if "stopped" in n]


# ---------------------------------------------------------------------- the data


class Drawing(Dataset[tuple[Tensor, Tensor]]):
    """Augments with generators of its own, prints, and counts."""

    def __init__(self, data: TensorDataset) -> None:
        self.data, self.reads = data, 0
        self.rng, self.own = np.random.default_rng(0), random.Random(0)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        self.reads += 1
        print("reading", number)
        x, y = self.data[number]
        return x + 0.1 * float(self.rng.normal()) + 0.1 * self.own.random() * torch.rand(()), y


def data_of(loop: Loop) -> Any:
    with trainlint.watch(every=1) as w:
        loop.run()
    return w._data


def test_the_data_are_read_when_the_loop_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    loop = Loop()
    data = data_of(loop)
    assert (data.train.size, data.validation.size) == (96, 80)
    assert (data.train.shuffles, data.validation.shuffles) == (True, False)
    assert (data.train.name, data.validation.name) == ("train_loader", "val_loader")
    assert data.train.site is not None
    assert data.train.site.filename == __file__
    assert data.trainable == sum(p.numel() for p in loop.model.parameters())
    assert data.overlap is not None
    assert data.overlap.exact == 0


def test_reading_leaves_no_trace(capsys: pytest.CaptureFixture[str]) -> None:
    def run(watching: bool) -> list[Any]:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        train_set, val_set = (Drawing(data) for data in sets())
        loop = Loop(train_set=train_set, val_set=val_set, epochs=2)
        if watching:
            assert data_of(loop) is not None
        else:
            loop.run()
        found: list[Any] = [
            *loop.val_losses,
            *loop.model.state_dict().values(),
            torch.get_rng_state(),
        ]
        for data in (train_set, val_set):
            found += [data.rng.normal(), data.own.random()]
        return [*found, random.getstate(), np.random.get_state()[1].tolist()]

    bare, printed = run(False), capsys.readouterr()
    assert same(bare, run(True))
    assert capsys.readouterr() == printed


def test_a_stream_is_not_read_again() -> None:
    class Stream(IterableDataset[tuple[Tensor, Tensor]]):
        passes = 0

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            Stream.passes += 1
            yield from sets()[0]

    class Streamed(Loop):
        def run(self) -> None:
            for _ in range(2):
                self.model.train()
                for x, y in DataLoader(Stream(), batch_size=16):
                    self.step(x, y)

    assert data_of(Streamed()) is None
    assert Stream.passes == 2


def test_nothing_is_read_of_a_loop_that_failed() -> None:
    class Failing(Drawing):
        def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
            if self.reads >= 40:
                raise OSError("the disk is gone")
            return super().__getitem__(number)

    data = Failing(sets()[0])
    with pytest.raises(OSError, match="disk"), trainlint.watch(every=1) as w:
        Loop(train_set=data).run()
    assert data.reads == 40
    assert w._data is None


def test_data_that_cannot_be_read_again_are_a_note() -> None:
    class Once(Drawing):
        def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
            if self.reads >= 96:
                raise OSError("the disk is gone")
            return super().__getitem__(number)

    with trainlint.watch(every=1) as w:
        Loop(train_set=Once(sets()[0]), epochs=1).run()
    (target,) = w.report().targets
    assert target.status == "ok"
    assert any("the disk is gone" in note for note in target.notes)


def test_workers_are_not_started_again() -> None:
    import multiprocessing

    with trainlint.watch(every=1) as w:
        train_set, val_set = sets()
        loop = Loop(train_set=train_set, val_set=val_set, epochs=1)
        loader = DataLoader(train_set, batch_size=16, num_workers=1, persistent_workers=True)
        for x, y in loader:
            loop.step(x, y)
        iterator = loader._iterator
        started = len(multiprocessing.active_children())
    assert w._data is not None
    assert loader._iterator is iterator
    assert len(multiprocessing.active_children()) == started


class Mixing(Loop):
    """Each training batch is mixed with itself in another order, as mixup does."""

    def step(self, x: Tensor, y: Tensor) -> None:
        order = torch.randperm(len(x)).roll(1)
        super().step(0.8 * x + 0.2 * x[order], 0.8 * y + 0.2 * y[order])


class Sampling(Loop):
    """Without loaders: batches are drawn from all samples."""

    def run(self) -> None:
        (x, y), validation = self.train_set.tensors, self.val_set.tensors
        for number in range(60):
            self.model.train()
            chosen = torch.randint(len(x), (16,))
            self.step(x[chosen], y[chosen])
            if number % 10 == 9:
                self.model.eval()
                with torch.no_grad():
                    self.loss(self.model(validation[0]), validation[1])


class SamplingAnew(Sampling):
    def step(self, x: Tensor, y: Tensor) -> None:
        super().step(x + 0.1 * torch.randn_like(x), y)


@pytest.mark.parametrize(
    ("kind", "altered"), [(Loop, False), (Mixing, True), (Sampling, False), (SamplingAnew, True)]
)
def test_samples_that_never_come_twice_are_told(kind: type[Loop], altered: bool) -> None:
    loop = kind(
        model=net(1), train_set=sets(classes=False)[0], val_set=sets(classes=False)[1],
        loss=functional.mse_loss, epochs=8,
    )  # fmt: skip
    with trainlint.watch(every=1) as w:
        loop.run()
    assert w.trace.generalization is not None
    assert w.trace.generalization.altered == altered
