"""The report in its forms, one module each: a function from a `Report` to text."""

from __future__ import annotations

from typing import Final, Protocol

from trainlint.records import Report


class Form(Protocol):
    """Writes a report as text. `show_info` is for forms that people read."""

    def __call__(self, report: Report, *, show_info: bool = False) -> str:
        """The report as text."""


def _json(report: Report, *, show_info: bool = False) -> str:  # noqa: ARG001  programs get it all
    return report.to_json()


def _concise(report: Report, *, show_info: bool = False) -> str:
    from trainlint.report.concise import render

    return render(report, show_info=show_info)


# `text` is written to a console, see `trainlint.report.text`.
FORMATS: Final[dict[str, Form]] = {"json": _json, "concise": _concise}
FORMAT_NAMES: Final = ("text", *FORMATS)
