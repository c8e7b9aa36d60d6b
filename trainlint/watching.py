"""`trainlint.watch`: observe a training loop of one's own, from within."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from trainlint.choices import known_word, known_words, words
from trainlint.config import Config
from trainlint.errors import TrainingStopped
from trainlint.observe.scalars import Scribe
from trainlint.records import Report, ReportedFinding
from trainlint.registry import check_options, select_rules
from trainlint.rule import Confidence, Settings, Severity
from trainlint.running import is_first_of_several

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer
    from torch.utils.tensorboard import SummaryWriter

    from trainlint.data.facts import Data
    from trainlint.observe.scalars import Log
    from trainlint.observe.trace import Trace

_LOGGED_AFTER: Final = 100
STAGES: Final = ("static", "probe")


class watch:  # noqa: N801 (reads as a statement: `with trainlint.watch(model):`)
    """Watch a training loop: `with trainlint.watch(model, optimizer) as w: ...`, then `w.report()`.

    `model` restricts what is looked at to this module (or several); without it, every module that is
    called from outside of others is. `optimizer` may be given where it exists already, so that it is
    named in the report. Many steps are recorded for the first second that it costs, later so many
    that it costs about 5%; or each `every` steps.

    When the block ends, and was left by no exception, the datasets of the `DataLoader`s that it passed over
    are read, for a second or 5% of its time.

    `stages` are `static`, each model's graph just before its first step, for which its forward runs once
    more on tensors without values, and `probe`, the training itself; `("probe",)` leaves the first out.
    With `graphs`, the report holds those graphs, which an HTML report draws.

    Nothing is raised into the loop, unless `on` is "error" or "warning": then `TrainingStopped` leaves the
    optimizer's step as soon as there is a finding of that severity or a worse one that is certain, as
    judged after 5, 20, 50, 100, 200, 500, ... steps. What is computed is the same as without, bit for
    bit. `w.findings`, `w.report()` and `w.trace` tell of what was seen so far, at any time; a watch may be
    entered again, and goes on then. Raises `UsageError` for an unknown rule, stage or severity.

    `log` gets what is recorded: a function of (figures by name, step), or a `SummaryWriter` of TensorBoard;
    `trainlint.observe.scalars.scalars` has the names. So that nothing waits for the device, figures come
    about a hundred steps late; the last when the block ends. Of several processes, the first one logs.
    """

    def __init__(
        self,
        model: nn.Module | Sequence[nn.Module] | None = None,
        optimizer: Optimizer | None = None,
        *,
        every: int = 0,
        on: Literal["error", "warning"] | None = None,
        log: Log | SummaryWriter | None = None,
        stages: Sequence[str] = STAGES,
        select: Sequence[str] | None = None,
        ignore: Sequence[str] = (),
        options: Mapping[str, Mapping[str, Any]] | None = None,
        config: Config | None = None,
        graphs: bool = False,
    ) -> None:
        from torch import nn

        from trainlint.observe.observer import TrainingObserver
        from trainlint.observe.pace import FREE
        from trainlint.observe.roots import unwrapped
        from trainlint.observe.structure import StaticFindings

        stages = known_words(stages, STAGES, "stage")
        if on is not None:
            known_word(on, ("error", "warning"), "on")
        config = config or Config()
        options = {**config.rules, **(options or {})}
        check_options(options)
        selected = config.select if select is None else select
        rules = select_rules(selected, [*config.ignore, *words(ignore)], config.extend_select)
        self._settings = Settings(rules, options, graphs=graphs)
        models = [model] if isinstance(model, nn.Module) else model
        self._target = type(unwrapped(models[0])).__name__ if models else "training"
        self._static = StaticFindings(self._settings, self._target) if "static" in stages else None
        self._on = None if on is None else Severity(on)
        self._scribe = None if log is None else Scribe(log)
        self._observer = TrainingObserver(
            models,
            period=every,
            free=FREE,
            after_step=None if on is None and log is None else self._after_step,
            before_training=None if self._static is None else self._static.look_at,
        )
        if optimizer is not None:
            self._observer.optimizer_made(optimizer, None)
        self._stack = ExitStack()
        self._depth = 0
        self._started = self._seconds = 0.0
        self._problem: BaseException | None = None
        self._data: Data | None = None

    def __enter__(self) -> Self:
        from trainlint.observe.hooks import observed

        self._depth += 1
        if self._depth == 1:
            self._started = time.monotonic()
            self._observer.resumes()
            self._problem_of = self._stack.enter_context(observed(self._observer))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._depth -= 1
        if self._depth:
            return
        self._problem = self._problem or self._problem_of()
        if error is not None and not isinstance(error, TrainingStopped):
            with suppress(Exception):
                self._observer.fails(error)
        self._stack.close()
        self._observer.pauses()
        self._log()
        self._seconds += time.monotonic() - self._started
        if error is None and any("Data" in rule.facts.values() for rule in self._settings.rules):
            self._data = self._observer.data(self._seconds)

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
        from trainlint.observe.judgement import judged
        from trainlint.ranking import report_on

        running = time.monotonic() - self._started if self._depth else 0.0
        problem = self._problem or (self._problem_of() if self._depth else None)
        notes = []
        if problem is not None:
            notes.append(f"watching stopped: {type(problem).__name__}: {problem}")
        if self._scribe is not None and self._scribe.problem:
            notes.append(self._scribe.problem)
        analysis = judged(
            self.trace,
            target=self._target,
            settings=self._settings,
            seconds=self._seconds + running,
            notes=notes,
            static=self._static,
            data=self._data,
        )
        pairs = [(finding.reported, finding.starved) for finding in analysis.findings]
        return report_on(pairs, [analysis.result], self._settings.rules)

    def _after_step(self, steps: int) -> None:
        if steps % _LOGGED_AFTER == 0:
            self._log()
        self._may_stop(steps)

    def _log(self) -> None:
        if self._scribe is not None and is_first_of_several():
            with suppress(Exception):  # ours: the loop shall not hear of it
                self._scribe.write(self.trace)

    def _may_stop(self, steps: int) -> None:
        if self._on is None or not _is_judged_at(steps):
            return
        try:
            findings = self.findings
        except Exception:  # ours: the loop shall not hear of it
            return
        for finding in findings:
            if (
                Severity(finding.severity).rank <= self._on.rank
                and finding.confidence == Confidence.CERTAIN
            ):
                raise TrainingStopped(finding, steps)


def _is_judged_at(steps: int) -> bool:
    """At 5, 20 and 50, then at 1, 2 and 5 times the powers of ten."""
    if steps < 100:
        return steps in (5, 20, 50)
    power = 10 ** (len(str(steps)) - 1)
    return steps % power == 0 and steps // power in (1, 2, 5)
