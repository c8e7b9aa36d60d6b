"""Which rules there are, and which of them were asked for. Imports no torch."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from trainlint.catalogue import ENTRY_POINT_GROUP
from trainlint.choices import words
from trainlint.errors import ConfigError, UsageError
from trainlint.patterns import matches
from trainlint.rule import Rule


@lru_cache(maxsize=1)
def all_rules() -> tuple[Rule, ...]:
    """Every rule of every installed rule pack, by code.

    A pack is a package named by an entry point of the group `trainlint.rules`; each of its modules
    may define rules. Raises `ConfigError` where a pack cannot be imported or two rules share a code or
    name.
    """
    found: dict[str, Rule] = {}
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            rules = list(_rules_of(entry_point.load()))
        except Exception as error:
            raise ConfigError(
                f"rule pack {entry_point.value!r} cannot be imported: {error}"
            ) from error
        for rule in rules:
            other = found.get(rule.code)
            if other is not None and other.filename != rule.filename:
                raise ConfigError(
                    f"{rule.code} is defined by both {other.filename} and {rule.filename}"
                )
            found[rule.code] = rule
    names = [rule.name for rule in found.values()]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two rules are named {name}")
    return tuple(found[code] for code in sorted(found))


def _rules_of(package: ModuleType) -> Iterable[Rule]:
    modules = [package]
    if hasattr(package, "__path__"):
        modules += [
            importlib.import_module(info.name)
            for info in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
        ]
    for module in modules:
        for value in vars(module).values():
            rule = getattr(value, "trainlint_rule", None)
            if isinstance(rule, Rule) and value.__module__ == module.__name__:
                yield rule


def names_of(rule: Rule) -> frozenset[str]:
    """Every way to name this one rule in a suppression: its code and its name."""
    return frozenset({rule.code, rule.name})


def find_rule(selector: str) -> Rule:
    """The rule of this code or name. Raises `UsageError`, with the nearest name."""
    for rule in all_rules():
        if selector in (rule.code, rule.name) or selector.upper() == rule.code:
            return rule
    raise UsageError(_unknown(selector))


def _selectors_of(rule: Rule) -> set[str]:
    prefixes = {rule.code[:length] for length in range(1, len(rule.code))}
    return {rule.code, rule.name, rule.family, *prefixes}


def _specificity(selectors: Collection[str], rule: Rule) -> int:
    """How closely one of them names the rule: 0 not at all, ALL 1, a family 2, prefixes more."""
    if rule.code in selectors or rule.name in selectors:
        return 100
    for length in range(len(rule.code) - 1, 0, -1):
        if rule.code[:length] in selectors:
            return 2 + length
    return 2 if rule.family in selectors else int("ALL" in selectors)


def select_rules(
    select: Sequence[str] = ("ALL",),
    ignore: Sequence[str] = (),
    extend_select: Sequence[str] = (),
) -> tuple[Rule, ...]:
    """The rules that are selected and not ignored; the more specific selector wins, a tie ignores.

    Selectors are codes (`NRM001`), prefixes (`NRM`), rule names, family names or `ALL`; one text may have
    several, with commas between them. Raises `UsageError` for a selector that matches nothing.
    """
    known = {"ALL"}.union(*(_selectors_of(rule) for rule in all_rules()))
    wanted, refused = {*words(select), *words(extend_select)}, set(words(ignore))
    for selector in (*wanted, *refused):
        if selector not in known:
            raise UsageError(_unknown(selector))
    return tuple(
        rule for rule in all_rules() if _specificity(wanted, rule) > _specificity(refused, rule)
    )


def ignored_in(per_file: Mapping[str, Sequence[str]]) -> Callable[[str, str], bool]:
    """Whether a rule, by its code, is ignored in a file: `per_file` has patterns and selectors.

    Raises `ConfigError` for a selector that matches nothing.
    """
    ignored = []
    for pattern, selectors in per_file.items():
        try:
            rules = select_rules(selectors)
        except UsageError as error:
            raise ConfigError(f"[tool.trainlint.per-file-ignores]: {error}") from None
        ignored.append((pattern, frozenset(rule.code for rule in rules)))
    return lambda filename, code: any(
        code in codes and matches(Path(filename), [pattern]) for pattern, codes in ignored
    )


def _unknown(selector: str) -> str:
    known = [name for rule in all_rules() for name in (rule.code, rule.name, rule.family)]
    near = difflib.get_close_matches(selector, known, n=1, cutoff=0.6)
    hint = f"; did you mean {near[0]}?" if near else "; `trainlint rules` lists them"
    return f"unknown rule {selector!r}{hint}"


def check_options(options: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse settings for rules or options that do not exist. Raises `ConfigError`."""
    for name, settings in options.items():
        try:
            rule = find_rule(name)
        except UsageError as error:
            raise ConfigError(f"[tool.trainlint.rules]: {error}") from None
        for option, value in settings.items():
            default = rule.options.get(option.replace("-", "_"))
            if option.replace("-", "_") not in rule.options:
                known = ", ".join(key.replace("_", "-") for key in rule.options) or "none"
                raise ConfigError(
                    f"[tool.trainlint.rules.{rule.name}]: unknown option {option!r}; it has: {known}"
                )
            if isinstance(default, (int, float)) and not isinstance(value, (int, float)):
                raise ConfigError(
                    f"[tool.trainlint.rules.{rule.name}]: {option} must be a number, not {value!r}"
                )
