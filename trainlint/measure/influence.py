"""What influences what in a model: its INFLUENCE, measured by changing inputs one at a time.

These are the values alone, which rules read; `perturbation.py` measures them. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.fx import Node

    from trainlint.sites import Site


@dataclass(frozen=True)
class Spot:
    """An operation of a real run in eval mode.

    `node` is the same operation in the captured graph, None where eval mode goes another way. `site` is
    the layer's constructor, else the call. `shapes` are those of its tensors and `result` that of its
    result, at the measured number of samples; `arguments` its plain arguments.
    """

    name: str
    module: str
    label: str
    site: Site | None
    node: Node | None
    shapes: tuple[tuple[int, ...], ...] = ()
    result: tuple[int, ...] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def where(self) -> Any:
        """What a finding names: the node if there is one, else the site."""
        return self.node if self.node is not None else self.site


@dataclass(frozen=True)
class Mixing:
    """Other samples' inputs change a sample's output.

    `shift` is how far the outputs of one sample moved, relative to their scale, when the other samples
    were replaced; `gradient` the other samples' share of the gradient of these outputs, None where none
    was measured. `spot` is the operation that mixes, or the rearrangement before it that lost track of
    the samples (`is_lost`); `mixer` is None where whole numbers went from one sample to another.
    `reaches_axis_1` is False where the inputs' second axis holds independent samples as well: then the
    model may well count samples along that one.
    """

    shift: float
    gradient: float | None
    spot: Spot | None
    is_lost: bool
    mixer: Spot | None
    reaches_axis_1: bool


@dataclass(frozen=True)
class Leak:
    """Later positions of a sequence influence the outputs of earlier ones.

    `gradient` is the later positions' share of the gradient of the first `positions` outputs; `shift`
    how far these moved when the later positions were changed. `causal` and `open` are the attention
    self-attentions that this input reaches first: those with a triangular mask and those without.
    `is_target` tells that a cross entropy, in the model or in its file, compares the outputs with the
    input's next positions.
    """

    input: str
    positions: int
    gradient: float
    shift: float | None
    causal: tuple[Spot, ...]
    open: tuple[Spot, ...]
    spot: Spot | None
    is_target: bool = False


@dataclass(frozen=True)
class Unused:
    """An input, or the `features` or `positions` of one along `axis`, that changes no output."""

    input: str
    node: Node | None
    shape: tuple[int, ...]
    axis: int | None = None
    features: tuple[int, ...] = ()
    positions: tuple[int, ...] = ()


@dataclass(frozen=True)
class Alike:
    """Where the samples become alike: the largest difference relative to the values, before and behind.

    `spot` is the operation at which it falls the most, `source` the one whose result, from `low` to
    `high`, it makes alike.
    """

    spot: Spot
    source: Spot | None
    before: float
    after: float
    low: float
    high: float


@dataclass(frozen=True)
class Constant:
    """All samples get the same outputs: the largest difference relative to the scale.

    `reacts` tells whether they change when all samples are replaced: then only what tells the samples
    apart is lost.
    """

    spread: float
    scale: float
    reacts: bool = False
    alike: Alike | None = None


@dataclass(frozen=True)
class Draw:
    """An operation that draws random numbers in eval mode, and what becomes of them.

    `kind` is `dropout`, `mask` (a threshold or Bernoulli draw of constant probability that multiplies
    the data, as dropout and stochastic depth do) or `noise`.
    """

    spot: Spot
    kind: str


@dataclass(frozen=True)
class Randomness:
    """Two passes in eval mode on the same input differ, by `shift` of the outputs' scale."""

    shift: float
    draws: tuple[Draw, ...]


@dataclass(frozen=True)
class Influence:
    """What was found in eval mode with `batch` distinct samples. None, or nothing, where all is well.

    `given` tells whether the samples are the user's own.
    """

    batch: int
    given: bool
    mixing: Mixing | None = None
    leak: Leak | None = None
    unused: tuple[Unused, ...] = ()
    constant: Constant | None = None
    randomness: Randomness | None = None
