"""The picture of what was tried against overfitting: a bar for each change, with its error.

Comes in: the rows of a finding's evidence, a width in columns, the signs that the terminal can show. Goes
out: a `Picture`. `python -m trainlint.report.remedies` shows one on made-up figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from trainlint.report.plots import BLOCKS, Picture, Signs, signs_for

_MARGIN: Final = " " * 4
_WIDEST: Final = 41
_NARROWEST: Final = 11


def picture(rows: Sequence[Mapping[str, Any]], width: int, signs: Signs = BLOCKS) -> Picture:
    """What each change did to the validation loss: to the right of zero it is lower, which is better.

    Beside each bar stands a line of two standard errors to each side of its end. Rows without a finite gain
    are left out.
    """
    shown = [row for row in rows if row.get("gain") is not None]
    figures = [_figure(row) for row in shown]
    labels = [str(row["title"]) for row in shown]
    figure_room = max(map(cell_len, figures), default=0)
    label_room = min(max(map(cell_len, labels), default=0), width * 2 // 5)
    room = min(_WIDEST, width - cell_len(_MARGIN) - label_room - figure_room - 2)
    ends = [row["gain"] + side * 2 * (row["error"] or 0.0) for row in shown for side in (-1, 1)]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    lines = []
    for row, label, figure in zip(shown, labels, figures, strict=True):
        line = Text(_MARGIN + _fitted(label, label_room, signs) + " ")
        if room >= _NARROWEST and high > low:
            style = "green" if row["helps"] else "cyan"
            line.append(_bar(row, low, high, room, signs), style=style)
            line.append(" ")
        line.append(figure, style="bold green" if row["helps"] else "")
        line.rstrip()
        lines.append(line[:width])
    return Picture(
        "what the validation loss gained by each change, in units of a constant answer's loss, with two "
        "standard errors; more is better",
        lines,
    )


def _figure(row: Mapping[str, Any]) -> str:
    error = "" if row["error"] is None else f" ± {row['error']:.3f}"
    return f"{row['gain']:+.3f}{error}{' helps' if row['helps'] else ''}".replace("-", "−")


def _fitted(label: str, room: int, signs: Signs) -> str:
    """Its beginning says most."""
    if cell_len(label) > room:
        label = set_cell_size(label, room - cell_len(signs.ellipsis)).rstrip() + signs.ellipsis
    return set_cell_size(label, room)


def _bar(row: Mapping[str, Any], low: float, high: float, room: int, signs: Signs) -> str:
    def place(value: float) -> int:
        return round((value - low) / (high - low) * (room - 1))

    gain, error = row["gain"], row["error"] or 0.0
    zero, end = place(0.0), place(gain)
    cells = [" "] * room
    for cell in range(place(gain - 2 * error), place(gain + 2 * error) + 1):
        cells[cell] = signs.axis
    for cell in range(min(zero, end), max(zero, end) + 1):
        cells[cell] = signs.parts[-1]
    cells[zero] = "│" if signs.dots else "|"
    return "".join(cells)


def _demo() -> None:
    console = Console(highlight=False)
    rows = [
        {"title": "random shifts by up to 1 pixel", "gain": 0.103, "error": 0.021, "helps": True},
        {"title": "weight decay 1 in AdamW", "gain": 0.048, "error": 0.017, "helps": True},
        {"title": "dropout 0.3 before 3, 5", "gain": -0.011, "error": 0.011, "helps": False},
    ]
    drawn = picture(rows, console.width, signs_for(console.encoding))
    console.print(drawn.title)
    for row in drawn.rows:
        console.print(row, no_wrap=True)


if __name__ == "__main__":
    _demo()
