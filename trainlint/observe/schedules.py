"""The learning rate schedulers of a training loop: when they step, beside the steps of the optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from trainlint.observe.incidents import Incidents
from trainlint.observe.optimizers import Optimizers
from trainlint.observe.pace import Pace
from trainlint.observe.roots import KnownOptimizer
from trainlint.observe.scaling import Scaling
from trainlint.observe.trace import ScheduleTrace
from trainlint.sites import Site, place_key

MOST_SCHEDULES: Final = 64


@dataclass
class _Schedule:
    """A scheduler that is stepped at one place; `steps` are those of its optimizer, by its last."""

    kind: str
    optimizer: KnownOptimizer | None
    site: Site | None = None
    calls: int = 0
    steps: int = 0
    length: int | None = None


class Schedules:
    """Schedulers by their kinds, optimizers and places in the code."""

    def __init__(
        self, optimizers: Optimizers, scaling: Scaling, pace: Pace, incidents: Incidents
    ) -> None:
        self._optimizers = optimizers
        self._scaling = scaling
        self._pace = pace
        self._incidents = incidents
        self._known: dict[Any, _Schedule] = {}

    def steps(self, scheduler: Any, site: Site | None) -> None:
        """One has stepped."""
        kind = type(scheduler).__name__
        known = self._optimizers.known.get(id(getattr(scheduler, "optimizer", None)))
        # A scaler leaves out steps, the first ones most of all.
        if known is not None and known.steps == 0 and not self._scaling.was_used:
            self._incidents.note("scheduled-before-step", site, scheduler=kind)
        key = (kind, id(known), place_key(site))
        schedule = self._known.get(key)
        if schedule is None:
            if len(self._known) >= MOST_SCHEDULES:
                return
            schedule = self._known[key] = _Schedule(kind, known)
        length = getattr(scheduler, "total_steps", None) or getattr(scheduler, "T_max", None)
        schedule.site = site
        schedule.calls += 1
        schedule.steps = self._pace.step if known is None else known.steps
        schedule.length = length if isinstance(length, int) else None

    def trace(self) -> list[ScheduleTrace]:
        """What was seen of each."""
        return [
            ScheduleTrace(
                each.kind,
                each.site,
                self._optimizers.place_of(each.optimizer),
                each.calls,
                each.steps,
                each.length,
            )
            for each in self._known.values()
        ]
