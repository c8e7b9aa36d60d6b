"""Calls of `clip_grad_norm_` and its like: what they clip, how much, and whether they come in time."""

from __future__ import annotations

from typing import Any, Final

from torch import Tensor

from trainlint.observe.incidents import Incidents
from trainlint.observe.optimizers import Optimizers
from trainlint.observe.scaling import Scaling
from trainlint.observe.sharding import is_spread
from trainlint.observe.trace import ClipTrace
from trainlint.sites import Site, place_key

MOST_NORMS: Final = 4096
# A limit that is out of reach asks for the norm alone.
_OUT_OF_REACH: Final = 1e4


class Clipping:
    """The calls by place: where, the limit, the norms before, and the kinds of optimizers."""

    def __init__(self, optimizers: Optimizers, scaling: Scaling, incidents: Incidents) -> None:
        self._optimizers = optimizers
        self._scaling = scaling
        self._incidents = incidents
        self._calls: dict[Any, tuple[Site | None, float, list[Any], set[str]]] = {}

    def clips(self, parameters: list[Tensor], limit: float, norm: Any, site: Site | None) -> None:
        """After a call; `norm` is None where single values were clipped."""
        ids = {id(p) for p in parameters}
        owners = [
            known for known in self._optimizers if any(id(p) in ids for p in known.parameters())
        ]
        # Gradients that no backward pass made are set by hand: when, nobody knows.
        if owners and limit < _OUT_OF_REACH and all(
            known.steps and not known.pending and any(known.backwards) for known in owners
        ):  # fmt: skip
            self._incidents.note("clip-after-step", site, optimizer=owners[0].kind)
        for known in owners:
            if self._scaling.is_still_scaled(known):
                self._incidents.note("clipped-while-scaled", site, optimizer=known.kind)
        _, _, norms, kinds = self._calls.setdefault(place_key(site), (site, limit, [], set()))
        kinds.update(known.kind for known in owners)
        if isinstance(norm, Tensor) and is_spread(norm):
            return  # the norm of a part
        if norm is not None and len(norms) < MOST_NORMS:
            norms.append(norm.detach() if isinstance(norm, Tensor) else norm)

    def trace(self) -> list[ClipTrace]:
        """By what each multiplied the gradients."""
        return [
            ClipTrace(
                site,
                limit,
                len(norms),
                [min(1.0, limit / (float(norm) + 1e-6)) for norm in norms],
                sorted(kinds),
            )
            for site, limit, norms, kinds in self._calls.values()
        ]
