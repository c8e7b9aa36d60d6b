"""What `trainlint sweep` shows in a terminal: the U-curve, its table, and what follows.

Comes in: a `SweepReport`. Goes out: lines no wider than the terminal, that need no colour.

`python -m trainlint.report.sweeping` shows it on made-up figures.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.text import Text

from trainlint.generalization.swept import Standing, Sweep, Swept, factor
from trainlint.report.plots import BLOCKS, Signs, signs_for

if TYPE_CHECKING:
    from trainlint.records import SweepReport

_ROWS: Final = 13
_WIDEST: Final = 78
_MARGIN: Final = "  "
# Losses that differ by more are drawn on a logarithmic scale.
_WIDE_RANGE: Final = 50.0
_WORDS: Final = ("this model", "best", "{} within one standard error")
NAMES: Final = {
    "width": "width",
    "weight-decay": "weight decay (L2)",
    "l1": "L1 penalty",
    "elastic-net": "elastic net (L2 and L1, half each)",
    "dropout": "dropout",
}


def print_sweep(report: SweepReport, console: Console) -> None:
    """Write the whole of it."""
    found, width = report.sweep, console.width
    signs = signs_for(console.encoding)
    for line in head_of(found):
        console.print(Text(line, style="bold"))
    if found.measured:
        console.print()
        for row in curve(found, width, signs):
            console.print(row, no_wrap=True, crop=True)
        console.print()
        for row in table(found, width):
            console.print(row, no_wrap=True, crop=True)
    console.print()
    for line in verdict(found):
        console.print(Text(line))
    for finding in report.findings:
        place = "" if finding.location is None else f"  {finding.filename}:{finding.location.row}"
        console.print(Text(f"{finding.severity}  {finding.name} {finding.code}{place}", "bold"))
        console.print(Text(f"  {finding.message}"))
        for number, fix in enumerate(finding.fixes):
            console.print(Text(f"  {'   or: ' if number else 'to do: '}{fix.title}"))
    for note in found.notes:
        console.print(Text(f"note: {note}", style="dim"))


def as_text(report: SweepReport, width: int = 100) -> str:
    """The same without colours."""
    console = Console(
        file=io.StringIO(),
        width=width,
        no_color=True,
        highlight=False,
        emoji=False,
        force_terminal=False,
    )
    print_sweep(report, console)
    stream = console.file
    assert isinstance(stream, io.StringIO)
    return stream.getvalue().rstrip("\n")


def head_of(found: Sweep) -> Iterator[str]:
    """What was swept, and how long each training took."""
    what = NAMES[found.over]
    if found.over == "width":
        sizes = found.points[found.here].sizes.items()
        what += " (" + ", ".join(f"{name}={value}" for name, value in sizes) + ")"
    folds = f"{found.folds} folds" + (f" by {found.splitter}" if found.splitter else "")
    yield f"{found.target} · {what} · {found.samples} samples, {folds} · ({found.seconds:.1f} s)"
    length = f": {found.length}" if found.length else ""
    yield f"{found.steps} steps ({found.epochs:.3g} epochs) each{length}"


# ---------------------------------------------------------------------- the curve


def curve(found: Sweep, width: int, signs: Signs = BLOCKS) -> list[Text]:
    """Training and validation loss with bars of one standard error, evenly spaced; marks below."""
    drawing = _Curve(found, width, signs)
    return [drawing.legend(), *drawing.rows(), *drawing.axis()]


class _Curve:
    """Points in columns, losses in rows."""

    def __init__(self, found: Sweep, width: int, signs: Signs) -> None:
        self._found, self._signs = found, signs
        self._places = found.measured
        self._standings = {place: found.standing(place) for place in self._places}
        lows, highs = zip(
            *(_extent(standing) for standing in self._standings.values()), strict=True
        )
        least, most = min(lows), max(highs)
        # Training losses near zero belong on the floor; it is the validation's U that has to be seen.
        smallest = min(s.validation for s in self._standings.values())
        self._is_log = smallest > 0 and most / smallest > _WIDE_RANGE
        if self._is_log:
            least = max(least, smallest / 10)
        if most <= least:
            least, most = least - 0.5, most + 0.5
        self._low, self._high = self._scaled(least), self._scaled(most)
        labels = [self._label(row) for row in range(_ROWS)]
        self._label_room = max(map(len, labels))
        room = min(_WIDEST, width) - len(_MARGIN) - self._label_room - 2
        self._columns = max(2 * len(self._places) + 1, room)
        side = min(5, self._columns // 4)
        steps = max(1, len(self._places) - 1)
        span = self._columns - 2 * side - 1
        self._across = {
            place: (
                side + round(number * span / steps) if len(self._places) > 1 else self._columns // 2
            )
            for number, place in enumerate(self._places)
        }

    def legend(self) -> Text:
        """What the signs stand for."""
        signs = self._signs
        scale = ", log scale" if self._is_log else ""
        return Text(
            f"{_MARGIN}loss: {signs.validation} validation, {_train(signs)} training, ± one standard "
            f"error; {signs.guess}{signs.guess} best + one{scale}"
        )

    def rows(self) -> list[Text]:
        """The drawing."""
        cells = [[" "] * self._columns for _ in range(_ROWS)]
        best = self._found.best
        assert best is not None
        reference = self._standings[best]
        limit = self._down(reference.validation + reference.validation_error)
        for column in range(self._columns):
            cells[limit][column] = self._signs.guess
        self._line(cells, [(self._across[p] + 1, s.train) for p, s in self._standings.items()], "·")
        self._line(
            cells, [(self._across[p], s.validation) for p, s in self._standings.items()], "•"
        )
        for place, standing in self._standings.items():
            column = self._across[place]
            self._bar(cells, column + 1, standing.train, standing.train_error, _train(self._signs))
            self._bar(
                cells,
                column,
                standing.validation,
                standing.validation_error,
                self._signs.validation,
            )
        bar = "│" if self._signs.dots else "|"
        return [
            Text(f"{_MARGIN}{self._label(row):>{self._label_room}} {bar}{''.join(line)}".rstrip())
            for row, line in enumerate(cells)
        ]

    def axis(self) -> list[Text]:
        """The values, the parameters, and which is which."""
        room = " " * (len(_MARGIN) + self._label_room + 1)
        ruler = [self._signs.axis] * self._columns
        for place in self._places:
            ruler[self._across[place]] = "┴" if self._signs.dots else "+"
        rows = [Text(room + self._signs.corner + "".join(ruler), style="dim")]
        points, best = self._found.points, self._found.best
        labels = [{place: short(self._found, points[place]) for place in self._places}]
        if self._found.over == "width":
            labels.append({place: f"{_count(points[place].parameters)}" for place in self._places})
        marks = (self._found.here, best, self._found.chosen)
        up = "▲" if self._signs.dots else "^"
        kind = simplest(self._found)
        labels += [
            {mark: f"{up} {word.format(kind)}"}
            for word, mark in zip(_WORDS, marks, strict=True)
            if mark is not None and mark in self._across
        ]
        heads = ["", "params"] if self._found.over == "width" else []
        for number, each in enumerate(labels):
            head = heads[number] if number < len(heads) else ""
            rows.append(Text(f"{_MARGIN}{head}".ljust(len(room) + 1) + self._below(each)))
        return rows

    def _below(self, labels: dict[int, str]) -> str:
        """Each label below its point, its mark exactly so."""
        line = ""
        for place, label in labels.items():
            is_marked = " " in label
            start = self._across[place] - (0 if is_marked else (len(label) - 1) // 2)
            if (
                is_marked and start + len(label) > self._columns
            ):  # the words to the left of the mark
                mark, _, word = label.partition(" ")
                label = f"{word} {mark}"
                start = self._across[place] - len(word) - 1
            if line and start <= len(line):
                continue  # no room: the table says it
            line = f"{line:<{max(0, start)}}{label}"
        return line

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self._is_log else value

    def _label(self, row: int) -> str:
        if row not in (0, _ROWS // 2, _ROWS - 1):
            return ""
        scaled = self._high + (self._low - self._high) * row / (_ROWS - 1)
        return f"{10**scaled if self._is_log else scaled:.3g}"

    def _down(self, value: float) -> int:
        if self._is_log and value <= 0:
            return _ROWS - 1
        part = (self._high - self._scaled(value)) / (self._high - self._low)
        return round(min(1.0, max(0.0, part)) * (_ROWS - 1))

    def _bar(
        self, cells: list[list[str]], column: int, mean: float, error: float, sign: str
    ) -> None:
        if math.isfinite(error):
            for row in range(self._down(mean + error), self._down(mean - error) + 1):
                cells[row][column] = "│" if self._signs.dots else "|"
        cells[self._down(mean)][column] = sign

    def _line(self, cells: list[list[str]], points: Sequence[tuple[int, float]], sign: str) -> None:
        """Straight from point to point."""
        if not self._signs.dots:
            sign = {"•": "-", "·": "."}[sign]
        for (x, value), (to_x, to_value) in itertools.pairwise(points):
            y, to_y = self._down(value), self._down(to_value)
            for column in range(x + 1, to_x):
                row = round(y + (to_y - y) * (column - x) / (to_x - x))
                cells[row][column] = sign


def _train(signs: Signs) -> str:
    return "○" if signs.dots else "o"


def _extent(standing: Standing) -> tuple[float, float]:
    pairs = (
        (standing.train, standing.train_error),
        (standing.validation, standing.validation_error),
    )
    sound = [(mean, error if math.isfinite(error) else 0.0) for mean, error in pairs]
    return min(mean - error for mean, error in sound), max(mean + error for mean, error in sound)


def short(found: Sweep, point: Swept) -> str:
    """A value as it stands below the curve."""
    return factor(point.value) if found.over == "width" else f"{point.value:g}"


def _count(number: int) -> str:
    """`1.5k`, `26k`, `3.2M`."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            scaled = number / size
            return f"{scaled:.1f}{unit}" if scaled < 10 else f"{scaled:.0f}{unit}"
    return str(number)


