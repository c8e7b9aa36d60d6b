"""What starting trainlint costs beyond starting Python, where no model is checked.

    python -m benchmarks.startup [--rounds 30]

Each case is a process, and runs right after `python -c pass` (the pytest plugin after `import pytest`), so
that what else the machine does falls on both. Wall clock of the whole process; the differences and the
ratios are taken pair by pair, and what is printed are their medians with the quartiles. `python -c pass`
against itself is the noise floor.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

COMMAND = str(Path(sys.executable).with_name("trainlint"))
HOOK = ("check", "--static", "--scan", "--importers")
NOTHING = (sys.executable, "-c", "pass")
PYTEST = (sys.executable, "-c", "import pytest")

# A commit without models: what lies around them in a project.
FILES = {
    "plain.py": "import json\n\n\ndef load(path):\n    return json.loads(open(path).read())\n" * 20,
    "data.py": (
        "import torch\nfrom torch.utils.data import Dataset\n\n\nclass Pairs(Dataset):\n"
        "    def __len__(self):\n        return 8\n\n"
        "    def __getitem__(self, index):\n        return torch.randn(3), torch.tensor(0)\n"
    ),
    "metrics.py": (
        "import torch\n\n\n"
        + "def accuracy(scores, labels):\n    return (scores.argmax(1) == labels).float().mean()\n\n\n"
        * 20
    ),
}


@dataclass(frozen=True)
class Case:
    """A command, what it is compared with, and the difference that is asked for, in seconds."""

    name: str
    command: Sequence[str]
    base: Sequence[str] = NOTHING
    target: float | None = None
    environment: Mapping[str, str] | None = None


def cases(files: Sequence[str]) -> list[Case]:
    """What is measured; `files` hold no model."""
    plugin = "import pytest, trainlint.integrations.pytest_plugin"
    tab = {
        "_TRAINLINT_COMPLETE": "bash_complete",
        "COMP_WORDS": "trainlint\nexplain\nNRM",
        "COMP_CWORD": "2",
    }
    return [
        Case("python -c pass", NOTHING),
        Case("import trainlint", (sys.executable, "-c", "import trainlint"), target=0.1),
        Case("trainlint --version", (COMMAND, "--version"), target=0.1),
        Case("trainlint --help", (COMMAND, "--help"), target=0.1),
        Case("pre-commit, no models", (COMMAND, *HOOK, *files), target=0.15),
        Case("Tab: explain NRM", (COMMAND,), environment=tab),
        Case("trainlint rules", (COMMAND, "rules")),
        Case("trainlint explain NRM001", (COMMAND, "explain", "NRM001")),
        Case("pytest plugin", (sys.executable, "-c", plugin), base=PYTEST),
    ]  # fmt: skip


def seconds(command: Sequence[str], environment: Mapping[str, str] | None = None) -> float:
    """The wall clock of one process, which must succeed."""
    begun = time.perf_counter()
    subprocess.run(
        command, check=True, capture_output=True, env={**os.environ, **(environment or {})}
    )
    return time.perf_counter() - begun


def measure(measured: Sequence[Case], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """(seconds of the base, seconds of the command) of each round, after one that is not counted."""
    pairs: dict[str, list[tuple[float, float]]] = {case.name: [] for case in measured}
    for number in range(rounds + 1):
        for case in measured:
            pair = seconds(case.base), seconds(case.command, case.environment)
            if number:
                pairs[case.name].append(pair)
    return pairs


def spread(values: Sequence[float], digits: int) -> str:
    """`median [quartiles]`."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.{digits}f} [{low:.{digits}f}..{high:.{digits}f}]"


def main() -> None:
    """Print the table of `startup.md`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in FILES]
        for path in files:
            path.write_text(FILES[path.name], encoding="utf-8")
        measured = cases(list(map(str, files)))
        pairs = measure(measured, rounds)
    print("| | s beyond the base | ratio to the base | asked for |")
    print("|---|---|---|---|")
    for case in measured:
        beyond = [own - base for base, own in pairs[case.name]]
        ratios = [own / base for base, own in pairs[case.name]]
        target = f"< {case.target} s" if case.target else ""
        print(f"| {case.name} | {spread(beyond, 3)} | {spread(ratios, 2)} | {target} |")
    bases = [base for case in measured for base, _ in pairs[case.name] if case.base is NOTHING]
    print(f"\n`python -c pass`: {spread(bases, 3)} s; {rounds} rounds.")


if __name__ == "__main__":
    main()
