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
    Suppression,
    Suppressions,
    rule,
)


@rule("SUP001", severity=Severity.WARNING, since="0.1")
def unused_suppression(suppressions: Suppressions) -> Iterator[Finding]:
    """A suppression comment silences nothing.

    The fault that it was written for is gone, or its code is misspelt and never silenced anything. Left
    in place it would hide the next fault on that line. A comment without codes never silences anything:
    what it would hide beside the known fault, nobody could tell. The finding says which codes it needs.

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
    Safe: only the comment is removed, or gets its codes.
    """
    for unused in suppressions.unused():
        suppression = unused.suppression
        if not unused.selector:
            yield _without_codes(suppression)
            continue
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


def _without_codes(suppression: Suppression) -> Finding:
    kind = "file-ignore" if suppression.covers_file else "ignore"
    codes = suppression.wanted
    wanted = f"# trainlint: {kind}[{', '.join(codes) or 'CODE'}]"
    if codes:
        found = f"{', '.join(codes)} found here"
        start = Location(suppression.row, suppression.column)
        end = Location(suppression.row, suppression.end_column)
        fix = Fix(wanted, Safety.SAFE, [Edit(suppression.filename, start, end, wanted)])
    else:
        found = "and nothing is found here that it could"
        fix = Fix(f"remove it, or name what it shall silence: {wanted}")
    return Finding(
        f"this comment names no rule and silences nothing: {found}",
        where=(suppression.filename, suppression.row, suppression.column, suppression.end_column),
        evidence={"selector": "", "found": codes},
        fixes=[fix],
    )
