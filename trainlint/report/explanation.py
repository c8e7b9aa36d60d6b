"""What `trainlint explain` shows: one rule as a lesson, or several as a list.

Comes in: what the user typed. Goes out: text on a console, Markdown or JSON. The words are those of the
rule's docstring; `python -m trainlint.report.explanation` shows one. The lesson is a screen: what the
fault does, the example, when to ignore it; `full` adds how it is judged, options and references.
Imports no torch.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import msgspec

from trainlint.errors import UsageError
from trainlint.registry import all_rules, find_rule, select_rules
from trainlint.rule import Rule

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

FORMAT_NAMES: Final = ("text", "markdown", "json")
EXAMPLES: Final = ("bad", "good")
_STYLES: Final = {"error": "bold red", "warning": "bold yellow", "info": "bold cyan"}
_FENCE: Final = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
_INLINE: Final = re.compile(r"`([^`]+)`|(?<![\w*])\*([^\s*][^*]*)\*(?![\w*])")
_WIDEST_TEXT: Final = 100
_GAP: Final = 3
_NARROWEST_COLUMN: Final = 24
# First sentences of paragraphs that say how trainlint judges and not what the fault does.
_JUDGING: Final = re.compile(
    r"\b(trainlint|reported|silent|finding|counts? (from|only))\b"
    r"|^(Measured|It is (a warning|an error|advice))",
    re.IGNORECASE,
)
# Two articles, in Chinese, that the first rules were drawn from: rules cite them by letter.
_ARTICLES: Final = {
    "Seed A": "训练的常见问题与解决方法 (an article in Chinese, 2025: Common problems of training and "
    "their solutions)",
    "Seed B": "深度学习训练的常用技巧 (an article in Chinese: Common techniques for training deep "
    "networks)",
}
# The part of two examples' lines from which on they are shown as one that was changed.
_ALIKE: Final = 0.6
_MARKS: Final = {"-": "bold red", "+": "bold green"}
_IMPORTS: Final = (
    (r"\btorch\.", "import torch"),
    (r"\bF\.", "import torch.nn.functional as F"),
    (r"\bnn\.", "from torch import nn"),
)


@dataclass(frozen=True)
class Lesson:
    """A rule's documentation in its parts, and the rules that it is connected with."""

    rule: Rule

    @cached_property
    def documentation(self) -> str:
        """The rule's own, with the sources that it cites by letter written out."""
        text = self.rule.documentation
        for letter, article in _ARTICLES.items():
            text = text.replace(letter, article)
        return text

    @cached_property
    def _parts(self) -> list[str]:
        return re.split(r"^## (.+)\n", self.documentation, flags=re.MULTILINE)

    @property
    def introduction(self) -> str:
        """What stands before the first heading, without the summary."""
        return self._parts[0].removeprefix(self.rule.summary).strip()

    @property
    def effect(self) -> str:
        """The introduction's first paragraphs: what the fault does, with the formula."""
        return "\n\n".join(self._paragraphs[: self._judging_from])

    @property
    def judging(self) -> str:
        """The introduction's other paragraphs: what is measured, what counts, what is let be."""
        return "\n\n".join(self._paragraphs[self._judging_from :])

    @cached_property
    def _paragraphs(self) -> list[str]:
        return re.split(r"\n\s*\n", self.introduction)

    @property
    def _judging_from(self) -> int:
        for number, paragraph in enumerate(self._paragraphs[1:], start=1):
            first = re.split(r"(?<=[.:;])\s", paragraph, maxsplit=1)[0]
            if _JUDGING.search(first) or any(f"`{name}`" in first for name in self.rule.options):
                return number
        return len(self._paragraphs)

    @property
    def sections(self) -> dict[str, str]:
        """The text under each heading; under one that comes twice, both texts."""
        sections: dict[str, str] = {}
        for name, text in zip(self._parts[1::2], self._parts[2::2], strict=True):
            sections[name] = f"{sections.get(name, '')}\n\n{text}".strip()
        return sections

    def examples(self, kind: str) -> list[str]:
        """The `bad` or `good` examples as files that run."""
        blocks = _FENCE.findall(self.sections.get(kind.title(), ""))
        return [_with_imports(code) for _, code in blocks]

    @property
    def explains(self) -> list[Rule]:
        """The rules whose findings this one's may be the cause of."""
        return [rule for rule in all_rules() if rule.name in self.rule.explains]

    @property
    def explained_by(self) -> list[Rule]:
        """The rules that may be the cause of this one's findings."""
        return [rule for rule in all_rules() if self.rule.name in rule.explains]


