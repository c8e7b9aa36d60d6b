"""The forms for machines: SARIF, GitHub, GitLab, JUnit, Markdown; statistics; baselines."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree as ET

import jsonschema
import msgspec
import pytest
import schemas
from conftest import run_command
from hypothesis import given, settings
from hypothesis import strategies as st

import trainlint
from trainlint.baseline import read_baseline, without, write_baseline
from trainlint.fingerprints import fingerprinted, in_repository
from trainlint.fixes.edit import Edit, Fix, Location, Safety
from trainlint.fixes.source import SourceText, apply
from trainlint.records import Report, ReportedFinding, TargetResult
from trainlint.report import FORMAT_NAMES, rendered

NET = """\
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 64, 3, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.again = nn.BatchNorm2d(16)

    def forward(self, x):
        return self.again(self.norm(self.conv(x)))
"""


def found(**changes: Any) -> ReportedFinding:
    values: dict[str, Any] = {
        "code": "NRM001", "name": "norm-features-mismatch", "severity": "error",
        "confidence": "certain", "message": "BatchNorm2d(32) receives 64 channels", "stage": "static",
        "target": "net.py::Net", "module": "norm", "filename": "net.py", "location": Location(9, 21),
        "end_location": Location(9, 39), "evidence": {"num_features": 32, "received": 64},
        "fixes": [
            Fix("BatchNorm2d(64)", Safety.SAFE, [Edit("net.py", Location(9, 36), Location(9, 38), "64")])
        ],
    }  # fmt: skip
    return ReportedFinding(**{**values, **changes})


def report_of(*findings: ReportedFinding, **target: Any) -> Report:
    values = {"target": "net.py::Net", "status": "ok", "seconds": 0.25, **target}
    return Report(fingerprinted(findings), [TargetResult(**values)])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose models lie in a folder of it, the current one, whose name is no plain word."""
    (tmp_path / ".git").mkdir()
    folder = tmp_path / "src dír"
    folder.mkdir()
    (folder / "net.py").write_text(NET, encoding="utf-8")
    monkeypatch.chdir(folder)
    return folder


# ---------------------------------------------------------------------- SARIF


def sarif(report: Report) -> dict[str, Any]:
    """The only run of the log, which the published schema allows and whose indices point where they say."""
    log = json.loads(rendered(report, "sarif"))
    schemas.validate(log, schemas.SARIF)
    (run,) = log["runs"]
    for result in run["results"]:
        if "ruleIndex" in result:
            assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
    return run


def test_sarif_names_files_from_the_repositorys_root(here: Path) -> None:
    symptom = found(code="ARC013", name="incompatible-shapes", message="behind it", fixes=[])
    run = sarif(report_of(found(symptoms=[symptom])))
    (result,) = run["results"]
    physical = result["locations"][0]["physicalLocation"]
    assert physical["artifactLocation"] == {
        "uri": "src%20d%C3%ADr/net.py",
        "uriBaseId": "%SRCROOT%",
    }
    assert unquote(physical["artifactLocation"]["uri"]) == "src dír/net.py"
    assert physical["region"] == {"startLine": 9, "startColumn": 21, "endLine": 9, "endColumn": 39}
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == ["ARC013", "NRM001"]
    for rule in rules:
        assert rule["fullDescription"]["text"].startswith(rule["shortDescription"]["text"])
        assert len(rule["fullDescription"]["text"]) < 1024  # what GitHub shows of it
        assert "## Bad" in rule["help"]["text"]
    assert [place["message"]["text"] for place in result["relatedLocations"]] == [
        "so also: behind it"
    ]
    (change,) = result["fixes"][0]["artifactChanges"]
    assert change["replacements"][0]["insertedContent"]["text"] == "64"


def test_sarif_of_what_has_no_source_and_of_what_failed(here: Path) -> None:
    nowhere = found(filename=None, location=None, end_location=None, fixes=[], severity="info")
    report = report_of(nowhere)
    failed = TargetResult("other.py", "error", "SyntaxError: '(' was never closed", row=3)
    run = sarif(Report(report.findings, [*report.targets, failed]))
    assert run["results"][0]["level"] == "note"
    assert "physicalLocation" not in run["results"][0]["locations"][0]
    (invocation,) = run["invocations"]
    assert not invocation["executionSuccessful"]
    (said,) = invocation["toolExecutionNotifications"]
    assert "never closed" in said["message"]["text"]
    assert said["locations"][0]["physicalLocation"]["region"] == {"startLine": 3}


