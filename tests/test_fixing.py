"""Which fixes are applied: composed, checked before a file is touched, kept or rolled back.

The check is a toy that reads the texts alone: `bad(1)` is a finding whose fix makes it `good(1)`, and other
names behave otherwise. What decides is the engine's own: composing, matching, halving, writing.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainlint.fixes.composing import Change, Proposal, Rows, compose, spliced
from trainlint.fixes.edit import Edit, Fix, Location, Safety
from trainlint.fixes.fixing import Changed, Fixed, Wish, _first, fix_files
from trainlint.fixes.matching import judge, mapped
from trainlint.fixes.source import SourceText
from trainlint.fixes.writing import reason_to_spare
from trainlint.records import RUN_STOPPED, Report, ReportedFinding, TargetResult
from trainlint.report import repairs as shown

# name: (severity, what the fix puts in its place, how safe that is); None for none.
TOYS: dict[str, tuple[str, str | None, Safety]] = {
    "bad": ("error", "good", Safety.SAFE),
    "poor": ("warning", "good", Safety.SAFE),
    "sad": ("warning", "good", Safety.UNSAFE),
    "meek": ("info", "good", Safety.SAFE),
    "stubborn": ("warning", "stubborn", Safety.SAFE),
    "harmful": ("warning", "harm", Safety.SAFE),
    "harm": ("warning", None, Safety.SAFE),
    "veil": ("error", "harm", Safety.SAFE),
    "rack": ("error", "ruin", Safety.SAFE),
    "ruin": ("error", None, Safety.SAFE),
    "breaking": ("warning", "broken", Safety.SAFE),
    "stopping": ("warning", "stopped", Safety.SAFE),
    "unparsable": ("warning", "(", Safety.SAFE),
    "first": ("warning", "second", Safety.SAFE),
    "second": ("info", "third", Safety.SAFE),
}
CALL = re.compile(r"\b(" + "|".join(TOYS) + r")\((\d*)\)")


@dataclass(frozen=True)
class Job:
    path: str


@dataclass
class Toy:
    """A check of files that looks for the names of `TOYS`. `during` is called with each report's number."""

    files: list[Path]
    during: Callable[[int], None] = lambda _: None
    reports: list[dict[str, str]] = field(default_factory=list)

    @property
    def jobs(self) -> list[Job]:
        return [Job(str(path)) for path in self.files]

    def report(self, _: Any = None, overlay: Mapping[str, str] | None = None) -> Report:
        texts = {
            str(path): (overlay or {}).get(os.path.realpath(path), "") or read(path)
            for path in self.files
        }
        self.reports.append(texts)
        self.during(len(self.reports))
        findings = [each for name, text in texts.items() for each in found(name, text)]
        findings.sort(key=lambda each: ["error", "warning", "info"].index(each.severity))
        return Report(findings, [result(name, text) for name, text in texts.items()])


def read(path: Path) -> str:
    text = SourceText.read(str(path))
    assert text is not None
    return text.text


def place(text: str, offset: int) -> Location:
    rows = re.split(r"\r\n|\r|\n", text[:offset])
    return Location(len(rows), len(rows[-1]) + 1)


def found(name: str, text: str) -> list[ReportedFinding]:
    shown_name = os.path.relpath(name)
    findings = []
    for match in CALL.finditer(text):
        severity, new, safety = TOYS[match[1]]
        start, end = place(text, match.start()), place(text, match.end())
        edits = [] if new is None else [Edit(shown_name, start, place(text, match.end(1)), new)]
        fix = Fix(f"{match[1]} → {new}", safety if edits else Safety.DISPLAY_ONLY, edits)
        findings.append(
            ReportedFinding(
                code=match[1].upper(), name=match[1], severity=severity, confidence="certain",
                message=match[0], stage="static", target=shown_name, module=match[2],
                filename=shown_name, location=start, end_location=end, fixes=[fix],
            )
        )  # fmt: skip
    return findings


