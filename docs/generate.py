"""Write what the rules say of themselves into the docs: a page a rule, their index, the README's table.

`python docs/generate.py` writes, `python docs/generate.py --check` exits with 1 and the names of the
files that are stale. What it reads are the docstrings, so that documentation and code cannot differ.
"""

from __future__ import annotations

import sys
from pathlib import Path

from trainlint.registry import all_rules
from trainlint.report.explanation import Lesson
from trainlint.rule import Rule

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "rules"
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


def table(prefix: str) -> str:
    """All rules as a Markdown table; `prefix` is the way to the pages."""
    rows = ["| code | name | severity | what it says |", "|---|---|---|---|"]
    rows += [
        f"| {rule.code} | [{rule.name}]({prefix}{rule.name}.md) | {rule.severity} | {rule.summary} |"
        for rule in all_rules()
    ]
    return "\n".join(rows)


def readme(text: str) -> str:
    """The README with its table of rules brought up to date."""
    before, found_begin, rest = text.partition(BEGIN)
    _, found_end, after = rest.partition(END)
    if not found_begin or not found_end:
        raise SystemExit(f"README.md lacks {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{table('docs/rules/')}\n{END}{after}"


def wanted() -> dict[Path, str]:
    """Every generated file with its content."""
    index = (
        "# The rules\n\nWritten by `python docs/generate.py` from the docstrings in `rules/`.\n\n"
    )
    files = {PAGES / f"{rule.name}.md": page(rule) for rule in all_rules()}
    files[PAGES / "README.md"] = f"{index}{table('')}\n"
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
    PAGES.mkdir(exist_ok=True)
    for path in stale:
        path.write_text(files[path], encoding="utf-8")
    for path in orphans:
        path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
