"""What the site does with links and pages that lie outside of docs/, where GitHub just follows them.

CHANGELOG.md, CONTRIBUTING.md and the measurements in benchmarks/ become pages of the site (copies in
`docs/project/`, which git ignores). A link to any other file of the repository leads to a page that shows
it: the site is whole by itself, wherever it lies.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_for_filename
from pygments.util import ClassNotFound

HERE = Path(__file__).parent
ROOT = HERE.parent
COPIES = HERE / "project"
SCHEME = "source"  # of links to files that are shown: source:rules/architecture/dead_end.py
LINK = re.compile(r"(\]\()([^)\s#]*)((?:#[^)\s]*)?\))")
FENCE = re.compile(r"^ *(```|~~~)")
NAMED = re.compile(r"<!-- file: (.*?) -->")


def outside() -> list[Path]:
    """The documents outside of docs/ that are pages of the site."""
    return [
        ROOT / "CHANGELOG.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "benchmarks").glob("*.md")),
    ]


def copy_pages() -> None:
    """Bring the copies up to date; what has not changed keeps its time, so that it is not built again."""
    wanted = {COPIES / path.relative_to(ROOT): path for path in outside()}
    for old in COPIES.rglob("*.md"):
        if old not in wanted:
            old.unlink()
    for copy, path in wanted.items():
        text = path.read_text(encoding="utf-8")
        if not copy.exists() or copy.read_text(encoding="utf-8") != text:
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(text, encoding="utf-8")


def _original(docname: str) -> Path:
    """The file that a page was written as."""
    path = HERE / f"{docname}.md"
    return ROOT / path.relative_to(COPIES) if path.is_relative_to(COPIES) else path


def _page(path: Path) -> Path | None:
    """The page of the site, as a file, that shows a document."""
    if path == ROOT / "README.md":
        return HERE / "index.md"
    if path.suffix == ".md" and path.is_relative_to(HERE):
        return path
    return COPIES / path.relative_to(ROOT) if path in outside() else None


@cache
def rule_families() -> dict[str, list[str]]:
    """The page of each family of rules with the pages of its rules."""
    from trainlint.registry import all_rules

    families: dict[str, list[str]] = {}
    for rule in all_rules():
        families.setdefault(f"rules/{rule.family}", []).append(f"rules/{rule.name}")
    return families


def rewritten(docname: str, text: str) -> str:
    """A page's text with its links as they have to be where the site has it."""
    lines = text.splitlines(keepends=True)
    fence = ""
    for number, line in enumerate(lines):
        opening = FENCE.match(line)
        if opening and fence in ("", opening[1]):
            fence = "" if fence else opening[1]
        elif not fence:
            lines[number] = LINK.sub(lambda found: _link(docname, found), line)
    return "".join(lines)


def _link(docname: str, found: re.Match[str]) -> str:
    before, target, after = found.groups()
    if not target or ":" in target:
        return found[0]
    path = Path(os.path.normpath(_original(docname).parent / target))
    if not path.is_relative_to(ROOT) or not path.exists():
        return found[0]  # for MyST to complain about
    page = _page(path)
    if page is not None:
        return f"{before}{os.path.relpath(page, (HERE / docname).parent)}{after}"
    return f"{before}{SCHEME}:{path.relative_to(ROOT).as_posix()}{after}"


# ---------------------------------------------------------------------- in the tree of a page


def captioned(_: Any, doctree: nodes.document) -> None:
    """Name a block's file above it, as a comment in the source does."""
    for number, comment in enumerate(list(doctree.findall(nodes.raw))):
        named = NAMED.search(comment.astext())
        following = comment.next_node(descend=False, siblings=True, ascend=False)
        if named and isinstance(following, nodes.literal_block):
            wrapper = nodes.container("", literal_block=True, classes=["literal-block-wrapper"])
            wrapper["ids"] = [f"file-{number}"]
            following.replace_self(wrapper)
            wrapper += [nodes.caption(named[1], named[1]), following]


def resolved(app: Any, doctree: nodes.document, docname: str) -> None:
    """Lead links to files to the pages that show them."""
    for reference in doctree.findall(nodes.reference):
        scheme, _, name = reference.get("refuri", "").partition(":")
        if scheme == SCHEME:
            shown = app.env.__dict__.setdefault("shown_files", set())
            shown.add(name)
            reference["refuri"] = app.builder.get_relative_uri(docname, f"{SCHEME}/{name}")


def source_pages(app: Any) -> Iterator[tuple[str, dict[str, Any], str]]:
    """A page for each file that is linked to."""
    formatter = HtmlFormatter(linenos="inline", lineanchors="L", cssclass="highlight")
    for name in sorted(app.env.__dict__.get("shown_files", ())):
        path = ROOT / name
        if path.is_dir():
            text = "".join(f"{each.name}\n" for each in sorted(path.iterdir()))
        else:
            text = path.read_text(encoding="utf-8")
        try:
            lexer = get_lexer_for_filename(name)
        except ClassNotFound:
            lexer = TextLexer()
        body = f"<h1>{name}</h1>\n{highlight(text, lexer, formatter)}"
        yield f"{SCHEME}/{name}", {"title": name, "body": body, "parents": []}, "page.html"
