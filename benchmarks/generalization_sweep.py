"""Does a sweep choose the right width? Tasks whose true losses are known.

Each task is a population, a training set size, a network and a number of steps. The truth is the loss of a
large fresh sample after training on a fresh training set as large as that of a fold, at each width, as a
mean over training sets and initial weights. A sweep sees one training set, and counts as right where the
true loss at the width that it chose (the smallest within one standard error of the best) lies within the
sweep's own standard error of the true best.

`python -m benchmarks.generalization_sweep` prints a line a task, and the share of right ones;
`python -m benchmarks.generalization --only sweep --write` puts them into generalization.md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

import trainlint
from trainlint.config import Config
from trainlint.generalization.sweep import FACTORS

FOLDS: Final = 5
FRESH: Final = 4000
HEAD: Final = (
    "import torch\nfrom torch import nn\nfrom torch.utils.data import DataLoader, TensorDataset\n"
)
LOADER: Final = """
train_loader = DataLoader(TensorDataset(x, y), batch_size={batch}, shuffle=True)
"""


@dataclass(frozen=True)
class Task:
    """A population with a network on it.

    `draws` gives `(inputs, targets)`, of so many samples. `model` is the text of a file's part that makes
    `model`, with `{width}` in it.
    """

    name: str
    samples: int
    width: int
    steps: int
    model: str
    loss: str
    optimizer: str
    draws: Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
    batch: int = 32


def _classes(scores: Tensor, generator: torch.Generator, wrong: float) -> Tensor:
    """Labels by sign, so many of them turned round."""
    labels = (scores > 0).long()
    turned = torch.rand(len(labels), generator=generator) < wrong
    return torch.where(turned, 1 - labels, labels)


def noisy_labels(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A linear boundary in 20 dimensions, 20 % of the labels wrong: width is for learning noise."""
    x = torch.randn(count, 20, generator=generator)
    return x, _classes(x[:, :5].sum(1), generator, 0.2)