# ---------------------------------------------------------------------- the table, and words


def cells(found: Sweep) -> list[list[str]]:
    """The table's heads, and what stands in each line."""
    columns = ["", *(["params"] if found.over == "width" else []), "training", "validation"]
    columns += [found.metric] if found.metric else []
    columns.append("above best")
    return [columns, *(_cells(found, place) for place in range(len(found.points)))]


def table(found: Sweep, width: int) -> list[Text]:
    """A line for each value, also for those that were not run."""
    columns, *lines = cells(found)
    rooms = [
        max(len(head), *(len(each[number]) for each in lines if number < len(each)))
        for number, head in enumerate(columns)
    ]
    rooms[0] = max(6, min(rooms[0], width - len(_MARGIN) - sum(room + 2 for room in rooms[1:])))
    rows = []
    for place, line_cells in enumerate([columns, *lines]):
        name = line_cells[0]
        name = name if len(name) <= rooms[0] else name[: rooms[0] - 1] + "…"
        aligned = [f"{cell:>{room}}" for cell, room in zip(line_cells[1:], rooms[1:], strict=False)]
        line = "  ".join([f"{_MARGIN}{name:<{rooms[0]}}", *aligned])
        reason = found.points[place - 1].reason if place else None
        rows.append(
            Text(f"{line}  {reason}" if reason else line.rstrip(), style="" if place else "dim")
        )
    return rows


