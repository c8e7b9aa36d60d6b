"""Words that choose: stages, severities, selectors. An unknown one is refused, with those that are known.

A word that nobody knows must not pass: a stage that is never made finds nothing. Imports no torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from trainlint.errors import UsageError


def words(given: str | Iterable[str]) -> tuple[str, ...]:
    """The words, also of one text, `NRM005` or `NRM005,ARC`, whose letters are no words."""
    if isinstance(given, str):
        return tuple(part.strip() for part in given.split(",") if part.strip())
    return tuple(given)


def known_word(given: str, known: Sequence[str], name: str) -> str:
    """`given`, which `name` must be one of. Raises `UsageError`, a `ValueError`, where it is not."""
    if given in known:
        return given
    near = difflib.get_close_matches(str(given), known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UsageError(f"{name} must be one of {', '.join(known)}, not {given!r}{hint}")


def known_words(given: str | Iterable[str], known: Sequence[str], name: str) -> tuple[str, ...]:
    """The words in the order of `known`, at least one of them. Raises `UsageError` otherwise."""
    asked = {known_word(word, known, name) for word in words(given)}
    if not asked:
        raise UsageError(
            f"no {name}, so that nothing would be checked; there are {', '.join(known)}"
        )
    return tuple(word for word in known if word in asked)
