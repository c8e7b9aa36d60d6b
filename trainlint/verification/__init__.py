"""Try fixes on a copy, beside the unchanged model, and say which of them are proved to help."""

from trainlint.verification.repairing import Repaired, repair

__all__ = ["Repaired", "repair"]
