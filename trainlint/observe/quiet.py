"""Runs of ours in the user's process print nothing: what they say, the loop has said already."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from trainlint.sites import replaced


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing within is printed, logged or warned of. Other threads are heard."""
    home = threading.get_ident()
    handle = logging.Logger.handle
    warn = warnings.warn

    def is_elsewhere() -> bool:
        return threading.get_ident() != home

    class Silent:
        def __init__(self, stream: Any) -> None:
            self._stream = stream

        def write(self, text: str) -> int:
            return self._stream.write(text) if is_elsewhere() else len(text)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._stream, name)

    with (
        replaced(sys, "stdout", Silent(sys.stdout)),
        replaced(sys, "stderr", Silent(sys.stderr)),
        replaced(warnings, "warn", lambda *a, **k: warn(*a, **k) if is_elsewhere() else None),
        replaced(logging.Logger, "handle", lambda *a: handle(*a) if is_elsewhere() else None),
    ):
        yield