def test_sarif_of_a_file_in_no_repository_names_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "my net.py"
    path.write_text(NET, encoding="utf-8")
    (result,) = sarif(Report([found(filename=str(path), fixes=[])]))["results"]
    physical = result["locations"][0]["physicalLocation"]
    assert physical["artifactLocation"] == {"uri": path.as_uri()}


def test_sarif_of_real_models_holds_all_findings() -> None:
    folder = Path(__file__).parent.parent / "fixtures" / "broken"
    files = [folder / name for name in ("first_cnn.py", "sigmoid_mlp.py", "gan.py")]
    report = trainlint.check(files, stages=("static",))
    results = sarif(report)["results"]
    assert [result["ruleId"] for result in results] == [f.code for f in report.findings]
    assert len({r["partialFingerprints"]["trainlint/v1"] for r in results}) == len(results)
    for result, finding in zip(results, report.findings, strict=True):
        physical = result["locations"][0]["physicalLocation"]
        assert finding.filename is not None
        assert Path(physical["artifactLocation"]["uri"]).name == Path(finding.filename).name


def test_the_sarif_schema_refuses_what_it_does_not_know(here: Path) -> None:
    log = json.loads(rendered(report_of(found()), "sarif"))
    log["runs"][0]["results"][0]["severity"] = "error"
    with pytest.raises(jsonschema.ValidationError, match="severity"):
        schemas.validate(log, schemas.SARIF)


# ---------------------------------------------------------------------- code hosts


def parsed(line: str) -> tuple[str, dict[str, str], str]:
    """A workflow command as GitHub's runner reads it."""
    match = re.fullmatch(r"::(\w+) (.*?)::(.*)", line)
    assert match, line
    unescape = {"%25": "%", "%0D": "\r", "%0A": "\n", "%3A": ":", "%2C": ","}

    def plain(text: str) -> str:
        return re.sub("%(25|0D|0A|3A|2C)", lambda code: unescape[code[0]], text)

    properties = dict(pair.split("=", 1) for pair in match[2].split(","))
    return match[1], {name: plain(value) for name, value in properties.items()}, plain(match[3])


def test_github_annotations(here: Path) -> None:
    report = report_of(found(), found(severity="info", message="advice"))
    (line,) = rendered(report, "github").splitlines()
    command, properties, message = parsed(line)
    assert command == "error"
    assert properties == {
        "title": "NRM001 norm-features-mismatch", "file": "src dír/net.py", "line": "9",
        "endLine": "9", "col": "21", "endColumn": "39",
    }  # fmt: skip
    assert message == "BatchNorm2d(32) receives 64 channels\nBatchNorm2d(64)"
    assert len(rendered(report, "github", show_info=True).splitlines()) == 2


@settings(deadline=None)
@given(st.text(min_size=1), st.text(alphabet=st.characters(exclude_characters="/\0"), min_size=1))
def test_github_annotations_are_one_line_whatever_is_said(message: str, name: str) -> None:
    finding = found(message=message, filename=f"{name}.py", fixes=[])
    line = rendered(Report([finding]), "github")
    assert not set(line) & set("\r\n")
    _, properties, said = parsed_any(line)
    assert said == message
    assert properties["line"] == "9"


def parsed_any(line: str) -> tuple[str, dict[str, str], str]:
    head, _, data = line[2:].partition("::")
    command, _, rest = head.partition(" ")
    return parsed_parts(command, rest, data)


def parsed_parts(command: str, rest: str, data: str) -> tuple[str, dict[str, str], str]:
    codes = {"25": "%", "0D": "\r", "0A": "\n", "3A": ":", "2C": ","}
    said = re.sub("%(25|0D|0A)", lambda match: codes[match[1]], data)
    return command, dict(pair.split("=", 1) for pair in rest.split(",")), said


def test_gitlab_code_quality(here: Path) -> None:
    nowhere = found(filename=None, location=None, end_location=None, fixes=[])
    entries = json.loads(rendered(report_of(found(), nowhere), "gitlab"))
    assert [set(entry) for entry in entries] == [
        {"description", "check_name", "fingerprint", "severity", "location"}
    ] * 2
    assert [entry["location"] for entry in entries] == [
        {"path": "src dír/net.py", "lines": {"begin": 9, "end": 9}},
        {"path": "src dír/net.py", "lines": {"begin": 1}},
    ]
    assert entries[0]["severity"] == "critical"
    assert entries[0]["fingerprint"] != entries[1]["fingerprint"]
    assert json.loads(rendered(Report(), "gitlab")) == []


