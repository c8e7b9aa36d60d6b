"""What is imported where no model is checked: by name, since time is another machine's affair."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# torch and what comes with it; what formats, draws and analyses; the rules.
HEAVY = {
    "torch", "numpy", "networkx", "rich", "markdown_it", "sympy", "sklearn", "asyncio", "trainlint.api",
    "trainlint.rule", "trainlint.engine", "trainlint.report.text", "trainlint_rules", "trainlint.rounds",
    "trainlint.processes.jobs", "trainlint.fixes.source", "watchfiles", "pygments",
}  # fmt: skip
WITH_RULES = HEAVY - {
    "trainlint.rule",
    "trainlint_rules",
    "rich",
    "pygments",
    "trainlint.fixes.source",
}
NOTHING_TO_FIND = {
    "plain.py": "x = 1\n",
    "empty.py": "",
    "half.py": "x = (\n",
    "data.py": "import torch\n\n\ndef batch():\n    return torch.randn(2, 3)\n",
}


def imported(*arguments: str, cwd: Path) -> set[str]:
    """The modules that a process of Python has imported at its end, which must be a good one."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], cwd=cwd, capture_output=True, text=True,
        timeout=300, check=True, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [
        (["-c", "import trainlint"], HEAVY | {"click", "msgspec", "trainlint.cli"}),
        (["-m", "trainlint", "--version"], HEAVY),
        (["-m", "trainlint", "--help"], HEAVY),
        (["-m", "trainlint", "check", "--help"], HEAVY),
        (["-m", "trainlint", "completion", "zsh"], HEAVY),
        (["-m", "trainlint", "check", "--static", "--scan", *NOTHING_TO_FIND], HEAVY),
        (["-m", "trainlint", "rules"], WITH_RULES),
        (["-m", "trainlint", "explain", "NRM001"], WITH_RULES - {"markdown_it"}),
    ],
    ids=lambda value: " ".join(value[:4]) if isinstance(value, list) else "",
)  # fmt: skip
def test_nothing_heavy_is_imported(arguments: list[str], heavy: set[str], tmp_path: Path) -> None:
    for name, text in NOTHING_TO_FIND.items():
        (tmp_path / name).write_text(text)
    found = imported(*arguments, cwd=tmp_path)
    assert "trainlint" in found
    assert not found & heavy


def test_the_plugin_adds_itself_to_pytest_and_nothing_else(tmp_path: Path) -> None:
    plugin = "trainlint.integrations.pytest_plugin"
    added = imported("-c", f"import pytest, {plugin}", cwd=tmp_path) - imported(
        "-c", "import pytest", cwd=tmp_path
    )
    assert added == {"trainlint", "trainlint.integrations", plugin}
