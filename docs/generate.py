"""Write what the code says of itself into the docs: pages of rules, the README's table, the reference.

`python docs/generate.py` writes, `python docs/generate.py --check` exits with 1 and the names of the
files that are stale. What it reads are the docstrings, so that documentation and code cannot differ.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import references
import signatures

from trainlint.registry import all_rules
from trainlint.report.explanation import Lesson
from trainlint.rule import Rule

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "rules"
REFERENCE = ROOT / "docs" / "reference"
CODES = PAGES / "codes.txt"
INDEX = """\
{count} rules, each with a page: what the fault does to a training, the formula, a bad and a good example,
how it is mended, when to ignore it, and where it comes from. `trainlint explain CODE` shows the same in the
terminal. A rule is named by its code, its name, its family, or a prefix of its code, wherever rules are
chosen."""


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


def overview(prefix: str) -> str:
    """The rules by family, a row each; `prefix` is the way to the pages."""
    rows = ["| family | rules |", "|---|---|"]
    for name, rules in families().items():
        links = ", ".join(f"{rule.code} [{rule.name}]({prefix}{rule.name}.md)" for rule in rules)
        rows.append(f"| [{name}]({prefix}{name}.md) | {links} |")
    return "\n".join(rows)


def codes(known: str) -> str:
    """The register of codes: each that there ever was, with its names, so that none is used again."""
    names = {line.split()[0]: line.split()[1:] for line in known.splitlines()}
    for rule in all_rules():
        if rule.name not in names.setdefault(rule.code, [rule.name]):
            raise SystemExit(
                f"{rule.code} was {names[rule.code][-1]} and is never used again; if {rule.name} is the "
                f"same rule, add its new name to the line in {CODES.relative_to(ROOT)}"
            )
    return "".join(f"{code} {' '.join(names[code])}\n" for code in sorted(names))


def between(path: Path, begin: str, content: str) -> str:
    """A document with what stands between two of its lines brought up to date."""
    end = f"<!-- end of {begin.split()[1].rstrip(':')} -->"
    before, found_begin, rest = path.read_text(encoding="utf-8").partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise SystemExit(f"{path.name} lacks {begin} ... {end}")
    return f"{before}{begin}\n{content}\n{end}{after}"


def wanted() -> dict[Path, str]:
    """Every generated file with its content."""
    files = {PAGES / f"{rule.name}.md": page(rule) for rule in all_rules()}
    files |= {PAGES / f"{name}.md": family_page(name, rules) for name, rules in families().items()}
    files[PAGES / "README.md"] = index()
    files[CODES] = codes(CODES.read_text(encoding="utf-8") if CODES.exists() else "")
    files[REFERENCE / "cli.md"] = references.command_line()
    files[REFERENCE / "configuration.md"] = references.configuration()
    files[REFERENCE / "python.md"] = signatures.python()
    files[REFERENCE / "rule.md"] = signatures.rule()
    files[REFERENCE / "report.schema.json"] = references.schema()
    files[REFERENCE / "json.md"] = between(
        REFERENCE / "json.md", "<!-- fields: written by docs/generate.py -->", references.fields()
    )
    files[ROOT / "README.md"] = between(
        ROOT / "README.md",
        "<!-- rules: written by docs/generate.py -->",
        overview("docs/rules/"),
    )
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
