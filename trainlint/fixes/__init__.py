"""Fixes: what to change, how safe that is, and the edits of the source that would do it."""

from __future__ import annotations

from trainlint.fixes.edit import Edit, Fix, Location, Safety
from trainlint.fixes.source import SourceEdits

__all__ = ["Edit", "Fix", "Location", "Safety", "SourceEdits"]
