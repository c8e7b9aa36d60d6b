"""What the Tab key offers: rules, targets, files. Nothing here imports torch, a rule or the analysis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import click
    from click.shell_completion import CompletionItem

VARIABLE: Final = "_TRAINLINT_COMPLETE"
# What bash takes for the end of a word, and we do not.
_BREAKS: Final = ":="


def complete_rules(
    _: click.Context, __: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Families, codes and names of rules that begin like this."""
    return _offered([*_families(), *_rules()], incomplete)


def complete_selectors(
    _: click.Context, __: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """The same for the last of several that commas separate, without those that are there; and `ALL`."""
    before, comma, last = incomplete.rpartition(",")
    known = before.split(",")
    selectors = [("ALL", "all rules"), *_families(), *_rules()]
    return _offered([each for each in selectors if each[0] not in known], last, before + comma)


def complete_targets(
    _: click.Context, __: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Files, and behind `file.py::` the models that its syntax shows."""
    from click.shell_completion import CompletionItem

    name, separator, begun = incomplete.partition("::")
    if not separator:
        return [CompletionItem(incomplete, type="file")]
    return _offered(_models(Path(name)), begun, name + separator)


def complete_files(
    _: click.Context, __: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Files of any kind."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def _offered(
    values: Sequence[tuple[str, str]], begun: str, before: str = ""
) -> list[CompletionItem[str]]:
    from click.shell_completion import CompletionItem

    return [
        CompletionItem(before + value, help=said)
        for value, said in values
        if value.startswith(begun)
    ]


def _rules() -> Iterator[tuple[str, str]]:
    from trainlint.catalogue import declared_rules

    rules = declared_rules()
    yield from ((rule.code, f"{rule.name}: {rule.summary}") for rule in rules)
    yield from ((rule.name, f"{rule.code}: {rule.summary}") for rule in rules)


def _families() -> list[tuple[str, str]]:
    from trainlint.catalogue import declared_rules

    families = [rule.family for rule in declared_rules()]
    return [(name, f"{families.count(name)} rules") for name in sorted(set(families))]


def _models(path: Path) -> list[tuple[str, str]]:
    from trainlint.fixes.text import SourceText
    from trainlint.targets.discovery import discover

    text = SourceText.read(str(path)) if path.is_file() else None
    if text is None or text.tree is None:
        return []
    candidates = discover(text).candidates
    return [(each.name, f"{each.kind}, line {each.row}") for each in candidates if each.likely]


def register() -> None:
    """Let bash complete what holds a colon or an equals sign, at which it breaks words."""
    from click.shell_completion import BashComplete, add_completion_class

    class Bash(BashComplete):
        _prefix = ""

        def get_completion_args(self) -> tuple[list[str], str]:
            args, last = super().get_completion_args()
            words, self._prefix = _rejoined([*args, last])
            return words[:-1], words[-1]

        def format_completion(self, item: CompletionItem[str]) -> str:
            item.value = item.value.removeprefix(self._prefix)
            return super().format_completion(item)

    add_completion_class(Bash)


def _rejoined(words: Sequence[str]) -> tuple[list[str], str]:
    """The words as they were typed, and how much of the last one bash takes for earlier words."""
    whole: list[str] = []
    prefix = ""
    is_open = False
    for word in words:
        is_break = word != "" and not word.strip(_BREAKS)
        if whole and (is_break or is_open):
            prefix = whole[-1] + word if is_break else whole[-1]
            whole[-1] += word
        else:
            prefix = ""
            whole.append(word)
        is_open = is_break
    return whole, prefix
