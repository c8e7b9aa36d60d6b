"""What one forward and backward pass on real weights showed: the SIGNAL of a model at initialisation.

These are the values alone, which rules read; `pulse.py` measures them. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.fx import Node

    from trainlint.graph import Parameter
    from trainlint.records import Histogram


@dataclass(frozen=True)
class SiteSignal:
    """One operation's result, over a sample of at most 8192 of its elements.

    `mean`, `std` and `rms` (√ of the mean square) of the values; `spread` is the RMS of what differs
    between the samples of the batch (the values less their mean over the batch). `zero` is the share of
    exact zeros. `saturated` is the share of an activation's inputs in its flat part, |z| > 4 for a
    sigmoid and |z| > 2 for tanh (slope below 7% of its largest), None for other operations. `gradient`
    is the Euclidean norm of the objective's gradient by the whole result, over all samples; None where
    no gradient arrived. `values` tells how they are spread, for layers with weights and activations.
    """

    mean: float
    std: float
    rms: float
    spread: float
    zero: float
    saturated: float | None
    gradient: float | None
    values: Histogram | None = field(default=None, repr=False)


@dataclass(frozen=True)
class NonFinite:
    """The first operation that made a NaN or an infinity.

    `value` is `nan` or `inf`; `inputs` is the range (least, largest) of what the operation was given in
    the forward pass, also where its backward is to blame.
    """

    node: Node
    value: str
    backward: bool
    inputs: tuple[float, float] | None = None


@dataclass(frozen=True)
class Signal:
    """One pulse. Nodes are those of the captured graph.

    `batch` is the number of samples; `objective` says what was differentiated: `loss`, the value that
    the model or the user's loss gives, or `projection`, a random linear function of the outputs, whose
    gradients tell ratios but no scale. `value` is the objective's value. A parameter's gradient is a
    Euclidean norm, None where none arrived. `given` tells whether the samples are the user's own.
    `again()` measures another draw of the same, for a rule whose verdict should not hang on one; None
    where that fails.
    """

    batch: int
    objective: str
    value: float
    given: bool
    sites: Mapping[Node, SiteSignal] = field(repr=False)
    gradients: Mapping[str, float | None] = field(repr=False)
    non_finite: NonFinite | None = None
    again: Callable[[], Signal | None] | None = field(default=None, repr=False, compare=False)

    def of(self, node: Node) -> SiteSignal | None:
        """What was measured at an operation, None where it was not."""
        return self.sites.get(node)

    def gradient(self, parameter: Parameter) -> float | None:
        """The norm of the parameter's gradient; None where no gradient reached it."""
        return self.gradients.get(parameter.name)


def decades(first: float | None, last: float | None) -> float | None:
    """log10(first / last): -3 means that the first is a thousandth of the last. None if one is 0."""
    if not first or not last:
        return None
    return math.log10(first / last)
