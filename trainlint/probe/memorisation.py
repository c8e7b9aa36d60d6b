"""What the pass by a few samples showed: the MEMORISATION. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainlint.sites import Site


@dataclass(frozen=True)
class Memorisation:
    """A training on `samples` samples alone, at the learning rate that did best.

    `guess` is the loss of the best constant answer to their targets, `losses` that of each step.
    `outputs` is how many numbers the targets are, `trainable` how many parameters could learn them;
    `site` where the loss was made.
    """

    samples: int
    guess: float
    losses: Sequence[float]
    rate: float
    outputs: int
    trainable: int
    site: Site | None = field(default=None, repr=False)

    @property
    def left(self) -> float:
        """Share of the constant answer's loss that was left at best: 0 learnt by heart, 1 not at all."""
        return min(self.losses) / self.guess
