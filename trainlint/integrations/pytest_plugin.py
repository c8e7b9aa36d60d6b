"""The pytest plugin: `pytest --trainlint` checks model files as tests, and a fixture has the assertions.

It is loaded in every pytest run where trainlint is installed, so it imports neither torch nor the
analysis before an item of its own is run.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import pytest

if TYPE_CHECKING:
    from trainlint.baseline import Baseline, Entry
    from trainlint.records import Report, ReportedFinding

# Our items' mark, and the part of their names behind the file: `net.py::trainlint::Net`.
MARK: Final = "trainlint"
# User properties of a test's report, which cross from pytest-xdist's processes, and stand in JUnit's XML.
_FOUND: Final = "trainlint"  # severity, code, place
_KNOWN: Final = "trainlint-baseline"  # the same of a finding that the baseline leaves out
_GONE: Final = "trainlint-no-longer"  # target and code of an entry of the baseline
_LEVELS: Final = ("error", "warning", "info", "never")
_KEPT: Final = pytest.StashKey[bool]()
_BASELINE: Final = pytest.StashKey["Baseline | None"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options `--trainlint` and those that belong to it."""
    group = parser.getgroup("trainlint", "training linter for PyTorch models")
    group.addoption(
        "--trainlint", action="store_true",
        help="check the models in the files that are collected, and in [tool.trainlint] targets",
    )  # fmt: skip
    group.addoption(
        "--trainlint-fail-on", choices=_LEVELS, default=None,
        help="least severity that fails a model (default: fail-on of [tool.trainlint], else error)",
    )  # fmt: skip
    group.addoption(
        "--trainlint-static", action="store_true", help="check the graph only, as --static does"
    )
    parser.addini("trainlint_fail_on", "least severity that fails a model", default="")
    parser.addini("trainlint_select", "rules to check: codes, names, families", type="args")
    parser.addini("trainlint_ignore", "rules not to check", type="args")


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark that each item has. Raises `UsageError` for settings that make no sense."""
    config.addinivalue_line(
        "markers", f"{MARK}: a model that trainlint checks (pytest --trainlint)"
    )
    if config.getoption("--trainlint"):
        from trainlint.errors import TrainlintError

        try:
            _validate(config)
        except TrainlintError as error:
            raise pytest.UsageError(f"trainlint: {error}") from None


def _validate(config: pytest.Config) -> None:
    from trainlint.catalogue import undeclared
    from trainlint.choices import known_word
    from trainlint.errors import UsageError

    settings = _settings(config)
    level = config.getini("trainlint_fail_on")
    if level:
        known_word(level, _LEVELS, "trainlint_fail_on")
    select, ignore = config.getini("trainlint_select"), config.getini("trainlint_ignore")
    own = [*([] if select else settings.select), *settings.extend_select, *settings.ignore]
    asked = {"trainlint_select": select, "trainlint_ignore": ignore, "[tool.trainlint]": own}
    named = [*asked.values(), *settings.per_file_ignores.values()]
    if settings.rules or undeclared(each for selectors in named for each in selectors):
        from trainlint.registry import check_options, ignored_in, select_rules

        for place, selectors in asked.items():
            try:
                select_rules(selectors)
            except UsageError as error:
                raise UsageError(f"{place}: {error}") from None
        check_options(settings.rules)
        ignored_in(settings.per_file_ignores)
    if settings.baseline is not None:
        _baseline(config)


def _is_excluded(path: Path, parent: pytest.Collector) -> bool:
    """Whether the configuration passes over a file that was not named itself."""
    from trainlint.patterns import excludes

    is_named = parent.session.isinitpath(path)
    return not is_named and excludes(path, _settings(parent.config).exclude)


@pytest.fixture(scope="session")
def trainlint() -> Any:
    """The assertions of `trainlint.testing`: `trainlint.assert_clean(model, inputs)`."""
    from trainlint import testing

    return testing


# ---------------------------------------------------------------------- collection


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> ModelFile | None:
    """A Python file that may hold models, beside what pytest itself makes of it."""
    config = parent.config
    if not config.getoption("--trainlint") or file_path.suffix != ".py":
        return None
    from trainlint.integrations.pytest_files import is_ours_alone, may_hold_models

    if parent.session.isinitpath(file_path) and is_ours_alone(file_path, parent):
        return None  # pytest asks for a module of it, see below
    if not may_hold_models(file_path, parent) or _is_excluded(file_path, parent):
        return None
    return ModelFile.made(file_path, parent)


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> ModelFile | None:
    """In place of pytest's own module, which imports the file here, where a training would run to its end.

    pytest takes any file that is named for tests, whatever `python_files` says.
    """
    if not parent.config.getoption("--trainlint"):
        return None
    from trainlint.integrations.pytest_files import is_ours_alone, tests_left_out

    if not is_ours_alone(module_path, parent):
        return None
    tests = tests_left_out(module_path, parent.config)
    if tests:
        name = os.path.relpath(module_path)
        parent.warn(
            pytest.PytestCollectionWarning(
                f"{name} matches no pattern of python_files: with --trainlint its models are checked and "
                f"its tests are not run; `pytest {name}::{tests[0]}` runs one of them"
            )
        )
    return ModelFile.made(module_path, parent)


def pytest_collection(session: pytest.Session) -> None:
    """With `--trainlint` and no paths of its own, the targets of [tool.trainlint] are collected, too."""
    config = session.config
    if not config.getoption("--trainlint"):
        return
    source = config.args_source
    if source is pytest.Config.ArgsSource.ARGS:
        return
    known = {str(Path(arg).resolve()) for arg in config.args}
    for target in _settings(config).targets:
        path = Path(target.partition("::")[0]).resolve()
        if path.exists() and not any(path.is_relative_to(each) for each in known):
            config.args.append(str(path))


def _settings(config: pytest.Config) -> Any:
    from trainlint.config import load_config

    return load_config(start=config.rootpath)


def _baseline(config: pytest.Config) -> Baseline | None:
    """That of `[tool.trainlint]`, read once. Raises `UsageError` where it cannot be read."""
    if _BASELINE not in config.stash:
        from trainlint.baseline import read_baseline

        name = _settings(config).baseline
        config.stash[_BASELINE] = None if name is None else read_baseline(Path(name))
    return config.stash[_BASELINE]


class ModelFile(pytest.File):
    """A file with models. All of them are checked at once, when the first is run."""

    _checked: Checked | None = None

    @classmethod
    def made(cls, path: Path, parent: pytest.Collector) -> Self:
        """Below the session: a `Package` would import its `__init__.py` before the file is checked."""
        made: Self = cls.from_parent(parent.session, path=path)
        return made

    def collect(self) -> Iterator[Models]:
        """One group of items, so that `net.py::trainlint::Net` names a model."""
        yield Models.from_parent(self, name=MARK)

    def names(self) -> list[str]:
        """The models that the syntax tree shows; `file` alone where it does not parse."""
        from trainlint.integrations.pytest_files import parsed
        from trainlint.targets.discovery import discover

        text = parsed(self.path)
        if text is None:
            return ["file"]
        return list(dict.fromkeys(each.name for each in discover(text).candidates if each.likely))

    def checked(self) -> Checked:
        """The check of this file."""
        if self._checked is None:
            import msgspec

            from trainlint.api import check
            from trainlint.rule import STAGES

            config = self.config
            _keep_a_process(config)
            # What cannot be constructed is a skipped test: one file does not tell of whom it is a part.
            settings = msgspec.structs.replace(_settings(config), jobs=1, fail_on_skipped=False)
            select = config.getini("trainlint_select")
            whole = check(
                os.path.relpath(self.path),
                select=select or None,
                ignore=config.getini("trainlint_ignore"),
                stages=STAGES[:1] if config.getoption("--trainlint-static") else STAGES,
                # What cannot be made is then no error: a building block of others.
                scan=not self.session.isinitpath(self.path),
                config=settings,
            )
            self._checked = _judged(whole, _baseline(config))
        return self._checked


class Checked(NamedTuple):
    """The check of a file, what a baseline leaves out of it, and entries of that which are gone."""

    report: Report
    known: Sequence[ReportedFinding] = ()
    gone: Sequence[Entry] = ()


def _judged(whole: Report, baseline: Baseline | None) -> Checked:
    if baseline is None:
        return Checked(whole)
    from trainlint.baseline import without

    compared = without(whole, baseline)
    kept = {finding.fingerprint for finding in compared.report.findings}
    known = [finding for finding in whole.findings if finding.fingerprint not in kept]
    return Checked(compared.report, known, compared.gone)


def _keep_a_process(config: pytest.Config) -> None:
    """All files of this pytest process are checked in forks of one that has imported torch."""
    if _KEPT in config.stash:
        return
    from trainlint.processes.zygotes import kept

    stack = contextlib.ExitStack()
    stack.enter_context(kept())
    config.add_cleanup(stack.close)
    config.stash[_KEPT] = True


class Models(pytest.Collector):
    """The models of one file."""

    def collect(self) -> Iterator[ModelItem]:
        """An item for each."""
        parent = self.parent
        assert isinstance(parent, ModelFile)
        for name in parent.names():
            yield ModelItem.from_parent(self, name=name)


class ModelFailed(Exception):  # noqa: N818 (it is a test's failure)
    """A model has findings that fail it; the text is the report."""


class ModelItem(pytest.Item):
    """One model: `net.py::trainlint::Net`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_marker(MARK)

    def runtest(self) -> None:
        """Fail for findings at or above the limit, skip what cannot be constructed."""
        from trainlint.fingerprints import in_repository
        from trainlint.records import Report
        from trainlint.report.text import as_text

        parent = self.getparent(ModelFile)
        assert parent is not None
        whole, known, gone = parent.checked()
        own = [t for t in whole.targets if t.target.partition("::")[2] == self.name]
        if not own:
            own = [t for t in whole.targets if "::" not in t.target]
            if not own:
                raise _skipped("it is a part of another model, or was not made")
        names = {target.target for target in own}
        found = [each for each in whole.findings if each.target in names]
        self._record(_FOUND, found)
        self._record(_KNOWN, [each for each in known if each.target in names])
        stored = {in_repository(name) for name in names}
        lost = [f"{each.target}: {each.code}" for each in gone if each.target in stored]
        self.user_properties += [(_GONE, text) for text in lost]
        for target in own:
            if target.status == "error":
                raise ModelFailed(f"{target.target} could not be checked: {target.reason}")
        if all(target.status == "skipped" for target in own):
            raise _skipped(own[0].reason or "skipped")
        report = Report(found, own)
        limit = self._limit()
        if report.fails(limit):
            raise ModelFailed(as_text(report, show_info=limit == "info"))

    def _record(self, name: str, findings: Sequence[ReportedFinding]) -> None:
        self.user_properties += [
            (name, f"{each.severity} {each.code} {_place(each)}") for each in findings
        ]

    def _limit(self) -> str:
        config = self.config
        given = config.getoption("--trainlint-fail-on") or config.getini("trainlint_fail_on")
        return str(given or _settings(config).fail_on)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The report instead of a traceback."""
        if isinstance(excinfo.value, ModelFailed):
            return str(excinfo.value)
        from trainlint.errors import TrainlintError

        if isinstance(excinfo.value, TrainlintError):
            return f"trainlint: error: {excinfo.value}"
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int, str]:
        """The file, and `trainlint Net`."""
        return self.path, 0, f"{MARK} {self.name}"


def _skipped(reason: str) -> BaseException:
    """To be raised: the place of it is the model's file, and not this one."""
    return pytest.skip.Exception(reason, _use_item_location=True)


