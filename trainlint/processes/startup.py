"""Keep torch from importing its compiler for the sake of a shape.

The first meta kernel that is decorated with `torch._disable_dynamo` imports `torch._dynamo`, only to be
told that it is not compiling: most of a second of a check that takes two. So does an optimizer's step.
In our own child processes a stand-in answers instead, and gives way to the real module as soon as
anything else is asked of it.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
from collections.abc import Iterator
from typing import Any, Final

_NAME: Final = "torch._dynamo"


class _StandIn(types.ModuleType):
    def disable(self, function: Any = None, recursive: bool = True, **_: Any) -> Any:
        """As the real one, for functions that are never compiled."""
        del recursive
        return function

    def graph_break(self, *_: Any, **__: Any) -> None:
        """As the real one, while nothing is compiled. Each step of an optimizer asks for it."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(_NAME) is self:
            del sys.modules[_NAME]
        return getattr(importlib.import_module(_NAME), name)


@contextlib.contextmanager
def without_compiler() -> Iterator[None]:
    """Answer for `torch._dynamo` while it is not loaded. For processes that compile nothing."""
    if _NAME in sys.modules:
        yield
        return
    stand_in = _StandIn(_NAME)
    sys.modules[_NAME] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(_NAME) is stand_in:
            del sys.modules[_NAME]


def compiler_is_loaded() -> bool:
    """Whether the real `torch._dynamo` has been imported."""
    return type(sys.modules.get(_NAME)) is types.ModuleType
