"""Run a user's file as a module, and construct the models in it. In the child process only.

The file runs top to bottom as pytest would import it, statement by statement. It stops at the first
`backward()` or optimizer step, at an exception or `SystemExit`, or when its time is up; of the rest only
imports, functions and classes are then read, so that a script which trains or wants arguments still
shows its model.
"""

from __future__ import annotations

import __future__ as future_features

import ast
import contextlib
import importlib
import importlib.machinery
import inspect
import sys
import traceback
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from trainlint.discovery import Candidate, CallSite, Discovery, discover
from trainlint.errors import LoadError
from trainlint.fixes.source import SourceText
from trainlint.sites import replaced
from trainlint.subject import describe_error


class Stop(BaseException):
    """Raised in the user's code where running on would train. No `except Exception` catches it."""


@dataclass
class LoadedFile:
    """A module as far as it ran. `stopped` says at which line it stopped and why."""

    module: types.ModuleType
    text: SourceText
    discovery: Discovery
    stopped: str | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class LoadedModel:
    """A model with the name that the report gives it."""

    name: str
    model: nn.Module


def load_file(path: Path, text: SourceText, dotted: str | None = None) -> LoadedFile:
    """Run the file, as the module `dotted` where it was asked for by that name.

    Raises `LoadError` where it does not parse.
    """
    if text.tree is None:
        raise LoadError(_syntax_error(text))
    name, package = _module_name(path)
    if dotted is not None:
        name = dotted
        package = dotted if path.stem == "__init__" else dotted.rpartition(".")[0]
    module = types.ModuleType(name)
    module.__file__ = str(path)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, origin=str(path))
    module.__package__ = package
    loaded = LoadedFile(module, text, discover(text))
    with _no_training():
        if package:
            try:
                importlib.import_module(package)
            except BaseException as error:
                loaded.notes.append(f"package {package} stopped: {_reason(error)}")
                _stub_packages(package, path.parent)
            imported = sys.modules.get(name)
            if imported is not None and getattr(imported, "__file__", None) == str(path):
                loaded.module = imported  # its own package imports it
                return loaded
        sys.modules[name] = module
        _run(loaded)
    return loaded


def _syntax_error(text: SourceText) -> str:
    try:
        ast.parse(text.text)
    except SyntaxError as error:
        return f"does not parse: {error.msg} at line {error.lineno}"
    except ValueError as error:
        return f"does not parse: {error}"
    return "does not parse"


def _module_name(path: Path) -> tuple[str, str]:
    """(module name, package), and the folders that imports need on `sys.path`."""
    parents: list[str] = []
    folder = path.parent
    while (folder / "__init__.py").is_file() and folder.name.isidentifier():
        parents.insert(0, folder.name)
        folder = folder.parent
    for entry in (str(Path.cwd()), str(folder)):
        if entry in sys.path:
            sys.path.remove(entry)
        sys.path.insert(0, entry)
    sys.meta_path.insert(0, _StandardLibraryFirst({str(folder), str(Path.cwd())}))
    if parents:
        package = ".".join(parents)
        return (package if path.stem == "__init__" else f"{package}.{path.stem}"), package
    stem = path.stem
    taken = stem in sys.modules or stem in sys.stdlib_module_names or not stem.isidentifier()
    return (f"_trainlint_target_{abs(hash(str(path)))}" if taken else stem), ""