def _with_imports(code: str) -> str:
    imports = [line for pattern, line in _IMPORTS if re.search(pattern, code)]
    return "\n".join(imports) + "\n\n\n" + code


def rules_named(selector: str) -> tuple[Rule, ...]:
    """The rule of this code or name; else those of a family or prefix; else those with it in their name.

    `softmax_axis` and `Softmax-Axis` are `softmax-axis`. Raises `UsageError`, with the nearest name.
    """
    wanted = selector.strip().replace("_", "-").lower()
    known = {rule.code.lower(): rule for rule in all_rules()}
    known |= {rule.name: rule for rule in all_rules()}
    if wanted in known:
        return (known[wanted],)
    for spelling in (wanted, wanted.upper()):
        try:
            return select_rules((spelling,))
        except UsageError:
            continue
    words = set(wanted.split("-"))
    found = tuple(rule for rule in all_rules() if words <= set(rule.name.split("-")))
    if not found:
        find_rule(wanted)  # raises, and says what is near
    return found


def example(rules: Sequence[Rule], kind: str) -> str:
    """The first `bad` or `good` example of the one rule, as a file that runs. Raises `UsageError`."""
    if len(rules) > 1:
        names = ", ".join(rule.name for rule in rules)
        raise UsageError(f"an example is one rule's; these are {names}")
    return Lesson(rules[0]).examples(kind)[0]


# ---------------------------------------------------------------------- as data


def as_data(rule: Rule) -> dict[str, Any]:
    """One rule for programs."""
    lesson = Lesson(rule)
    return {
        "code": rule.code, "name": rule.name, "family": rule.family,
        "severity": str(rule.severity), "since": rule.since, "stages": list(rule.stages),
        "summary": rule.summary, "introduction": lesson.introduction, "sections": lesson.sections,
        "bad": lesson.examples("bad"), "good": lesson.examples("good"),
        "options": dict(rule.options),
        "explains": [other.name for other in lesson.explains],
        "explained_by": [other.name for other in lesson.explained_by],
    }  # fmt: skip


def as_json(rules: Sequence[Rule]) -> str:
    """An object for one rule, a list for several."""
    rows = [as_data(rule) for rule in rules]
    encoded = msgspec.json.encode(rows[0] if len(rows) == 1 else rows)
    return msgspec.json.format(encoded, indent=2).decode()


def as_markdown(rules: Sequence[Rule]) -> str:
    """The page of one rule, or a table of several."""
    if len(rules) > 1:
        rows = ["| code | name | severity | what it says |", "|---|---|---|---|"]
        rows += [
            f"| {rule.code} | {rule.name} | {rule.severity} | {rule.summary} |" for rule in rules
        ]
        return "\n".join(rows)
    rule, lesson = rules[0], Lesson(rules[0])
    facts = [f"family `{rule.family}`", f"severity {rule.severity}", f"since {rule.since}"]
    lines = [f"# {rule.name} ({rule.code})", "", " · ".join(facts), "", lesson.documentation]
    if rule.options:
        lines += ["", "## Options", f"In `[tool.trainlint.rules.{rule.name}]`:", ""]
        lines += [f"- `{name}`, default {value}" for name, value in _options(rule)]
    related = [f"- {how} {other.name} ({other.code})" for how, other in _related(lesson)]
    return "\n".join([*lines, *(["", "## Related", *related] if related else [])])


def _options(rule: Rule) -> Iterator[tuple[str, str]]:
    for name, value in rule.options.items():
        yield name.replace("_", "-"), msgspec.json.encode(value).decode()


def _related(lesson: Lesson) -> Iterator[tuple[str, Rule]]:
    for other in lesson.explains:
        yield "explains", other
    for other in lesson.explained_by:
        yield "explained by", other


# ---------------------------------------------------------------------- for people


def print_rules(rules: Sequence[Rule], console: Console, *, full: bool = False) -> None:
    """Write one rule as a lesson, of one screen if it is not to be `full`; several as a list."""
    if len(rules) == 1:
        _Page(rules[0], console, full=full).print()
    else:
        _print_list(rules, console)


def print_table(rules: Sequence[Rule], console: Console) -> None:
    """A line a rule, in columns; on a terminal wrapped within the last of them."""
    from rich.text import Text

    longest = max((len(rule.name) for rule in rules), default=0)
    for rule in rules:
        head = f"{rule.code}  {rule.severity:<8} {rule.name:<{longest}}  "
        room = console.width - len(head)
        if not console.is_terminal or room < _NARROWEST_COLUMN:
            console.print(Text(head + rule.summary), soft_wrap=True)
            continue
        for line in Text(rule.summary).wrap(console, room):
            line.rstrip()
            console.print(Text(head + line.plain), soft_wrap=True)
            head = " " * len(head)


