"""How often each rule fired, the most frequent first, as `ruff check --statistics` shows it."""

from __future__ import annotations

from collections import Counter

import msgspec

from trainlint.records import Report


def render(report: Report, form: str, *, show_info: bool = False) -> str:
    """`count code name` a line, or JSON: a list of {code, name, severity, count}. Symptoms do not count."""
    shown = [f for f in report.findings if show_info or form == "json" or f.severity != "info"]
    counts = Counter((f.code, f.name, f.severity) for f in shown)
    rows = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    if form == "json":
        data = [
            {"code": code, "name": name, "severity": severity, "count": count}
            for (code, name, severity), count in rows
        ]
        return msgspec.json.format(msgspec.json.encode(data), indent=2).decode()
    width = max((len(str(count)) for _, count in rows), default=0)
    return "\n".join(
        f"{count:>{width}}  {code}  {severity:<7}  {name}" for (code, name, severity), count in rows
    )