def test_gitlab_shows_what_could_not_be_checked(here: Path) -> None:
    failed = [TargetResult(f"{name}.py::Net", "error", "no such module") for name in ("a", "b")]
    entries = json.loads(rendered(Report(targets=failed), "gitlab"))
    assert [entry["location"]["path"] for entry in entries] == ["src dír/a.py", "src dír/b.py"]
    assert entries[0]["description"] == "a.py::Net could not be checked: no such module"
    assert entries[0]["fingerprint"] != entries[1]["fingerprint"]


def test_github_shows_what_could_not_be_checked_at_its_line(here: Path) -> None:
    (here / "other.py").write_text("x = (")
    failed = [
        TargetResult("other.py", "error", "does not parse", row=3),
        TargetResult("other.py::Net", "error", "it exits"),
        TargetResult("acme.models:Net", "error", "no such module"),
    ]
    assert rendered(Report(targets=failed), "github").splitlines() == [
        "::error title=trainlint,file=src dír/other.py,line=3::other.py: does not parse",
        "::error title=trainlint,file=src dír/other.py,line=1::other.py::Net: it exits",
        "::error title=trainlint::acme.models:Net: no such module",
    ]


@settings(deadline=None)
@given(st.text(), st.sampled_from(["error", "warning", "info", "never"]))
def test_junit_is_xml_whatever_is_said(message: str, fail_on: str) -> None:
    findings = [
        found(message=message, severity="error"),
        found(message=message, severity="warning", location=Location(10, 1)),
    ]
    failed = TargetResult("other.py", "error", message, output=message)
    skipped = TargetResult("data.py", "skipped", message)
    clean = TargetResult("sound.py::Net", "ok")
    report = Report(findings, [TargetResult("net.py::Net", "ok"), failed, skipped, clean])
    suite = ET.fromstring(rendered(report, "junit", fail_on=fail_on))[0]
    cases = suite.findall("testcase")
    failures = {"error": 1, "warning": 2, "info": 2, "never": 0}[fail_on]
    assert len(suite.findall("testcase/failure")) == failures == int(suite.get("failures", ""))
    assert len(suite.findall("testcase/error")) == 1 == int(suite.get("errors", ""))
    assert len(suite.findall("testcase/skipped")) == 1 == int(suite.get("skipped", ""))
    assert len(cases) == 5 == int(suite.get("tests", ""))


def test_junit_knows_a_case_by_no_line(here: Path) -> None:
    def cases(moved: int, *, reverse: bool) -> list[tuple[str | None, ...]]:
        many = [found(location=Location(row + moved, 5)) for row in (9, 4)]
        many.append(found(module="stem.norm", location=Location(moved + 1, 1)))
        text = rendered(report_of(*(many[::-1] if reverse else many)), "junit")
        return sorted((c.get("name"), c.get("classname")) for c in ET.fromstring(text)[0])

    assert cases(0, reverse=False) == cases(7, reverse=True)
    assert [name for name, _ in cases(0, reverse=False)] == [
        "NRM001 norm-features-mismatch norm", "NRM001 norm-features-mismatch norm (2)",
        "NRM001 norm-features-mismatch stem.norm",
    ]  # fmt: skip
    (case,) = ET.fromstring(rendered(report_of(found()), "junit"))[0]
    assert (case.findtext("failure") or "").startswith("src dír/net.py:9:21: error")


def test_markdown_has_a_row_and_a_diff(here: Path) -> None:
    text = rendered(report_of(found(message="a|b <c> *d*")), "markdown")
    assert "### trainlint: 1 error, 0 warnings" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| 🔴")]
    assert row.replace("\\|", "").count("|") == 5
    assert "a\\|b &lt;c&gt; \\*d\\*" in row
    assert "+ 9 │ self.norm = nn.BatchNorm2d(64)" in text
    assert "nothing found in 1 model" in rendered(report_of(), "markdown")


def test_markdown_is_no_longer_than_a_comment_may_be(here: Path) -> None:
    many = [found(module=f"layer{n}", message=f"number {n} " + "é|" * 200) for n in range(400)]
    failed = TargetResult("other.py", "error", "reason " * 20)
    text = rendered(Report(many, [failed]), "markdown")
    assert 50_000 < len(text) < 65_536
    assert "other.py` could not be checked" in text
    assert text.count("| 🔴 error") + int(re.search(r"and (\d+) more findings", text)[1]) == 400
    few = rendered(Report(many[:80], []), "markdown")
    assert few.count("| 🔴 error") == 80
    shown = few.count("<details>")
    assert 0 < shown == few.count("</details>")
    assert shown + int(re.search(r"and (\d+) more details", few)[1]) == 80


