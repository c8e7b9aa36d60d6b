"""`check --fix` and its kin on real models, through the command line and the processes that it starts."""

from __future__ import annotations

import ast
import difflib
import os
import re
import subprocess
from pathlib import Path

import pytest
from conftest import COMMAND, run_command

from trainlint.files import Options, file_check
from trainlint.fixes.fixing import Fixed, Wish, fix_files

FIXTURES = Path(__file__).parent.parent / "fixtures" / "broken"
RULES = Path(__file__).parent.parent / "rules"
NET = """\
from torch import nn

model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(4))
"""
SIGMOIDS = """\
from torch import nn

layers = [layer for _ in range(8) for layer in (nn.Linear(16, 16), nn.Sigmoid())]
model = nn.Sequential(*layers, nn.Linear(16, 2))
"""
TAIL = "self.conv = nn.Conv2d(3, 8, 3, bias=False)\n        self.norm = nn.BatchNorm2d(4)"
CLASS = f'''\
"""ä: a network."""
import torch
from torch import nn


class Größe(nn.Module):
    def __init__(self):
        super().__init__()
        {TAIL}  # é: \x0c channels

    def forward(self, x):
        return self.norm(self.conv(x))'''
SPELLINGS = {
    "plain": CLASS.encode(),
    "crlf": CLASS.replace("\n", "\r\n").encode(),
    "tabs": CLASS.replace("    ", "\t").encode(),
    "mark": b"\xef\xbb\xbf" + CLASS.encode(),
    "latin": b"# -*- coding: latin-1 -*-\n" + CLASS.encode("latin-1"),
    "windows": b"# coding: cp1252\r\n" + CLASS.replace("\n", "\r\n").encode("cp1252"),
    "suite": CLASS.replace(f"\n        super().__init__()\n        {TAIL}", " super().__init__(); "
                           + TAIL.replace("\n        ", "; ")).encode(),
    "ended": CLASS.encode() + b"\n\n\n",
}  # fmt: skip


