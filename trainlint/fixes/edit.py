"""The values that describe a fix, as they stand in the JSON report."""

from __future__ import annotations

import enum

import msgspec

from trainlint.fixes.patch import Patch


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


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """What came of trying a fix beside an unchanged training.

    `before` and `after` are the `measure` at equal steps, over the same data in the same order, in the mean
    over `seeds`; None where it could not be had: the unchanged model may not run. `gain` is their
    difference in units of a constant answer's loss, `error` its standard error. `cleared` tells whether the
    finding was gone when the changed model was checked again. `parameters` is by how many it changes the
    model, `slowdown` the seconds of a step in units of the unchanged one's. `reason` says why it is not
    called verified, or why it was not tried at all.
    """

    measure: str = "training loss"
    before: float | None = None
    after: float | None = None
    gain: float | None = None
    error: float | None = None
    steps: int = 0
    seeds: int = 0
    cleared: bool | None = None
    parameters: int = 0
    slowdown: float | None = None
    reason: str = ""


class Fix(msgspec.Struct, frozen=True):
    """A remedy. `reason` says in a line why it helps, by a formula or a source.

    `edits` change the source; where there are none, `obstacle` may say what stands in the way. `patches`
    make the same change on a live copy. `verified` is the proof that it helps, None unless it was tried,
    its finding was gone and the loss plainly lower; `attempt` is what came of trying where it is no proof.
    """

    title: str
    safety: Safety = Safety.DISPLAY_ONLY
    edits: list[Edit] = []
    verified: Attempt | None = None
    reason: str = ""
    obstacle: str = ""
    patches: list[Patch] = []
    attempt: Attempt | None = None
