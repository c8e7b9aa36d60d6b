"""The pytest plugin: `pytest --trainlint` checks model files as tests, and a fixture has the assertions.

It is loaded in every pytest run where trainlint is installed, so it imports neither torch nor the
analysis before an item of its own is run.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from trainlint.records import Report, ReportedFinding

_MARK: Final = "trainlint"
_FOUND: Final = "trainlint"  # user properties of a report: (name, [severity, code, place, message])
_LEVELS: Final = ("error", "warning", "info", "never")
_KEPT: Final = pytest.StashKey[bool]()


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
        "markers", f"{_MARK}: a model that trainlint checks (pytest --trainlint)"
    )
    if config.getoption("--trainlint"):
        from trainlint.errors import TrainlintError

        try:
            _validate(config)
        except TrainlintError as error:
            raise pytest.UsageError(f"trainlint: {error}") from None


def _validate(config: pytest.Config) -> None:
    import difflib

    from trainlint.catalogue import undeclared
    from trainlint.errors import UsageError

    settings = _settings(config)
    level = config.getini("trainlint_fail_on")
    if level and level not in _LEVELS:
        near = difflib.get_close_matches(level, _LEVELS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(
            f"trainlint_fail_on must be one of {', '.join(_LEVELS)}, not {level!r}{hint}"
        )
    select, ignore = config.getini("trainlint_select"), config.getini("trainlint_ignore")
    own = [*([] if select else settings.select), *settings.extend_select, *settings.ignore]
    asked = {"trainlint_select": select, "trainlint_ignore": ignore, "[tool.trainlint]": own}
    if settings.rules or undeclared(each for selectors in asked.values() for each in selectors):
        from trainlint.registry import check_options, select_rules

        for place, selectors in asked.items():
            try:
                select_rules(selectors)
            except UsageError as error:
                raise UsageError(f"{place}: {error}") from None
        check_options(settings.rules)


@pytest.fixture(scope="session")
def trainlint() -> Any:
    """The assertions of `trainlint.testing`: `trainlint.assert_clean(model, inputs)`."""
    from trainlint import testing

    return testing


# ---------------------------------------------------------------------- collection


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> ModelFile | None:
    """A Python file whose syntax shows a model."""
    if not parent.config.getoption("--trainlint") or file_path.suffix != ".py":
        return None
    if not _mentions_a_framework(file_path, parent.config):
        return None
    return ModelFile.from_parent(parent, path=file_path)


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


def _mentions_a_framework(path: Path, config: pytest.Config) -> bool:
    """Whether it may hold models: no test or helper of tests, unless it was named itself."""
    from trainlint.targets.discovery import is_searched, is_test_file, mentions_framework

    inside = path.relative_to(config.rootpath) if path.is_relative_to(config.rootpath) else path
    is_meant = not is_test_file(path) if _is_named(path, config) else is_searched(inside)
    return is_meant and mentions_framework(path)


def _is_named(path: Path, config: pytest.Config) -> bool:
    """Whether pytest was given this very file, and not a directory that it lies in."""
    return any(Path(arg.partition("::")[0]).resolve() == path.resolve() for arg in config.args)


def _settings(config: pytest.Config) -> Any:
    from trainlint.config import load_config

    return load_config(start=config.rootpath)


class ModelFile(pytest.File):
    """A file with models. All of them are checked at once, when the first is run."""

    _report: Report | None = None

    def collect(self) -> Iterator[Models]:
        """One group of items, so that `net.py::trainlint::Net` names a model."""
        yield Models.from_parent(self, name=_MARK)

    def names(self) -> list[str]:
        """The models that the syntax tree shows; `file` alone where it does not parse."""
        import warnings

        from trainlint.fixes.text import SourceText
        from trainlint.targets.discovery import discover

        text = SourceText.read(str(self.path))
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # of the user's file, which pytest did not mean to import
            if text is None or text.tree is None:
                return ["file"]
            names = [each.name for each in discover(text).candidates if each.likely]
        return list(dict.fromkeys(names))

    def report(self) -> Report:
        """The check of this file."""
        if self._report is None:
            import msgspec

            from trainlint.api import check
            from trainlint.rule import STAGES

            config = self.config
            _keep_a_process(config)
            settings = msgspec.structs.replace(_settings(config), jobs=1)
            select = config.getini("trainlint_select")
            self._report = check(
                os.path.relpath(self.path),
                select=select or None,
                ignore=config.getini("trainlint_ignore"),
                stages=STAGES[:1] if config.getoption("--trainlint-static") else STAGES,
                # What cannot be made is then no error: a building block of others.
                scan=not _is_named(self.path, config),
                config=settings,
            )
        return self._report


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
        self.add_marker(_MARK)

    def runtest(self) -> None:
        """Fail for findings at or above the limit, skip what cannot be constructed."""
        from trainlint.records import Report
        from trainlint.report.text import as_text

        parent = self.getparent(ModelFile)
        assert parent is not None
        whole = parent.report()
        own = [t for t in whole.targets if t.target.partition("::")[2] == self.name]
        if not own:
            own = [t for t in whole.targets if "::" not in t.target]
            if not own:
                raise _skipped("it is a part of another model, or was not made")
        names = {target.target for target in own}
        found = [each for each in whole.findings if each.target in names]
        for each in found:
            self.user_properties.append((_FOUND, f"{each.severity} {each.code} {_place(each)}"))
        for target in own:
            if target.status == "error":
                raise ModelFailed(f"{target.target} could not be checked: {target.reason}")
        if all(target.status == "skipped" for target in own):
            raise _skipped(own[0].reason or "skipped")
        report = Report(found, own)
        limit = self._limit()
        if report.fails(limit):
            raise ModelFailed(as_text(report, show_info=limit == "info"))

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
        return self.path, 0, f"{_MARK} {self.name}"


def _skipped(reason: str) -> BaseException:
    """To be raised: the place of it is the model's file, and not this one."""
    return pytest.skip.Exception(reason, _use_item_location=True)


def _place(finding: ReportedFinding) -> str:
    if finding.filename is None or finding.location is None:
        return finding.target
    return f"{finding.filename}:{finding.location.row}"


# ---------------------------------------------------------------------- the summary


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many findings there were, also those that failed nothing; under xdist on the controller only."""
    found = [
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "call"
        for name, value in _properties(report)
        if name == _FOUND
    ]
    if not found:
        return
    counts = {level: sum(text.startswith(f"{level} ") for text in found) for level in _LEVELS[:3]}
    said = ", ".join(f"{count} {level}" for level, count in counts.items() if count)
    terminalreporter.section("trainlint", sep="-")
    terminalreporter.write_line(said)
    for text in dict.fromkeys(found):
        if not text.startswith("info "):
            terminalreporter.write_line(f"  {text}")


def _properties(report: Any) -> Sequence[tuple[str, str]]:
    return getattr(report, "user_properties", ())
