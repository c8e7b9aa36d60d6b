"""trainlint: a training linter for PyTorch.

`trainlint.check(model_or_target, inputs=...)` checks a live model or files; the command line is
`trainlint check model.py`. Importing the package imports neither torch nor the analysis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Report", "TrainlintError", "__version__", "check"]

if TYPE_CHECKING:
    from trainlint.api import check
    from trainlint.errors import TrainlintError
    from trainlint.records import Report

_HOMES = {
    "check": "trainlint.api",
    "Report": "trainlint.records",
    "TrainlintError": "trainlint.errors",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'trainlint' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
