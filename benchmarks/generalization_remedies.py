"""Are the remedies that `check` names truly better? Overfit models whose population can be drawn from.

`python -m benchmarks.generalization_remedies [--quick]` makes five tasks, sizes and seeds; keeps the
cases in which the gap alarm's criterion holds (Welch's lower bound of the gap over .05, 200 validation
samples); measures the remedies as a check does, without a limit of time; and trains with each of them
again, with two other orders of the data, to see its loss on 2000 fresh samples. Printed: how often the
first is truly better than the unchanged training, beside a remedy of the same list drawn at random; the
same for all that are said to help; how often "none helped" is right; and the coverage of two standard
errors.
"""

from __future__ import annotations

import argparse
import itertools
import math
import multiprocessing
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from trainlint.data.pool import Pool, pool_of
from trainlint.generalization.applying import varied_trial
from trainlint.generalization.remedies import EARLY, Remedies
from trainlint.generalization.trials import Plan, copied, trial
from trainlint.generalization.trying import Experiment
from trainlint.generalization.variants import Variant
from trainlint.probe.setup import Setup

STEPS: Final = 100
VALIDATION: Final = 200
FRESH: Final = 2000
GAP: Final = 0.05
# What a remedy has to lower the population's loss by, in units of a constant answer's, to be one.
LEAST: Final = 0.01
CHECK_SEEDS: Final = (101, 102)

Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Task:
    """Samples from a population, a model for them, and how it is trained."""

    name: str
    draw: Draw
    model: Callable[[], nn.Module]
    loss: nn.Module
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]


