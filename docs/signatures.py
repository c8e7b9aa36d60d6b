"""The reference pages of the Python API: signatures and docstrings, as Markdown."""

from __future__ import annotations

import enum
import importlib
import inspect
import re
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import msgspec

import trainlint
from trainlint import errors, testing
from trainlint import rule as rules
from trainlint.generalization.experiments import ExperimentError
from trainlint.rule import FACT_STAGES

NOTE = "<!-- written by docs/generate.py -->"
WIDTH = 88

PYTHON = """\
What is imported from `trainlint`, `trainlint.testing` and `trainlint.integrations`. Importing these imports
no torch, except the integrations, which import their trainer. What is neither on this page nor on that of
[rules](rule.md) is internal: see [stability](../stability.md)."""
CONFIG = """\
Where a function takes a `config`, it is a `trainlint.config.Config`, whose fields are the
[keys of pyproject.toml](configuration.md) with `_` in place of `-`, or what
`trainlint.config.load_config(path)` reads from a file. Unlike the command line, functions read no
`pyproject.toml` by themselves."""
ERRORS = """\
All derive from `trainlint.TrainlintError`; each text is one line, for the user."""
FIGURE = "a number, or a word for what JSON has no numbers for: `nan`, `inf`, `-inf`; `float` reads them."
RULE = """\
What a rule imports, all from `trainlint.rule`; [CONTRIBUTING](../../CONTRIBUTING.md) shows how one is
written. A rule asks for facts by the annotations of its parameters, and yields findings. Importing this
imports no torch."""


def python() -> str:
    """The page of the public functions and classes."""
    lines = ["# Python", "", NOTE, "", PYTHON, "", CONFIG, ""]
    order = ("check", "watch", "patched", "cross_validate", "sweep", "Report", "CrossValidation")
    names = [*order, *(name for name in trainlint.__all__ if name not in order)]
    lines += ["## trainlint", ""]
    for name in names:
        if not name.startswith("_"):
            lines += [*_entry(f"trainlint.{name}", getattr(trainlint, name)), ""]
    lines += ["## Errors", "", ERRORS, ""]
    kinds = [
        errors.UsageError,
        errors.ConfigError,
        errors.InputError,
        errors.LoadError,
        ExperimentError,
    ]
    lines += [f"- `{kind.__module__}.{kind.__name__}`: {_first(kind)}" for kind in kinds] + [""]
    lines += ["## trainlint.testing", "", _doc(testing), ""]
    for name in testing.__all__:
        lines += [*_entry(f"testing.{name}", getattr(testing, name)), ""]
    lines += ["## What a report holds", ""]
    records = importlib.import_module("trainlint.records")
    for name in records.__all__:
        if name == "Figure":
            lines += [f"A `Figure` is {FIGURE}", ""]
        elif not hasattr(trainlint, name):
            lines += [*_entry(name, getattr(records, name)), ""]
    lines += ["## trainlint.integrations", ""]
    for module in ("huggingface", "lightning"):
        source = importlib.import_module(f"trainlint.integrations.{module}")
        callback = source.TrainlintCallback
        lines += [*_entry(f"integrations.{module}.TrainlintCallback", callback), ""]
    return _joined(lines)


def rule() -> str:
    """The page for authors of rules."""
    lines = ["# Rules in Python", "", NOTE, "", RULE, ""]
    objects = {name: getattr(rules, name) for name in rules.__all__}
    own = [name for name, each in objects.items() if _home(each) == rules.__name__]
    own.sort(key=lambda name: _line(objects[name]))
    facts = [name for name in FACT_STAGES if name in objects]
    modules = [name for name, each in objects.items() if isinstance(each, ModuleType)]
    lines += ["## A rule and its findings", ""]
    for name in ("rule", *(name for name in own if name != "rule")):
        lines += [*_entry(name, objects[name]), ""]
    lines += ["## Facts", ""]
    for name in facts:
        lines += [*_entry(name, objects[name], f"Stage: {FACT_STAGES[name]}."), ""]
    rest = [name for name in objects if name not in (*own, *facts, *modules)]
    lines += ["## What facts hold", ""]
    for name in (name for name in rest if isinstance(objects[name], type)):
        lines += [*_entry(name, objects[name]), ""]
    lines += ["## Questions to the facts, and fixes", ""]
    for name in (name for name in rest if not isinstance(objects[name], type)):
        lines += [*_entry(name, objects[name]), ""]
    for name in modules:
        module = objects[name]
        lines += [f"## {name}", "", _doc(module), ""]
        for inner, each in _functions(module):
            lines += [*_entry(f"{name}.{inner}", each), ""]
    return _joined(lines)


