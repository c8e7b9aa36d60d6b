"""Training runs as people write them: a model, data, an optimizer, and a loop around them.

`host(architecture, dataset, seed)` makes a sound `Recipe`: optimizer, rate, schedule, clipping, validation
and habits are drawn from the three names, so that a run can be made again. `train(recipe)` is the loop. Its
`Changes` are the switches by which `training_faults.py` breaks it.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.optim import lr_scheduler

from benchmarks.training_data import DATASETS, Data, make
from benchmarks.training_models import ARCHITECTURES, Architecture, supervised_loss, twin

Step = tuple[Tensor, Tensor]


def _same(value: Any) -> Any:
    return value


@dataclass
class Changes:
    """What of a sound loop is different: all as it should be, at first.

    `zeroing` is when gradients are cleared: `before` the backward pass, `between` it and the step,
    once an `epoch`, or `never`. `validation` is `sound`, in `train mode`, without `reset` to train mode, or
    with a `graph`. `is_sorted` data come by class. `keeping` says what is done with losses: `nothing`, a
    `list` or a `sum` of tensors.
    """

    parameters: Callable[[nn.Module], Iterable[Any]] | None = None
    made: Callable[[Recipe, Any], None] | None = None
    batch: Callable[[Tensor, Tensor], Step] = field(default=lambda x, y: (x, y))
    outputs: Callable[[Tensor], Tensor] = _same
    criterion: Callable[[Tensor, Tensor], Tensor] | None = None
    loss: Callable[[Tensor], Tensor] = _same
    zeroing: str = "before"
    clips_after: bool = False
    schedule: Callable[[Any, int, int], tuple[Any, bool]] | None = None
    schedules_first: bool = False
    validation: str = "sound"
    keeping: str = "nothing"
    is_sorted: bool = False
    unscaled: bool = False


@dataclass
class Recipe:
    """A run. `steps` are those of the optimizer; `period` is how many of them are recorded."""

    architecture: Architecture
    data: Data
    seed: int
    model: nn.Module
    optimizer: str
    rate: float
    options: dict[str, Any]
    batch: int
    steps: int
    schedule: str
    clip: float | None
    accumulation: int
    validates: bool
    habits: frozenset[str]
    period: int
    extra: dict[str, Any] = field(default_factory=dict)
    changes: Changes = field(default_factory=Changes)

    @property
    def name(self) -> str:
        return f"{self.architecture.name}/{self.data.name}/{self.seed}"

    @property
    def method(self) -> str:
        return self.architecture.method

    @property
    def is_supervised(self) -> bool:
        return self.method == "supervised"


# ---------------------------------------------------------------------- what is drawn

MOMENTUM = {"momentum": 0.9}
# Rate over that of Adam, and options.
OPTIMIZERS: dict[str, tuple[float, dict[str, Any]]] = {
    "Adam": (1.0, {}),
    "AdamW": (1.0, {"weight_decay": 0.01}),
    "NAdam": (1.0, {}),
    "RMSprop": (0.3, {}),
    "Adagrad": (4.0, {}),
    "SGD": (30.0, {}),
    "SGD with momentum": (8.0, MOMENTUM),
    "SGD with Nesterov": (8.0, {**MOMENTUM, "nesterov": True, "weight_decay": 1e-4}),
    "LBFGS": (0.0, {}),
}
# A host's rate is this times 3 to a power that is drawn between these.
POWERS = (-0.7, 0.5)
SCHEDULES = (
    "none none none none cosine warm-up one-cycle steps exponential plateau warm-up-cosine".split()
)
RECURRENT = ("lstm", "gru", "two_way_gru", "tanh_rnn", "lstm_by_hand")
NEWTON = ("mlp", "linear", "tanh_mlp", "wide_and_deep", "fourier_features", "physics_informed")


def chance(*words: object) -> random.Random:
    """Numbers that depend on these words alone, in every process."""
    digest = hashlib.sha256("/".join(map(str, words)).encode()).digest()
    return random.Random(digest)


def sound_rates() -> dict[str, tuple[float, float]]:
    """The least and the largest rate that `host` may draw, by the class of the optimizer."""
    rates: dict[str, list[float]] = {}
    for name, (factor, _) in OPTIMIZERS.items():
        kind = name.partition(" ")[0]
        careful = kind in ("SGD", "Adagrad")
        rates.setdefault(kind, []).extend(
            known.rate * factor * 3**power
            for known in ARCHITECTURES.values()
            if known.stable or not careful
            for power in POWERS
        )
    return {kind: (min(drawn), max(drawn)) for kind, drawn in rates.items()}


def host(architecture: str, dataset: str, seed: int) -> Recipe:
    """A sound run."""
    known = ARCHITECTURES[architecture]
    rng = chance(architecture, dataset, seed)
    torch.manual_seed(rng.randrange(2**31))
    data = make(dataset, seed)
    model = known.build(data)
    optimizer = rng.choice(list(OPTIMIZERS))
    if optimizer == "LBFGS" and architecture not in NEWTON:
        optimizer = "Adam"
    if not known.stable and optimizer.startswith(("SGD", "Adagrad")):
        optimizer = rng.choice(["Adam", "AdamW"])
    factor, options = OPTIMIZERS[optimizer]
    rate = known.rate * factor * 3 ** rng.uniform(*POWERS)
    habits = frozenset(habit for habit in HABITS if rng.random() < 0.08)
    loops = {"adversarial", "actor_critic", "q_learning"}
    return Recipe(
        known, data, seed, model, optimizer, rate, dict(options),
        batch=rng.choice([16, 32, 32, 64]),
        steps=rng.choice([60, 80, 100, 140]),
        schedule="none" if known.method in loops or optimizer == "LBFGS" else rng.choice(SCHEDULES),
        clip=rng.choice([1.0, 5.0]) if rng.random() < (0.7 if architecture in RECURRENT else 0.2) else None,
        accumulation=rng.choice([2, 4]) if rng.random() < 0.15 else 1,
        validates=rng.random() < 0.6,
        habits=habits,
        period=rng.choice([1, 3, 7]),
    )  # fmt: skip


def compatible(architecture: str) -> list[str]:
    """The data sets that an architecture can be trained on."""
    known = ARCHITECTURES[architecture]
    return [
        name
        for name, (kind, task, *_) in DATASETS.items()
        if kind in known.kinds and task in known.tasks
    ]


# ---------------------------------------------------------------------- methods: what the loss is


def supervised(r: Recipe, x: Tensor, y: Tensor) -> Tensor:
    if "mixup" in r.habits and r.model.training and x.is_floating_point() and y.is_floating_point():
        share, order = 0.8, torch.randperm(len(x))
        x, y = share * x + (1 - share) * x[order], share * y + (1 - share) * y[order]
    outputs = r.changes.outputs(r.model(x))
    if r.changes.criterion is not None:
        return r.changes.criterion(outputs, y)
    if "smoothing" in r.habits and r.data.task == "classes" and outputs.dim() == 2:
        return F.cross_entropy(outputs, y, label_smoothing=0.1)
    loss = supervised_loss(r.data, outputs, y)
    if "penalty" in r.habits:
        loss = loss + 1e-4 * sum(p.abs().sum() for p in r.model.parameters() if p.requires_grad)
    return loss


def multi_task(r: Recipe, x: Tensor, y: Tensor) -> Tensor:
    main, side = r.model(x)
    return supervised_loss(r.data, main, y) + 0.3 * F.mse_loss(side, x.norm(dim=1, keepdim=True))


def distillation(r: Recipe, x: Tensor, y: Tensor) -> Tensor:
    if "teacher" not in r.extra:
        teacher = nn.Sequential(
            nn.Linear(r.data.size, 64), nn.ReLU(), nn.Linear(64, r.data.outputs)
        )
        r.extra["teacher"] = teacher.eval()
    scores = r.model(x)
    with torch.no_grad():
        taught = torch.softmax(r.extra["teacher"](x) / 2, -1)
    soft = F.kl_div(torch.log_softmax(scores / 2, -1), taught, reduction="batchmean")
    return 0.5 * F.cross_entropy(scores, y) + 0.5 * 4 * soft


def mean_teaching(r: Recipe, x: Tensor, y: Tensor) -> Tensor:
    if "teacher" not in r.extra:
        r.extra["teacher"] = twin(r.model)
    teacher = r.extra["teacher"]
    with torch.no_grad():
        for slow, fast in zip(teacher.parameters(), r.model.parameters(), strict=True):
            slow.lerp_(fast, 0.05)
        taught = torch.softmax(teacher(x), -1)
    scores = r.model(x + 0.1 * torch.randn_like(x))
    labelled = len(x) // 2
    consistent = F.mse_loss(torch.softmax(scores, -1), taught)
    return F.cross_entropy(scores[:labelled], y[:labelled]) + consistent


def autoencoding(r: Recipe, x: Tensor, _: Tensor) -> Tensor:
    return F.mse_loss(r.model(x), x)


def variational(r: Recipe, x: Tensor, _: Tensor) -> Tensor:
    decoded, mean, logvar = r.model(x)
    divergence = -0.5 * (1 + logvar - mean**2 - logvar.exp()).sum(1).mean()
    return F.mse_loss(decoded, x, reduction="sum") / len(x) + 0.1 * divergence


def denoising(r: Recipe, x: Tensor, _: Tensor) -> Tensor:
    time, noise = torch.rand(len(x), 1), torch.randn_like(x)
    noisy = (1 - time).sqrt() * x + time.sqrt() * noise
    return F.mse_loss(r.model(torch.cat([noisy, time], 1)), noise)


def contrasting(r: Recipe, x: Tensor, _: Tensor) -> Tensor:
    one = F.normalize(r.model(x + 0.2 * torch.randn_like(x)), dim=1)
    two = F.normalize(r.model(x + 0.2 * torch.randn_like(x)), dim=1)
    return F.cross_entropy(one @ two.T / 0.2, torch.arange(len(x)))


def triplets(r: Recipe, x: Tensor, y: Tensor) -> Tensor:
    order = y.argsort()
    h = r.model(x)
    anchor, positive, negative = h[order], h[order].roll(1, 0), h[order].roll(len(x) // 2, 0)
    return F.relu((anchor - positive).norm(dim=1) - (anchor - negative).norm(dim=1) + 0.5).mean()


def physics(r: Recipe, x: Tensor, _: Tensor) -> Tensor:
    """u″ = −u with u(0) = 0 and u′(0) = 1."""
    with torch.enable_grad():
        t = (2 * torch.rand(len(x), 1)).requires_grad_()
        u = r.model(t)
        first = torch.autograd.grad(u.sum(), t, create_graph=True)[0]
        second = torch.autograd.grad(first.sum(), t, create_graph=True)[0]
        start = torch.zeros(1, 1, requires_grad=True)
        at_start = r.model(start)
        slope = torch.autograd.grad(at_start.sum(), start, create_graph=True)[0]
        return ((second + u) ** 2).mean() + at_start.pow(2).mean() + (slope - 1).pow(2).mean()


def quantile(r: Recipe, x: Tensor, y: Tensor) -> Tensor:
    error = y - r.model(x)
    return torch.maximum(0.8 * error, -0.2 * error).mean()


def bayesian(r: Recipe, x: Tensor, y: Tensor) -> Tensor:
    prior = sum(p.pow(2).sum() for p in r.model.parameters())
    return supervised_loss(r.data, r.model(x), y) + 1e-4 * prior


METHODS: dict[str, Callable[[Recipe, Tensor, Tensor], Tensor]] = {
    "supervised": supervised,
    "multi_task": multi_task,
    "distillation": distillation,
    "mean_teacher": mean_teaching,
    "autoencoding": autoencoding,
    "variational": variational,
    "denoising": denoising,
    "contrastive": contrasting,
    "triplet": triplets,
    "physics": physics,
    "quantile": quantile,
    "bayesian": bayesian,
}
HABITS = (
    "mixup", "smoothing", "penalty", "zero tensors", "zero after", "half", "value clipping", "groups",
    "looks once", "checks sanity",
)  # fmt: skip


def quality(r: Recipe) -> float | None:
    """The loss that was meant, on held-out data, in eval mode. None for games."""
    if r.method not in METHODS:
        return None
    changes, r.changes = r.changes, Changes()
    habits, r.habits = r.habits, frozenset()
    was_training = r.model.training
    r.model.eval()
    x, y = r.data.held_out
    try:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            value = float(METHODS[r.method](r, x, y))
    finally:
        r.changes, r.habits = changes, habits
        r.model.train(was_training)
    r.model.zero_grad(set_to_none=True)
    return value


# ---------------------------------------------------------------------- the loops


def train(r: Recipe) -> None:
    """Run it."""
    torch.manual_seed(chance("run", r.name).randrange(2**31))
    {"adversarial": _game, "actor_critic": _policy, "q_learning": _values}.get(r.method, _epochs)(r)


def make_optimizer(r: Recipe, model: nn.Module | None = None) -> torch.optim.Optimizer:
    model = r.model if model is None else model
    kind = getattr(torch.optim, r.optimizer.split()[0])
    if r.changes.parameters is not None:
        return kind(r.changes.parameters(model), lr=r.rate, **r.options)
    if r.optimizer == "LBFGS":
        return kind(model.parameters(), lr=0.5, max_iter=4, line_search_fn="strong_wolfe")
    if "groups" in r.habits and "weight_decay" in r.options:
        trained = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.dim() > 1]},
            {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
        ]
        return kind(groups, lr=r.rate, **r.options)
    return kind(model.parameters(), lr=r.rate, **r.options)


def make_schedule(r: Recipe, optimizer: Any, an_epoch: int) -> tuple[Any, bool]:
    """The scheduler, and whether it steps after each batch."""
    if r.changes.schedule is not None:
        return r.changes.schedule(optimizer, r.steps, an_epoch)
    rising = {"lr_lambda": lambda step: min(1.0, (step + 1) / 10)}
    match r.schedule:
        case "cosine":
            return lr_scheduler.CosineAnnealingLR(optimizer, r.steps), True
        case "warm-up":
            return lr_scheduler.LambdaLR(optimizer, **rising), True
        case "one-cycle":
            cycles = r.optimizer != "Adagrad"  # which has no momentum
            options = {"total_steps": r.steps + 1, "cycle_momentum": cycles}
            return lr_scheduler.OneCycleLR(optimizer, 2 * r.rate, **options), True
        case "steps":
            return lr_scheduler.StepLR(optimizer, 2, 0.5), False
        case "exponential":
            return lr_scheduler.ExponentialLR(optimizer, 0.9), False
        case "plateau":
            return lr_scheduler.ReduceLROnPlateau(optimizer, patience=2), False
        case "warm-up-cosine":
            parts = [
                lr_scheduler.LinearLR(optimizer, 0.1, total_iters=10),
                lr_scheduler.CosineAnnealingLR(optimizer, max(1, r.steps - 10)),
            ]
            return lr_scheduler.SequentialLR(optimizer, parts, [10]), True
        case _:
            return None, False


def batches(r: Recipe) -> Iterator[Step]:
    """An epoch, shuffled."""
    inputs, targets = r.data.training
    order = targets.argsort(stable=True) if r.changes.is_sorted else torch.randperm(len(inputs))
    for rows in order.split(r.batch):
        if len(rows) == r.batch:
            yield r.changes.batch(inputs[rows], targets[rows])


def _epochs(r: Recipe) -> None:  # noqa: C901 - a loop as people write it, with all that may be in it
    optimizer = make_optimizer(r)
    if r.changes.made is not None:
        r.changes.made(r, optimizer)
    an_epoch = max(1, len(r.data.training[0]) // r.batch // r.accumulation)
    schedule, per_batch = make_schedule(r, optimizer, an_epoch)
    step, epoch, kept, total = 0, 0, [], torch.zeros(())
    objective = METHODS[r.method]
    precision = torch.autocast("cpu", torch.bfloat16) if "half" in r.habits else nullcontext()
    if r.changes.validation == "reset":
        r.model.train()
    if (
        "checks sanity" in r.habits
    ):  # one batch forwards before anything else, as some frameworks do
        _validate(r)
    while step < r.steps:
        if r.changes.validation != "reset":
            r.model.train()
        if r.changes.zeroing == "epoch":
            optimizer.zero_grad()
        waiting = 0
        for x, y in batches(r):
            if r.optimizer == "LBFGS":
                _newton(r, optimizer, x, y)
                step += 1
            else:
                if waiting == 0 and r.changes.zeroing == "before" and "zero after" not in r.habits:
                    optimizer.zero_grad(set_to_none="zero tensors" not in r.habits)
                with precision:
                    loss = objective(r, x, y)
                if not r.changes.unscaled:
                    loss = loss / r.accumulation
                loss = r.changes.loss(loss)
                loss.backward()
                if r.changes.keeping == "list":
                    kept.append(loss)
                elif r.changes.keeping == "sum":
                    total = total + loss
                waiting += 1
                if waiting < r.accumulation:
                    continue
                waiting = 0
                _step(r, optimizer)
                if schedule is not None and per_batch and not r.changes.schedules_first:
                    schedule.step()
                step += 1
            if "looks once" in r.habits and step % 20 == 0:
                with torch.no_grad():  # a glance at the loss after the step, on the same batch
                    objective(r, x, y)
            if step >= r.steps:
                break
        epoch += 1
        value = _validate(r) if r.validates or r.changes.validation != "sound" else 0.0
        if schedule is not None and not per_batch:
            if isinstance(schedule, lr_scheduler.ReduceLROnPlateau):
                schedule.step(value)
            else:
                schedule.step()


def _step(r: Recipe, optimizer: Any) -> None:
    """What stands between a backward pass and the next batch."""
    if r.clip is not None and not r.changes.clips_after:
        nn.utils.clip_grad_norm_(r.model.parameters(), r.clip)
    elif "value clipping" in r.habits:
        nn.utils.clip_grad_value_(r.model.parameters(), 1.0)
    if r.changes.zeroing == "between":
        optimizer.zero_grad()
    optimizer.step()
    if r.clip is not None and r.changes.clips_after:
        nn.utils.clip_grad_norm_(r.model.parameters(), r.clip)
    if r.changes.zeroing == "before" and "zero after" in r.habits:
        optimizer.zero_grad()


def _newton(r: Recipe, optimizer: Any, x: Tensor, y: Tensor) -> None:
    def closure() -> Tensor:
        if r.changes.zeroing != "never":
            optimizer.zero_grad()
        loss = r.changes.loss(METHODS[r.method](r, x, y))
        loss.backward()
        return loss

    optimizer.step(closure)


def _validate(r: Recipe) -> float:
    """The loss on held-out data, in batches."""
    if r.changes.validation != "train mode":
        r.model.eval()
    inputs, targets = r.data.held_out
    values = []
    graph = torch.enable_grad() if r.changes.validation == "graph" else torch.no_grad()
    with graph:
        for x, y in zip(inputs.split(64), targets.split(64), strict=True):
            if r.is_supervised:  # at a line of its own, as people have it
                loss = supervised_loss(r.data, r.changes.outputs(r.model(x)), y)
            else:
                loss = METHODS[r.method](r, x, y)
            values.append(float(loss.detach()))
    return sum(values) / len(values)


def _game(r: Recipe) -> None:
    """A generative adversarial net."""
    net: Any = r.model
    generator, discriminator = net.generator, net.discriminator
    g_optimizer = torch.optim.Adam(generator.parameters(), r.rate, betas=(0.5, 0.999))
    d_optimizer = torch.optim.Adam(discriminator.parameters(), r.rate, betas=(0.5, 0.999))
    criterion, step = nn.BCEWithLogitsLoss(), 0
    while step < r.steps:
        for x, _ in batches(r):
            if step >= r.steps:
                break
            real, fake = torch.ones(len(x), 1), torch.zeros(len(x), 1)
            made = generator(torch.randn(len(x), 8))
            if r.changes.zeroing != "never":
                d_optimizer.zero_grad()
            d_loss = criterion(discriminator(x), real) + criterion(
                discriminator(made.detach()), fake
            )
            d_loss.backward()
            d_optimizer.step()
            if r.changes.zeroing != "never":
                g_optimizer.zero_grad()
            g_loss = r.changes.loss(criterion(discriminator(made), real))
            g_loss.backward()
            g_optimizer.step()
            step += 1


def _policy(r: Recipe) -> None:
    """Advantage actor-critic on a bandit whose context is the input: the class is the good action."""
    optimizer = make_optimizer(r)
    inputs, targets = r.data.training
    for _ in range(r.steps):
        states, actions, rewards = [], [], []
        with torch.no_grad():
            for rows in torch.randint(len(inputs), (8, 4)):
                logits, _ = r.model(inputs[rows])
                action = torch.distributions.Categorical(logits=logits).sample()
                states.append(inputs[rows])
                actions.append(action)
                rewards.append((action == targets[rows]).float())
        reward, action = torch.cat(rewards), torch.cat(actions)
        logits, value = r.model(torch.cat(states))
        advantage = reward - value.squeeze(1)
        spread = torch.distributions.Categorical(logits=logits)
        policy = -(spread.log_prob(action) * advantage.detach()).mean()
        loss = policy + 0.5 * advantage.pow(2).mean() - 0.01 * spread.entropy().mean()
        if r.changes.zeroing == "before":
            optimizer.zero_grad()
        r.changes.loss(loss).backward()
        _step(r, optimizer)


def _values(r: Recipe) -> None:
    """Deep Q-learning: the next input is the successor, whatever was done; a target network follows."""
    optimizer, target = make_optimizer(r), twin(r.model)
    inputs, good = r.data.training
    for step in range(r.steps):
        rows = torch.randint(len(inputs) - 1, (r.batch,))
        actions = torch.randint(r.data.outputs, (r.batch,))
        with torch.no_grad():
            following = target(inputs[rows + 1]).amax(1)
        returns = (actions == good[rows]).float() + 0.8 * following
        chosen = r.model(inputs[rows]).gather(1, actions[:, None]).squeeze(1)
        loss = F.smooth_l1_loss(chosen, returns)
        if r.changes.zeroing == "before":
            optimizer.zero_grad()
        r.changes.loss(loss).backward()
        _step(r, optimizer)
        if step % 10 == 9:
            target.load_state_dict(r.model.state_dict())


def is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
