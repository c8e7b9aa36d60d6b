"""The report in its forms, one module each: a function from a `Report` to text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from trainlint.records import Report


def _json(report: Report) -> str:
    return report.to_json()


def _concise(report: Report) -> str:
    from trainlint.report.concise import render

    return render(report)


# `text` is written to a console, see `trainlint.report.text`.
FORMATS: Final[dict[str, Callable[[Report], str]]] = {"json": _json, "concise": _concise}
FORMAT_NAMES: Final = ("text", *FORMATS)
