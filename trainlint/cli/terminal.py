"""What the terminal shows: a console as wide as it is, how far a check is, plain signs for ASCII."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final, TextIO

if TYPE_CHECKING:
    from rich.console import Console

    from trainlint.files import Progress
    from trainlint.verification.changes import Progress as Advance

PLAIN_SIGNS: Final = "trainlint"  # the name of how a stream treats what it cannot encode


def console_on(stream: TextIO) -> Console:
    """Colours on a terminal; else none, and a width that can be set."""
    from rich.console import Console

    console = Console(file=stream, highlight=False, soft_wrap=False, emoji=False)
    if console.is_terminal:
        return console
    return Console(file=stream, highlight=False, emoji=False, width=piped_width(), no_color=True)


def piped_width() -> int:
    """The width of what is no terminal, in columns."""
    columns = os.environ.get("COLUMNS", "")
    return int(columns) if columns.isdigit() and int(columns) > 0 else 100


@contextmanager
def progress_shown(verb: str = "checking", *, is_shown: bool = True) -> Iterator[Progress | None]:
    """What is being checked, on stderr, and only where that is a terminal."""
    if not (is_shown and sys.stderr.isatty()):
        yield None
        return
    from rich.console import Console

    with Console(stderr=True).status("importing torch") as status:
        yield lambda what: status.update(f"{verb} {what}")


@contextmanager
def bar_shown(what: str) -> Iterator[Advance | None]:
    """How much of a long work is done, on stderr, and only where that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=1.0)
        yield lambda share, text: bar.update(task, completed=share, description=text)


@contextmanager
def check_shown(*, is_shown: bool = True) -> Iterator[tuple[Progress | None, Advance | None]]:
    """What is being checked, and once that is done, how many of the fixes were tried."""
    with ExitStack() as first, ExitStack() as second:
        progress = first.enter_context(progress_shown(is_shown=is_shown))
        bars: list[Advance] = []

        def advance(share: float, text: str) -> None:
            if not bars:
                first.close()  # a terminal shows one of them at a time
                bar = second.enter_context(bar_shown("fixes"))
                assert bar is not None
                bars.append(bar)
            bars[0](share, text)

        yield progress, None if progress is None else advance


def _in_plain_signs(error: UnicodeError) -> tuple[str, int]:
    """`>` for `▸` and the like on a terminal that knows ASCII only; what has no likeness by its number."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    shown = (
        _PLAIN.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in signs
    )
    return "".join(shown), error.end


_PLAIN: Final = {
    "·": "-", "│": "|", "─": "-", "▸": ">", "█": "#", "▏": "|", "…": "...", "×": "x", "→": "->",
    "≤": "<=", "≥": ">=", "−": "-", "•": "*",
    "±": "+/-", "▲": "^", "○": "o", "●": "*", "┄": "-", "λ": "lambda",
    "⅛": "1/8", "¼": "1/4", "½": "1/2", "¾": "3/4",
}  # fmt: skip
codecs.register_error(PLAIN_SIGNS, _in_plain_signs)
