"""Whether a training whose rate times a usual decay is far too large still learns.

    python -m benchmarks.rate_and_decay [--steps N]

weight-decay-too-strong speaks from lr·λ = 3e-3 on. Where the decay is usual and the rate is not, it is
advice, since layers before a normalisation can do with weights of any size. Here such rates, and usual ones
for comparison: plain stacks, one with BatchNorm, one with LayerNorm and residual paths, two encoders.
For each the share of a guess's loss that is gone after 60 steps and after all.

As run for 0.1 (300 steps, torch 2.13): with normalisations, many such runs learn as well as at a usual
rate. Of the 18 with AdamW and a large rate that had learnt less than 5% after 60 steps, two came to 0.39
and 0.47 where the usual rate comes to 0.99, and the others to nothing. Of SGD's, one of the 7 that stayed
finite came to as much, from 2.8 times a guess's loss. So it is a warning where after 50 steps no beginning
is made.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.depth import task
from benchmarks.depth_in_training import Encoder
from benchmarks.propagation import Stack

EARLY = 60
MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: Stack(3, "relu", "he"),
    "tanh": lambda: Stack(3, "tanh", "xavier"),
    "BatchNorm": lambda: Stack(4, "relu", "he", norm=nn.BatchNorm1d),
    "LayerNorm, residual": lambda: Stack(4, "relu", "he", norm=nn.LayerNorm, residual=True),
    "encoder, post-norm": lambda: Encoder(2, first=False, table=True),
    "encoder, pre-norm": lambda: Encoder(2, first=True, table=True),
}
# Optimizer, decay, rates: a usual one, then those that make lr·λ 3e-3 and more.
SETTINGS: list[tuple[type[torch.optim.Optimizer], float, tuple[float, ...]]] = [
    (torch.optim.AdamW, 0.1, (1e-3, 0.03, 0.1, 0.3)),
    (torch.optim.AdamW, 0.01, (1e-3, 0.3, 1.0)),
    (torch.optim.SGD, 1e-3, (0.1, 3.0, 10.0)),
]


def shares(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> tuple[float, float]:
    """Of a guess's loss, how much is gone after 60 steps and after all, by the median of the last 12."""
    x, y = task()
    frequencies = torch.bincount(y).double() / len(y)
    guess = float(torch.special.entr(frequencies).sum())
    losses: list[float] = []
    for step in range(steps):
        index = torch.arange(step * 64, step * 64 + 64) % len(x)
        optimizer.zero_grad()
        loss: Tensor = F.cross_entropy(model(x[index]), y[index])
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    early, late = (statistics.median(part) for part in (losses[EARLY - 12 : EARLY], losses[-12:]))
    return 1 - early / guess, 1 - late / guess


def rows(steps: int) -> Iterator[str]:
    for kind, decay, rates in SETTINGS:
        for name, build in MODELS.items():
            for rate in rates:
                torch.manual_seed(0)
                model = build()
                optimizer = kind(model.parameters(), lr=rate, weight_decay=decay)  # type: ignore[call-arg]
                early, late = shares(model, optimizer, steps)
                title = f"{name}, {kind.__name__}, lr={rate:g}, λ={decay:g}"
                yield f"{title:48}{rate * decay:9.1g}{early:10.2f}{late:10.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    torch.set_num_threads(1)
    print(f"{'':48}{'lr·λ':>9}{'early':>10}{'at last':>10}")
    for line in rows(parser.parse_args().steps):
        print(line, flush=True)


if __name__ == "__main__":
    main()
