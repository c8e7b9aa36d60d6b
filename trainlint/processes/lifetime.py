"""What the system does to a process of ours when another one ends. Linux only; elsewhere nothing."""

from __future__ import annotations

import contextlib
import ctypes
from typing import Final

_DEATH_SIGNAL_OPTION: Final = 1  # PR_SET_PDEATHSIG, <linux/prctl.h>
_SUBREAPER_OPTION: Final = 36  # PR_SET_CHILD_SUBREAPER


def end_with_parent(number: int) -> None:
    """Get this signal when the parent dies."""
    _control_process(_DEATH_SIGNAL_OPTION, number)


def adopt_orphans() -> None:
    """Become the parent of those whose parents die among one's descendants."""
    _control_process(_SUBREAPER_OPTION, 1)


def _control_process(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value)
