"""The child's side of `trainlint run`: be the script, observed.

`main` with the arguments JOB SCRIPT ARGS... runs the script as `python SCRIPT ARGS...` would:
its own `__main__`, argv, path, output and exit status. Torch is observed from the moment at which the
script itself has imported it. What was found is written to the file that the job names, now and then and
at the end, also before `os._exit`; a process that is killed leaves the last of these.

The script is run by `exec` in a fresh `__main__`, since `runpy.run_path` clears the globals that threads
and `atexit` functions still use.
"""

from __future__ import annotations

import atexit
import builtins
import importlib.machinery
import importlib.util
import io
import os
import signal
import sys
import threading
import time
import types
import warnings
from contextlib import ExitStack, suppress
from pathlib import Path
from types import CodeType, TracebackType
from typing import TYPE_CHECKING, Any, Final

import msgspec

from trainlint.processes.lifetime import end_with_parent

if TYPE_CHECKING:
    from trainlint.data.facts import Data
    from trainlint.observe.report import RunReport
    from trainlint.observe.structure import StaticFindings
    from trainlint.rule import Settings
    from trainlint.subject import Analysis

_FIRST_REPORT: Final = 10.0
_BETWEEN_REPORTS: Final = 60.0


class RunJob(msgspec.Struct, frozen=True):
    """What to run, and how to judge it. `steps` ends the run after so many optimizer steps; 0 never."""

    label: str
    report: str
    module: bool = False
    steps: int = 0
    every: int = 0
    static: bool = True
    graphs: bool = False
    parent: int = 0
    rules: list[str] = []
    options: dict[str, dict[str, Any]] = {}


class Enough(SystemExit):
    """The steps that were asked for are done."""


class _Watch:
    """Observes this process from torch's import to its end."""

    def __init__(self, job: RunJob) -> None:
        self._job = job
        self._process = os.getpid()
        self._started = time.monotonic()
        self._next_report = self._started + _FIRST_REPORT
        self._stack = ExitStack()
        self._observer: Any = None
        self._is_over = False
        self._was_interrupted = False
        self._has_failed = False
        self._problem: Any = lambda: None
        self._failure: Exception | None = None
        self._static: StaticFindings | None = None
        self._data: Data | None = None

    def begin(self) -> None:
        """Torch is there: observe it. A failure to is ours, and none of the script's import."""
        try:
            self._observe()
        except Exception as error:
            self._stack.close()
            self._observer, self._failure = None, error

    def _observe(self) -> None:
        from trainlint.observe.hooks import observed
        from trainlint.observe.observer import TrainingObserver
        from trainlint.observe.pace import FREE
        from trainlint.sites import construction_sites, filling_sites

        self._observer = TrainingObserver(
            period=self._job.every,
            free=FREE,
            after_step=self._after_step,
            before_training=self._look_at_graph if self._job.static else None,
        )
        self._stack.enter_context(construction_sites())
        self._stack.enter_context(filling_sites())
        self._problem = self._stack.enter_context(observed(self._observer))

    def _look_at_graph(self, model: Any, args: Any, kwargs: Any, losses: Any) -> None:
        from trainlint.observe.structure import StaticFindings

        if self._static is None:
            self._static = StaticFindings(self._settings(), self._job.label)
        self._static.look_at(model, args, kwargs, losses)

    def _settings(self) -> Settings:
        from trainlint.registry import select_rules
        from trainlint.rule import Settings

        return Settings(select_rules(self._job.rules), self._job.options, graphs=self._job.graphs)

    def _after_step(self, steps: int) -> None:
        now = time.monotonic()
        if now > self._next_report:
            self._next_report = now + _BETWEEN_REPORTS
            with suppress(Exception):
                self.write(is_final=False)
        if 0 < self._job.steps <= steps:
            raise Enough(0)

    def fails(self, error: BaseException) -> None:
        """The script ends with this exception."""
        self._was_interrupted = isinstance(error, KeyboardInterrupt)
        self._has_failed = not (isinstance(error, SystemExit) and not error.code)
        if self._observer is not None:
            with suppress(Exception):
                self._observer.fails(error)

    def returns(self) -> None:
        """The script is through: read what it read. Whoever interrupts that, ends no more than that."""
        rules = self._settings().rules if self._observer is not None else []
        if not self._is_over and any("Data" in rule.facts.values() for rule in rules):
            with suppress(Exception, KeyboardInterrupt):
                self._data = self._observer.data(time.monotonic() - self._started)

    def end(self) -> None:
        """Stop observing, and write what was found. Not in a forked child, and once."""
        if self._is_over or os.getpid() != self._process:
            return
        self._is_over = True
        with suppress(Exception):
            self.write(is_final=True)
        if self._was_interrupted:
            # The interpreter's note of it, its exit status, is lost with the next `exec` of a text: ours.
            with suppress(KeyboardInterrupt):
                exec("raise KeyboardInterrupt")

    def write(self, *, is_final: bool) -> None:
        path = Path(self._job.report)
        beside = path.with_suffix(".new")
        beside.write_bytes(msgspec.json.encode(self._report(is_final=is_final)))
        beside.replace(path)
        if is_final:
            self._stack.close()

    def _report(self, *, is_final: bool) -> RunReport:
        from trainlint.observe.report import RunReport
        from trainlint.records import TargetResult

        failure = self._failure
        if self._observer is not None:
            try:
                analysis = self._judged()
            except Exception as error:
                failure = error
            else:
                return RunReport(
                    analysis.result,
                    [finding.reported for finding in analysis.findings],
                    [finding.starved for finding in analysis.findings],
                    is_final,
                )
        if failure is None:
            return RunReport(None, [], [], is_final)
        reason = f"it could not be watched: {type(failure).__name__}: {failure}"
        result = TargetResult(self._job.label, "error", reason, stages=["watched"])
        return RunReport(result, [], [], is_final)

    def _judged(self) -> Analysis:
        from trainlint.observe.judgement import judged

        problem = self._problem()
        notes = [f"watching stopped: {type(problem).__name__}: {problem}"] if problem else []
        trace = self._observer.trace()
        if not (trace.steps or trace.models or self._has_failed):
            notes.append(
                "only the main thread of this process is watched; processes that torchrun starts are where "
                "it starts `-m trainlint run SCRIPT`"
            )
        seconds = time.monotonic() - self._started
        return judged(
            trace,
            target=self._job.label,
            settings=self._settings(),
            seconds=seconds,
            notes=notes,
            static=self._static,
            data=self._data,
        )


