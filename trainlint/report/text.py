"""The report for people: what to do first, with source excerpts, evidence and fixes as diffs.

`python -m trainlint.report.text` shows it on a made-up report.
"""

from __future__ import annotations

import io
import itertools
import textwrap
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from types import NoneType
from typing import Any, Final

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from trainlint.fixes.edit import Fix
from trainlint.fixes.source import SourceText
from trainlint.records import Report, ReportedFinding, Series, TargetResult
from trainlint.registry import all_rules
from trainlint.report import plots as drawing
from trainlint.report import remedies
from trainlint.report.fixes import combination_of, diff_of, label_of, outcome_of, reasons, title_of
from trainlint.rule import PICTURES

_STYLES: Final = {"error": "bold red", "warning": "bold yellow", "info": "bold cyan"}
_CONTEXT_ROWS: Final = 1
_LONGEST_LIST: Final = 4
_MOST_OTHERS: Final = 2
_MOST_OF_OTHERS: Final = 6  # changed lines of a second fix: the first is what to do
_MESSAGES: Final = "messages"  # of findings that `trainlint.diagnosis` merged into one
_LEAST_CODE: Final = 20  # columns that a line of code gets however narrow the terminal is
_BEFORE_PLACE: Final = 8  # columns of the line that stay in front of a place far to the right
_BY_HAND: Final = "apply fixes by hand; `trainlint check --fix` writes those that a check finds too"
_NO_BREAK: Final = "\N{NO-BREAK SPACE}"


def print_report(
    report: Report,
    console: Console,
    *,
    show_info: bool = False,
    fail_on: str = "error",
    plots: bool | None = None,
    status: int | None = None,
) -> None:
    """Write the report. Colours and width are the console's; `status` is the exit status that is named.

    Without it that of `fail_on` is, and none of a training that was watched: the program has its own.

    Below a finding stands the picture that it needs. If `plots` is True, all pictures of a watched training
    stand at the end; if it is False, there are none.
    """
    shown = [finding for finding in report.findings if show_info or finding.severity != "info"]
    gallery = _Gallery(report, shown, console, plots=plots)
    for number, finding in enumerate(shown, start=1):
        _print_finding(number, finding, console, gallery)
        console.print()
    for target in report.targets:
        if target.status == "ok":
            _print_repair(target, console)
    for target in report.targets:
        if target.status == "ok":
            _print_target(target, console, drawn=plots is not False)
    if _is_of_a_watch(report) and any(fix.edits for each in shown for fix in each.fixes):
        console.print(_wrapped(_BY_HAND, 2, console.width), style="dim")
    for target in report.targets:
        if target.status == "skipped":
            text = f"skipped {target.target}: {target.reason}"
            console.print(_wrapped(text, 2, console.width), style="dim")
    if plots:
        gallery.print_all()
    if report.targets:
        console.print()
    if status is None and not _is_of_a_watch(report):
        status = report.exit_status(fail_on)
    _print_summary(report, shown, console, show_info=show_info, status=status)


def _print_repair(target: TargetResult, console: Console) -> None:
    """Which fixes help together; a single one stands with its finding."""
    if target.repair is not None and len(target.repair.fixes) > 1:
        text = combination_of(target.repair)
        console.print(_wrapped(text, 0, console.width), style="green")
        console.print()


def _print_target(target: TargetResult, console: Console, *, drawn: bool = True) -> None:
    facts = [] if target.watched is None else [target.watched]
    if target.inputs is not None:
        done = ", ".join(target.stages)
        facts = [f"input {target.inputs}", f"{target.operations} ops", ": ".join([done, *facts])]
    seconds = f"({target.seconds:.1f}{_NO_BREAK}s)"
    header = _wrapped(" · ".join([target.target, *facts]) + f" {seconds}", 0, console.width)
    if header.plain.startswith(target.target):
        header.stylize("bold", 0, len(target.target))
    console.print(header, soft_wrap=True)
    for note in target.notes:
        console.print(_wrapped(note, 2, console.width), style="dim")
    if target.not_measurable:
        text = "not measurable: " + "; ".join(target.not_measurable)
        console.print(_wrapped(text, 2, console.width), style="dim")
    if target.cross_validation is not None:
        from trainlint.report.folds import print_folds

        print_folds(target.cross_validation, console, drawn=drawn)


