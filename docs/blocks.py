"""The fenced blocks of a page of the docs, run from top to bottom as its reader would.

In goes a Markdown file, out comes what is wrong with it: a list of `Failure`, each with its line. A page
runs in a project directory of its own, `README.md` in the root of the clone. Kinds of block:

- below `<!-- file: NAME -->`, in any language: written to that file (TOML, YAML and JSON are parsed too);
- `console`: commands after `$ `, each with what it prints; a line `[…]` stands for any number of lines.
  Exit statuses are 0, or what the output itself says at its end ("exit 1"), or those of a line
  `<!-- exit: 1 -->` above the block (the last command's, or one a command);
- `bash`: a script that must succeed, its output not shown;
- `python`: a program that must succeed;
- `toml`: a `[tool.trainlint]` that the loader accepts;
- `sh`: how to install, in the README's words or by `pip install` of what pyproject.toml names; not run;
- below `<!-- tested: tests/test_x.py -->`, in any language: that file reads the block from the page.

Anything else is a failure, so that no block goes untested.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml
from markdown_it import MarkdownIt

from trainlint import __version__
from trainlint.config import load_config
from trainlint.errors import TrainlintError
from trainlint.registry import check_options

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
REPOSITORY = "https://github.com/you/trainlint"
SECONDS_A_COMMAND = 240
GAP = "[…]"
MARKER = re.compile(r"<!-- (file|exit|tested): (.*?) -->\s*")


def pages() -> list[Path]:
    """The pages whose blocks are run: the README, the quickstart, the guides, and what JSON looks like."""
    docs = ROOT / "docs"
    written = [
        docs / "quickstart.md",
        *sorted((docs / "guides").glob("*.md")),
        docs / "reference" / "json.md",
    ]
    return [README, *(page for page in written if page.exists())]


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is that of its fence, counted from 1."""

    page: Path
    line: int
    language: str
    text: str
    file: str | None = None
    tested: str | None = None
    exits: tuple[int, ...] = ()

    @property
    def kind(self) -> str:
        """What is to be done with the block: `file`, `tested`, or its language."""
        return "file" if self.file else "tested" if self.tested else self.language


@dataclass(frozen=True)
class Failure:
    """A block that does not hold."""

    block: Block
    message: str

    def __str__(self) -> str:
        name = self.block.page.relative_to(ROOT) if self.block.page.is_relative_to(ROOT) else ""
        return f"{name or self.block.page.name}:{self.block.line}: {self.message}"


@dataclass(frozen=True)
class Command:
    """A command of a `console` block, and what stands below it."""

    command: str
    output: str


@dataclass(frozen=True)
class Run:
    """What a command printed, on both streams as a terminal shows them, and its exit status."""

    output: str
    status: int


# ---------------------------------------------------------------------- reading


def blocks(page: Path) -> list[Block]:
    """The page's blocks from top to bottom; raises `ValueError` for a marker that stands above none."""
    found: list[Block] = []
    markers: dict[str, str] = {}
    ends = -1  # the line where the last marker ends
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.map is None:
            continue
        if markers and token.map[0] != ends:
            raise ValueError(f"{page.name}:{ends}: a marker stands right above its block")
        if token.type == "html_block":
            given = MARKER.findall(token.content)
            if given and token.map[0] == ends:
                markers |= given
            elif given:
                markers = dict(given)
            ends = token.map[1] if given else ends
        elif token.type in ("fence", "code_block"):
            found.append(_block(page, token.map[0] + 1, token.info, token.content, markers))
            markers = {}
    if markers:
        raise ValueError(f"{page.name}:{ends}: a marker stands right above its block")
    return found


def _block(page: Path, line: int, info: str, text: str, markers: dict[str, str]) -> Block:
    language = info.split()[0] if info.split() else ""
    exits = tuple(int(status) for status in markers.get("exit", "").split())
    return Block(page, line, language, text, markers.get("file"), markers.get("tested"), exits)


def commands(block: Block) -> list[Command]:
    """The commands of a `console` block; one that ends with a backslash goes on in the next line."""
    parts = re.split(r"^\$ ((?:.*\\\n)*.*)\n", block.text, flags=re.MULTILINE)
    if parts[0].strip():
        raise ValueError("the block does not begin with a command after `$ `")
    return [Command(*pair) for pair in zip(parts[1::2], parts[2::2], strict=True)]


# ---------------------------------------------------------------------- comparing

