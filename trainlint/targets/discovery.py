"""Which models a file holds, read from its syntax tree alone: nothing is imported or run.

Instances at module level come first, then factories, then classes that can be constructed. What is
used inside another model, or handed to its constructor, is a part and no model of its own.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from trainlint.errors import LoadError
from trainlint.fixes.text import SourceText

MODULE_BASES: Final = frozenset(
    {"Module", "LightningModule", "PreTrainedModel", "Sequential", "ModuleList", "ModuleDict"}
)
# These leave the forward to whoever derives from them.
_PLAIN_BASES: Final = frozenset({"Module", "LightningModule"})
RECIPE_FACTORIES: Final = ("build_model", "get_model", "create_model", "make_model", "model", "net")
# A script's own steps, never factories.
_NOT_FACTORIES: Final = frozenset(
    "main train test evaluate eval fit run validate predict demo".split()
)
_LOSS_NAMES: Final = ("criterion", "loss", "loss_fn", "loss_func", "loss_function", "metric")
_FRAMEWORKS: Final = (b"torch", b"lightning", b"transformers", b"timm", b"monai", b"diffusers")
_BUILDS: Final = re.compile(rb"\bnn\b|Module\b|\b(lightning|transformers|timm|monai|diffusers)\b")
_SKIPPED_FOLDERS: Final = frozenset(
    "node_modules site-packages dist-packages build dist __pycache__ tests test".split()
)
_TEST_FILE: Final = re.compile(r"test_.*|.*_test\.py|conftest\.py|setup\.py")
_COPIES: Final = re.compile(r"deepcopy|ema|averaged", re.IGNORECASE)


@dataclass(frozen=True)
class Candidate:
    """Something that may be a model: an `instance`, a `factory` or a `class`.

    `likely` tells that the syntax alone makes it one; an unlikely one is looked at after loading.
    `why_not` says why a class cannot be constructed.
    """

    name: str
    kind: str
    row: int
    likely: bool = True


@dataclass
class Discovery:
    """The candidates of one file, and what the loader needs to construct them."""

    candidates: list[Candidate] = field(default_factory=list)
    classes: dict[str, ast.ClassDef] = field(default_factory=dict)
    calls: dict[str, list[CallSite]] = field(default_factory=dict)
    repeated: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class CallSite:
    """A call of a model class in the file, with the blocks around it, innermost last."""

    call: ast.Call
    blocks: tuple[ast.AST, ...]


def python_files(folder: Path) -> Iterator[Path]:
    """The Python files below a folder that mention a framework, in order.

    Hidden folders, virtual environments, installed packages and tests are left out.
    """
    for place in source_folders(folder):
        for path in sorted(place.glob("*.py")):
            is_file = path.is_file() and not path.name.startswith(".")
            if is_file and not is_test_file(path) and mentions_framework(path):
                yield path


def source_folders(folder: Path) -> Iterator[Path]:
    """The folder and those below it that may hold a project's own code, in order."""
    for place, folders, _ in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _is_skipped(Path(place, name)))
        yield Path(place)


def is_test_file(path: Path) -> bool:
    """Whether the name is that of tests or of a project's own machinery."""
    return _TEST_FILE.match(path.name) is not None


def mentions_framework(path: Path) -> bool:
    """Whether the text has a word of torch or a library on it; no file that cannot be read."""
    with contextlib.suppress(OSError):
        content = path.read_bytes()
        return any(framework in content for framework in _FRAMEWORKS)
    return False


def builds_models(path: Path) -> bool:
    """Whether the text may define a model or a part of models: it has a word of what they are made of."""
    with contextlib.suppress(OSError):
        return mentions_framework(path) and _BUILDS.search(path.read_bytes()) is not None
    return False


def holds_models(path: Path) -> bool:
    """Whether the syntax alone shows a model; a file that does not parse is looked at, and reported.

    Without a word of torch or a library on it, nothing is parsed.
    """
    if not mentions_framework(path):
        return False
    text = SourceText.read(str(path))
    if text is None:
        return True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a SyntaxWarning of the user's is not our business
        if text.tree is None:
            return True
    return any(candidate.likely for candidate in discover(text).candidates)


def syntax_error(text: SourceText) -> LoadError:
    """Where a text does not parse, and why."""
    try:
        ast.parse(text.text)
    except SyntaxError as error:
        row = error.lineno
        said = error.msg.removesuffix(f" (detected at line {row})").removesuffix(f" on line {row}")
        return LoadError(f"does not parse: {said} at line {row}", row)
    except ValueError as error:
        return LoadError(f"does not parse: {error}")
    return LoadError("does not parse")


def is_scanned(path: Path) -> bool:
    """Whether a file that a commit hook names is looked at, as one that was met in a directory."""
    return is_searched(path) and holds_models(path)


