"""Pictures for the terminal: bars by layer, and curves of losses.

Comes in: figures, a width in columns, the signs that the terminal can show. Goes out: a `Picture`, lines no
wider than that. NaN, infinities, zeros and what was not measured are shown as such.

The curves are our own, a hundred lines: of the libraries at hand, plotille 6.0 raises for a NaN, draws
braille alone and tells curves apart by colour alone; plotext 6.1 has another interface than 5 and 2.9 MB.

`python -m trainlint.report.plots` shows each on made-up figures.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.text import Text

from trainlint.records import Figure, LayerSeries, ModelSeries, Series
from trainlint.rule import PICTURES

Points = list[tuple[int, Figure]]

_MARGIN: Final = " " * 4
_MOST_ROWS: Final = 16
_LONGEST_BAR: Final = 48
_SHORTEST_BAR: Final = 8
_WIDEST_CURVE: Final = 80
_CURVE_ROWS: Final = 8
# Two numbers that differ by more are shown on a logarithmic scale.
_WIDE_RANGE: Final = 100.0
# The loss's axis spans no less than this share of the loss: noise shall not look like a change.
_LEAST_SPAN: Final = 0.2
_LARGEST: Final = sys.float_info.max
_LARGEST_POWER: Final = 308.25
# What is marked: gradients so many times off that of the last layer, where there is a finding on gradients,
# and shares of dead units.
_FAR_OFF: Final = 100.0
_MOSTLY: Final = 0.5
# A unit that is 0 for fewer samples may well be alive.
_FEW_SAMPLES: Final = 128


@dataclass(frozen=True)
class Signs:
    """What lines are made of. `parts` are left parts of a full block, from the narrowest to the whole."""

    parts: str
    range: str
    tick: str
    mark: str
    ellipsis: str
    train: str
    validation: str
    spread: str
    guess: str
    lost: str
    axis: str
    corner: str
    dots: bool

    def all(self) -> str:
        """Every sign, to try them on an encoding."""
        dots = "".join(map(chr, range(0x2800, 0x2900))) if self.dots else ""
        return "".join(str(value) for value in vars(self).values() if value is not True) + dots


BLOCKS: Final = Signs(
    "▏▎▍▌▋▊▉█", "░", "╵", "◂", "…", "⠒⠢⠤", "●", "┃", "┄", "×", "─", "└", dots=True
)
PLAIN: Final = Signs("#", "-", "'", "<", "..", "*", "o", "!", ".", "x", "-", "+", dots=False)


@dataclass(frozen=True)
class Picture:
    """A line that says what is seen, and the lines of the drawing."""

    title: str
    rows: list[Text]


@dataclass(frozen=True)
class Bar:
    """A layer's figure; None where it was not measured."""

    label: str
    value: float | None
    marked: bool = False


def signs_for(encoding: str | None) -> Signs:
    """Blocks and dots where the encoding has them."""
    try:
        BLOCKS.all().encode(encoding or "ascii")
    except (UnicodeError, LookupError):
        return PLAIN
    return BLOCKS


# ---------------------------------------------------------------------- which pictures there are


def pictures(
    series: Series,
    width: int,
    signs: Signs = BLOCKS,
    *,
    kinds: Container[str] = PICTURES,
    model: str | None = None,
    named: Container[str] = (),
    accused: Container[str] = (),
) -> Iterator[Picture]:
    """The pictures of these kinds of a training, for all of its models or one.

    Marked are the layers that findings name, `named`, and what stands out in a picture of a kind on which
    there is a finding, `accused`.
    """
    models = [one for one in series.models if one.model == model] or series.models
    for one in models:
        title = f"{one.model}: " if len(series.models) > 1 else ""
        if "gradients" in kinds:
            is_accused = "gradients" in accused
            yield from _gradients(one, series, title, width, signs, named, is_accused=is_accused)
        if "dead" in kinds:
            yield from _dead(one, title, width, signs, named)
    if "losses" in kinds:
        yield from _losses(series, width, signs)