def _cells(found: Sweep, place: int) -> list[str]:
    """What stands in a line of the table; less where there was no training."""
    point = found.points[place]
    cells = [_name(found, place)]
    if found.over == "width":
        cells.append(_count(point.parameters) if point.parameters else "")
    if point.reason is not None:
        return cells
    standing = found.standing(place)
    cells += [f"{standing.train:.3g}", _with_error(standing.validation, standing.validation_error)]
    if found.metric and standing.metric is not None:
        is_share = found.metric == "accuracy"
        cells.append(f"{standing.metric:.1%}" if is_share else f"{standing.metric:.3f}")
    elif found.metric:
        cells.append("")
    cells.append("" if place == found.best else _with_error(standing.above, standing.above_error))
    return cells


def _name(found: Sweep, place: int) -> str:
    point = found.points[place]
    if found.over != "width":
        return found.named(place)
    return f"{factor(point.value):<3} " + ", ".join(f"{n}={v}" for n, v in point.sizes.items())


def _with_error(mean: float, error: float) -> str:
    """As many places as the error has, which has two digits."""
    if not math.isfinite(error) or error <= 0 or not 1e-4 <= max(abs(mean), error) < 1e5:
        return f"{mean:.3g} ± {error:.2g}"
    places = max(0, 1 - math.floor(math.log10(error)))
    return f"{mean:.{min(places, 6)}f} ± {error:.{min(places, 6)}f}"


def simplest(found: Sweep) -> str:
    """What the simplest model is called."""
    return "smallest" if found.over == "width" else "strongest"


def verdict(found: Sweep) -> Iterator[str]:
    """What is best, what would do, and where the model stands."""
    best, chosen, here = found.best, found.chosen, found.here
    if best is None or chosen is None:
        yield "nothing could be measured: " + (found.points[0].reason or "")
        return
    least = found.standing(best)
    yield (
        f"best: {found.named(best)}, validation loss "
        f"{_with_error(least.validation, least.validation_error)}"
    )
    kind = f"the {simplest(found)}"
    if chosen == best:
        yield f"{kind} within one standard error of it: the same"
    else:
        yield (
            f"{kind} within one standard error of it: {found.named(chosen)}, "
            f"{found.standing(chosen).validation:.3g}"
        )
    if found.points[here].reason is None:
        own = found.standing(here)
        if here == best:
            yield "this model is the best of them"
        else:
            above = _with_error(own.above, own.above_error)
            yield f"this model, {found.named(here)}: {above} above the best, fold by fold"
    edge = {found.measured[0], found.measured[-1]}
    if best in edge and len(edge) > 1 and found.points[best].value > 0:
        at_end = "greatest" if best == found.measured[-1] else "least"
        yield f"the best is the {at_end} value that was tried: others beyond it may do better (--values)"


def _demo() -> None:
    from trainlint.records import SweepReport

    validation = [0.71, 0.52, 0.47, 0.50, 0.61]
    train = [0.69, 0.45, 0.30, 0.12, 0.02]
    points = [
        Swept(
            2.0 ** (n - 2),
            {"hidden": 2 ** (n + 4)},
            700 * 3**n,
            [train[n] + shift / 9 for shift in (-0.1, 0.05, 0.05)],
            [validation[n] + shift * (1 + n / 5) for shift in (-0.05, 0.0, 0.05)],
            [0.8, 0.82, 0.81],
        )
        for n in range(5)
    ]
    found = Sweep(
        "net.py", "width", points, 3, 3, 400, 20.0, 640, "StratifiedKFold", "CrossEntropyLoss", "accuracy",
        "until the training loss had stopped falling", ["hidden"],
    )  # fmt: skip
    print_sweep(SweepReport(found), Console(highlight=False))


if __name__ == "__main__":
    _demo()