class _StandardLibraryFirst:
    """A user's `random.py` or `queue.py` must not be what torch gets when it imports that name."""

    def __init__(self, folders: set[str]) -> None:
        self._folders = folders

    def find_spec(
        self, name: str, path: Any = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if path is not None or name not in sys.stdlib_module_names:
            return None
        others = [entry for entry in sys.path if (entry or str(Path.cwd())) not in self._folders]
        return importlib.machinery.PathFinder.find_spec(name, others)


def _stub_packages(package: str, folder: Path) -> None:
    """Let relative imports work although the package's own `__init__` failed."""
    parts = package.split(".")
    for depth in range(len(parts), 0, -1):
        name = ".".join(parts[:depth])
        if name not in sys.modules:
            stub = types.ModuleType(name)
            stub.__path__ = [str(folder)]
            sys.modules[name] = stub
        folder = folder.parent


def _run(loaded: LoadedFile) -> None:
    tree, namespace = loaded.text.tree, vars(loaded.module)
    assert tree is not None
    namespace["__doc__"] = ast.get_docstring(tree, clean=False)
    flags = _future_flags(tree)
    filename = str(loaded.module.__file__)
    for statement in tree.body:
        if loaded.stopped is not None and not _is_definition(statement):
            continue
        code = compile(
            ast.Module([statement], []), filename, "exec", flags=flags, dont_inherit=True
        )
        try:
            exec(code, namespace)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if loaded.stopped is None:
                row = _row_in(error, filename, statement.lineno)
                loaded.stopped = f"the run of the file stopped at line {row}: {_reason(error)}"


def _future_flags(tree: ast.Module) -> int:
    flags = 0
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            for alias in node.names:
                flags |= getattr(future_features, alias.name).compiler_flag
    return flags


def _is_definition(statement: ast.stmt) -> bool:
    """Safe and useful after a stop: imports, functions, classes, and names for plain values."""
    if isinstance(
        statement, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    ):
        return True
    if isinstance(statement, (ast.Assign, ast.AnnAssign)) and statement.value is not None:
        return not any(
            isinstance(part, (ast.Call, ast.Await, ast.Subscript)) for part in ast.walk(statement.value)
        )
    return False


def _row_in(error: BaseException, filename: str, default: int) -> int:
    rows = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == filename and frame.name == "<module>" and frame.lineno
    ]
    return rows[-1] if rows else default


def _reason(error: BaseException) -> str:
    if isinstance(error, Stop):
        return str(error)
    if isinstance(error, SystemExit):
        return f"it exits there (status {error.code})" if error.code else "it exits there"
    return describe_error(error)


@contextlib.contextmanager
def _no_training() -> Iterator[None]:
    """Constructing is our business, training is not: stop at the first step towards it."""

    def stopper(what: str) -> Any:
        def stop(*_: Any, **__: Any) -> Any:
            raise Stop(f"{what}; the model is checked as it was then")

        return stop

    from torch.optim.optimizer import register_optimizer_step_pre_hook

    hook = register_optimizer_step_pre_hook(stopper("training begins there (optimizer step)"))
    with contextlib.ExitStack() as stack:
        stack.callback(hook.remove)
        backward = stopper("training begins there (backward)")
        stack.enter_context(replaced(torch.Tensor, "backward", backward))
        stack.enter_context(replaced(torch.autograd, "backward", backward))
        yield


# ---------------------------------------------------------------------- models of a loaded file


def models_of(loaded: LoadedFile) -> Iterator[LoadedModel | tuple[Candidate, LoadError]]:
    """The file's models, or the reason why a candidate could not be constructed."""
    namespace = vars(loaded.module)
    instances: list[tuple[str, nn.Module]] = []
    for candidate in loaded.discovery.candidates:
        value = namespace.get(candidate.name)
        if candidate.kind == "instance" and _is_model(value):
            if all(value is not other for _, other in instances):
                instances.append((candidate.name, value))
    for name, model in instances:
        if not any(_contains(other, model) for _, other in instances):
            yield LoadedModel(name, model)
    for candidate in loaded.discovery.candidates:
        if candidate.kind == "instance":
            missing = candidate.name not in namespace
            if missing and candidate.likely and candidate.name not in _made_otherwise(loaded):
                yield from _instead_of_instance(loaded, candidate)
            continue
        try:
            model = construct(loaded, candidate.name)
        except LoadError as error:
            if candidate.name in namespace or loaded.stopped is None:
                yield candidate, error
            continue
        if model is not None:
            yield LoadedModel(candidate.name, model)


def _made_otherwise(loaded: LoadedFile) -> set[str]:
    return {candidate.name for candidate in loaded.discovery.candidates if candidate.kind != "instance"}