def profile(name: str, figures: Sequence[tuple[str, Any]], width: int, signs: Signs) -> Picture:
    """Figures by layer that a finding carries, from the first layer on; None is what JSON cannot say."""
    bars = [Bar(label, math.nan if value is None else float(value)) for label, value in figures]
    legend = ""
    if name == "gradients":
        bars, legend = _far_off(bars, signs)
    what = f"{name.replace('_', ' ')}, measured; output to input, log scale{_said(bars)}{legend}"
    return Picture(what, on_log_scale(bars[::-1], width, signs))


def _gradients(
    model: ModelSeries,
    series: Series,
    title: str,
    width: int,
    signs: Signs,
    named: Container[str],
    *,
    is_accused: bool,
) -> Iterator[Picture]:
    layers = [layer for layer in model.layers if layer.dead is None]
    by_result = any(layer.gradient is not None for layer in layers)
    layers = [layer for layer in layers if layer.operation or not by_result]
    bars = [
        Bar(_label(layer), value, layer.name in named or value == 0)
        for layer in layers
        for value in [_number(layer.gradient if by_result else layer.weight_gradient)]
    ]
    if all(bar.value is None for bar in bars):
        return
    legend = ""
    if is_accused:
        bars, legend = _far_off(bars, signs)
    elif any(bar.marked for bar in bars):
        legend = f"; {signs.mark} 0, or named in a finding"
    steps = f"median of {series.recorded} recorded step" + "s" * (series.recorded != 1)
    yield Picture(
        f"{title}norm of the gradient at each {'layer' if by_result else 'weight'}, output to input; "
        f"{steps}, log scale{_said(bars)}{legend}",
        on_log_scale(bars[::-1], width, signs),
    )


def _far_off(bars: Sequence[Bar], signs: Signs) -> tuple[list[Bar], str]:
    """The bars, from the first layer on, with those marked that have vanished or exploded; a legend."""
    sound = [b.value for b in bars if b.value is not None and 0 < b.value < math.inf]
    last = sound[-1] if sound else 1.0
    marked = [
        replace(bar, marked=True)
        if bar.value is not None and not last / _FAR_OFF <= bar.value <= last * _FAR_OFF
        else bar
        for bar in bars
    ]
    if not any(bar.marked for bar in marked):
        return marked, ""
    return marked, f"; {signs.mark} more than {_FAR_OFF:.0f} times off the last layer's"


def _dead(
    model: ModelSeries, title: str, width: int, signs: Signs, named: Container[str]
) -> Iterator[Picture]:
    layers = [layer for layer in model.layers if layer.dead is not None][::-1]
    if not layers:
        return
    bars = [
        Bar(_label(layer), layer.dead, layer.name in named or (layer.dead or 0.0) > _MOSTLY)
        for layer in layers
    ]
    fewest = min(layer.samples or 0 for layer in layers)
    notes = f", windows of only {fewest} samples" if fewest < _FEW_SAMPLES else ""
    if any(bar.marked for bar in bars):
        notes += f"; {signs.mark} more than half"
    yield Picture(
        f"{title}units that are 0 for every sample, output to input{_said(bars)}{notes}",
        as_shares(bars, width, signs),
    )


def _losses(series: Series, width: int, signs: Signs) -> Iterator[Picture]:
    train = [(step, float(value)) for step, value in series.train]
    validation = [(step, float(value)) for step, value in series.validation]
    if not train and not validation:
        return
    guess = _number(series.guess)
    if guess is None or not math.isfinite(guess):
        guess = None
    bands = [
        (step, float(low), float(high))
        for step, low, high in series.bands
        if math.isfinite(float(low)) and math.isfinite(float(high))
    ]
    drawing = _Curves(width, signs, train, validation, guess, bands)
    legend = []
    if train:
        legend.append(f"{signs.train} train")
    if validation:
        legend.append(f"{signs.validation} validation")
        if bands:
            legend.append(f"{signs.spread} ± 2 standard errors")
    if guess is not None:
        legend.append(f"{signs.guess} best constant answer")
    if drawing.is_lost:
        legend.append(f"{signs.lost} NaN or infinite")
    what = "loss that backward() was called on" if series.loss == "backward" else series.loss
    scale = ", log scale" if drawing.is_log else ""
    scale += ", on made-up data" * series.made_up
    yield Picture(f"{what}: {', '.join(legend)}{scale}", drawing.rows())


