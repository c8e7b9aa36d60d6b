"""A cross-validation in the HTML report: curves over the folds with bands, each fold with its error.

Comes in: a `CrossValidation`. Goes out: figures and a table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape

from trainlint.records import CrossValidation, Figure, FoldResult
from trainlint.report.folds import head_of, remarks_of
from trainlint.report.html_figures import bands_of, finite
from trainlint.report.html_parts import GUESS, cells_of, figure, keys_of, table
from trainlint.report.svg import STEPS, Curve, curves, intervals


def folds(measured: CrossValidation) -> Iterator[str]:
    """The parts of its section."""
    yield f"<h3>cross-validation</h3><p>{escape(' '.join(head_of(measured)))}</p>"
    lines = [
        Curve(name, finite(points), name, bands_of(bands))
        for name, points, bands in (
            ("train", measured.train, measured.train_bands),
            ("validation", measured.validation, measured.validation_bands),
        )
        if len(points) > 1
    ]
    guess = _number(measured.guess)
    level = None if guess is None else ("", guess)
    title = f"loss ({measured.loss or 'loss'}), mean over {len(measured.folds)} folds"
    words = (
        f"{keys_of(lines, GUESS if level else '')}<span class='hint'>band: ± one standard "
        "error over folds, corrected for trainings that share samples</span>"
    )
    yield figure(title, words, curves(title, STEPS, lines, level) if lines else "")
    yield _each(measured)
    yield _table(measured)
    remarks = "".join(f"<li>{escape(text)}</li>" for text in remarks_of(measured))
    yield f'<ul class="soft">{remarks}</ul>' if remarks else ""


def _each(measured: CrossValidation) -> str:
    rows = [
        (
            f"fold {fold.fold}",
            _number(fold.validation_loss),
            _number(fold.validation_error) or 0.0,
            fold.sticks_out,
        )
        for fold in measured.folds
    ]
    own = measured.validation_loss
    rows.append(("all", _number(own.mean), _number(own.corrected) or 0.0, False))
    title = "validation loss of each fold at the end"
    words = "With the standard error over its samples; ◂ sticks out from the others by more than chance."
    return figure(title, words, intervals(title, rows))


def _table(measured: CrossValidation) -> str:
    heads = ["fold", "trained on", "validated on", "training loss", "validation loss"]
    heads += [f"validation {measured.metric}"] if measured.metric else []
    rows = [_row(fold, bool(measured.metric)) for fold in measured.folds]
    return f"<details><summary>the folds as a table</summary>{table(heads, rows)}</details>"


def _row(fold: FoldResult, has_metric: bool) -> str:
    if fold.reason is not None:
        return f'<tr><td>{fold.fold}</td><td colspan="5">no result: {escape(fold.reason)}</td></tr>'
    error = _number(fold.validation_error)
    spread = f" ± {error:.2g}" if error is not None else ""
    cells = [
        str(fold.fold), str(fold.train_samples), str(fold.validation_samples),
        _shown(fold.train_loss), _shown(fold.validation_loss) + spread,
    ]  # fmt: skip
    cells += [_shown(fold.validation_metric)] if has_metric else []
    return f"<tr>{cells_of(cells)}</tr>"


def _shown(value: Figure | None) -> str:
    return "" if value is None else f"{float(value):.3g}"


def _number(value: Figure | None) -> float | None:
    return None if value is None or not math.isfinite(float(value)) else float(value)
