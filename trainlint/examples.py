"""A rule's own examples, run: the Bad blocks of its docstring have to fire, its Good ones to stay silent.

An example is a file that is checked or, where it calls `backward()` as it is run, a training script that
is watched. Those of a rule on sweeps are swept as well. Importing this imports no torch.
"""

from __future__ import annotations

import ast
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from trainlint.report.explanation import Lesson
from trainlint.rule import Rule

if TYPE_CHECKING:
    from trainlint.records import Report, ReportedFinding

_BACKWARD: Final = ".backward()"


@dataclass(frozen=True)
class Example:
    """The `number`-th Bad or Good block of a rule, as a file that runs."""

    rule: Rule
    kind: Literal["bad", "good"]
    number: int
    text: str

    @property
    def filename(self) -> str:
        """What it is called while it is checked."""
        return f"{self.rule.code}_{self.kind}_{self.number}.py".lower()

    @property
    def is_script(self) -> bool:
        """Whether it trains when it is run; a loop in a function is there to be read."""
        body = ast.parse(self.text).body
        steps = [node for node in body if not isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        return any(_BACKWARD in ast.unparse(step) for step in steps)


def examples_of(rules: Sequence[Rule]) -> list[Example]:
    """All examples of the rules, in order."""
    return [
        Example(rule, kind, number, text)
        for rule in rules
        for kind in ("bad", "good")
        for number, text in enumerate(Lesson(rule).examples(kind))
    ]


def failures(rules: Sequence[Rule]) -> Iterator[str]:
    """What does not hold, a line each: a block that is missing, fails, or fires where it should not."""
    for rule in rules:
        for kind in ("bad", "good"):
            if not Lesson(rule).examples(kind):
                yield f"{rule.code} {rule.name} has no example below ## {kind.title()}"
    examples = examples_of(rules)
    with tempfile.TemporaryDirectory(prefix="trainlint-") as name:
        folder = Path(name)
        for example in examples:
            (folder / example.filename).write_text(example.text, encoding="utf-8")
        report = _checked([folder / each.filename for each in examples if not each.is_script])
        for example in examples:
            path = folder / example.filename
            own = _watched(path) if example.is_script else report
            found = list(own.findings)
            if "sweep" in example.rule.stages:
                found += _swept(path)
            yield from _wrong(example, own, found)


def _wrong(example: Example, report: Report, findings: Sequence[ReportedFinding]) -> Iterator[str]:
    rule = example.rule
    what = f"{rule.code} {rule.name}, example {example.number + 1} below ## {example.kind.title()}"
    targets = [
        each
        for each in report.targets
        if Path(each.target.partition("::")[0]).name == example.filename
    ]
    if not targets and not example.is_script:
        yield f"{what}: no model was found in it"
    for target in targets:
        if target.status != "ok":
            yield f"{what}: {target.reason}"
            return
    found = [
        each
        for finding in findings
        for each in (finding, *finding.symptoms)
        if Path(each.filename or "").name == example.filename
    ]
    fires = any(each.code == rule.code for each in found)
    if example.kind == "bad" and not fires:
        others = ", ".join(dict.fromkeys(each.code for each in found))
        yield f"{what}: the rule is silent" + (f", and {others} fires" if others else "")
    for each in found if example.kind == "good" else ():
        if each.code == rule.code or each.severity != "info":
            yield f"{what}: {each.code} {each.name} fires: {each.message}"


def _checked(paths: Sequence[Path]) -> Report:
    """One check of them all: torch is imported once."""
    from trainlint.api import check
    from trainlint.records import Report

    return check(list(paths)) if paths else Report([], [])


def _swept(path: Path) -> Sequence[ReportedFinding]:
    """What is said of a file's curve over the widths."""
    from trainlint.generalization.sweep import sweep

    return sweep(path, kfold=3, steps=300).findings


def _watched(path: Path) -> Report:
    """What is said of a training script."""
    import torch

    from trainlint.sites import recording
    from trainlint.watching import watch

    program = compile(path.read_text(encoding="utf-8"), str(path), "exec", dont_inherit=True)
    with torch.random.fork_rng(), watch() as watched, recording():
        torch.manual_seed(0)
        exec(program, {"__name__": "__main__"})
    return watched.report()
