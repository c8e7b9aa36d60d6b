"""What a `GradScaler` does: which losses it multiplied, and which steps it left out."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from trainlint.observe.roots import KnownOptimizer
from trainlint.observe.trace import Incident
from trainlint.sites import Site
from trainlint.tree import tensors

if TYPE_CHECKING:
    from torch import Tensor

# One that has left out so many steps in a row, below a scale of 1, is not finding its scale.
MOST_SKIPPED: Final = 3


class Scaling:
    """The scaler of a loop: the last that scaled a loss."""

    def __init__(self) -> None:
        self._scaler: Any = None
        # The last losses that it scaled, and what they were before.
        self._scaled: list[tuple[weakref.ref[Tensor], Tensor]] = []

    def scales(self, scaler: Any, outputs: Any, scaled: Any) -> None:
        """It made `scaled` losses of `outputs`."""
        self._scaler = weakref.ref(scaler)
        pairs = zip(tensors(scaled), tensors(outputs), strict=True)
        self._scaled = [(weakref.ref(now), before.detach()) for (_, now), (_, before) in pairs]

    def steps(self, scaler: Any, known: KnownOptimizer, site: Site | None) -> bool:
        """After its step. Tells whether it has left out the optimizer's."""
        known.scaler_steps += 1
        known.scaler_site, known.scale = site, scaler._scale
        self._scaled.clear()
        if known.steps > known.steps_before:
            known.steps_before = known.steps
            if getattr(known.held(), "_step_supports_amp_scaling", False):
                _look_within(known, scaler)  # its own code may have left the step out
            else:
                known.skipped_in_row = 0
            return False
        # Its step was left out, for which the scaler has waited: it costs no more to ask.
        known.skipped_in_row += 1
        known.pending = 0
        return True

    @property
    def was_used(self) -> bool:
        """Whether there is, or was, such a scaler."""
        return self._scaler is not None

    def is_enabled(self) -> bool:
        """Whether it is at work."""
        scaler = None if self._scaler is None else self._scaler()
        return scaler is not None and scaler.is_enabled()

    def unscaled(self, loss: Tensor) -> Tensor:
        """The loss before it was multiplied, where it was."""
        for scaled, before in self._scaled:
            if scaled() is loss:
                return before
        return loss

    def is_still_scaled(self, known: KnownOptimizer) -> bool:
        """Whether it has multiplied the optimizer's gradients, and not yet divided them."""
        if not known.pending or not self.is_enabled():
            return False
        state = self._scaler()._per_optimizer_states.get(id(known.held()))
        return state is None or getattr(state["stage"], "name", "") == "READY"


def left_out(optimizers: Iterable[KnownOptimizer]) -> Iterator[Incident]:
    """Steps that a scaler left out, up to the last."""
    for known in optimizers:
        row = int(known.skipped_in_row)
        if row and known.scale is not None:
            facts = {
                "optimizer": known.kind, "steps": known.scaler_steps, "scale": float(known.scale),
            }  # fmt: skip
            yield Incident("steps-left-out", known.scaler_site, row, known.steps, facts)


def _look_within(known: KnownOptimizer, scaler: Any) -> None:
    """Count on the device, without waiting, what the scaler told the optimizer's own code."""
    state = scaler._per_optimizer_states.get(id(known.held())) or {}
    flags = list(state.get("found_inf_per_device", {}).values())
    if flags:
        known.skipped_in_row = (known.skipped_in_row + 1) * (flags[0].detach() > 0)
