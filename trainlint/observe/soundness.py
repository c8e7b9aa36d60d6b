"""Whether losses and gradients of a training loop are finite, and what made the first that is not.

Looked for once: in the operations of the loop's own that were recorded, in the graph, and in the model,
which is run once more for it. Later ones are of the same cause.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from trainlint.observe.expressions import Expressions
from trainlint.observe.gradients import has_finite_gradient
from trainlint.observe.incidents import Incidents
from trainlint.observe.origin import Call, Origin, backward_origin_in, origin_in
from trainlint.observe.pace import FIRST_STEPS, Pace
from trainlint.observe.roots import KnownOptimizer, Root, Roots
from trainlint.observe.sharding import has_others, here
from trainlint.sites import Site
from trainlint.tree import tensors

if TYPE_CHECKING:
    from torch import Tensor, nn


class Soundness:
    """`is_sound` until the first NaN or infinity. What made that is an incident."""

    def __init__(self, roots: Roots, pace: Pace, incidents: Incidents) -> None:
        self._roots = roots
        self._pace = pace
        self._incidents = incidents
        self._expressions = Expressions()
        # The number of the last forward's last node.
        self._ended = -1
        self._backward_site: Site | None = None
        self.is_sound = True

    # ------------------------------------------------------------------ what the loop does

    def forward_ends(self, ends: frozenset[int]) -> None:
        """A forward ended in nodes of these numbers: what follows is the loop's own."""
        self._ended = max(ends)
        if self._pace.is_recording:
            self._expressions.begin(ends)

    def outside(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """An operation outside of all models was called."""
        if self._pace.is_recording and self.is_sound:
            self._expressions.look_at(func, args, kwargs, result)

    def backward_begins(self, site: Site | None) -> None:
        """A backward pass, from here."""
        self._backward_site = site

    def close(self, step: int) -> None:
        """The step is over, or left out."""
        self._expressions.close(step)

    def drain(self) -> None:
        """Look at what was recorded on other devices than the CPU."""
        late = self._expressions.drain()
        if late is not None and self.is_sound:
            self.is_sound = False
            self._broke(late[1], None)

    # ------------------------------------------------------------------ losses

    def look_at_loss(
        self, number: float, loss: Tensor, site: Site | None, latest: Root | None
    ) -> None:
        """A backward pass begins from a loss of this value; `latest` is the model whose forward waits."""
        if self.is_sound and not math.isfinite(number):
            self.is_sound = False
            value = "nan" if math.isnan(number) else "inf"
            self._find_origin(value, loss, site, latest or self._roots.latest())

    def _find_origin(self, value: str, loss: Tensor, site: Site | None, root: Root | None) -> None:
        """The first operation that gave a NaN or an infinity, in this forward or in one like it."""
        note = self._incidents.note
        module = None if root is None else root.module()
        if root is None or module is None:
            note("not-finite-loss", site, value=value)
            return
        broken = [
            n for n, p in module.named_parameters() if not bool(here(p.detach()).isfinite().all())
        ]
        if broken:
            note("not-finite-weights", site, value=value, parameters=broken[:3], model=root.name)
            return
        given = [t for _, t in tensors(root.inputs) if t.is_floating_point()] if root.inputs else []
        if not all(bool(t.detach().isfinite().all()) for t in given):
            note("not-finite-input", root.site, value=value, model=root.name)
            return
        found, is_finite = _run_again(module, root, origin_in) or (None, True)
        if is_finite:
            found = self._origin_behind(loss, site)
        if found is not None:
            self._broke(found, None if is_finite else root.name)
        elif is_finite:
            note("not-finite-loss", site, value=value, model=root.name)
        else:
            note("not-finite-output", root.site, value=value, model=root.name)

    def _origin_behind(self, loss: Tensor, site: Site | None) -> Origin | None:
        """The operation between the model's result, which is finite, and the loss."""
        found = self._expressions.origin(backward=False)
        if found is None and not self._pace.is_recording:
            with contextlib.suppress(RuntimeError):  # what was kept may have been written over
                found = self._expressions.origin_in_graph(loss, self._ended)
            if found is not None and found.site is None:
                found = replace(found, site=site)
        return found

    # ------------------------------------------------------------------ gradients

    def look_at_gradients(self, known: KnownOptimizer, parameters: list[Tensor]) -> None:
        """A step is about to make weights NaN, for good, if their gradients are."""
        if not self.is_sound:
            return
        guard = None if known.guard is None else known.guard()
        few = parameters if known.steps < FIRST_STEPS else [] if guard is None else [guard]
        if not all(map(has_finite_gradient, few)):
            self.find_gradient_origin(parameters)

    def find_gradient_origin(self, parameters: list[Tensor]) -> None:
        """A gradient of these is not finite: look for the operation whose backward pass made it."""
        self.is_sound = False
        broken = {id(p): p for p in parameters if not has_finite_gradient(p)}
        origin = self._expressions.origin(backward=True)
        if origin is not None:
            self._broke(origin, None)
            return
        roots = [root for root in self._roots if not broken.keys().isdisjoint(root.names)]
        for root in roots:
            module = root.module()
            if module is not None:
                origin = _run_again(module, root, backward_origin_in)
                if origin is not None:
                    self._broke(origin, root.name)
                    return
        names = [root.names[key] for root in roots for key in broken if key in root.names]
        grads = [here(p.grad) for p in broken.values() if p.grad is not None]
        is_nan = any(bool(g.isnan().any()) for g in grads)
        self._incidents.note(
            "not-finite-gradient", self._backward_site, value="nan" if is_nan else "inf",
            parameters=names[:3], model=roots[0].name if roots else None,
        )  # fmt: skip

    def _broke(self, origin: Origin, model: str | None) -> None:
        self._incidents.note(
            "not-finite-result", origin.site, value=origin.value, operation=origin.operation,
            least=origin.least, largest=origin.largest, backward=origin.backward, model=model,
        )  # fmt: skip


def _run_again(module: nn.Module, root: Root, search: Callable[[nn.Module, Call], Any]) -> Any:
    """What the search finds in a forward like the last. Of several processes, one alone would wait."""
    if root.inputs is None or has_others():
        return None
    args, kwargs = root.inputs
    return search(module, Call(args, kwargs, root.autocast, root.random_state))
