"""The callback for Lightning. Importing this imports lightning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch import Callback

from trainlint.integrations.watched import Watched

if TYPE_CHECKING:
    from trainlint.records import Report


class TrainlintCallback(Callback):
    """Watches `trainer.fit`: `Trainer(..., callbacks=[TrainlintCallback()])`.

    At the end, also by an exception, the report goes to stderr, unless `show` is False; `report()` gives
    it at any time. With `on` as "error" or "warning", `trainlint.TrainingStopped` ends a hopeless training.
    Other options are those of `trainlint.watch`.
    """

    def __init__(
        self, *, show: bool = True, on: Literal["error", "warning"] | None = None, **options: Any
    ) -> None:
        super().__init__()
        self._watched = Watched(show=show, on=on, **options)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to watch whatever models the module calls."""
        self._watched.begin()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Report."""
        self._watched.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Report on what ended by an exception."""
        self._watched.end(exception)

    def report(self) -> Report:
        """What was found so far, as `trainlint.check` gives it. Raises `RuntimeError` before a training."""
        return self._watched.report()
