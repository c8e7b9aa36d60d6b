"""Keep torch from importing its compiler for the sake of a shape.

The first meta kernel that is decorated with `torch._disable_dynamo` imports `torch._dynamo`, only to be
told that it is not compiling: most of a second of a check that takes two. So do an optimizer's
constructor, `zero_grad` and step. In our own child processes a stand-in answers instead, and gives way
to the real module as soon as anything else is asked of it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, Final

from trainlint.sites import replaced

_NAME: Final = "torch._dynamo"
_OF_OPTIMIZERS: Final = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")


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


@contextlib.contextmanager
def optimizers_without_compiler() -> Iterator[None]:
    """Let optimizers be made and reset without it, also while a file runs whose imports may want it."""
    from torch.optim import Optimizer

    with contextlib.ExitStack() as stack:
        for name in _OF_OPTIMIZERS:
            stack.enter_context(replaced(Optimizer, name, _uncompiled(getattr(Optimizer, name))))
        yield


def _uncompiled(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        with without_compiler():
            return method(*args, **kwargs)

    return call


def compiler_is_loaded() -> bool:
    """Whether the real `torch._dynamo` has been imported."""
    return type(sys.modules.get(_NAME)) is types.ModuleType
