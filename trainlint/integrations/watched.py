"""What the callbacks of all trainers share: a watch that lasts as long as the training, and its report."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Literal

from trainlint.running import is_first_of_several
from trainlint.watching import watch

if TYPE_CHECKING:
    from trainlint.records import Report


class Watched:
    """The watch of one callback. `begin` and `end` may come in any number; all is one report.

    Of several processes, the first one reports. `show` writes the report to stderr at the end.
    """

    def __init__(
        self, *, show: bool = True, on: Literal["error", "warning"] | None = None, **options: Any
    ) -> None:
        self._show = show
        self._options = {**options, "on": on}
        self._watch: watch | None = None
        self._is_open = False

    def begin(self, model: Any = None, optimizer: Any = None) -> None:
        """Watch this model, or all that are called, from here on."""
        if self._is_open:
            return
        if self._watch is None:
            self._watch = watch(model, optimizer, **self._options)
        self._watch.__enter__()
        self._is_open = True

    def end(self, error: BaseException | None = None) -> None:
        """Watch no more, and report."""
        if self._watch is None or not self._is_open:
            return
        self._is_open = False
        self._watch.__exit__(None if error is None else type(error), error, None)
        if self._show and is_first_of_several():
            print(self.report(), file=sys.stderr)

    def report(self) -> Report:
        """What was found so far. Raises `RuntimeError` before a training."""
        if self._watch is None:
            raise RuntimeError("no training was watched yet")
        return self._watch.report()
