"""Patterns for files, as `exclude` and `per-file-ignores` have them: what each means, and what it matches.

A pattern is rooted where the configuration lies. One without `/` is for a name at any depth below that. `*`
and `**` also match `/`, `**/` matches any number of folders, `{a,b}` either, `[ab]` a sign; a leading `!`
matches all other files. Imports no torch.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from trainlint.errors import ConfigError


def rooted(pattern: str, folder: Path) -> str:
    """The pattern as one of whole paths. Raises `ConfigError` for one that makes no sense."""
    negated = "!" if pattern.startswith("!") else ""
    body = pattern[len(negated) :].removeprefix("./").rstrip("/")
    if not body:
        raise ConfigError(f"{pattern!r} is no pattern for files")
    base = re.sub(r"([\[\]{}*?])", r"[\1]", folder.as_posix()).rstrip("/")
    is_name = "/" not in body and os.sep not in body
    whole = body if Path(body).is_absolute() else f"{base}/{'**/' if is_name else ''}{body}"
    try:
        _compiled(whole)
    except (ValueError, re.error) as error:
        raise ConfigError(f"{pattern!r} is no pattern for files: {error}") from None
    return negated + whole


def matches(path: Path, patterns: Iterable[str]) -> bool:
    """Whether one of these, which are rooted, matches the whole path, as it is written or really is."""
    names = {_whole(path), os.path.realpath(path)}
    return any(_matches(Path(name), pattern) for name in names for pattern in patterns)


def excludes(path: Path, patterns: Sequence[str], within: Path | None = None) -> bool:
    """Whether one matches the path or a folder above it; with `within`, only a folder below that."""
    if not patterns:
        return False
    written = Path(_whole(path))
    above = itertools.takewhile(
        lambda folder: within is None or folder != Path(_whole(within)), written.parents
    )
    return matches(path, patterns) or any(
        _matches(folder, pattern) for folder in above for pattern in patterns
    )


def _whole(path: Path) -> str:
    return os.path.normpath(Path.cwd() / path)


def _matches(path: Path, pattern: str) -> bool:
    is_negated = pattern.startswith("!")
    compiled = _compiled(pattern.removeprefix("!"))
    return (compiled.fullmatch(path.as_posix()) is not None) is not is_negated


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile("".join(_translated(pattern)), re.DOTALL)


def _translated(pattern: str) -> Iterator[str]:
    place, depth = 0, 0
    while place < len(pattern):
        sign = pattern[place]
        place += 1
        if pattern.startswith("**/", place - 1):
            place += 2
            yield "(?:.*/)?"
        elif sign == "*":
            yield ".*"
        elif sign == "?":
            yield "."
        elif sign == "[":
            end = pattern.find("]", place + 1)
            if end < 0:
                raise ValueError("a [ is never closed")
            inner = pattern[place:end]
            negated = "^" if inner[0] in "!^" else ""
            inner = re.sub(r"([\\\[\]^&~|])", r"\\\1", inner[1:] if negated else inner)
            yield f"[{negated}{inner}]"
            place = end + 1
        elif sign == "{":
            depth += 1
            yield "(?:"
        elif sign == "}" and depth:
            depth -= 1
            yield ")"
        elif sign == "," and depth:
            yield "|"
        else:
            yield re.escape(sign)
    if depth:
        raise ValueError("a { is never closed")
