"""What the tests share: the real command line in a subprocess, and files to point it at."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

# The tests run side by side, and their tensors are tiny: threads would only wait for each other. For the
# processes that tests start, too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import preloaded

from trainlint.processes import zygotes

zygotes._process = preloaded.start_zygote
COMMAND = str(Path(sys.executable).with_name("trainlint"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose tests share something costly come first, so that no worker waits for one at the end."""
    items.sort(key=lambda item: not _shares(item.nodeid.partition("::")[0]))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Under `-n`: files whose tests share something costly go to one worker each, other tests to any.

    xdist's own `loadgroup` does not group under pytest 9.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if _shares(file) else nodeid

    return Scheduling(config, log)


@cache
def _shares(file: str) -> bool:
    path = Path(__file__).parent / Path(file).name
    return _SHARED.search(path.read_text(encoding="utf-8")) is not None


_SHARED = re.compile(r'scope="(module|session)"|@lru_cache|@cache')


@pytest.fixture(autouse=True)
def _fresh_processes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("fresh") is not None:
        monkeypatch.setattr(zygotes, "_process", preloaded.STARTED_AFRESH)


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """Each test draws the same weights in whatever order they run."""
    import torch

    torch.manual_seed(0)


@dataclass(frozen=True)
class Result:
    """One run of the command line."""

    status: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def report(self) -> dict[str, Any]:
        """What was printed as JSON; every report that a test reads is as the published schema has it."""
        report = json.loads(self.stdout)
        report_validator().validate(report)
        return report

    @property
    def targets(self) -> dict[str, dict[str, Any]]:
        """The targets by name; no name may come twice."""
        targets = self.report["targets"]
        names = [target["target"] for target in targets]
        assert len(set(names)) == len(names), names
        return {target["target"]: target for target in targets}

    def statuses(self) -> dict[str, str]:
        return {name: target["status"] for name, target in self.targets.items()}

    def found(self, code: str) -> list[dict[str, Any]]:
        return [finding for finding in self.report["findings"] if finding["code"] == code]

    def complaints(self) -> list[str]:
        """The lines on stderr that trainlint wrote itself, without the output of the targets."""
        return [line for line in self.stderr.splitlines() if not line.startswith("    | ")]


@cache
def report_validator() -> Any:
    """Validates reports by the JSON Schema in the docs."""
    from jsonschema import Draft202012Validator

    path = Path(__file__).parent.parent / "docs" / "reference" / "report.schema.json"
    return Draft202012Validator(json.loads(path.read_text(encoding="utf-8")))


Run = Callable[..., Result]


def run_command(
    *arguments: str | Path,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    timeout: float = 240,
    fresh: bool = False,
) -> Result:
    """Run the command line, `fresh` from the start of the interpreter on or forked, see `preloaded.py`."""
    started = time.monotonic()
    environment = {**os.environ, "COLUMNS": "200", **(env or {})}
    if not fresh and preloaded.is_of_use(environment):
        status, stdout, stderr = preloaded.run(
            [*map(str, arguments)], cwd=cwd, environment=environment, timeout=timeout
        )
        return Result(status, stdout, stderr, time.monotonic() - started)
    done = subprocess.run(
        [COMMAND, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr, time.monotonic() - started)


def check_snapshot(name: str, text: str) -> None:
    """The text is that of `tests/snapshots`; with UPDATE_SNAPSHOTS=1 it becomes that."""
    path = Path(__file__).parent / "snapshots" / name
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def write_files(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    """Write the files with their common indentation removed; folders are made as needed."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(textwrap.dedent(content).lstrip("\n"), encoding="utf-8")
    return folder


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> bool:
    """Whether the condition comes true in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


@pytest.fixture
def trainlint(tmp_path: Path, request: pytest.FixtureRequest) -> Run:
    """Run the command line in `tmp_path`."""
    fresh = request.node.get_closest_marker("fresh") is not None

    def run(*arguments: str | Path, **options: Any) -> Result:
        return run_command(*arguments, **{"cwd": tmp_path, "fresh": fresh, **options})

    return run


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Mapping[str, str | bytes]], Path]:
    """Write files below `tmp_path`."""
    return lambda files: write_files(tmp_path, files)
