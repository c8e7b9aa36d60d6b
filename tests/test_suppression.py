"""Suppression comments: where they stand, what they cover, and which are reported as unused."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Result, run_command, write_files

from trainlint.suppression import Suppressions

LINE = "self.norm = nn.BatchNorm2d(32)"
NAMES = frozenset({"NRM001", "norm-features-mismatch"})


def model(*lines: str, top: str = "") -> str:
    body = "\n".join(f"        {line}" for line in lines)
    return f"""{top}from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 64, 3)
{body}

    def forward(self, x):
        return self.norm(self.conv(x)).mean((2, 3))
"""


# file: (source, NRM001 is silenced, the selectors reported as unused)
FILES: dict[str, tuple[str, bool, list[str]]] = {
    "plain.py": (model(LINE), False, []),
    "trailing.py": (model(LINE + "  # trainlint: ignore[NRM001]"), True, []),
    "name.py": (model(LINE + "  # trainlint: ignore[norm-features-mismatch]"), True, []),
    "prose.py": (model(LINE + "  # trainlint: ignore[NRM001] - shared with the old model"), True, []),
    "above.py": (model("# trainlint: ignore[NRM001]", LINE), True, []),
    "above_gap.py": (model("# trainlint: ignore[NRM001]", "# why", "", LINE), True, []),
    "inside.py": (
        model("self.norm = nn.BatchNorm2d(", "    32,  # trainlint: ignore[NRM001]", ")"), True, []),
    "inside_own.py": (
        model("self.norm = nn.BatchNorm2d(", "    # trainlint: ignore[NRM001]", "    32,", ")"),
        True, []),
    "closing.py": (
        model("self.norm = nn.BatchNorm2d(", "    32,", ")  # trainlint: ignore[NRM001]"), True, []),
    "file.py": (model(LINE, top="# trainlint: file-ignore[NRM001]\n"), True, []),
    "file_last.py": (model(LINE) + "\n# trainlint: file-ignore[NRM001]\n", True, []),
    "several.py": (model(LINE + "  # trainlint: ignore[NRM001, ARC003]"), True, ["ARC003"]),
    "other.py": (model(LINE + "  # trainlint: ignore[ARC003]"), False, ["ARC003"]),
    "elsewhere.py": (model(LINE, "x = 1  # trainlint: ignore[NRM001]"), False, ["NRM001"]),
    "below.py": (model(LINE, "# trainlint: ignore[NRM001]"), False, ["NRM001"]),
    "unknown.py": (model(LINE + "  # trainlint: ignore[XYZ999]"), False, ["XYZ999"]),
    "string.py": (model(f'{LINE}; y = "# trainlint: ignore[NRM001]"'), False, []),
    "docstring.py": (
        model(LINE, top='"""Say\n\n# trainlint: file-ignore[NRM001]\n"""\n'), False, []),
    "bare.py": (model(LINE + "  # trainlint: ignore"), False, [""]),
    "bare_reason.py": (model("# trainlint: ignore - it is meant so", LINE), False, [""]),
    "bare_file.py": (model(LINE, top="# trainlint: file-ignore\n"), False, [""]),
    "bare_elsewhere.py": (model(LINE, "x = 1  # trainlint: ignore"), False, [""]),
    "empty.py": (model(LINE + "  # trainlint: ignore[]"), False, [""]),
    "unclosed.py": (model(LINE + "  # trainlint: ignore[NRM001"), False, [""]),
    "apart.py": (model(LINE + "  # trainlint: ignore [NRM001]"), True, []),
    "talk.py": (model(LINE, "# see `# trainlint: ignore`, ignored as trainlint: ignore"), False, []),
    "bare_silenced.py": (
        model(LINE, "x = 1  # trainlint: ignore  # trainlint: ignore[SUP001]"), False, []),
    "itself.py": (
        model(LINE + "  # trainlint: ignore[ARC003, SUP001]"), False, []),
}  # fmt: skip


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = tmp_path_factory.mktemp("suppression")
    write_files(folder, {name: source for name, (source, _, _) in FILES.items()})
    return run_command("check", *FILES, "--format", "json", cwd=folder)


