"""What the parent asks of a child process, and what the child answers: JSON lines, never pickles."""

from __future__ import annotations

from typing import Any

import msgspec

from trainlint.generalization.experiments import Experiment, Split, TrialResult, TrialSpec
from trainlint.generalization.swept import Inquiry, Outline
from trainlint.records import ReportedFinding, TargetResult
from trainlint.verification.changes import Plan, Training


class TrialJob(msgspec.Struct, frozen=True):
    """Trainings to be made of the one model that a job names, in this order; an inquiry before them."""

    experiment: Experiment
    specs: list[TrialSpec] = []
    inquiry: Inquiry | None = None


class Job(msgspec.Struct, frozen=True):
    """One file to check, to make `trials` of, or to try a change on by a `plan`.

    `name` is the model asked for, None for all of them.
    `label` is how the report names the file; `dotted` the module's name where it was given as
    `package.module:attribute`. `scanned` tells that the file was met in a directory, not named: that it
    holds nothing to check is then no error. `skip` are models that an earlier child has finished or
    died on. `overlay` holds texts, by file name, that stand in for the files, whether checked or imported.
    `timeout` in seconds holds for loading and for each model; `memory_limit` in bytes, 0 for none.
    """

    path: str
    label: str
    name: str | None = None
    dotted: str | None = None
    inputs: str | None = None
    rules: list[str] = []
    stages: list[str] = []
    options: dict[str, dict[str, Any]] = {}
    scanned: bool = False
    skip: list[str] = []
    overlay: dict[str, str] = {}
    timeout: float = 120.0
    memory_limit: int = 0
    probe_steps: int = 50
    probe_seconds: float = 30.0
    graphs: bool = False
    debug: bool = False
    trials: TrialJob | None = None
    plan: Plan | None = None

    @property
    def target(self) -> str:
        """How the report names what was asked for: the file, or the model in it."""
        return self.label if self.name is None or self.dotted else f"{self.label}::{self.name}"


class Begin(msgspec.Struct, frozen=True, tag="begin"):
    """The child starts on this target; what kills it now is that target's doing."""

    target: str


class Analyzed(msgspec.Struct, frozen=True, tag="analyzed"):
    """One target is finished. `starved` goes with `findings`, one for one.

    A `provisional` one is what is known before the model is really run; another follows, unless that
    ends the process. `of_file` are notes that are on the file and not on the model: they are said once.
    `parts` are the classes that the model is made of, as `file::Class`.
    """

    findings: list[ReportedFinding]
    starved: list[float]
    result: TargetResult
    provisional: bool = False
    of_file: list[str] = []
    parts: list[str] = []


class Told(msgspec.Struct, frozen=True, tag="told"):
    """How far the target is, for those who wait."""

    text: str


class Prepared(msgspec.Struct, frozen=True, tag="prepared"):
    """The data are there, and split; the trials begin."""

    split: Split


class Outlined(msgspec.Struct, frozen=True, tag="outlined"):
    """The answer to an inquiry."""

    outline: Outline


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """Why no trial is possible of this target."""

    reason: str


class Advanced(msgspec.Struct, frozen=True, tag="advanced"):
    """Which share of the trial under way is done."""

    share: float


class Tried(msgspec.Struct, frozen=True, tag="tried"):
    """One trial is finished."""

    result: TrialResult


class Trained(msgspec.Struct, frozen=True, tag="trained"):
    """One training of a plan is finished."""

    training: Training


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The child finished its job. Only this message proves it: `os._exit(0)` looks clean as well."""


class Died(msgspec.Struct, frozen=True, tag="died"):
    """The supervisor's word on a child that ended without `Done`."""

    target: str
    reason: str
    output: str = ""


Message = (
    Begin
    | Analyzed
    | Told
    | Prepared
    | Outlined
    | Refused
    | Advanced
    | Tried
    | Trained
    | Done
    | Died
)
decode_message = msgspec.json.Decoder(Message).decode
decode_job = msgspec.json.Decoder(Job).decode


def encode(value: Message | Job) -> bytes:
    """One line of JSON, without the newline."""
    return msgspec.json.encode(value)
