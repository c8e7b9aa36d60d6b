"""Which trainings that do not learn have a gradient that vanishes through depth, and which do not.

    python -m benchmarks.depth_in_training [--steps N]

First table: plain stacks whose gradient vanishes, as `benchmarks.depth` has them, each under SGD and Adam.
Second table: trainings that learn nothing for another reason, or not yet, although some layer gets next to
no gradient: attention before it has left its plateau, a last layer that starts near 0, one that is put back
after each step, a rate at which tanh saturates. For each what `trainlint.analysis.depth_in_training`
measures of the watched run: the decades that the gradient at layers' results loses (`gradient`), that of
all that arrives there (`arriving`), the same at the first steps (`begun`), the share of the steepest fall,
and the share of a guess's loss that is gone.

As run for 0.1 (80 steps, torch 2.13): of the 24 trainings of the first table that have begun to learn
nothing, all lose 1.7 decades or more from the start, and no layer more than 0.39 of it. Of the second,
`gradient` alone is below -1.5 in 18 of 23. Two of these lose nothing with what arrives beside the layers;
of the others the rates begin at -1.15 or above, and where the loss is there from the start, one layer has
0.56 of it or more. So vanishing-gradient asks for 1.5 decades, at first and in the median, and for at most
0.45 by one layer.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import trainlint
from benchmarks.depth import task
from benchmarks.propagation import Stack
from trainlint.analysis.depth_in_training import depth_in_training

Optimizer = Callable[..., torch.optim.Optimizer]
OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], float]] = {
    "SGD": (torch.optim.SGD, 0.1),
    "Adam": (torch.optim.Adam, 1e-3),
}
VANISHING = [
    *(("sigmoid", kind, depth) for kind in ("xavier", "default") for depth in (3, 4, 6, 10)),
    *(("tanh", "default", depth) for depth in (6, 10, 20)),
    *(("relu", kind, depth) for kind, depth in (("default", 6), ("default", 10), ("default", 20))),
    ("relu", "n0.01", 8),
]


class Encoder(nn.Module):
    """A Transformer's encoder with all weights at σ = 0.02, and a pooled head, as BERT has them."""

    def __init__(self, layers: int, *, first: bool, table: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 32) if table else nn.Linear(1, 32)
        layer = nn.TransformerEncoderLayer(
            32, 4, 64, 0.0, "gelu", batch_first=True, norm_first=first
        )
        self.norm = nn.LayerNorm(32)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.pooler = nn.Linear(32, 32)
        self.head = nn.Linear(32, 4)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        tokens = (x[:, :16] * 2 + 8).clamp(0, 15)
        z = self.table(tokens.long() if isinstance(self.table, nn.Embedding) else tokens[..., None])
        return self.head(torch.tanh(self.pooler(self.encoder(self.norm(z))[:, 0])))


def faint_head(activation: str, factor: float) -> nn.Module:
    """A sound stack whose last layer starts near 0."""
    model = Stack(6, activation, "xavier")
    with torch.no_grad():
        model.head.weight *= factor
    return model


class Unconditioned(nn.Module):
    """Residual blocks to each of which a small network adds its shift, as diffusion's do with time."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(1, 32), nn.SiLU(), nn.Linear(32, 32))
        self.inner = nn.Linear(64, 32)
        self.blocks = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))
        self.shifts = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(4))
        self.head = nn.Linear(32, 4)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        time = self.time(x[:, :1] * 1e-2)
        x = self.inner(x)
        for block, shift, norm in zip(self.blocks, self.shifts, self.norms, strict=True):
            x = x + F.silu(block(norm(x)) + shift(F.silu(time)))
        return self.head(x)


def put_back(model: nn.Module) -> Callable[[], None]:
    """Weights of a slow average, copied back after each step: the run stands still."""
    average = [p.detach().clone() for p in model.parameters()]

    @torch.no_grad()
    def after() -> None:
        for slow, parameter in zip(average, model.parameters(), strict=True):
            slow.lerp_(parameter, 0.001)
            parameter.copy_(slow)

    return after


def others() -> Iterator[tuple[str, Callable[[], nn.Module], str, float, bool]]:
    """(title, model, optimizer, rate, whether its weights are put back)."""
    for first in (False, True):
        for table in (True, False):
            title = f"encoder, {'pre' if first else 'post'}-norm, {'table' if table else 'linear'}"
            yield title, lambda f=first, t=table: Encoder(3, first=f, table=t), "Adam", 3e-4, False
    for activation in ("relu", "tanh"):
        for factor in (1e-2, 1e-3):
            title = f"{activation} stack, its head times {factor:g}, put back"
            yield title, lambda a=activation, f=factor: faint_head(a, f), "Adam", 1e-3, True
    yield "time added to residual blocks, head from 0", Unconditioned, "Adam", 1e-3, True
    for rate in (30.0, 1000.0):
        for activation, depth in (("tanh", 4), ("tanh", 8), ("sigmoid", 3)):
            title = f"{activation} {depth} at rate {rate:g}"
            yield title, lambda a=activation, d=depth: Stack(d, a, "xavier"), "SGD", rate, False
    for rate in (0.3, 3.0):
        for depth in (4, 8):
            title = f"tanh {depth} at rate {rate:g}"
            yield title, lambda d=depth: Stack(d, "tanh", "xavier"), "Adam", rate, False
            title = f"encoder, pre-norm, {depth // 2} layers at rate {rate:g}"
            yield (
                title,
                lambda d=depth: Encoder(d // 2, first=True, table=True),
                "Adam",
                rate,
                False,
            )


def row(title: str, model: nn.Module, name: str, rate: float, back: bool, steps: int) -> str:
    """Of a run of so many steps."""
    x, y = task()
    optimizer = OPTIMIZERS[name][0](model.parameters(), lr=rate)
    after = put_back(model) if back else None
    with trainlint.watch(stages=("probe",)) as watched:
        for step in range(steps):
            index = torch.arange(step * 64, step * 64 + 64) % len(x)
            optimizer.zero_grad()
            F.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()
            if after is not None:
                after()
    depth = depth_in_training(watched.trace.trained[0])
    if depth is None:
        return f"{title:48}{name:>6}  not measured"
    learnt = watched.trace.learnt(watched.trace.objectives[0], steps)
    found = [f for whole in watched.findings for f in (whole, *whole.symptoms)]
    says = " GRD001" if any(f.code == "GRD001" for f in found) else ""
    return (
        f"{title:48}{name:>6}{depth.gradient:10.2f}{depth.arriving:10.2f}{depth.begun:8.2f}"
        f"{depth.steepest:10.2f}{learnt if learnt is not None else float('nan'):8.2f}{says}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=80)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    print(f"{'':54}{'gradient':>10}{'arriving':>10}{'begun':>8}{'steepest':>10}{'learnt':>8}")
    for activation, kind, depth in VANISHING:
        for name, (_, rate) in OPTIMIZERS.items():
            torch.manual_seed(0)
            model = Stack(depth, activation, kind)
            print(row(f"{activation} {kind} {depth}", model, name, rate, False, steps), flush=True)
    print()
    for title, build, name, rate, back in others():
        torch.manual_seed(0)
        print(row(title, build(), name, rate, back, steps), flush=True)


if __name__ == "__main__":
    main()