def _functions(module: ModuleType) -> list[tuple[str, Any]]:
    return [
        (name, each)
        for name, each in inspect.getmembers(module, inspect.isfunction)
        if not name.startswith("_") and each.__module__ == module.__name__
    ]


def _home(value: Any) -> str:
    return str(getattr(value, "__module__", ""))


def _line(value: Any) -> int:
    return inspect.getsourcelines(value)[1]


def _entry(name: str, value: Any, remark: str = "") -> Iterator[str]:
    yield from (f"### {name}", "", "```python", *_signature(name, value), "```", "")
    if remark:
        yield from (remark, "")
    yield from (_doc(value), "")
    if isinstance(value, type) and not issubclass(value, enum.Enum):
        for method, each in _methods(value):
            yield from (f"- `{method}`{_short(each)}", "")


def _signature(name: str, value: Any) -> Iterator[str]:
    """As it would be called, over several lines where one is too long."""
    if isinstance(value, type) and issubclass(value, enum.Enum):
        yield from (f"{each.__class__.__name__}.{each.name}  # {each.value!r}" for each in value)
        return
    if not isinstance(value, type) and not inspect.isfunction(inspect.unwrap(value)):
        yield f"{name} = {inspect.formatannotation(value)}"
        return
    try:
        signature = inspect.signature(value)
    except ValueError:
        yield name
        return
    parameters = [each for each in signature.parameters.values() if each.name != "self"]
    scope = vars(sys.modules[value.__module__])
    parts = _with_marks(parameters, [_parameter(each, scope) for each in parameters])
    gives = signature.return_annotation
    result = (
        ""
        if gives in (inspect.Signature.empty, None, "None") or isinstance(value, type)
        else f" -> {_type(gives, scope)}"
    )
    line = f"{name}({', '.join(parts)}){result}"
    if len(line) <= WIDTH:
        yield line
    else:
        yield from (f"{name}(", *(f"    {part}," for part in parts), f"){result}")


def _with_marks(parameters: Sequence[inspect.Parameter], parts: list[str]) -> list[str]:
    kinds = [each.kind for each in parameters]
    keyword = inspect.Parameter.KEYWORD_ONLY
    if keyword in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        place = kinds.index(keyword)
        return [*parts[:place], "*", *parts[place:]]
    return parts


def _parameter(parameter: inspect.Parameter, scope: Mapping[str, Any]) -> str:
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    text = stars.get(parameter.kind, "") + parameter.name
    if parameter.annotation is not inspect.Parameter.empty:
        text += f": {_type(parameter.annotation, scope)}"
    if parameter.default is not inspect.Parameter.empty:
        text += f" = {_default(parameter.default)}"
    return text


def _default(value: Any) -> str:
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if value is msgspec.UNSET or "factory" in repr(value).lower():
        return "..."
    text = repr(value)
    if isinstance(value, frozenset) and value:
        text = f"frozenset({{{', '.join(map(repr, sorted(value)))}}})"
    return text if len(text) <= WIDTH else "..."


def _type(annotation: Any, scope: Mapping[str, Any]) -> str:
    """The annotation as written, with aliases of its module spelled out and modules left out."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)

    def spelled(name: re.Match[str]) -> str:
        alias = scope.get(name[0])
        is_alias = isinstance(alias, (types.UnionType, types.GenericAlias))
        return inspect.formatannotation(alias) if is_alias else name[0]

    text = re.sub(r"\b[A-Z]\w+\b", spelled, text)
    return re.sub(r"\b(?:trainlint|typing|collections\.abc|msgspec)(?:\.\w+)*\.(?=[A-Z])", "", text)


def _methods(value: type) -> Iterator[tuple[str, Any]]:
    for name, member in vars(value).items():
        if name.startswith(("_", "on_")) or isinstance(member, type):  # `on_`: a trainer calls them
            continue
        if isinstance(member, property):
            yield name, member.fget
        elif isinstance(member, (staticmethod, classmethod)):
            yield _called(name, member.__func__), member.__func__
        elif inspect.isfunction(member):
            yield _called(name, member), member


def _called(name: str, function: Any) -> str:
    parameters = list(inspect.signature(function).parameters.values())[1:]
    scope = vars(sys.modules[function.__module__])
    parts = _with_marks(parameters, [_parameter(each, scope) for each in parameters])
    return f"{name}({', '.join(parts)})"


def _short(value: Any) -> str:
    text = inspect.getdoc(value) or ""
    return f": {' '.join(text.split())}" if text else ""


def _first(value: Any) -> str:
    return _doc(value).partition("\n\n")[0]


def _doc(value: Any) -> str:
    return inspect.cleandoc(value.__doc__ or "")


def _joined(lines: Sequence[str]) -> str:
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"
