"""What can go wrong outside the models: each becomes one line for the user and exit status 2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from trainlint.records import ReportedFinding

# Behind it stands what does the same within one.
NO_NOTEBOOKS: Final = "notebooks are not read: save its code as a .py file, or "


class TrainlintError(Exception):
    """A fault in how trainlint was called, or a target that it cannot analyse."""


class UsageError(TrainlintError, ValueError):
    """An option, selector or target that makes no sense."""


class ConfigError(TrainlintError):
    """A configuration file that cannot be used."""


class InputError(TrainlintError):
    """No inputs for a model: badly given, or none found.

    `refusal` is what its forward raised first; `is_bug` tells that no input would mend that.
    """

    def __init__(
        self, message: str, refusal: BaseException | None = None, *, is_bug: bool = False
    ) -> None:
        super().__init__(message)
        self.refusal = refusal
        self.is_bug = is_bug


class LoadError(TrainlintError):
    """A model that could not be constructed. `row` is the line of the file that is at fault, if known."""

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


class TrainingStopped(TrainlintError):  # noqa: N818 (a decision, not an error)
    """A watch with `on=` found that the training cannot come to anything.

    `finding` says what is wrong, `steps` after how many optimizer steps.
    """

    def __init__(self, finding: ReportedFinding, steps: int) -> None:
        place = ""
        if finding.filename is not None and finding.location is not None:
            place = f" ({finding.filename}:{finding.location.row})"
        super().__init__(
            f"stopped after {steps} steps: {finding.code} {finding.name}: {finding.message}{place}"
        )
        self.finding = finding
        self.steps = steps
