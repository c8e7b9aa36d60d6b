"""From a trace to named figures for each recorded step, for TensorBoard, W&B and others. No torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from trainlint.errors import UsageError

if TYPE_CHECKING:
    from trainlint.observe.trace import ModelTrace, Series, Trace

# Called with the figures of one step, by name, and the number of the step.
Log = Callable[[dict[str, float], int], object]

_OF_PARAMETERS: Final = ("gradient", "update", "weight")
_OF_SITES: Final = ("rms", "zero", "saturated")


def scalars(trace: Trace, after: int = -1) -> Iterator[tuple[int, dict[str, float]]]:
    """(step, figures by name) of each step after `after` of which anything was recorded, in order.

    `loss` is that of the step's backward passes, in the mean; `learning_rate/0` that of the first group
    of the first optimizer, and so on; `gradient/NAME`, `update/NAME` and `weight/NAME` are norms of a
    parameter: of its gradient, of its last change over its own, and its own; `rms/PLACE`, `zero/PLACE` and
    `saturated/PLACE` are of an operation's result: its size, and the shares of it that are 0 or saturated.
    """
    figures: dict[int, dict[str, float]] = defaultdict(dict)

    def put(name: str, steps: Sequence[int], values: Series) -> None:
        for step, value in zip(steps, values, strict=True):
            if step > after and value is not None:
                figures[step][name] = value

    for name, steps, values in _series(trace):
        put(name, steps, values)
    rates = list(_rates(trace))
    for step in sorted(figures):
        # What they are is noted where they change.
        for name, changes in rates:
            known = [rate for start, rate in changes if start <= step]
            figures[step][name] = known[-1] if known else changes[0][1]
        yield step, figures[step]


def _series(trace: Trace) -> Iterator[tuple[str, Sequence[int], Series]]:
    totals: dict[int, list[float]] = defaultdict(list)
    recorded = set(trace.recorded)
    for step, value in trace.losses:
        if step in recorded:
            totals[step].append(value)
    yield "loss", list(totals), [sum(values) / len(values) for values in totals.values()]
    several = len(trace.trained) > 1
    for model in trace.trained:
        yield from _of_model(model, f"{model.name}." if several else "")


def _of_model(model: ModelTrace, prefix: str) -> Iterator[tuple[str, Sequence[int], Series]]:
    for parameter in model.parameters:
        for figure in _OF_PARAMETERS:
            yield f"{figure}/{prefix}{parameter.name}", parameter.steps, getattr(parameter, figure)
    for site in model.sites:
        for figure in _OF_SITES:
            yield f"{figure}/{prefix}{site.place}", site.steps, getattr(site, figure)


def _rates(trace: Trace) -> Iterator[tuple[str, list[tuple[int, float]]]]:
    number = 0
    for optimizer in trace.optimizers:
        for group in range(max((len(rates) for _, rates in optimizer.rates), default=0)):
            changes = [(s, rates[group]) for s, rates in optimizer.rates if group < len(rates)]
            yield f"learning_rate/{number}", changes
            number += 1


class Scribe:
    """Hands each recorded step to a log once. `log` may also be a `SummaryWriter` of TensorBoard.

    What the log raises ends the logging, and not the training: `problem` says what it was. Raises
    `UsageError` for what cannot be called.
    """

    def __init__(self, log: Any) -> None:
        self._write: Log = _into_writer(log) if hasattr(log, "add_scalar") else log
        if not callable(self._write):
            raise UsageError(
                f"log={type(log).__name__}: a function of (figures, step), or a SummaryWriter"
            )
        self._last = -1
        self.problem = ""

    def write(self, trace: Trace) -> None:
        """All that was recorded since the last time."""
        if self.problem:
            return
        for step, figures in scalars(trace, self._last):
            try:
                self._write(figures, step)
            except Exception as error:
                self.problem = f"not logged from step {step} on: {type(error).__name__}: {error}"
                return
            self._last = step


def _into_writer(writer: Any) -> Log:
    def write(figures: dict[str, float], step: int) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, step)

    return write
