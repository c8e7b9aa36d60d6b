"""Changes of a live model or of its training, as data: what tries a remedy without touching the source.

A rule says by a `Patch` what its remedy does; `trainlint.surgery` makes that change on a copy. As plain
data a patch crosses from the process that found the fault to the one that tries the remedy. No torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

__all__ = ["Occurrence", "Patch"]


class Occurrence(msgspec.Struct, frozen=True):
    """A call in a forward that is no layer: the `ordinal`-th of this operation in its module's own code.

    Operations have the names of `trainlint.ops`: `sigmoid` for `F.sigmoid(x)` and `x.sigmoid()`.
    """

    module: str
    operation: str
    ordinal: int = 0


class Patch(msgspec.Struct, frozen=True):
    """One change. `modules` and `parameters` are dotted paths in the model, `values` what the kind needs.

    The kinds, and what each does, are in `trainlint.surgery.KINDS`.
    """

    kind: str
    modules: list[str] = []
    parameters: list[str] = []
    calls: list[Occurrence] = []
    values: dict[str, Any] = {}

    @classmethod
    def initialise(cls, parameters: Iterable[str], scheme: str, **values: Any) -> Patch:
        """Draw weights anew: `scheme` is a function of `torch.nn.init` without its last `_`."""
        return cls("initialise", parameters=list(parameters), values={"scheme": scheme, **values})

    @classmethod
    def activation(
        cls, to: str, *, modules: Iterable[str] = (), calls: Iterable[Occurrence] = ()
    ) -> Patch:
        """Another activation in place of these layers and calls, `relu`, `gelu`, `leaky_relu`, ..."""
        return cls("activation", list(modules), calls=list(calls), values={"to": to})

    @classmethod
    def activation_behind(cls, modules: Iterable[str], to: str) -> Patch:
        """An activation more, behind each of these layers."""
        return cls("activation-behind", list(modules), values={"to": to})

    @classmethod
    def without(cls, *, modules: Iterable[str] = (), calls: Iterable[Occurrence] = ()) -> Patch:
        """These layers and calls give back what goes into them."""
        return cls("without", list(modules), calls=list(calls))

    @classmethod
    def arguments(cls, calls: Iterable[Occurrence], **values: Any) -> Patch:
        """Other arguments for calls: `dim=1`, `training="self.training"` for the mode of their module."""
        return cls("arguments", calls=list(calls), values=values)

    @classmethod
    def norm(cls, kind: str, after: Iterable[str], **values: Any) -> Patch:
        """A normalisation behind each of these layers: `batch`, `layer` or `group`."""
        return cls("norm", list(after), values={"norm": kind, **values})

    @classmethod
    def residual(
        cls,
        around: Iterable[str],
        *,
        until: Iterable[str] = (),
        calls: Iterable[Occurrence] = (),
    ) -> Patch:
        """Add its input to what each of these modules gives, where the shapes agree.

        Or to what its activation gives, `until` which the block lasts: modules, or calls.
        """
        return cls("residual", list(around), calls=list(calls), values={"until": list(until)})

    @classmethod
    def rebuilt(cls, module: str, **arguments: Any) -> Patch:
        """The layer made anew with other arguments (`num_features=64`), initialised as its class does."""
        return cls("rebuilt", [module], values=arguments)

    @classmethod
    def attribute(cls, modules: Iterable[str], **values: Any) -> Patch:
        """Set attributes of layers that exist: `p=0.2`, `eps=1e-5`, `momentum=0.1`, `dim=1`."""
        return cls("attribute", list(modules), values=values)

    @classmethod
    def with_gradients(
        cls, *, modules: Iterable[str] = (), calls: Iterable[Occurrence] = ()
    ) -> Patch:
        """These layers and calls are recorded, though the forward runs them under `no_grad`."""
        return cls("with-gradients", list(modules), calls=list(calls))

    @classmethod
    def separate(cls, module: str, count: int) -> Patch:
        """A copy of the layer for each of its `count` calls in a forward."""
        return cls("separate", [module], values={"count": count})

    @classmethod
    def unfreeze(cls, parameters: Iterable[str]) -> Patch:
        """`requires_grad_(True)`, and into the optimizer with them."""
        return cls("unfreeze", parameters=list(parameters))

    @classmethod
    def training(cls, kind: str, **values: Any) -> Patch:
        """A change of the training, `clip`, `learning-rate`, `loss`, ..."""
        return cls(kind, values=values)
