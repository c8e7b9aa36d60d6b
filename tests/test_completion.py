"""Shell completion: what is offered, and a real bash that asks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import BashComplete, CompletionItem, ShellComplete, get_completion_class
from conftest import COMMAND

from trainlint.catalogue import declared_rules
from trainlint.cli import main
from trainlint.cli.completing import VARIABLE, register
from trainlint.registry import all_rules

NETS = """\
import torch
from torch import nn


class Encoder(nn.Module):
    def forward(self, x):
        return x


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = Encoder()


class Other(nn.Module):
    def forward(self, x):
        return x
"""


def offered(*words: str) -> list[CompletionItem[str]]:
    """For the last of the words."""
    shell = ShellComplete(main, {}, "trainlint", VARIABLE)
    return shell.get_completions([*words[:-1]], words[-1])


def values(*words: str) -> list[str]:
    return [item.value for item in offered(*words)]


def test_rules_are_read_without_being_imported() -> None:
    declared = [(rule.code, rule.name, rule.family, rule.summary) for rule in declared_rules()]
    assert declared == [(rule.code, rule.name, rule.family, rule.summary) for rule in all_rules()]


def test_commands_options_and_their_values() -> None:
    assert {"check", "explain", "rules", "run", "sweep"} <= set(values(""))
    assert values("check", "--wa") == ["--watch"]
    (item,) = offered("check", "--wa")
    assert item.help is not None
    assert "Ctrl-C" in item.help
    assert values("check", "--format", "ht") == ["html"]
    assert values("check", "--fail-on", "") == ["error", "warning", "info", "never"]
    assert values("completion", "") == ["bash", "zsh", "fish"]
    for words in (["check", "--output", ""], ["check", "mod"], ["run", "tr"], ["sweep", ""]):
        assert [item.type for item in offered(*words)] == ["file"], words


def test_rules_with_what_they_say() -> None:
    rule = all_rules()[0]
    for words in (["explain", rule.code], ["check", "--select", rule.code]):
        (item,) = offered(*words)
        assert (item.value, item.help) == (rule.code, f"{rule.name}: {rule.summary}")
    assert {rule.name for rule in all_rules()} <= set(values("explain", ""))
    assert rule.family in values("explain", rule.family[:3])
    assert values("check", "--ignore", "ALL,NR") == [
        f"ALL,{rule.code}" for rule in all_rules() if rule.code.startswith("NR")
    ]
    assert "NRM001,NRM001" not in values("check", "--extend-select", "NRM001,NRM")
    assert "ALL" in values("check", "--select", "")


def test_models_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NETS)
    Path("half.py").write_text("import torch\nclass Net(\n")
    assert [(item.value, item.help) for item in offered("check", "nets.py::")] == [
        ("nets.py::Net", "class, line 10"),
        ("nets.py::Other", "class, line 16"),
    ]
    assert values("check", "--static", "nets.py::O") == ["nets.py::Other"]
    assert values("check", "half.py::") == values("check", "no.py::") == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["check", "nets.py", "::", "Ot"], "plain,Other"),
        (["check", "nets.py", "::"], "plain,Net\nplain,Other"),
        (["check", "nets.py::Ot"], "plain,nets.py::Other"),
        (["check", "--format", "=", "ht"], "plain,html"),
        (["check", "--format", "=", "html", "--fail-on", "ne"], "plain,never"),
        (["check", "--select", "NRM001,NRM00", ""], "file,"),
    ],
)  # fmt: skip
def test_words_that_bash_has_broken(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NETS)
    monkeypatch.setenv("COMP_WORDS", "\n".join(["trainlint", *words]))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    register()
    kind = get_completion_class("bash")
    assert kind is not None
    assert issubclass(kind, BashComplete)
    assert kind(main, {}, "trainlint", VARIABLE).complete() == said


ASK = r"""
eval "$(trainlint completion bash)"
complete -p trainlint
ask() {
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
    _trainlint_completion trainlint
    echo "${COMPREPLY[*]}"
}
ask trainlint che
ask trainlint explain norm-feat
ask trainlint check nets.py :: O
ask trainlint check --select NRM001,ARC00
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_a_real_bash_asks(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(NETS)
    path = f"{Path(COMMAND).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", ASK], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        check=True, env={**os.environ, "PATH": path},
    )  # fmt: skip
    complete, command, rule, model, several = done.stdout.splitlines()
    assert "-F _trainlint_completion trainlint" in complete
    assert command == "check"
    assert rule == "norm-features-mismatch"
    assert model == "Other"
    found = [rule.code for rule in all_rules() if rule.code.startswith("ARC00")]
    assert several.split() == [f"NRM001,{code}" for code in found]
    assert not done.stderr


def test_a_tab_imports_neither_rules_nor_the_analysis(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(NETS)
    program = (
        "import os, sys\nfrom trainlint.cli import main\n"
        "for words in (['explain', ''], ['check', '--select', 'N'], ['check', 'nets.py::']):\n"
        "    os.environ['COMP_WORDS'] = ' '.join(['trainlint', *words])\n"
        "    os.environ['COMP_CWORD'] = str(len(words))\n"
        "    try:\n        main([], 'trainlint')\n    except SystemExit:\n        pass\n"
        "heavy = 'torch numpy networkx rich trainlint.rule trainlint.files trainlint_rules.normalization'\n"
        "print(sorted(set(heavy.split()) & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        check=True, env={**os.environ, VARIABLE: "zsh_complete"},
    )  # fmt: skip
    assert "NRM001" in done.stdout
    assert "Other" in done.stdout
    assert done.stderr == "[]\n"
