"""The GitHub Action: action.yml is what its users' workflows name, and its steps run in a real bash."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import schemas
import yaml
from blocks import REPOSITORY, blocks

from trainlint import __version__
from trainlint.report import FORMAT_NAMES

ROOT = Path(__file__).parent.parent
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
INSTALL, CHECK = ACTION["runs"]["steps"]
EXPRESSION = re.compile(r"\$\{\{ *([\w.-]+) *\}\}")
BROKEN = """\
from torch import nn

print("::error::not a finding")
model = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(32))
"""
SOUND = BROKEN.replace("BatchNorm2d(32)", "BatchNorm2d(16)")


@dataclass(frozen=True)
class Step:
    """What a step did, as the runner sees it."""

    status: int
    log: str
    outputs: dict[str, str]
    summary: str


def step(
    given: Mapping[str, Any], workspace: Path, inputs: Mapping[str, str], **environment: str
) -> Step:
    """Run a step of the action as the runner does: inputs put in, then bash."""
    known = {name: one.get("default", "") for name, one in ACTION["inputs"].items()}
    assert set(inputs) <= set(known)
    values = {f"inputs.{name}": value for name, value in {**known, **inputs}.items()}
    values["github.action_path"] = str(ROOT)

    def put_in(text: str) -> str:
        return EXPRESSION.sub(lambda match: values[match[1]], text)

    temporary = workspace.parent / "temp"
    temporary.mkdir(exist_ok=True)
    files = {name: temporary / name for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    for file in files.values():
        file.write_text("")
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", given["run"]],
        cwd=workspace / put_in(given.get("working-directory", ".")),
        env={
            **os.environ, "RUNNER_TEMP": str(temporary),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            **{name: str(file) for name, file in files.items()},
            **{name: put_in(text) for name, text in given["env"].items()}, **environment,
        },
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False,
    )  # fmt: skip
    lines = files["GITHUB_OUTPUT"].read_text(encoding="utf-8").splitlines()
    summary = files["GITHUB_STEP_SUMMARY"].read_text(encoding="utf-8")
    return Step(
        done.returncode, done.stdout, dict(line.split("=", 1) for line in lines), summary
    )  # fmt: skip


def commands(log: str) -> list[str]:
    """The workflow commands that the runner would obey."""
    obeyed, until = [], None
    for line in log.splitlines():
        if until is not None:
            until = None if line == f"::{until}::" else until
        elif line.startswith("::stop-commands::"):
            until = line.removeprefix("::stop-commands::")
        elif line.startswith("::"):
            obeyed.append(line)
    return obeyed


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A repository whose models lie in a folder with a space in its name."""
    folder = tmp_path / "work"
    (folder / ".git").mkdir(parents=True)
    (folder / "my models").mkdir()
    (folder / "my models" / "broken.py").write_text(BROKEN)
    (folder / "my models" / "sound.py").write_text(SOUND)
    return folder


# ---------------------------------------------------------------------- its shape


def test_the_action_is_what_the_published_schema_allows() -> None:
    schemas.validate(ACTION, schemas.GITHUB_ACTION)
    assert ACTION["runs"]["using"] == "composite"
    assert ACTION["inputs"]["format"]["default"] in FORMAT_NAMES


def test_no_input_is_put_into_a_script_and_each_is_used() -> None:
    used = set()
    for one in (INSTALL, CHECK):
        assert "${{" not in one["run"]
        for text in (one["working-directory"], *one["env"].values()):
            used |= set(EXPRESSION.findall(text))
        for name in one["env"]:
            assert name in one["run"] or name in ("COLUMNS", "PYTHONUTF8")
    assert {name.removeprefix("inputs.") for name in used if name.startswith("inputs.")} == set(
        ACTION["inputs"]
    )
    values = {output["value"] for output in ACTION["outputs"].values()}
    assert values == {f"${{{{ steps.check.outputs.{name} }}}}" for name in ACTION["outputs"]}


# ---------------------------------------------------------------------- checking


def test_a_broken_model_fails_the_step_and_is_shown_everywhere(workspace: Path) -> None:
    done = step(
        CHECK, workspace,
        {"targets": "my models\n", "static": "true", "sarif": "found here.sarif", "args": "--jobs=1"},
    )  # fmt: skip
    assert done.status == 1
    assert "norm-features-mismatch NRM001  my models/broken.py:4:" in done.log
    (annotation,) = commands(done.log)
    assert annotation.startswith(
        "::error title=NRM001 norm-features-mismatch,file=my models/broken.py,line=4,"
    )
    assert done.summary.startswith("### trainlint: 1 error, 0 warnings")
    assert Path(done.outputs["markdown"]).read_text(encoding="utf-8") == done.summary
    assert done.outputs["sarif"] == str(workspace / "found here.sarif")
    (run,) = json.loads(Path(done.outputs["sarif"]).read_text(encoding="utf-8"))["runs"]
    (result,) = run["results"]
    uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert uri == "my%20models/broken.py"
    assert {name: done.outputs[name] for name in ("status", "errors", "warnings")} == {
        "status": "1", "errors": "1", "warnings": "0",
    }  # fmt: skip


