"""The `DataLoader`s of a training loop, and when passes over them begin."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any, Final

from trainlint.observe.trace import LoaderTrace
from trainlint.sites import Site

MOST_LOADERS: Final = 64
MOST_PASSES: Final = 4096


@dataclass
class KnownLoader:
    """A `DataLoader`, and the steps that had been made when passes over it began."""

    held: weakref.ref[Any]
    site: Site | None
    sampler: str
    passes: list[int] = field(default_factory=list)


class Loaders:
    """Those of a loop in the order in which they were made; `latest` is the place of the last one read."""

    def __init__(self) -> None:
        self._known: list[KnownLoader] = []
        self.latest: int | None = None

    def made(self, loader: Any, site: Site | None) -> None:
        """One was constructed."""
        if len(self._known) < MOST_LOADERS:
            sampler = type(getattr(loader, "sampler", None)).__name__
            self._known.append(KnownLoader(weakref.ref(loader), site, sampler))

    def passes(self, loader: Any, step: int, site: Site | None) -> KnownLoader | None:
        """A pass over one begins, at `site`. What is known of it, unless there are too many."""
        places = (place for place, known in enumerate(self._known) if known.held() is loader)
        self.latest = next(places, None)
        if self.latest is None and len(self._known) < MOST_LOADERS:  # made before the watch
            self.latest = len(self._known)
            self.made(loader, site)
        if self.latest is None:
            return None
        known = self._known[self.latest]
        known.passes.append(step)
        if len(known.passes) > MOST_PASSES:
            del known.passes[1::2]
        return known

    def trace(self) -> list[LoaderTrace]:
        """What was seen of each."""
        return [LoaderTrace(each.site, each.sampler, list(each.passes)) for each in self._known]