def _print_list(rules: Sequence[Rule], console: Console) -> None:
    from rich.text import Text

    for family in dict.fromkeys(rule.family for rule in rules):
        own = [rule for rule in rules if rule.family == family]
        console.print(Text(family, style="bold underline"))
        for rule in own:
            head = Text("  ")
            head.append(rule.code, style="bold")
            head.append(f"  {rule.name}", style="bold")
            head.append(f"  {rule.severity}", style=_STYLES[rule.severity])
            _print_text(head, console, indent="          ", first="")
            _print_text(_marked(rule.summary, console), console, indent="          ")
        console.print()
    _print_text(Text(f"trainlint explain {rules[0].name} tells more", style="dim"), console)


class _Page:
    """One rule on the console, from what it says to where it is written."""

    def __init__(self, rule: Rule, console: Console, *, full: bool) -> None:
        self._rule = rule
        self._full = full
        self._lesson = Lesson(rule)
        self._console = console

    def print(self) -> None:
        """Write it."""
        self._title()
        sections = self._lesson.sections
        self._prose(self._lesson.effect)
        self._examples()
        self._section("Figures", sections.get("Figures", ""))
        self._section("When to ignore it", sections.get("When to ignore it", ""))
        if self._full:
            self._section("How it is judged", self._lesson.judging)
            self._section("Fix safety", sections.get("Fix safety", ""))
            self._options()
            self._connections()
            self._section("References", sections.get("References", ""))
        self._footer()

    def _section(self, heading: str, text: str) -> None:
        if text:
            self._heading(heading)
            self._prose(text, indent="  ")

    def _title(self) -> None:
        from rich.text import Text

        rule = self._rule
        title = Text(f"{rule.code} {rule.name}", style="bold")
        title.append(f"  {rule.severity}", style=_STYLES[rule.severity])
        facts = [rule.family, *rule.stages, f"since {rule.since}"]
        title.append("".join(f" · {fact}" for fact in facts), style="not bold")
        _print_text(title, self._console)
        _print_text(_marked(rule.summary, self._console, "bold"), self._console)
        self._console.print()

    def _heading(self, text: str) -> None:
        self._console.print()
        for row in self._heading_rows(text):
            self._console.print(row, soft_wrap=True)

    def _heading_rows(self, text: str, colour: str = "") -> list[Text]:
        """Underlined by a style, or by a row of its own where there are no styles."""
        from rich.text import Text

        rows = [Text(text, style=f"bold underline {colour}")]
        return [*rows, Text("─" * len(text))] if _is_plain(self._console) else rows

    def _prose(self, text: str, indent: str = "") -> None:
        """Paragraphs and lists."""
        for number, block in enumerate(re.split(r"\n\s*\n", text)):
            if number:
                self._console.print()
            for item in re.split(r"\n(?=[-*] )", block):
                body = " ".join(item.split())
                is_item = body.startswith(("- ", "* "))
                shown = _marked(body[2:] if is_item else body, self._console)
                first = f"{indent}• " if is_item else indent
                _print_text(shown, self._console, indent=" " * len(first), first=first)

    # ------------------------------------------------------------------ examples

    def _examples(self) -> None:
        """Bad and Good beside each other where there is room, else as one listing if they differ little."""
        bad, good = ([_lines(text) for text in self._lesson.examples(kind)] for kind in EXAMPLES)
        for pair in zip(bad, good, strict=False):
            self._example_pair(*pair)
        for kind, more in (("bad", bad[len(good) :]), ("good", good[len(bad) :])):
            for lines in more:
                self._heading(f"Another {kind} one")
                self._listing(self._code([(" ", line) for line in lines]))

    def _example_pair(self, bad: list[str], good: list[str]) -> None:
        listing = _merged(bad, good)
        bad_rows = self._code([row for row in listing if row[0] != "+"])
        good_rows = self._code([row for row in listing if row[0] != "-"])
        widths = [max(row.cell_len for row in rows) for rows in (bad_rows, good_rows)]
        if widths[0] + _GAP + widths[1] <= self._console.width:
            self._beside(bad_rows, good_rows, widths[0] + _GAP)
        elif any(mark == " " for mark, _ in listing):
            self._heading("Bad, the lines with -, and good, those with +")
            self._listing(self._code(listing))
        else:
            for heading, rows in (("Bad", bad_rows), ("Good", good_rows)):
                self._heading(heading)
                self._listing(rows)

    def _beside(self, bad: list[Text], good: list[Text], width: int) -> None:
        from rich.text import Text

        columns = [
            [*self._heading_rows("Bad", "red"), *bad],
            [*self._heading_rows("Good", "green"), *good],
        ]
        self._console.print()
        for row in range(max(map(len, columns))):
            first, second = (column[row] if row < len(column) else Text() for column in columns)
            line = Text().append_text(first)
            line.append(" " * (width - first.cell_len))
            self._listing([line.append_text(second)])

    def _listing(self, rows: list[Text]) -> None:
        for row in rows:
            row.rstrip()
            self._console.print(row, soft_wrap=True)

    def _code(self, rows: list[tuple[str, str]]) -> list[Text]:
        """Lines of code behind their marks, which are not part of the code."""
        from rich.syntax import Syntax
        from rich.text import Text

        painter = Syntax("", "python", theme="ansi_dark", background_color="default")
        painted = painter.highlight("\n".join(line for _, line in rows))
        shown = []
        for (mark, _), line in zip(rows, painted.split("\n", allow_blank=True), strict=False):
            row = Text()
            row.append(f"{mark} ", style=_MARKS.get(mark, ""))
            shown.append(row.append_text(line))
        return shown

    # ------------------------------------------------------------------ the rest

    def _options(self) -> None:
        from rich.text import Text

        if not self._rule.options:
            return
        self._heading("Options")
        table = f"[tool.trainlint.rules.{self._rule.name}]"
        _print_text(Text(f"in pyproject.toml, with their defaults:\n{table}"), self._console, "  ")
        for name, value in _options(self._rule):
            _print_text(Text(f"{name} = {value}"), self._console, "  ")

    def _connections(self) -> None:
        from rich.text import Text

        related = list(_related(self._lesson))
        if not related:
            return
        self._heading("Related")
        for how, other in related:
            line = Text(f"{how} ")
            line.append(f"{other.name} {other.code}", style="bold")
            line.append(f": {other.summary}")
            _print_text(line, self._console, "    ", first="  ")

    def _footer(self) -> None:
        from rich.text import Text

        rule = self._rule
        rows = [f"# trainlint: ignore[{rule.code}] at a line silences it there"]
        if self._full:
            rows = [
                f"trainlint explain {rule.code} --example bad > bad.py; trainlint check bad.py",
                f"trainlint explain {rule.family} lists the rules beside it",
                *rows,
            ]
        else:
            more = "how it is judged, options, related rules, references"
            rows = [f"trainlint explain {rule.code} --full: {more}", *rows]
        self._console.print()
        for row in rows:
            self._console.print(Text(row, style="dim"), soft_wrap=True)