# ---------------------------------------------------------------------- fingerprints


def test_fingerprints_tell_findings_of_one_function_apart(here: Path) -> None:
    first, second = found(), found(module="again", location=Location(10, 22), end_location=None)
    one = {f.module: f.fingerprint for f in fingerprinted([first, second])}
    other = {f.module: f.fingerprint for f in fingerprinted([second, first])}
    assert one == other
    assert one["norm"] != one["again"]


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.sampled_from(["import os", "x = 1", "", "# comment"]), max_size=6), st.booleans()
)
def test_fingerprints_survive_lines_before(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], crlf: bool
) -> None:
    path = tmp_path_factory.mktemp("f") / "net.py"
    path.write_text(NET, encoding="utf-8")
    before = fingerprinted([found(filename=str(path))])[0].fingerprint
    text = "".join(f"{line}\n" for line in lines) + NET
    other = tmp_path_factory.mktemp("f") / "net.py"
    other.write_bytes((text.replace("\n", "\r\n") if crlf else text).encode())
    moved = found(filename=str(other), location=Location(9 + len(lines), 21))
    after = fingerprinted([moved])[0]
    # The folder's name is part of it where there is no repository around.
    assert in_repository(str(path)) != in_repository(str(other))
    renamed = msgspec.structs.replace(moved, filename=str(path))
    path.write_bytes(other.read_bytes())
    os_time = path.stat().st_mtime + 1
    os.utime(path, (os_time, os_time))
    assert fingerprinted([renamed])[0].fingerprint == before != after.fingerprint


# ---------------------------------------------------------------------- the command line


def test_several_forms_at_once(here: Path) -> None:
    done = run_command(
        "check", "net.py", "--static", "--output", "sarif:out.sarif", "--output", "junit:out.xml",
        "--output", "markdown:out.md", cwd=here,
    )  # fmt: skip
    assert done.status == 1
    assert "norm-features-mismatch" in done.stdout
    assert json.loads((here / "out.sarif").read_text())["version"] == "2.1.0"
    assert ET.parse(here / "out.xml").getroot().tag == "testsuites"
    assert (here / "out.md").read_text(encoding="utf-8").startswith("### trainlint: 2 errors")


def test_a_file_without_a_form_takes_the_terminals_place(here: Path) -> None:
    done = run_command(
        "check", "net.py", "--static", "--format", "json", "--output", "r.json", cwd=here
    )
    assert done.stdout == ""
    assert len(json.loads((here / "r.json").read_text())["findings"]) == 2
    refused = run_command("check", "net.py", "--output", "a", "--output", "b", cwd=here)
    assert refused.status == 2
    assert "--output sarif:FILE" in refused.stderr


def test_statistics(here: Path) -> None:
    done = run_command("check", "net.py", "--static", "--statistics", cwd=here)
    assert done.stdout == "2  NRM001  error    norm-features-mismatch\n"
    # What machines read stays whole, as its schema has it.
    counted = run_command("check", "net.py", "--static", "--statistics", "--format=json", cwd=here)
    assert len(counted.found("NRM001")) == 2


def test_a_baseline_lets_only_new_findings_fail(here: Path) -> None:
    first = run_command("check", "net.py", "--static", "--write-baseline", "known.json", cwd=here)
    assert (first.status, first.stdout) == (0, "")
    assert first.stderr == "trainlint: wrote 2 findings (2 errors) to known.json\n"
    kept = run_command("check", "net.py", "--static", "--baseline", "known.json", cwd=here)
    assert kept.status == 0, kept.stdout
    assert "2 findings stand in known.json" in kept.stderr
    # Edited above, and one more fault below.
    text = "import math\n\n" + NET.replace(
        "nn.BatchNorm2d(16)\n", "nn.BatchNorm2d(16)\n        self.more = nn.BatchNorm2d(8)\n"
    ).replace("self.again(self.norm", "self.more(self.again(self.norm").replace("(x)))", "(x))))")
    (here / "net.py").write_text(text, encoding="utf-8")
    new = run_command(
        "check", "net.py", "--static", "--baseline", "known.json", "--format=json", cwd=here
    )
    assert [finding["module"] for finding in new.found("NRM001")] == ["more"]
    assert new.status == 1


