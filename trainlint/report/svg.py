"""Pictures as inline SVG: bars by layer, curves with bands. Colours are classes of the page's style.

Comes in: figures. Goes out: markup that needs nothing else, with a title for those who do not see it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final

Point = tuple[float, float]

_WIDTH: Final = 600
_ROW: Final = 22
_LABELS: Final = 170
_FIGURES: Final = 76
_WIDE_RANGE: Final = 50.0
_HEIGHT: Final = 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 12, 34


@dataclass(frozen=True)
class Curve:
    """A line of (x, y). `kind` is its class in the style; `band` are (x, lowest, highest) around it."""

    name: str
    points: Sequence[Point]
    kind: str
    band: Sequence[tuple[float, float, float]] = field(default=())


def bars(title: str, rows: Sequence[tuple[str, float | None, bool]], unit: str = "") -> str:
    """Horizontal bars of (label, value, marked); on a logarithmic scale where values differ much.

    None is shown as not measured, 0 on a logarithmic scale as 0.
    """
    values = [value for _, value, _ in rows if value is not None and value > 0]
    is_log = bool(values) and max(values) / min(values) > _WIDE_RANGE
    scale = _scale(values, is_log)
    room = _WIDTH - _LABELS - _FIGURES
    parts = []
    for number, (label, value, marked) in enumerate(rows):
        y = number * _ROW
        length = room * scale(value) if value is not None and value > 0 else 0.0
        kind = "bar marked" if marked else "bar"
        shown = "not measured" if value is None else f"{value:.2g}{unit}"
        parts.append(
            f'<text class="label" x="{_LABELS - 8}" y="{y + 15}" text-anchor="end">'
            f"<title>{escape(label)}</title>{escape(_shortened(label))}</text>"
            f'<rect class="{kind}" x="{_LABELS}" y="{y + 4}" width="{max(1.0, length):.1f}" '
            'height="14" rx="2"/>'
            f'<text class="figure" x="{_LABELS + length + 6:.1f}" y="{y + 15}">{shown}'
            f"{' ◂' if marked else ''}</text>"
        )
    note = " (logarithmic scale)" if is_log else ""
    return _svg(title + note, len(rows) * _ROW + 4, "".join(parts))


def _scale(values: Sequence[float], is_log: bool) -> Callable[[float], float]:
    if not values:
        return lambda _: 0.0
    if not is_log:
        return lambda value: value / max(values)
    low = math.floor(math.log10(min(values))) - 0.3
    high = math.log10(max(values))
    return lambda value: (math.log10(value) - low) / max(high - low, 1e-9)


def curves(
    title: str, x_name: str, lines: Sequence[Curve], level: tuple[str, float] | None = None
) -> str:
    """Lines over a common x, with a dashed `level` (name, y) if there is one."""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points if math.isfinite(y)]
    ys += [end for line in lines for _, low, high in line.band for end in (low, high)]
    if level is not None:
        ys.append(level[1])
    if not xs or not ys:
        return ""
    is_log = min(ys) > 0 and max(ys) / min(ys) > _WIDE_RANGE
    low, high = min(ys), max(ys)
    if not is_log and low > 0 and low < 0.4 * high:
        low = 0.0
    place = _placed(min(xs), max(xs), low, high, is_log)
    parts = [_axes(place, low, high, is_log, min(xs), max(xs), x_name)]
    if level is not None:
        _, y = place(min(xs), level[1])
        parts.append(
            f'<line class="level" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{_WIDTH - _RIGHT}" y="{y - 4:.1f}" text-anchor="end">'
            f"{escape(level[0])}</text>"
        )
    for line in lines:
        if line.band:
            there = [place(x, top) for x, _, top in line.band]
            back = [place(x, bottom) for x, bottom, _ in reversed(line.band)]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*there, *back])
            parts.append(f'<polygon class="band {line.kind}" points="{path}"/>')
        finite = [place(x, y) for x, y in line.points if math.isfinite(y)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in finite)
        parts.append(
            f'<polyline class="line {line.kind}" points="{path}">'
            f"<title>{escape(line.name)}</title></polyline>"
        )
    return _svg(title, _HEIGHT, "".join(parts))


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
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM),
        )

    return place


def _axes(
    place: Callable[[float, float], Point],
    low: float,
    high: float,
    is_log: bool,
    left: float,
    right: float,
    x_name: str,
) -> str:
    parts = []
    for tick in _ticks(low, high, is_log):
        x, y = place(left, tick)
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{x - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{tick:.3g}</text>'
        )
    for share in (0, 0.25, 0.5, 0.75, 1):
        x, _ = place(left + share * (right - left), low)
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">'
            f"{left + share * (right - left):.4g}</text>"
        )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text class="tick" x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">{escape(x_name)}</text>'
    )
    return "".join(parts)


def _ticks(low: float, high: float, is_log: bool) -> list[float]:
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


def _svg(title: str, height: float, content: str) -> str:
    return (
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {height:.0f}" role="img" '
        f'aria-label="{escape(title, quote=True)}">{content}</svg>'
    )


def _shortened(label: str, room: int = 26) -> str:
    return label if len(label) <= room else "…" + label[-room + 1 :]
