"""`trainlint explain`: one rule as a lesson, several as a list, each in three formats."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.cells import cell_len
from rich.console import Console

from trainlint.errors import UsageError
from trainlint.registry import all_rules
from trainlint.report.explanation import (
    FORMAT_NAMES,
    Lesson,
    as_data,
    as_markdown,
    example,
    print_rules,
    print_table,
    rules_named,
)
from trainlint.rule import Rule

if TYPE_CHECKING:
    from conftest import Run

RULES = [pytest.param(rule, id=rule.code) for rule in all_rules()]
ARC008 = rules_named("ARC008")[0]


def shown(rules: tuple[Rule, ...], width: int, *, terminal: bool = False, full: bool = True) -> str:
    stream = io.StringIO()
    console = Console(
        file=stream,
        width=width,
        force_terminal=terminal,
        color_system="truecolor" if terminal else None,
        highlight=False,
    )
    print_rules(rules, console, full=full)
    return stream.getvalue()


# ---------------------------------------------------------------------- which rules


@pytest.mark.parametrize(
    "selector", ["ARC008", "arc008", "saturating-stack", "saturating_stack", " Saturating-Stack "]
)
def test_one_rule_by_code_or_name_however_it_is_spelt(selector: str) -> None:
    assert rules_named(selector) == (ARC008,)


@pytest.mark.parametrize("selector", ["ARC", "arc", "architecture", "Architecture"])
def test_a_family_by_its_letters_or_its_name(selector: str) -> None:
    found = rules_named(selector)
    assert found == tuple(rule for rule in all_rules() if rule.family == "architecture")
    assert len(found) > 1


def test_a_prefix_and_a_word_that_names_have_in_common() -> None:
    assert {rule.code[:4] for rule in rules_named("ARC00")} == {"ARC0"}
    for rule in rules_named("dropout"):
        assert "dropout" in rule.name
    assert len(rules_named("dropout")) >= 3
    assert rules_named("all") == all_rules()


@pytest.mark.parametrize(
    ("selector", "hint"),
    [
        ("saturated-stack", "did you mean saturating-stack?"),
        ("softmaxaxis", "did you mean softmax-axis?"),
        ("quark", "`trainlint rules` lists them"),
        ("", "`trainlint rules` lists them"),
    ],
)
def test_an_unknown_name_gets_the_nearest(selector: str, hint: str) -> None:
    with pytest.raises(UsageError, match="unknown rule") as refused:
        rules_named(selector)
    assert str(refused.value).endswith(hint)


# ---------------------------------------------------------------------- the lesson


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("width", [60, 80, 120])
def test_every_rule_keeps_its_words_and_its_width(rule: Rule, width: int) -> None:
    text, lesson = shown((rule,), width), Lesson(rule)
    words = " ".join(text.split())
    for part in (rule.summary, lesson.effect, lesson.judging, *lesson.sections.values()):
        if "```" not in part:
            assert " ".join(re.sub(r"^- ", "• ", part, flags=re.MULTILINE).split()) in words
    code = {
        line.strip()
        for kind in ("bad", "good")
        for block in lesson.examples(kind)
        for line in block.splitlines()
    }
    for line in text.splitlines():
        assert line == line.rstrip()
        is_code = any(part and part in line for part in code)
        assert is_code or cell_len(line) <= width or line.startswith("trainlint explain"), line


def test_the_lesson_has_all_its_parts_in_order() -> None:
    text = shown((ARC008,), 80)
    parts = [
        "ARC008 saturating-stack  error · architecture · static · since 0.1",
        "By the chain rule",
        "Bad",
        "When to ignore it\n─────────────────\n",
        "How it is judged\n────────────────\n  trainlint looks for the best path",
        "Fix safety",
        "Options",
        "[tool.trainlint.rules.saturating-stack]",
        "error-bound = 0.001",
        "References",
        "trainlint explain architecture",
        "# trainlint: ignore[ARC008]",
    ]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


@pytest.mark.parametrize("rule", RULES)
def test_the_short_form_is_a_screen_that_teaches(rule: Rule) -> None:
    text, lesson = shown((rule,), 100, full=False), Lesson(rule)
    words = " ".join(text.split())
    assert " ".join(re.sub(r"^- ", "• ", lesson.effect, flags=re.MULTILINE).split()) in words
    assert lesson.examples("bad")[0].splitlines()[-1].strip() in text
    assert "When to ignore it" in text
    assert f"trainlint explain {rule.code} --full" in text
    assert "How it is judged" not in text
    assert "References" not in text
    assert "\n\n".join(filter(None, [lesson.effect, lesson.judging])) == lesson.introduction


def test_the_short_form_is_about_forty_lines_of_a_terminal() -> None:
    lines = sorted(
        len(shown((rule,), 100, full=False, terminal=True).splitlines()) for rule in all_rules()
    )
    assert lines[len(lines) // 2] <= 36
    assert lines[len(lines) * 9 // 10] <= 44
    assert lines[-1] <= 60  # whose two examples have nothing in common


def test_sources_that_rules_cite_by_letter_are_written_out() -> None:
    cited = [rule for rule in all_rules() if "Seed " in rule.documentation]
    assert len(cited) > 10
    for rule in all_rules():
        assert not re.search(r"\bSeed [AB]\b", Lesson(rule).documentation)
        assert "Seed " not in shown((rule,), 100)
        assert "Seed " not in as_markdown((rule,))
    assert any("训练的常见问题与解决方法" in Lesson(rule).documentation for rule in cited)


def test_the_table_keeps_its_columns() -> None:
    rules = all_rules()
    for width, terminal in ((100, True), (100, False), (30, True)):
        stream = io.StringIO()
        print_table(
            rules, Console(file=stream, width=width, force_terminal=terminal, color_system=None)
        )
        lines = stream.getvalue().splitlines()
        heads = [line for line in lines if not line.startswith(" ")]
        assert len(heads) == len(rules)
        if terminal and width == 100:
            assert all(len(line) <= width for line in lines)
            assert len(lines) > len(rules)
        columns = {line.index(rule.summary[:12]) for rule, line in zip(rules, heads, strict=True)}
        assert len(columns) == 1


def test_examples_that_differ_little_are_one_listing_and_stand_apart_where_there_is_room() -> None:
    narrow = shown((ARC008,), 80).splitlines()
    assert "-             x = torch.sigmoid(layer(x))" in narrow
    assert "+             x = torch.relu(layer(x))" in narrow
    beyond = narrow.index("Another good one")
    assert sum("class Net" in line for line in narrow[:beyond]) == 1
    assert "              x = x + torch.sigmoid(layer(x))" in narrow[beyond:]
    wide = shown(rules_named("REG001"), 200).splitlines()
    assert any(line.count("class Net") == 2 for line in wide)
    row = next(line for line in wide if line.startswith("- "))
    assert "+         self.drop = nn.Dropout(0.2)" in row


def test_code_is_marked_by_style_on_a_terminal_and_by_backticks_elsewhere() -> None:
    assert "`least`" in shown((ARC008,), 80)
    coloured = shown((ARC008,), 80, terminal=True)
    assert "`least`" not in coloured
    assert "\x1b[36mleast\x1b[0m" in coloured


def test_related_rules_are_named_both_ways() -> None:
    for rule in all_rules():
        for other in Lesson(rule).explains:
            assert rule in Lesson(other).explained_by
            assert f"explains {other.name} {other.code}" in shown((rule,), 200)
            assert f"explained by {rule.name} {rule.code}" in shown((other,), 200)


def test_a_list_names_every_rule_below_its_family() -> None:
    rules = rules_named("all")
    text = shown(rules, 80)
    for rule in rules:
        assert f"  {rule.code}  {rule.name}  {rule.severity}" in text.splitlines()
        assert rule.family in text.splitlines()
    assert all(len(line) <= 80 for line in text.splitlines())


# ---------------------------------------------------------------------- examples, markdown, json


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["bad", "good"])
def test_examples_are_files_that_run_up_to_their_models(rule: Rule, kind: str) -> None:
    text = example((rule,), kind)
    imports = text.partition("\n\n")[0].splitlines()
    assert {line.split()[-1] for line in imports} <= {"torch", "nn", "F"}
    compile(text, rule.name, "exec")


def test_the_bad_example_fires_as_it_is_printed(trainlint: Run, tmp_path: Path) -> None:
    printed = trainlint("explain", "REG002", "--example", "bad")
    (tmp_path / "bad.py").write_text(printed.stdout, encoding="utf-8")
    (tmp_path / "good.py").write_text(
        trainlint("explain", "REG002", "--example", "good").stdout, encoding="utf-8"
    )
    report = trainlint("check", "bad.py", "good.py", "--format", "json")
    assert [Path(finding["filename"]).name for finding in report.found("REG002")] == ["bad.py"]


def test_an_example_is_one_rules(trainlint: Run) -> None:
    result = trainlint("explain", "REG", "--example", "bad")
    assert result.status == 2
    assert "dropout-always-on" in result.stderr


@pytest.mark.parametrize("rule", RULES)
def test_data_and_markdown_hold_what_the_lesson_says(rule: Rule) -> None:
    data = as_data(rule)
    assert data["code"] == rule.code
    assert data["bad"]
    assert data["good"]
    assert json.loads(json.dumps(data)) == data
    page = as_markdown((rule,))
    assert page.startswith(f"# {rule.name} ({rule.code})\n")
    assert Lesson(rule).documentation in page
    for name in rule.options:
        assert f"`{name.replace('_', '-')}`, default" in page


def test_the_formats_on_the_command_line(trainlint: Run) -> None:
    one = json.loads(trainlint("explain", "ARC008", "--format", "json").stdout)
    assert one["options"] == {"least": 3, "error_bound": 0.001}
    many = json.loads(trainlint("explain", "ARC", "--format", "json").stdout)
    assert [rule["family"] for rule in many] == ["architecture"] * len(many)
    table = trainlint("explain", "ARC", "--format", "markdown").stdout.splitlines()
    assert table[1] == "|---|---|---|---|"
    assert len(table) == len(many) + 2
    assert trainlint("explain", "ARC008", env={"COLUMNS": "80"}).stdout == shown(
        (ARC008,), 80, full=False
    )
    full = trainlint("explain", "ARC008", "--full", env={"COLUMNS": "80"}).stdout
    assert full == shown((ARC008,), 80)
    for name in FORMAT_NAMES:
        assert trainlint("explain", "ARC008", "--format", name).status == 0


def test_a_lesson_does_not_wait_for_torch() -> None:
    program = (
        "import sys; from trainlint.report import explanation as e; "
        "from rich.console import Console; e.print_rules(e.rules_named('all')[:1], Console()); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0
