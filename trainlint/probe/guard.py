"""Let no file be written while a user's own loop runs for a few steps: its checkpoints are worth more.

For child processes only: an audit hook cannot be taken back, it can only be told to sleep.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch

from trainlint.sites import replaced

_CHANGES: Final = frozenset({"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate"})
_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Writes(BaseException):
    """Raised in the user's code in place of a change to files. No `except Exception` catches it."""


_state: dict[str, bool] = {"installed": False, "awake": False}
_scratch: list[str] = ["/dev/", "/proc/"]


@contextmanager
def nothing_written() -> Iterator[None]:
    """Raise `Writes` where a file is written, made or removed, but for temporary ones.

    `torch.save` does nothing instead: a loop that keeps its best weights can go on without them.
    Whatever lies in the current folder is the user's, also where that is a temporary one.
    """
    if not _state["installed"]:
        _state["installed"] = True
        # Now: asked within the hook, it would write a file itself, and wait for its own lock.
        _scratch.extend((tempfile.gettempdir() + os.sep, f"{Path.home()}{os.sep}."))
        sys.addaudithook(_look)

    original = torch.save

    def save(value: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        # It writes past Python's `open`.
        if isinstance(file, (str, os.PathLike)) and not _is_scratch(os.fspath(file)):
            return
        original(value, file, *args, **kwargs)

    _state["awake"] = True
    try:
        with replaced(torch, "save", save):
            yield
    finally:
        _state["awake"] = False


def _look(event: str, args: tuple[Any, ...]) -> None:
    if not _state["awake"]:
        return
    if event == "open":
        path, _, flags = args
        if isinstance(flags, int) and flags & _WRITING and _is_file(path):
            raise Writes(f"it writes {os.fsdecode(path)} there")
    elif event in _CHANGES and _is_file(args[0]):
        raise Writes(f"it changes {os.fsdecode(args[0])} there ({event})")


def _is_file(path: Any) -> bool:
    return isinstance(path, (str, bytes, os.PathLike)) and not _is_scratch(os.fsdecode(path))


def _is_scratch(path: str) -> bool:
    """Temporary files, devices, and what programs keep in hidden folders of the home directory."""
    whole = os.path.abspath(path)  # noqa: PTH100 (no call that asks the file system)
    here = os.getcwd() + os.sep  # noqa: PTH109
    return whole.startswith(tuple(_scratch)) and not whole.startswith(here)
