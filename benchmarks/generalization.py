"""What `trainlint check` says of the gap between training and validation, against the population's.

    python -m benchmarks.generalization [--only gap] [--quick] [--jobs 2] [--write]

Data come from generators, so that fresh samples tell what validation samples only estimate: 4000 of them
are scored at each checkpoint of the very training that the probe makes. The rules, the probe and its
second seed are the real ones; thresholds are theirs. Seeds below 100 are reported, those from 100 on were
looked at while the rules were written (`--first-seed 100`). `--write` puts the figures into
generalization.md.

Sections of other parts are run where they are there; each is a function `section(quick, jobs)` that gives
lines of Markdown, or a dict of them by title.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import trainlint
from trainlint.config import Config
from trainlint.generalization.meter import Meter
from trainlint.observe.hooks import unobserved
from trainlint.preserve import preserved_evaluation
from trainlint.probe import probing

STEPS: Final = 100
SIZES: Final = (40, 120, 400, 2000, 8000)
WIDTHS: Final = (8, 64, 256)
VALIDATION: Final = (200, 40)
FRESH: Final = 4000
RULES: Final = ("GEN001", "GEN003", "GEN007", "DAT004")
OVERFIT, SOUND = 0.15, 0.05
PAST, BEFORE = 0.05, 0.01
PAGE: Final = Path(__file__).with_suffix(".md")

Draw = Callable[[int], tuple[Tensor, Tensor]]


# ---------------------------------------------------------------------- tasks with a known population


@dataclass(frozen=True)
class Task:
    """A generator of samples, the loss, and a model of some width for them."""

    draw: Draw
    loss: nn.Module
    model: Callable[[int], nn.Module]
    rate: float


def generator(seed: int) -> torch.Generator:
    """A random generator of its own for each use."""
    return torch.Generator().manual_seed(seed)


def mlp(inputs: int, outputs: int, width: int) -> nn.Module:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, outputs),
    )  # fmt: skip


def teacher(seed: int) -> Task:
    """Classes that a random network gives, one label in ten drawn at random."""
    random = generator(seed)
    first, second = torch.randn(20, 16, generator=random), torch.randn(16, 4, generator=random)

    def draw(size: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(size, 20, generator=random)
        y = (torch.tanh(x @ first / 20**0.5) @ second).argmax(1)
        other = torch.randint(4, (size,), generator=random)
        return x, torch.where(torch.rand(size, generator=random) < 0.1, other, y)

    return Task(draw, nn.CrossEntropyLoss(), partial(mlp, 20, 4), 3e-3)


def regression(seed: int) -> Task:
    """A smooth function of ten inputs with noise of half its deviation."""
    random = generator(seed)
    weights = torch.randn(10, 6, generator=random) / 10**0.5

    def draw(size: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(size, 10, generator=random)
        y = torch.sin(2 * x @ weights).sum(1, keepdim=True) / 3**0.5
        return x, y + 0.5 * torch.randn(size, 1, generator=random)

    return Task(draw, nn.MSELoss(), partial(mlp, 10, 1), 3e-3)


def convolutional(width: int) -> nn.Module:
    """Two convolutions with BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 4),
    )  # fmt: skip


