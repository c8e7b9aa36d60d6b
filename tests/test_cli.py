"""The commands and their exit statuses, through the real command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import COMMAND, Run, run_command, write_files

import trainlint as trainlint_package
from trainlint import __version__
from trainlint.cli import main
from trainlint.cli.writing import check_writable, outputs_of
from trainlint.errors import UsageError

FAULTY = """
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 64, 3)
            self.norm = nn.BatchNorm2d(32)

        def forward(self, x):
            return self.norm(self.conv(x))
"""
SOUND = FAULTY.replace("(32)", "(64)")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    unused = SOUND + "\n    x = 1  # trainlint: ignore[NRM001]\n"
    return write_files(tmp_path, {"faulty.py": FAULTY, "sound.py": SOUND, "unused.py": unused})


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["sound.py"], 0),
        (["faulty.py", "sound.py"], 1),
        (["faulty.py", "--exit-zero"], 0),
        (["faulty.py", "--select", "ARC", "--extend-select", "norm-features-mismatch"], 1),
        (["faulty.py", "--select", "ALL", "--ignore", "NRM"], 0),
        (["faulty.py", "--ignore", "normalization", "--extend-select", "NRM001"], 1),
        (["unused.py", "--fail-on", "warning"], 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_exit_status(folder: Path, arguments: list[str], status: int) -> None:
    result = run_command("check", *arguments, cwd=folder)
    assert result.status == status, result
    assert result.stderr == ""
    assert result.stdout.endswith(f"exit {status}\n")


def test_formats_and_output_file(folder: Path) -> None:
    text = run_command("check", "faulty.py", cwd=folder)
    assert "norm-features-mismatch NRM001  faulty.py:7:21" in text.stdout
    concise = run_command("check", "faulty.py", "--format", "concise", cwd=folder)
    assert concise.stdout.startswith("faulty.py:7:21: error NRM001 norm-features-mismatch: ")
    assert concise.stderr == ""
    written = run_command(
        "check", "faulty.py", "--format", "json", "--output", "r.json", cwd=folder
    )
    assert (written.status, written.stdout) == (1, "")
    report = json.loads((folder / "r.json").read_text())
    assert report["version"] == 1
    assert set(report["findings"][0]) >= {
        "code", "name", "severity", "confidence", "message", "stage", "target", "module", "filename",
        "location", "end_location", "evidence", "symptoms", "fixes",
    }  # fmt: skip
    assert set(report["targets"][0]) >= {"target", "status", "reason", "stages", "seconds"}


def test_concise_tells_what_was_not_checked_on_stderr(folder: Path) -> None:
    write_files(folder, {"data/load.py": "x = 1\n"})
    result = run_command("check", "sound.py", "data", "--format", "concise", cwd=folder)
    assert (result.status, result.stdout) == (0, "")
    assert result.stderr.splitlines()[-1] == (
        "trainlint: skipped data: no model found in this directory (tests are not searched)"
    )


def test_concise_shows_advice_only_when_asked(folder: Path) -> None:
    biased = SOUND.replace("self.norm(self.conv(x))", "self.norm(self.conv(x)).mean((2, 3))")
    write_files(folder, {"biased.py": biased})
    arguments = ("check", "biased.py", "--select", "NRM005", "--format", "concise")
    assert run_command(*arguments, cwd=folder).stdout == ""
    shown = run_command(*arguments, "--show-info", cwd=folder).stdout
    assert shown.startswith("biased.py:6:21: info NRM005")


@pytest.mark.parametrize("target", ["", " ", "::Net"])
def test_an_empty_target_is_no_directory(folder: Path, target: str) -> None:
    result = run_command("check", target, cwd=folder)
    assert result.status == 2
    assert result.stderr == f"trainlint: error: no file is named by {target!r}\n"


@pytest.mark.parametrize("name", ["train.py", "net.py::Net", "."])
def test_a_file_in_place_of_a_command_is_one_to_check(name: str) -> None:
    done = CliRunner().invoke(main, [name, "--verify"])
    assert done.exit_code == 2
    assert f"trainlint check {name}\n" in done.output
    other = CliRunner().invoke(main, ["chek"])
    assert "No such command 'chek'" in other.output
    assert "trainlint check" not in other.output


def test_a_notebook_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "a.ipynb").write_text("{}")
    done = CliRunner().invoke(main, ["run", str(tmp_path / "a.ipynb")])
    assert done.exit_code == 2
    assert "notebooks are not read: save its code as a .py file" in done.output


def test_an_interrupt_during_the_imports() -> None:
    program = (
        "import sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'trainlint.cli':\n"
        "            raise KeyboardInterrupt\n"
        "from trainlint.__main__ import main\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stderr) == (130, "trainlint: interrupted\n")


@pytest.mark.parametrize("target", [42, [1, 2], None, [None], 1.5])
def test_what_is_no_target_is_a_usage_error(target: object) -> None:
    with pytest.raises(UsageError, match=r"cannot check (int|NoneType|float) .*: give a model"):
        trainlint_package.check(target)


def test_a_report_that_cannot_be_written(folder: Path) -> None:
    result = run_command("check", "sound.py", "--output", "no/where.json", cwd=folder)
    assert result.status == 2
    assert result.stderr == "trainlint: error: cannot write no/where.json: no such folder\n"


def test_whether_files_can_be_written_is_tried_and_leaves_them_as_they_were(
    folder: Path,
) -> None:
    kept = folder / "kept.json"
    kept.write_text("before")
    link = folder / "link.json"
    link.symlink_to(folder / "new.json")
    check_writable([kept, link, folder / "new.txt", Path(os.devnull)])
    assert kept.read_text() == "before"
    assert link.is_symlink()
    assert {path.name for path in folder.glob("new.*")} == set()
    reader, writer = os.pipe()
    check_writable([Path(f"/dev/fd/{writer}")])  # what the shell makes of >(command)
    os.close(writer)
    os.close(reader)
    with pytest.raises(UsageError, match=r"cannot write .*: File name too long"):
        check_writable([folder / ("x" * 300)])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("sarrif:x.sarif", "no form 'sarrif'; did you mean sarif?"),
        ("JSON:x", "no form 'JSON'; did you mean json?"),
        ("sarif:", "no file follows sarif:"),
        ("qqq:x", "no form 'qqq'; forms: text, "),
    ],
)
def test_a_form_that_is_none_is_no_name_of_a_file(value: str, said: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(f'--output {value}: {said}')}"):
        outputs_of((value,), "text")


def test_what_names_a_file_in_spite_of_its_colon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run:one").mkdir()
    for name in ("./sarrif:x", "C:x.json", "run:one/x.json", "2024:x", "x.json"):
        assert outputs_of((name,), "json") == ([("json", Path(name))], True)


@pytest.mark.parametrize("command", ["check", "run", "sweep"])
def test_each_command_refuses_a_form_that_is_none(folder: Path, command: str) -> None:
    done = run_command(command, "--output", "jsn:x.json", "sound.py", cwd=folder)
    assert (done.status, done.stdout) == (2, "")
    assert done.stderr.startswith(
        "trainlint: error: --output jsn:x.json: no form 'jsn'; did you mean"
    )


def test_a_terminal_without_unicode(folder: Path) -> None:
    environment = {"PYTHONIOENCODING": "ascii"}
    write_files(folder, {"网络.py": FAULTY})
    for form in ("text", "concise", "json"):
        result = run_command("check", "网络.py", "--format", form, cwd=folder, env=environment)
        assert result.status == 1, result
        assert result.stderr == ""
        assert "NRM001" in result.stdout
        if form == "text":
            assert " > 7 | self.norm = nn.BatchNorm2d(32)\n" in result.stdout
            assert "BatchNorm2d(32) -> BatchNorm2d(64)" in result.stdout
            assert "\\u7f51\\u7edc.py" in result.stdout


def test_explain_and_rules(trainlint: Run) -> None:
    assert trainlint("--version").stdout == f"trainlint, version {__version__}\n"
    rules = json.loads(trainlint("rules", "--format", "json").stdout)
    codes = [rule["code"] for rule in rules]
    assert codes == sorted(codes)
    assert "NRM001" in codes
    assert "norm-features-mismatch" in trainlint("explain", "nrm001").stdout
    unknown = trainlint("explain", "norm-feature-mismatch")
    assert unknown.status == 2
    assert unknown.stderr.splitlines() == [
        "trainlint: error: unknown rule 'norm-feature-mismatch'; did you mean norm-features-mismatch?"
    ]


@pytest.mark.parametrize("shell", ["zsh", "fish", "bash"])
def test_completion_scripts(trainlint: Run, shell: str) -> None:
    result = trainlint("completion", shell)
    assert result.status == 0
    assert "_TRAINLINT_COMPLETE" in result.stdout


def test_completion_of_rules() -> None:
    environment = {
        "_TRAINLINT_COMPLETE": "bash_complete",
        "COMP_WORDS": "trainlint explain NRM",
        "COMP_CWORD": "2",
    }
    done = subprocess.run(
        [COMMAND], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert "plain,NRM001" in done.stdout.splitlines()


def test_new_rule(trainlint: Run, tmp_path: Path) -> None:
    (tmp_path / "rules").mkdir()
    result = trainlint("new-rule", "normalization", "my-fault")
    assert result.status == 0, result
    assert re.search(r"wrote rules/normalization/my_fault\.py", result.stdout)
    again = trainlint("new-rule", "normalization", "my-fault")
    assert again.status == 2
    assert len(again.stderr.splitlines()) == 1


def test_wrong_options_are_usage_errors(trainlint: Run) -> None:
    for arguments in (["check", "--no-such"], ["check", "x.py", "--fail-on", "fatal"], ["chekc"]):
        result = trainlint(*arguments)
        assert result.status == 2
        assert "Traceback" not in result.stderr
