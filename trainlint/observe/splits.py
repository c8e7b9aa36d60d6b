"""Which data a forward without a gradient is on where no `DataLoader` has given them: what the code shows.

Comes in: the calls under way. Goes out: `Surroundings`, equal for evaluations on the same data as far as
can be seen, with the words of the names there: `evaluate(model, X_val)`, `for split in ("train", "val")`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any, Final

from trainlint.analysis.methods import source_of
from trainlint.sites import Site, project_frames

_TRAINING: Final = frozenset({"train", "training"})
_SPLITS: Final = _TRAINING | frozenset("val valid validation eval dev test testing holdout".split())
_PARTS: Final = re.compile(r"[a-z]+")
# So many calls: one function evaluates both sets, and may have another that fetches the batches.
_CALLS: Final = 3


@dataclass(frozen=True)
class Surroundings:
    """The nearest calls of the user's own; words of their arguments; variables with such a word."""

    calls: tuple[tuple[CodeType, int], ...] = ()
    named: frozenset[str] = frozenset()
    variables: tuple[tuple[str, str], ...] = ()

    def is_training(self, others: Iterable[Surroundings]) -> bool:
        """Whether arguments name the training's data, or a variable does that is not always so.

        `others` are all that were seen at the same place.
        """
        if self.named:
            return self.named <= _TRAINING
        seen = {variable for other in others for variable in other.variables}
        return any(
            word in _TRAINING and any(at == name and value != word for at, value in seen)
            for name, word in self.variables
        )


class Splits:
    """Looks around, and remembers what the source says."""

    def __init__(self) -> None:
        self._named: dict[Any, frozenset[str]] = {}

    def around(self) -> Surroundings:
        """Of the calls that are under way."""
        frames = project_frames(_CALLS)
        calls = tuple((frame.f_code, frame.f_lasti) for frame in frames)
        if calls not in self._named:
            words = (_words(Site(frame)) for frame in frames)
            self._named[calls] = next((each for each in words if each), frozenset())
        variables: dict[str, str] = {}
        for frame in reversed(frames):
            variables |= {
                name: value
                for name, value in frame.f_locals.items()
                if isinstance(value, str) and value in _SPLITS
            }
        return Surroundings(calls, self._named[calls], tuple(sorted(variables.items())))


def _words(site: Site) -> frozenset[str]:
    """Those of the splits in the names and strings that a call is given."""
    text = source_of(site.filename)
    call = None if text is None else text.call_at(site)
    if call is None:
        return frozenset()
    given = (*call.args, *(keyword.value for keyword in call.keywords))
    spelled = (name for value in given for node in ast.walk(value) for name in _names(node))
    return frozenset(word for name in spelled for word in _PARTS.findall(name.lower())) & _SPLITS


def _names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.Attribute):
        yield node.attr
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
