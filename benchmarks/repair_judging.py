"""How the benchmark of repairs judges: what an accepted fix is, when a model trains as its twin does."""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.repair_faults import FAULTS, Fault
from benchmarks.repair_models import MODELS

SHARE = 0.8
RATIO = 1.2
Results = dict[str, dict[str, Any]]


def described(fix: Any) -> str:
    """What a fix is called and changes, as text: where accepted remedies are looked for."""
    lines = [fix.title]
    for edit in fix.edits:
        lines.append("+" + edit.content)
        if not edit.content.strip():
            lines.append("remove")
    lines += [msgspec.json.encode(patch).decode() for patch in fix.patches]
    return "\n".join(lines)


def is_accepted(fault: Fault, code: str, text: str) -> bool:
    """Whether a fix, as `described`, is a textbook remedy of the fault, under a rule that may say it."""
    return code in fault.kind.codes and is_remedy(fault, text)


def is_remedy(fault: Fault, text: str) -> bool:
    kind = fault.kind
    return (
        kind.remedy.search(text) is not None
        and (kind.never is None or not kind.never.search(text))
        and (not fault.right or fault.right in text)
    )


def digest(text: str) -> str:
    """What a kept result belongs to: it is run again when the file is another."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def is_of(result: dict[str, Any] | None, text: str) -> bool:
    return result is not None and result["of"] == digest(text)


def twin_text(name: str) -> str:
    """The twin of this name: a model's, or that of a case with its own."""
    return MODELS[name].text if name in MODELS else FAULTS[name].twin


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else math.nan


def reaches(losses: Sequence[float], twin: dict[str, Any]) -> tuple[bool, bool]:
    """Whether the twin's loss is reached: as a share of its improvement, and as a ratio."""
    loss, reference, baseline = mean(losses), mean(twin["losses"]), mean(twin["constants"])
    return baseline - loss >= SHARE * (baseline - reference), loss <= RATIO * reference


def is_loud(finding: dict[str, Any]) -> bool:
    return str(finding["severity"]) != "info"


def verdict(fault: Fault, detection: Results, twins: Results) -> dict[str, Any]:
    """Of one case: is it found, is it named, is its first fix accepted."""
    new = new_findings(fault, detection[fault.name], twins)
    first = new[0] if new else None
    fix = first["fixes"][0] if first and first["fixes"] else None
    return {
        "detected": bool(new),
        "named": any(f["code"] in fault.kind.codes for f in new),
        "accepted": bool(fix) and is_accepted(fault, first["code"], fix["text"]),
        "remedy": bool(fix) and is_remedy(fault, fix["text"]),
        "code": first["code"] if first else "",
        "fix": fix["title"] if fix else "",
        "edits": bool(fix and fix["edited"] is not None),
        "patches": bool(fix and fix["patches"]),
        "obstacle": fix["obstacle"] if fix else "",
        "codes": [f["code"] for f in new],
        "message": first["message"] if first else "",
    }


def new_findings(fault: Fault, result: dict[str, Any], twins: Results) -> list[dict[str, Any]]:
    """Findings at warning or above that the twin does not have."""
    usual = {f["code"] for f in twins[fault.model]["findings"] if is_loud(f)}
    return [f for f in result["findings"] if is_loud(f) and f["code"] not in usual]


def is_drawn(fault: Fault) -> bool:
    """Whether the case is among the quarter on which the rival rankings are tried."""
    return hashlib.sha256(f"rivals {fault.name}".encode()).digest()[0] % 4 == 0


class Store:
    """Results of parts by case, in a JSON file that is written as they come."""

    def __init__(self, path: str | None) -> None:
        self.path = Path(path) if path else None
        self.parts: dict[str, Results] = defaultdict(dict)
        if self.path and self.path.exists():
            self.parts.update(json.loads(self.path.read_text()))

    def save(self) -> None:
        if self.path:
            scratch = self.path.with_suffix(".part")
            scratch.write_text(json.dumps(self.parts, indent=1))
            scratch.replace(self.path)
