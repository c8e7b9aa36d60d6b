"""The documents agree with the code: every command and every block of the README is run as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from blocks import REPOSITORY, ROOT, Block, blocks, check_block, commands, in_the_clone

from trainlint import __version__
from trainlint.config import Config, load_config
from trainlint.registry import all_rules, check_options

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = blocks(ROOT / "README.md")
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(
        path
        for path in sorted((ROOT / "docs").rglob("*.md"))
        if not {"_build", "project"} & set(path.relative_to(ROOT).parts)  # what the site is made of
    ),
]


def of(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


def setup_lines() -> tuple[str, str]:
    main, tests = (block.text.strip() for block in of("sh"))
    return main, tests


# ---------------------------------------------------------------------- the README's commands


def test_the_setup_lines_stand_at_the_top_and_install_with_the_constraints() -> None:
    assert README.index("```sh") < README.index("## ")
    for line in setup_lines():
        assert line.startswith(
            "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e "
        )
        assert line.count("\n") == 0


def test_ci_runs_the_readmes_test_line() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert setup_lines()[1] in lines


def test_what_the_first_setup_line_runs_is_what_the_readme_shows() -> None:
    last = setup_lines()[0].rpartition(" && ")[2].removeprefix(".venv/bin/")
    assert last == commands(of("console")[0])[0].command


@pytest.mark.parametrize(
    "block",
    [block for block in BLOCKS if block.kind != "sh"],
    ids=lambda block: f"{block.kind}: {block.text.splitlines()[0]}",
)
def test_the_blocks_of_the_readme_hold(block: Block) -> None:
    failures = list(check_block(block, in_the_clone()))
    assert not failures, "\n\n".join(map(str, failures))


def test_the_hook_of_the_readme_exists() -> None:
    """What it does when it runs is in README.md's words and in test_pre_commit.py."""
    (block,) = of("yaml")
    (repository,) = yaml.safe_load(block.text)["repos"]
    known = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    assert (repository["repo"], repository["rev"]) == (REPOSITORY, f"v{__version__}")
    assert {hook["id"] for hook in repository["hooks"]} <= {hook["id"] for hook in known}


def test_the_configuration_of_the_readme_is_accepted_and_complete(tmp_path: Path) -> None:
    import msgspec

    (block,) = of("toml")
    path = tmp_path / "pyproject.toml"
    path.write_text(block.text, encoding="utf-8")
    check_options(load_config(path).rules)
    for field in msgspec.structs.fields(Config):
        assert field.encode_name in block.text


def test_the_hooks_of_the_readme_are_those_of_the_repository() -> None:
    (block,) = of("yaml")
    hooks = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    (source,) = yaml.safe_load(block.text)["repos"]
    assert {hook["id"] for hook in source["hooks"]} <= {hook["id"] for hook in hooks}
    assert source["repo"] == REPOSITORY
    assert source["rev"] == f"v{__version__}"


def test_the_readme_names_every_option_of_check() -> None:
    from trainlint.cli import check

    internal = {
        "--static",
        "--show-info",
        "--debug",
        "--config",
        "--timeout",
        "--jobs",
        "--memory-limit",
    }
    options = {
        name for parameter in check.params for name in parameter.opts if name.startswith("--")
    }
    unnamed = {name for name in options - internal if name not in README}
    assert unnamed == set()


# ---------------------------------------------------------------------- rules in the documents


def test_the_generated_pages_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_code_is_not_used_again() -> None:
    """The register takes new rules, and refuses another rule under a code that was taken."""
    import generate

    first = all_rules()[0]
    assert generate.codes("").startswith(f"{first.code} {first.name}\n")
    assert generate.codes("AAA001 gone\n").startswith("AAA001 gone\n")
    renamed = f"{first.code} once-named {first.name}\n"
    assert renamed in generate.codes(renamed)
    with pytest.raises(SystemExit, match=f"{first.code} was another-rule"):
        generate.codes(f"{first.code} another-rule\n")


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md"])
def test_each_rule_is_mentioned(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert [
        rule.code for rule in all_rules() if rule.code not in text or rule.name not in text
    ] == []


# ---------------------------------------------------------------------- files in the documents


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        if "://" not in link:
            assert (path.parent / link).exists(), link


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_mentioned_files_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    folders = "trainlint|rules|tests|docs|fixtures|benchmarks"
    for name in re.findall(rf"`((?:{folders})/[\w/.-]*\.\w+)`", text):
        assert (ROOT / name).exists(), name


def test_the_architecture_mentions_every_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    package = ROOT / "trainlint"
    modules = [
        path.relative_to(package).as_posix()
        for path in sorted(package.rglob("*.py"))
        if path.name not in ("__init__.py", "__main__.py")
    ]
    assert [name for name in modules if f"`{name}`" not in text] == []
    named = re.findall(r"^\| `([\w/]+\.py)`", text, re.MULTILINE)
    others = ("tests/", "docs/")
    assert [name for name in named if name not in modules and not name.startswith(others)] == []


def test_contributing_names_what_a_skeleton_holds() -> None:
    from trainlint.scaffold import FAMILY_CODES

    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert [family for family in FAMILY_CODES if family not in text] == []


def test_nothing_of_a_machine_stands_in_the_documents() -> None:
    for path in DOCUMENTS:
        assert not re.search(r"/(home|work|tmp|root)/", path.read_text(encoding="utf-8")), path.name


# ---------------------------------------------------------------------- CONTRIBUTING's ten minutes


def test_the_rule_of_contributing_works_in_a_pack_of_its_own(tmp_path: Path) -> None:
    """The skeleton with the snippet as its body, found through an entry point, fires and stays silent."""
    import os
    import textwrap

    from trainlint.scaffold import write_rule

    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"^   ```python\n(.*?)^   ```$", text, re.MULTILINE | re.DOTALL)
    (command,) = re.findall(r"trainlint new-rule (\w+) (\S+)$", text, re.MULTILINE)
    pack = tmp_path / "my_rules"
    pack.mkdir()
    (pack / "__init__.py").write_text('"""A pack."""\n', encoding="utf-8")
    path = write_rule(pack, *command)
    skeleton = path.read_text(encoding="utf-8")
    body = textwrap.indent(textwrap.dedent(snippet), "    ")
    path.write_text(skeleton[: skeleton.index("    for node in")] + body, encoding="utf-8")
    metadata = tmp_path / "my_rules-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-rules\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[trainlint.rules]\nmine = my_rules\n")
    for name, layers in (
        ("bad", "nn.Dropout(0.7), nn.Linear(4, 2)"),
        ("good", "nn.Dropout(0.3), nn.Linear(4, 2)"),
    ):
        (tmp_path / f"{name}.py").write_text(
            f"from torch import nn\nmodel = nn.Sequential({layers})\n", encoding="utf-8"
        )
    done = subprocess.run(
        [
            Path(sys.executable).with_name("trainlint"),
            "check",
            "bad.py",
            "good.py",
            "--format",
            "concise",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    assert line.startswith("bad.py:2:")
    assert "heavy-dropout: " in line
    assert "keeps 30%" in line
