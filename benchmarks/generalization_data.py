"""What is found of leaked samples and of shifted data, and what is said of sound splits.

    python -m benchmarks.generalization_data [--quick] [--jobs 2]

Data sets that scikit-learn brings are split at random, 4 to 1, over many seeds, and read through a
`DataLoader` as `check` reads them. Then one in a hundred validation samples, or at least one, is replaced
by a training sample, as it is or as a near copy. GEN005 judges, with its own threshold. Data of few values
for which equal rows are usual are drawn as well: they must not be reported.

Shift: the share of sound splits whose p-value is below 0.01, and that of splits of which one side was
moved or has other shares of classes. As a section of `benchmarks.generalization`: `--only data`.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from trainlint.data.describing import described
from trainlint.data.facts import Data
from trainlint.registry import all_rules

SEEDS: Final = 50
QUICK: Final = 10
LEVEL: Final = 0.01
SETS: Final = ("digits", "digits as rows", "wine", "breast_cancer", "diabetes", "iris")
CHANCE: Final = (
    "3 features in steps of 0.2",
    "6 binary features",
    "20 answers of 4",
    "2 features in steps of 0.05",
)


def generator(seed: int) -> torch.Generator:
    """A random generator of its own for each use."""
    return torch.Generator().manual_seed(seed)


@functools.cache
def table(name: str) -> tuple[Tensor, Tensor]:
    """(inputs, targets) of a data set of scikit-learn."""
    from sklearn import datasets

    loaded = getattr(datasets, f"load_{name.split()[0]}")()
    x = torch.tensor(loaded.data, dtype=torch.float32)
    if name == "digits":
        x = x.reshape(-1, 1, 8, 8) / 16
    return x, torch.tensor(loaded.target)


def drawn(name: str, seed: int) -> tuple[Tensor, Tensor]:
    """Samples that are equal by chance, of features that hang together."""
    random = generator(10_000 + seed)
    size = 600
    if name.startswith("6"):
        x = (
            torch.randn(size, 6, generator=random) @ torch.randn(6, 6, generator=random) > 0
        ).float()
    elif name.startswith("20"):
        mood = torch.randn(size, 1, generator=random)
        x = (mood + 0.7 * torch.randn(size, 20, generator=random)).round().clamp(-1, 2)
    else:
        count, step = (3, 0.2) if name.startswith("3") else (2, 0.05)
        mixed = torch.randn(count, count, generator=random)
        x = torch.randn(size, count, generator=random) @ mixed
        x = (x / x.std(0) / step).round() * step
    return x, torch.randint(2, (size,), generator=random)


def split(size: int, seed: int) -> tuple[Tensor, Tensor]:
    """(training, validation) numbers of a random split, 4 to 1."""
    order = torch.randperm(size, generator=generator(seed))
    return order[size // 5 :], order[: size // 5]


def told(train: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor]) -> Data:
    """The fact on two sets, as `check` makes it."""
    first = DataLoader(TensorDataset(*train), batch_size=32, shuffle=True)
    # Benchmarks run beside each other: a slow machine is not what is asked about.
    return described(first, DataLoader(TensorDataset(*validation), batch_size=64), seconds=60.0)


def is_reported(data: Data) -> bool:
    """Whether GEN005 says that validation samples were leaked."""
    rule = next(rule for rule in all_rules() if rule.code == "GEN005")
    return bool(list(rule.function(data=data)))


# ------------------------------------------------------------------------------------------- leaks


def _as_it_is(x: Tensor, *_: Any) -> Tensor:
    return x


def _with_noise(x: Tensor, everything: Tensor, seed: int) -> Tensor:
    """A thousandth of each feature's deviation; pixels get a hundredth of their range."""
    size = 0.01 if x.dim() > 2 else 1e-3 * everything.std(0)
    return x + size * torch.randn(x.shape, generator=generator(20_000 + seed))


def _rounded(x: Tensor, *_: Any) -> Tensor:
    """To three digits."""
    scale = 10 ** (2 - x.abs().clamp(min=1e-12).log10().floor())
    return (x * scale).round() / scale


def _shifted(x: Tensor, _: Tensor, seed: int) -> Tensor:
    """By one pixel, in one of four directions; what comes in is black."""
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    dy, dx = ((0, 1), (2, 1), (1, 0), (1, 2))[seed % 4]
    return padded[:, :, dy : dy + x.shape[2], dx : dx + x.shape[3]]


def _brighter(x: Tensor, *_: Any) -> Tensor:
    return x * 1.15 + 0.1


COPIES: Final[dict[str, Callable[[Tensor, Tensor, int], Tensor]]] = {
    "exact": _as_it_is,
    "noise": _with_noise,
    "rounded": _rounded,
    "shifted": _shifted,
    "brighter": _brighter,
}


def kinds_of(name: str) -> list[str]:
    """Which copies make sense for a data set."""
    if name == "digits":
        return ["exact", "noise", "shifted", "brighter"]
    return ["exact", "noise"] if name == "digits as rows" else ["exact", "noise", "rounded"]


@dataclass(frozen=True)
class Leak:
    """One split: what was put into it, how many samples, and whether that was reported."""

    data: str
    copy: str
    seed: int
    leaked: int
    compared: int
    found: int
    reported: bool


