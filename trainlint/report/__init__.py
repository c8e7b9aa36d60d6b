"""The report in its forms: each loaded when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trainlint.choices import known_word

if TYPE_CHECKING:
    from trainlint.records import Report

# `text` is written to a console, see `trainlint.report.text`.
FORMAT_NAMES: Final = (
    "text", "concise", "json", "sarif", "github", "gitlab", "junit", "markdown", "html",
)  # fmt: skip
SWEEP_FORMAT_NAMES: Final = ("text", "json", "html")


def rendered(report: Report, form: str, *, show_info: bool = False, fail_on: str = "error") -> str:
    """The report in a form other than `text`. Raises `ValueError` for another name.

    `show_info` adds advice where people read it; `json` and `sarif` have all. `fail_on` is the least
    severity that fails the run, for forms that know failures.
    """
    known_word(form, FORMAT_NAMES[1:], "form")
    if form == "json":
        return report.to_json()
    if form == "concise":
        from trainlint.report import concise

        return concise.render(report, show_info=show_info)
    if form == "sarif":
        from trainlint.report import sarif

        return sarif.render(report)
    if form in ("github", "gitlab"):
        from trainlint.report import code_hosts

        write = code_hosts.github if form == "github" else code_hosts.gitlab
        return write(report, show_info=show_info)
    if form == "junit":
        from trainlint.report import junit

        return junit.render(report, show_info=show_info, fail_on=fail_on)
    if form == "markdown":
        from trainlint.report import markdown

        return markdown.render(report, show_info=show_info)
    from trainlint.report import html

    return html.render(report)
