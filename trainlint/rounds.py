"""`trainlint check --watch`: check, and check again whenever a file changes on which the result depends.

Comes in: one check as a function, and its targets. Goes out: the exit status of the last one, at Ctrl-C.
What has changed is decided by what the files hold; events of the file system only say when to look. So it
does not matter how an editor saves, and nothing that happens during a check is missed.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from trainlint.errors import ConfigError, TrainlintError, UsageError
from trainlint.fixes.text import SourceText
from trainlint.processes.zygotes import Abandoned, abandoned_if, warmed
from trainlint.targets.discovery import syntax_error
from trainlint.targets.imports import imported_files
from trainlint.targets.scope import Contents, differing, scope_of

if TYPE_CHECKING:
    from trainlint.files import FileCheck
    from trainlint.fixes.fixing import Changed

INTERRUPTED: Final = 130
_UNCHECKED: Final = 2
# Saves that follow each other within so many seconds are one change: editors write in steps.
_QUIET: Final = 0.1
_MOST_STEPS: Final = 20
_WAIT: Final = 0.5
_NAMED: Final = 3


@dataclass(frozen=True)
class Round:
    """One check that is over: its exit status, the check for the next one, and the files that it fixed."""

    status: int
    check: FileCheck | None = None
    wrote: Sequence[Changed] = ()


@dataclass(frozen=True)
class Earlier:
    """The last check that was finished, and what has changed since it began."""

    check: FileCheck
    depended: Mapping[str, frozenset[str] | None]
    changed: frozenset[str]

    def concerns(self, path: str) -> bool:
        """Whether one of the changes may alter what is found in this file."""
        for files in (self.depended.get(path), imported_files(path)):
            if files is None or files & self.changed:
                return True
        return False

    def carried(self, check: FileCheck) -> FileCheck:
        """The next check, which leaves out what no change concerns."""
        return check.after(self.check, self.concerns)


Look = Callable[[Earlier | None], Round]
Complain = Callable[[Exception], None]


def check_on_changes(
    look: Look, targets: Callable[[], Sequence[str]], config: Path | None, complain: Complain
) -> int:
    """Call `look` at once and after each change, until Ctrl-C; the exit status of the last one.

    `targets` reads them anew, since they may stand in the configuration. An error in the first check is
    raised: it is one of the call. Later ones are told by `complain`. Raises `UsageError` where files cannot
    be watched.
    """
    status = INTERRUPTED
    try:
        with _watching() as alarm, warmed() as warm_up:
            watch = _Watch(alarm, targets, config)
            for changed in watch.changes():
                _say(f"{_named(changed)} changed, checking" if changed else "checking", clear=True)
                if watch.is_broken(changed, complain):
                    status = _UNCHECKED
                else:
                    try:
                        with abandoned_if(watch.is_outdated):
                            done = look(watch.earlier())
                    except Abandoned:
                        continue
                    except Exception as error:
                        if not changed:
                            raise
                        complain(error)
                        status = _UNCHECKED
                    else:
                        status = done.status
                        watch.finish(done)
                warm_up()
                _say(f"exit status {status}; watching {watch.extent}, Ctrl-C ends")
    except KeyboardInterrupt:
        pass
    return status


class _Watch:
    """What the files held when the present check began, and what is new since."""

    def __init__(
        self, alarm: _Alarm, targets: Callable[[], Sequence[str]], config: Path | None
    ) -> None:
        self._alarm = alarm
        self._targets = targets
        self._config = config
        self._contents = Contents()
        self._names: Sequence[str] = targets()
        self._last: tuple[FileCheck, dict[str, frozenset[str] | None]] | None = None
        self._base: dict[str, bytes | None] = {}
        self.scope = scope_of(self._names, config)
        self._seen = self._contents.of(self.scope.files)

    @property
    def extent(self) -> str:
        """`3 files`."""
        count = sum(digest is not None for digest in self._seen.values())
        return "1 file" if count == 1 else f"{count} files"

    def changes(self) -> Iterator[frozenset[str]]:
        """Nothing for the first check, then the files that changed, each time that some did."""
        changed: frozenset[str] = frozenset()
        while True:
            self._alarm.cover(self.scope.folders)
            yield changed
            while not (changed := self._settled()):
                self._alarm.cover(self.scope.folders)
                self._alarm.wait()
            self._seen = self._contents.of(self.scope.files)

    def is_outdated(self) -> bool:
        """Whether the check under way is of files that are no more."""
        return self._alarm.rang() and bool(self._news())

    def _settled(self) -> frozenset[str]:
        """What changed, once it has come to rest: a file that is just being written is empty at first."""
        changed = self._news()
        for _ in range(_MOST_STEPS):
            if not changed:
                break
            before = self._contents.of(self.scope.files)
            time.sleep(_QUIET)
            changed = self._news()
            if self._contents.of(self.scope.files) == before:
                break
        return changed

    def _news(self) -> frozenset[str]:
        with suppress(ConfigError, UsageError):  # half written: the check will say so
            self._names = self._targets()
        self.scope = scope_of(self._names, self._config)
        return differing(self._seen, self._contents.of(self.scope.files))

    def is_broken(self, changed: Collection[str], complain: Complain) -> bool:
        """Whether nothing that changed parses, as half-way through typing: a check could say no more."""
        errors = []
        for file in changed:
            text = SourceText.read(file) if file.endswith(".py") and Path(file).is_file() else None
            if text is None or text.tree is not None:
                return False
            errors.append(TrainlintError(f"{_name(file)}: {syntax_error(text)}"))
        for error in errors:
            complain(error)
        return bool(errors)

    def earlier(self) -> Earlier | None:
        """What the next check may take over from the last one."""
        if self._last is None:
            return None
        return Earlier(*self._last, differing(self._base, self._seen))

    def finish(self, done: Round) -> None:
        """Remember what was checked; what the check itself wrote is no change, unless edited since."""
        if done.check is not None:
            paths = {job.path for job in done.check.jobs if job.path}
            self._last = done.check, {path: imported_files(path) for path in paths}
            self._base = dict(self._seen)
        for fixed in done.wrote:
            path = str(Path(fixed.filename).resolve())
            text = SourceText.read(path)
            if text is not None and text.text == fixed.after:
                self._seen |= self._contents.of([path])


class _Alarm:
    """Rings when something happens in some folders; a thread listens."""

    def __init__(self, listen: Callable[..., Iterator[Any]]) -> None:
        self._listen = listen
        self._rung = threading.Event()
        self._end = threading.Event()
        self._folders: frozenset[str] = frozenset()
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None

    def cover(self, folders: Collection[str]) -> None:
        """Listen in these folders; one that is gone is waited for where it was."""
        existing = frozenset(_existing(folder) for folder in folders)
        if existing == self._folders:
            return
        self.close()
        self._folders = existing
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(existing, self._end), daemon=True)
        self._thread.start()

    def _run(self, folders: Collection[str], end: threading.Event) -> None:
        is_new = True
        try:
            for events in self._listen(
                *folders, watch_filter=_may_matter, stop_event=end, recursive=False,
                rust_timeout=int(1000 * _WAIT), yield_on_timeout=True,
            ):  # fmt: skip
                if events or is_new:  # what happened before it listened is to be looked for, too
                    self._rung.set()
                is_new = False
        except FileNotFoundError:  # a folder has just gone
            self._folders = frozenset()
            self._rung.set()
        except OSError as error:
            self._error = error
            self._rung.set()

    def rang(self) -> bool:
        """Whether it did since it was last asked. Raises `UsageError` where nothing can be heard."""
        rung = self._rung.is_set()
        self._rung.clear()
        if self._error is not None:
            raise UsageError(f"cannot watch the files: {self._error}")
        return rung

    def wait(self) -> None:
        """Until it rings. In short steps, since Ctrl-C ends no long wait on some systems."""
        while not self.rang():
            self._rung.wait(_WAIT)

    def close(self) -> None:
        """Listen no more."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()