# What differs from run to run and from machine to machine, and what takes its place.
VARYING = [
    (re.compile(r",\s+[\d.]+ times the\s+time of a\s+step"), ""),
    (re.compile(r"\d+(?= of them recorded)"), "…"),
    (re.compile(r"\b\d+\.\d+ ?s\b"), "… s"),
    (re.compile(r"(?<=\"seconds\": )[\d.]+"), "…"),
    (re.compile(r"={3,}"), "==="),  # pytest fills its lines, whatever the seconds leave of them
    (re.compile(r"(?<=[ (])[0-9a-f]{7}(?=\] )"), "…"),  # a commit
    (re.compile(r"patch\d+-\d+"), "patch…"),  # of pre-commit
]


def comparable(text: str) -> str:
    """The text without what differs from run to run."""
    for pattern, instead in VARYING:
        text = pattern.sub(instead, text)
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def agrees(shown: str, printed: str) -> bool:
    """Whether a page's output is what was printed; each `[…]` in it stands for any lines."""
    lines = comparable(shown).splitlines(keepends=True)
    pattern = "".join(r"(?:.*\n)*?" if line.strip() == GAP else re.escape(line) for line in lines)
    return re.fullmatch(pattern, comparable(printed)) is not None


def with_gaps(shown: str, printed: str) -> str:
    """What was printed, shortened where the page is, if the lines beside a gap are still there."""
    old = comparable(shown).splitlines()
    new, keys = printed.splitlines(), comparable(printed).splitlines()
    kept: list[str] = []
    at = 0
    for number, line in enumerate(old):
        if line.strip() != GAP:
            continue
        before, after = old[number - 1] if number else None, [*old, None][number + 1]
        start = at if before is None else _position(keys, before, at, 1)
        stop = len(keys) if after is None else _position(keys, after, start or 0, 0)
        if start is not None and stop is not None and start <= stop:
            kept += [*new[at:start], line]
            at = stop
    return "".join(f"{line}\n" for line in [*kept, *new[at:]])


def _position(lines: list[str], line: str, since: int, further: int) -> int | None:
    return lines.index(line, since) + further if line in lines[since:] else None


def difference(shown: str, printed: str) -> str:
    """The lines of the page and of the command that differ."""
    return "\n".join(
        difflib.unified_diff(
            comparable(shown).splitlines(), comparable(printed).splitlines(),
            "the page", "the command", lineterm="", n=2,
        )
    )  # fmt: skip


# ---------------------------------------------------------------------- running


