"""The pytest plugin, run by the real pytest, and the assertions for tests."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import torch
from torch import nn

from trainlint import check, testing
from trainlint.baseline import write_baseline
from trainlint.catalogue import undeclared
from trainlint.processes import zygotes
from trainlint.registry import all_rules
from trainlint.report import plots, text

# A run in this process forgets the modules that it has imported: what they share would be there twice.
_IMPORTED_BEFORE = (plots, text)

pytest_plugins = ["pytester"]

BROKEN = """\
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(x))
"""
SOUND = (
    "from torch import nn\n\nmodel = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))\n"
)
ADVISED = BROKEN.replace(", bias=False", "").replace("BatchNorm2d(4)", "BatchNorm2d(8)")


# ---------------------------------------------------------------------- the plugin


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(broken=BROKEN, sound=SOUND, advised=ADVISED, plain="x = 1\n")
    pytester.makepyfile(test_own="def test_own():\n    pass\n")
    return pytester


def test_nothing_is_collected_without_the_option(project: pytest.Pytester) -> None:
    project.runpytest_subprocess().assert_outcomes(passed=1)


def test_models_are_items_with_reports_as_failures(project: pytest.Pytester) -> None:
    done = project.runpytest_subprocess("--trainlint", "--junit-xml=out.xml")
    done.assert_outcomes(passed=3, failed=1)
    done.stdout.fnmatch_lines(
        [
            "*1. [[]error[]] norm-features-mismatch NRM001  broken.py:9:*",
            "*BatchNorm2d(4) receives 8 channels from conv*",
            "*- trainlint -*",
            "1 error, 1 info",
            "  error NRM001 broken.py:9",
            "FAILED broken.py::trainlint::Net*",
        ]
    )
    done.stdout.no_fnmatch_line("*Traceback*")
    done.stdout.no_fnmatch_line("*runtest*")
    cases = {case.get("name"): case for case in ET.parse(project.path / "out.xml").iter("testcase")}
    (found,) = cases["Net"].iter("property") if "Net" in cases else ()
    assert found.get("value") in ("error NRM001 broken.py:9", "info NRM005 advised.py:8")


@pytest.mark.parametrize(
    ("args", "outcomes"),
    [
        (["broken.py::trainlint::Net"], {"failed": 1}),
        (["-k", "model"], {"passed": 1, "deselected": 3}),
        (["-m", "trainlint"], {"passed": 2, "failed": 1, "deselected": 1}),
        (["--trainlint-fail-on=never"], {"passed": 4}),
        (["--trainlint-fail-on=info", "advised.py"], {"failed": 1}),
        (["-o", "trainlint_ignore=NRM"], {"passed": 4}),
        (["-o", "trainlint_select=ARC", "--trainlint-static"], {"passed": 4}),
        (["-n2", "broken.py", "sound.py", "advised.py", "test_own.py"], {"passed": 3, "failed": 1}),
    ],
)
def test_selection_and_limits(
    project: pytest.Pytester, args: list[str], outcomes: dict[str, int]
) -> None:
    run = project.runpytest_subprocess if "-n2" in args else project.runpytest_inprocess
    done = run("--trainlint", *args)
    done.assert_outcomes(**outcomes)
    if "-n2" in args:
        assert done.outlines.count("  error NRM001 broken.py:9") == 1


TELLS = """\
import os
with open({file!r}, "a") as file:
    file.write(f"{{os.getpid()}}\\n")
"""
TRAINS = """\
import torch
from torch import nn

net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
net(torch.randn(8, 4)).square().mean().backward()
optimizer.step()
open({file!r}, "w").close()


def test(model):
    return model
