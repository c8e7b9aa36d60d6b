"""The blocks of docs/guides/editors.md, as an editor uses them: on what a real `--watch` prints."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from blocks import ROOT, Block, blocks
from conftest import COMMAND

PAGE = ROOT / "docs" / "guides" / "editors.md"


def block(language: str, name: str | None = None) -> Block:
    """The page's only block of this language that is written to this file."""
    (found,) = (each for each in blocks(PAGE) if (each.language, each.file) == (language, name))
    return found


def without_times(text: str) -> list[str]:
    return re.sub(r"\[\d\d:\d\d:\d\d\]", "[time]", text).splitlines()


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the session that the page shows prints, line by line."""
    folder = tmp_path_factory.mktemp("project")
    model = folder / "model.py"
    sick = block("python", "model.py").text
    model.write_text(sick)
    command, *_ = block("text").text.splitlines()
    process = subprocess.Popen(
        command.replace("$ trainlint", COMMAND).split(), cwd=folder, text=True, encoding="utf-8",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    lines = []
    try:
        for save in (sick.replace("(32)", "(16"), sick.replace("(32)", "(16)"), None):
            while "exit status" not in (line := process.stdout.readline()):
                assert line, lines
                lines.append(line)
            lines.append(line)
            if save is not None:
                # In one step: on a busy machine the moment between emptying and writing may be long.
                saved = folder / "saved"
                saved.write_text(save)
                saved.replace(model)
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=300)
        assert (process.returncode, rest) == (0, "")
    finally:
        process.kill()
    return "".join(lines).splitlines()


def test_the_session_is_what_is_printed(printed: list[str]) -> None:
    _, *shown = without_times(block("text").text)
    assert without_times("\n".join(printed)) == shown


def matched(matcher: dict[str, Any], line: str) -> dict[str, str] | None:
    """What Visual Studio Code takes from a line."""
    pattern = dict(matcher["pattern"])
    found = re.search(pattern.pop("regexp"), line)
    constant = {"severity": matcher["severity"]} if "severity" in matcher else {}
    return found and {**constant, **{name: found[group] for name, group in pattern.items()}}


def test_the_problem_matchers_of_visual_studio_code(printed: list[str]) -> None:
    (task,) = json.loads(block("json", ".vscode/tasks.json").text)["tasks"]
    findings, unfinished = task["problemMatcher"]
    assert findings["owner"] == unfinished["owner"], "the beginning of a check clears both"
    mismatch, no_activation, again = (
        found for line in printed if (found := matched(findings, line))
    )
    message = "norm-features-mismatch: BatchNorm2d(32) receives 16 channels from conv"
    assert mismatch == {
        "file": "model.py", "line": "9", "column": "21", "severity": "error", "code": "NRM001",
        "message": message,
    }  # fmt: skip
    assert no_activation == again
    assert (no_activation["severity"], no_activation["line"]) == ("warning", "10")
    errors = [found for line in printed if (found := matched(unfinished, line))]
    said = "does not parse: '(' was never closed"
    assert errors == [{"severity": "error", "file": "model.py", "line": "9", "message": said}]
    background = findings["background"]
    begins = [n for n, line in enumerate(printed) if re.search(background["beginsPattern"], line)]
    ends = [n for n, line in enumerate(printed) if re.search(background["endsPattern"], line)]
    assert begins == [0, *(end + 1 for end in ends[:-1])]
    assert ends[-1] == len(printed) - 1
    assert task["args"][2:] == block("text").text.splitlines()[0].split()[2:]


def test_the_task_begins_with_several_files_too() -> None:
    (task,) = json.loads(block("json", ".vscode/tasks.json").text)["tasks"]
    begins = task["problemMatcher"][0]["background"]["beginsPattern"]
    assert re.search(begins, "trainlint: [10:40:47] a.py, b/c.py and 3 more changed, checking")


@pytest.mark.skipif(shutil.which("vim") is None, reason="no vim")
def test_vim_reads_the_findings(printed: list[str], tmp_path: Path) -> None:
    (tmp_path / "python.vim").write_text(block("vim", "python.vim").text)
    (tmp_path / "said").write_text("\n".join(printed), encoding="utf-8")
    (tmp_path / "model.py").touch()
    script = (
        "set encoding=utf-8\nedit model.py\nsource python.vim\ncgetfile said\nlet found = []\n"
        "for each in getqflist()\n"
        "  call add(found, [bufname(each.bufnr), each.lnum, each.col, each.type, each.text])\n"
        "endfor\ncall writefile([json_encode(found), &makeprg], 'found')\nquitall!\n"
    )
    (tmp_path / "script.vim").write_text(script)
    command = ["vim", "-u", "NONE", "-N", "-es", "-S", "script.vim"]
    subprocess.run(command, cwd=tmp_path, stdin=subprocess.DEVNULL, timeout=300, check=False)
    found, program = (tmp_path / "found").read_text(encoding="utf-8").splitlines()
    assert program == "trainlint check --format concise %:S"
    rows = [(name, row, column, kind) for name, row, column, kind, _ in json.loads(found)]
    warning = ("model.py", 10, 23, "w")
    assert rows == [("model.py", 9, 21, "e"), warning, ("model.py", 9, 0, ""), warning]
    texts = [each[-1] for each in json.loads(found)]
    assert texts[0].startswith("NRM001 norm-features-mismatch: BatchNorm2d(32)")
    assert texts[2] == "does not parse: '(' was never closed"
