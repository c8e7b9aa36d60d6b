"""What went wrong in a training loop: each kind once at each place, counted."""

from __future__ import annotations

from typing import Any

from trainlint.observe.pace import Pace
from trainlint.observe.trace import Incident
from trainlint.sites import Site, place_key


class Incidents:
    """The incidents of a loop, in the order in which they first came."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._known: dict[tuple[str, Any], Incident] = {}

    def note(self, kind: str, site: Site | None, **facts: Any) -> None:
        """One more, at the step under way. The facts are those of the first."""
        key = (kind, place_key(site))
        before = self._known.get(key)
        if before is None:
            self._known[key] = Incident(kind, site, 1, self._pace.step, facts)
        else:
            self._known[key] = Incident(kind, site, before.count + 1, before.step, before.facts)

    def trace(self) -> list[Incident]:
        """All that came."""
        return list(self._known.values())