@contextmanager
def _watching() -> Iterator[_Alarm]:
    """Raises `UsageError` where the package that listens is not installed."""
    try:
        from watchfiles import watch
    except ImportError:
        raise UsageError('--watch needs watchfiles: pip install "trainlint[watch]"') from None
    alarm = _Alarm(watch)
    try:
        yield alarm
    finally:
        alarm.close()


def _may_matter(_: object, path: str) -> bool:
    """A Python file, a configuration, or a folder."""
    return Path(path).suffix in (".py", ".toml", "")


def _existing(folder: str) -> str:
    place = Path(folder)
    while not place.is_dir():
        place = place.parent
    return str(place)


def _say(text: str, *, clear: bool = False) -> None:
    """On stderr, after what the check wrote; on a terminal each check begins on a clear screen."""
    sys.stdout.flush()
    if clear and sys.stdout.isatty():
        click.clear()
    click.echo(f"trainlint: [{time.strftime('%H:%M:%S')}] {text}", err=True)


def _named(files: Collection[str]) -> str:
    """`net.py, blocks.py and 3 more`."""
    names = sorted(map(_name, files))
    if len(names) > _NAMED:
        names[_NAMED:] = [f"{len(names) - _NAMED} more"]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _name(file: str) -> str:
    """As the user would type it here."""
    path = Path(file)
    here = Path.cwd().resolve()
    return path.relative_to(here).as_posix() if path.is_relative_to(here) else file