def leak(data: str, copy: str, seed: int) -> Leak:
    """One split with one in a hundred validation samples leaked, or with none (`copy` empty)."""
    x, y = drawn(data, seed) if data in CHANCE else table(data)
    train, validation = split(len(x), seed)
    inputs, targets = x[validation].clone(), y[validation].clone()
    count = max(1, round(0.01 * len(validation))) if copy else 0
    if count:
        inputs[:count] = COPIES[copy](x[train[:count]], x, seed)
        targets[:count] = y[train[:count]]
    seen = told((x[train], y[train]), (inputs, targets))
    assert seen.overlap is not None
    found = seen.overlap.exact + seen.overlap.near
    return Leak(data, copy, seed, count, len(validation), found, is_reported(seen))


def leaks(seeds: int = SEEDS, jobs: int = 2) -> list[Leak]:
    """All splits, sound and leaked, of all data sets."""
    asked = [
        (name, copy, seed)
        for name in SETS
        for copy in ("", *kinds_of(name))
        for seed in range(seeds)
    ]
    asked += [(name, "", seed) for name in CHANCE for seed in range(seeds)]
    return _all(_leak, asked, jobs)


def _leak(asked: tuple[str, str, int]) -> Leak:
    return leak(*asked)


# ------------------------------------------------------------------------------------------ shifts


@dataclass(frozen=True)
class Moved:
    """One split: what was done to the validation side, and what the tests said."""

    data: str
    change: str
    seed: int
    inputs: float | None
    distance: float | None
    labels: float | None


CHANGES: Final = ("", "covariate", "one feature", "labels")


def shift(data: str, change: str, seed: int) -> Moved:
    """One split, sound or shifted.

    `covariate`: all features by half a deviation (images by a tenth of their range); `one feature`: one by
    a deviation; `labels`: half of the samples of the lower half of the targets are missing in validation.
    """
    x, y = table(data)
    train, validation = split(len(x), seed)
    if change == "labels":
        low = y[validation] <= y.float().median()
        kept = torch.rand(len(validation), generator=generator(30_000 + seed)) > 0.5
        validation = validation[~low | kept]
    inputs = x[validation].clone()
    if change == "covariate":
        inputs += 0.1 if x.dim() > 2 else 0.5 * x.std(0)
    elif change == "one feature" and x.dim() == 2:
        place = int(torch.randint(x.shape[1], (), generator=generator(30_000 + seed)))
        inputs[:, place] += x[:, place].std()
    seen = told((x[train], y[train]), (inputs, y[validation])).shift
    assert seen is not None
    return Moved(data, change, seed, seen.inputs, seen.distance, seen.labels)


def shifts(seeds: int = SEEDS, jobs: int = 2) -> list[Moved]:
    """All splits, sound and shifted, of all data sets."""
    asked = [
        (name, change, seed)
        for name in SETS
        for change in CHANGES
        if change != "one feature" or name != "digits"
        for seed in range(seeds)
    ]
    return _all(_shift, asked, jobs)


def _shift(asked: tuple[str, str, int]) -> Moved:
    return shift(*asked)


# ------------------------------------------------------------------------------------------ report


def _all(function: Callable[[Any], Any], asked: Sequence[Any], jobs: int) -> list[Any]:
    if jobs < 2:
        torch.set_num_threads(1)
        return [function(each) for each in asked]
    with ProcessPoolExecutor(jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(function, asked, chunksize=8))


def leak_lines(found: Sequence[Leak]) -> Iterator[str]:
    """Recall and false alarms, as a table."""
    yield "| data | validation samples | false alarms | leaked | " + " | ".join(COPIES) + " |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for name in dict.fromkeys(each.data for each in found):
        rows = [each for each in found if each.data == name]
        sound = [each for each in rows if not each.copy]
        cells = [f"{sum(each.reported for each in sound)} of {len(sound)}"]
        leaked = {each.leaked for each in rows if each.copy}
        cells.append(", ".join(map(str, sorted(leaked))) or "–")
        for copy in COPIES:
            own = [each for each in rows if each.copy == copy]
            cells.append(f"{sum(e.reported for e in own) / len(own):.0%}" if own else "–")
        yield f"| {name} | {rows[0].compared} | {' | '.join(cells)} |"


def shift_lines(found: Sequence[Moved]) -> Iterator[str]:
    """How often each test was below its level, as a table."""
    yield (
        f"| data | sound: inputs p < {LEVEL} | labels | covariate: inputs | one feature: inputs "
        "| other labels: labels | inputs |"
    )
    yield "|---|---|---|---|---|---|---|"
    for name in dict.fromkeys(each.data for each in found):
        cells = []
        for change, part in (
            ("", "inputs"), ("", "labels"), ("covariate", "inputs"), ("one feature", "inputs"),
            ("labels", "labels"), ("labels", "inputs"),
        ):  # fmt: skip
            values = [getattr(e, part) for e in found if (e.data, e.change) == (name, change)]
            below = sum(value is not None and value < LEVEL for value in values)
            cells.append(f"{below} of {len(values)}" if values else "–")
        yield f"| {name} | {' | '.join(cells)} |"


def section(quick: bool, jobs: int) -> dict[str, list[str]]:
    """What goes into the page of figures."""
    seeds = QUICK if quick else SEEDS
    return {
        "Leaked validation samples": list(leak_lines(leaks(seeds, jobs))),
        "Shift between training and validation data": list(shift_lines(shifts(seeds, jobs))),
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} seeds")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    for title, lines in section(options.quick, options.jobs).items():
        print(f"## {title}\n")
        print("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