def _print_finding(
    number: int, finding: ReportedFinding, console: Console, gallery: _Gallery
) -> None:
    head = Text()
    head.append(f"{number}. [{finding.severity}]", style=_STYLES[finding.severity])
    head.append(f" {finding.name} {finding.code}", style="bold")
    head.append(f"  {place_of(finding)}", style="cyan")
    console.print(head)
    console.print(_wrapped(finding.message, 2, console.width))
    for likewise in _others(finding):
        console.print(_wrapped(likewise, 2, console.width), style="dim")
    for row in _excerpt(finding, console.width):
        console.print(row, no_wrap=True, overflow="ellipsis", crop=True)
    evidence = evidence_of(finding)
    if evidence:
        console.print(_wrapped(evidence, 2, console.width), style="dim")
    for place, fix in enumerate(finding.fixes):
        _print_fix(fix, finding.fixes[:place], console)
    gallery.print_for(finding)
    for symptom in finding.symptoms:
        text = f"so also: {symptom.name} {symptom.code} at {place_of(symptom)}: {symptom.message}"
        console.print(_wrapped(text, 2, console.width), style="dim")


def place_of(finding: ReportedFinding) -> str:
    """`net.py:14:20`, or the module of a model without source."""
    if finding.filename is None or finding.location is None:
        return finding.module or finding.target
    return f"{finding.filename}:{finding.location.row}:{finding.location.column}"


def _excerpt(finding: ReportedFinding, width: int) -> list[Text]:
    """The line of the finding with the place underlined, and the line before it."""
    text = None if finding.filename is None else SourceText.read(finding.filename)
    if text is None or finding.location is None:
        return []
    row = finding.location.row
    if not 0 < row <= len(text.lines):
        return []
    rows = range(max(1, row - _CONTEXT_ROWS), row + 1)
    digits = len(str(row))
    indent = min(
        (len(line) - len(line.lstrip()) for r in rows if (line := text.lines[r - 1]).strip()),
        default=0,
    )
    start, stop = _marked_cells(finding, text.lines[row - 1], indent)
    cut = _cells_to_cut(start, stop, width - digits - len("  ▸  │ "))
    shown: list[Text] = []
    for current in rows:
        mark = "▸" if current == row else " "
        line = text.lines[current - 1][indent:].expandtabs(4)
        if current == row:
            line = _without_cells(line, cut)
        style = "" if current == row else "dim"
        shown.append(Text(f"  {mark} {current:>{digits}} │ {line}", style=style))
    if stop > start:
        marks = Text(f"    {' ' * digits} │ {' ' * (start - cut)}", style="dim")
        marks.append("^" * (stop - start), style=_STYLES[finding.severity])
        shown.append(marks)
    return shown


def _marked_cells(finding: ReportedFinding, line: str, indent: int) -> tuple[int, int]:
    """From which cell of the terminal to which the place goes: 层 takes two, an accent none."""
    place, end = finding.location, finding.end_location
    if place is None or end is None:
        return 0, 0
    stop = end.column if end.row == place.row else len(line) + 1
    start, stop = (
        cell_len(line[indent : column - 1].expandtabs(4)) for column in (place.column, stop)
    )
    return start, stop


def _cells_to_cut(start: int, stop: int, room: int) -> int:
    """How much of the line's beginning goes, so that a place far to the right is seen."""
    if stop <= room:
        return 0
    return max(0, min(start - _BEFORE_PLACE, stop - room + 1))


def _without_cells(line: str, cut: int) -> str:
    """The line without its first cells, `…` in place of the last of them."""
    if not cut:
        return line
    while line and cut >= 0:
        cut -= cell_len(line[0])
        line = line[1:]
    return "…" + " " * (-cut - 1) + line


def _others(finding: ReportedFinding) -> Iterator[str]:
    """What else is said of a line that built several modules: the first few."""
    messages = list(dict.fromkeys(finding.evidence.get(_MESSAGES, ())))
    others = messages[1:]
    for message in others[:_MOST_OTHERS]:
        yield f"likewise: {message}"
    if len(others) > _MOST_OTHERS:
        yield f"and {len(others) - _MOST_OTHERS} more"


def evidence_of(finding: ReportedFinding) -> str:
    """The figures of a finding on one line, but for those that are drawn."""
    return " · ".join(f"{name} {value}" for name, value in evidence_items(finding))


def evidence_items(finding: ReportedFinding) -> Iterator[tuple[str, str]]:
    """The figures of a finding as words, but for those that are drawn."""
    for name, value in finding.evidence.items():
        if name != _MESSAGES and not (_is_profile(value) or _is_table(value) or _is_empty(value)):
            yield name.replace("_", " "), _figure(value)


