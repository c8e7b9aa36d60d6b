"""Changes of a live model and its training, made on a copy: they try a fix without its source edits."""

from trainlint.surgery.case import PatchProblem
from trainlint.surgery.patching import KINDS, Kind, Patched, patched

__all__ = ["KINDS", "Kind", "PatchProblem", "Patched", "patched"]