def test_a_baseline_says_what_is_gone(here: Path) -> None:
    run_command("check", "net.py", "--static", "--write-baseline", "known.json", cwd=here)
    (here / "net.py").write_text(NET.replace("(16)", "(64)").replace("(32)", "(64)"))
    (here / "pyproject.toml").write_text('[tool.trainlint]\nbaseline = "known.json"\n')
    done = run_command("check", "net.py", "--static", cwd=here)
    assert done.status == 0
    assert done.stderr.count("NRM001 of known.json no longer occurs") == 2
    # What was not looked at is not gone.
    (here / "other.py").write_text(NET.replace("(16)", "(64)").replace("(32)", "(64)"))
    assert run_command("check", "other.py", "--static", cwd=here).stderr == ""


def test_a_baseline_of_the_configuration_is_written_first(here: Path) -> None:
    (here / "pyproject.toml").write_text('[tool.trainlint]\nbaseline = "known.json"\n')
    first = run_command("check", "net.py", "--static", "--write-baseline", "known.json", cwd=here)
    assert first.stderr == "trainlint: wrote 2 findings (2 errors) to known.json\n"
    assert run_command("check", "net.py", "--static", cwd=here).status == 0


@pytest.mark.parametrize(
    ("file", "old", "new"), [("net.py", "Net", "Encoder"), ("deep.py", "Net", "Net")]
)
def test_a_baseline_follows_a_class_or_file_to_its_new_name(
    here: Path, file: str, old: str, new: str
) -> None:
    write_baseline(report_of(found()), here / "known.json")
    known = read_baseline(here / "known.json")
    (here / "net.py").unlink()
    (here / file).write_text(NET.replace(old, new))
    other = found(target=f"{file}::{new}", filename=file)
    compared = without(report_of(other, target=f"{file}::{new}"), known)
    assert (compared.report.findings, compared.moved, compared.gone) == ([], 1, [])
    # What says something else is another finding, and the old one is gone.
    changed = found(target=f"{file}::{new}", filename=file, message="receives 32 channels")
    compared = without(report_of(changed, target=f"{file}::{new}"), known)
    assert [finding.message for finding in compared.report.findings] == ["receives 32 channels"]
    assert [entry.target for entry in compared.gone] == ["src dír/net.py::Net"]


def test_a_baseline_says_what_is_gone_with_its_file(here: Path) -> None:
    write_baseline(report_of(found()), here / "known.json")
    known = read_baseline(here / "known.json")
    (here / "other.py").write_text(NET)
    elsewhere = report_of(target="other.py::Net")
    assert without(elsewhere, known).gone == []  # it was not looked at
    (here / "net.py").unlink()
    assert [entry.code for entry in without(elsewhere, known).gone] == ["NRM001"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot read b.json: No such file or directory; --write-baseline b.json makes it"),
        ("[]", "b.json is no baseline"),
        ("{}", "b.json is no baseline: Object missing required field `findings`"),
        ('{"findings": [], "version": 2}', "b.json is no baseline: version 2, not 1"),
    ],
)
def test_a_bad_baseline_is_one_line(here: Path, content: str | None, said: str) -> None:
    if content is not None:
        (here / "b.json").write_text(content)
    done = run_command("check", "net.py", "--baseline", "b.json", cwd=here)
    assert done.status == 2
    assert said in done.stderr
    assert len(done.complaints()) == 1


@pytest.mark.parametrize("form", FORMAT_NAMES)
def test_every_form_of_a_clean_model(form: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("from torch import nn\nmodel = nn.Linear(4, 2)\n")
    done = run_command("check", "net.py", "--static", "--format", form, cwd=tmp_path)
    assert done.status == 0, done.stderr


def test_sarif_edits_mend_the_file(here: Path) -> None:
    report = trainlint.check("net.py", stages=("static",))
    text = SourceText.read("net.py")
    assert text is not None
    edits = []
    for result in sarif(report)["results"]:
        for replacement in result["fixes"][0]["artifactChanges"][0]["replacements"]:
            region = replacement["deletedRegion"]
            start = Location(region["startLine"], region["startColumn"])
            end = Location(region["endLine"], region["endColumn"])
            edits.append(Edit("net.py", start, end, replacement["insertedContent"]["text"]))
    Path("net.py").write_text(apply(text.text, edits), encoding="utf-8")
    assert trainlint.check("net.py", stages=("static",)).findings == []
