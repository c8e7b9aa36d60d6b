"""From the options of a report to that report in its files and on the terminal."""

from __future__ import annotations

import difflib
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from trainlint.cli.terminal import console_on
from trainlint.errors import TrainlintError, UsageError
from trainlint.report import FORMAT_NAMES, rendered

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainlint.records import Report, SweepReport


def outputs_of(
    values: tuple[str, ...], form: str, known: Sequence[str] = FORMAT_NAMES
) -> tuple[list[tuple[str, Path]], bool]:
    """(form, file) of each --output, and whether one takes the terminal's place.

    Raises `UsageError` for several files without a form, and for a form that is none.
    """
    outputs = []
    plain = 0
    for value in values:
        prefix, separator, name = value.partition(":")
        if separator and name and prefix in known:
            outputs.append((prefix, Path(name)))
        else:
            _check_form(value, known)
            plain += 1
            outputs.append((form, Path(value)))
    if plain > 1:
        raise UsageError(
            f"one file for --format {form}; others with their form: --output sarif:FILE"
        )
    return outputs, plain == 1


def _check_form(value: str, known: Sequence[str]) -> None:
    """Raises `UsageError` where a word before a colon is no form; a single letter is a drive.

    `sarrif:x` names no file, `./sarrif:x` does.
    """
    word, separator, _ = value.partition(":")
    folder = Path(value).parent
    if not separator or len(word) < 2 or not word.isalpha():
        return
    if word in known:
        raise UsageError(f"--output {value}: no file follows {word}:")
    if folder == Path() or not folder.is_dir():
        near = difflib.get_close_matches(word.lower(), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"forms: {', '.join(known)}"
        raise UsageError(
            f"--output {value}: no form {word!r}; {hint} (a file of that name: ./{value})"
        )


def check_writable(files: list[Path]) -> None:
    """Before anything is run: the report of a long one must not be lost.

    Files are as they were afterwards: what is there stays, what is not does not come about.
    """
    for file in files:
        if os.path.isdir(file):  # noqa: PTH112 (pathlib's raises for a name too long)
            raise UsageError(f"cannot write {file}: is a directory")
        if not file.parent.is_dir():
            raise UsageError(f"cannot write {file}: no such folder")
        place = Path(os.path.realpath(file))  # a link to nothing is a name of what it will be
        try:
            if file.exists() and not file.is_file():
                continue  # a pipe would take our closing it for the end of the report
            with suppress(FileExistsError):
                place.open("x").close()
                place.unlink()
                continue
            place.open("a").close()
        except OSError as error:
            raise UsageError(f"cannot write {file}: {error.strerror}") from None


def say_error(error: Exception) -> None:
    """One line on stderr; `--debug` anywhere shows the traceback."""
    if "--debug" in sys.argv:
        import traceback

        traceback.print_exc()
    text = f"error: {error}"
    if not isinstance(error, TrainlintError):
        text = f"internal error: {type(error).__name__}: {error} (--debug shows the traceback)"
    click.echo(f"trainlint: {text}", err=True)


def complain(report: Report) -> None:
    """One line on stderr for each target that could not be checked, and what it printed last."""
    for target in report.targets:
        if target.status == "error":
            click.echo(f"trainlint: error: {target.target}: {target.reason}", err=True)
            for line in target.output.strip().splitlines()[-5:]:
                click.echo(f"    | {line[:200]}", err=True)


@dataclass(frozen=True)
class Manner:
    """How a report is written, in whatever form."""

    fail_on: str
    show_info: bool
    plots: bool | None
    statistics: bool = False
    status: int | None = None


def write_report(
    report: Report,
    form: str,
    outputs: list[tuple[str, Path]],
    manner: Manner,
    *,
    is_elsewhere: bool,
    to: TextIO | None = None,
) -> None:
    """To each file, and to the terminal unless one of them takes its place."""
    if not is_elsewhere:
        _write(report, form, to or sys.stdout, manner)
    for each, path in outputs:
        with _opened(path) as stream:
            _write(report, each, stream, manner)


def write_sweep(
    report: SweepReport, form: str, outputs: list[tuple[str, Path]], *, is_elsewhere: bool
) -> None:
    """As `write_report`, in the forms that a sweep has."""
    if not is_elsewhere:
        _write_sweep(report, form, sys.stdout)
    for each, path in outputs:
        with _opened(path) as stream:
            _write_sweep(report, each, stream)


def _write_sweep(report: SweepReport, form: str, stream: TextIO) -> None:
    if form == "text":
        from trainlint.report.sweeping import print_sweep

        print_sweep(report, console_on(stream))
    elif form == "json":
        stream.write(report.to_json() + "\n")
    else:
        from trainlint.report import html_sweep

        stream.write(html_sweep.render(report) + "\n")


def _opened(path: Path) -> TextIO:
    try:
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None


def _write(report: Report, form: str, stream: TextIO, manner: Manner) -> None:
    if manner.statistics and form in ("text", "concise"):
        from trainlint.report import statistics

        text = statistics.render(report, show_info=manner.show_info)
    elif form == "text":
        from trainlint.report.text import print_report

        print_report(
            report, console_on(stream), show_info=manner.show_info, fail_on=manner.fail_on,
            plots=manner.plots, status=manner.status,
        )  # fmt: skip
        return
    else:
        text = rendered(report, form, show_info=manner.show_info, fail_on=manner.fail_on)
    if text:
        stream.write(text + "\n")