def is_searched(path: Path) -> bool:
    """Whether its name is that of a file which is looked into when a directory is checked.

    Of an absolute path the folders do not count: they are where the project lies.
    """
    folders = () if path.is_absolute() else path.parent.parts
    is_hidden = any(name.startswith(".") and name not in (".", "..") for name in folders)
    return not (is_test_file(path) or is_hidden or _SKIPPED_FOLDERS.intersection(folders))


def _is_skipped(folder: Path) -> bool:
    return (
        folder.name.startswith(".")
        or folder.name in _SKIPPED_FOLDERS
        or (folder / "pyvenv.cfg").exists()
    )


def discover(text: SourceText) -> Discovery:
    """Find the candidates of a file. Its tree must have parsed."""
    assert text.tree is not None
    tree = text.tree
    found = Discovery(classes=_model_classes(tree))
    found.repeated = _repeated_classes(tree)
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    for name in (*found.classes, *functions):
        found.calls[name] = []
    for call, blocks in _calls(tree):
        if isinstance(call.func, ast.Name) and call.func.id in found.calls:
            found.calls[call.func.id].append(CallSite(call, blocks))
    parts = _parts(found, functions)
    instances = list(_instances(tree, found, functions))
    made = _constructed_by(instances, tree)
    factories = [
        Candidate(name, "factory", node.lineno)
        for name, node in functions.items()
        if name not in made and name not in parts and _is_factory(node, found)
    ]
    for factory in factories:
        made |= _names_in(functions[factory.name])
    classes = [
        Candidate(name, "class", node.lineno)
        for name, node in found.classes.items()
        if name not in parts and name not in made
    ]
    found.candidates = [*instances, *factories, *classes]
    return found


# ---------------------------------------------------------------------- classes


def _model_classes(tree: ast.Module) -> dict[str, ast.ClassDef]:
    """Top-level classes that derive from a module class, directly or through others of the file."""
    classes = {node.name: node for node in _top_level(tree) if isinstance(node, ast.ClassDef)}
    models: dict[str, ast.ClassDef] = {}
    for name, node in classes.items():
        seen: set[str] = set()
        if _is_model_class(node, classes, seen):
            models[name] = node
    return models


def _is_model_class(node: ast.ClassDef, classes: dict[str, ast.ClassDef], seen: set[str]) -> bool:
    seen.add(node.name)
    for base in node.bases:
        name = _last_name(base)
        if name in MODULE_BASES:
            return True
        if name in classes and name not in seen and _is_model_class(classes[name], classes, seen):
            return True
        # A base from another file: a module if it has a forward; what it is shows after loading.
        if name not in classes and name is not None and _method(node, "forward") is not None:
            return True
    return False


def without_forward(found: Discovery) -> str | None:
    """`class Net (line 3) has no forward; is foward (line 7) meant?`, of the first such class."""
    for name, node in found.classes.items():
        is_own = all(_last_name(base) in _PLAIN_BASES for base in node.bases)
        methods = {part.name: part for part in node.body if isinstance(part, ast.FunctionDef)}
        if not is_own or "forward" in methods:
            continue
        said = f"class {name} (line {node.lineno}) has no forward"
        near = difflib.get_close_matches("forward", methods, n=1, cutoff=0.7)
        meant = [methods[other] for other in (*near, "call", "__call__") if other in methods]
        return f"{said}; is {meant[0].name} (line {meant[0].lineno}) meant?" if meant else said
    return None


def _repeated_classes(tree: ast.Module) -> list[str]:
    names = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    return sorted({name for name in names if names.count(name) > 1})


def _method(node: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == name:
            return statement
    return None


def _parts(found: Discovery, functions: dict[str, ast.FunctionDef]) -> set[str]:
    """Classes and functions that serve to build other models."""
    parts: set[str] = set()
    for name, node in found.classes.items():
        parts |= _names_in(node) - {name}
    for name, sites in found.calls.items():
        # `train(Net())` does not make Net a part; `AutoEncoder(Encoder())` does.
        for site in sites if name in found.classes else ():
            for value in (*site.call.args, *(keyword.value for keyword in site.call.keywords)):
                parts |= _names_in(value) & (set(found.classes) | set(functions))
    return parts & (set(found.classes) | set(functions))


# ---------------------------------------------------------------------- instances and factories


def _instances(
    tree: ast.Module, found: Discovery, functions: dict[str, ast.FunctionDef]
) -> Iterator[Candidate]:
    seen: set[str] = set()
    for target, value in _assigned_calls(tree):
        if target.id in seen or target.id.lower().lstrip("_") in _LOSS_NAMES:
            continue
        callee = _last_name(value.func)
        if _copied(value) & seen:
            continue  # an average or a frozen copy of a model that is already there
        seen.add(target.id)
        likely = isinstance(value.func, ast.Name) and callee in found.classes
        likely = likely or callee in MODULE_BASES | set(RECIPE_FACTORIES)
        likely = likely or _makes_one(value, found, functions)
        yield Candidate(target.id, "instance", target.lineno, likely)


def _copied(call: ast.Call) -> set[str]:
    """What `copy.deepcopy(model)` copies, also behind `.to(device).requires_grad_(False).eval()`."""
    while isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Call):
        call = call.func.value
    callee = _last_name(call.func)
    if callee is None or not _COPIES.search(callee):
        return set()
    return {part.id for part in call.args if isinstance(part, ast.Name)}