"""


def test_a_file_that_is_named_runs_in_a_child_alone(pytester: pytest.Pytester) -> None:
    """pytest's own collector takes each file that is named; nor are a package's files imported here."""
    imported, trained = pytester.path / "imported", pytester.path / "trained"
    tells = TELLS.format(file=str(imported))
    package = pytester.mkpydir("package")
    (package / "__init__.py").write_text(tells)
    (package / "net.py").write_text(tells + TRAINS.format(file=str(trained)))
    pytester.makepyfile(script=tells, trains=tells + TRAINS.format(file=str(trained)))
    pytester.makepyfile(both_checks=f"{SOUND}\n\ndef test_it():\n    assert model\n")
    pytester.makeini("[pytest]\npython_files = test_*.py *_checks.py\n")
    named = ["trains.py", "script.py", "package/net.py", "both_checks.py"]
    done = pytester.runpytest_inprocess("--trainlint", *named)
    done.assert_outcomes(passed=4)  # three models, and the test beside one of them
    pids = imported.read_text().split()
    assert pids
    assert str(os.getpid()) not in pids
    assert not trained.exists()


@pytest.mark.parametrize(
    ("args", "items"),
    [
        (["checks.py"], ["checks.py::trainlint::model"]),
        (["checks.py::trainlint::model"], ["checks.py::trainlint::model"]),
        (["checks.py::test_it"], ["checks.py::test_it"]),
        (["./inner/../checks.py::test_it"], ["checks.py::test_it"]),
        (["--pyargs", "inner.net"], ["inner/net.py::trainlint::model"]),
        (["--import-mode=importlib", "inner/net.py"], ["inner/net.py::trainlint::model"]),
        (["--pyargs", "inner.net::test_it"], ["inner/net.py::test_it"]),
        (["-o", "python_files=inner/*.py", "inner/net.py"],
         ["inner/net.py::trainlint::model", "inner/net.py::test_it"]),
        (["test_nets.py"], ["test_nets.py::test_it"]),
        (["test_nets.py::trainlint::model"], ["test_nets.py::trainlint::model"]),
        (["-o", "python_files=checks.py", "."],
         ["checks.py::trainlint::model", "checks.py::test_it", "inner/net.py::trainlint::model"]),
    ],
)  # fmt: skip
def test_which_files_are_collected_by_whom(
    args: list[str], items: list[str], pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"{SOUND}\n\ndef test_it():\n    assert model\n"
    pytester.makepyfile(checks=text, test_nets=text)
    (pytester.mkpydir("inner") / "net.py").write_text(text)
    monkeypatch.syspath_prepend(pytester.path)
    done = pytester.runpytest_inprocess("--trainlint", "--collect-only", "-q", *args)
    assert [line for line in done.outlines if "::" in line and " " not in line] == items
    left_out = "tests are not run; `pytest checks.py::test_it` runs one of them"
    assert (left_out in " ".join(done.outlines)) == (args == ["checks.py"])


def test_the_baseline_of_the_configuration_is_left_out(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(broken=BROKEN, mended=BROKEN)
    settings = '[tool.trainlint]\nselect = ["NRM001"]\nbaseline = "known.json"\n'
    pytester.makepyprojecttoml(settings)
    known = Path("known.json")
    write_baseline(check(["broken.py", "mended.py"], stages=["static"], select=["NRM001"]), known)
    pytester.makepyfile(
        mended=BROKEN.replace("BatchNorm2d(4)", "BatchNorm2d(8)"), fresh=BROKEN, newer=BROKEN
    )
    done = pytester.runpytest_inprocess("--trainlint", "--trainlint-static", "--junit-xml=out.xml")
    done.assert_outcomes(passed=2, failed=2)
    done.stdout.fnmatch_lines(
        [
            "2 errors",
            "  error NRM001 fresh.py:9",
            "1 finding stands in known.json, left out",
            "mended.py::Net: NRM001 of known.json no longer occurs",
        ]
    )
    known.write_text("{")
    done = pytester.runpytest_inprocess("--trainlint", "--collect-only")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines(["ERROR: trainlint: known.json is no baseline: *"])


def test_targets_of_the_configuration_are_collected(pytester: pytest.Pytester) -> None:
    pytester.mkdir("src")
    (pytester.path / "src" / "net.py").write_text(BROKEN)
    pytester.mkdir("tests")
    (pytester.path / "tests" / "test_own.py").write_text("def test_own():\n    pass\n")
    pytester.makepyprojecttoml(
        '[tool.pytest.ini_options]\ntestpaths = ["tests"]\n[tool.trainlint]\ntargets = ["src"]\n'
    )
    pytester.runpytest_inprocess("--trainlint").assert_outcomes(passed=1, failed=1)
    pytester.runpytest_inprocess("--trainlint", "tests").assert_outcomes(passed=1)
    pytester.runpytest_inprocess().assert_outcomes(passed=1)


PROJECT = Path(__file__).parent.parent / "fixtures" / "project"


def test_a_real_project(pytester: pytest.Pytester) -> None:
    """Models in a package that import each other, a block that only others can make, tests of its own."""
    shutil.copytree(PROJECT, pytester.path, dirs_exist_ok=True)
    done = pytester.runpytest_subprocess("--trainlint", "-n2", "-rfs", "--junit-xml=out.xml")
    done.assert_outcomes(passed=3, failed=1, skipped=1)
    done.stdout.fnmatch_lines(
        [
            "*1. [[]error[]] layer-input-mismatch ARC002  src/digits/autoencoder.py:12:*",
            "*decoder, a Conv2d of in_channels=8, receives 16 channels from encoder.1.conv",
            "  error ARC002 src/digits/autoencoder.py:12",
            "FAILED src/digits/autoencoder.py::trainlint::Autoencoder*",
            "SKIPPED [[]1[]] src/digits/blocks.py:1: Block needs arguments (width_in, width_out)*",
        ]
    )
    cases = {
        (case.get("classname"), case.get("name")): [
            each.get("value") for each in case.iter("property")
        ]
        for case in ET.parse(pytester.path / "out.xml").iter("testcase")
    }
    assert cases["src.digits.autoencoder.trainlint", "Autoencoder"] == [
        "error ARC002 src/digits/autoencoder.py:12"
    ]
    assert cases["src.digits.classifier.trainlint", "Classifier"] == []


def test_helpers_of_tests_are_models_only_where_they_are_named(pytester: pytest.Pytester) -> None:
    (pytester.mkdir("tests") / "nets.py").write_text(BROKEN)
    pytester.makepyprojecttoml('[tool.pytest.ini_options]\ntestpaths = ["tests"]\n')
    collected = pytester.runpytest_inprocess("--trainlint", "--collect-only", "-q")
    assert "nets.py" not in collected.stdout.str()
    named = pytester.runpytest_inprocess("--trainlint", "--collect-only", "-q", "tests/nets.py")
    named.stdout.fnmatch_lines(["tests/nets.py::trainlint::Net"])


def test_what_the_configuration_excludes_is_collected_only_where_it_is_named(
    project: pytest.Pytester,
) -> None:
    section = "[tool.trainlint]\nexclude = ['broken.py']\n"
    project.makepyprojecttoml(section + "[tool.trainlint.per-file-ignores]\n'*.py' = ['ALL']\n")
    project.runpytest_inprocess("--trainlint").assert_outcomes(passed=3)
    # And no rule is used in it.
    project.runpytest_inprocess("--trainlint", "broken.py").assert_outcomes(passed=1)


def test_bad_files_are_one_line(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        unfinished="import torch\nx = (\n", needs="import torch, no_such_thing\n" + BROKEN
    )
    done = pytester.runpytest_inprocess("--trainlint")
    done.assert_outcomes(failed=2)
    text = done.stdout.str()
    assert "unfinished.py could not be checked: does not parse" in text
    assert "no_such_thing" in text
    assert "Traceback" not in text


def test_one_process_imports_torch_for_all_files(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashing = "import os, torch\nos.abort()\n" + BROKEN
    pytester.makepyfile(a=crashing, b=SOUND, c=crashing, d=BROKEN)
    start, started = zygotes._process, []
    monkeypatch.setattr(
        zygotes, "_process", lambda complaints: started.append(start(complaints)) or started[-1]
    )
    done = pytester.runpytest_inprocess("--trainlint")
    done.assert_outcomes(passed=1, failed=3)
    # As failures: how much of a failure the short summary repeats depends on the variable CI.
    crashed = [line for line in done.outlines if " could not be checked: crashed (Aborted" in line]
    assert [line.split()[0] for line in crashed if line[0] != "F"] == ["a.py", "c.py"]
    assert [process.poll() for process in started] == [0]  # one, and it has ended


@pytest.mark.parametrize(
    ("settings", "args", "said"),
    [
        ("fail_on = 1", [], "has no key 'fail_on'"),
        ("ignore = ['NRM9']", [], "[[]tool.trainlint]: unknown rule 'NRM9'*"),
        ("rules.no-such = {most = 1}", [], "[[]tool.trainlint.rules]: unknown rule 'no-such'*"),
        ("", ["trainlint_fail_on=warn"], "not 'warn'; did you mean warning?"),
        ("", ["trainlint_select=NRM norm-feature-mismatch"],
         "trainlint_select: unknown rule 'norm-feature-mismatch'; did you mean norm-features-mismatch?"),
        ("", ["trainlint_ignore=NRM0O1"], "trainlint_ignore: unknown rule 'NRM0O1'*"),
    ],
)  # fmt: skip
def test_bad_settings_are_an_error_of_the_call(
    settings: str, args: list[str], said: str, project: pytest.Pytester
) -> None:
    (project.path / "pyproject.toml").write_text(f"[tool.trainlint]\n{settings}\n")
    given = [part for arg in args for part in ("-o", arg)]
    done = project.runpytest_inprocess("--trainlint", *given)
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines([f"ERROR: trainlint: *{said}*"])
    assert len(done.stderr.str().splitlines()) == 1
    if not settings:
        project.runpytest_inprocess(*given).assert_outcomes(passed=1)


def test_names_are_those_of_the_registry() -> None:
    rules = all_rules()
    names = {name for each in rules for name in (each.code, each.code[:4], each.name, each.family)}
    assert undeclared(["ALL", "N", *names]) == []
    assert undeclared(["", "NRM0019", "norm"]) == ["", "NRM0019", "norm"]


def test_the_plugin_imports_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import trainlint.integrations.pytest_plugin"],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "trainlint.integrations.pytest_plugin" in imported
    assert not {name for name in imported if re.match(r"(torch|networkx|rich|numpy)\b", name)}


def test_the_plugin_is_loaded_where_trainlint_is_installed(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(trainlint):\n    assert callable(trainlint.assert_clean)\n")
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


# ---------------------------------------------------------------------- the assertions


def mlp(*middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 32), *middle, nn.Linear(32, 2))


def test_assert_clean() -> None:
    report = testing.assert_clean(mlp(nn.ReLU()), torch.randn(4, 4))
    assert report.targets[0].status == "ok"
    broken = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(4))
    with pytest.raises(AssertionError) as raised:
        testing.assert_clean(broken, torch.randn(4, 3, 8, 8))
    first, _, rest = str(raised.value).partition("\n")
    assert first == "trainlint finds NRM001 norm-features-mismatch"
    assert "BatchNorm2d(4) receives 8 channels" in rest
    testing.assert_clean(broken, torch.randn(4, 3, 8, 8), ignore=["NRM001"])
    with pytest.raises(AssertionError, match="NRM005"):
        testing.assert_clean(broken, torch.randn(4, 3, 8, 8), ignore=["NRM001"], fail_on="info")
    with pytest.raises(AssertionError, match="could not be checked"):
        testing.assert_clean(nn.Linear(4, 2), {"no_such_argument": torch.randn(4, 4)})


def test_assert_learns() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(16, 4), torch.randint(2, (16,))
    model = mlp(nn.ReLU())
    before = [p.clone() for p in model.parameters()]
    state = torch.get_rng_state()
    assert testing.assert_learns(model, x, y, nn.CrossEntropyLoss()) < 0.5
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    twice = nn.Sequential(mlp(nn.ReLU()), nn.Softmax(1))
    with pytest.raises(
        AssertionError, match=r"does not learn 16 samples by heart: the loss came from"
    ) as raised:
        testing.assert_learns(twice, x, y, nn.CrossEntropyLoss(), left=0.3)
    assert "[error] double-softmax LOS001" in str(raised.value)  # and why
    with pytest.raises(ValueError, match="at least 8 samples"):
        testing.assert_learns(model, x[:4], y[:4], nn.CrossEntropyLoss())


def test_assert_gradients_flow() -> None:
    testing.assert_gradients_flow(lambda: mlp(nn.ReLU()), torch.randn(16, 4))
    sigmoids = [part for _ in range(8) for part in (nn.Linear(32, 32), nn.Sigmoid())]
    with pytest.raises(AssertionError, match="saturating-stack"):
        testing.assert_gradients_flow(mlp(*sigmoids), torch.randn(16, 4))


class ZeroBranch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(torch.relu(self.first(x)))


def test_a_zero_initialised_branch_is_no_fault() -> None:
    model = nn.Sequential(nn.Linear(4, 4), ZeroBranch(), nn.Linear(4, 2))
    testing.assert_gradients_flow(model, torch.randn(16, 4))


def test_assert_no_dead_units() -> None:
    model, x = mlp(nn.ReLU()), torch.randn(64, 4)
    assert set(testing.assert_no_dead_units(model, x)) == {"1.relu"}
    nn.init.constant_(model[0].bias, -100)
    with pytest.raises(AssertionError, match=r"1\.relu: 100%"):
        testing.assert_no_dead_units(model, x)
    assert testing.assert_no_dead_units(model, x, most=1.0) == {"1.relu": 1.0}
    assert all(p.grad is None for p in model.parameters())


class Forgetful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(4, 4), torch.randn(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * self.scale


def test_assert_restores() -> None:
    x = torch.randn(2, 4)
    testing.assert_restores(lambda: mlp(nn.BatchNorm1d(32), nn.Dropout()), x)
    with pytest.raises(AssertionError, match="output 0 of Forgetful differs"):
        testing.assert_restores(Forgetful, x)
    model = nn.Linear(4, 4)
    with pytest.raises(TypeError, match="makes a new model"):
        testing.assert_restores(lambda: model, x)


def test_samples_and_passes() -> None:
    x = torch.randn(4, 4)
    testing.assert_samples_independent(mlp(nn.ReLU()), x)
    testing.assert_same_in_eval(mlp(nn.Dropout()), x)
    with pytest.raises(AssertionError, match="ACT003"):
        testing.assert_samples_independent(mlp(nn.Softmax(dim=0)), x)


class AlwaysDrops(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x, 0.5)


def test_a_model_that_is_random_in_eval() -> None:
    with pytest.raises(AssertionError, match="REG002"):
        testing.assert_same_in_eval(mlp(AlwaysDrops()), torch.randn(4, 4))


def test_every_assertion_is_exported_and_documented() -> None:
    for name in testing.__all__:
        assert getattr(testing, name).__doc__
    guides = (Path(__file__).parent.parent / "docs" / "guides").glob("*.md")
    text = "".join(guide.read_text(encoding="utf-8") for guide in guides)
    assert [name for name in testing.__all__ if name not in text] == []
