"""Patterns for files: what they match, and what `exclude` and `per-file-ignores` do with them."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import write_files

from trainlint.api import check
from trainlint.config import load_config
from trainlint.errors import ConfigError
from trainlint.patterns import excludes, matches, rooted

ROOT = Path("/home/ada/my [old] {work}")
NET = """
    from torch import nn

    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(4))
"""


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        ("net.py", "net.py a/b/net.py", "nets.py a/net.py/x"),
        ("legacy", "legacy a/legacy", "legacy/x.py legacy_2"),
        ("src/legacy", "src/legacy", "legacy a/src/legacy"),
        ("./src/legacy/", "src/legacy", "legacy"),
        ("src/*.py", "src/a.py src/a/b.py", "a.py src/a.txt"),
        ("src/**/net.py", "src/net.py src/a/b/net.py", "net.py src/a/nets.py"),
        ("**/demo/*", "demo/a.py src/demo/a/b.py", "demo src/demos/a.py"),
        ("{a,b}_?.py", "a_1.py x/b_2.py", "c_1.py a_12.py"),
        ("net[0-9].py", "net3.py", "netx.py net33.py"),
        ("net[!0-9].py", "netx.py", "net3.py"),
        ("!src/**.py", "a.py lib/src/a.py", "src/a.py src/b/a.py"),
        ("a.b", "a.b", "axb"),
    ],
)
def test_what_a_pattern_matches(pattern: str, inside: str, outside: str) -> None:
    whole = rooted(pattern, ROOT)
    for name in inside.split():
        assert matches(ROOT / name, [whole]), name
    for name in outside.split():
        assert not matches(ROOT / name, [whole]), name


def test_what_lies_in_a_folder_is_excluded_with_it() -> None:
    patterns = [rooted("legacy", ROOT)]
    assert excludes(ROOT / "src/legacy/a/net.py", patterns)
    assert not excludes(Path("/home/ada/legacy/net.py"), patterns)  # outside of the project
    # A folder that was named is searched, whatever it is called.
    assert not excludes(ROOT / "legacy/net.py", patterns, within=ROOT / "legacy")
    assert excludes(ROOT / "legacy/a/legacy/net.py", patterns, within=ROOT / "legacy")


@pytest.mark.parametrize(
    ("section", "says"),
    [
        (
            "exclude = ['src/[a']",
            r"exclude: 'src/\[a' is no pattern for files: a \[ is never closed",
        ),
        ("exclude = ['{a']", "a { is never closed"),
        ("exclude = ['']", "'' is no pattern"),
        ("exclude = ['!a']", "exclude knows no !"),
        ("exclude = 'a'", "exclude must be a list of texts, not 'a'"),
        ("per-file-ignores = {'a' = 'NRM'}", "must be a table of lists of texts"),
        ("per-file-ignore = {'a' = ['NRM']}", "did you mean per-file-ignores"),
    ],
)
def test_what_is_refused(tmp_path: Path, section: str, says: str) -> None:
    (tmp_path / "pyproject.toml").write_text(f"[tool.trainlint]\n{section}\n")
    with pytest.raises(ConfigError, match=says):
        load_config(start=tmp_path)


def test_files_are_excluded_and_rules_ignored_by_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("legacy/net.py", "src/gen_a.py", "src/net.py", "src/demo.py")
    write_files(tmp_path, dict.fromkeys(names, NET))
    (tmp_path / "pyproject.toml").write_text(
        "[tool.trainlint]\nexclude = ['legacy', 'src/gen_*']\n"
        "[tool.trainlint.per-file-ignores]\n'demo.py' = ['normalization', 'NRM001']\n"
    )
    monkeypatch.chdir(tmp_path / "src")
    config = load_config()

    def found(*targets: str, scan: bool = False) -> tuple[list[str], list[str | None]]:
        report = check(targets, stages=["static"], config=config, scan=scan)
        return [each.target for each in report.targets], [f.filename for f in report.findings]

    checked = ["demo.py::net", "net.py::net"]
    assert found("..") == ([f"../src/{name}" for name in checked], ["net.py"])
    # What a commit hook hands over is excluded as well, what somebody names is not.
    named = ("../legacy/net.py", "gen_a.py", "demo.py")
    assert found(*named, scan=True)[0] == ["demo.py::net"]
    assert len(found(*named)[0]) == 3


def test_an_unknown_rule_of_some_files_is_said(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        "[tool.trainlint.per-file-ignores]\n'a.py' = ['norm-features-mismach']\n"
    )
    with pytest.raises(ConfigError, match=r"per-file-ignores.*did you mean norm-features-mismatch"):
        check(str(tmp_path), config=load_config(start=tmp_path))