def _lines(example: str) -> list[str]:
    """The lines of an example, with one empty line where there are two."""
    return example.rstrip("\n").replace("\n\n\n", "\n\n").split("\n")


def _merged(bad: list[str], good: list[str]) -> list[tuple[str, str]]:
    """Both as one listing: `-` and `+` before the lines that differ; before all if most of them do."""
    matcher = difflib.SequenceMatcher(a=bad, b=good, autojunk=False)
    if matcher.ratio() < _ALIKE:
        return [("-", line) for line in bad] + [("+", line) for line in good]
    rows: list[tuple[str, str]] = []
    for tag, start, end, other, other_end in matcher.get_opcodes():
        if tag == "equal":
            rows += [(" ", line) for line in bad[start:end]]
        else:
            rows += [("-", line) for line in bad[start:end]]
            rows += [("+", line) for line in good[other:other_end]]
    return rows


def _is_plain(console: Console) -> bool:
    """Whether there are no styles, so that signs must do their work."""
    return not console.is_terminal or console.no_color


def _marked(text: str, console: Console, style: str = "") -> Text:
    """`code` and *stress* as styles, or with their marks where there are no styles."""
    from rich.text import Text

    if _is_plain(console):
        return Text(text, style=style)
    shown, end = Text(style=style), 0
    for match in _INLINE.finditer(text):
        shown.append(text[end : match.start()])
        code, stress = match.groups()
        shown.append(code or stress, style="cyan" if code else "italic")
        end = match.end()
    return shown.append(text[end:])


def _print_text(text: Text, console: Console, indent: str = "", first: str | None = None) -> None:
    """Wrapped, with its rows indented and no blanks behind them."""
    width = min(console.width, _WIDEST_TEXT) - len(indent)
    lead = indent if first is None else first
    for line in text.wrap(console, max(width, 20)):
        line.rstrip()
        row = text.blank_copy(lead)
        console.print(row.append_text(line), soft_wrap=True)
        lead = indent


def _demo() -> None:
    from rich.console import Console

    print_rules(all_rules()[:1], Console(highlight=False))


if __name__ == "__main__":
    _demo()