def _label(layer: LayerSeries) -> str:
    """The number of a layer in a bare Sequential says little."""
    if layer.name.isdigit() and layer.operation:
        return f"layer {layer.name} ({layer.operation})"
    return layer.name


def _number(figure: Figure | None) -> float | None:
    return None if figure is None else float(figure)


# ---------------------------------------------------------------------- bars


def on_log_scale(bars: Sequence[Bar], width: int, signs: Signs = BLOCKS) -> list[Text]:
    """A line for each bar, in this order, neighbours together where there are many; then the decades."""
    powers = [math.log10(b.value) for b in bars if b.value is not None and 0 < b.value < math.inf]
    least = math.floor(min(powers, default=0.0))
    most = max(math.ceil(max(powers, default=0.0)), least + 1)

    def share(value: float) -> float:
        if value == math.inf:
            return 1.0
        return (math.log10(value) - least) / (most - least) if value > 0 else 0.0

    table = _Table(bars, width, signs, share, lambda value: f"{value:.1e}" if value else "0")
    rows = table.rows()
    if powers and table.room:
        ticks = [
            (_decade(power), (power - least) / (most - least)) for power in range(least, most + 1)
        ]
        rows.append(table.axis(ticks))
    return rows


def as_shares(bars: Sequence[Bar], width: int, signs: Signs = BLOCKS) -> list[Text]:
    """The same on a scale from 0 to 100%."""
    table = _Table(
        bars, width, signs, lambda value: min(1.0, max(0.0, value)), lambda value: f"{value:.0%}"
    )
    rows = table.rows()
    if bars and table.room:
        rows.append(table.axis([("0%", 0.0), ("50%", 0.5), ("100%", 1.0)]))
    return rows


def _decade(power: int) -> str:
    return {-1: "0.1", 0: "1", 1: "10", 2: "100"}.get(power, f"1e{power}")