def images(seed: int) -> Task:
    """Gratings in four orientations, at random phases and wavelengths, in noise; 12 by 12 pixels."""
    random = generator(seed)
    row, column = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")

    def draw(size: int) -> tuple[Tensor, Tensor]:
        y = torch.randint(4, (size,), generator=random)
        angle = y * math.pi / 4 + 0.2 * torch.randn(size, generator=random)
        phase, length = torch.rand(2, size, generator=random) * torch.tensor([[6.28], [3.0]])
        along = angle.cos()[:, None, None] * row + angle.sin()[:, None, None] * column
        wave = torch.sin(along * 6.28 / (4 + length)[:, None, None] + phase[:, None, None])
        return (wave + torch.randn(size, 12, 12, generator=random))[:, None], y

    return Task(draw, nn.CrossEntropyLoss(), lambda width: convolutional(max(4, width // 8)), 3e-3)


def table(seed: int) -> Task:
    """A yes or no that depends on 8 of 24 columns, also in pairs; one logit, with dropout."""
    random = generator(seed)
    weights, pairs = torch.randn(8, generator=random), torch.randn(4, generator=random)

    def draw(size: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(size, 24, generator=random)
        x[:, 20:] = (x[:, 20:] > 0).float()
        score = x[:, :8] @ weights + 1.5 * (x[:, 0:8:2] * x[:, 1:8:2]) @ pairs
        return x, (torch.rand(size, generator=random) < torch.sigmoid(score)).float()[:, None]

    def model(width: int) -> nn.Module:
        return nn.Sequential(
            nn.Linear(24, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, width), nn.ReLU(),
            nn.Linear(width, 1),
        )  # fmt: skip

    return Task(draw, nn.BCEWithLogitsLoss(), model, 3e-3)


TASKS: Final[dict[str, Callable[[int], Task]]] = {
    "teacher": teacher, "regression": regression, "images": images, "table": table,
}  # fmt: skip

Pair = tuple[Tensor, Tensor]
# What becomes of samples on their way into validation, and of no others.
SHIFTS: Final[dict[str, Callable[[Draw, int], Pair]]] = {
    "offset": lambda draw, size: _moved(draw(size)),
    "scale": lambda draw, size: _scaled(draw(size)),
    "sorted": lambda draw, size: _sorted(draw(4 * size), size),
    "labels": lambda draw, size: _relabelled(draw(size)),
}


def _moved(pair: Pair) -> Pair:
    return pair[0] + 1.0, pair[1]


def _scaled(pair: Pair) -> Pair:
    return pair[0] * 3, pair[1]


def _sorted(pair: Pair, size: int) -> Pair:
    """The quarter with the largest targets, or the last class."""
    x, y = pair
    order = y.reshape(len(y), -1)[:, 0].argsort(descending=True)[:size]
    return x[order], y[order]


def _relabelled(pair: Pair) -> Pair:
    """Another annotator: a third of the labels are those of the neighbour in the list."""
    x, y = pair
    return x, torch.cat([y[: len(y) // 3].roll(1, 0), y[len(y) // 3 :]])


# ---------------------------------------------------------------------- one check, and the truth


@dataclass
class Case:
    """One check. Figures are in units of the loss of the best constant answer of the population."""

    task: str
    size: int
    width: int
    validation: int
    seed: int
    shift: str = ""
    found: set[str] = field(default_factory=set)
    gap: float = 0.0
    past: float = 0.0
    moved: float = 0.0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


class Truth:
    """Scores fresh samples at each checkpoint of the first training that a probe makes."""

    def __init__(self, task: Task, train: Pair, fresh: Pair, shifted: Pair) -> None:
        self._task, self._train, self._fresh, self._shifted = task, train, fresh, shifted
        self.losses: list[tuple[float, float, float]] = []
        self._first: Meter | None = None

    def look(self, meter: Meter) -> None:
        """Called before each measurement."""
        self._first = self._first or meter
        if meter is not self._first:
            return
        with torch.no_grad(), unobserved(), preserved_evaluation(meter.model):
            meter.model.eval()
            self.losses.append(tuple(float(self._task.loss(meter.model(x), y))  # type: ignore[arg-type]
                                     for x, y in (self._train, self._fresh, self._shifted)))  # fmt: skip

    def guess(self) -> float:
        """The loss of the best constant answer in the population."""
        y = self._fresh[1]
        if isinstance(self._task.loss, nn.MSELoss):
            return float(y.var())
        if y.is_floating_point():
            share = y.mean()
            return float(binary_cross_entropy(share, share))
        shares = torch.bincount(y).double() / len(y)
        return float(torch.special.entr(shares).sum())


def measured(case: Case) -> Case:
    """Run `trainlint.check` on the case."""
    torch.set_num_threads(1)
    task = TASKS[case.task](1000 * case.seed + 7)
    train = task.draw(case.size)
    drawn = partial(SHIFTS[case.shift], task.draw) if case.shift else task.draw
    validation = drawn(case.validation)
    few = tuple(part[:FRESH] for part in train)
    truth = Truth(task, few, task.draw(FRESH), drawn(FRESH))  # type: ignore[arg-type]

    class Watched(Meter):
        def measure(self, step: int, *, last: bool = False) -> None:
            truth.look(self)
            super().measure(step, last=last)

    torch.manual_seed(case.seed)
    model = task.model(case.width)
    before, probing.Meter = probing.Meter, Watched  # type: ignore[misc]
    started = time.perf_counter()
    try:
        report = trainlint.check(
            model,
            train[0][:2],
            loss=task.loss,
            optimizer=torch.optim.Adam(model.parameters(), task.rate),
            train_loader=DataLoader(
                TensorDataset(*train), 32, shuffle=True, generator=generator(case.seed)
            ),
            val_loader=DataLoader(TensorDataset(*validation), 64),
            select=RULES,
            config=Config(probe_steps=STEPS),
        )
    finally:
        probing.Meter = before  # type: ignore[misc]
    case.seconds = time.perf_counter() - started
    case.found = {f.code for top in report.findings for f in (top, *top.symptoms)}
    case.notes = [line for target in report.targets for line in target.not_measurable]
    guess = truth.guess()
    train_loss, fresh_loss, shifted_loss = truth.losses[-1]
    case.gap = (fresh_loss - train_loss) / guess
    case.past = (fresh_loss - min(fresh for _, fresh, _ in truth.losses)) / guess
    case.moved = (shifted_loss - fresh_loss) / guess
    return case


def run(cases: Sequence[Case], jobs: int) -> list[Case]:
    """All of them, in so many processes."""
    if jobs < 2:
        return [measured(case) for case in cases]
    with ProcessPoolExecutor(jobs) as pool:
        return list(pool.map(measured, cases, chunksize=4))


# ---------------------------------------------------------------------- what is reported


@dataclass(frozen=True)
class Rate:
    """How many of how many, with the bounds of a 95 % interval (Wilson 1927)."""

    hits: int
    total: int

    def __str__(self) -> str:
        if not self.total:
            return "none of 0"
        p, n, z = self.hits / self.total, self.total, 1.96
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return f"{p:.3f} ({self.hits} of {n}; {max(0, middle - half):.2f} to {middle + half:.2f})"


def rate(cases: Sequence[Case], code: str) -> Rate:
    """How many of these have the finding."""
    return Rate(sum(code in case.found for case in cases), len(cases))


def gap_cases(quick: bool, first: int, seeds: int) -> list[Case]:
    """Tasks by sizes by widths by seeds, without a shift."""
    sizes, widths = ((40, 2000), (8, 256)) if quick else (SIZES, WIDTHS)
    return [
        Case(task, size, width, validation, seed)
        for seed in range(first, first + (1 if quick else seeds))
        for task in TASKS
        for size in sizes
        for width in widths
        for validation in (VALIDATION[:1] if quick else VALIDATION)
    ]


def shift_cases(quick: bool, first: int, seeds: int) -> list[Case]:
    """Large training sets whose validation samples are shifted: hardly anything is overfit there."""
    return [
        Case(task, 2000, 64, 200, seed, shift)
        for seed in range(first, first + (1 if quick else seeds))
        for task in TASKS
        for shift in (list(SHIFTS)[:2] if quick else SHIFTS)
    ]


def gap_lines(cases: Sequence[Case]) -> Iterator[str]:
    """Recall and false alarms of GEN001 and GEN003, by the number of validation samples."""
    yield "| finding | truth | 200 validation samples | 40 |"
    yield "|---|---|---|---|"
    for code, what, chosen in (
        ("GEN001", f"gap of the population > {OVERFIT}", lambda c: c.gap > OVERFIT),
        ("GEN001", f"< {SOUND}: false alarm", lambda c: c.gap < SOUND),
        ("GEN003", f"population loss > {PAST} above its least", lambda c: c.past > PAST),
        ("GEN003", f"< {BEFORE}: false alarm", lambda c: c.past < BEFORE),
        ("GEN007", "no shift: false alarm", lambda _: True),
        ("DAT004", "labels do depend on inputs: false alarm", lambda _: True),
    ):
        cells = [
            str(rate([c for c in cases if c.validation == size and chosen(c)], code))
            for size in VALIDATION
        ]
        yield f"| {code} | {what} | {' | '.join(cells)} |"
    unmeasured = [c for c in cases if any(note.startswith("GEN001") for note in c.notes)]
    yield ""
    yield (
        f"{len(cases)} checks, {sum(c.seconds for c in cases) / max(1, len(cases)):.1f} s each; in "
        f"{len(unmeasured)} GEN001 said that it cannot tell (less than an epoch was seen), of which "
        f"{sum(c.gap > OVERFIT for c in unmeasured)} have a gap > {OVERFIT}."
    )


def shift_lines(gaps: Sequence[Case], shifts: Sequence[Case]) -> Iterator[str]:
    """How often the one is named where only that is there."""
    overfit = [c for c in gaps if c.gap > OVERFIT and c.validation == VALIDATION[0]]
    shifted = [c for c in shifts if c.moved > OVERFIT and c.gap < SOUND]
    right = [c for c in overfit if "GEN001" in c.found and "GEN007" not in c.found]
    right += [c for c in shifted if "GEN007" in c.found and "GEN001" not in c.found]
    yield "| there is | cases | GEN001 alone | GEN007 alone | both | neither |"
    yield "|---|---|---|---|---|---|"
    for what, cases in (("overfitting only", overfit), ("a shift only", shifted)):
        kinds = [frozenset(c.found & {"GEN001", "GEN007"}) for c in cases]
        counts = [
            kinds.count(frozenset(kind))
            for kind in (("GEN001",), ("GEN007",), ("GEN001", "GEN007"), ())
        ]
        yield f"| {what} | {len(cases)} | {' | '.join(map(str, counts))} |"
    yield ""
    yield f"Told apart: {Rate(len(right), len(overfit) + len(shifted))}."
    for kind in SHIFTS:
        own = [c for c in shifted if c.shift == kind]
        yield f"- `{kind}`: {rate(own, 'GEN007')} named as a shift"


def gap_section(quick: bool, jobs: int, first: int = 0, seeds: int = 3) -> dict[str, list[str]]:
    """The lines of both parts, by title."""
    gaps = run(gap_cases(quick, first, seeds), jobs)
    shifts = run(shift_cases(quick, first, seeds), jobs)
    return {
        "Gap and early stop": list(gap_lines(gaps)),
        "A shift told apart from overfitting": list(shift_lines(gaps, shifts)),
    }


# Sections of other parts, by the module that has them.
OTHERS: Final = {
    "data": "benchmarks.generalization_data",
    "sweep": "benchmarks.generalization_sweep",
    "remedies": "benchmarks.generalization_remedies",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the sections that were asked for, print them, and with --write keep them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["gap", *OTHERS], action="append")
    parser.add_argument("--quick", action="store_true", help="a minute in place of ten")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="into generalization.md")
    options = parser.parse_args(arguments)
    wanted = options.only or ["gap", *OTHERS]
    sections: dict[str, list[str]] = {}
    if "gap" in wanted:
        sections |= gap_section(options.quick, options.jobs, options.first_seed, options.seeds)
    for name, module in OTHERS.items():
        if name in wanted and importlib.util.find_spec(module) is not None:
            found: Any = importlib.import_module(module).section(options.quick, options.jobs)
            sections |= found if isinstance(found, dict) else {name.capitalize(): list(found)}
    for title, lines in sections.items():
        print(f"\n## {title}\n")
        print("\n".join(lines))
    if options.write:
        write(sections)


def write(sections: dict[str, list[str]]) -> None:
    """Put each section in the place of that of the same title, or behind all others."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else "# Generalisation, measured\n"
    head, *parts = text.split("\n## ")
    known = {part.partition("\n")[0]: part.partition("\n")[2].strip("\n") for part in parts}
    known |= {title: "\n".join(lines) for title, lines in sections.items()}
    body = "".join(f"\n## {title}\n\n{lines}\n" for title, lines in known.items())
    PAGE.write_text(f"{head.rstrip()}\n{body}", encoding="utf-8")


if __name__ == "__main__":
    main()
