"""`[tool.trainlint]`: what is read, what is refused, and what the command line overrides."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import run_command, write_files

from trainlint.config import Config, load_config
from trainlint.errors import ConfigError

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


def load(folder: Path, section: str, name: str = "pyproject.toml") -> Config:
    (folder / name).write_text(section, encoding="utf-8")
    return load_config(start=folder)


def test_defaults_without_a_file_or_section(tmp_path: Path) -> None:
    assert load(tmp_path, "[project]\nname = 'x'\n") == Config()


def test_all_keys(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """
[tool.trainlint]
select = ["NRM", "saturating-stack"]
extend-select = ["ARC"]
ignore = ["ARC001"]
fail-on = "warning"
inputs = "2x3x8x8"
timeout = 30
memory-limit = 4000
jobs = 2
[tool.trainlint.rules.saturating-stack]
least = 4
""",
    )
    assert config == Config(
        select=("NRM", "saturating-stack"), extend_select=["ARC"], ignore=["ARC001"],
        fail_on="warning", inputs="2x3x8x8", timeout=30, memory_limit=4000, jobs=2,
        rules={"saturating-stack": {"least": 4}},
    )  # fmt: skip


def test_the_nearest_file_above_counts(tmp_path: Path) -> None:
    load(tmp_path, "[tool.trainlint]\njobs = 3\n")
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert load_config(start=tmp_path / "a" / "b").jobs == 3


def test_targets_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, {"net.py": "", "a/x.py": ""})
    load(tmp_path, '[tool.trainlint]\ntargets = ["net.py::Net", "a", "pkg.mod:attr"]\n')
    monkeypatch.chdir(tmp_path / "a")
    assert load_config().targets == ["../net.py::Net", ".", "pkg.mod:attr"]


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ("[tool.trainlint\n", "not valid TOML.*line 1"),
        (
            "[tool.trainlint]\nselct = []\n",
            r"no key 'selct' \(did you mean select\?\); valid: .*fail-on",
        ),
        ("[tool.trainlint]\nfail_on = 'error'\n", r"did you mean fail-on"),
        ("[tool.trainlint]\nselect = 'NRM'\n", "select must be a list of texts, not 'NRM'"),
        ("[tool.trainlint]\nignore = [3]\n", r"ignore must be a list of texts, not \[3\]"),
        (
            "[tool.trainlint]\nfail-on = 'fatal'\n",
            "fail-on must be one of error, warning, info, never, not 'fatal'$",
        ),
        ("[tool.trainlint]\nfail-on = 'warn'\n", "not 'warn'; did you mean warning"),
        ("[tool.trainlint]\ntimeout = 'long'\n", "timeout must be a number ≥ 1, not 'long'"),
        ("[tool.trainlint]\ntimeout = -1\n", "timeout must be a number ≥ 1, not -1"),
        ("[tool.trainlint]\njobs = -1\n", "jobs must be an integer ≥ 0, not -1"),
        ("[tool.trainlint]\nfix = 'yes'\n", "fix must be true or false, not 'yes'"),
        ("[tool.trainlint]\nrules = ['a']\n", "rules must be a table of tables, not "),
        ("[tool]\ntrainlint = 3\n", "must be a table"),
    ],
)
def test_what_is_refused(tmp_path: Path, section: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        load(tmp_path, section)
    assert "\n" not in str(caught.value)


def test_a_tool_that_is_no_table(tmp_path: Path) -> None:
    assert load(tmp_path, "tool = 3\n") == Config()


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ("[tool.trainlint]\nselect = [\n", "not valid TOML"),
        ("[tool.trainlint]\nselect = ['XYZ']\n", "unknown rule 'XYZ'"),
        ("[tool.trainlint.rules.saturating-stuck]\nleast = 4\n", "did you mean saturating-stack"),
        ("[tool.trainlint.rules.saturating-stack]\nlest = 4\n", "unknown option 'lest'"),
    ],
)
def test_on_the_command_line_it_is_one_line(tmp_path: Path, section: str, says: str) -> None:
    write_files(tmp_path, {"net.py": FAULTY})
    (tmp_path / "pyproject.toml").write_text(section)
    result = run_command("check", "net.py", cwd=tmp_path)
    assert result.status == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert says in result.stderr


def test_the_command_line_overrides_the_file(tmp_path: Path) -> None:
    write_files(tmp_path, {"net.py": FAULTY})
    (tmp_path / "pyproject.toml").write_text(
        "[tool.trainlint]\ntargets = ['net.py']\nfail-on = 'never'\nignore = ['SUP']\n"
    )
    assert run_command("check", "--format", "json", cwd=tmp_path).status == 0
    assert run_command("check", "--fail-on", "error", cwd=tmp_path).status == 1
    assert run_command("check", "--fail-on", "error", "--select", "ARC", cwd=tmp_path).status == 0
