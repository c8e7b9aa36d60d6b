"""What can be changed in a training to make it generalise better, with its strength. No torch.

`applying.applied` makes such a change on a copy of a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

AUGMENTATIONS: Final = ("shift", "flip")


@dataclass(frozen=True)
class Variant:
    """One change, or several at once; the values as they stand change nothing.

    `l2` and `l1` are factors of the penalties l2 · Σw² / 2 and l1 · Σ|w| on weight matrices; in optimizers
    that scale each weight's step, as Adam does, the first is weight decay apart from the gradient (AdamW).
    `dropout` is the probability of each dropout layer (layers are put before hidden linear layers where
    there are none), `noise` the deviation of Gaussian noise on the inputs in units of their own, `augment`
    names another change of inputs: `shift` images by a pixel or two, `flip` them left to right. `width` is
    the factor of the hidden sizes.
    """

    l2: float | None = None
    l1: float | None = None
    dropout: float | None = None
    noise: float = 0.0
    augment: str = ""
    width: float = 1.0