def rings(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Three rings around one another in the plane: a few units cannot tell them apart."""
    y = torch.randint(3, (count,), generator=generator)
    angle = 2 * torch.pi * torch.rand(count, generator=generator)
    radius = 1.0 + y + 0.25 * torch.randn(count, generator=generator)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1) / 2, y


def wave(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Three waves of a sine, seen through noise: two units are too few for it, eight enough."""
    x = 6 * torch.rand(count, 1, generator=generator) - 3
    return x, torch.sin(3 * x) + 0.3 * torch.randn(count, 1, generator=generator)


def noisy_regression(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Thirty columns, of which three matter, and as much noise as signal."""
    x = torch.randn(count, 30, generator=generator)
    y = x[:, :1] - x[:, 1:2] + x[:, 2:3].tanh()
    return x, y + 1.5 * torch.randn(count, 1, generator=generator)


def teacher(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A network of twelve units, seen nearly without noise."""
    fixed = torch.Generator().manual_seed(1)
    first = torch.randn(8, 12, generator=fixed)
    second = torch.randn(12, 1, generator=fixed) / 12**0.5
    x = torch.randn(count, 8, generator=generator)
    return x, torch.tanh(x @ first) @ second + 0.05 * torch.randn(count, 1, generator=generator)


def product(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The sign of a product of two columns, eight more that do not matter, 10 % of the labels wrong."""
    x = torch.randn(count, 10, generator=generator)
    return x, _classes(x[:, 0] * x[:, 1], generator, 0.1)


_CLASS: Final = """
class Net(nn.Module):
    def __init__(self, inputs, hidden={width}, outputs=2):
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, x):
        return self.head(self.second(self.first(x).relu()).relu())


model = Net({arguments})
"""
_FACTORY: Final = """
def build_model(units={width}):
    return nn.Sequential(nn.Linear({inputs}, units), nn.Tanh(), nn.Linear(units, {outputs}))


model = build_model()
"""
_CONSTANT: Final = """
HIDDEN = {width}
model = nn.Sequential(nn.Linear({inputs}, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, {outputs}))
"""
_ADAM: Final = "torch.optim.Adam(model.parameters(), lr={rate})"
_ENTROPY, _SQUARES = "nn.CrossEntropyLoss()", "nn.MSELoss()"


def _adam(rate: float) -> str:
    return _ADAM.format(rate=rate)


TASKS: Final = (
    Task(
        "noisy labels", 300, 32, 300, _CLASS.replace("{arguments}", "20"), _ENTROPY, _adam(3e-3),
        noisy_labels,
    ),
    Task(
        "rings", 300, 8, 400, _FACTORY.replace("{inputs}", "2").replace("{outputs}", "3"), _ENTROPY,
        _adam(1e-2), rings,
    ),
    Task(
        "wave", 120, 8, 800, _FACTORY.replace("{inputs}", "1").replace("{outputs}", "1"), _SQUARES,
        _adam(2e-2), wave,
    ),
    Task(
        "noisy regression", 150, 16, 300,
        _CONSTANT.replace("{inputs}", "30").replace("{outputs}", "1"), _SQUARES, _adam(5e-3),
        noisy_regression,
    ),
    Task(
        "teacher", 400, 16, 400, _CONSTANT.replace("{inputs}", "8").replace("{outputs}", "1"),
        _SQUARES, _adam(1e-2), teacher,
    ),
    Task(
        "product", 400, 16, 300, _CLASS.replace("{arguments}", "10"), _ENTROPY, _adam(5e-3), product,
    ),
)  # fmt: skip


def _namespace(task: Task, width: int) -> dict[str, object]:
    """Model, loss and optimizer of the task."""
    namespace: dict[str, object] = {"__name__": "task"}
    recipe = f"criterion = {task.loss}\noptimizer = {task.optimizer}\n"
    exec(HEAD + task.model.replace("{width}", str(width)) + recipe, namespace)
    return namespace


def true_losses(task: Task, sets: int) -> list[list[float]]:
    """Losses on fresh samples at each width, one for each of so many training sets."""
    fresh = task.draws(FRESH, torch.Generator().manual_seed(10**6))
    count = task.samples * (FOLDS - 1) // FOLDS
    return [
        [
            _loss(task, round(task.width * factor), count, fresh, 10**5 + number)
            for number in range(sets)
        ]
        for factor in FACTORS
    ]


def _loss(task: Task, width: int, count: int, fresh: tuple[Tensor, Tensor], seed: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    x, y = task.draws(count, generator)
    torch.manual_seed(seed)
    made = _namespace(task, width)
    model, criterion, optimizer = made["model"], made["criterion"], made["optimizer"]
    assert isinstance(model, nn.Module)
    assert callable(criterion)
    assert isinstance(optimizer, torch.optim.Optimizer)
    for rows in _order(count, task.batch, task.steps, generator):
        optimizer.zero_grad()
        criterion(model(x[rows]), y[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        return float(criterion(model(fresh[0]), fresh[1]))


def _order(count: int, batch: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    done = 0
    while done < steps:
        for rows in torch.randperm(count, generator=generator).split(batch):
            if len(rows) > 1 and done < steps:
                done += 1
                yield rows


@dataclass(frozen=True)
class Chosen:
    """What one sweep chose: places among the factors, and how far the truth there lies above its best.

    `error` is the standard error of the sweep at its best, `is_named` whether GEN008 spoke, and `gain` how
    much lower the true loss is at the best that it then names than at the width as it is.
    """

    chosen: int
    best: int
    excess: float
    excess_of_best: float
    error: float
    is_named: bool = False
    gain: float = 0.0

    @property
    def is_right(self) -> bool:
        """Whether the chosen width is within one standard error of the true best."""
        return self.excess <= self.error


@dataclass(frozen=True)
class Outcome:
    """A task, its true losses at each width with their standard errors, and what the sweeps chose."""

    task: str
    truth: list[float]
    truth_errors: list[float]
    sweeps: list[Chosen] = field(default_factory=list)

    def right(self) -> int:
        """How many chose well."""
        return sum(each.is_right for each in self.sweeps)

    def by_chance(self) -> float:
        """The share of right ones if the width were drawn at random."""
        least = min(self.truth)
        hits = [loss - least <= each.error for each in self.sweeps for loss in self.truth]
        return sum(hits) / len(hits)


def write(task: Task, seed: int, folder: Path) -> Path:
    """The task as a user's file, with a training set of this seed."""
    x, y = task.draws(task.samples, torch.Generator().manual_seed(seed))
    data = folder / f"data_{seed}.pt"
    torch.save((x, y), data)
    path = folder / f"task_{seed}.py"
    path.write_text(
        HEAD
        + task.model.replace("{width}", str(task.width))
        + f"\nx, y = torch.load({str(data)!r})"
        + LOADER.replace("{batch}", str(task.batch))
        + f"criterion = {task.loss}\noptimizer = {task.optimizer}\n",
        encoding="utf-8",
    )
    return path


def measured(task: Task, sweeps: int, sets: int, jobs: int = 0) -> Outcome:
    """So many sweeps of a task, each of a training set of its own, beside the truth."""
    losses = true_losses(task, sets)
    truth = [statistics.fmean(each) for each in losses]
    errors = [statistics.stdev(each) / sets**0.5 for each in losses]
    outcome = Outcome(task.name, truth, errors)
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(sweeps):
            path = write(task, seed, Path(folder))
            report = trainlint.sweep(
                path, kfold=FOLDS, steps=task.steps, seed=seed, config=Config(jobs=jobs)
            )
            found = report.sweep
            chosen, best = found.chosen, found.best
            assert chosen is not None
            assert best is not None
            places = [FACTORS.index(found.points[place].value) for place in (chosen, best)]
            outcome.sweeps.append(
                Chosen(
                    places[0],
                    places[1],
                    truth[places[0]] - min(truth),
                    truth[places[1]] - min(truth),
                    found.standing(best).validation_error,
                    is_named=bool(report.findings),
                    gain=truth[FACTORS.index(1.0)] - truth[places[1]],
                )
            )
    return outcome


def section(quick: bool, jobs: int) -> dict[str, list[str]]:
    """For `benchmarks.generalization`."""
    torch.set_num_threads(1)
    outcomes = [measured(task, 2 if quick else 8, 6 if quick else 16, jobs) for task in TASKS]
    return {"The width that a sweep chooses": table(outcomes)}


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """A line a task, then all of them, as Markdown."""
    heads = "".join(f" ×{factor:g} |" for factor in FACTORS)
    lines = [
        f"| task | true loss at{heads} chosen | within one standard error | by chance |",
        "| --- |" + " --- |" * (len(FACTORS) + 3),
    ]
    for each in outcomes:
        least = min(each.truth)
        losses = " | ".join(
            f"{'**' * (loss == least)}{loss:.3g}{'**' * (loss == least)} ± {error:.1g}"
            for loss, error in zip(each.truth, each.truth_errors, strict=True)
        )
        counts = Counter(FACTORS[sweep.chosen] for sweep in each.sweeps)
        chosen = ", ".join(f"×{factor:g}: {counts[factor]}" for factor in sorted(counts))
        right = f"{each.right()} of {len(each.sweeps)}"
        lines.append(f"| {each.task} | {losses} | {chosen} | {right} | {each.by_chance():.0%} |")
    return [*lines, "", *summary(outcomes)]


def summary(outcomes: Sequence[Outcome]) -> list[str]:
    """All tasks together, in words."""
    sweeps = [sweep for each in outcomes for sweep in each.sweeps]
    right = sum(sweep.is_right for sweep in sweeps)
    of_best = sum(sweep.excess_of_best <= sweep.error for sweep in sweeps)
    chance = statistics.fmean(each.by_chance() for each in outcomes)
    named = [sweep for sweep in sweeps if sweep.is_named]
    count = len(sweeps)
    better = sum(sweep.gain > 0 for sweep in named)
    first = (
        f"The smallest width within one standard error is right in {right} of {count} sweeps "
        f"({right / count:.0%}), the best one in {of_best} ({of_best / count:.0%}), one drawn at random in "
        f"{chance:.0%}."
    )
    second = (
        f"GEN008 spoke in {len(named)}; in {better} of those the width that it names is truly better than "
        "the file's own."
    )
    return [first, second]


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--sweeps", type=int, default=8, help="of each task")
    parser.add_argument("--sets", type=int, default=16, help="training sets behind the truth")
    parser.add_argument("--tasks", default="", help="only those with this in their name")
    parser.add_argument("--jobs", type=int, default=0, help="trainings at once")
    options = parser.parse_args()
    torch.set_num_threads(1)
    outcomes = []
    for task in TASKS:
        if options.tasks in task.name:
            outcomes.append(measured(task, options.sweeps, options.sets, options.jobs))
            print(table(outcomes[-1:])[2], flush=True)
    print("\n".join(summary(outcomes)))


if __name__ == "__main__":
    main()
