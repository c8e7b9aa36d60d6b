"""How often each rule fired, the most frequent first, for people to read."""

from __future__ import annotations

from collections import Counter

from trainlint.records import Report


def render(report: Report, *, show_info: bool = False) -> str:
    """`count code severity name` a line. Symptoms do not count."""
    shown = [f for f in report.findings if show_info or f.severity != "info"]
    counts = Counter((f.code, f.name, f.severity) for f in shown)
    rows = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    width = max((len(str(count)) for _, count in rows), default=0)
    return "\n".join(
        f"{count:>{width}}  {code}  {severity:<7}  {name}" for (code, name, severity), count in rows
    )
