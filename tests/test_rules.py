"""Every rule keeps the contract of a rule: its examples fire and stay silent, its file and words agree."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from trainlint import __version__
from trainlint.config import load_config
from trainlint.examples import examples_of, failures
from trainlint.registry import all_rules, check_options
from trainlint.rule import Rule
from trainlint.scaffold import FAMILY_CODES, write_rule

ROOT = Path(__file__).parent.parent
RULE_FILES = sorted(path for path in (ROOT / "rules").rglob("*.py") if path.name != "__init__.py")
# In this order; those without a star are required.
HEADINGS = ("Bad", "Good", "Figures*", "When to ignore it", "Fix safety", "References*")
RULES = [pytest.param(rule, id=rule.code) for rule in all_rules()]


def sections(rule: Rule) -> dict[str, str]:
    parts = re.split(r"^## (.+)$", rule.documentation, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


# ---------------------------------------------------------------------- the examples


@pytest.fixture(scope="session")
def wrong() -> list[str]:
    """What does not hold of any example: they are checked all at once, so that torch is imported once."""
    return list(failures(all_rules()))


@pytest.mark.parametrize("rule", RULES)
def test_bad_examples_fire_and_good_ones_are_silent_for_every_rule(
    rule: Rule, wrong: list[str]
) -> None:
    assert [line for line in wrong if line.startswith(rule.code)] == []


def test_examples_are_formatted(tmp_path: Path) -> None:
    for example in examples_of(all_rules()):
        (tmp_path / example.filename).write_text(example.text, encoding="utf-8")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "ruff",
            "format",
            "--diff",
            "--isolated",
            "--line-length=96",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# ---------------------------------------------------------------------- words


@pytest.mark.parametrize("rule", RULES)
def test_headings_are_known_and_in_order_and_come_once(rule: Rule) -> None:
    known = [heading.rstrip("*") for heading in HEADINGS]
    required = [heading for heading in HEADINGS if not heading.endswith("*")]
    found = re.findall(r"^## (.+)$", rule.documentation, re.MULTILINE)
    assert found == [heading for heading in known if heading in found]
    assert set(required) <= set(found)


@pytest.mark.parametrize("rule", RULES)
def test_the_first_line_is_a_short_sentence_and_an_explanation_follows(rule: Rule) -> None:
    first, blank, *_ = rule.documentation.splitlines()
    assert len(first) <= 100
    assert first.endswith(".")
    assert blank == ""
    explanation = rule.documentation.partition("\n## ")[0].removeprefix(first)
    assert len(explanation.split()) >= 15


@pytest.mark.parametrize("rule", RULES)
def test_every_option_is_explained_and_can_be_set(rule: Rule, tmp_path: Path) -> None:
    text = rule.documentation.replace("_", "-")
    for name, default in rule.options.items():
        assert f"`{name.replace('_', '-')}`" in text, name
        path = tmp_path / "pyproject.toml"
        path.write_text(
            f"[tool.trainlint.rules.{rule.name}]\n{name.replace('_', '-')} = {default!r}\n".replace(
                "True", "true"
            ).replace("False", "false"),
            encoding="utf-8",
        )
        check_options(load_config(path).rules)


@pytest.mark.parametrize("rule", RULES)
def test_figures_are_explained_by_the_names_that_they_have(rule: Rule) -> None:
    text = Path(rule.filename).read_text(encoding="utf-8")
    shown = {name.replace("_", " ") for name in re.findall(r'"(\w+)":', text)}
    section = " ".join(sections(rule).get("Figures", "").split())
    explained = set(re.findall(r"`([a-z ]+)`", section))
    assert explained <= shown
    # What is in powers of ten looks like any other number.
    assert {name for name in shown if "decades" in name} <= explained


@pytest.mark.parametrize("rule", RULES)
def test_what_a_rule_explains_is_named_like_a_rule(rule: Rule) -> None:
    for name in rule.explains:
        assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name)
        assert name != rule.name


# ---------------------------------------------------------------------- names and files


def test_what_makes_gradients_vanish_makes_the_learning_rate_look_too_low() -> None:
    effects = {"vanishing-gradient", "learning-rate-too-low"}
    named = [effects & set(rule.explains) for rule in all_rules()]
    assert {"vanishing-gradient"} not in named
    assert effects in named


def test_every_rule_file_defines_one_rule() -> None:
    assert sorted(Path(rule.filename).resolve() for rule in all_rules()) == [
        path.resolve() for path in RULE_FILES
    ]


def test_codes_and_names_are_unique() -> None:
    for values in ([rule.code for rule in all_rules()], [rule.name for rule in all_rules()]):
        assert len(set(values)) == len(values)


@pytest.mark.parametrize("rule", RULES)
def test_folder_file_function_name_and_code_agree(rule: Rule) -> None:
    path = Path(rule.filename)
    assert re.fullmatch(r"[A-Z]{3}\d{3}", rule.code)
    assert rule.code[:3] == FAMILY_CODES[rule.family]
    assert path.parent.name == rule.family
    assert path.stem == rule.function.__name__ == rule.name.replace("-", "_")
    module = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert module == f"{rule.code} {rule.name}."


@pytest.mark.parametrize("rule", RULES)
def test_since_is_a_version_that_there_is(rule: Rule) -> None:
    current = tuple(int(part) for part in __version__.split(".")[:2])
    assert tuple(int(part) for part in rule.since.split(".")) <= current


def test_every_family_has_a_package_that_says_its_letters() -> None:
    for package in (ROOT / "rules").glob("*/__init__.py"):
        documentation = ast.get_docstring(ast.parse(package.read_text(encoding="utf-8"))) or ""
        assert documentation.startswith(f"{FAMILY_CODES[package.parent.name]}: ")


# ---------------------------------------------------------------------- what they import


@pytest.mark.parametrize("path", RULE_FILES, ids=lambda path: path.stem)
def test_rule_files_import_only_trainlint_rule_and_the_standard_library(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "no relative imports: a rule is one file"
            names = [node.module or ""]
        else:
            continue
        for name in names:
            assert name == "trainlint.rule" or name.partition(".")[0] in sys.stdlib_module_names


def test_listing_the_rules_imports_neither_torch_nor_what_the_analysis_needs() -> None:
    program = (
        "import sys; from trainlint.registry import all_rules; all_rules(); "
        "print([name for name in ('torch', 'numpy', 'networkx', 'rich') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_engine_names_no_rule() -> None:
    names = re.compile("|".join(f"{rule.code}|{rule.name}" for rule in all_rules()))
    package = ROOT / "trainlint"
    for path in package.rglob("*.py"):
        code = without_docstrings(path.read_text(encoding="utf-8"))
        assert "trainlint_rules" not in code, path.name
        # The text report's own demonstration needs some rule's name.
        assert path.name == "text.py" or not names.search(code), path.name


def without_docstrings(text: str) -> str:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(
            node
        ):
            node.body[0] = ast.Pass()
    return ast.unparse(tree)


# ---------------------------------------------------------------------- a new rule


@pytest.mark.parametrize("family", list(FAMILY_CODES))
def test_a_new_rule_is_clean_and_waits_for_its_example(family: str, tmp_path: Path) -> None:
    path = write_rule(tmp_path / "rules", family, "wrong-in-some-way")
    assert path == tmp_path / "rules" / family / "wrong_in_some_way.py"
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [
                sys.executable, "-m", "ruff", *command, "--config", str(ROOT / "pyproject.toml"),
                "--no-cache", str(tmp_path),
            ],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    namespace: dict[str, object] = {"__name__": "skeleton"}
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec", dont_inherit=True), namespace)
    rule = namespace["wrong_in_some_way"].trainlint_rule  # type: ignore[attr-defined]
    assert rule.code[:3] == FAMILY_CODES[family]
    assert rule.code not in {other.code for other in all_rules()}
    assert [*sections(rule)] == [h.rstrip("*") for h in HEADINGS if h != "Figures*"]
