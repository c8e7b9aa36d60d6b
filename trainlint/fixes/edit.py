"""The values that describe a fix, as they stand in the JSON report."""

from __future__ import annotations

import enum
from typing import Any

import msgspec


class Location(msgspec.Struct, frozen=True):
    """A place in a text: row and column in characters, both from 1."""

    row: int
    column: int


class Edit(msgspec.Struct, frozen=True):
    """Replace the text from `location` up to, not including, `end_location` by `content`."""

    filename: str
    location: Location
    end_location: Location
    content: str


class Safety(enum.StrEnum):
    """`safe` is plainly what was meant; `unsafe` changes the model; `display-only` has no edits."""

    SAFE = "safe"
    UNSAFE = "unsafe"
    DISPLAY_ONLY = "display-only"


class Fix(msgspec.Struct, frozen=True):
    """A remedy. `verified` holds the measured gain once it was tried, else None."""

    title: str
    safety: Safety = Safety.DISPLAY_ONLY
    edits: list[Edit] = []
    verified: dict[str, Any] | None = None
