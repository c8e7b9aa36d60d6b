"""Which module may import which: the arrows of docs/architecture.md, by the syntax of the imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "trainlint"

# What stands around the core: it is for people, for trainers, for tests.
OUTER = (
    "__main__", "asserting", "cli", "examples", "integrations", "report", "rounds", "scaffold", "testing",
)  # fmt: skip
# `print(report)` asks the text for people for itself: nothing of it is loaded before.
PRINTING = ("trainlint.records", "trainlint.report")
# Parts of the core, each with what it does not know: what is made of it, and what runs it.
UNKNOWN = {
    "ops": ("graph", "capture", "rule", "fixes"),
    "graph": ("capture", "analysis", "theory", "measure", "fixes", "rule", "engine", "observe"),
    "theory": ("observe", "probe", "generalization", "processes", "surgery", "verification"),
    "fixes": ("surgery", "verification", "probe", "generalization", "processes", "api"),
    "surgery": ("verification", "observe", "processes", "api", "files"),
    "records": ("api", "files", "ranking", "processes", "observe", "fixes.source"),
    "engine": ("api", "files", "ranking", "processes", "observe", "subject"),
    "subject": ("api", "files", "ranking", "processes", "verification"),
    "ranking": ("api", "files", "processes", "observe", "subject"),
}


class Import(NamedTuple):
    """One import: who of whom, in which row, and whether it is made when the module is."""

    module: str
    of: str
    row: int
    at_once: bool
    for_types: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.row} imports {self.of}"


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def imports() -> tuple[Import, ...]:
    """All imports of the package, also those in functions and for type checkers."""
    return tuple(found for name in MODULES for found in imports_of(name))


def imports_of(module: str) -> Iterator[Import]:
    def walk(node: ast.AST, *, at_once: bool, for_types: bool) -> Iterator[Import]:
        for inner in ast.iter_child_nodes(node):
            if isinstance(inner, ast.ImportFrom):
                assert not inner.level, f"{module}:{inner.lineno}: imports are written out in full"
                for alias in inner.names:
                    full = f"{inner.module}.{alias.name}"
                    of = full if full in MODULES else str(inner.module)
                    yield Import(module, of, inner.lineno, at_once, for_types)
            elif isinstance(inner, ast.Import):
                for alias in inner.names:
                    yield Import(module, alias.name, inner.lineno, at_once, for_types)
            is_function = isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef))
            is_for_types = isinstance(inner, ast.If) and ast.unparse(inner.test) == "TYPE_CHECKING"
            yield from walk(
                inner,
                at_once=at_once and not is_function,
                for_types=for_types or is_for_types,
            )

    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    return walk(tree, at_once=True, for_types=False)


def part(module: str) -> str:
    """`fixes` of `trainlint.fixes.source`; nothing of `trainlint` itself, and of other packages."""
    root, _, rest = module.partition(".")
    return rest.partition(".")[0] if root == "trainlint" else ""


def test_the_imports_are_read() -> None:
    found = {(each.module, each.of): each for each in imports()}
    assert found["trainlint.fixes.source", "trainlint.fixes.changes"].at_once
    assert found["trainlint.fixes.source", "trainlint.sites"].for_types
    assert not found["trainlint.api", "trainlint.verification.live"].at_once
    assert {part(name) for name in MODULES} >= {*OUTER, *UNKNOWN}


def test_the_engine_imports_no_rules() -> None:
    roots = {each.of.partition(".")[0] for each in imports()}
    assert roots.isdisjoint({"rules", "trainlint_rules", "tests", "benchmarks", "fixtures"})


def test_the_core_knows_nothing_of_what_stands_around_it() -> None:
    def is_allowed(each: Import) -> bool:
        printing = (each.module, each.of.rpartition(".")[0]) == PRINTING and not each.at_once
        return part(each.module) in OUTER or printing

    outwards = [each for each in imports() if part(each.of) in OUTER]
    assert [str(each) for each in outwards if not is_allowed(each)] == []


@pytest.mark.parametrize(
    ("name", "unknown"),
    [
        ("report", ("cli", "integrations", "testing", "rounds")),
        ("integrations", ("cli", "rounds")),
        ("testing", ("cli", "integrations", "rounds")),
        *UNKNOWN.items(),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_part_knows_what_it_is_made_of(name: str, unknown: tuple[str, ...]) -> None:
    """Types apart: what a function is annotated with, it is given."""
    wrong = [
        str(each)
        for each in imports()
        if part(each.module) == name and not each.for_types
        if any(f"{each.of}.".startswith(f"trainlint.{other}.") for other in unknown)
    ]
    assert wrong == []


def test_the_command_line_only_hands_over() -> None:
    """It reads options: nothing of it computes on tensors, or reads a user's source itself."""
    own = [each for each in imports() if part(each.module) == "cli"]
    heavy = ("torch", "networkx", "ast", "trainlint.engine", "trainlint.graph", "trainlint.capture")
    assert [str(e) for e in own if any(f"{e.of}.".startswith(f"{h}.") for h in heavy)] == []
    users = {each.module for each in imports() if part(each.of) == "cli"}
    assert {name for name in users if part(name) != "cli"} == {"trainlint.__main__"}


def test_no_module_needs_itself_to_be_imported() -> None:
    graph: dict[str, set[str]] = {name: set() for name in MODULES}
    for each in imports():
        if each.at_once and not each.for_types and each.of in MODULES and each.of != each.module:
            graph[each.module].add(each.of)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" imports ".join(error.args[1])) from None
