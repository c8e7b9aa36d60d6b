"""Changes of a training: in our loop and in the user's own, observed and not, and undone afterwards."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader, TensorDataset

from trainlint.data.pool import pool_of
from trainlint.fixes.patch import Patch
from trainlint.generalization.laboratory import stepping
from trainlint.generalization.trials import Copy, Plan, copied, trial
from trainlint.preserve import preserved_training
from trainlint.probe.loop import Limits, Ran, run_loop
from trainlint.probe.setup import Setup
from trainlint.surgery import PatchProblem, patched
from trainlint.surgery.losses import LAYERS
from trainlint.surgery.rates import chosen

SAMPLES = 32


def data(scale: float = 1.0, shift: float = 0.0) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(SAMPLES, 4, generator=generator)
    return TensorDataset(inputs * scale + shift, (inputs[:, 0] > 0).long())


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


# The module's names, as a script has them.
criterion = nn.CrossEntropyLoss()
train_loader = DataLoader(data(), batch_size=8)
val_loader = DataLoader(data(), batch_size=8)


class World:
    """Everything that a training might leave changed."""

    def __init__(self) -> None:
        from torch.optim import optimizer

        self.seen = [
            nn.Module.__call__,
            nn.Module.zero_grad,
            torch.autograd.backward,
            torch.optim.Optimizer.__init__,
            torch.optim.Optimizer.zero_grad,
            torch.nn.utils.clip_grad._clip_grads_with_norm_,
            dict(optimizer._global_optimizer_pre_hooks),
            dict(optimizer._global_optimizer_post_hooks),
            functional.cross_entropy,
            functional.binary_cross_entropy,
            train_loader,
            train_loader.collate_fn,
            train_loader.batch_sampler,
        ]


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    before = World()
    yield
    assert before.seen == World().seen


def in_own_loop(
    loop: Callable[..., Any], *patches: Patch, steps: int = 8, optimizer: Any = None
) -> tuple[Ran, nn.Module]:
    """The user's loop of a model that is put back; what was seen of it."""
    model = network()
    made = None if optimizer is None else optimizer(model.parameters())
    given = {"model": model} | ({} if made is None else {"optimizer": made})
    setup = Setup(criterion, made, train=partial(loop, **given))
    before = copy.deepcopy(model.state_dict())
    with preserved_training(model, made):
        change = patched(Copy(model, made, setup), patches)
        assert change.subject.setup.train is not None
        ran = run_loop(change.subject.setup.train, Limits(steps))
        assert not ran.failed, ran.ended
        trained = copy.deepcopy(model)
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    return ran, trained


def incidents(ran: Ran) -> set[str]:
    return {incident.kind for incident in ran.trace.incidents}


