"""From which depth, and which gradient bound, a stack of sigmoids stops learning.

    python -m benchmarks.saturating_stack [--steps N]

Sound and starved networks alike: stacks of 1 to 8 sigmoids, two widths, PyTorch's and Xavier's
initialisation, three optimizers, two tasks, three seeds. For each: the bound that ARC008 computes with
the weights put in, and how much each optimizer learns; it has learnt where the loss falls by more than a
tenth of that of the constant guess. The thresholds of ARC008 (`least`, `error_bound`) are read off this
table.

As run for 0.1 (300 steps, torch 2.13): SGD with momentum learns nothing at any bound below 5e-3 (up to
three default-initialised or four Xavier-initialised sigmoids), plain SGD nothing below 8e-2, Adam
something even at 2e-7, but less with each sigmoid: 0.63, 0.73, 0.76, 0.62, 0.43, 0.42, 0.31, 0.24 of the
constant guess's loss at width 128.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from trainlint import check

CLASSES = 4
FEATURES = 20
SAMPLES = 512
LEARNT = 0.1


def stack(depth: int, width: int, xavier: bool) -> nn.Module:
    """`depth` sigmoids, each behind a Linear, and a head."""
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [nn.Linear(FEATURES if index == 0 else width, width), nn.Sigmoid()]
    model = nn.Sequential(*layers, nn.Linear(width, CLASSES))
    if xavier:
        for layer in model:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
    return model


def task(kind: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs (512, 20) and class labels: a linear teacher, or one with a hidden layer."""
    x = torch.randn(SAMPLES, FEATURES, generator=generator)
    first = torch.randn(FEATURES, 16, generator=generator)
    second = torch.randn(16 if kind == "hidden" else FEATURES, CLASSES, generator=generator)
    logits = torch.tanh(x @ first / 2) @ second if kind == "hidden" else x @ second
    return x, (logits - logits.mean(0)).argmax(1)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD 0.1": lambda parameters: torch.optim.SGD(parameters, 0.1),
    "SGD 0.5 momentum 0.9": lambda parameters: torch.optim.SGD(parameters, 0.5, momentum=0.9),
    "Adam 1e-3": lambda parameters: torch.optim.Adam(parameters, 1e-3),
}


def drop(
    model: nn.Module, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer, steps: int
) -> float:
    """How far the loss falls below that of the constant guess, as a share of it."""
    counts = torch.bincount(y, minlength=CLASSES).float() / len(y)
    baseline = -(counts * counts.clamp_min(1e-9).log()).sum().item()
    for step in range(steps):
        index = torch.arange(step * 64, step * 64 + 64) % SAMPLES
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[index]), y[index]).backward()
        optimizer.step()
    with torch.no_grad():
        return 1 - nn.functional.cross_entropy(model(x), y).item() / baseline


def bound_of(model: nn.Module) -> tuple[int, float]:
    """(sigmoids in series, gradient with these weights) as ARC008 reports them; (0, 1) if it is silent."""
    options = {"saturating-stack": {"least": 1}}
    report = check(model, torch.randn(2, FEATURES), select=["ARC008"], options=options)
    if not report.findings:
        return 0, 1.0
    evidence = report.findings[0].evidence
    return evidence["in_series"], evidence["gradient_with_these_weights"]


def rows(steps: int) -> Iterator[tuple[int, int, bool, float, dict[str, float]]]:
    """(depth, width, Xavier?, bound, mean loss drop by optimizer) of every configuration."""
    for depth in range(1, 9):
        for width in (32, 128):
            for xavier in (False, True):
                drops: dict[str, list[float]] = defaultdict(list)
                bound = 1.0
                for seed in range(3):
                    for kind in ("linear", "hidden"):
                        x, y = task(kind, torch.Generator().manual_seed(seed))
                        for name, build in OPTIMIZERS.items():
                            torch.manual_seed(seed)
                            model = stack(depth, width, xavier)
                            bound = bound_of(model)[1] if not drops[name] else bound
                            drops[name].append(drop(model, x, y, build(model.parameters()), steps))
                means = {name: sum(values) / len(values) for name, values in drops.items()}
                yield depth, width, xavier, bound, means


def main() -> None:
    """Print the table and the range in which learning ends."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    print(f"{steps} steps; share of the constant guess's loss that is learnt away")
    print(f"{'n':>2} {'width':>5} {'init':>8} {'bound':>8}  " + "  ".join(OPTIMIZERS))
    learnt: dict[str, float] = {}
    for depth, width, xavier, bound, means in rows(steps):
        figures = "  ".join(f"{means[name]:>{len(name)}.2f}" for name in OPTIMIZERS)
        print(
            f"{depth:>2} {width:>5} {'Xavier' if xavier else 'default':>8} {bound:>8.1e}  {figures}"
        )
        for name, mean in means.items():
            if mean > LEARNT:
                learnt[name] = min(bound, learnt.get(name, 1.0))
    for name, bound in learnt.items():
        print(f"smallest bound at which {name} learnt: {bound:.1e}")


if __name__ == "__main__":
    main()