class _AfterTorch:
    """A finder that starts the watch when `import torch` has finished, whoever imports it."""

    def __init__(self, watch: _Watch) -> None:
        self._watch = watch

    def find_spec(self, name: str, *_: Any) -> Any:
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: types.ModuleType) -> None:
            # Whoever has no numpy knows; what filters the script has set come first.
            warnings.filterwarnings(
                "ignore", "Failed to initialize NumPy", UserWarning, append=True
            )
            execute(module)
            del loader.exec_module
            if threading.current_thread() is threading.main_thread():
                self._watch.begin()

        loader.exec_module = exec_module
        return spec


def _main_module() -> types.ModuleType:
    main = types.ModuleType("__main__")
    # An imported module has the dictionary of builtins instead.
    main.__dict__.update(__builtins__=builtins, __annotations__={})
    sys.modules["__main__"] = main
    return main


def _run_file(name: str) -> None:
    path = name
    if Path(path).is_dir():
        sys.path[0] = path
        path = os.path.join(path, "__main__.py")  # noqa: PTH118
    else:
        sys.path[0] = os.path.dirname(os.path.realpath(path))  # noqa: PTH120
    with io.open_code(os.path.abspath(path)) as file:  # noqa: PTH100
        source = file.read()
    path = os.path.abspath(path)  # noqa: PTH100
    main = _main_module()
    main.__dict__.update(
        __file__=path,
        __cached__=None,
        __spec__=None,
        __loader__=importlib.machinery.SourceFileLoader("__main__", path),
    )
    exec(compile(source, path, "exec", dont_inherit=True), main.__dict__)


def _run_module(name: str) -> None:
    import runpy

    sys.path[0] = os.getcwd()  # noqa: PTH109
    _main_module()
    run: Any = vars(runpy)["_run_module_as_main"]
    run(name, alter_argv=True)


_OWN_DIRECTORY: Final = str(Path(__file__).parent.parent) + os.sep


def _without_our_frames() -> None:
    """Let the interpreter print the exception under way as if nobody had stood around the script."""
    hook = sys.excepthook

    def strip(kind: Any, error: Any, _: Any) -> None:
        told: BaseException | None = error
        seen: set[int] = set()
        while told is not None and id(told) not in seen:
            seen.add(id(told))
            told.__traceback__ = _of_others(told.__traceback__)
            told = told.__cause__ or told.__context__
        hook(kind, error, error.__traceback__)

    sys.excepthook = strip


def _of_others(trace: TracebackType | None) -> TracebackType | None:
    """A traceback without what stands between the script and torch because the script is watched."""
    while trace is not None and _is_ours(trace.tb_frame.f_code):
        trace = trace.tb_next
    step = trace
    while step is not None:
        while step.tb_next is not None and _is_ours(step.tb_next.tb_frame.f_code):
            step.tb_next = step.tb_next.tb_next
        step = step.tb_next
    return trace


def _is_ours(code: CodeType) -> bool:
    name = code.co_filename
    is_mode = code.co_name == "handle_torch_function" and name.endswith("overrides.py")
    return is_mode or name == "<string>" or "runpy" in name or name.startswith(_OWN_DIRECTORY)


def main() -> None:
    """Be the script. The arguments are the job, and then what `sys.argv` shall be."""
    argv = sys.argv[1:]
    job = msgspec.json.decode(argv[0], type=RunJob)
    # Whoever kills trainlint means the script.
    end_with_parent(signal.SIGKILL)
    if os.getppid() != job.parent:
        os._exit(1)  # it died before we asked to be told
    watch = _Watch(job)
    sys.argv[:] = argv[1:]
    atexit.register(watch.end)  # the first to be registered is the last to run
    leave = os._exit

    def exit_now(status: int) -> None:
        watch.end()
        leave(status)

    os._exit = exit_now  # type: ignore[assignment]
    sys.meta_path.insert(0, _AfterTorch(watch))
    try:
        (_run_module if job.module else _run_file)(argv[1])
        watch.returns()
    except BaseException as error:
        if isinstance(error, SystemExit) and not error.code:
            watch.returns()
        watch.fails(error)
        _without_our_frames()
        raise