def _place(finding: ReportedFinding) -> str:
    if finding.filename is None or finding.location is None:
        return finding.target
    return f"{finding.filename}:{finding.location.row}"


# ---------------------------------------------------------------------- the summary


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """How many findings there were, also those that failed nothing; under xdist on the controller only."""
    found, known, gone = (_said(terminalreporter, name) for name in (_FOUND, _KNOWN, _GONE))
    if not (found or known or gone):
        return
    from trainlint.baseline import remarks

    terminalreporter.section("trainlint", sep="-")
    if found:
        levels = {level: sum(text.startswith(f"{level} ") for text in found) for level in _LEVELS}
        parts = [_counted(count, level) for level, count in levels.items() if count]
        terminalreporter.write_line(", ".join(parts))
    for text in dict.fromkeys(found):
        if not text.startswith("info "):
            terminalreporter.write_line(f"  {text}")
    for text in remarks(_settings(config).baseline or "", len(known), dict.fromkeys(gone)):
        terminalreporter.write_line(text)


def _counted(count: int, level: str) -> str:
    return f"{count} {level}" + ("" if count == 1 or level == "info" else "s")


def _said(terminalreporter: Any, wanted: str) -> list[str]:
    return [
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "call"
        for name, value in getattr(report, "user_properties", ())
        if name == wanted
    ]
