"""Fixes: what to change, how safe that is, and the edits of the source that would do it.

Each name is imported when it is asked for: who only reads a file's text needs none of the edits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from trainlint.fixes.edit import Attempt, Edit, Fix, Location, Safety
    from trainlint.fixes.patch import Occurrence, Patch
    from trainlint.fixes.source import SourceEdits

__all__ = ["Attempt", "Edit", "Fix", "Location", "Occurrence", "Patch", "Safety", "SourceEdits"]

_HOMES: Final = {
    **dict.fromkeys(("Attempt", "Edit", "Fix", "Location", "Safety"), "trainlint.fixes.edit"),
    **dict.fromkeys(("Occurrence", "Patch"), "trainlint.fixes.patch"),
    "SourceEdits": "trainlint.fixes.source",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'trainlint.fixes' has no attribute {name!r}")