def _instead_of_instance(
    loaded: LoadedFile, candidate: Candidate
) -> Iterator[LoadedModel | tuple[Candidate, LoadError]]:
    """`model = Net(...).cuda()` was not reached or failed: construct its class from that call."""
    tree = loaded.text.tree
    assert tree is not None
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign) or node.lineno != candidate.row:
            continue
        for part in ast.walk(node.value):
            name = part.func.id if isinstance(part, ast.Call) and isinstance(part.func, ast.Name) else None
            if name is None or name not in vars(loaded.module):
                continue
            if name in loaded.discovery.classes or name in loaded.discovery.calls:
                try:
                    model = construct(loaded, name)
                except LoadError as error:
                    yield candidate, error
                    return
                if model is not None:
                    yield LoadedModel(candidate.name, model)
                return


def _is_model(value: Any) -> bool:
    return (
        isinstance(value, nn.Module)
        and not isinstance(value, nn.modules.loss._Loss)
        and any(True for _ in value.parameters())
    )


def _contains(outer: nn.Module, inner: nn.Module) -> bool:
    return outer is not inner and any(module is inner for module in outer.modules())


def named_model(loaded: LoadedFile, name: str) -> nn.Module:
    """The model that the user named: an instance, a class or a factory. Raises `LoadError`."""
    namespace = vars(loaded.module)
    value: Any = namespace.get(name.partition(".")[0])
    for attribute in name.split(".")[1:]:
        value = getattr(value, attribute, None)
    if value is None:
        stopped = f" ({loaded.stopped})" if loaded.stopped else ""
        known = [candidate.name for candidate in loaded.discovery.candidates]
        hint = f"; it has: {', '.join(known)}" if known else ""
        raise LoadError(f"has no {name}{stopped}{hint}")
    if isinstance(value, nn.Module):
        return value
    if isinstance(value, type) and issubclass(value, nn.Module):
        for other in namespace.values():
            if type(other) is value and _needs_arguments(value):
                assert isinstance(other, nn.Module)
                return other
    model = construct(loaded, name, value)
    if model is None:
        raise LoadError(f"{name} is not a torch.nn.Module, nor does it return one")
    return model


def construct(loaded: LoadedFile, name: str, value: Any = None) -> nn.Module | None:
    """Call a class or factory, with the arguments of a call in the file where it needs some.

    None if it is or makes no module. Raises `LoadError` with what is missing or what it raised.
    """
    made = vars(loaded.module).get(name) if value is None else value
    if not callable(made) or (isinstance(made, type) and not issubclass(made, nn.Module)):
        return None
    reason: LoadError | None = None
    if not _needs_arguments(made):
        model = _called(name, made, (), {})
        return model if isinstance(model, nn.Module) else None
    for site in loaded.discovery.calls.get(name, ()):
        try:
            args, kwargs = _arguments(loaded, site)
        except LoadError as error:
            reason = reason or error
            continue
        model = _called(name, made, args, kwargs)
        return model if isinstance(model, nn.Module) else None
    missing = ", ".join(_required_arguments(made))
    detail = f" ({reason})" if reason is not None else ""
    raise LoadError(
        f"{name} needs arguments ({missing}) and no call in the file shows them{detail}; "
        "add a function build_model() that returns one"
    )


