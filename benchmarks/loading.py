"""Four ways to get the models out of a file, compared on files as people write them.

`python benchmarks/loading.py DIRECTORY... [--json FILE]`, where each directory is a project. Every
Python file in it that mentions torch and holds a module is loaded in a child process by each of

- `stop`: the file runs as a module up to the first stop, and what is defined by then is used;
- `cut`: risky top-level statements are cut by `ast`, with what depends on them; the rest runs;
- `hybrid`: statement by statement; after a stop, definitions only. `loading._run` as it is;
- `resume`: like it, but after an exception all that does not depend on what was lost runs on.

What a stop is (an exception, `SystemExit`, the first backward or optimizer step, the time limit),
how candidates are found and how they are constructed is trainlint's own code in all four. Each
file runs in a fresh copy of its project; connections, processes, and writes outside the copy are
noted and refused. `--preload` imports packages beforehand, so that no file pays for them.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import json
import os
import re
import selectors
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from trainlint.errors import LoadError
from trainlint.fixes.source import SourceText
from trainlint.processes import worker
from trainlint.targets import loading
from trainlint.targets.discovery import is_main_guard, python_files
from trainlint.targets.loading import LoadedFile, Stop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

LOADERS: Final = ("stop", "cut", "hybrid", "resume")
HOLDS_A_MODULE: Final = re.compile(rb"\bnn\.Module\b|\(Module\)|LightningModule|Sequential\(")
RISKY_CALLS: Final = frozenset(
    {"DataLoader", "backward", "cuda", "download", "exit", "fit", "from_pretrained",
     "init_process_group", "input", "launch", "load", "load_dataset", "main", "open", "parse_args",
     "run", "step", "system", "train", "train_one_epoch", "urlopen", "urlretrieve"}
)  # fmt: skip
WRITES: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass
class Outcome:
    """What one loader made of one file. `own` counts models that the file itself constructed."""

    file: str
    loader: str
    models: list[str] = field(default_factory=list)
    own: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    stopped: str | None = None
    error: str | None = None
    effects: list[str] = field(default_factory=list)
    seconds: float = 0.0


# ---------------------------------------------------------------------- the loaders


def run_until_stop(loaded: LoadedFile, stops: list[Stop]) -> None:
    """Run the file as one piece."""
    assert loaded.text.tree is not None
    _run_part(loaded, loaded.text.tree, stops)


def run_cut(loaded: LoadedFile, stops: list[Stop]) -> None:
    """Run what is left of the file without its risky statements."""
    assert loaded.text.tree is not None
    _run_part(loaded, cut(loaded.text.tree), stops)


def _run_part(loaded: LoadedFile, part: ast.Module, stops: list[Stop]) -> BaseException | None:
    """Run it, and return what ended it, also where the file itself has caught that."""
    filename = str(loaded.module.__file__)
    try:
        exec(compile(part, filename, "exec", dont_inherit=True), vars(loaded.module))
        if stops:
            raise stops[0]
    except BaseException as error:
        if loaded.stopped is None:
            loaded.stopped = f"{loading._place_in(error, filename, 0)}: {loading.reason_of(error)}"
        stops.clear()
        return error
    return None


def cut(tree: ast.Module) -> ast.Module:
    """Leave out top-level statements that call something risky or need what such a one defines."""
    kept: list[ast.stmt] = []
    lost: set[str] = set()
    for statement in tree.body:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            kept.append(statement)
        elif _is_risky(statement) or _names(statement, ast.Load) & lost:
            lost |= _names(statement, ast.Store)
        else:
            kept.append(statement)
    return ast.Module(kept, tree.type_ignores)


def run_resuming(loaded: LoadedFile, stops: list[Stop]) -> None:
    """Run statement by statement. What an exception takes away, and what needs it, is left out.

    After a step towards training, an exit, or the end of its time, only definitions are read.
    """
    assert loaded.text.tree is not None
    ended, lost = False, set[str]()
    for statement in loaded.text.tree.body:
        definition = isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        if ended and not loading._is_definition(statement):
            continue
        if not definition and _names(statement, ast.Load) & lost:
            lost |= _names(statement, ast.Store)
            continue
        error = _run_part(loaded, ast.Module([statement], []), stops)
        if error is None:
            lost -= _names(statement, ast.Store)
        else:
            lost |= _names(statement, ast.Store)
            ended = ended or not isinstance(error, Exception)


def _is_risky(statement: ast.stmt) -> bool:
    if isinstance(statement, (ast.Import, ast.ImportFrom)) or is_main_guard(statement):
        return False
    if isinstance(statement, (ast.For, ast.While)):
        return True
    callees = [node.func for node in ast.walk(statement) if isinstance(node, ast.Call)]
    names = {
        callee.attr if isinstance(callee, ast.Attribute) else getattr(callee, "id", "")
        for callee in callees
    }
    return bool(names & RISKY_CALLS)


def _names(statement: ast.stmt, context: type[ast.expr_context]) -> set[str]:
    return {
        node.id
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, context)
    }


RUNNERS: Final[dict[str, Callable[[LoadedFile, list[Stop]], None]]] = {
    "stop": run_until_stop,
    "cut": run_cut,
    "hybrid": loading._run,
    "resume": run_resuming,
}


# ---------------------------------------------------------------------- in the child


def load(path: Path, outcome: Outcome, limit: float) -> None:
    """Load one file and construct its models; note what came of it."""
    loading._run = RUNNERS[outcome.loader]
    text = SourceText.read(str(path))
    if text is None:
        outcome.error = "cannot be decoded"
        return
    started = time.monotonic()
    try:
        with worker._time_limit(limit):
            loaded = loading.load_file(path, text)
        outcome.stopped = loaded.stopped
        for found in loading.models_of(loaded):
            try:
                model = found.make()
            except LoadError as error:
                outcome.skipped[found.name] = str(error)
                continue
            if model is not None:
                own = loading.unwrapped(vars(loaded.module).get(found.name))
                outcome.models.append(found.name)
                outcome.own += model is own
    except Exception as error:
        outcome.error = f"{type(error).__name__}: {error}"
    outcome.seconds = round(time.monotonic() - started, 3)


class Observer:
    """Notes what a file does to the world outside its process, and refuses what leaves its copy."""

    def __init__(self, copy: Path, home: Path, effects: set[str]) -> None:
        self._copy = str(copy) + os.sep
        self._home = str(home) + os.sep
        self._effects = effects
        self._inside = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._inside:
            return
        self._inside = True
        try:
            self._observe(event, arguments)
        finally:
            self._inside = False

    def _observe(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], (str, bytes)) and arguments[2] & WRITES:
            self._write(os.fsdecode(arguments[0]), "writes a file")
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.truncate"):
            if isinstance(arguments[0], (str, bytes, os.PathLike)):
                self._write(os.fsdecode(arguments[0]), "changes a folder")
        elif event in ("socket.connect", "socket.getaddrinfo"):
            self._effects.add("connects")
            raise ConnectionRefusedError("refused by the benchmark")
        elif event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
            self._effects.add("starts a process")
            raise PermissionError("refused by the benchmark")

    def _write(self, name: str, effect: str) -> None:
        path = os.path.abspath(name)  # noqa: PTH100 - a link stays a link
        if path.startswith((self._home, "/dev/", "/proc/")):
            return  # caches of libraries
        self._effects.add(effect)
        if not path.startswith(self._copy):
            raise PermissionError(f"{name}: refused by the benchmark")


@contextlib.contextmanager
def noting_training(effects: set[str]) -> Iterator[None]:
    """Note each `Stop`: it is made only where a file trains or where its time is up."""
    original = Stop.__init__

    def noted(self: Stop, *arguments: Any) -> None:
        original(self, *arguments)
        effects.add("trains" if "training begins" in str(self) else "runs long")

    Stop.__init__ = noted  # type: ignore[method-assign]
    yield


def be_the_child(task: Task, write_end: int, limits: argparse.Namespace) -> None:
    """Never returns."""
    status = 1
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)
        os.environ.update(worker.prepare_environment({}))
        for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "MPLCONFIGDIR"):
            os.environ[name] = str(task.home)
        os.chdir(task.copy)
        worker.limit_memory(limits.memory << 20)
        torch.set_num_threads(1)
        sys.dont_write_bytecode = True
        sys.argv = [str(task.path)]
        effects: set[str] = set()
        saved = torch.save

        def save(*arguments: Any, **keywords: Any) -> None:  # it writes in C++, past the audit hook
            effects.add("writes a file")
            saved(*arguments, **keywords)

        torch.save = save
        sys.addaudithook(Observer(task.copy, task.home, effects))
        with noting_training(effects):
            load(task.path, task.outcome, limits.timeout / 2)
        task.outcome.effects = sorted(effects)
        os.write(write_end, json.dumps(asdict(task.outcome)).encode() + b"\n")
        status = 0
    finally:
        os._exit(status)


# ---------------------------------------------------------------------- the parent


@dataclass
class Task:
    """One file for one loader, and the child that is at it."""

    directory: Path
    relative: Path
    scratch: Path
    outcome: Outcome
    pid: int = 0
    messages: int = -1
    deadline: float = 0.0
    received: bytes = b""

    @property
    def copy(self) -> Path:
        return self.scratch / self.directory.name

    @property
    def path(self) -> Path:
        return self.copy / self.relative

    @property
    def home(self) -> Path:
        return self.scratch / "home"

    def prepare(self) -> None:
        shutil.copytree(self.directory, self.copy, ignore=shutil.ignore_patterns(".git"))
        self.home.mkdir()


def run_all(tasks: list[Task], limits: argparse.Namespace) -> Iterator[Outcome]:
    """Run the tasks in forked children. The parent has imported torch and touches no tensor."""
    waiting = list(reversed(tasks))
    selector = selectors.DefaultSelector()
    while waiting or selector.get_map():
        while waiting and len(selector.get_map()) < limits.jobs:
            task = waiting.pop()
            task.prepare()
            read_end, write_end = os.pipe()
            task.pid = os.fork()
            if task.pid == 0:
                os.close(read_end)
                be_the_child(task, write_end, limits)
            os.close(write_end)
            task.messages, task.deadline = read_end, time.monotonic() + limits.timeout
            selector.register(read_end, selectors.EVENT_READ, task)
        running = [key.data for key in selector.get_map().values()]
        wait = min(task.deadline for task in running) - time.monotonic()
        for key, _ in selector.select(max(0.0, wait)):
            data = os.read(key.data.messages, 1 << 16)
            key.data.received += data
            if not data:
                key.data.deadline = -1.0
        for task in running:
            ended = task.deadline < 0 or task.received.endswith(b"\n")
            if ended or time.monotonic() >= task.deadline:
                selector.unregister(task.messages)
                yield finish(task, limits.timeout)


def finish(task: Task, timeout: float) -> Outcome:
    """End the child and what it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(task.pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(task.pid, signal.SIGKILL)  # it may not have got as far as its own session
    os.waitpid(task.pid, 0)
    os.close(task.messages)
    shutil.rmtree(task.scratch, ignore_errors=True)
    if task.received.endswith(b"\n"):
        return Outcome(**json.loads(task.received))
    late = task.deadline > 0
    task.outcome.error = f"over {timeout:g} s" if late else "the process ended by itself"
    task.outcome.seconds = timeout if late else 0.0
    return task.outcome


def tasks_of(directories: Iterable[Path], scratch: Path) -> Iterator[Task]:
    """One task for each file and loader."""
    for directory in directories:
        for path in filter(_holds_a_module, python_files(directory)):
            relative = path.relative_to(directory)
            for loader in LOADERS:
                own = Path(tempfile.mkdtemp(dir=scratch))
                outcome = Outcome(f"{directory.name}/{relative}", loader)
                yield Task(directory, relative, own, outcome)


def _holds_a_module(path: Path) -> bool:
    content = path.read_bytes()
    return b"torch" in content and HOLDS_A_MODULE.search(content) is not None


# ---------------------------------------------------------------------- the report


def table(outcomes: list[Outcome]) -> str:
    effects = sorted({effect for outcome in outcomes for effect in outcome.effects})
    rows: list[tuple[str, Callable[[list[Outcome]], float]]] = [
        ("files", len),
        ("files with a model", lambda some: sum(bool(o.models) for o in some)),
        ("models constructed", lambda some: sum(len(o.models) for o in some)),
        ("… of these by the file itself", lambda some: sum(o.own for o in some)),
        ("candidates not constructed", lambda some: sum(len(o.skipped) for o in some)),
        ("files that stop on the way", lambda some: sum(o.stopped is not None for o in some)),
        ("over the limits, or died", lambda some: sum(o.error is not None for o in some)),
        ("files with a side effect", lambda some: sum(bool(o.effects) for o in some)),
    ]
    rows += [
        (f"… {effect}", lambda some, e=effect: sum(e in o.effects for o in some))
        for effect in effects
    ]
    rows.append(("seconds, all files", lambda some: round(sum(o.seconds for o in some))))
    rows.append(("seconds, median", lambda some: sorted(o.seconds for o in some)[len(some) // 2]))
    lines = ["| | " + " | ".join(LOADERS) + " |", "|---|" + "---:|" * len(LOADERS)]
    for title, count in rows:
        values = [count([o for o in outcomes if o.loader == loader]) for loader in LOADERS]
        lines.append(f"| {title} | " + " | ".join(f"{value:g}" for value in values) + " |")
    return "\n".join(lines)


def differences(outcomes: list[Outcome]) -> Iterator[str]:
    """Name the files on which the loaders do not agree."""
    by_file: dict[str, dict[str, Outcome]] = {}
    for outcome in outcomes:
        by_file.setdefault(outcome.file, {})[outcome.loader] = outcome
    for file, by_loader in sorted(by_file.items()):
        found = {loader: sorted(outcome.models) for loader, outcome in by_loader.items()}
        if len({tuple(names) for names in found.values()}) > 1:
            yield file
            for loader in LOADERS:
                outcome = by_loader[loader]
                why = outcome.error or outcome.stopped or ""
                yield f"    {loader:7}{', '.join(found[loader]) or '-'}  {why}".rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIRECTORY")
    parser.add_argument("--json", type=Path, help="write every outcome to this file")
    parser.add_argument("--timeout", type=float, default=20.0, help="seconds for a file [20]")
    parser.add_argument("--memory", type=int, default=4096, help="MiB for a file [4096]")
    parser.add_argument("--preload", nargs="*", default=[], help="packages to import beforehand")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    for name in options.preload:
        importlib.import_module(name)
    outcomes = []
    with tempfile.TemporaryDirectory() as scratch:
        directories = [directory.resolve() for directory in options.directories]
        tasks = list(tasks_of(directories, Path(scratch).resolve()))
        for outcome in run_all(tasks, options):
            outcomes.append(outcome)
            if sys.stderr.isatty():
                print(f"\r{len(outcomes)} of {len(tasks)}", end="", file=sys.stderr)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    print("\n".join(differences(outcomes)))
    print(table(outcomes))


if __name__ == "__main__":
    main()
