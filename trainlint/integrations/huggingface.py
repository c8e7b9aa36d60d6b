"""The callback for Hugging Face's `Trainer`. Importing this imports transformers."""

from __future__ import annotations

import atexit
import weakref
from typing import TYPE_CHECKING, Any, Literal

from transformers import TrainerCallback

from trainlint.integrations.watched import Watched

if TYPE_CHECKING:
    from trainlint.records import Report


class TrainlintCallback(TrainerCallback):
    """Watches the training of a `Trainer`: `Trainer(..., callbacks=[TrainlintCallback()])`.

    At the end the report goes to stderr, unless `show` is False; `report()` gives it at any time. With `on`
    as "error" or "warning", `trainlint.TrainingStopped` ends a hopeless training. Other options are those
    of `trainlint.watch`. Where the training ends by an exception, the report comes at exit.
    """

    def __init__(
        self, *, show: bool = True, on: Literal["error", "warning"] | None = None, **options: Any
    ) -> None:
        self._watched = Watched(show=show, on=on, **options)

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Begin to watch the model that is trained."""
        self._watched.begin(given["model"], given.get("optimizer"))
        watched = weakref.ref(self._watched)  # no callback after an exception
        atexit.register(lambda: _end(watched()))

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Report."""
        self._watched.end()

    def report(self) -> Report:
        """What was found so far, as `trainlint.check` gives it. Raises `RuntimeError` before a training."""
        return self._watched.report()


def _end(watched: Watched | None) -> None:
    if watched is not None:
        watched.end()