def _together(bars: Sequence[Bar]) -> int:
    """How many layers go into one line."""
    return max(1, -(-len(bars) // _MOST_ROWS))


def _said(bars: Sequence[Bar]) -> str:
    """The same, for the title."""
    return "" if _together(bars) == 1 else f", {_together(bars)} layers a line"


class _Table:
    """Labels, bars and figures in columns."""

    def __init__(
        self,
        bars: Sequence[Bar],
        width: int,
        signs: Signs,
        share: Callable[[float], float],
        form: Callable[[float], str],
    ) -> None:
        self._width, self._signs, self._share, self._form = width, signs, share, form
        size = _together(bars)
        self._groups = [bars[start : start + size] for start in range(0, len(bars), size)]
        labels = [self._label(group, width) for group in self._groups]
        self._label_room = min(max(map(cell_len, labels), default=0), max(8, width * 2 // 5))
        figures = [self._figures(group) for group in self._groups]
        others = (
            cell_len(_MARGIN) + self._label_room + max(map(len, figures), default=0) + len("    ")
        )
        room = min(_LONGEST_BAR, width - others)
        # Where there is no room for bars, the figures tell it all.
        self.room = room if room >= _SHORTEST_BAR else 0

    def rows(self) -> list[Text]:
        """A line for each group."""
        return [self._row(group) for group in self._groups]

    def axis(self, ticks: Sequence[tuple[str, float]]) -> Text:
        """Ticks below the bars, each with its label to the right of it; as many as there is room for."""
        line = " " * (cell_len(_MARGIN) + self._label_room + 1)
        start = len(line)
        for every in (1, 2, 3, 5, 10, 20, 50, 100, 200, 500):
            shown = [(text, start + round(at * self.room)) for text, at in ticks[::every]]
            pairs = itertools.pairwise(shown)
            if all(place + len(text) + 2 < following for (text, place), (_, following) in pairs):
                break
        for text, place in shown:
            line = f"{line:<{place}}{self._signs.tick}{text}"
        return _cropped(Text(line, style="dim"), self._width)

    def _row(self, group: Sequence[Bar]) -> Text:
        marked = any(bar.marked for bar in group)
        label = self._label(group, self._label_room)
        row = Text(_MARGIN + label + " " * (self._label_room - cell_len(label)) + " ")
        if self.room:
            row.append(self._bar(group), style="red" if marked else "cyan")
            row.append(" ")
        row.append(self._figures(group))
        if marked:
            row.append(f" {self._signs.mark}", style="bold red")
        return _cropped(row, self._width)

    def _bar(self, group: Sequence[Bar]) -> str:
        values = _known(group)
        if not values:
            return " " * self.room
        low, high = self._share(min(values)), self._share(max(values))
        parts = self._signs.parts
        whole, part = divmod(round(low * self.room * len(parts)), len(parts))
        bar = parts[-1] * whole + (parts[part - 1] if part else "")
        if max(values) > 0 and not bar:
            bar = parts[0]
        if len(group) > 1:
            bar += self._signs.range * (round(high * self.room) - len(bar))
        return f"{bar:<{self.room}}"

    def _figures(self, group: Sequence[Bar]) -> str:
        """The figure, or the least and the largest of several; what is none by its name."""
        values = _known(group)
        words = []
        if values:
            words = list(dict.fromkeys(self._word(value) for value in (min(values), max(values))))
        if any(bar.value is not None and math.isnan(bar.value) for bar in group):
            return " to ".join([*words, "NaN"]) if words else "NaN"
        return " to ".join(words) or "none"

    def _word(self, value: float) -> str:
        return self._form(value) if math.isfinite(value) else f"{value:.0f}"

    def _label(self, group: Sequence[Bar], room: int) -> str:
        first, last = group[0].label, group[-1].label
        if len(group) == 1:
            return self._short(f"layer {first}" if first.isdigit() else first, room)
        return self._short(_span(first, last), room)

    def _short(self, label: str, room: int) -> str:
        """The end of a path says most."""
        label = "".join(sign if sign.isprintable() else "?" for sign in label)
        if cell_len(label) <= room:
            return label
        kept, left = "", room - cell_len(self._signs.ellipsis)
        for sign in reversed(label):
            left -= cell_len(sign)
            if left < 0:
                break
            kept = sign + kept
        return self._signs.ellipsis + kept


def _span(first: str, last: str) -> str:
    """`blocks.9 to 6` for `blocks.9.relu` and `blocks.6.relu`: parts of a path that do not differ, once."""
    one, two = first.split("."), last.split(".")
    most = min(len(one), len(two)) - 1  # something is left of each
    above = _alike(one[:most], two[:most])
    below = _alike(one[::-1][: most - above], two[::-1][: most - above])
    return f"{'.'.join(one[: len(one) - below])} to {'.'.join(two[above : len(two) - below])}"


def _alike(one: Sequence[str], two: Sequence[str]) -> int:
    """How many parts are the same from the start."""
    pairs = zip(one, two, strict=True)
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))


def _known(group: Sequence[Bar]) -> list[float]:
    return [bar.value for bar in group if bar.value is not None and not math.isnan(bar.value)]


def _cropped(row: Text, width: int) -> Text:
    """No wider than the terminal, and without blanks at the end."""
    if row.cell_len > width:
        row = row[: len(chop_cells(row.plain, width)[0])]
    row.rstrip()
    return row


# ---------------------------------------------------------------------- curves


class _Curves:
    """Losses over steps: the training's as a line, the validation's as points upon it."""

    def __init__(
        self,
        width: int,
        signs: Signs,
        train: Sequence[tuple[int, float]],
        validation: Sequence[tuple[int, float]],
        guess: float | None,
        bands: Sequence[tuple[int, float, float]] = (),
    ) -> None:
        self._width, self._signs = width, signs
        self._train, self._validation, self._guess = train, validation, guess
        self._bands = bands
        points = [*train, *validation]
        known = [value for _, value in points if math.isfinite(value)]
        self.is_lost = len(known) < len(points)
        is_positive = min(known, default=0.0) > 0
        known += [end for _, *ends in bands for end in ends if end > 0 or not is_positive]
        if guess is not None:
            known.append(guess)
        least, most = min(known, default=0.0), max(known, default=0.0)
        self.is_log = least > 0 and most / least > _WIDE_RANGE
        if not self.is_log:
            middle = least / 2 + most / 2
            margin = max(0.0, abs(middle) * _LEAST_SPAN / 2 - (most / 2 - least / 2))
            least, most = max(least - margin, -_LARGEST), min(most + margin, _LARGEST)
        self._low, self._high = self._scaled(least), self._scaled(most)
        self._first = min((step for step, _ in points), default=0)
        self._last = max((step for step, _ in points), default=0)
        self._is_known = bool(known)
        self._labels = self._rulers()
        self._label_room = max(map(len, self._labels.values()), default=0)
        others = cell_len(_MARGIN) + self._label_room + 2
        self._columns = max(1, min(_WIDEST_CURVE, width - others))

    def rows(self) -> list[Text]:
        """The drawing, with its scales at the left and below."""
        lines = self._with_points(self._line()) if self._is_known else []
        rows = []
        for number, line in enumerate(lines):
            label = self._labels.get(number, "")
            bar = "│" if self._signs.dots else "|"
            row = Text()
            row.append(f"{_MARGIN}{label:>{self._label_room}} {bar}", style="dim")
            for style, run in itertools.groupby(line, self._style):
                row.append("".join(run), style=style)
            rows.append(_cropped(row, self._width))
        return [*rows, *self._steps()]

    def _style(self, sign: str) -> str:
        return {
            self._signs.validation: "yellow",
            self._signs.spread: "yellow",
            self._signs.guess: "dim",
        }.get(sign, "cyan")

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.is_log else value

    def _rulers(self) -> dict[int, str]:
        """What the top, the middle and the bottom line stand for."""
        if not self._is_known:
            return {}
        if self._high == self._low:
            return {_CURVE_ROWS // 2: f"{self._low:.3g}"}
        last = _CURVE_ROWS - 1
        values = {row: self._value(row / last) for row in (0, last // 2, last)}
        labels: dict[int, str] = {}
        for digits in (3, 4, 5, 6):
            labels = {row: f"{value:.{digits}g}" for row, value in values.items()}
            if len(set(labels.values())) == len(labels):
                break
        return labels

    def _value(self, part: float) -> float:
        """What stands at this part of the way down."""
        scaled = self._high * (1 - part) + self._low * part
        return float(10 ** min(scaled, _LARGEST_POWER)) if self.is_log else scaled

    def _across(self, step: int, size: int) -> int:
        """The place of a step among so many."""
        if self._last == self._first:
            return 0
        return round((step - self._first) / (self._last - self._first) * (size - 1))

    def _down(self, value: float, size: int) -> int:
        if self._high == self._low:
            return size // 2
        # Halves, since the difference of two large numbers may be infinite.
        part = (self._high / 2 - self._scaled(value) / 2) / (self._high / 2 - self._low / 2)
        return round(min(1.0, max(0.0, part)) * (size - 1))

    def _line(self) -> list[list[str]]:
        """The training's: in each cell 2 × 4 dots, or one sign."""
        wide, high = (2, 4) if self._signs.dots else (1, 1)
        bits = [[0] * self._columns for _ in range(_CURVE_ROWS)]
        size = (self._columns * wide, _CURVE_ROWS * high)
        before: tuple[int, int] | None = None
        for step, value in self._train:
            if not math.isfinite(value):
                before = None
                continue
            here = (self._across(step, size[0]), self._down(value, size[1]))
            for x, y in _between(before or here, here):
                bits[y // high][x // wide] |= _DOTS[y % high][x % wide]
            before = here
        return [[self._cell(cell) for cell in line] for line in bits]

    def _cell(self, bits: int) -> str:
        if not bits:
            return " "
        return chr(0x2800 + bits) if self._signs.dots else self._signs.train

    def _with_points(self, lines: list[list[str]]) -> list[list[str]]:
        """The validation's upon the line, and a guess's loss where there is room for it."""
        if self._guess is not None:
            row = self._down(self._guess, _CURVE_ROWS)
            lines[row] = [self._signs.guess if sign == " " else sign for sign in lines[row]]
        for step, low, high in self._bands:
            column = self._across(step, self._columns)
            above, below = self._down(high, _CURVE_ROWS), self._down(self._shown(low), _CURVE_ROWS)
            for row in range(above, below + 1):
                lines[row][column] = self._signs.spread
        for step, value in self._validation:
            if math.isfinite(value):
                row, column = self._down(value, _CURVE_ROWS), self._across(step, self._columns)
                lines[row][column] = self._signs.validation
        return lines

    def _shown(self, value: float) -> float:
        """The value, or the least that the axis has."""
        return max(value, self._value(1.0))

    def _steps(self) -> Iterator[Text]:
        """The axis, with what is not finite upon it, and the first and last step below."""
        axis = [self._signs.axis] * self._columns
        for points in (self._train, self._validation):
            before: int | None = None
            for step, value in points:
                here = self._across(step, self._columns)
                if math.isfinite(value):
                    before = None
                    continue
                start = here if before is None else before
                axis[start : here + 1] = self._signs.lost * (here + 1 - start)
                before = here
        margin = _MARGIN + " " * (self._label_room + 1)
        row = Text()
        row.append(margin + self._signs.corner, style="dim")
        for is_lost, run in itertools.groupby(axis, self._signs.lost.__eq__):
            row.append("".join(run), style="bold red" if is_lost else "dim")
        yield _cropped(row, self._width)
        first, last = f"step {self._first}", str(self._last)
        if self._last == self._first:
            last = ""
        room = self._columns - len(first)
        numbers = f"{margin} {first}{last:>{room}}" if room > len(last) else f"{margin} {first}"
        yield _cropped(Text(numbers, style="dim"), self._width)


# Bits of the dots of a braille cell, by row and column.
_DOTS: Final = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def _between(start: tuple[int, int], end: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """The dots of the straight line from one to the other."""
    (x, y), (to_x, to_y) = start, end
    steps = max(abs(to_x - x), abs(to_y - y), 1)
    for step in range(steps + 1):
        yield x + round((to_x - x) * step / steps), y + round((to_y - y) * step / steps)


def _demo() -> None:
    console = Console(highlight=False)
    layers = [
        LayerSeries(f"fc{number}", "linear", gradient=10.0 ** (number - 9)) for number in range(9)
    ]
    relus = [LayerSeries("relu", "relu", dead=0.82, samples=640)]
    train: Points = [(step, 2.3 * 0.99**step + 0.1 * (step % 7) / 7) for step in range(0, 300, 2)]
    validation: Points = [(step, 2.5 * 0.99**step + step / 600) for step in range(30, 300, 30)]
    series = Series(
        300,
        31,
        "cross_entropy",
        2.3,
        [ModelSeries("Net", [*layers, *relus])],
        train,
        validation,
        [(step, float(loss) - 0.15, float(loss) + 0.15) for step, loss in validation],
    )
    for picture in pictures(
        series, console.width, signs_for(console.encoding), accused=["gradients"]
    ):
        console.print(picture.title)
        for row in picture.rows:
            console.print(row, no_wrap=True)


if __name__ == "__main__":
    _demo()
