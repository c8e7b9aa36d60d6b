"""Pictures of many figures as inline SVG: histograms, and maps of layers. Colours are the style's.

Comes in: figures. Goes out: markup that needs nothing else, with a title for those who do not see it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from html import escape
from itertools import groupby
from typing import Final

from trainlint.records import Histogram
from trainlint.report.svg import WIDTH, scrolling, shortened

_SMALL_WIDTH: Final = 150
_SMALL_HEIGHT: Final = 64
_ZERO_ROOM: Final = 16
# Bins whose middle is beyond are where the slope of these is gone: σ(±4), tanh(±2).
FLAT: Final = {"sigmoid": (0.018, 0.982), "tanh": (-0.964, 0.964)}
_LABELS: Final = 190
_LABEL_ROW: Final = 13


def histogram(title: str, shown: Histogram, operation: str, *, is_marked: bool) -> str:
    """Bars of one histogram; where it has exact zeros, those stand apart at the left, as a share of all.

    `is_marked` colours what is at fault: the zeros, and the bins where a sigmoid or tanh is flat.
    """
    counts = shown.counts
    has_zeros = shown.zero > 0
    left = _ZERO_ROOM if has_zeros else 0
    floor = _SMALL_HEIGHT - 14
    most = max(counts, default=0)
    wide = (_SMALL_WIDTH - left) / max(1, len(counts))
    apart = (shown.high - shown.low) / max(1, len(counts))
    flat = FLAT.get(operation)
    paths: dict[str, list[str]] = defaultdict(list)
    for number, count in enumerate(counts):
        if not count:
            continue
        outer = shown.low + apart * (number if number < len(counts) / 2 else number + 1)
        is_flat = flat is not None and not flat[0] <= outer <= flat[1]
        height = max(1.0, (floor - 2) * count / most)
        path = f"M{left + number * wide:.1f} {floor}v-{height:.1f}h{wide:.1f}v{height:.1f}z"
        paths["bin flat" if is_flat else "bin"].append(path)
    parts = [f'<path class="{kind}" d="{"".join(each)}"/>' for kind, each in paths.items()]
    if has_zeros:
        height = (floor - 2) * shown.zero
        kind = "zeros marked" if is_marked and flat is None else "zeros"
        parts.append(
            f'<rect class="{kind}" x="0" y="{floor - height:.1f}" width="10" height="{height:.1f}"/>'
        )
    parts.append(f'<path class="grid" d="M0 {floor}.5H{_SMALL_WIDTH}"/>')
    ends = [(left, "start", f"{shown.low:.2g}"), (_SMALL_WIDTH, "end", f"{shown.high:.2g}")]
    if has_zeros:
        ends[0] = (0, "start", "0")
    if not counts and not has_zeros:
        parts.append(
            f'<text class="lost" x="{_SMALL_WIDTH / 2}" y="{floor - 8}" text-anchor="middle">NaN</text>'
        )
    if counts:
        parts += [
            f'<text class="tick" x="{x}" y="{_SMALL_HEIGHT - 2}" text-anchor="{anchor}">{text}</text>'
            for x, anchor, text in ends
        ]
    return (
        f'<svg class="small" viewBox="0 0 {_SMALL_WIDTH} {_SMALL_HEIGHT}" role="img" '
        f'aria-label="{escape(title, quote=True)}">{"".join(parts)}</svg>'
    )


def grid(
    title: str,
    rows: Sequence[tuple[str, Sequence[int | None], str]],
    ends: tuple[str, str],
    kind: str,
    notes: Sequence[str] = (),
) -> str:
    """A map: a row (label, level of each cell, words) a layer; cells of one level are one path.

    `ends` are what stands below its first and last column, `kind` the class that has the colours,
    `notes` what stands behind each row. None is a cell without a figure.
    """
    top = 6
    height = 16 if len(rows) <= 40 else 8 if len(rows) <= 80 else 5
    labelled = max(1, -(-_LABEL_ROW // height))
    right = WIDTH - (96 if any(notes) else 6)
    columns = max((len(cells) for _, cells, _ in rows), default=1)
    wide = (right - _LABELS) / max(1, columns)
    paths: dict[int, list[str]] = defaultdict(list)
    words = []
    for number, (label, cells, told) in enumerate(rows):
        y = top + number * height
        place = 0
        for level, run in groupby(cells):
            length = len(list(run))
            if level is not None:
                x = _LABELS + place * wide
                paths[level].append(
                    f"M{x:.1f} {y}h{wide * length:.1f}v{height}h-{wide * length:.1f}z"
                )
            place += length
        if number % labelled == 0:
            words.append(
                f'<text class="label" x="{_LABELS - 8}" y="{y + min(height, 12) / 2 + 4:.0f}" '
                f'text-anchor="end">{escape(shortened(label, 28))}</text>'
            )
        if notes and notes[number]:
            words.append(
                f'<text class="figure" x="{right + 6}" y="{y + height / 2 + 4:.0f}">{notes[number]}</text>'
            )
        words.append(
            f'<rect class="row" x="0" y="{y}" width="{WIDTH}" height="{height}">'
            f"<title>{escape(f'{label}: {told}')}</title></rect>"
        )
    bottom = top + len(rows) * height
    words += [
        f'<text class="tick" x="{_LABELS}" y="{bottom + 14}">{escape(ends[0])}</text>',
        f'<text class="tick" x="{right}" y="{bottom + 14}" text-anchor="end">{escape(ends[1])}</text>',
    ]
    drawn = "".join(
        f'<path class="v{level}" d="{"".join(path)}"/>' for level, path in sorted(paths.items())
    )
    return scrolling(
        f'<svg class="plot map {kind}" viewBox="0 0 {WIDTH} {bottom + 20}" role="img" '
        f'aria-label="{escape(title, quote=True)}">{drawn}{"".join(words)}</svg>'
    )


def legend(kind: str, words: Sequence[str]) -> str:
    """The levels of a map, and what they stand for."""
    keys = "".join(
        f'<span class="level"><svg class="{kind}" viewBox="0 0 12 12" aria-hidden="true">'
        f'<rect class="v{level}" width="12" height="12"/></svg>{escape(text)}</span>'
        for level, text in enumerate(words)
    )
    return f'<span class="levels">{keys}</span>'