@dataclass(frozen=True)
class Project:
    """A directory in which a page's commands run, in an environment where nothing of this machine shows."""

    folder: Path
    home: Path
    columns: int = 88
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        kept = ("LD_LIBRARY_PATH", "TMPDIR", "SYSTEMROOT")
        environment = {name: os.environ[name] for name in kept if name in os.environ} | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "COLUMNS": str(self.columns),
            "OMP_NUM_THREADS": "1",
            # What a page installs is there for this page alone.
            "PIP_TARGET": str(self.home / "site"),
            "PIP_NO_DEPS": "true",
            "PIP_NO_BUILD_ISOLATION": "false",  # which, by pip's logic, means without isolation
            "PIP_DISABLE_PIP_VERSION_CHECK": "true",
            "PYTHONPATH": str(self.home / "site"),
            "PYTHONUNBUFFERED": "1",  # so that both streams come in the order of a terminal
        }
        object.__setattr__(self, "environment", environment)

    @classmethod
    def at(cls, home: Path) -> Project:
        """A new project in `home`/project; git knows its user, and this repository by its address."""
        folder = home / "project"
        folder.mkdir(parents=True)
        (home / ".gitconfig").write_text(
            "[user]\n\tname = Ada\n\temail = ada@example.org\n[init]\n\tdefaultBranch = main\n"
            f'[url "{home / "trainlint.git"}"]\n\tinsteadOf = {REPOSITORY}\n',
            encoding="utf-8",
        )
        return cls(folder, home)

    def publish(self) -> None:
        """Put the hooks of this repository where git finds its address, tagged with the version."""
        hub = replace(self, folder=self.home / "trainlint.git")
        hub.folder.mkdir()
        hooks = (ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8")
        (hub.folder / ".pre-commit-hooks.yaml").write_text(hooks, encoding="utf-8")
        done = hub.run(
            f"git init -q && git add -A && git commit -q -m hooks && git tag v{__version__}"
        )
        if done.status:
            raise OSError(done.output)

    def run(self, command: str) -> Run:
        """Run a command line in bash."""
        return self._run("bash", "-c", command)

    def script(self, text: str) -> Run:
        """Run a Bash script up to the first command that fails."""
        return self._run("bash", "-euc", text)

    def python(self, text: str) -> Run:
        """Run a program."""
        return self._run(sys.executable, "-c", text)

    def _run(self, *words: str) -> Run:
        done = subprocess.run(
            words,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=SECONDS_A_COMMAND,
            check=False,
        )
        return Run(done.stdout.replace(str(self.home), "~"), done.returncode)


def in_the_clone() -> Project:
    """Where the README's blocks run."""
    return Project(ROOT, Path.home(), columns=120)


def check_page(page: Path, home: Path) -> list[Failure]:
    """Run a page's blocks in a new project in `home`, and say which do not hold."""
    project = in_the_clone() if page == README else Project.at(home)
    if page != README and REPOSITORY in page.read_text(encoding="utf-8"):
        project.publish()
    return [failure for block in blocks(page) for failure in check_block(block, project)]


def check_block(block: Block, project: Project) -> Iterator[Failure]:
    """What is wrong with a block; whatever it does to the project stays done."""
    check = _CHECKS.get(block.kind)
    if check is None:
        yield Failure(block, f"a block of {block.kind or 'no language'} is not tested")
        return
    try:
        messages = list(check(block, project))
    except (ValueError, OSError, TrainlintError, yaml.YAMLError) as error:
        messages = [str(error)]
    except subprocess.TimeoutExpired:
        messages = [f"longer than {SECONDS_A_COMMAND} s"]
    yield from (Failure(block, message) for message in messages)


def _file(block: Block, project: Project) -> Iterator[str]:
    path = project.folder / str(block.file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text, encoding="utf-8")
    if path.name == "pyproject.toml":
        check_options(load_config(path).rules)
    elif path.suffix == ".toml":
        tomllib.loads(block.text)
    elif path.suffix in (".yaml", ".yml"):
        yaml.safe_load(block.text)
    elif path.suffix in (".json", ".sarif"):
        json.loads(block.text)
    return iter(())


def _tested(block: Block, _: Project) -> Iterator[str]:
    test = ROOT / str(block.tested)
    if not test.is_file():
        yield f"{block.tested} does not exist"
    elif block.page.name not in test.read_text(encoding="utf-8"):
        yield f"{block.tested} does not read {block.page.name}"


def _console(block: Block, project: Project) -> Iterator[str]:
    for command, done, status in runs(block, project):
        if not agrees(command.output, done.output):
            yield (
                f"$ {command.command}\nstale: run python docs/console.py\n"
                f"{difference(command.output, done.output)}"
            )
        if done.status != status:
            yield f"$ {command.command}\nexit status {done.status}, not {status}"


def runs(block: Block, project: Project) -> Iterator[tuple[Command, Run, int]]:
    """Each command of a `console` block, what it did, and the exit status that the page gives it."""
    given = commands(block)
    for number, command in enumerate(given):
        done = project.run(command.command)
        position = number - len(given) + len(block.exits)
        if 0 <= position < len(block.exits):
            status = block.exits[position]
        else:
            said = re.search(r"\bexit\s(\d)$", done.output)
            status = int(said[1]) if said and "--exit-zero" not in command.command else 0
        yield command, done, status


def _bash(block: Block, project: Project) -> Iterator[str]:
    done = project.script(block.text)
    if done.status:
        yield f"exit status {done.status}\n{done.output}"


def _python(block: Block, project: Project) -> Iterator[str]:
    done = project.python(block.text)
    if done.status:
        yield f"exit status {done.status}\n{done.output}"


def _toml(block: Block, _: Project) -> Iterator[str]:
    others = set(tomllib.loads(block.text).get("tool", {"": {}})) - {"trainlint"}
    if others:
        yield "not only [tool.trainlint]: put it below `<!-- file: pyproject.toml -->`"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "pyproject.toml")
        path.write_text(block.text, encoding="utf-8")
        check_options(load_config(path).rules)


def _sh(block: Block, _: Project) -> Iterator[str]:
    lines = block.text.splitlines()
    in_readme = README.read_text(encoding="utf-8").splitlines()
    for line in lines:
        if line not in in_readme and not _installs(line):
            yield f"neither a line of the README nor `pip install` of what is known: {line}"


def _installs(line: str) -> bool:
    """Whether the line is `pip install` of trainlint with extras that exist, or of what its extras name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    named = {re.split(r"[^\w.-]", one)[0] for extra in extras.values() for one in extra}
    words = shlex.split(line, comments=True)
    if words[:2] != ["pip", "install"]:
        return False
    for word in words[2:]:
        own = re.fullmatch(r"trainlint(?:\[([\w,-]+)\])?", word)
        if own and set((own[1] or next(iter(extras))).split(",")) <= set(extras):
            continue
        if word not in named and word != "torch":
            return False
    return True


_CHECKS = {
    "file": _file,
    "tested": _tested,
    "console": _console,
    "bash": _bash,
    "python": _python,
    "toml": _toml,
    "sh": _sh,
}