def profile_of(finding: ReportedFinding) -> tuple[str, list[tuple[str, float | None]]] | None:
    """The figures by layer that a finding carries, or else one of its symptoms, with their name."""
    parts = (finding, *finding.symptoms)
    for name, value in itertools.chain.from_iterable(part.evidence.items() for part in parts):
        if _is_profile(value):
            return name, [(label, number) for label, number in value]
    return None


def _is_empty(value: Any) -> bool:
    """What says nothing to a reader; the JSON has it."""
    return value is None or (isinstance(value, (str, list, tuple, dict)) and not value)


def _is_table(value: Any) -> bool:
    """What is drawn, or too much for a line: named figures, or rows of such."""
    return isinstance(value, dict) or (
        isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)
    )


def _is_profile(value: Any) -> bool:
    """Figures by layer: a list of [label, number]."""
    return (
        isinstance(value, list)
        and len(value) > 1
        and all(
            isinstance(pair, (list, tuple))
            and len(pair) == 2
            and isinstance(pair[0], str)
            and isinstance(pair[1], (int, float, NoneType))
            for pair in value
        )
    )


class _Gallery:
    """The pictures of a report, each drawn once."""

    def __init__(
        self,
        report: Report,
        shown: Sequence[ReportedFinding],
        console: Console,
        *,
        plots: bool | None,
    ) -> None:
        self._console = console
        self._plots = plots
        self._signs = drawing.signs_for(console.encoding)
        self._shows = {rule.code: rule.shows for rule in all_rules()} if shown else {}
        self._targets = [target for target in report.targets if target.status == "ok"]
        self._series = {target.target: target.series for target in self._targets}
        self._drawn: set[tuple[str, str]] = set()
        # By target: the layers that findings name, and the pictures that they need.
        self._named: dict[str, set[str]] = defaultdict(set)
        self._accused: dict[str, set[str]] = defaultdict(set)
        for finding in shown:
            for part in (finding, *finding.symptoms):
                self._named[finding.target] |= {part.module, *part.evidence.get("modules", ())}
                self._accused[finding.target].add(self._shows.get(part.code, ""))

    def print_for(self, finding: ReportedFinding) -> None:
        """Below a finding: the figures by layer that it carries, or else the picture of its rule.

        Its own, or a symptom's. Below that, what was tried against it.
        """
        if self._plots is False:
            return
        self._print_cause(finding)
        tried = finding.evidence.get("remedies")
        if isinstance(tried, list) and tried:
            self._print(remedies.picture(tried, self._console.width, self._signs))

    def _print_cause(self, finding: ReportedFinding) -> None:
        profile = profile_of(finding)
        if profile is not None:
            self._print(drawing.profile(*profile, self._console.width, self._signs))
            return
        parts = (finding, *finding.symptoms)
        series = self._series.get(finding.target)
        kind = next((shows for part in parts if (shows := self._shows.get(part.code))), None)
        if series is None or kind is None or self._plots or (finding.target, kind) in self._drawn:
            return
        self._drawn.add((finding.target, kind))
        model = finding.evidence.get("model")
        self._print_series(
            finding.target, series, [kind], model if isinstance(model, str) else None
        )

    def print_all(self) -> None:
        """At the end: all pictures of all targets."""
        for target in self._targets:
            self._console.print()
            if target.series is None:
                text = f"no plots of {target.target}: no training of it was watched"
                self._console.print(_wrapped(text, 0, self._console.width), style="dim")
                continue
            title = _wrapped(f"plots of {target.target}", 0, self._console.width)
            self._console.print(title, style="bold")
            self._print_series(target.target, target.series, PICTURES, None)

    def _print_series(
        self, target: str, series: Series, kinds: Collection[str], model: str | None
    ) -> None:
        pictures = drawing.pictures(
            series, self._console.width, self._signs, kinds=kinds, model=model,
            named=self._named[target], accused=self._accused[target],
        )  # fmt: skip
        for number, picture in enumerate(pictures):
            if number:
                self._console.print()
            self._print(picture)

    def _print(self, picture: drawing.Picture) -> None:
        self._console.print(_wrapped(picture.title, 2, self._console.width), style="dim")
        for row in picture.rows:
            self._console.print(row, no_wrap=True, overflow="ignore", crop=False)


def _figure(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list):
        value = [_repeated(part, len(list(run))) for part, run in itertools.groupby(value)]
        parts = [_figure(part) for part in value[:_LONGEST_LIST]]
        more = f" and {len(value) - _LONGEST_LIST} more" if len(value) > _LONGEST_LIST else ""
        return ", ".join(parts) + more
    return str(value)


