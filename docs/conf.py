"""How Sphinx builds the site: `make site`. The pages are plain Markdown, which GitHub shows as well.

What plain Markdown cannot say is added here: the tables of contents, and where links out of docs/ lead (see
`linking.py`). Nothing is fetched, neither at build time nor by a page that is looked at.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import linking  # noqa: E402

import trainlint  # noqa: E402

project = "trainlint"
author = "the trainlint authors"
copyright = f"2026, {author}"  # noqa: A001 (Sphinx reads this name)
version = release = trainlint.__version__

extensions = ["myst_parser", "sphinx_copybutton"]
exclude_patterns = ["_build"]
smartquotes = False  # `--fix` is no dash
source_suffix = {".md": "markdown"}
myst_heading_anchors = 4
myst_links_external_new_tab = False
myst_url_schemes = ["http", "https", "mailto", linking.SCHEME]
suppress_warnings = ["myst.header"]  # a docstring's headings may skip a level
nitpicky = True
keep_warnings = False

html_theme = "furo"
html_title = "trainlint"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"top_of_page_buttons": []}
pygments_style = "friendly"
pygments_dark_style = "native"
copybutton_prompt_text = "$ "
copybutton_copy_empty_lines = False
copybutton_line_continuation_character = "\\"

# The sidebar: what is not written yet is left out.
CONTENTS = {
    "": ["quickstart"],
    "Guides": [
        *(
            f"guides/{name}"
            for name in (
                "models", "fixes", "report", "data", "pre-commit", "pytest", "ci", "trainers", "scripts",
                "editors", "rule-packs", "thresholds",
            )
        ),
        "guides/*",
    ],
    "Reference": ["rules/README", "reference/cli", "reference/*"],
    "Project": [
        "stability", "project/CHANGELOG", "project/CONTRIBUTING", "architecture", "loading",
    ],
    "Measurements": ["project/benchmarks/*"],
}  # fmt: skip


def _tree(entries: list[str], caption: str = "", depth: int = 1) -> str:
    options = [":hidden:", f":maxdepth: {depth}", *([f":caption: {caption}"] if caption else [])]
    names = [name for name in entries if "*" not in name and (HERE / f"{name}.md").exists()]
    for pattern in (name for name in entries if "*" in name):
        found = sorted(
            path.relative_to(HERE).with_suffix("") for path in HERE.glob(f"{pattern}.md")
        )
        names += [path.as_posix() for path in found if path.as_posix() not in names]
    return "\n".join(["", "```{toctree}", *options, "", *(f"/{name}" for name in names), "```", ""])


def _with_contents(_: Any, docname: str, source: list[str]) -> None:
    """Add to a page its table of contents, and lead its links into the site."""
    source[0] = linking.rewritten(docname, source[0])
    if docname == "index":
        source[0] += "".join(_tree(entries, caption) for caption, entries in CONTENTS.items())
    elif docname == "rules/README":
        source[0] += _tree(sorted(linking.rule_families()))
    elif docname in linking.rule_families():
        source[0] += _tree(linking.rule_families()[docname])


def setup(app: Any) -> None:
    """Called by Sphinx."""
    linking.copy_pages()
    app.connect("source-read", _with_contents)
    app.connect("doctree-read", linking.captioned)
    app.connect("doctree-resolved", linking.resolved)
    app.connect("html-collect-pages", linking.source_pages)
