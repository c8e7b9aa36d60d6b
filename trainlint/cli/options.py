"""Options that several commands have, and how their values are read."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from trainlint.cli.completing import complete_files, complete_selectors
from trainlint.errors import UsageError
from trainlint.report import FORMAT_NAMES

Command = Callable[..., Any]


def split(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """The parts of values that commas separate, of all times the option is given."""
    return tuple(part.strip() for value in values for part in value.split(",") if part.strip())


def split_patterns(
    _: click.Context, __: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    """As `split`, but a comma within braces is part of a pattern: `{a,b}/*.py`."""
    parts = (part.strip() for value in values for part in re.split(r",(?![^{}]*\})", value))
    return tuple(part for part in parts if part)


def numbers(_: click.Context, __: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    """Numbers, separated by commas. Raises `UsageError`."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UsageError(f"--values {text}: numbers, separated by commas") from None


def rule_options(command: Command) -> Command:
    """Which rules."""
    select = _selector_option(
        "--select", "Only these: codes, prefixes, names, families or ALL; by commas."
    )
    extend = _selector_option("--extend-select", "These as well.")
    ignore = _selector_option("--ignore", "Not these.")
    return select(extend(ignore(command)))


def _selector_option(name: str, text: str) -> Callable[[Command], Command]:
    return click.option(
        name,
        multiple=True,
        metavar="RULES",
        callback=split,
        help=text,
        shell_complete=complete_selectors,
    )


def report_options(command: Command) -> Command:
    """How and where to write the report."""
    form = click.option(
        "--format", "form", type=click.Choice(FORMAT_NAMES), default="text", show_default=True,
        help="How to write the report.",
    )  # fmt: skip
    output = click.option(
        "--output", multiple=True, metavar="[FORMAT:]FILE",
        help="Write the report to this file; with a FORMAT, one more in that form.",
        shell_complete=complete_files,
    )  # fmt: skip
    statistics = click.option(
        "--statistics",
        is_flag=True,
        help="Only count the findings of each rule, in the forms text and concise.",
    )
    return form(output(statistics(command)))


plots_option: Final = click.option(
    "--plots/--no-plots", default=None,
    help="Draw all pictures of a watched training, or none [where a finding needs one].",
)  # fmt: skip

show_info_option: Final = click.option("--show-info", is_flag=True, help="Show advice, too.")
config_option: Final = click.option(
    "--config", "config_path", type=click.Path(path_type=Path), help="Read this file."
)
debug_option: Final = click.option(
    "--debug", is_flag=True, help="Show tracebacks of trainlint's own errors."
)