def _called(name: str, made: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        with _no_training():
            return made(*args, **kwargs)
    except Exception as error:
        raise LoadError(f"constructing {name} raised {describe_error(error)}{_where(error)}") from error
    except (Stop, SystemExit) as error:
        raise LoadError(f"constructing {name}: {_reason(error)}") from error


def _where(error: BaseException) -> str:
    from trainlint.capture import site_of

    site = site_of(error)
    return f" at {site.filename}:{site.row}" if site is not None else ""


def _required_arguments(made: Any) -> list[str]:
    try:
        parameters = inspect.signature(made).parameters.values()
    except (TypeError, ValueError):
        return []
    return [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]


def _needs_arguments(made: Any) -> bool:
    return bool(_required_arguments(made))


# ---------------------------------------------------------------------- arguments of a call site

_HARMLESS: Final = frozenset(
    {"len", "int", "float", "bool", "str", "list", "tuple", "dict", "set", "range", "min", "max",
     "sum", "abs", "round", "sorted"}
)  # fmt: skip


def _arguments(loaded: LoadedFile, site: CallSite) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The values of a call's arguments, from literals, the module's names and plain local names."""
    scope = _Scope(loaded, site)
    args: list[Any] = []
    for node in site.call.args:
        if isinstance(node, ast.Starred):
            args.extend(scope.value(node.value))
        else:
            args.append(scope.value(node))
    kwargs: dict[str, Any] = {}
    for keyword in site.call.keywords:
        if keyword.arg is None:
            kwargs.update(scope.value(keyword.value))
        else:
            kwargs[keyword.arg] = scope.value(keyword.value)
    return tuple(args), kwargs


class _Scope:
    """Evaluates expressions at a call site without running the code around it.

    A local name counts if one plain assignment in the blocks around the call defines it. Calls are
    made only of classes (a config, a sub-module) and of a few built-in functions.
    """

    def __init__(self, loaded: LoadedFile, site: CallSite) -> None:
        self._namespace = vars(loaded.module)
        self._filename = str(loaded.module.__file__)
        self._locals: dict[str, list[ast.expr]] = {}
        self._hidden: set[str] = set()
        for block in site.blocks:
            if isinstance(block, (ast.FunctionDef, ast.AsyncFunctionDef)):
                arguments = [*block.args.posonlyargs, *block.args.args, *block.args.kwonlyargs]
                self._hidden |= {argument.arg for argument in arguments}
            for node in ast.walk(block):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    self._locals.setdefault(node.id, [])
                if isinstance(node, ast.Assign) and len(node.targets) == 1:
                    target = node.targets[0]
                    if isinstance(target, ast.Name):
                        self._locals.setdefault(target.id, []).append(node.value)
        self._resolving: set[str] = set()

    def value(self, node: ast.expr) -> Any:
        names: dict[str, Any] = {}
        own = {part.arg for part in ast.walk(node) if isinstance(part, ast.arg)} | {
            part.id
            for part in ast.walk(node)
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
        }
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and part.id not in own and part.id not in names:
                names[part.id] = self._name(part.id)
            elif isinstance(part, (ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr)):
                raise LoadError(f"`{ast.unparse(node)}` cannot be evaluated by itself")
        for part in ast.walk(node):
            if isinstance(part, ast.Call):
                self._allow(part, names)
        code = compile(ast.Expression(node), self._filename, "eval")
        try:
            return eval(code, {**self._namespace, **names})
        except Exception as error:
            raise LoadError(f"`{ast.unparse(node)}` raised {describe_error(error)}") from error

    def _name(self, name: str) -> Any:
        if name in self._locals and name not in self._hidden:
            values = self._locals[name]
            if len(values) == 1 and name not in self._resolving:
                self._resolving.add(name)
                try:
                    return self.value(values[0])
                finally:
                    self._resolving.discard(name)
        elif name not in self._hidden:
            if name in self._namespace:
                return self._namespace[name]
            builtins = vars(__import__("builtins"))
            if name in builtins:
                return builtins[name]
        raise LoadError(f"`{name}` has no value outside the running script")

    def _allow(self, call: ast.Call, names: dict[str, Any]) -> None:
        callee = call.func
        value: Any = None
        if isinstance(callee, ast.Name):
            value = names.get(callee.id)
        elif isinstance(callee, ast.Attribute):
            with contextlib.suppress(Exception):
                code = compile(ast.Expression(callee), self._filename, "eval")
                value = eval(code, {**self._namespace, **names})
        harmless = isinstance(value, type) or getattr(value, "__name__", "") in _HARMLESS
        if not harmless:
            raise LoadError(f"`{ast.unparse(call)}` is not called to find arguments")


def example_inputs(loaded: LoadedFile) -> Any:
    """The file's `example_inputs`, or None."""
    return vars(loaded.module).get("example_inputs")
