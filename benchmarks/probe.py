"""What the probe of `trainlint check` says of sound and of broken setups.

    python -m benchmarks.probe --half report --seed 0

Each supervised architecture of the calibration, on data that suit it, is handed to `trainlint.check` as
users do: a model, a loss, an optimizer, a loader. Sound ones must have no finding at warning or above.
Broken ones have a fault of the model, the loss, the optimizer or the data; those of the loop are not the
probe's. For LOS009 the fault is a model that cannot tell the samples apart, or cannot reach the targets.
Faults that do no harm are counted as well, which `benchmarks.calibration` finds out by the unbroken twin.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import trainlint
from benchmarks.calibration import HALVES, half_of
from benchmarks.training_faults import FAULTS
from benchmarks.training_models import ARCHITECTURES, supervised_loss
from benchmarks.training_runs import Changes, Recipe, chance, compatible, host, make_optimizer
from trainlint.config import Config

# Rules whose faults lie in what is handed over.
RULES = (
    "OPT001", "OPT002", "OPT003", "OPT004", "GRD003", "GRD004", "LOS001", "LOS003", "LOS005", "LOS007",
    "LOS008", "LOS009", "LOS011", "ACT001", "NRM004",
)  # fmt: skip


@dataclass
class Case:
    """One check, and what came of it. `rule` is empty for a sound one."""

    name: str
    rule: str
    fault: str
    found: list[tuple[str, str, str]] = field(default_factory=list)
    stages: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unmeasured: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Blind(nn.Module):
    """Sees the mean of its batch only: what it says of a sample has nothing to do with it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.model(x)
        return outputs.mean(0, keepdim=True).expand_as(outputs)