@pytest.mark.parametrize("name", FILES)
def test_comment(result: Result, name: str) -> None:
    _, silenced, unused = FILES[name]
    assert result.targets[f"{name}::Net"]["status"] == "ok"
    own = [finding for finding in result.report["findings"] if finding["filename"] == name]
    assert ("NRM001" not in {finding["code"] for finding in own}) == silenced
    reported = [f["evidence"]["selector"] for f in own if f["code"] == "SUP001"]
    assert reported == unused


@pytest.mark.parametrize("name", ["bare.py", "bare_reason.py", "bare_file.py", "unclosed.py"])
def test_a_comment_without_codes_is_told_which_it_needs(result: Result, name: str) -> None:
    own = [finding for finding in result.report["findings"] if finding["filename"] == name]
    (found,) = (finding for finding in own if finding["code"] == "SUP001")
    kind = "file-ignore" if "file" in name else "ignore"
    assert found["evidence"]["found"] == ["NRM001"]
    (fix,) = found["fixes"]
    assert (fix["title"], fix["safety"]) == (f"# trainlint: {kind}[NRM001]", "safe")
    edit = fix["edits"][0]
    row = edit["location"]["row"]
    line = FILES[name][0].splitlines()[row - 1]
    start, end = edit["location"]["column"] - 1, edit["end_location"]["column"] - 1
    mended = line[:start] + edit["content"] + line[end:]
    assert mended.rstrip().endswith(
        f"# trainlint: {kind}[NRM001]" + (" - it is meant so" if "reason" in name else "")
    )


def test_a_comment_without_codes_where_nothing_is_found(result: Result) -> None:
    own = [f for f in result.report["findings"] if f["filename"] == "bare_elsewhere.py"]
    (found,) = (finding for finding in own if finding["code"] == "SUP001")
    assert found["message"].endswith("nothing is found here that it could")
    assert found["fixes"][0]["edits"] == []


def test_rules_that_did_not_run_are_not_judged(tmp_path: Path) -> None:
    write_files(tmp_path, {"net.py": FILES["elsewhere.py"][0]})
    ignored = run_command("check", "net.py", "--ignore", "NRM", "--format", "json", cwd=tmp_path)
    assert ignored.status == 0
    assert ignored.found("SUP001") == []


def covered(text: str) -> list[int | None]:
    suppressions = Suppressions()
    suppressions.read("x.py", text)
    return [
        row
        for row in range(1, text.count("\n") + 2)
        if suppressions.silences("x.py", range(row, row + 1), NAMES)
    ]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("a\nb  # trainlint: ignore[NRM001]\nc\n", [2]),
        ("a\n# trainlint:ignore[NRM001]\n\nb\nc\n", [4]),
        ("a\n# trainlint: ignore[ NRM001 ,]\nb\n", [3]),
        ("# trainlint: file-ignore[NRM001]\na\n", [1, 2, 3]),
        ("a\n# trainlint: ignore\nb\n", []),
        ("a\n# trainlint: ignore[]\nb\n", []),
        ("'''\n# trainlint: ignore[NRM001]\n'''\nb\n", []),
        ("x = '''\n'''  # trainlint: ignore[NRM001]\nb\n", [2]),
        ("a  # trainlint: ignore[NRM001]  # trainlint: ignore[X]\n", [1]),
        ("a  # trainlint: ignore[X]  # trainlint: ignore[NRM001]\n", [1]),
        ("a  # noqa # trainlint: ignore[NRM001]\nb\n", [1]),
        ("if x:\n    # trainlint: ignore[NRM001]\n    pass\n", [3]),
        ("a\n# trainlint: ignore[NRM001]\nx = (\n", [3]),
    ],
)
def test_rows_that_a_comment_covers(text: str, rows: list[int]) -> None:
    assert covered(text) == rows


def test_its_own_part_of_a_comment_is_what_a_fix_removes() -> None:
    suppressions = Suppressions()
    text = "a  # noqa # trainlint: ignore[NRM001]  # why\n"
    suppressions.read("x.py", text)
    suppressions.judge(NAMES, NAMES)
    (unused,) = suppressions.unused()
    part = text[unused.suppression.column - 1 : unused.suppression.end_column - 1]
    assert part == "# trainlint: ignore[NRM001]"