def test_a_sound_model_passes_in_its_own_directory(workspace: Path) -> None:
    done = step(
        CHECK, workspace,
        {"targets": "\n  sound.py  \n\n", "static": "true", "working-directory": "my models",
         "annotations": "false", "summary": "false"},
    )  # fmt: skip
    assert (done.status, commands(done.log), done.summary) == (0, [], "")
    assert done.outputs["errors"] == "0"
    assert "sarif" not in done.outputs


NASTY = 'a\'; touch stolen; "$(touch stolen)" `touch stolen` ${{ github.token }} *'


@pytest.mark.parametrize(
    "name", sorted(set(ACTION["inputs"]) - {"working-directory", "python", "version"})
)
def test_what_an_input_holds_is_never_run(name: str, workspace: Path) -> None:
    done = step(CHECK, workspace, {"targets": "sound.py", name: NASTY}, PYTHON=recorder(workspace))
    assert not list(workspace.rglob("stolen"))
    given = json.loads((workspace / "given.json").read_text())
    assert given[:3] == ["-m", "trainlint", "check"]
    if name not in ("static", "annotations", "summary"):  # which are compared, and not passed on
        (passed,) = (word for word in given if NASTY in word)
        assert passed.removesuffix(NASTY) in (
            "", f"--{name}=", "--sarif=", "--output=sarif:",
        )  # fmt: skip
    assert done.outputs["status"] == "0"


def recorder(workspace: Path) -> str:
    """A `python` that writes down what trainlint is called with, and does the rest."""
    script = workspace.parent / "recorder"
    script.write_text(
        "#!/usr/bin/env bash\n"
        f'if [ "$2" = -m ]; then "{sys.executable}" -c \'import json, sys; '
        'json.dump(sys.argv[1:], open("given.json", "w"))\' "${@:2}"\n'
        f'else exec "{sys.executable}" "$@"; fi\n'
    )
    script.chmod(0o755)
    return str(script)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (
            {"targets": "no %0A such.py", "sarif": "out.sarif"},
            "trainlint: error: no %250A such.py: no such file or directory",
        ),
        (
            {"targets": "sound.py", "args": "--jobs=0"},
            "Error: Invalid value for '--jobs': 0 is not in the range x>=1.",
        ),
    ],
)
def test_why_nothing_was_checked_is_said_and_fails_the_step(
    inputs: dict[str, str], said: str, workspace: Path
) -> None:
    done = step(CHECK, workspace, inputs)
    assert done.status == 2
    assert commands(done.log) == [f"::error title=trainlint::{said}"]
    text = said.replace("%25", "%")
    assert text in done.log  # as the command line has it
    assert done.summary == f"### trainlint could not check\n\n    {text}\n"
    assert done.outputs == {"status": "2"}


# ---------------------------------------------------------------------- installing