def result(name: str, text: str) -> TargetResult:
    shown_name = os.path.relpath(name)
    if "broken(" in text:
        return TargetResult(shown_name, "error", "NameError: broken")
    notes = [f"{RUN_STOPPED} at line 9: NameError"] if "stopped(" in text else []
    return TargetResult(shown_name, "ok", stages=["static"], notes=notes)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fixed(
    folder: Path, text: str, *, during: Callable[[int], None] = lambda _: None, **wish: Any
) -> tuple[Fixed, str, Toy]:
    """The toy check's one file, fixed."""
    path = folder / "net.py"
    path.write_bytes(text.encode())
    toy = Toy([path], during)
    outcome = fix_files(toy, Wish(**wish))  # type: ignore[arg-type]
    return outcome, path.read_bytes().decode(), toy


def statuses(outcome: Fixed) -> dict[str, str]:
    assert outcome.report.repairs is not None
    return {repair.name: repair.status for repair in outcome.report.repairs}


def reasons(outcome: Fixed) -> dict[str, str]:
    assert outcome.report.repairs is not None
    return {repair.name: repair.reason for repair in outcome.report.repairs}


# ---------------------------------------------------------------------- what is applied


def test_safe_fixes_are_written_and_the_report_is_of_the_edited_file(folder: Path) -> None:
    outcome, text, toy = fixed(folder, "x = bad(1)\ny = sad(2)\nz = poor(3)\nw = meek(4)\n")
    assert text == "x = good(1)\ny = sad(2)\nz = good(3)\nw = meek(4)\n"
    assert statuses(outcome) == {"bad": "applied", "poor": "applied"}
    assert [finding.name for finding in outcome.report.findings] == ["sad", "meek"]
    assert outcome.unsafe == 1
    assert len(toy.reports) == 2  # the second is the last word: nothing is checked a third time
    assert list(shown.remarks(outcome, wrote=True)) == [
        "fixed 2 findings (bad, poor), 1 more with --unsafe-fixes"
    ]


def test_unsafe_fixes_and_advice_are_applied_when_asked_for(folder: Path) -> None:
    text = "x = sad(1)\nw = meek(4)\n"
    assert fixed(folder, text)[1] == text
    assert fixed(folder, text, unsafe=True)[1] == "x = good(1)\nw = meek(4)\n"
    assert fixed(folder, text, advice=True)[1] == "x = sad(1)\nw = good(4)\n"


def test_nothing_is_written_where_only_a_diff_is_wanted(folder: Path) -> None:
    outcome, text, _ = fixed(folder, "x = bad(1)", write=False)
    assert text == "x = bad(1)"
    assert outcome.changed == [Changed("net.py", "x = bad(1)", "x = good(1)")]
    assert shown.unified(outcome.changed) == (
        "--- net.py\n+++ net.py\n@@ -1 +1 @@\n-x = bad(1)\n\\ No newline at end of file\n"
        "+x = good(1)\n\\ No newline at end of file\n"
    )
    assert list(shown.remarks(outcome, wrote=False)) == ["would fix 1 finding (bad)"]


def test_what_is_not_wanted_is_left_alone(folder: Path) -> None:
    def without_bad(report: Report) -> Report:
        return Report([each for each in report.findings if each.name != "bad"], report.targets)

    outcome, text, _ = fixed(folder, "x = bad(1)\ny = poor(2)\n", wanted=without_bad)
    assert text == "x = bad(1)\ny = good(2)\n"
    assert statuses(outcome) == {"poor": "applied"}


def test_fixing_twice_changes_nothing(folder: Path) -> None:
    _, once, _ = fixed(folder, "x = bad(1)\ny = poor(stubborn(2))\n")
    outcome, twice, _ = fixed(folder, once)
    assert twice == once
    assert outcome.changed == []


def test_newlines_marks_and_the_end_of_the_file_stay(folder: Path) -> None:
    text = "\ufeff# é\r\n\tx = 'ß'; y = bad(1)  # ü\r\nz = poor(3)".replace("\t", "")
    _, after, _ = fixed(folder, text)
    assert after == text.replace("bad", "good").replace("poor", "good")


