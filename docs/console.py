"""Put the real output below the commands of `console` blocks.

`python docs/console.py` does so for the README, the quickstart and the guides, `python docs/console.py
docs/guides/ci.md ...` for the pages that are named. The other blocks of a page are run too, as its commands
build on them; what is wrong with one is said. Output that agrees with what the page shows is left as it is.
"""

from __future__ import annotations

import re
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from blocks import (
    README,
    REPOSITORY,
    Block,
    Project,
    agrees,
    blocks,
    check_block,
    in_the_clone,
    pages,
    runs,
    with_gaps,
)


def refreshed(block: Block, project: Project) -> list[str]:
    """The lines of a `console` block with what its commands print now."""
    lines: list[str] = []
    for command, done, status in runs(block, project):
        fresh = command.output
        if not agrees(command.output, done.output):
            fresh = with_gaps(command.output, done.output)
        lines += [*f"$ {command.command}".splitlines(), *fresh.splitlines()]
        if done.status != status:
            print(f"{block.page.name}:{block.line}: exit status {done.status}, not {status}")
    return lines


def refresh(page: Path, home: Path) -> bool:
    """Rewrite a page; whether all of its other blocks hold."""
    text = page.read_text(encoding="utf-8").splitlines()
    project = in_the_clone() if page == README else Project.at(home)
    if page != README and REPOSITORY in page.read_text(encoding="utf-8"):
        project.publish()
    failures = []
    moved = 0
    for block in blocks(page):
        block = replace(block, line=block.line + moved)
        if block.kind == "console":
            start, stop = block.line, block.line + len(block.text.splitlines())
            indent = re.match(r"\s*", text[start - 1])[0]  # type: ignore[index]
            fresh = [f"{indent}{line}".rstrip() for line in refreshed(block, project)]
            text[start:stop] = fresh
            moved += len(fresh) - (stop - start)
            page.write_text("\n".join(text) + "\n", encoding="utf-8")
        elif page != README:
            failures += check_block(block, project)
    for failure in failures:
        print(failure)
    return not failures


def main() -> int:
    """Rewrite the pages that are named, or all."""
    named = [Path(name).resolve() for name in sys.argv[1:]]
    held = []
    for page in named or pages():
        with tempfile.TemporaryDirectory() as home:
            held.append(refresh(page, Path(home)))
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
