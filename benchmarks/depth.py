"""From which loss of gradient a network stops learning, and how far sound models are from it.

    python -m benchmarks.depth [--steps N] [--zoo PATTERN]

First table: plain stacks from sound to starved (depth, activation, initial values). For each: the decades
that gradient and spread lose from the first third of the layers to the last, as `trainlint.theory.depth`
measures them, and how much of the constant guess's loss SGD with momentum and Adam learn away. Second
table, with `--zoo '*'`: the models of `zoo_library` and `zoo_awkward` that come nearest to the thresholds
of vanishing-gradient and exploding-gradient.

As run for 0.1 (300 steps, torch 2.13): SGD with momentum learns all at -1.2 decades of gradient or above,
a third at -1.7, and nothing at -1.94 or below. Adam, which divides the scale out, learns at -2 as well,
half at -3.2, nothing or a third below -3.3. So vanishing-gradient warns from 2 decades on and is an error
beyond 3. Of 410 library models that could be measured, only two lie below: SAM's vision encoder, whose
configuration asks for σ = 1e-10, and a shrunk EfficientNet, whose BatchNorms see less than their ε.

Third table: short stacks, and stacks before a BatchNorm, all weights a multiple of He's. Of three layers
at a tenth, SGD learns nothing, so shrinking-init judges three layers in series that are each a decade too
small. Six times too large, eight layers end in NaN, and before a BatchNorm learn more slowly; six times
too small and before a BatchNorm, Adam learns all. So growth that is divided out again is no error, and a
loss that is made good again no finding while samples can be told apart.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.propagation import Stack
from benchmarks.saturating_stack import OPTIMIZERS, drop
from trainlint.capture.inputs import Inputs
from trainlint.capture.search import synthesize
from trainlint.capture.tracer import capture
from trainlint.graph import Graph
from trainlint.measure.pulse import pulse
from trainlint.theory.depth import Trend, measured_trend

CASES = [
    *(("relu", kind, depth) for kind in ("he", "xavier", "default") for depth in (6, 10, 15, 20)),
    *(("tanh", kind, depth) for kind in ("xavier", "default") for depth in (6, 10, 15, 20)),
    *(("sigmoid", kind, depth) for kind in ("xavier", "default") for depth in (6, 10)),
    ("relu", "n0.01", 8),
]
# Depth, factor on He's deviation, whether a BatchNorm follows.
SCALED = [
    *((depth, factor, False) for depth in (2, 3) for factor in (1, 0.1, 0.02)),
    *((8, factor, norm) for factor in (6, 1 / 6) for norm in (False, True)),
]
SAMPLES, CLASSES = 512, 4


def trend_of(model: nn.Module, inputs: Inputs, seed: int = 0) -> Trend | None:
    recorded = capture(model, inputs.args, inputs.kwargs)
    graph = Graph(recorded.graph, recorded.model)
    return measured_trend(graph, pulse(recorded.model, inputs, graph, seed=seed))


def task() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, 64, generator=generator)
    return x, (x @ torch.randn(64, CLASSES, generator=generator)).argmax(1)


def scaled(depth: int, factor: float, norm: bool) -> nn.Module:
    """A stack whose weights, those of its head too, are a multiple of He's, and perhaps a BatchNorm."""
    stack = Stack(depth, "relu", "he")
    with torch.no_grad():
        for layer in [*stack.layers, *([] if norm else [stack.head])]:
            layer.weight *= factor
    if norm:
        stack.head = nn.Sequential(nn.BatchNorm1d(96), stack.head)  # type: ignore[assignment]
    return stack


def scaled_stacks(steps: int) -> Iterator[str]:
    x, y = task()
    yield f"{'':42}" + "".join(f"{name:>12}" for name in ("SGD 0.1", "Adam 1e-3"))
    for depth, factor, norm in SCALED:
        learnt = []
        for name in ("SGD 0.1", "Adam 1e-3"):
            torch.manual_seed(0)
            model = scaled(depth, factor, norm)
            learnt.append(drop(model, x, y, OPTIMIZERS[name](model.parameters()), steps))
        label = f"relu {factor:.2g} times he, {depth} layers{' and BatchNorm' * norm}"
        yield f"{label:42}" + "".join(f"{value:12.2f}" for value in learnt)


def stacks(steps: int) -> Iterator[str]:
    x, y = task()
    names = ("SGD 0.1", "Adam 1e-3")
    yield f"{'':24}{'gradient':>9}{'spread':>9}" + "".join(f"{name:>12}" for name in names)
    for activation, kind, depth in CASES:
        torch.manual_seed(0)
        model = Stack(depth, activation, kind)
        trend = trend_of(model, Inputs((x[:16],), {}, "drawn", given=True))
        learnt = []
        for name in names:
            torch.manual_seed(0)
            model = Stack(depth, activation, kind)
            learnt.append(drop(model, x, y, OPTIMIZERS[name](model.parameters()), steps))
        assert trend is not None
        figures = "".join(f"{value:12.2f}" for value in learnt)
        label = f"{activation} {kind} {depth}"
        yield f"{label:24}{trend.gradient:9.2f}{trend.collapsed:9.2f}{figures}"


def zoo(pattern: str) -> Iterator[str]:
    from benchmarks.zoo import all_entries

    found: list[tuple[float, float, float, str]] = []
    for entry in all_entries():
        if not fnmatch.fnmatch(entry.name, pattern):
            continue
        with contextlib.suppress(Exception):  # what cannot be measured is not judged either
            torch.manual_seed(0)
            model = entry.build()
            if entry.inputs is None:
                inputs = synthesize(model).inputs
            else:
                args, kwargs = entry.inputs()
                inputs = Inputs(tuple(args), kwargs, "of the zoo", given=False)
            trend = trend_of(model, inputs)
            if trend is not None:
                found.append((trend.gradient, trend.collapsed, trend.forward, entry.name))
    yield f"{len(found)} models; gradient, spread, forward in decades"
    for title, rows in (
        ("lowest gradient", sorted(found)[:12]),
        ("highest gradient", sorted(found, reverse=True)[:8]),
        ("lowest spread", sorted(found, key=lambda row: row[1])[:8]),
    ):
        yield title
        for gradient, spread, forward, name in rows:
            yield f"  {gradient:8.2f}{spread:8.2f}{forward:8.2f}  {name}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--zoo", default="")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for line in (*stacks(options.steps), *scaled_stacks(options.steps)):
        print(line, flush=True)
    if options.zoo:
        for line in zoo(options.zoo):
            print(line, flush=True)


if __name__ == "__main__":
    main()