# ---------------------------------------------------------------------- what is rolled back


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("stubborn", "the finding is still there"),
        ("harmful", "HARM harm appeared at net.py:2"),
        ("breaking", "net.py: NameError: broken"),
        ("stopping", "the run of the file stops: NameError"),
        ("rack", "RUIN ruin appeared at net.py:2"),
    ],
)
def test_a_fix_that_does_not_help_is_rolled_back_and_the_others_stay(
    name: str, reason: str, folder: Path
) -> None:
    text = f"a = bad(1)\nb = {name}(2)\nc = poor(3)\nd = poor(4)\n"
    outcome, after, _ = fixed(folder, text)
    assert after == f"a = good(1)\nb = {name}(2)\nc = good(3)\nd = good(4)\n"
    assert statuses(outcome)[name] == "rolled-back"
    assert reasons(outcome)[name] == reason
    *told, summary = shown.remarks(outcome, wrote=True)
    assert told == [f"rolled back: {name} → {TOYS[name][1]}: {reason}"]
    assert summary == "fixed 3 findings (bad, poor 2), 1 rolled back"


def test_what_an_error_had_hidden_is_revealed_and_not_caused(folder: Path) -> None:
    outcome, after, _ = fixed(folder, "a = veil(1)\n")
    assert after == "a = harm(1)\n"
    assert [finding.name for finding in outcome.report.findings] == ["harm"]


def test_what_was_put_off_for_an_error_is_tried_though_its_fix_is_not_good(folder: Path) -> None:
    outcome, after, _ = fixed(folder, "a = rack(1)\nb = harmful(2)\nc = poor(3)\n")
    assert after == "a = rack(1)\nb = harmful(2)\nc = good(3)\n"
    assert reasons(outcome) == {
        "rack": "RUIN ruin appeared at net.py:1",
        "harmful": "HARM harm appeared at net.py:2",
        "poor": "",
    }


def test_fixes_that_need_each_other_stay_together(folder: Path) -> None:
    (folder / "net.py").write_text("a = poor(1)\nb = poor(2)\nc = harmful(3)\nd = poor(4)\n")

    class Coupled(Toy):
        def report(self, _: Any = None, overlay: Mapping[str, str] | None = None) -> Report:
            """`a` without `b` is worse than before."""
            text = {str(self.files[0]): read(self.files[0])} | dict(overlay or {})
            (now,) = text.values()
            report = super().report(_, overlay)
            if "a = good" in now and "b = poor" in now:
                report.findings.extend(found(str(self.files[0]), "\n" * 5 + "ruin()"))
            return report

    outcome = fix_files(Coupled([folder / "net.py"]), Wish())  # type: ignore[arg-type]
    assert (
        folder / "net.py"
    ).read_text() == "a = good(1)\nb = good(2)\nc = harmful(3)\nd = good(4)\n"
    assert statuses(outcome)["harmful"] == "rolled-back"


def test_an_edit_that_does_not_parse_is_not_tried(folder: Path) -> None:
    outcome, after, toy = fixed(folder, "a = unparsable(1)\n")
    assert after == "a = unparsable(1)\n"
    assert reasons(outcome) == {"unparsable": "the edited file would not parse"}
    assert len(toy.reports) == 1


def test_two_bad_ones_of_nine_cost_no_good_one(folder: Path) -> None:
    names = ["poor"] * 3 + ["harmful"] + ["poor"] * 3 + ["breaking", "poor"]
    text = "".join(f"x{number} = {name}({number})\n" for number, name in enumerate(names))
    _, after, toy = fixed(folder, text)
    assert after == text.replace("poor", "good")
    # The first, all of them, halves of them as was measured for two bad ones of ten, and one once more.
    assert len(toy.reports) <= 2 + 13 + 1


def test_a_fix_at_the_place_of_another_waits_for_the_next_round(folder: Path) -> None:
    outcome, after, _ = fixed(folder, "x = bad(0)\ny = first(1)\n", advice=True)
    assert after == "x = good(0)\ny = third(1)\n"
    assert outcome.report.repairs is not None
    assert [(repair.name, repair.round) for repair in outcome.report.repairs] == [
        ("bad", 1), ("first", 1), ("second", 2),
    ]  # fmt: skip


def test_a_symptom_is_never_mended_in_place_of_its_cause(folder: Path) -> None:
    cause, symptom = found(str(folder / "net.py"), "harm(1)\npoor(2)\n")
    nested = ReportedFinding(**{**asdict(cause), "symptoms": [symptom]})
    own = ReportedFinding(**{**asdict(symptom), "symptoms": [cause]})
    report = Report([nested, own])
    assert [each.name for each in Wish().findings(report)] == ["poor"]
    assert [each.symptoms for each in Wish().findings(report)] == [[cause]]


