"""trainlint: a training linter for PyTorch.

`trainlint.check(model_or_target, inputs=...)` checks a live model or files, `trainlint.watch(model)` a
training loop, `trainlint.cross_validate(model, k=5)` trains on folds; the command line is
`trainlint check model.py` and `trainlint run train.py`. Importing the package imports neither torch nor
the analysis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "CrossValidation",
    "Report",
    "TrainingStopped",
    "TrainlintError",
    "__version__",
    "check",
    "cross_validate",
    "patched",
    "sweep",
    "watch",
]

if TYPE_CHECKING:
    from trainlint.api import check
    from trainlint.errors import TrainingStopped, TrainlintError
    from trainlint.generalization.crossvalidation import cross_validate
    from trainlint.generalization.sweep import sweep
    from trainlint.records import CrossValidation, Report
    from trainlint.surgery.live import patched
    from trainlint.watching import watch

_HOMES = {
    "check": "trainlint.api",
    "cross_validate": "trainlint.generalization.crossvalidation",
    "CrossValidation": "trainlint.records",
    "Report": "trainlint.records",
    "TrainingStopped": "trainlint.errors",
    "TrainlintError": "trainlint.errors",
    "patched": "trainlint.surgery.live",
    "sweep": "trainlint.generalization.sweep",
    "watch": "trainlint.watching",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'trainlint' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
