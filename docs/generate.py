"""Write what the code says of itself into the docs: pages of rules, the README's table, the reference.

`python docs/generate.py` writes, `python docs/generate.py --check` exits with 1 and the names of the
files that are stale. What it reads are the docstrings, so that documentation and code cannot differ.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import references

from trainlint.registry import all_rules
from trainlint.report.explanation import Lesson
from trainlint.rule import Rule

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "rules"
REFERENCE = ROOT / "docs" / "reference"
INDEX = """\
{count} rules, each with a page: what the fault does to a training, the formula, a bad and a good example,
how it is mended, when to ignore it, and where it comes from. `trainlint explain CODE` shows the same in the
terminal. A rule is named by its code, its name, its family, or a prefix of its code, wherever rules are
chosen."""
BEGIN, END = "<!-- rules: written by docs/generate.py -->", "<!-- end of rules -->"


def page(rule: Rule) -> str:
    """The page of one rule."""
    source = f"../../rules/{rule.family}/{rule.function.__name__}.py"
    facts = [
        f"family `{rule.family}`",
        f"severity {rule.severity}",
        f"since {rule.since}",
        f"[source]({source})",
    ]
    lines = [f"# {rule.name} ({rule.code})", "", " · ".join(facts), "", Lesson(rule).documentation]
    if rule.options:
        lines += ["", "## Options", f"In `[tool.trainlint.rules.{rule.name}]`:", ""]
        lines += [
            f"- `{name.replace('_', '-')}`, default {value!r}"
            for name, value in rule.options.items()
        ]
    return "\n".join(lines) + "\n"


def table(prefix: str, rules: Iterable[Rule]) -> str:
    """Rules as a Markdown table; `prefix` is the way to the pages."""
    rows = ["| code | name | severity | what it says |", "|---|---|---|---|"]
    rows += [
        f"| {rule.code} | [{rule.name}]({prefix}{rule.name}.md) | {rule.severity} | {rule.summary} |"
        for rule in rules
    ]
    return "\n".join(rows)


def families() -> dict[str, list[Rule]]:
    """The rules by family, in the order of their codes."""
    found: dict[str, list[Rule]] = {}
    for rule in all_rules():
        found.setdefault(rule.family, []).append(rule)
    return found


def family_page(family: str, rules: list[Rule]) -> str:
    """The page of a family: its table."""
    return f"# {family.capitalize()}\n\n{references.NOTE}\n\n{table('', rules)}\n"


def index() -> str:
    """The page of all rules, by family."""
    lines = [
        "# Rules", "", references.NOTE, "",
        INDEX.format(count=len(all_rules())),
        "",
    ]  # fmt: skip
    for family, rules in families().items():
        lines += [f"## {family.capitalize()}", "", table("", rules), ""]
    return "\n".join(lines)


def readme(text: str) -> str:
    """The README with its overview of the rules brought up to date."""
    before, found_begin, rest = text.partition(BEGIN)
    _, found_end, after = rest.partition(END)
    if not found_begin or not found_end:
        raise SystemExit(f"README.md lacks {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{overview('docs/rules/')}\n{END}{after}"


def overview(prefix: str) -> str:
    """The rules by family, a row each; `prefix` is the way to the pages."""
    rows = ["| family | rules |", "|---|---|"]
    for name, rules in families().items():
        links = ", ".join(f"{rule.code} [{rule.name}]({prefix}{rule.name}.md)" for rule in rules)
        rows.append(f"| [{name}]({prefix}{name}.md) | {links} |")
    return "\n".join(rows)


def wanted() -> dict[Path, str]:
    """Every generated file with its content."""
    files = {PAGES / f"{rule.name}.md": page(rule) for rule in all_rules()}
    files |= {PAGES / f"{name}.md": family_page(name, rules) for name, rules in families().items()}
    files[PAGES / "README.md"] = index()
    files[REFERENCE / "cli.md"] = references.command_line()
    files[REFERENCE / "configuration.md"] = references.configuration()
    files[ROOT / "README.md"] = readme((ROOT / "README.md").read_text(encoding="utf-8"))
    return files


def main() -> int:
    """Write, or with `--check` only compare."""
    files = wanted()
    stale = [
        path
        for path, content in files.items()
        if not path.exists() or path.read_text(encoding="utf-8") != content
    ]
    orphans = [path for path in PAGES.glob("*.md") if path not in files]
    if "--check" in sys.argv[1:]:
        for path in (*stale, *orphans):
            print(f"{path.relative_to(ROOT)} is stale: run python docs/generate.py")
        return 1 if stale or orphans else 0
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_text(files[path], encoding="utf-8")
    for path in orphans:
        path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