def test_what_a_training_shows_waits_for_what_was_known_before(folder: Path) -> None:
    (known,) = found(str(folder / "net.py"), "poor(1)\n")
    seen = ReportedFinding(**{**asdict(known), "stage": "probe", "module": "b"})
    elsewhere = ReportedFinding(**{**asdict(seen), "target": "other.py::Net"})
    proposals = [Proposal(each, each.fixes[0]) for each in (seen, known, elsewhere)]
    assert _first(proposals) == (proposals[1:], True)
    assert _first(proposals[::2]) == (proposals[::2], False)


def test_what_becomes_an_error_counts_as_new(folder: Path) -> None:
    (finding,) = found(str(folder / "net.py"), "poor(1)\n")
    by_severity = {
        severity: Report(
            [ReportedFinding(**{**asdict(finding), "severity": severity})],
            [TargetResult(finding.target, "ok", stages=["static"])],
        )
        for severity in ("warning", "error")
    }
    worse = judge(by_severity["warning"], by_severity["error"], {}, [])
    better = judge(by_severity["error"], by_severity["warning"], {}, [])
    assert not worse.is_good
    assert better.is_good


def asdict(finding: ReportedFinding) -> dict[str, Any]:
    return {name: getattr(finding, name) for name in finding.__struct_fields__}


# ---------------------------------------------------------------------- several files, and refusals


def fixed_files(folder: Path, contents: dict[str, str], **wish: Any) -> Fixed:
    paths = []
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(content)
        paths.append(path)
    return fix_files(Toy(paths), Wish(**wish))  # type: ignore[arg-type]


def test_files_that_are_not_ours_are_left_alone_with_a_reason(folder: Path) -> None:
    project, outside = folder / "project", folder / "outside"
    outside.mkdir()
    project.mkdir()
    (outside / "far.py").write_text("x = bad(1)\n")
    os.chdir(project)
    (project / "locked.py").write_text("x = bad(1)\n")
    (project / "locked.py").chmod(0o444)
    outcome = fixed_files(
        project,
        {
            "site-packages/pack.py": "x = bad(1)\n",
            "made.py": "# Generated by a tool. DO NOT EDIT.\nx = bad(1)\n",
            "locked.py": "",
            "own.py": "x = bad(1)  # generated by hand\n",
        },
    )
    assert outcome.report.repairs is not None
    told = {repair.target: (repair.status, repair.reason) for repair in outcome.report.repairs}
    assert told == {
        "site-packages/pack.py": ("refused", "site-packages/pack.py belongs to an installed package"),
        "made.py": ("refused", "made.py says that it is generated"),
        "locked.py": ("refused", "locked.py is read-only"),
        "own.py": ("applied", ""),
    }  # fmt: skip
    assert (project / "made.py").read_text().endswith("x = bad(1)\n")
    link = project / "link.py"
    link.symlink_to(outside / "far.py")
    assert reason_to_spare("link.py", [project]) == "lies outside of the project"
    assert reason_to_spare("book.ipynb", [project]) == "is a notebook's, whose fixes are only shown"
    assert reason_to_spare(".", [folder]) == "is no regular file"
    assert reason_to_spare("gone.py", [project]) == "cannot be read: No such file or directory"
    project.chmod(0o555)
    try:
        assert reason_to_spare("own.py", [project]) == "lies in a folder that is read-only"
    finally:
        project.chmod(0o755)


def test_a_file_that_changes_while_it_is_checked_is_not_written(folder: Path) -> None:
    def edit_at(number: int) -> Callable[[int], None]:
        return lambda now: (folder / "net.py").write_text("mine = 1\n") if now == number else None

    for number in (1, 2):  # in the first check, and in that of the edited text
        outcome, after, _ = fixed(folder, "x = bad(1)\n", during=edit_at(number))
        assert after == "mine = 1\n"
        assert statuses(outcome) == {"bad": "refused"}
        assert reasons(outcome) == {"bad": "net.py changed while it was checked"}
        assert outcome.report.findings == [] or number == 1
        assert outcome.changed == []