def environment(folder: Path, **installed: str) -> str:
    """A Python of its own with packages of these versions, and a pip that writes down its arguments."""
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=300
    )
    (packages,) = folder.glob("lib/python*/site-packages")
    for name, version in installed.items():
        metadata = packages / f"{name}-{version}.dist-info"
        metadata.mkdir()
        (packages / f"{name}.py").touch()
        (metadata / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
    (packages / "pip.py").write_text(
        "import pathlib, sys\npathlib.Path(sys.prefix, 'asked').write_text('\\n'.join(sys.argv[1:]))\n"
    )
    return str(folder / "bin" / "python")


@pytest.mark.parametrize(
    ("installed", "version", "asked"),
    [
        ({"torch": "2.6.0+cpu"}, "", [str(ROOT), "torch==2.6.0+cpu"]),
        ({"torch": "2.6.0", "trainlint": "9"}, "", None),
        ({"torch": "2.6.0", "trainlint": "9"}, "9", None),
        ({"torch": "2.6.0", "trainlint": "9"}, "8; rm x", ["trainlint==8; rm x", "torch==2.6.0"]),
    ],
)
def test_trainlint_is_installed_where_it_is_missing(
    installed: dict[str, str], version: str, asked: list[str] | None, workspace: Path
) -> None:
    python = environment(workspace.parent / "venv", **installed)
    done = step(INSTALL, workspace, {"python": python, "version": version})
    assert done.status == 0, done.log
    note = workspace.parent / "venv" / "asked"
    if asked is None:
        assert not note.exists()
    else:
        assert note.read_text().splitlines() == ["install", "--quiet", *asked]


def test_without_torch_nothing_is_installed(workspace: Path) -> None:
    python = environment(workspace.parent / "venv")
    done = step(INSTALL, workspace, {"python": python})
    assert done.status == 2
    (said,) = commands(done.log)
    assert "no torch here: install your packages" in said
    assert not (workspace.parent / "venv" / "asked").exists()


# ---------------------------------------------------------------------- the guide's examples

GUIDE = {block.file or block.tested: block for block in blocks(ROOT / "docs" / "guides" / "ci.md")}
WORKFLOW: dict[str, Any] = yaml.safe_load(GUIDE[".github/workflows/models.yml"].text)
STEPS: list[dict[str, Any]] = WORKFLOW["jobs"]["trainlint"]["steps"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """What the guide's reader has in front of the first check, as a repository."""
    folder = tmp_path / "work"
    (folder / ".git").mkdir(parents=True)
    for name, block in GUIDE.items():
        if name in ("src/model.py", ".gitlab-ci.yml"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(block.text, encoding="utf-8")
    return folder


def test_the_guides_workflow_fails_on_its_model_and_leaves_a_sarif_file(project: Path) -> None:
    (ours,) = (one for one in STEPS if one["uses" if "uses" in one else "run"].startswith("you/"))
    name, revision = ours["uses"].split("@")
    assert REPOSITORY.endswith(f"/{name}")
    assert revision == f"v{__version__}"
    done = step(CHECK, project, {key: str(value) for key, value in ours["with"].items()})
    assert done.status == 1
    upload = STEPS[STEPS.index(ours) + 1]
    assert (project / upload["with"]["sarif_file"]).exists()
    assert f"hashFiles('{upload['with']['sarif_file']}')" in upload["if"]


def test_the_code_hosts_schemas_allow_the_guides_files() -> None:
    # The comment is one more step of that job; `on` is no truth value in YAML 1.2, which GitHub reads.
    (comment,) = yaml.safe_load(GUIDE["tests/test_action.py"].text)
    jobs = {"trainlint": {**WORKFLOW["jobs"]["trainlint"], "steps": [*STEPS, comment]}}
    workflow = {"on" if key is True else key: value for key, value in WORKFLOW.items()}
    schemas.validate({**workflow, "jobs": jobs}, schemas.GITHUB_WORKFLOW)
    schemas.validate(yaml.safe_load(GUIDE[".gitlab-ci.yml"].text), schemas.GITLAB_CI)


def test_the_guide_names_every_input_and_output() -> None:
    text = (ROOT / "docs" / "guides" / "ci.md").read_text(encoding="utf-8")
    assert [
        name for name in (*ACTION["inputs"], *ACTION["outputs"]) if f"`{name}`" not in text
    ] == []


def test_the_guides_comment_is_what_the_action_wrote(project: Path, tmp_path: Path) -> None:
    """With a `gh` that keeps what it is given."""
    done = step(CHECK, project, {"targets": "src", "static": "true"})
    (comment,) = yaml.safe_load(GUIDE["tests/test_action.py"].text)
    assert "steps.trainlint.outputs.markdown != ''" in comment["if"]  # empty with status 2
    gh = tmp_path / "bin" / "gh"
    gh.parent.mkdir()
    gh.write_text('#!/bin/sh\necho "$@" > asked\ncp "$5" body\n')
    gh.chmod(0o755)
    found = EXPRESSION.fullmatch(comment["env"]["REPORT"])
    assert found is not None
    report = done.outputs[found[1].removeprefix("steps.trainlint.outputs.")]
    subprocess.run(
        ["bash", "-euc", comment["run"]], cwd=tmp_path, check=True, timeout=300,
        env={"PATH": f"{gh.parent}:{os.environ['PATH']}", "NUMBER": "7", "REPORT": report},
    )  # fmt: skip
    assert (tmp_path / "asked").read_text().startswith(f"pr comment 7 --body-file {report}")
    assert (tmp_path / "body").read_text(encoding="utf-8") == done.summary


def test_the_guides_gitlab_job_fails_on_its_model_and_leaves_its_reports(project: Path) -> None:
    job = yaml.safe_load((project / ".gitlab-ci.yml").read_text(encoding="utf-8"))["trainlint"]
    assert all(line.startswith("pip install ") for line in job["before_script"])
    done = subprocess.run(
        ["bash", "-euc", "\n".join(job["script"])], cwd=project, capture_output=True, text=True,
        timeout=300, check=False,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    reports = job["artifacts"]["reports"]
    (entry,) = json.loads((project / reports["codequality"]).read_text(encoding="utf-8"))
    assert entry["location"]["path"] == "src/model.py"
    suite = ET.parse(project / reports["junit"]).getroot()[0]
    assert suite.get("failures") == "1"
