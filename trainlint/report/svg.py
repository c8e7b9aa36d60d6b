"""Pictures as inline SVG: bars by layer, curves with bands. Colours are classes of the page's style.

Comes in: figures. Goes out: markup that needs nothing else, with a title for those who do not see it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final

Point = tuple[float, float]

WIDTH: Final = 600
_ROW: Final = 22
# Pictures of rows are narrower, so that their words can be read on a phone.
_ROWS: Final = 440
_LONGEST: Final = 20
_FIGURES: Final = 76
_WIDE_RANGE: Final = 50.0
_HEIGHT: Final = 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 12, 34
# How far two × stand apart at least.
_APART: Final = 12.0
# What is below the axis of a training.
STEPS: Final = "optimizer steps"


@dataclass(frozen=True)
class Curve:
    """A line of (x, y). `kind` is its class in the style; `band` are (x, lowest, highest) around it."""

    name: str
    points: Sequence[Point]
    kind: str
    band: Sequence[tuple[float, float, float]] = field(default=())
    dots: bool = False


@dataclass(frozen=True)
class Mark:
    """A place among curves with a word on it; the `main` one stands out."""

    x: float
    y: float
    text: str
    main: bool = False


def bars(title: str, rows: Sequence[tuple[str, float | None, bool]], unit: str = "") -> str:
    """Horizontal bars of (label, value, marked); on a logarithmic scale where values differ much.

    None is shown as not measured, 0 on a logarithmic scale as 0; NaN and infinities by name.
    """
    values = [v for _, v, _ in rows if v is not None and v > 0 and math.isfinite(v)]
    is_log = bool(values) and max(values) / min(values) > _WIDE_RANGE
    scale = _scale(values, is_log)
    labels = _room_for([label for label, *_ in rows])
    room = _ROWS - labels - _FIGURES
    parts = []
    for number, (label, value, marked) in enumerate(rows):
        y = number * _ROW
        is_drawn = value is not None and value > 0 and math.isfinite(value)
        length = room * scale(value) if value is not None and is_drawn else 0.0
        kind = "bar marked" if marked else "bar"
        shown = "not measured" if value is None else f"{named(value)}{unit}"
        parts.append(
            f'<text class="label" x="{labels - 8}" y="{y + 15}" text-anchor="end">'
            f"<title>{escape(label)}</title>{escape(shortened(label, _LONGEST))}</text>"
            f'<rect class="{kind}" x="{labels}" y="{y + 4}" width="{max(1.0, length):.1f}" '
            'height="14" rx="2"/>'
            f'<text class="figure" x="{labels + length + 6:.1f}" y="{y + 15}">{shown}'
            f"{' ◂' if marked else ''}</text>"
        )
    note = ", logarithmic scale" if is_log else ""
    told = [(label, "not measured" if value is None else named(value)) for label, value, _ in rows]
    return _rows(_told(title + note, told), len(rows), parts)


def named(value: float) -> str:
    """Two digits, or `NaN`, `∞`."""
    if math.isfinite(value):
        return _short(f"{value:.2g}")
    return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"


def _room_for(labels: Sequence[str]) -> int:
    """Units that the labels take."""
    return 14 + 8 * max((len(shortened(label, _LONGEST)) for label in labels), default=0)


def _scale(values: Sequence[float], is_log: bool) -> Callable[[float], float]:
    if not values:
        return lambda _: 0.0
    if not is_log:
        return lambda value: value / max(values)
    low = math.floor(math.log10(min(values))) - 0.3
    high = math.log10(max(values))
    return lambda value: (math.log10(value) - low) / max(high - low, 1e-9)


def curves(
    title: str,
    x_name: str,
    lines: Sequence[Curve],
    level: tuple[str, float] | None = None,
    *,
    usual: tuple[float, float] | None = None,
    ticks: Sequence[tuple[float, str]] = (),
    marks: Sequence[Mark] = (),
) -> str:
    """Lines over a common x, with a dashed `level` (name, y) and what is `usual` (least, most) if given.

    `ticks` are words below the axis in place of numbers, `marks` words below points of it. Points that are
    not finite are a × at the top edge, with words on where they begin.
    """
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points if math.isfinite(y)]
    ys += [end for line in lines for _, low, high in line.band for end in (low, high)]
    if level is not None:
        ys.append(level[1])
    ys += usual or ()
    if not xs or not ys:
        return ""
    is_log = min(ys) > 0 and (usual is not None or max(ys) / min(ys) > _WIDE_RANGE)
    low, high = min(ys), max(ys)
    if low == high:  # a single point stands in the middle
        low, high = low - abs(low) / 2, high + abs(high) / 2
    elif not is_log and low > 0 and low < 0.4 * high:
        low = 0.0
    place = _placed(min(xs), max(xs), low, high, is_log)
    across = ticks or [(x, f"{x:.4g}") for x in _ticks(min(xs), max(xs), is_log=False)]
    parts = [_axes(place, low, high, is_log, min(xs), across, x_name)]
    if usual is not None:
        (_, bottom), (_, top) = (place(min(xs), end) for end in usual)
        parts.append(
            f'<rect class="usual" x="{_LEFT}" y="{top:.1f}" width="{WIDTH - _LEFT - _RIGHT}" '
            f'height="{bottom - top:.1f}"/>'
        )
    if level is not None:
        _, y = place(min(xs), level[1])
        parts.append(
            f'<line class="level" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
    for line in lines:
        if line.band:
            there = [place(x, top) for x, _, top in line.band]
            back = [place(x, bottom) for x, bottom, _ in reversed(line.band)]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*there, *back])
            parts.append(f'<polygon class="band {line.kind}" points="{path}"/>')
        finite = [place(x, y) for x, y in line.points if math.isfinite(y)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in finite)
        if len(finite) == 1 and not line.dots:
            ((x, y),) = finite
            parts.append(f'<circle class="dot {line.kind}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
        parts.append(
            f'<polyline class="line {line.kind}" points="{path}">'
            f"<title>{escape(line.name)}</title></polyline>"
        )
        if line.dots:
            parts += [
                f'<circle class="dot {line.kind}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
                for x, y in finite
            ]
    lost = [x for line in lines for x, y in line.points if not math.isfinite(y)]
    if lost:
        parts.append(_lost([place(x, high)[0] for x in lost], lost_from(lines, x_name)))
    if level is not None and level[0]:  # over the lines, which would run through it
        _, y = place(min(xs), level[1])
        parts.append(
            f'<text class="tick level-name" x="{WIDTH - _RIGHT}" y="{y - 5:.1f}" text-anchor="end">'
            f"{escape(level[0])}</text>"
        )
    parts += [_marked(mark, place(mark.x, mark.y)) for mark in marks]
    told = [
        (line.name, f"{named(line.points[0][1])} at first, {named(line.points[-1][1])} at the end")
        for line in lines
        if line.points
    ]
    return _svg(_told(title, told), _HEIGHT, "".join(parts))


def lost_from(lines: Sequence[Curve], x_name: str = STEPS) -> str:
    """`NaN or infinite from step 3 on`, or how many of the points are; empty where all are finite."""
    points = sorted(point for line in lines for point in line.points)
    lost = [x for x, y in points if not math.isfinite(y)]
    if not lost:
        return ""
    if x_name == STEPS and all(x < lost[0] or not math.isfinite(y) for x, y in points):
        return f"NaN or infinite from step {lost[0]:.6g} on"
    return f"NaN or infinite at {len(lost)} of {len(points)} points"


def _lost(across: Sequence[float], words: str) -> str:
    """A × at the top edge for each that has room, and words below the first."""
    spots: list[float] = []
    for x in sorted(across):
        if not spots or x - spots[-1] >= _APART:
            spots.append(x)
    path = "".join(f"M{x - 4:.1f} {_TOP - 4}l8 8m0 -8l-8 8" for x in spots)
    x, side = (spots[0], "start") if spots[0] < WIDTH / 2 else (spots[0] + 4, "end")
    return (
        f'<path class="lost" d="{path}"/>'
        f'<text class="lost" x="{x:.1f}" y="{_TOP + 22}" text-anchor="{side}">{escape(words)}</text>'
    )


def _marked(mark: Mark, spot: Point) -> str:
    """A ring around the point, its word above."""
    x, y = spot
    side = "start" if x < WIDTH / 4 else "end" if x > 3 * WIDTH / 4 else "middle"
    up = y - 12 if y > _TOP + 30 else y + 22
    return (
        f'<g class="mark{" main" if mark.main else ""}"><circle cx="{x:.1f}" cy="{y:.1f}" r="7"/>'
        f'<text x="{x:.1f}" y="{up:.1f}" text-anchor="{side}">{escape(mark.text)}</text></g>'
    )


def pairs(title: str, rows: Sequence[tuple[str, float | None, float | None, bool]]) -> str:
    """Rows of (label, first, later, marked): a ring and a disc on a common logarithmic scale, joined.

    What is not finite has its name in place of a disc.
    """
    values = [
        v for _, *both, _ in rows for v in both if v is not None and v > 0 and math.isfinite(v)
    ]
    scale = _scale(
        [*values, *(10 * value for value in values[:1] if len(set(values)) == 1)], is_log=True
    )
    labels = _room_for([label for label, *_ in rows])
    room = _ROWS - labels - _FIGURES
    parts = []
    for number, (label, first, later, marked) in enumerate(rows):
        y = number * _ROW + 11
        spots = [
            labels + room * scale(value)
            if value is not None and value > 0 and math.isfinite(value)
            else None
            for value in (first, later)
        ]
        parts.append(
            f'<text class="label" x="{labels - 8}" y="{y + 4}" text-anchor="end">'
            f"<title>{escape(label)}</title>{escape(shortened(label, _LONGEST))}</text>"
            f'<line class="grid" x1="{labels}" x2="{_ROWS - _FIGURES}" y1="{y}" y2="{y}"/>'
        )
        kind = " marked" if marked else ""
        start, end = spots
        if start is not None and end is not None:
            parts.append(
                f'<line class="way{kind}" x1="{start:.1f}" x2="{end:.1f}" y1="{y}" y2="{y}"/>'
            )
        if start is not None:
            parts.append(f'<circle class="ring{kind}" cx="{start:.1f}" cy="{y}" r="4.5"/>')
        if end is not None:
            parts.append(f'<circle class="disc{kind}" cx="{end:.1f}" cy="{y}" r="4.5"/>')
        shown = "" if later is None else f"{named(later)}{' ◂' if marked else ''}"
        parts.append(f'<text class="figure" x="{_ROWS - _FIGURES + 8}" y="{y + 4}">{shown}</text>')
    told = [(label, named(later)) for label, _, later, _ in rows if later is not None]
    title = _told(f"{title}, logarithmic scale", told)
    return _rows(title, len(rows), parts)


def intervals(title: str, rows: Sequence[tuple[str, float | None, float, bool]]) -> str:
    """Rows of (label, mean, error, marked) as discs with whiskers on a common linear scale."""
    ends = [
        end
        for _, mean, error, _ in rows
        if mean is not None
        for end in (mean - error, mean + error)
    ]
    if not ends:
        return ""
    low, room = min(ends), max(max(ends) - min(ends), 1e-12)
    labels = _room_for([label for label, *_ in rows])
    across = _ROWS - labels - _FIGURES

    def place(value: float) -> float:
        return labels + across * (value - low) / room

    parts = []
    for number, (label, mean, error, marked) in enumerate(rows):
        y = number * _ROW + 11
        kind = " marked" if marked else ""
        parts.append(
            f'<text class="label" x="{labels - 8}" y="{y + 4}" text-anchor="end">'
            f"{escape(shortened(label, _LONGEST))}</text>"
        )
        shown = "no result"
        if mean is not None:
            shown = f"{mean:.3g}{' ◂' if marked else ''}"
            parts.append(
                f'<line class="way{kind}" x1="{place(mean - error):.1f}" x2="{place(mean + error):.1f}" '
                f'y1="{y}" y2="{y}"/><circle class="disc{kind}" cx="{place(mean):.1f}" cy="{y}" r="4.5"/>'
            )
        parts.append(f'<text class="figure" x="{_ROWS - _FIGURES + 8}" y="{y + 4}">{shown}</text>')
    told = [
        (label, f"{mean:.3g} ± {error:.2g}") for label, mean, error, _ in rows if mean is not None
    ]
    return _rows(_told(title, told), len(rows), parts)


def _placed(
    left: float, right: float, low: float, high: float, is_log: bool
) -> Callable[[float, float], Point]:
    def value(y: float) -> float:
        return math.log10(y) if is_log else y

    bottom, top = value(low), value(high)

    def place(x: float, y: float) -> Point:
        across = (x - left) / max(right - left, 1e-12)
        up = (value(y) - bottom) / max(top - bottom, 1e-12)
        return (
            _LEFT + across * (WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM),
        )

    return place


def _axes(
    place: Callable[[float, float], Point],
    low: float,
    high: float,
    is_log: bool,
    left: float,
    across: Sequence[tuple[float, str]],
    x_name: str,
) -> str:
    parts = []
    for tick in _ticks(low, high, is_log=is_log):
        x, y = place(left, tick)
        shown = _short(f"{tick:.3g}")
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{x - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{shown}</text>'
        )
    for value, word in across:
        x, _ = place(value, low)
        side = "end" if x > WIDTH - 2 * _RIGHT else "middle"
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="{side}">'
            f"{escape(word)}</text>"
        )
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(
        f'<text class="tick axis" x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">'
        f"{escape(x_name)}</text>"
    )
    return "".join(parts)


def _short(number: str) -> str:
    """`1e5` for `1e+05`: on a phone there is room for no more."""
    return re.sub(r"e([+-])0*", lambda sign: f"e{sign[1].strip('+')}", number)


def _ticks(low: float, high: float, *, is_log: bool) -> list[float]:
    if is_log:
        first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
        apart = max(1, (last - first) // 5)
        return [10.0**power for power in range(first, last + 1, apart)]
    if high <= low:
        return [low]
    raw = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= raw * 0.8)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _told(title: str, figures: Sequence[tuple[str, str]]) -> str:
    """The title with the figures, for those who do not see the picture."""
    return f"{title}: {'; '.join(f'{label} {figure}' for label, figure in figures)}"


def scrolling(picture: str) -> str:
    """A picture with layers' names at its left: on a phone it scrolls, as large as can be read."""
    return f'<div class="wide">{picture}</div>'


def _rows(title: str, number: int, parts: Sequence[str]) -> str:
    picture = _svg(title, number * _ROW + 4, "".join(parts), _ROWS)
    return picture.replace('class="plot"', 'class="plot rows"', 1)


def _svg(title: str, height: float, content: str, width: int = WIDTH) -> str:
    return (
        f'<svg class="plot" viewBox="0 0 {width} {height:.0f}" role="img" '
        f'aria-label="{escape(title, quote=True)}">{content}</svg>'
    )


def shortened(label: str, room: int = 26) -> str:
    """Its end, which tells layers apart."""
    return label if len(label) <= room else "…" + label[-room + 1 :]