def test_a_fix_of_several_files_is_made_in_all_of_them_or_in_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = {"one.py": "x = bad(1)\n", "two.py": "y = 1\n", "apart.py": "z = bad(3)\n"}
    for name, content in contents.items():
        (folder / name).write_text(content)

    class Linked(Toy):
        def report(self, _: Any = None, overlay: Mapping[str, str] | None = None) -> Report:
            report = super().report(_, overlay)
            for finding in report.findings:
                if finding.filename == "one.py":
                    there = Location(1, 5), Location(1, 6)
                    finding.fixes[0].edits.append(Edit("two.py", *there, "2"))
            return report

    toy = Linked([folder / name for name in contents])
    replace = Path.replace

    def refuse(self: Path, target: Path) -> Path:
        if Path(target).name == "two.py":
            raise OSError(28, "No space left on device")
        return replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", refuse)
        outcome = fix_files(toy, Wish())  # type: ignore[arg-type]
    held = {name: (folder / name).read_text() for name in contents}
    assert held == {**contents, "apart.py": "z = good(3)\n"}
    assert outcome.report.repairs is not None
    assert [(each.target, each.status, each.reason) for each in outcome.report.repairs] == [
        ("one.py", "refused", "two.py cannot be written: No space left on device"),
        ("apart.py", "applied", ""),
    ]
    assert sorted(path.name for path in folder.iterdir()) == sorted(contents)
    fix_files(toy, Wish())  # type: ignore[arg-type]
    assert (folder / "one.py").read_text() == "x = good(1)\n"
    assert (folder / "two.py").read_text() == "y = 2\n"


# ---------------------------------------------------------------------- who is asked


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ("y\nn\ny\n", "good bad good"),
        ("n\na\n", "bad good good"),
        ("y\nq\n", "good bad bad"),
        ("what\nY\nno\nyes\n", "good bad good"),
        ("", "bad bad bad"),
    ],
)
def test_each_fix_is_shown_and_asked_for(answers: str, expected: str, folder: Path) -> None:
    import io

    from rich.console import Console

    stream = io.StringIO()
    console = Console(file=stream, width=80, color_system=None)
    ask = shown.Questions(console, io.StringIO(answers).readline)
    outcome, after, _ = fixed(folder, "a = bad(1)\nb = bad(2)\nc = bad(3)\n", ask=ask)
    assert re.findall(r"good|bad", after) == expected.split()
    declined = [each for each in outcome.report.repairs or [] if each.status == "declined"]
    assert len(declined) == expected.count("bad")
    text = stream.getvalue()
    assert text.startswith("error bad BAD  net.py:1\nbad(1)\nsafe fix: bad → good\n")
    assert "-a = bad(1)\n+a = good(1)\n" in text


# ---------------------------------------------------------------------- composing and matching


def proposal(*edits: tuple[int, int, str], text: str) -> Proposal:
    own = [Edit("t.py", place(text, start), place(text, end), new) for start, end, new in edits]
    finding = ReportedFinding(
        "X001", "x", "error", "certain", "", "static", "t", "", None, None, None
    )
    return Proposal(finding, Fix("change", Safety.SAFE, own))


def composed(text: str, *edits: tuple[int, int, str]) -> tuple[str, int]:
    """The text with these fixes of one edit each, and how many have to wait."""
    made = compose(
        [proposal(edit, text=text) for edit in edits], lambda name: SourceText(name, text)
    )
    return made.texts.get("t.py", text), len(made.waiting)


def test_fixes_that_clash_wait_and_equal_ones_are_one() -> None:
    text = "f(a, b)\n"
    assert composed(text, (2, 3, "x"), (5, 6, "y")) == ("f(x, y)\n", 0)
    assert composed(text, (2, 3, "x"), (2, 3, "x")) == ("f(x, b)\n", 0)
    assert composed(text, (2, 3, "x"), (2, 3, "z")) == ("f(x, b)\n", 1)
    assert composed(text, (0, 7, "g()"), (2, 3, "z")) == ("g()\n", 1)
    assert composed(text, (7, 7, ".t()"), (0, 7, "g()")) == ("f(a, b).t()\n", 1)
    assert composed(text, (0, 0, "import m\n"), (0, 0, "import m\n")) == ("import m\nf(a, b)\n", 0)
    assert composed(text, (0, 0, "import m\n"), (0, 0, "import n\n")) == ("import m\nf(a, b)\n", 1)
    assert composed(text, (2, 3, "x"), (5, 6, ")")) == ("f(x, b)\n", 1)


