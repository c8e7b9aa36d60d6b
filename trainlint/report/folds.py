"""A cross-validation for people: a table of its folds with their errors drawn, and the curves.

`python -m trainlint.report.folds` shows it on made-up figures.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterator
from typing import Final

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from trainlint.generalization.curves import student
from trainlint.records import CrossValidation, Figure, FoldResult, Series, Spread
from trainlint.report import plots

_MARGIN: Final = 2
_BAR: Final = 28
_GAP: Final = "   "
# Columns that go where there is no room, by their places.
_SAMPLES_COLUMN: Final = 1
_TRAIN_COLUMN: Final = 2
_GAP_COLUMN: Final = 4
_NO_BREAK: Final = "\N{NO-BREAK SPACE}"


def print_folds(
    measured: CrossValidation,
    console: Console,
    *,
    drawn: bool = True,
    signs: plots.Signs | None = None,
) -> None:
    """Write it. `drawn` is whether with pictures."""
    signs = signs or plots.signs_for(console.encoding)
    for text in head_of(measured):
        _print(text, console)
    for row in _rows(measured, console.width, signs, drawn=drawn):
        console.print(row, no_wrap=True, overflow="ellipsis", crop=True)
    for text in remarks_of(measured):
        _print(text, console, "dim")
    if drawn:
        series = Series(
            measured.steps, 0, f"{measured.loss or 'loss'}, mean over folds", measured.guess,
            train=measured.train, validation=measured.validation,
        )  # fmt: skip
        for picture in plots.pictures(series, console.width, signs, kinds={"losses"}):
            _print(picture.title, console, "dim")
            for row in picture.rows:
                console.print(row, no_wrap=True, overflow="ignore", crop=False)


def as_text(measured: CrossValidation, width: int = 100) -> str:
    """The same without colours."""
    stream = io.StringIO()
    console = Console(file=stream, width=width, color_system=None, highlight=False)
    print_folds(measured, console)
    return stream.getvalue().rstrip("\n")


def head_of(measured: CrossValidation) -> Iterator[str]:
    """What was done."""
    epochs = "" if measured.epochs is None else f" ({measured.epochs:.3g} epochs)"
    yield (
        f"{len(measured.folds)} folds of {measured.samples} samples of {measured.loader} by "
        f"{measured.splitter}: {measured.why}; {measured.steps} steps of {measured.optimizer}{epochs} "
        f"on the others, from the same weights ({measured.seconds:.1f}{_NO_BREAK}s)"
    )


def remarks_of(measured: CrossValidation) -> Iterator[str]:
    """What follows, and how far it can be trusted."""
    own = measured.validation_loss
    if math.isfinite(float(own.corrected)):
        yield (
            "±: of a fold the standard error over its samples; of all that over folds, for trainings that "
            "share samples and so err alike (Nadeau & Bengio 2003): of independent ones the validation "
            f"loss would have ± {_error(float(own.error))}"
        )
    rise = measured.rise
    if rise is not None and _is_sure(rise, sum(fold.reason is None for fold in measured.folds)):
        yield (
            f"validation loss was least after {measured.best_step} of {measured.steps} steps, and is "
            f"higher by {_spread(rise)} at the end, fold by fold: stop there"
        )
    if measured.guess is not None and math.isfinite(float(measured.gap.mean)):
        share = 100 * float(measured.gap.mean) / float(measured.guess)
        error = 100 * float(measured.gap.corrected) / float(measured.guess)
        of = f"% of the loss of the best constant answer, {_number(measured.guess)}"
        known = f" ± {_error(error)}" if math.isfinite(error) else ""
        yield f"the gap is {share:.3g}{known} {of}"
    for fold in measured.folds:
        if fold.sticks_out:
            yield _odd(fold, measured)
    yield from measured.notes


def _is_sure(figures: Spread, folds: int) -> bool:
    """Whether it is above zero, with 95 % confidence."""
    mean, error = float(figures.mean), float(figures.corrected)
    return folds > 1 and mean > student(0.95, folds - 1) * error >= 0


def _odd(fold: FoldResult, measured: CrossValidation) -> str:
    others = [
        float(other.validation_loss)
        for other in measured.folds
        if other is not fold and other.validation_loss is not None
    ]
    mean = sum(others) / len(others)
    assert fold.validation_loss is not None
    text = (
        f"fold {fold.fold} sticks out, more than by chance: validation loss "
        f"{_number(fold.validation_loss)} where the others have {mean:.3g}. "
    )
    if float(fold.validation_loss) < mean:
        return (
            text
            + "Its samples are easier: is it of another source, or are its samples in training, too?"
        )
    worst = f" ({', '.join(map(str, fold.worst))} have the greatest losses)" if fold.worst else ""
    return text + (
        f"Look at its samples{worst}: another source, wrong labels, or something that no other fold has"
    )


def _rows(measured: CrossValidation, width: int, signs: plots.Signs, *, drawn: bool) -> list[Text]:
    """The table: a fold a row, and all of them. Its drawing goes where there is no room for it."""
    lines = [
        ["fold", "train + val", "train loss", "val loss", "gap", f"val {measured.metric}"],
        *map(_cells, measured.folds),
        _together(measured),
    ]
    kept = list(range(len(lines[0]) if measured.metric else len(lines[0]) - 1))
    sizes = [max(cell_len(line[at]) for line in lines if at < len(line)) for at in range(6)]
    for least in (_GAP_COLUMN, _SAMPLES_COLUMN, _TRAIN_COLUMN):
        if _MARGIN + sum(sizes[at] + len(_GAP) for at in kept) > width:
            kept.remove(least)
    scale = _scale(measured) if drawn else None
    if _MARGIN + sum(sizes[at] + len(_GAP) for at in kept) + _BAR > width:
        scale = None
    rows = []
    for number, line in enumerate(lines):
        # The first column is of names, the others of figures.
        text = " " * _MARGIN + line[0].ljust(sizes[0])
        text += "".join(_GAP + line[at].rjust(sizes[at]) for at in kept[1:] if at < len(line))
        if scale is not None:
            text += _GAP + _drawing(number, measured, scale, signs)
        style = "bold" if number in (0, len(lines) - 1) else ""
        if 0 < number < len(lines) - 1 and measured.folds[number - 1].sticks_out:
            style = "yellow"
        rows.append(Text(text.rstrip(), style=style))
    return rows


def _drawing(
    number: int, measured: CrossValidation, scale: tuple[float, float], signs: plots.Signs
) -> str:
    if number == 0:
        low, high = (f"{end:.3g}" for end in scale)
        return low + high.rjust(_BAR - len(low))
    if number > len(measured.folds):
        own = measured.validation_loss
        return _interval(own.mean, own.corrected, scale, signs)
    fold = measured.folds[number - 1]
    return _interval(fold.validation_loss, fold.validation_error, scale, signs)


def _cells(fold: FoldResult) -> list[str]:
    if fold.reason is not None:
        return [str(fold.fold), "no result"]
    return [
        f"{fold.fold} !" if fold.sticks_out else str(fold.fold),
        f"{fold.train_samples} + {fold.validation_samples}",
        _number(fold.train_loss),
        _with_error(fold.validation_loss, fold.validation_error),
        _number(_minus(fold.validation_loss, fold.train_loss)),
        _number(fold.validation_metric),
    ]


def _together(measured: CrossValidation) -> list[str]:
    figures = [measured.train_loss, measured.validation_loss, measured.gap]
    own = measured.validation_metric
    return [
        "all",
        str(measured.samples),
        *map(_spread, figures),
        "" if own is None else _spread(own),
    ]


def _scale(measured: CrossValidation) -> tuple[float, float] | None:
    """From which loss to which the errors of all folds reach; None where nothing is finite."""
    pairs = [(f.validation_loss, f.validation_error) for f in measured.folds]
    pairs.append((measured.validation_loss.mean, measured.validation_loss.corrected))
    ends = []
    for mean, error in pairs:
        if mean is not None and math.isfinite(float(mean)):
            width = 0.0 if error is None or not math.isfinite(float(error)) else float(error)
            ends += [float(mean) - width, float(mean) + width]
    if not ends or min(ends) == max(ends):
        return None
    return min(ends), max(ends)


def _interval(
    mean: Figure | None, error: Figure | None, scale: tuple[float, float], signs: plots.Signs
) -> str:
    """`├──●──┤`, or as much of it as is finite."""
    if mean is None or not math.isfinite(float(mean)):
        return f"{signs.lost} {mean}"
    low, high = scale
    width = 0.0 if error is None or not math.isfinite(float(error)) else float(error)

    def column(value: float) -> int:
        return round((value - low) / (high - low) * (_BAR - 1))

    line = [" "] * _BAR
    for place in range(column(float(mean) - width), column(float(mean) + width) + 1):
        line[place] = signs.axis
    line[column(float(mean))] = signs.validation
    return "".join(line).rstrip()


def _minus(one: Figure | None, other: Figure | None) -> Figure | None:
    if one is None or other is None:
        return None
    difference = float(one) - float(other)
    return difference if math.isfinite(difference) else "nan"


def _with_error(mean: Figure | None, error: Figure | None) -> str:
    if mean is None or error is None or not math.isfinite(float(error)):
        return _number(mean)
    return f"{_number(mean)} ± {_error(float(error))}"


def _spread(figures: Spread) -> str:
    if not math.isfinite(float(figures.corrected)):
        return _number(figures.mean)
    corrected = float(figures.corrected)
    return f"{_number(figures.mean)} ± {_error(corrected)}"


def _error(value: float) -> str:
    """Two digits, or as many as there are before the point."""
    return f"{value:.0f}" if 100 <= value < 1e6 else f"{value:.2g}"


def _number(value: Figure | None) -> str:
    return "" if value is None else f"{float(value):.3g}"


def _print(text: str, console: Console, style: str = "") -> None:
    margin = " " * _MARGIN
    filled = textwrap.fill(
        text, console.width, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False
    )
    console.print(Text(filled.replace(_NO_BREAK, " ")), style=style)


def _demo() -> None:
    folds = [
        FoldResult(n + 1, None, 142, 36, 50, 0.02, 0.004, 0.05 + 0.02 * n, 0.02, 1.0, 0.97)
        for n in range(5)
    ]
    all_of = Spread(0.09, 0.014, 0.021)
    print_folds(
        CrossValidation(
            "net.py::net", "StratifiedKFold", "3 classes, in each fold in the same shares", 178,
            "train_loader", "Adam", "CrossEntropyLoss", folds, Spread(0.02, 0.001, 0.002), all_of,
            Spread(0.07, 0.014, 0.021), "accuracy", None, Spread(0.97, 0.0, 0.0), 1.1, 50, 5.6, 40,
            Spread(0.01, 0.001, 0.002),
            [(0, 1.1), (20, 0.2), (40, 0.03), (50, 0.02)], [(0, 1.1), (20, 0.3), (40, 0.08), (50, 0.09)],
        ),
        Console(),
    )  # fmt: skip


if __name__ == "__main__":
    _demo()
