"""What the HTML report's sections have in common: figures with captions, keys of curves, tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from trainlint.report.svg import Curve, lost_from

# What a dashed line among losses stands for.
GUESS: Final = "best constant answer"


def figure(title: str, words: str, picture: str) -> str:
    """A picture with its caption, if there is one."""
    if not picture:
        return ""
    caption = f"<figcaption><h3>{escape(title)}</h3>{words}</figcaption>"
    return f"<figure>{caption}{picture}</figure>"


def keys_of(lines: Sequence[Curve], level: str = "") -> str:
    """The names of curves in their colours, of a dashed line, and what a × stands for."""
    keys = [f'<span class="key {line.kind}"><i></i>{escape(line.name)}</span>' for line in lines]
    if level:
        keys.append(f'<span class="key dashed"><i></i>{escape(level)}</span>')
    lost = lost_from(lines)
    if lost:
        keys.append(f'<span class="key lost">× {lost}</span>')
    return "".join(keys)


def table(heads: Sequence[str], rows: Iterable[str]) -> str:
    """A table of rows as markup, that scrolls where it is too wide."""
    first = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    return (
        f'<div class="wide"><table><thead><tr>{first}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def cells_of(texts: Iterable[str]) -> str:
    """The cells of a row."""
    return "".join(f"<td>{escape(text)}</td>" for text in texts)
