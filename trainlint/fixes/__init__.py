"""Fixes: what to change, how safe that is, and the edits of the source that would do it."""

from __future__ import annotations

from trainlint.fixes.edit import Attempt, Edit, Fix, Location, Safety
from trainlint.fixes.patch import Occurrence, Patch
from trainlint.fixes.source import SourceEdits

__all__ = ["Attempt", "Edit", "Fix", "Location", "Occurrence", "Patch", "Safety", "SourceEdits"]