class Squashed(nn.Module):
    """Its answers cannot leave [-0.1, 0.1]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.model(x)
        return 0.1 * torch.tanh(outputs)


def _blind(r: Recipe, _: random.Random) -> bool:
    r.model = Blind(r.model)
    return True


def _squashed(r: Recipe, _: random.Random) -> bool:
    r.model = Squashed(r.model)
    return r.data.task == "regression"


Break = Callable[[Recipe, random.Random], bool | None]


def faults() -> Iterator[tuple[str, str, tuple[str, ...], Break]]:
    for fault in FAULTS:
        if fault.rule in RULES:
            yield fault.rule, fault.name, fault.also, fault.apply
    yield "LOS009", "sees the batch's mean", (), _blind
    yield "LOS009", "output in [-0.1, 0.1]", (), _squashed


ALSO = {(rule, name): also for rule, name, also, _ in faults()}


# What of a loop a fault may change; the rest is handed over.
LOOP = (
    "zeroing", "clips_after", "schedule", "schedules_first", "validation", "keeping", "is_sorted",
    "unscaled",
)  # fmt: skip


def is_handed_over(recipe: Recipe) -> bool:
    """Whether nothing of the loop was changed."""
    sound = Changes()
    return all(getattr(recipe.changes, name) == getattr(sound, name) for name in LOOP)


def check(recipe: Recipe, case: Case) -> Case:
    torch.manual_seed(chance("probe", case.name, case.fault).randrange(2**31))
    changes = recipe.changes
    optimizer = make_optimizer(recipe)
    if changes.made is not None:
        changes.made(recipe, optimizer)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        outputs = changes.outputs(outputs)
        if changes.criterion is not None:
            return changes.loss(changes.criterion(outputs, targets))
        return changes.loss(supervised_loss(recipe.data, outputs, targets))

    def collate(rows: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        return changes.batch(torch.stack([x for x, _ in rows]), torch.stack([y for _, y in rows]))

    loaders = [
        DataLoader(
            TensorDataset(*part), recipe.batch, shuffle=True, drop_last=True, collate_fn=collate
        )
        for part in (recipe.data.training, recipe.data.held_out)
    ]
    started = time.process_time()
    report = trainlint.check(
        recipe.model, loss=loss, optimizer=optimizer, train_loader=loaders[0], val_loader=loaders[1],
        config=Config(probe_seconds=60),
    )  # fmt: skip
    case.seconds = time.process_time() - started
    (target,) = report.targets
    case.stages, case.notes = target.stages, target.notes
    case.unmeasured = [text.partition(" ")[0] for text in target.not_measurable]
    case.found = [
        (found.code, found.severity, found.message)
        for finding in report.findings
        for found in (finding, *finding.symptoms)
        if found.severity != "info"
    ]
    return case


def run_one(job: tuple[str, str, int, str, str]) -> Case | None:
    architecture, dataset, seed, rule, name = job
    torch.set_num_threads(1)
    recipe = host(architecture, dataset, seed)
    recipe.habits = frozenset()
    recipe.accumulation = 1
    case = Case(recipe.name, rule, name)
    if rule:
        apply = next(a for r, n, _, a in faults() if (r, n) == (rule, name))
        if not apply(recipe, chance(recipe.name, rule, name)) or not is_handed_over(recipe):
            return None
    return check(recipe, case)


def plan(half: str, seed: int, hosts: int, sound: bool) -> Iterator[tuple[str, str, int, str, str]]:
    """Sound runs of each architecture on two data sets; each fault on some of them."""
    pairs = [
        (architecture.name, dataset)
        for architecture in ARCHITECTURES.values()
        if architecture.method == "supervised" and half_of(architecture.name) == half
        for dataset in compatible(architecture.name)
        if half_of(dataset) == half
    ]
    if sound:
        yield from ((a, d, seed, "", "") for a, d in pairs)
        return
    for rule, name, _, _ in faults():
        some = sorted(pairs, key=lambda pair: chance(rule, name, seed, *pair).random())
        yield from ((a, d, seed, rule, name) for a, d in some[:hosts])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--half", choices=HALVES, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--hosts", type=int, default=8, help="hosts of each fault")
    parser.add_argument("--sound", action="store_true", help="sound setups only")
    options = parser.parse_args(arguments)
    jobs = list(plan(options.half, options.seed, options.hosts, sound=True))
    if not options.sound:
        jobs += plan(options.half, options.seed, options.hosts, sound=False)
    with ProcessPoolExecutor(options.jobs) as pool:
        cases = [case for case in pool.map(run_one, jobs, chunksize=4) if case is not None]
    report(cases)


def report(cases: Sequence[Case]) -> None:
    sound = [case for case in cases if not case.rule]
    probed = [case for case in sound if "probe" in case.stages]
    alarms = [case for case in probed if case.found]
    print(f"sound: {len(sound)} setups, {len(probed)} probed, {len(alarms)} with findings")
    for case in sound:
        for code, severity, message in case.found:
            print(f"  {case.name}: {severity} {code} {message[:120]}")
        if "probe" not in case.stages:
            print(f"  {case.name}: {case.notes}")
    print("  not measurable:", dict(Counter(code for case in sound for code in case.unmeasured)))
    seconds = sorted(case.seconds for case in probed)
    if seconds:
        print(
            f"  processor time a check: median {seconds[len(seconds) // 2]:.1f} s, most {seconds[-1]:.1f} s"
        )
    print(f"{'rule':8}{'injected':>9}{'found':>7}{'share':>7}")
    shares = []
    for rule in RULES:
        own = [case for case in cases if case.rule == rule]
        if not own:
            continue
        found = [case for case in own if is_found(case)]
        shares.append(len(found) / len(own))
        missed = Counter(case.fault for case in own if not is_found(case))
        print(f"{rule:8}{len(own):>9}{len(found):>7}{shares[-1]:>7.0%}  missed: {dict(missed)}")
    if shares:
        print(f"macro recall {sum(shares) / len(shares):.1%}")


def is_found(case: Case) -> bool:
    accepted: set[Any] = {case.rule, *ALSO.get((case.rule, case.fault), ())}
    return any(code in accepted for code, _, _ in case.found)


if __name__ == "__main__":
    main()