def plain(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(4):
        for x, y in train_loader:
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()


def without_zeroing(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(4):
        for x, y in train_loader:
            criterion(model(x), y).backward()
            optimizer.step()


def zeroing_too_late(model: nn.Module, optimizer: Any) -> None:
    for _ in range(4):
        for x, y in train_loader:
            criterion(model(x), y).backward()
            optimizer.zero_grad()
            optimizer.step()


def clipping_too_late(model: nn.Module, optimizer: Any) -> None:
    for _ in range(4):
        for x, y in train_loader:
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()
            clip_grad_norm_(model.parameters(), 0.5)


def clipping_too_tightly(model: nn.Module, optimizer: Any) -> None:
    for _ in range(4):
        for x, y in train_loader:
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            clip_grad_norm_(model.parameters(), 1e-6)
            optimizer.step()


def in_eval_mode(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(4):
        for x, y in train_loader:
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()
        model.eval()


def validating_in_train_mode(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(4):
        for x, y in train_loader:
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()
        with torch.no_grad():
            for x, y in val_loader:
                criterion(model(x), y)


@pytest.mark.parametrize(
    ("loop", "fault", "patch"),
    [
        (without_zeroing, "gradients-left", Patch.training("zero-grad")),
        (zeroing_too_late, "zeroed-before-step", Patch.training("zero-grad")),
        (clipping_too_late, "clip-after-step", Patch.training("clip", max_norm=0.5)),
        (in_eval_mode, "eval-mode-training", Patch.training("train-mode")),
        (validating_in_train_mode, "train-mode-evaluation", Patch.training("eval-mode-in-validation")),
    ],
)  # fmt: skip
def test_a_fault_of_the_users_loop_is_gone(
    loop: Callable[..., Any], fault: str, patch: Patch
) -> None:
    takes = "optimizer" in loop.__annotations__
    optimizer = partial(torch.optim.SGD, lr=0.1) if takes else None
    faulty, _ = in_own_loop(loop, optimizer=optimizer, steps=16)
    repaired, _ = in_own_loop(loop, patch, optimizer=optimizer, steps=16)
    assert fault in incidents(faulty)
    assert incidents(repaired) == set()
    assert repaired.trace.steps == faulty.trace.steps


def test_clipping_takes_the_place_of_the_loops_own() -> None:
    sgd = partial(torch.optim.SGD, lr=0.1)
    tight, _ = in_own_loop(clipping_too_tightly, optimizer=sgd)
    wide, model = in_own_loop(
        clipping_too_tightly, Patch.training("clip", max_norm=100.0), optimizer=sgd
    )
    assert {clip.limit for clip in tight.trace.clips} == {1e-6}
    assert {clip.limit for clip in wide.trace.clips} == {100.0}
    _, free = in_own_loop(lambda model, optimizer: plain(model), optimizer=sgd)
    for one, other in zip(model.parameters(), free.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_optimizer_that_the_loop_makes_is_changed() -> None:
    def scheduled(model: nn.Module) -> None:
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
        for x, y in train_loader:
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()
            scheduler.step()

    def rates(*patches: Patch) -> list[float]:
        ran, _ = in_own_loop(scheduled, *patches, steps=3)
        return [rates[0] for _, rates in ran.trace.optimizers[0].rates]

    assert rates() == pytest.approx([0.1, 0.01, 0.001])
    halved = rates(Patch.training("learning-rate", factor=0.5))
    assert halved == pytest.approx([0.05, 0.005, 0.0005])
    assert rates(Patch.training("schedule", constant=True)) == pytest.approx([0.1])


def test_a_schedule_warms_up_and_falls() -> None:
    ran, _ = in_own_loop(
        plain, Patch.training("schedule", shape="cosine", warmup=2, steps=6), steps=6
    )
    falling = [0.1 * (1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)]
    known = dict(ran.trace.optimizers[0].rates)
    rates = [known[max(step for step in known if step <= at)][0] for at in range(6)]
    assert rates == pytest.approx([0.05, 0.1, *falling])


def test_a_loss_is_scaled_before_its_backward_pass() -> None:
    _, model = in_own_loop(plain, Patch.training("loss-scaled", factor=0.5))
    _, slower = in_own_loop(plain, Patch.training("learning-rate", factor=0.5))
    for one, other in zip(model.parameters(), slower.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-7)


def test_data_of_the_users_loop() -> None:
    sizes: list[int] = []
    means: list[Tensor] = []

    def looking(model: nn.Module, train_loader: Any) -> None:
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for x, y in train_loader:
            sizes.append(len(x))
            means.append(x.mean(0))
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()

    own = DataLoader(data(5.0, 100.0), batch_size=32)
    in_own_loop(
        partial(looking, train_loader=own),
        Patch.training("normalise-inputs"),
        Patch.training("batch-size", value=16),
    )
    assert sizes == [16, 16]
    assert torch.allclose(sum(means) / 2, torch.zeros(4), atol=1e-4)


def test_a_loader_by_its_name_in_the_module() -> None:
    ran, _ = in_own_loop(plain, Patch.training("batch-size", value=32), steps=99)
    assert ran.trace.steps == 4


def test_a_loss_that_the_loop_calls() -> None:
    def loop(model: nn.Module) -> None:
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for x, y in train_loader:
            optimizer.zero_grad()
            functional.mse_loss(model(x)[:, 0], y.float()).backward()
            optimizer.step()

    patch = Patch.training("loss", to="binary_cross_entropy_with_logits")
    ran, _ = in_own_loop(loop, patch)
    assert [objective.kind for objective in ran.trace.objectives] == [
        "binary_cross_entropy_with_logits"
    ]


# ---------------------------------------------------------------------- our loop


def ours(
    *patches: Patch,
    loss: Any = criterion,
    loader: Any = train_loader,
    model: nn.Module | None = None,
    optimizer: Any = torch.optim.SGD,
    validation: Any = None,
) -> Copy:
    model = network() if model is None else model
    setup = Setup(loss, optimizer(model.parameters(), lr=0.1), loader, validation)
    return patched(copied(model, setup, setup.optimizer), patches).subject


def test_a_trial_trains_the_changed_copy() -> None:
    subject = ours(Patch.training("clip", max_norm=1e-4))
    before = [p.detach().clone() for p in subject.model.parameters()]
    pool = pool_of(train_loader, "train_loader")
    trial(subject, pool, Plan(range(16), range(16, 32), steps=3))
    moved = torch.cat(
        [(p - b).flatten() for p, b in zip(subject.model.parameters(), before, strict=True)]
    )
    assert 0 < moved.norm() <= 3 * 0.1 * 1e-4 * 1.001


@pytest.mark.parametrize(
    ("loss", "to", "kind", "kept"),
    [
        (nn.BCELoss(reduction="sum"), "BCEWithLogitsLoss", nn.BCEWithLogitsLoss, {"reduction": "sum"}),
        (nn.NLLLoss(torch.ones(2), ignore_index=7), "cross_entropy", nn.CrossEntropyLoss,
         {"ignore_index": 7}),
        (nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1), "nll_loss", nn.NLLLoss,
         {"reduction": "none"}),
        (nn.MSELoss(), "huber_loss", nn.HuberLoss, {"reduction": "mean"}),
        (nn.MSELoss(reduction="sum"), "CrossEntropyLoss", nn.CrossEntropyLoss, {"reduction": "sum"}),
    ],
)  # fmt: skip
def test_a_loss_layer_is_exchanged(
    loss: nn.Module, to: str, kind: type[nn.Module], kept: dict[str, Any]
) -> None:
    made = ours(Patch.training("loss", to=to), loss=loss).setup.loss
    assert isinstance(made, kind)
    assert {name: getattr(made, name) for name in kept} == kept
    if isinstance(loss, nn.NLLLoss):
        assert torch.equal(made.weight, torch.ones(2))  # type: ignore[arg-type]


SCORES = torch.randn(6, 3, generator=torch.Generator().manual_seed(3))
CLASSES = torch.tensor([0, 1, 2, 2, 1, 0])


ONE_HOT = functional.one_hot(CLASSES).float()
BINARY = CLASSES.clamp(max=1)


@pytest.mark.parametrize(
    ("before", "target", "to", "scores", "expected"),
    [
        ("l1_loss", ONE_HOT, "cross_entropy", SCORES, functional.cross_entropy(SCORES, CLASSES)),
        ("l1_loss", CLASSES.float(), "cross_entropy", SCORES, functional.cross_entropy(SCORES, CLASSES)),
        ("l1_loss", CLASSES[:, None], "cross_entropy", SCORES, functional.cross_entropy(SCORES, CLASSES)),
        ("l1_loss", BINARY, "binary_cross_entropy_with_logits", SCORES[:, :1],
         functional.binary_cross_entropy_with_logits(SCORES[:, 0], BINARY.float())),
        ("cross_entropy", CLASSES, "mse_loss", SCORES, functional.mse_loss(SCORES, ONE_HOT)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("make", ["layer", "function", "own"])
def test_targets_take_the_form_that_the_loss_takes(
    before: str, target: Tensor, to: str, scores: Tensor, expected: Tensor, make: str
) -> None:
    made = ours(Patch.training("loss", to=to), loss=loss_as(make, before)).setup.loss
    assert made is not None
    assert torch.allclose(made(scores, target), expected)


def loss_as(make: str, name: str) -> Any:
    """The loss as a layer, as the function, or within a function of the user's own."""
    if make == "layer":
        return LAYERS[name]()
    if make == "function":
        return getattr(functional, name)
    return lambda output, wanted: 1.0 * getattr(functional, name)(output, wanted)


def test_what_no_loss_is_exchanged_in_is_said() -> None:
    with pytest.raises(PatchProblem, match="no loss 'hinge' is known"):
        ours(Patch.training("loss", to="hinge"))
    loss = ours(Patch.training("loss", to="mse_loss"), loss=lambda a, b: (a - b).sum()).setup.loss
    assert loss is not None
    with pytest.raises(PatchProblem, match="the loss calls none of"):
        loss(SCORES, SCORES)
    loss = ours(Patch.training("loss", to="cross_entropy"), loss=nn.MSELoss()).setup.loss
    assert loss is not None
    with pytest.raises(PatchProblem, match="wants a score for each class"):
        loss(SCORES[:, :1], CLASSES)


@pytest.mark.parametrize("make", ["layer", "function", "own"])
def test_classes_are_weighed(make: str) -> None:
    weights = torch.tensor([1.0, 2.0, 3.0])
    patch = Patch.training("class-weights", weights=weights.tolist())
    made = ours(patch, loss=loss_as(make, "cross_entropy")).setup.loss
    assert made is not None
    expected = functional.cross_entropy(SCORES, CLASSES, weights)
    assert torch.allclose(made(SCORES, CLASSES), expected)


def test_the_positive_class_is_weighed() -> None:
    patch = Patch.training("class-weights", weights=4.0)
    made: Any = ours(patch, loss=nn.BCEWithLogitsLoss()).setup.loss
    assert made.pos_weight.item() == 4.0
    with pytest.raises(PatchProblem, match="the loss is cross_entropy"):
        ours(patch)


def batches_of(loader: Any) -> tuple[Tensor, Tensor]:
    parts = list(loader)
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


@pytest.mark.parametrize("form", ["loader", "list", "function", "iterable"])
def test_inputs_are_normalised_by_figures_of_the_training_samples(form: str) -> None:
    class Iterable:
        def __init__(self, loader: Any) -> None:
            self.loader = loader

        def __iter__(self) -> Iterator[Any]:
            return iter(self.loader)

    def shaped(loader: Any) -> Any:
        made = {"loader": loader, "list": list(loader), "iterable": Iterable(loader)}
        return (lambda: loader) if form == "function" else made[form]

    train, other = DataLoader(data(5, 100), batch_size=8), DataLoader(data(5, 110), batch_size=8)
    subject = ours(
        Patch.training("normalise-inputs"), loader=shaped(train), validation=shaped(other)
    )
    read = [
        batches_of(loader() if callable(loader) else loader)[0]
        for loader in (subject.setup.train_loader, subject.setup.val_loader)
    ]
    raw = batches_of(train)[0]
    assert torch.allclose(read[0].mean(0), torch.zeros(4), atol=1e-4)
    assert torch.allclose(read[0].std(0, unbiased=False), torch.ones(4), atol=1e-4)
    # The same figures for validation, which is shifted by 10.
    assert torch.allclose(read[1] - read[0], 10 / raw.std(0, unbiased=False), atol=1e-3)


def test_images_are_normalised_by_channel_and_constants_stay_finite() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (16, 3, 5, 5), generator=generator, dtype=torch.uint8)
    images[:, 2] = 7
    loader = DataLoader(TensorDataset(images, torch.zeros(16, dtype=torch.long)), batch_size=4)
    model = nn.Sequential(nn.Conv2d(3, 2, 5), nn.Flatten())
    subject = ours(Patch.training("normalise-inputs"), loader=loader, model=model)
    found, labels = batches_of(subject.setup.train_loader)
    assert torch.allclose(found.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert found.std((0, 2, 3), unbiased=False).tolist() == pytest.approx([1, 1, 0], abs=1e-5)
    assert labels.dtype == torch.long


def test_targets_are_normalised_column_by_column() -> None:
    targets = torch.arange(48.0).reshape(16, 3) * torch.tensor([1.0, 10.0, 100.0])
    loader = DataLoader(TensorDataset(torch.randn(16, 4), targets), batch_size=4)
    model = nn.Linear(4, 3)
    subject = ours(
        Patch.training("normalise-targets"), loader=loader, model=model, loss=nn.MSELoss()
    )
    found = batches_of(subject.setup.train_loader)[1]
    assert torch.allclose(found.std(0, unbiased=False), torch.ones(3), atol=1e-5)
    with pytest.raises(PatchProblem, match="the targets are no real numbers"):
        ours(Patch.training("normalise-targets"))


def test_batches_of_a_dict() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            output = self.fc(x)
            return {"loss": functional.cross_entropy(output, labels), "logits": output}

    x, y = data(3, 50).tensors
    loader = [{"x": x[i : i + 8], "labels": y[i : i + 8]} for i in range(0, 32, 8)]
    subject = ours(Patch.training("normalise-inputs"), loader=loader, model=Named(), loss=None)
    read = list(subject.setup.train_loader)
    assert torch.allclose(torch.cat([b["x"] for b in read]).mean(0), torch.zeros(4), atol=1e-4)
    assert all(torch.equal(a["labels"], b["labels"]) for a, b in zip(read, loader, strict=True))


def test_channels_first_and_casting() -> None:
    images = torch.rand(8, 6, 6, 3, dtype=torch.float64)
    loader = DataLoader(TensorDataset(images, torch.zeros(8)), batch_size=4)
    model = nn.Sequential(nn.Conv2d(3, 2, 6), nn.Flatten())
    subject = ours(
        Patch.training("cast", targets="int64"),
        Patch.training("cast"),
        Patch.training("channels-first"),
        loader=loader,
        model=model,
    )
    found, labels = batches_of(subject.setup.train_loader)
    assert (found.shape, found.dtype, labels.dtype) == ((8, 3, 6, 6), torch.float32, torch.int64)
    with pytest.raises(PatchProblem, match="channels last"):
        ours(Patch.training("channels-first"))
    with pytest.raises(PatchProblem, match="torch has no type bits"):
        ours(Patch.training("cast", inputs="bits"))


def test_batches_of_a_loader() -> None:
    uneven = DataLoader(data(), batch_size=10)

    def sizes(*patches: Patch) -> list[int]:
        return [len(y) for _, y in ours(*patches, loader=uneven).setup.train_loader]

    assert sizes() == [10, 10, 10, 2]
    assert sizes(Patch.training("drop-last")) == [10, 10, 10]
    assert sizes(Patch.training("batch-size", value=16)) == [16, 16]
    shuffled = ours(Patch.training("shuffle"), loader=uneven).setup.train_loader
    (x, _), (again, _) = batches_of(shuffled), batches_of(uneven)
    assert not torch.equal(x, again)
    assert torch.equal(x.sum(1).sort().values, again.sum(1).sort().values)
    with pytest.raises(PatchProblem, match="shuffled already"):
        ours(Patch.training("shuffle"), loader=shuffled)
    with pytest.raises(PatchProblem, match="no plain DataLoader"):
        ours(Patch.training("drop-last"), loader=list(uneven))
    with pytest.raises(PatchProblem, match="no training data are known"):
        ours(Patch.training("drop-last"), loader=None)


# ---------------------------------------------------------------------- the optimizer


def test_weight_decay_apart_is_that_of_adamw() -> None:
    subject = ours(
        Patch.training("weight-decay", value=0.1, apart=True), optimizer=torch.optim.Adam
    )
    reference = network()
    adamw = torch.optim.AdamW(reference.parameters(), lr=0.1, weight_decay=0.1)
    x, y = data().tensors
    with subject.setup.entered():
        for model, optimizer in ((subject.model, subject.optimizer), (reference, adamw)):
            for _ in range(3):
                optimizer.zero_grad()
                criterion(model(x), y).backward()
                optimizer.step()
    for one, other in zip(subject.model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_weight_decay_of_an_optimizer_that_cannot_keep_it_apart() -> None:
    subject = ours(
        Patch.training("weight-decay", value=0.1, apart=True), optimizer=torch.optim.RMSprop
    )
    before = {n: p.detach().clone() for n, p in subject.model.named_parameters()}
    with subject.setup.entered():
        for parameter in subject.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        subject.optimizer.step()
    for name, parameter in subject.model.named_parameters():
        assert torch.allclose(parameter, before[name] * (1 - 0.1 * 0.1))


def test_decay_of_matrices_only() -> None:
    subject = ours(Patch.training("weight-decay", value=0.1, matrices_only=True))
    decays = {
        id(p): group["weight_decay"]
        for group in subject.optimizer.param_groups
        for p in group["params"]
    }
    found = {n: decays[id(p)] for n, p in subject.model.named_parameters()}
    assert {n for n, decay in found.items() if decay} == {"0.weight", "3.weight"}
    assert len(found) == len(list(subject.model.parameters()))


def test_options_of_the_optimizer() -> None:
    subject = ours(
        Patch.training("optimizer-options", betas=[0.8, 0.99]), optimizer=torch.optim.Adam
    )
    assert subject.optimizer.param_groups[0]["betas"] == (0.8, 0.99)
    with pytest.raises(PatchProblem, match="SGD has no option betas"):
        ours(Patch.training("optimizer-options", betas=[0.8, 0.99]))


@pytest.mark.parametrize("held", ["head", "other"])
def test_the_optimizer_is_rebuilt_over_all_parameters(held: str) -> None:
    model, stranger = network(), network()
    source = {"head": model[3], "other": stranger}[held]  # type: ignore[index]
    optimizer = torch.optim.SGD(source.parameters(), 0.1, momentum=0.9)
    subject = copied(model, Setup(criterion, optimizer, train_loader), optimizer)
    change = patched(subject, [Patch.training("optimizer-rebuilt")]).subject
    parameters = {id(p) for group in change.optimizer.param_groups for p in group["params"]}
    assert parameters == {id(p) for p in change.model.parameters()}
    assert change.optimizer.param_groups[0]["momentum"] == 0.9


# ---------------------------------------------------------------------- the range test


def test_the_range_test_chooses_where_the_loss_falls_fastest() -> None:
    rates = [10.0**p for p in range(-6, 6)]
    losses = [1.0, 1.0, 1.0, 1.0, 0.9, 0.2, 0.15, 0.1, 0.1, 0.1, 0.1, math.inf]
    assert chosen(rates, losses) == pytest.approx(1e-2)
    early = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.9, 0.6, 0.1, 5.0]
    # A tenth of where it is least is less.
    assert chosen(rates, [*early[:-1], math.nan]) == pytest.approx(rates[10] / 10)
    with pytest.raises(PatchProblem, match="falls at no learning rate"):
        chosen(rates, [1.0 + i for i in range(12)])


@pytest.mark.parametrize("rate", [1e-7, 100.0])
def test_a_range_test_finds_a_rate_that_trains(rate: float) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), rate)
    setup = Setup(criterion, optimizer, train_loader)
    before = copy.deepcopy(model.state_dict())
    patch = Patch.training("learning-rate", range_test=True)
    change = patched(copied(model, setup, optimizer), [patch])
    assert 1e-3 < change.subject.optimizer.param_groups[0]["lr"] < 10
    assert change.details
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    now = change.subject.model.state_dict()
    assert all(torch.equal(before[name], now[name]) for name in before)


def test_layers_of_the_model_itself_are_put_back_around_the_users_loop() -> None:
    patches = [
        Patch.norm("layer", after=["0"]),
        Patch.residual(["1"]),
        Patch.activation("gelu", modules=["2"]),
        Patch.training("train-mode"),
    ]
    ran, trained = in_own_loop(plain, *patches)
    assert ran.trace.steps == 8
    assert isinstance(trained[2], nn.GELU)  # type: ignore[index]
    assert "0.norm.weight" in trained.state_dict()


def test_an_optimizer_of_fixed_size_takes_new_parameters() -> None:
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters(), 0.1)
    setup = Setup(criterion, optimizer, train_loader)
    subject = copied(model, setup, optimizer)
    x, y = data().tensors

    def step(subject: Copy) -> float:
        def closure() -> Tensor:
            subject.optimizer.zero_grad()
            loss = criterion(subject.model(x), y)
            loss.backward()
            return loss

        return subject.optimizer.step(closure).item()

    step(subject)
    subject.optimizer.state.clear()
    change = patched(subject, [Patch.norm("layer", after=["0"])])
    losses = [step(change.subject) for _ in range(3)]
    assert losses[-1] < losses[0]
    assert change.subject.model.get_parameter("0.norm.weight").grad is not None


class Stepping(nn.Module):
    """A model with a training step of its own, as a LightningModule has."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def training_step(self, batch: Any, _: int) -> Tensor:
        x, y = batch
        return criterion(self.net(x), y)


def test_the_training_step_is_that_of_the_copy() -> None:
    model = Stepping()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    setup = Setup(None, optimizer, train_loader, step=model.training_step)
    change = patched(copied(model, setup, optimizer), [Patch.activation("gelu", modules=["net.2"])])
    step = change.subject.setup.step
    assert step is not None
    step(next(iter(train_loader)), 0).backward()
    assert model.net[0].weight.grad is None  # type: ignore[index]
    assert change.subject.model.get_parameter("net.0.weight").grad is not None


def test_paths_are_those_of_the_model_within_ours() -> None:
    model = Stepping()
    made = lambda own: torch.optim.SGD(own.parameters(), 0.1)  # noqa: E731
    whole, setup = stepping(model, Setup(None, made, train_loader, step=model.training_step))
    subject = copied(whole, setup, setup.optimizer)
    change = patched(subject, [Patch.norm("layer", after=["net.0"])])
    pool = pool_of(train_loader, "train_loader")
    trial(change.subject, pool, Plan(range(16), range(16, 32), steps=2))
    norm = change.subject.model.get_parameter("inner.net.0.norm.weight")
    assert not torch.equal(norm, torch.ones(8))