def test_an_edit_outside_of_the_text_is_impossible() -> None:
    far = proposal((0, 1, "x"), text="a")
    edit = Edit("t.py", Location(3, 1), Location(3, 2), "x")
    far = Proposal(far.finding, Fix("far", Safety.SAFE, [edit]))
    made = compose([far], lambda name: SourceText(name, "a\n"))
    assert [reason for _, reason in made.impossible] == ["there is no line 3"]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_lines_that_are_put_in_end_as_the_others_do(newline: str) -> None:
    text = newline.join(["a = 1", "b = 'é\x0c\u2028'", "c = 3"])
    edit = Edit("t.py", Location(2, 10), Location(2, 10), "\nd = 4")
    assert Rows(text).change(edit, newline) == Change(
        *[5 + len(newline) + 9] * 2, f"{newline}d = 4"
    )
    one = Proposal(proposal(text=text).finding, Fix("line", Safety.SAFE, [edit]))
    made = compose([one], lambda name: SourceText(name, text))
    assert made.texts["t.py"] == newline.join(["a = 1", "b = 'é\x0c\u2028'", "d = 4", "c = 3"])


def test_places_are_found_again_after_any_changes() -> None:
    text = "abcdefgh"
    spots = [(start, end) for start in range(9) for end in range(start, 9)]
    for (start, end), content in itertools.product(spots, ["", "XY", "XYZVW"]):
        change = Change(start, end, content)
        after = spliced(text, [change])
        for first, last in spots:
            new_first, new_last, is_touched = mapped(first, last, [change])
            assert 0 <= new_first <= new_last <= len(after)
            inside = (
                any(first <= at < last for at in range(start, end)) or first < start == end < last
            )
            if first < last:
                assert is_touched == inside
            if not is_touched and first < last:
                assert after[new_first:new_last] == text[first:last]
            elif first <= start and end <= last and first < last:
                kept = text[first:start], text[end:last]
                assert after[new_first:new_last] == content.join(kept)


def test_the_json_tells_what_was_applied(folder: Path) -> None:
    outcome, _, _ = fixed(folder, "x = bad(1)\ny = stubborn(2)\n")
    data = json.loads(outcome.report.to_json())
    assert [(each["title"], each["status"], each["reason"]) for each in data["repairs"]] == [
        ("stubborn → stubborn", "rolled-back", "the finding is still there"),
        ("bad → good", "applied", ""),
    ]
    assert data["repairs"][1]["edits"] == [
        {
            "filename": "net.py", "location": {"row": 1, "column": 5},
            "end_location": {"row": 1, "column": 8}, "content": "good",
        }
    ]  # fmt: skip
    assert "repairs" not in json.loads(Report().to_json())


@st.composite
def edits_of(draw: st.DrawFn) -> tuple[str, list[Change]]:
    """A text, and changes of it that do not clash."""
    text = draw(st.text("ab\r\n", max_size=30))
    changes: list[Change] = []
    for _ in range(draw(st.integers(0, 5))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 4)))
        change = Change(start, end, draw(st.text("XY\n", max_size=4)))
        if not any(change.clashes_with(other) for other in changes):
            changes.append(change)
    return text, sorted(set(changes))


@given(edits_of(), st.integers(0, 30), st.integers(0, 30))
def test_what_no_change_touches_is_found_again(
    edited: tuple[str, list[Change]], start: int, length: int
) -> None:
    text, changes = edited
    start = min(start, len(text))
    end = min(start + length, len(text))
    after = spliced(text, changes)
    new_start, new_end, is_touched = mapped(start, end, changes)
    assert 0 <= new_start <= new_end <= len(after)
    if start < end and not is_touched:
        assert after[new_start:new_end] == text[start:end]
    kept = "".join(text[one.end : two.start] for one, two in itertools.pairwise(
        [Change(0, 0, ""), *changes, Change(len(text), len(text), "")]
    ))  # fmt: skip
    assert len(after) == len(kept) + sum(len(change.content) for change in changes)


@given(edits_of())
def test_a_place_by_row_and_column_is_the_place_by_characters(
    edited: tuple[str, list[Change]],
) -> None:
    text, _ = edited
    rows = Rows(text)
    for offset in range(len(text) + 1):
        if text[offset - 1 : offset + 1] != "\r\n":  # between the two nothing stands
            assert rows.offset(place(text, offset)) == offset