def _repeated(part: Any, times: int) -> Any:
    return part if times == 1 else f"{_figure(part)} ×{times}"


def _print_fix(fix: Fix, before: Sequence[Fix], console: Console) -> None:
    is_first = not before
    label = label_of(fix, is_first=is_first)
    console.print(_wrapped(f"{label}: {title_of(fix)}", 2, console.width), style="green")
    outcome = outcome_of(fix)
    if outcome:
        style = "bold green" if fix.verified is not None else "dim"
        console.print(_wrapped(outcome, 4, console.width), style=style)
    for reason in reasons(fix, before):
        console.print(_wrapped(reason, 4, console.width), style="dim")
    for row in diff_of(fix.edits, None if is_first else _MOST_OF_OTHERS):
        style = "red" if row.startswith("-") else "green"
        for part in _diff_rows(row, console.width):
            console.print(Text(part, style=style), soft_wrap=True)


def _diff_rows(row: str, width: int) -> Iterator[str]:
    """A line of a diff, wrapped: an edit must be readable to its end."""
    head, bar, code = row.partition("│ ")
    if not bar:  # how many more there are
        yield f"    {row}"
        return
    lead = f"    {head}{bar}"
    room = max(width - cell_len(lead), _LEAST_CODE)
    for line in Text(code).wrap(Console(width=room, file=io.StringIO()), room, tab_size=4):
        line.rstrip()
        yield f"{lead}{line.plain}"
        lead = f"    {row[0]}{' ' * (len(head) - 1)}{bar}"


def _print_summary(
    report: Report,
    shown: Sequence[ReportedFinding],
    console: Console,
    *,
    show_info: bool,
    status: int | None,
) -> None:
    counts = [_counted(report.count(severity), severity) for severity in ("error", "warning")]
    advice = report.count("info")
    if advice:
        counts.append(f"{advice} info" + ("" if show_info else " (--show-info)"))
    checked = sum(target.status == "ok" for target in report.targets)
    failed = sum(target.status == "error" for target in report.targets)
    if _is_of_a_watch(report):
        steps = ((target.watched or "").partition(";")[0] for target in report.targets)
        parts = [", ".join(counts), *steps]
    else:
        parts = [", ".join(counts) + f" in {_counted(checked, 'model')}"]
    if failed:
        parts.append(f"{_counted(failed, 'target')} could not be checked")
    if shown:
        codes = list(dict.fromkeys(finding.code for finding in shown))
        parts.append(f"trainlint explain {codes[0]}")
    if status is not None:
        parts.append(f"exit{_NO_BREAK}{status}")
    style = "bold" if shown or failed else "bold green"
    console.print(_wrapped(" · ".join(parts), 0, console.width), style=style)


def _is_of_a_watch(report: Report) -> bool:
    """Whether a training was watched, and nothing checked: the program's exit status is its own."""
    targets = report.targets
    return bool(targets) and all(t.inputs is None and t.watched is not None for t in targets)


def _counted(count: int, word: str) -> str:
    return f"{count} {word}" + ("" if count == 1 else "s")


def _wrapped(text: str, indent: int, width: int) -> Text:
    """Wrapped with all rows indented, and without the trailing blanks that rich's padding leaves."""
    margin = " " * indent
    filled = textwrap.fill(
        text, width, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False
    )
    return Text(filled.replace(_NO_BREAK, " "))


def as_text(
    report: Report, width: int = 100, *, show_info: bool = False, plots: bool | None = None
) -> str:
    """What the terminal shows, without colours, with what stderr gets there: a report's `str`."""
    stream = io.StringIO()
    for target in report.targets:
        if target.status == "error":
            stream.write(f"error: {target.target}: {target.reason}\n")
    console = Console(file=stream, width=width, color_system=None, highlight=False)
    print_report(report, console, show_info=show_info, plots=plots)
    return stream.getvalue().rstrip("\n")


def _demo() -> None:
    finding = ReportedFinding(
        code="NRM001", name="norm-features-mismatch", severity="error", confidence="certain",
        message="BatchNorm2d(32) receives 64 channels from conv2", stage="static",
        target="net.py::Net", module="bn2", filename=None, location=None, end_location=None,
        evidence={"num_features": 32, "received": 64},
        fixes=[Fix("BatchNorm2d(32) → BatchNorm2d(64)")],
    )  # fmt: skip
    target = TargetResult("net.py::Net", "ok", stages=["static"], inputs="(2, 3, 32, 32) float32")
    print_report(Report([finding], [target]), Console())


if __name__ == "__main__":
    _demo()