def fixed(folder: Path, *targets: str, **wish: bool) -> Fixed:
    """The targets, seen from the folder, as `--static --fix` leaves them."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        check = file_check(list(targets) or ["."], asked=Options(stages=("static",)))
        return fix_files(check, Wish(**wish))
    finally:
        os.chdir(before)


def statuses(outcome: Fixed) -> list[tuple[str, str, str]]:
    return [(each.target, each.status, each.reason) for each in outcome.report.repairs or []]


def test_every_byte_beside_the_edit_stays_and_a_second_run_changes_nothing(tmp_path: Path) -> None:
    for name, content in SPELLINGS.items():
        (tmp_path / f"{name}.py").write_bytes(content)
    outcome = fixed(tmp_path)
    assert {status for _, status, _ in statuses(outcome)} == {"applied"}
    assert len(statuses(outcome)) == len(SPELLINGS)
    assert outcome.report.findings == []
    for name, content in SPELLINGS.items():
        expected = content.replace(b"BatchNorm2d(4)", b"BatchNorm2d(8)")
        assert (tmp_path / f"{name}.py").read_bytes() == expected
    again = fixed(tmp_path)
    assert (again.changed, statuses(again)) == ([], [])


def test_a_fix_may_lie_in_a_file_that_the_target_imports(tmp_path: Path) -> None:
    (tmp_path / "layers.py").write_text(
        "from torch import nn\n\n\ndef block():\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(4))\n"
    )
    (tmp_path / "net.py").write_text("from layers import block\n\nmodel = block()\n")
    package = tmp_path / "site-packages" / "zoo"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text((tmp_path / "layers.py").read_text())
    (tmp_path / "far.py").write_text(
        "import sys\n\nsys.path.append('site-packages')\nfrom zoo import block\n\nmodel = block()\n"
    )
    outcome = fixed(tmp_path, "net.py", "far.py")
    assert [each.filename for each in outcome.changed] == ["layers.py"]
    assert "BatchNorm2d(8)" in (tmp_path / "layers.py").read_text()
    assert "BatchNorm2d(4)" in (package / "__init__.py").read_text()
    assert statuses(outcome) == [("net.py::model", "applied", "")]


# ---------------------------------------------------------------------- the options


def test_a_patch_is_shown_and_can_be_applied(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(NET)
    shown = run_command("check", "--static", "--diff", "net.py", cwd=tmp_path)
    assert (shown.status, path.read_text()) == (1, NET)
    assert shown.stderr == "trainlint: would fix 1 finding (norm-features-mismatch)\n"
    assert shown.stdout.startswith("--- net.py\n+++ net.py\n@@ -1,3 +1,3 @@\n")
    done = subprocess.run(
        ["git", "apply", "-p0", "-"], cwd=tmp_path, input=shown.stdout, text=True, check=False
    )
    assert done.returncode == 0
    assert path.read_text() == NET.replace("(4)", "(8)")
    nothing = run_command("check", "--static", "--diff", "net.py", cwd=tmp_path)
    assert (nothing.status, nothing.stdout) == (0, "")


def test_what_is_unsafe_is_counted_and_applied_when_it_is_asked_for(tmp_path: Path) -> None:
    path, config = tmp_path / "net.py", tmp_path / "pyproject.toml"
    path.write_text(SIGMOIDS)
    config.write_text("[tool.trainlint]\nfix = true\n")
    counted = run_command("check", "--static", "--no-fix", "--unsafe-fixes", "net.py", cwd=tmp_path)
    assert counted.stderr == (
        "trainlint: nothing was written: 0 findings have a safe fix (--fix), 1 more an unsafe one "
        "(--fix --unsafe-fixes)\n"
    )
    safe = run_command("check", "--static", "--fix-only", "net.py", cwd=tmp_path)
    assert (safe.status, safe.stdout) == (0, "")
    assert safe.stderr == "trainlint: fixed 0 findings, 1 more with --unsafe-fixes\n"
    assert path.read_text() == SIGMOIDS
    config.write_text("[tool.trainlint]\nfix = true\nunsafe-fixes = true\n")
    done = run_command("check", "--static", "--format", "json", "net.py", cwd=tmp_path)
    assert done.status == 0, done.stderr
    assert "Sigmoid" not in path.read_text()
    (repair,) = done.report["repairs"]
    assert (repair["code"], repair["status"], repair["safety"]) == ("ARC008", "applied", "unsafe")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--interactive"], "--interactive needs a terminal to ask in; --diff shows the fixes"),
        (["--diff", "--interactive"], "--diff writes nothing: leave out --diff or --interactive"),
        (["--diff", "--fix-only"], "--diff writes nothing: leave out --diff or --fix-only"),
        (["--diff", "--format", "json"], "--diff writes no report: leave out --format, --output"),
        (["--fix-only", "--output", "x.txt"], "--fix-only writes no report: leave out --format"),
    ],
)
def test_what_makes_no_sense_is_one_clear_line(
    options: list[str], complaint: str, tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text(NET)
    done = run_command("check", *options, "net.py", cwd=tmp_path)
    assert (done.status, done.stdout) == (2, "")
    assert done.stderr.startswith(f"trainlint: error: {complaint}")
    assert done.stderr.count("\n") == 1


def test_a_terminal_is_asked_before_each_fix(tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    path = tmp_path / "net.py"
    path.write_text(NET + NET.replace("model", "other"))
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [COMMAND, "check", "--static", "--interactive", "net.py"], cwd=tmp_path, stdin=theirs,
        stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    os.write(ours, b"n\ny\n")
    said = everything(ours)
    assert process.wait(timeout=300) == 1
    assert path.read_text() == NET + NET.replace("model", "other").replace("(4)", "(8)")
    assert said.count("apply it? [y]es, [n]o, [a]ll, [q]uit") == 2
    assert "fixed 1 finding (norm-features-mismatch), 1 declined" in said
    assert "\x1b[31m-other = " in said  # the line that goes, in red


def everything(descriptor: int) -> str:
    text = b""
    while True:
        try:
            part = os.read(descriptor, 4096)
        except OSError:  # the other end is closed
            part = b""
        if not part:
            os.close(descriptor)
            return text.decode()
        text += part


def test_what_stands_in_a_baseline_is_not_fixed(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(NET)
    run_command("check", "--static", "net.py", "--write-baseline", "known.json", cwd=tmp_path)
    done = run_command(
        "check", "--static", "net.py", "--fix", "--baseline", "known.json", cwd=tmp_path
    )
    assert (done.status, path.read_text()) == (0, NET)
    assert "fixed 0 findings" in done.stderr


def test_a_notebook_is_no_target_and_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "book.ipynb"
    path.write_text('{"cells": []}')
    done = run_command("check", "--static", "--fix", "book.ipynb", cwd=tmp_path)
    assert done.status == 2
    assert "notebooks are not read" in done.stderr
    assert path.read_text() == '{"cells": []}'


# ---------------------------------------------------------------------- the fixtures


def with_safe_fixes() -> list[Path]:
    """The fixtures whose faults are of rules that offer a safe edit."""
    sources = (
        path for path in RULES.rglob("*.py") if re.search("SAFE|width_fixes", path.read_text())
    )
    codes = {
        code for path in sources for code in re.findall(r'@rule\(\s*"(\w+)"', path.read_text())
    }
    expected = re.compile(rf"# expect:.*\b({'|'.join(codes)})\b")
    return [path for path in sorted(FIXTURES.glob("*.py")) if expected.search(path.read_text())]


def test_the_fixtures_are_mended_at_the_lines_that_the_fixes_name(tmp_path: Path) -> None:
    for path in with_safe_fixes():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    outcome = fixed(tmp_path)
    repairs = [each for each in outcome.report.repairs or [] if each.status == "applied"]
    assert len({repair.target for repair in repairs}) >= 15
    left = {(finding.code, finding.target, finding.location) for finding in outcome.report.findings}
    assert not left & {(repair.code, repair.target, repair.location) for repair in repairs}
    for changed in outcome.changed:
        ast.parse(changed.after)
        assert (tmp_path / changed.filename).read_text() == changed.after
        edits = [
            edit for each in repairs for edit in each.edits if edit.filename == changed.filename
        ]
        meant = {
            row for edit in edits for row in range(edit.location.row, edit.end_location.row + 1)
        }
        before, after = changed.before.split("\n"), changed.after.split("\n")
        blocks = difflib.SequenceMatcher(a=before, b=after, autojunk=False).get_matching_blocks()
        kept = {row + 1 for start, _, size in blocks for row in range(start, start + size)}
        assert set(range(1, len(before) + 1)) - kept <= meant
    again = fixed(tmp_path, *[each.filename for each in outcome.changed])
    assert again.changed == []
