"""The training loops of the fixtures are named at exactly the lines that they say."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import torch

import trainlint
from trainlint.sites import recording

LOOPS = sorted((Path(__file__).parent.parent / "fixtures" / "loops").glob("*.py"))


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in LOOPS])
def test_loops_are_named_at_their_lines(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = path.read_text(encoding="utf-8")
    torch.manual_seed(0)
    with trainlint.watch() as w, recording():
        exec(compile(text, str(path), "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().err == ""
    expected = Counter(
        (row, code)
        for row, line in enumerate(text.splitlines(), start=1)
        for codes in re.findall(r"# expect: ([A-Z0-9, ]+)", line)
        for code in codes.split(", ")
    )
    found = Counter(
        (finding.location.row if finding.location else 0, finding.code)
        for finding in w.findings
        if finding.severity != "info"
    )
    assert found == expected
