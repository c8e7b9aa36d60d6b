"""The quickstart and the guides, each followed from top to bottom in a new directory, and their judge."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from blocks import Project, agrees, blocks, check_page, pages, with_gaps
from console import refresh

ROOT = Path(__file__).parent.parent


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", pages()[1:], ids=lambda page: page.stem)
def test_following_the_page_gives_what_it_shows(page: Path, tmp_path: Path) -> None:
    failures = check_page(page, tmp_path)
    assert not failures, "\n\n".join(map(str, failures))


# ---------------------------------------------------------------------- the judge is judged


def messages(tmp_path: Path, text: str) -> list[str]:
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    return [str(failure) for failure in check_page(page, tmp_path / "home")]


def fenced(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```\n"


def test_a_page_builds_on_what_stands_above(tmp_path: Path) -> None:
    text = (
        "<!-- file: src/a.txt -->\n" + fenced("text", "one")
        + "Then\n\n" + fenced("bash", "cp src/a.txt b.txt\necho two >> b.txt")
        + fenced("console", "$ cat b.txt\none\ntwo\n$ ls \\\n    src\na.txt")
        + fenced("python", "print(open('b.txt').read())")
        + "<!-- exit: 3 -->\n" + fenced("console", "$ pwd\n~/project\n$ sh -c 'exit 3'")
    )  # fmt: skip
    assert messages(tmp_path, text) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\n" + fenced("console", "$ echo two\nonce"), "page.md:2: [$] echo two\nstale.*-once\n[+]two"),
        (fenced("console", "$ sh -c 'exit 3'"), "exit status 3, not 0"),
        (fenced("console", "$ sh -c 'echo now exit 1'\nnow exit 1"), "exit status 0, not 1"),
        ("<!-- exit: 0 1 -->\n" + fenced("console", "$ true\n$ true"), "exit status 0, not 1"),
        (fenced("console", "one\n$ true"), "does not begin with a command"),
        (fenced("bash", "false\ntrue"), "exit status 1"),
        (fenced("python", "1 / 0"), "ZeroDivisionError"),
        (fenced("toml", "[tool.trainlint]\nselct = []"), "no key 'selct'"),
        (fenced("toml", "[tool.pytest.ini_options]"), r"not only \[tool.trainlint\]"),
        ("<!-- file: a.yaml -->\n" + fenced("yaml", "a: b: c"), "mapping values"),
        ("<!-- file: pyproject.toml -->\n" + fenced("toml", "[tool.trainlint]\na = 1"), "no key"),
        (fenced("yaml", "a: 1"), "a block of yaml is not tested"),
        (fenced("", "a"), "a block of no language is not tested"),
        ("Text\n\n    code\n", "a block of no language is not tested"),
        ("<!-- tested: tests/no.py -->\n" + fenced("yaml", "a"), "tests/no.py does not exist"),
        ("<!-- tested: tests/test_cli.py -->\n" + fenced("yaml", "a"), "does not read page.md"),
        (fenced("sh", "pip install trainlint[warp]"), "neither a line of the README"),
    ],
)  # fmt: skip
def test_what_does_not_hold_is_said(text: str, said: str, tmp_path: Path) -> None:
    (message,) = messages(tmp_path, text)
    assert re.search(said, message, re.DOTALL)


def test_a_marker_without_a_block_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"page.md:1: a marker stands right above"):
        messages(tmp_path, "<!-- file: a.py -->\n\n" + fenced("python", "1"))


def test_installing_is_shown_as_it_works(tmp_path: Path) -> None:
    assert messages(tmp_path, fenced("sh", "pip install pytest 'trainlint[folds]'")) == []


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a (1.0 s)\n", "a (12.3 s)\n", True),
        ("=== 1 failed in 11.2s ===\n", "=== 1 failed in 9.52s ====\n", True),
        ("[main 0123abc] x\n", "[main 9876fed] x\n", True),
        ("a\n[…]\nd\n", "a\nb\nc\nd\n", True),
        ("a\n[…]\nd\n", "a\nd\n", True),
        ("a\n[…]\nd\n", "a\nb\nc\n", False),
        ("a\n", "a\nb\n", False),
        ("1.5\n", "1.6\n", False),
    ],
)
def test_what_counts_in_an_output(shown: str, printed: str, same: bool) -> None:
    assert agrees(shown, printed) is same


def test_a_gap_stays_where_its_neighbours_are() -> None:
    assert with_gaps("a\n[…]\nd\ne\n", "a\nb\nc\nd\nf\n") == "a\n[…]\nd\nf\n"
    assert with_gaps("a\n[…]\n", "a\nb\nc\n") == "a\n[…]\n"
    assert with_gaps("a\n[…]\nd\n", "x\ny\n") == "x\ny\n"


def test_a_page_is_rewritten_with_what_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    shown = "- Item:\n\n  ```console\n  $ echo a; echo b\n  c\n  $ echo 1\n  1\n  ```\n\nEnd\n"
    page.write_text(shown + fenced("console", "$ echo d\nc") + fenced("yaml", "a"))
    assert not refresh(page, tmp_path / "home")
    assert page.read_text() == (
        shown.replace("  c\n", "  a\n  b\n")
        + fenced("console", "$ echo d\nd")
        + fenced("yaml", "a")
    )
    assert capsys.readouterr().out == "page.md:16: a block of yaml is not tested\n"


def test_the_hooks_are_found_at_the_repositorys_address(tmp_path: Path) -> None:
    project = Project.at(tmp_path)
    project.publish()
    done = project.run("git clone -q https://github.com/you/trainlint && cat trainlint/.pre*.yaml")
    assert done.output == (ROOT / ".pre-commit-hooks.yaml").read_text()
    assert done.status == 0


def test_every_kind_of_block_is_read(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- file: a.py -->\n<!-- exit: 1 -->\n" + fenced("python", "1") + "~~~yaml\na: 1\n~~~\n"
    )
    first, second = blocks(page)
    assert (first.kind, first.file, first.exits, first.line) == ("file", "a.py", (1,), 3)
    assert (second.kind, second.line, second.text) == ("yaml", 6, "a: 1\n")
