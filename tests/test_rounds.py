"""`check --watch`: what starts another check, what does not, and how it ends. Real files, real events."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import COMMAND

from trainlint import rounds
from trainlint.cli import main
from trainlint.errors import TrainlintError, UsageError
from trainlint.files import Options, file_check
from trainlint.fixes.fixing import Changed
from trainlint.processes.zygotes import Abandoned, abandoned_if
from trainlint.rounds import Earlier, Round, check_on_changes
from trainlint.targets.scope import Contents, differing, scope_of

SOUND = """\
import torch
from torch import nn
from width import WIDTH

print(__file__, file=open("log", "a"))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, WIDTH, 3)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))
"""


def in_place(path: Path, text: str) -> None:
    path.write_text(text)


def renamed(path: Path, text: str) -> None:
    other = path.with_name(f".{path.name}.swp~")
    other.write_text(text)
    other.replace(path)


def deleted_and_created(path: Path, text: str) -> None:
    path.unlink()
    path.write_text(text)


def moved_aside(path: Path, text: str) -> None:
    path.rename(path.with_name(f"{path.name}~"))
    path.write_text(text)


WRITING = threading.Lock()


class Clock:
    """The quiet time lasts as long as an event of a session does, which a busy machine draws out."""

    strftime = staticmethod(time.strftime)

    @staticmethod
    def sleep(_: float) -> None:
        with WRITING:
            pass


class Session:
    """Checks that do nothing but the next thing on a list; the end of the list is Ctrl-C."""

    def __init__(self, folder: Path, *events: Callable[[], object]) -> None:
        self.folder = folder
        self.events: Iterator[Callable[[], object]] = iter(events)
        self.checks = 0
        self.complaints: list[str] = []
        self.after_complaint: Callable[[], object] = pytest.fail
        self.statuses = iter([0, 1, 0, 1, 0, 1])

    def look(self, _: Earlier | None) -> Round:
        self.checks += 1
        event = next(self.events, None)
        if event is None:
            raise KeyboardInterrupt

        def happen() -> None:
            with WRITING:
                event()

        # Behind the end of this check, where somebody who edits would come in.
        threading.Timer(0.3, happen).start()
        return Round(next(self.statuses))

    def complain(self, error: Exception) -> None:
        self.complaints.append(str(error))
        self.after_complaint()

    def run(self, *targets: str) -> int:
        return check_on_changes(self.look, lambda: targets, None, self.complain)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    # What these checks do needs no process with torch in it.
    monkeypatch.setattr(rounds, "warmed", lambda: nullcontext(lambda: None))
    monkeypatch.setattr(rounds, "time", Clock)
    Path("net.py").write_text(SOUND)
    Path("width.py").write_text("WIDTH = 8\n")
    return tmp_path


@pytest.mark.parametrize("save", [in_place, renamed, deleted_and_created, moved_aside])
def test_each_way_of_saving_is_one_change(
    save: Callable[[Path, str], None], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    session = Session(
        folder,
        lambda: save(folder / "net.py", f"{SOUND}\n# more\n"),
        lambda: save(folder / "width.py", "WIDTH = 16\n"),
    )
    assert session.run("net.py") == 1
    assert session.checks == 3
    lines = [line.partition("] ")[2] for line in capfd.readouterr().err.splitlines()]
    assert lines == [
        "checking",
        "exit status 0; watching 2 files, Ctrl-C ends",
        "net.py changed, checking",
        "exit status 1; watching 2 files, Ctrl-C ends",
        "width.py changed, checking",
    ]


def test_what_concerns_no_target_starts_nothing(folder: Path) -> None:
    def unconcerned() -> None:
        (folder / "other.py").write_text("import torch\n")
        (folder / "log.txt").write_text("step 1\n")
        os.utime(folder / "net.py")
        renamed(folder / "width.py", "WIDTH = 8\n")
        threading.Timer(0.5, lambda: renamed(folder / "width.py", "WIDTH = 9\n")).start()

    session = Session(folder, unconcerned)
    session.run("net.py")
    assert session.checks == 2
    assert (folder / "width.py").read_text() == "WIDTH = 9\n", "the second check was for this"


def test_a_burst_of_saves_is_one_check(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def burst() -> None:
        for number in range(5):
            for name in "abcd":
                (folder / f"{name}.py").write_text(f"import torch\nx = {number}\n")
                time.sleep(0.02)

    session = Session(folder, burst)
    session.run(".")
    assert session.checks == 2
    assert "a.py, b.py, c.py and 1 more changed" in capfd.readouterr().err


def test_a_module_that_was_missing_and_a_new_configuration_are_changes(folder: Path) -> None:
    (folder / "width.py").unlink()
    session = Session(
        folder,
        lambda: (folder / "width.py").write_text("WIDTH = 8\n"),
        lambda: (folder / "pyproject.toml").write_text("[tool.trainlint]\n"),
    )
    session.run("net.py::Net")
    assert session.checks == 3


def test_a_folder_may_go_and_come_back(folder: Path) -> None:
    inner = folder / "models" / "deep"
    inner.mkdir(parents=True)
    (inner / "one.py").write_text("import torch\n")

    def gone() -> None:
        (inner / "one.py").unlink()
        inner.rmdir()

    def back() -> None:
        inner.mkdir()
        (inner / "two.py").write_text("import torch\n")

    session = Session(folder, gone, back)
    session.run("models")
    assert session.checks == 3


def test_half_a_statement_is_said_in_a_line_and_not_checked(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    session = Session(folder, lambda: in_place(folder / "width.py", "WIDTH = (8\n"))
    session.after_complaint = lambda: in_place(folder / "width.py", "WIDTH = (9)\n")
    assert session.run("net.py") == 2  # that of the text that does not parse, the last but one
    assert session.checks == 2
    assert session.complaints == ["width.py: does not parse: '(' was never closed at line 1"]
    assert "exit status 2" in capfd.readouterr().err


def test_what_changes_during_a_check_is_checked_once_more(folder: Path) -> None:
    seen: list[str] = []

    def look(_: Earlier | None) -> Round:
        seen.append((folder / "width.py").read_text())
        if len(seen) == 3:
            raise KeyboardInterrupt
        for number in range(3):
            (folder / "width.py").write_text(f"WIDTH = {len(seen)}{number}\n")
        return Round(0)

    check_on_changes(look, lambda: ["net.py"], None, pytest.fail)
    assert seen == ["WIDTH = 8\n", "WIDTH = 12\n", "WIDTH = 22\n"]


def test_what_a_check_wrote_itself_is_no_change(folder: Path) -> None:
    def fix(name: str, after: str) -> Changed:
        before = (folder / name).read_text()
        (folder / name).write_text(after)
        return Changed(name, before, after)

    checks = 0

    def look(_: Earlier | None) -> Round:
        nonlocal checks
        checks += 1
        if checks == 3:
            raise KeyboardInterrupt
        if checks == 2:
            wrote = fix("width.py", "WIDTH = 32\n")
            in_place(folder / "width.py", "WIDTH = 64\n")  # and then somebody else did
            return Round(0, wrote=[wrote])
        later = threading.Timer(1.0, lambda: in_place(folder / "net.py", "import torch\n"))
        later.start()
        return Round(0, wrote=[fix("width.py", "WIDTH = 16\n")])

    check_on_changes(look, lambda: ["net.py", "width.py"], None, pytest.fail)
    assert (folder / "net.py").read_text() == "import torch\n", "the second check was for this"


def test_errors_of_the_call_end_it_later_ones_do_not(folder: Path) -> None:
    checks = 0

    def look(_: Earlier | None) -> Round:
        nonlocal checks
        checks += 1
        if checks == 1:
            in_place(folder / "width.py", "WIDTH = 1\n")
            return Round(0)
        if checks == 2:
            in_place(folder / "width.py", "WIDTH = 2\n")
            raise UsageError("gone")
        raise KeyboardInterrupt

    complaints: list[Exception] = []
    assert check_on_changes(look, lambda: ["net.py"], None, complaints.append) == 2
    assert [str(error) for error in complaints] == ["gone"]

    def refuse(_: Earlier | None) -> Round:
        raise TrainlintError("unknown rule")

    with pytest.raises(TrainlintError, match="unknown rule"):
        check_on_changes(refuse, lambda: ["net.py"], None, pytest.fail)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_is_cleared_where_a_check_begins(
    is_terminal: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleared: list[int] = []
    session = Session(folder, lambda: in_place(folder / "width.py", "WIDTH = 1\n"))
    monkeypatch.setattr(rounds.click, "clear", lambda: cleared.append(session.checks))
    monkeypatch.setattr("sys.stdout.isatty", lambda: is_terminal)
    session.run("net.py")
    assert cleared == ([0, 1] if is_terminal else [])


# ---------------------------------------------------------------------- the scope


def test_the_scope_follows_imports_within_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "project" / "layers"
    package.mkdir(parents=True)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "unmarked.py").touch()
    (package / "__init__.py").write_text("from . import norm\n")
    (package / "norm.py").write_text("import math\n")
    (package / "other.py").touch()
    (tmp_path / "project" / "net.py").write_text("import layers, torch\n")

    def names(*targets: str) -> set[str]:
        files = scope_of(targets, None).files
        return {Path(file).relative_to(tmp_path).as_posix() for file in files}

    followed = {"layers/__init__.py", "layers/norm.py", "net.py"}
    expected = {f"project/{name}" for name in followed} | {"pyproject.toml"}
    assert names("project/net.py") == names("project/net.py::Net") == expected
    assert names("project.net:Net") == expected
    assert names("project") == {*expected, "project/layers/other.py"}
    assert names("no_such.py", "no.such:thing") == {"no_such.py", "pyproject.toml"}
    (package / "norm.py").write_text("import importlib\nimportlib.import_module('x')\n")
    assert names("project/net.py") == {*expected, "project/layers/other.py", "unmarked.py"}


def test_contents_are_compared_not_times(tmp_path: Path) -> None:
    file, gone = tmp_path / "a.py", tmp_path / "gone.py"
    file.write_text("x = 1\n")
    gone.write_text("x = 1\n")
    names, contents = [str(file), str(gone)], Contents()
    before = contents.of(names)
    os.utime(file, ns=(1, 1))
    assert not differing(before, contents.of(names))
    assert not differing(before, {})  # nobody imports them any more
    gone.unlink()
    assert differing(before, contents.of(names)) == differing(before, {}) == {str(gone)}
    file.write_text("x = 2\n")
    assert differing(before, contents.of(names)) == set(names)


# ---------------------------------------------------------------------- processes


def test_an_abandoned_check_leaves_nothing_running(tmp_path: Path) -> None:
    child = tmp_path / "child"
    (tmp_path / "net.py").write_text(
        "import os, pathlib, time, torch\n"
        f"pathlib.Path({str(child)!r}).write_text(str(os.getpid()))\n"
        "time.sleep(300)\nnet = torch.nn.Linear(2, 2)\n"
    )

    def is_stuck() -> bool:
        return child.exists() and child.read_text() != ""

    with pytest.raises(Abandoned), abandoned_if(is_stuck):
        file_check(str(tmp_path / "net.py"), asked=Options(stages=["static"])).report()
    with pytest.raises(ProcessLookupError):
        os.kill(int(child.read_text()), 0)


def lines_until(process: subprocess.Popen[str], end: str) -> str:
    """What it says on stderr, up to the first line that holds `end`."""
    said = ""
    assert process.stderr is not None
    while end not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    return said


def test_the_command(tmp_path: Path) -> None:
    """One process from the first check to Ctrl-C: only what a change concerns is run again."""
    (tmp_path / "net.py").write_text(SOUND)
    (tmp_path / "width.py").write_text("WIDTH = 8\n")
    (tmp_path / "apart.py").write_text(SOUND.replace("from width import WIDTH", "WIDTH = 8"))
    log, report = tmp_path / "log", tmp_path / "report.txt"
    process = subprocess.Popen(
        [COMMAND, "check", "--watch", "--static", "--format", "concise", "--output", report.name,
         "--select", "NRM001", "."],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        lines_until(process, "exit status 0; watching 3 files")
        ran = {Path(line).name for line in log.read_text().splitlines()}
        assert ran == {"net.py", "apart.py"}
        assert report.read_text() == ""
        log.unlink()
        renamed(tmp_path / "width.py", "WIDTH = 16\n")
        assert "width.py changed, checking" in lines_until(process, "exit status 1")
        assert {Path(line).name for line in log.read_text().splitlines()} == {"net.py"}
        assert report.read_text().startswith("net.py:12:21: error NRM001")
        renamed(tmp_path / "width.py", "WIDTH = 16 +\n")
        said = lines_until(process, "exit status 2")
        assert "error: width.py: does not parse: invalid syntax at line 1\n" in said
        renamed(tmp_path / "width.py", "WIDTH = 16 + 0\n")
        lines_until(process, "exit status 1")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (1, "", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--write-baseline", "known.json", "net.py"], "would write the baseline anew each time"),
        (["--interactive", "net.py"], "--watch asks nothing: leave out --interactive"),
        (["-"], "-: no such file or directory"),
        (["--select", "NRM999", "net.py"], "unknown rule 'NRM999'"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], said: str, folder: Path) -> None:
    done = CliRunner().invoke(main, ["check", "--watch", *arguments])
    assert done.exit_code == 2
    assert said in done.stderr.splitlines()[-1]


def test_without_watchfiles_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UsageError, match=r'^--watch needs watchfiles: pip install "trainlint\[watch\]"$'
    ):
        check_on_changes(lambda _: Round(0), lambda: ["net.py"], None, pytest.fail)
