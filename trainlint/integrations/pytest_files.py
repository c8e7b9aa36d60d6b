"""Which files `pytest --trainlint` leaves to pytest, and which it keeps for itself. Imports no torch."""

from __future__ import annotations

import ast
import os
import warnings
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from trainlint.integrations.pytest_plugin import MARK

if TYPE_CHECKING:
    import pytest

    from trainlint.fixes.text import SourceText


def is_ours_alone(path: Path, parent: pytest.Collector) -> bool:
    """Whether a file is no test file by its name, and pytest was not asked for a test of it either."""
    config = parent.config
    if any(fnmatch(*_compared(path, pattern)) for pattern in config.getini("python_files")):
        return False
    return all(not node or node == MARK for node in _nodes_named(path, config))


def _compared(path: Path, pattern: str) -> tuple[str, str]:
    """As pytest does it: a pattern without a folder is for the name alone."""
    if "/" not in pattern and os.sep not in pattern:
        return path.name, pattern
    return str(path), pattern if Path(pattern).is_absolute() else f"*{os.sep}{pattern}"


def _nodes_named(path: Path, config: pytest.Config) -> Iterator[str]:
    """Of each argument for this file what follows it, `test_it` of `net.py::test_it`; or nothing."""
    for argument in config.args:
        name, _, node = argument.partition("::")
        is_file = os.path.normpath(config.invocation_params.dir / name) == str(path)
        dotted = tuple(name.split("."))
        if is_file or path.with_suffix("").parts[-len(dotted) :] == dotted:  # --pyargs
            yield node.partition("::")[0]


def may_hold_models(path: Path, parent: pytest.Collector) -> bool:
    """Whether it is to be looked at: no test or helper of tests, unless its models were named."""
    from trainlint.targets.discovery import is_searched, is_test_file, mentions_framework

    config = parent.config
    if parent.session.isinitpath(path):
        is_meant = not is_test_file(path) or MARK in _nodes_named(path, config)
    else:
        is_inside = path.is_relative_to(config.rootpath)
        is_meant = is_searched(path.relative_to(config.rootpath) if is_inside else path)
    return is_meant and mentions_framework(path)


def tests_left_out(path: Path, config: pytest.Config) -> list[str]:
    """Functions and classes that pytest would take for tests, by the syntax alone.

    None where our items were asked for by name. A function that is called just `test` is mostly the one
    that a script evaluates its model with.
    """
    if MARK in _nodes_named(path, config):
        return []
    text = parsed(path)
    functions, classes = config.getini("python_functions"), config.getini("python_classes")
    found = []
    for node in text.tree.body if text is not None and text.tree is not None else ():
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            patterns = classes if isinstance(node, ast.ClassDef) else functions
            if any(_is_a_test(node.name, pattern) for pattern in patterns):
                found.append(node.name)
    return found


def _is_a_test(name: str, pattern: str) -> bool:
    return name != pattern and (name.startswith(pattern) or fnmatch(name, pattern))


def parsed(path: Path) -> SourceText | None:
    """The file's text, None where it does not parse."""
    from trainlint.fixes.text import SourceText

    text = SourceText.read(str(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the user's file, which is not imported here
        return None if text is None or text.tree is None else text