def few_columns(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Five of 60 columns tell the class, with noise."""
    weights = torch.zeros(60)
    weights[:5] = torch.tensor([1.5, -1.0, 1.0, -0.8, 0.7])
    x = torch.randn(count, 60, generator=generator)
    chances = torch.sigmoid(2 * x @ weights)
    return x, (torch.rand(count, generator=generator) < chances).long()


def mixture(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Five clouds that overlap, 15 % of the labels drawn at random."""
    centres = torch.randn(5, 20, generator=torch.Generator().manual_seed(5)) * 0.7
    y = torch.randint(5, (count,), generator=generator)
    x = centres[y] + torch.randn(count, 20, generator=generator)
    wrong = torch.rand(count, generator=generator) < 0.15
    return x, torch.where(wrong, torch.randint(5, (count,), generator=generator), y)


def teacher(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What a small network answers, and noise."""
    fixed = torch.Generator().manual_seed(7)
    first = torch.randn(12, 6, generator=fixed) * 2 / math.sqrt(12)
    second = torch.randn(6, 1, generator=fixed) * 1.3 / math.sqrt(6)
    x = torch.randn(count, 12, generator=generator)
    return x, torch.tanh(x @ first) @ second + 0.5 * torch.randn(count, 1, generator=generator)


def linear(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A linear function of 30 columns, and as much noise."""
    weights = torch.randn(30, 1, generator=torch.Generator().manual_seed(9)) / math.sqrt(30)
    x = torch.randn(count, 30, generator=generator)
    return x, x @ weights + torch.randn(count, 1, generator=generator)


def lines(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Lines in four directions, somewhere in a noisy image."""
    shapes = torch.zeros(4, 5, 5)
    shapes[0, 2], shapes[1, :, 2] = 1, 1
    shapes[2], shapes[3] = torch.eye(5), torch.eye(5).flip(1)
    y = torch.randint(4, (count,), generator=generator)
    x = 0.7 * torch.randn(count, 1, 12, 12, generator=generator)
    for image, shape, (row, column) in zip(
        x, shapes[y], torch.randint(2, 6, (count, 2), generator=generator).tolist(), strict=True
    ):
        image[0, row : row + 5, column : column + 5] += shape
    return x, y


def layers(inputs: int, width: int, outputs: int) -> nn.Module:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
    )  # fmt: skip


def convolutions() -> nn.Module:
    """Two convolutions and two linear layers."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 64), nn.ReLU(), nn.Linear(64, 4),
    )  # fmt: skip


def adam(rate: float) -> Callable[[nn.Module], torch.optim.Optimizer]:
    """Adam on all parameters."""
    return lambda model: torch.optim.Adam(model.parameters(), rate)


TASKS: Final = (
    Task("few columns", few_columns, lambda: layers(60, 128, 2), nn.CrossEntropyLoss(), adam(3e-3)),
    Task(
        "mixture", mixture, lambda: layers(20, 128, 5), nn.CrossEntropyLoss(),
        lambda model: torch.optim.AdamW(model.parameters(), 3e-3),
    ),
    Task(
        "teacher", teacher, lambda: layers(12, 128, 1), nn.MSELoss(),
        lambda model: torch.optim.SGD(model.parameters(), 0.05, momentum=0.9),
    ),
    Task("linear", linear, lambda: layers(30, 64, 1), nn.MSELoss(), adam(3e-3)),
    Task("lines", lines, convolutions, nn.CrossEntropyLoss(), adam(2e-3)),
)  # fmt: skip
SIZES: Final = (80, 200, 500)


@dataclass(frozen=True)
class Case:
    """What was said of a case, and by how much each remedy truly lowers the loss, in the same order."""

    task: str
    size: int
    remedies: Remedies
    truly: Sequence[float]


def constant(loss: nn.Module, target: Tensor) -> float:
    """The loss of the best constant answer."""
    if isinstance(loss, nn.MSELoss):
        return float(target.var())
    shares = torch.bincount(target).float() / len(target)
    return float(torch.distributions.Categorical(shares).entropy())


def judged(task: Task, size: int, seed: int) -> Case | None:
    """One case; None where it is not overfit as far as 200 validation samples tell."""
    generator = torch.Generator().manual_seed(1000 * seed + size)
    train, validation, fresh = (
        TensorDataset(*task.draw(count, generator)) for count in (size, VALIDATION, FRESH)
    )
    torch.manual_seed(seed)
    model = task.model()
    optimizer = task.optimizer(model)
    loader = DataLoader(train, 32, shuffle=True)
    pools = [
        pool_of(loader, "train"),
        *(pool_of(DataLoader(s, 100), "validation") for s in (validation, fresh)),
    ]
    guess = constant(task.loss, train.tensors[1])
    setup = Setup(task.loss, optimizer, loader)
    plan = Plan(range(size), range(VALIDATION), STEPS, ends_only=True)
    first = trial(copied(model, setup, optimizer), pools[0], plan, held_out=pools[1], guess=guess)
    gap = first.gap()
    if gap is None or gap.bound <= GAP:
        return None
    experiment = Experiment(
        model, setup, optimizer, pools[0], pools[1], STEPS, guess, math.inf
    )  # fmt: skip
    found = experiment.remedies()
    variants = {(c.kind, c.strength): c.variant for c in experiment.candidates()}
    return Case(task.name, size, found, list(_truths(experiment, found, variants, pools[2])))


def _truths(
    experiment: Experiment, found: Remedies, variants: dict[Any, Variant], fresh: Pool
) -> Iterator[float]:
    def loss(variant: Variant, steps: int) -> float:
        return statistics.fmean(
            varied_trial(
                copied(experiment.model, experiment.setup, experiment.optimizer),
                variant,
                experiment.train,
                Plan(
                    range(experiment.train.size),
                    range(FRESH),
                    steps,
                    seed=seed,
                    most=FRESH,
                    ends_only=True,
                ),
                held_out=fresh,
            ).last.validation.mean
            for seed in CHECK_SEEDS
        )

    before = loss(Variant(), STEPS)
    for remedy in found.tried:
        if remedy.kind == EARLY:
            after = loss(Variant(), int(remedy.strength))
        else:
            after = loss(variants[remedy.kind, remedy.strength], STEPS)
        yield (before - after) / experiment.guess


def share(values: Sequence[bool]) -> str:
    """`0.93 of 40`."""
    return f"{sum(values) / len(values):.2f} of {len(values)}" if values else "none"


def summary(cases: Sequence[Case]) -> Iterator[str]:
    """The figures."""
    named = [case for case in cases if case.remedies.helpful]
    first = [case.truly[0] for case in cases]
    yield f"overfit cases: {len(cases)}; something is said to help in {len(named)}"
    yield f"the first is truly better (by {LEAST} and more): {share([g > LEAST for g in first])}"
    yield f"  where it is said to help: {share([case.truly[0] > LEAST for case in named])}"
    chance = [statistics.fmean(gain > LEAST for gain in case.truly) for case in cases]
    yield f"  one drawn at random from the same list: {statistics.fmean(chance):.2f}"
    best = [case.truly[0] >= max(case.truly) - LEAST for case in cases]
    luck = [statistics.fmean(g >= max(c.truly) - LEAST for g in c.truly) for c in cases]
    yield f"the first is the best, or within {LEAST}: {share(best)}; at random {statistics.fmean(luck):.2f}"
    drawn = statistics.fmean(statistics.fmean(case.truly) for case in cases)
    yield f"true gain of the first: {statistics.fmean(first):+.3f}; at random {drawn:+.3f}"
    pairs = [(r, g) for c in cases for r, g in zip(c.remedies.tried, c.truly, strict=True)]
    yield f"of all that are said to help, truly better: {share([g > 0 for r, g in pairs if r.helps])}"
    silent = [case for case in cases if not case.remedies.helpful]
    right = [max(case.truly) <= 0.05 for case in silent]
    yield f"'none helped', and none is better by .05: {share(right)}"
    covered = [abs(r.gain - g) <= 2 * r.error for r, g in pairs]
    yield f"the true gain lies within two standard errors: {share(covered)}"


def numbered(arguments: tuple[int, int, int]) -> Case | None:
    """The case of a task by its number, a size and a seed: what a process is asked for."""
    torch.set_num_threads(1)
    task, size, seed = arguments
    return judged(TASKS[task], size, seed)


def told(case: Case) -> str:
    """A line: each remedy, what was said of it, and the truth."""
    parts = (
        f"{r.kind} {r.strength:g} {r.gain:+.2f} ± {r.error:.2f}{'!' if r.helps else ''} true {g:+.2f}"
        for r, g in zip(case.remedies.tried, case.truly, strict=True)
    )
    return f"{case.task}, {case.size} samples: {'; '.join(parts)}"


def measured(quick: bool, jobs: int, seeds: int) -> list[Case]:
    """All cases that are overfit."""
    sizes, seeds = (SIZES[:1], 2) if quick else (SIZES, seeds)
    asked = list(itertools.product(range(len(TASKS)), sizes, range(seeds)))
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        return [case for case in pool.map(numbered, asked) if case is not None]


def section(quick: bool, jobs: int) -> dict[str, list[str]]:
    """For `benchmarks.generalization`."""
    lines = summary(measured(quick, jobs, 3))
    return {"Remedies": [f"- {line.strip()}" for line in lines]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one size, two seeds")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args(arguments)
    cases = measured(options.quick, options.jobs, options.seeds)
    print("\n".join([*map(told, cases), *summary(cases)]) if cases else "no case is overfit")
    return 0


if __name__ == "__main__":
    sys.exit(main())
