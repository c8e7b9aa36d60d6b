"""SUP001 unused-suppression."""

from __future__ import annotations

from collections.abc import Iterator

from trainlint.rule import (
    Edit,
    Finding,
    Fix,
    Location,
    Safety,
    Severity,
    Suppressions,
    rule,
)


@rule("SUP001", severity=Severity.WARNING, since="0.1")
def unused_suppression(suppressions: Suppressions) -> Iterator[Finding]:
    """A suppression comment silences nothing.

    The fault that it was written for is gone, or its code is misspelt and never silenced anything. Left
    in place it would hide the next fault on that line.

    ## Bad
    ```python
    model = nn.Linear(4, 2)  # trainlint: ignore[NRM001]
    ```

    ## Good
    ```python
    model = nn.Linear(4, 2)
    ```

    ## When to ignore it
    When the finding depends on the machine or on an option. Rules that did not run are not judged.

    ## Fix safety
    Safe: only the comment is removed.
    """
    for unused in suppressions.unused():
        suppression = unused.suppression
        why = "silences nothing" if unused.known else "names no rule"
        edits = []
        if len(suppression.selectors) == 1:
            start = Location(suppression.row, suppression.column)
            end = Location(suppression.row, suppression.end_column)
            edits = [Edit(suppression.filename, start, end, "")]
        yield Finding(
            f"`{unused.selector}` in this comment {why}",
            where=(suppression.filename, suppression.row, suppression.column,
                   suppression.end_column),
            evidence={"selector": unused.selector},
            fixes=[Fix("remove it", Safety.SAFE if edits else Safety.DISPLAY_ONLY, edits)],
        )  # fmt: skip
