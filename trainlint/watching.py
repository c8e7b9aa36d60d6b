"""`trainlint.watch`: observe a training loop of one's own, from within."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from trainlint.config import Config
from trainlint.records import Report, ReportedFinding
from trainlint.registry import check_options, select_rules
from trainlint.rule import Settings

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from trainlint.observe.trace import Trace


class watch:  # noqa: N801 (reads as a statement: `with trainlint.watch(model):`)
    """Watch a training loop: `with trainlint.watch(model, optimizer) as w: ...`, then `w.report()`.

    `model` restricts what is looked at to this module (or several); without it, every module that is
    called from outside of others is. `optimizer` may be given where it exists already, so that it is
    named in the report. Every step is recorded at first, later so many that it costs about 5%; or
    each `every` steps.

    Nothing is raised into the loop. What is computed is the same as without, bit for bit. Raises
    `UsageError` for an unknown rule.
    """

    def __init__(
        self,
        model: nn.Module | Sequence[nn.Module] | None = None,
        optimizer: Optimizer | None = None,
        *,
        every: int = 0,
        select: Sequence[str] | None = None,
        ignore: Sequence[str] = (),
        options: Mapping[str, Mapping[str, Any]] | None = None,
        config: Config | None = None,
    ) -> None:
        from torch import nn

        from trainlint.observe.observer import TrainingObserver

        config = config or Config()
        self._options = {**config.rules, **(options or {})}
        check_options(self._options)
        selected = config.select if select is None else select
        self._rules = select_rules(selected, [*config.ignore, *ignore], config.extend_select)
        models = [model] if isinstance(model, nn.Module) else model
        self._observer = TrainingObserver(models, period=every)
        if optimizer is not None:
            self._observer.optimizer_made(optimizer, None)
        self._target = type(models[0]).__name__ if models else "training"
        self._stack = ExitStack()
        self._started = self._seconds = 0.0
        self._problem: BaseException | None = None

    def __enter__(self) -> Self:
        from trainlint.observe.hooks import observed

        self._started = time.monotonic()
        self._problem_of = self._stack.enter_context(observed(self._observer))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._problem = self._problem_of()
        if error is not None:
            with suppress(Exception):
                self._observer.fails(error)
        self._stack.close()
        self._seconds += time.monotonic() - self._started

    @property
    def trace(self) -> Trace:
        """What was recorded so far."""
        return self._observer.trace()

    @property
    def findings(self) -> list[ReportedFinding]:
        """What the rules say to it, the most severe first."""
        return self.report().findings

    def report(self) -> Report:
        """The findings on what was seen so far, as `trainlint.check` gives them."""
        from trainlint.api import report_on
        from trainlint.observe.judgement import judged

        notes = []
        if self._problem is not None:
            notes.append(f"watching stopped: {type(self._problem).__name__}: {self._problem}")
        settings = Settings(self._rules, self._options)
        analysis = judged(
            self.trace, target=self._target, settings=settings, seconds=self._seconds, notes=notes
        )
        pairs = [(finding.reported, finding.starved) for finding in analysis.findings]
        return report_on(pairs, [analysis.result], self._rules)