def _makes_one(call: ast.Call, found: Discovery, functions: dict[str, ast.FunctionDef]) -> bool:
    """`Net().to(device)`, `nn.DataParallel(Net())`, `build()`: a model class or factory is called in it."""
    for part in ast.walk(call):
        if isinstance(part, ast.Call) and isinstance(part.func, ast.Name):
            name = part.func.id
            if name in found.classes or (name in functions and _is_factory(functions[name], found)):
                return True
    return False


def _assigned_calls(tree: ast.Module) -> Iterator[tuple[ast.Name, ast.Call]]:
    """`name = call(...)` at module level, also with an annotation."""
    for node in _top_level(tree):
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Call):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    yield target, node.value


def _constructed_by(instances: Iterable[Candidate], tree: ast.Module) -> set[str]:
    """The classes and functions from whose calls the module-level instances come."""
    names = {candidate.name for candidate in instances}
    made: set[str] = set()
    for target, value in _assigned_calls(tree):
        if target.id in names:
            made |= _names_in(value)
    return made


def _is_factory(node: ast.FunctionDef, found: Discovery) -> bool:
    """A function without required arguments that returns a model."""
    if not _takes_nothing(node):
        return False
    returned = [
        part.value for part in ast.walk(node) if isinstance(part, ast.Return) and part.value
    ]
    if not returned:
        return False
    if node.name in RECIPE_FACTORIES:
        return True
    assigned = {
        target.id: part.value
        for part in ast.walk(node)
        if isinstance(part, ast.Assign)
        for target in part.targets
        if isinstance(target, ast.Name)
    }
    for value in returned:
        if isinstance(value, ast.Name):
            value = assigned.get(value.id, value)
        if isinstance(value, ast.Call) and (
            _last_name(value.func) in MODULE_BASES or _last_name(value.func) in found.classes
        ):
            return True
    return False


def _takes_nothing(node: ast.FunctionDef) -> bool:
    required = len(node.args.args) + len(node.args.posonlyargs) - len(node.args.defaults)
    missing_keywords = any(default is None for default in node.args.kw_defaults)
    return required <= 0 and not missing_keywords and node.name not in _NOT_FACTORIES


def possible_factories(tree: ast.Module) -> list[str]:
    """Functions that could be called and return what a call gives: a model, for all that the syntax tells.

    They are not called unless somebody names them.
    """
    return [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and _takes_nothing(node)
        and isinstance(node.body[-1], ast.Return)
        and isinstance(node.body[-1].value, (ast.Call, ast.Name))
    ]


# ---------------------------------------------------------------------- walking


def _top_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements that run on import, also inside `if`, `with` and `try`, but not the main guard."""
    stack: list[ast.stmt] = list(reversed(tree.body))
    while stack:
        node = stack.pop()
        if is_main_guard(node):
            continue
        yield node
        if isinstance(node, (ast.If, ast.With, ast.Try, ast.For, ast.While)):
            inner: list[ast.stmt] = list(node.body)
            for handler in getattr(node, "handlers", []):
                inner += handler.body
            for name in ("orelse", "finalbody"):
                inner += getattr(node, name, [])
            stack.extend(reversed(inner))


def is_main_guard(node: ast.AST) -> bool:
    """`if __name__ == "__main__":`."""
    return isinstance(node, ast.If) and any(
        isinstance(part, ast.Name) and part.id == "__name__" for part in ast.walk(node.test)
    )


def _calls(tree: ast.Module) -> Iterator[tuple[ast.Call, tuple[ast.AST, ...]]]:
    stack: list[tuple[ast.AST, tuple[ast.AST, ...]]] = [(tree, ())]
    while stack:
        node, blocks = stack.pop()
        if isinstance(node, ast.Call):
            yield node, blocks
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) or is_main_guard(
            node
        ):
            blocks = (*blocks, node)
        stack.extend((child, blocks) for child in reversed(list(ast.iter_child_nodes(node))))


def _names_in(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def _last_name(node: ast.expr) -> str | None:
    if isinstance(node, ast.Subscript):
        return _last_name(node.value)
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else None
