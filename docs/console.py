"""Run the commands of a Markdown file's `console` blocks and put their real output below them.

`python docs/console.py` rewrites the README's blocks; `tests/test_docs.py` fails where one is stale.
A block holds one command after `$ ` and its output. Seconds differ from run to run and do not count.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(
    r"^```console\n\$ (?P<command>[^\n]+)\n(?P<output>.*?)^```$", re.MULTILINE | re.DOTALL
)
SECONDS = re.compile(r"\(\d+\.\d s\)|(?<=\"seconds\": )[\d.]+|\d+(?= of them recorded)")
SLOWDOWN = re.compile(r",\s+[\d.]+ times the\s+time of a\s+step")


@dataclass(frozen=True)
class Run:
    """What a command printed, and its exit status."""

    output: str
    status: int
    errors: str


def executable(name: str) -> str:
    """A command of the environment in which this runs."""
    return str(Path(sys.executable).with_name(name))


def run(command: str) -> Run:
    """Run one command line of this project from its root, as in a pipe of 120 columns."""
    words = shlex.split(command)
    watches = words[:2] == ["trainlint", "run"]  # whose report is on standard error
    done = subprocess.run(
        [executable(words[0]), *words[1:]],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "120", "PYTHONPATH": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if watches else subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=240,
        check=False,
    )
    return Run(done.stdout, done.returncode, done.stderr or "")


def without_seconds(text: str) -> str:
    """The text with every duration replaced, so that two runs compare equal."""
    return SLOWDOWN.sub("", SECONDS.sub("(… s)", text))


def main() -> int:
    """Rewrite the README's blocks."""
    path = ROOT / "README.md"

    def fresh(block: re.Match[str]) -> str:
        output = run(block["command"]).output
        if without_seconds(output) == without_seconds(block["output"]):
            return block[0]
        return f"```console\n$ {block['command']}\n{output}```"

    text = path.read_text(encoding="utf-8")
    path.write_text(BLOCK.sub(fresh, text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
