"""Run a user's file as a module, and construct the models in it. In the child process only.

The file runs top to bottom as pytest would import it, statement by statement. It stops before a call that
is the script's program, as `main()`, at the first `backward()` or optimizer step, at an exception or
`SystemExit`, or when its time is up; of the rest only imports, functions and classes are then read, so that
a script which trains or wants arguments still shows its model.
"""

from __future__ import annotations
import __future__ as future_features

import ast
import contextlib
import importlib
import importlib.machinery
import inspect
import os
import re
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from trainlint import unbound
from trainlint.errors import LoadError
from trainlint.fixes.text import SourceText
from trainlint.loss.source import loss_uses, training_of
from trainlint.loss.uses import Recipe
from trainlint.probe.setup import setup_of
from trainlint.records import RUN_STOPPED
from trainlint.sites import replaced
from trainlint.subject import describe_error
from trainlint.targets.discovery import CallSite, Candidate, Discovery, discover, syntax_error
from trainlint.targets.loops import Script


class Stop(BaseException):
    """Raised in the user's code where it is not to run on. No `except Exception` catches it."""


class Training(Stop):
    """Raised where running on would train."""


@dataclass
class LoadedFile:
    """A module as far as it ran. `stopped` says at which line it stopped and why.

    `program` is the statement at which it did where that is since it trains, or is what the script does.
    """

    module: types.ModuleType
    text: SourceText
    discovery: Discovery
    script: Script
    stopped: str | None = None
    program: ast.stmt | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Found:
    """Something in the file by the name that the report gives it. `make` constructs it.

    `make` returns None for what turns out to be no model, and raises `LoadError` where it fails.
    """

    name: str
    make: Callable[[], nn.Module | None]


def load_file(
    path: Path,
    text: SourceText,
    dotted: str | None = None,
    after: Callable[[ast.stmt, types.ModuleType], None] | None = None,
) -> LoadedFile:
    """Run the file, as the module `dotted` where it was asked for by that name.

    `after` is told of each statement at module level when it was run. Raises `LoadError` where the file
    does not parse.
    """
    if text.tree is None:
        raise syntax_error(text)
    name, package = _module_name(path, text.tree)
    if dotted is not None:
        name = dotted
        package = dotted if path.stem == "__init__" else dotted.rpartition(".")[0]
    module = types.ModuleType(name)
    module.__file__ = str(path)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, origin=str(path))
    module.__package__ = package
    discovery = discover(text)
    loaded = LoadedFile(module, text, discovery, Script(text.tree, discovery))
    loaded.notes += [
        f"{name} is defined twice; the last one counts" for name in loaded.discovery.repeated
    ]
    with _no_training() as stops:
        _import_packages(package, path, loaded.notes)
        imported = sys.modules.get(name)
        if package and getattr(imported, "__file__", None) == str(path):
            assert imported is not None
            loaded.module = imported  # its own package imports it
            if after is not None:
                for statement in text.tree.body:
                    after(statement, imported)
        else:
            sys.modules[name] = module
            _run(loaded, stops, after)
    return loaded


def _module_name(path: Path, tree: ast.Module) -> tuple[str, str]:
    """(module name, package). Puts the folders that imports need on `sys.path`."""
    # Relative imports make packages of the folders above, with or without an `__init__.py`.
    levels = max(
        (node.level for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)), default=0
    )
    parents: list[str] = []
    folder = path.parent
    while folder != folder.parent and "." not in folder.name:
        if not (folder / "__init__.py").is_file() and len(parents) >= levels:
            break
        parents.insert(0, folder.name)
        folder = folder.parent
    first = [str(folder), str(Path.cwd())]
    # `import sibling` as in a run of the script itself, where no package has that name.
    sys.path[:] = [*first, *(entry for entry in sys.path if entry not in first), str(path.parent)]
    sys.meta_path.insert(0, _StandardLibraryFirst({*first, str(path.parent)}))
    if parents:
        package = ".".join(parents)
        return (package if path.stem == "__init__" else f"{package}.{path.stem}"), package
    taken = path.stem in sys.modules or path.stem in sys.stdlib_module_names
    return (f"_trainlint_target_{path.stem}" if taken else path.stem), ""


class _StandardLibraryFirst:
    """A user's `random.py` or `queue.py` must not be what torch gets when it imports that name."""

    def __init__(self, folders: set[str]) -> None:
        self._folders = folders

    def find_spec(
        self, name: str, path: Any = None, _target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if path is not None or name not in sys.stdlib_module_names:
            return None
        others = [entry for entry in sys.path if (entry or str(Path.cwd())) not in self._folders]
        return importlib.machinery.PathFinder.find_spec(name, others)


def _import_packages(package: str, path: Path, notes: list[str]) -> None:
    """Import the packages around the file, outermost first; one that fails is replaced by a stub.

    So relative imports work although an `__init__` raises.
    """
    parts = package.split(".") if package else []
    levels_up = len(parts) - 1
    for depth in range(1, len(parts) + 1):
        name = ".".join(parts[:depth])
        try:
            importlib.import_module(name)
        except BaseException as error:
            notes.append(f"package {name} stopped: {reason_of(error)}")
            stub = types.ModuleType(name)
            stub.__path__ = [str(path.parents[levels_up - depth + 1])]
            sys.modules[name] = stub


def _run(
    loaded: LoadedFile,
    stops: list[Stop],
    after: Callable[[ast.stmt, types.ModuleType], None] | None,
) -> None:
    tree, namespace = loaded.text.tree, vars(loaded.module)
    assert tree is not None
    namespace["__doc__"] = ast.get_docstring(tree, clean=False)
    flags = _future_flags(tree)
    filename = str(loaded.module.__file__)
    unbound.forget(filename)
    for statement in tree.body:
        if loaded.stopped is not None and not _is_definition(statement):
            unbound.note(filename, statement, loaded.stopped)
            continue
        program = loaded.script.says(statement)
        if program:
            loaded.stopped = f"{RUN_STOPPED} at line {statement.lineno}: {program}"
            loaded.program = statement
            unbound.note(filename, statement, loaded.stopped)
            continue
        code = compile(
            ast.Module([statement], []), filename, "exec", flags=flags, dont_inherit=True
        )
        try:
            _execute(code, loaded)
            if after is not None:
                after(statement, loaded.module)
            if stops:
                raise stops[0]  # the file itself caught it
        except BaseException as error:
            if loaded.stopped is None:
                place = _place_in(error, filename, statement.lineno)
                loaded.stopped = f"{RUN_STOPPED} at {place}: {_with_advice(error, statement)}"
                if isinstance(error, Training):
                    loaded.program = statement
            unbound.note(filename, statement, loaded.stopped, error)
        stops.clear()


def _execute(code: types.CodeType, loaded: LoadedFile) -> None:
    """Run one statement; once more from the file's own folder where it misses a file that lies there."""
    namespace = vars(loaded.module)
    try:
        exec(code, namespace)
    except FileNotFoundError as error:
        folder = Path(str(loaded.module.__file__)).parent
        name = error.filename if isinstance(error.filename, str) else ""
        beside = name and not Path(name).is_absolute() and (folder / name).exists()
        if not beside or Path.cwd() == folder:
            raise
        os.chdir(folder)
        loaded.notes.append(f"ran in its own folder, where {name} lies")
        exec(code, namespace)


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
    if isinstance(statement, ast.Try):
        parts = [*statement.body, *statement.orelse, *statement.finalbody]
        parts += [part for handler in statement.handlers for part in handler.body]
        return all(_is_definition(part) or isinstance(part, ast.Pass) for part in parts)
    if isinstance(statement, (ast.Assign, ast.AnnAssign)) and statement.value is not None:
        return not any(
            isinstance(part, (ast.Call, ast.Await)) for part in ast.walk(statement.value)
        )
    return False


def _place_in(error: BaseException, filename: str, default: int) -> str:
    """The line of the file at which it happened, and that of the call at module level."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == filename and frame.lineno
    ]
    outer = [frame.lineno for frame in frames if frame.name == "<module>"]
    if not outer:
        return f"line {default}"
    inner = frames[-1]
    if inner.name in ("<module>", "<listcomp>", "<dictcomp>", "<genexpr>", "<setcomp>"):
        return f"line {outer[-1]}"
    return f"line {outer[-1]} (in {inner.name}, line {inner.lineno})"


def _with_advice(error: BaseException, statement: ast.stmt) -> str:
    """The reason, and where that belongs which only a script does."""
    reads_arguments = isinstance(error, IndexError) and "sys.argv" in ast.unparse(statement)
    ends = isinstance(error, (SystemExit, EOFError)) or type(error) is Stop
    reason = f"{reason_of(error)} in sys.argv" if reads_arguments else reason_of(error)
    if not (ends or reads_arguments):
        return reason
    return f'{reason}; put that below `if __name__ == "__main__"`'


def reason_of(error: BaseException) -> str:
    """Why the user's code ended there, in a few words."""
    message = str(error)
    if isinstance(error, Stop):
        return message
    if isinstance(error, SystemExit):
        return f"it exits there (status {error.code})" if error.code else "it exits there"
    if isinstance(error, MemoryError) or "can't allocate memory" in message:
        return f"out of memory; the limit is {memory_limit()} MiB (--memory-limit)"
    if isinstance(error, EOFError) and "reading a line" in message:
        return "it reads standard input, which is closed here"
    if "NVIDIA driver" in message or "not compiled with CUDA" in message:
        return "it wants CUDA, and models are checked on the CPU; pick the device in the main guard"
    return describe_error(error)


def memory_limit() -> int:
    """The limit of this process in MiB, 0 for none."""
    try:
        import resource
    except ImportError:
        return 0
    return max(0, resource.getrlimit(resource.RLIMIT_DATA)[0] >> 20)


@contextlib.contextmanager
def _no_training() -> Iterator[list[Stop]]:
    """Constructing is our business, training is not: stop at the first step towards it.

    Yields a list that gets each `Stop` raised: a bare `except:` in the file may catch it.
    """
    stops: list[Stop] = []

    def stopper(what: str) -> Any:
        def stop(*_: Any, **__: Any) -> Any:
            stops.append(Training(f"training begins there ({what})"))
            raise stops[-1]

        return stop

    from torch.optim.optimizer import register_optimizer_step_pre_hook

    hook = register_optimizer_step_pre_hook(stopper("optimizer step"))
    with contextlib.ExitStack() as stack:
        stack.callback(hook.remove)
        backward = stopper("backward")
        stack.enter_context(replaced(torch.Tensor, "backward", backward))
        stack.enter_context(replaced(torch.autograd, "backward", backward))
        yield stops


# ---------------------------------------------------------------------- models of a loaded file


def models_of(loaded: LoadedFile) -> Iterator[Found]:
    """What may be the file's models: the instances that it made, then what is left to construct."""
    namespace = vars(loaded.module)
    instances: dict[str, nn.Module] = {}
    for candidate in loaded.discovery.candidates:
        value = unwrapped(namespace.get(candidate.name))
        known = any(value is other for other in instances.values())
        if candidate.kind == "instance" and is_model(value) and not known:
            instances[candidate.name] = value
    for name, model in instances.items():
        if not any(_contains(other, model) for other in instances.values()):
            yield Found(name, partial(_itself, model))
    checked = {type(model).__name__ for model in instances.values()}
    for candidate in loaded.discovery.candidates:
        if candidate.kind != "instance":
            if candidate.name in namespace or loaded.stopped is None:
                yield Found(candidate.name, partial(_constructed_model, loaded, candidate.name))
        elif candidate.likely and not isinstance(namespace.get(candidate.name), nn.Module):
            callee = _class_behind(loaded, candidate)
            if callee is None:
                continue
            if candidate.name not in namespace:
                yield Found(candidate.name, partial(_constructed_model, loaded, callee))
            elif callee in loaded.discovery.classes and callee not in checked:
                checked.add(callee)  # `trainer = Trainer(Net())`
                yield Found(callee, partial(_constructed_model, loaded, callee))


def _itself(model: nn.Module) -> nn.Module:
    return model


def _constructed_model(loaded: LoadedFile, name: str) -> nn.Module | None:
    model = construct(loaded, name)
    return model if is_model(model) else None


def _class_behind(loaded: LoadedFile, candidate: Candidate) -> str | None:
    """`model = Net(...).cuda()` was not reached or failed: the class or factory that it calls."""
    if candidate.name in _made_otherwise(loaded):
        return None
    assert loaded.text.tree is not None
    for node in ast.walk(loaded.text.tree):
        if (
            isinstance(node, (ast.Assign, ast.AnnAssign))
            and node.lineno == candidate.row
            and node.value
        ):
            calls = (part.func for part in ast.walk(node.value) if isinstance(part, ast.Call))
            for callee in calls:
                name = callee.id if isinstance(callee, ast.Name) else ""
                if name in loaded.discovery.calls and name in vars(loaded.module):
                    return name
    return None


def _made_otherwise(loaded: LoadedFile) -> set[str]:
    return {
        candidate.name for candidate in loaded.discovery.candidates if candidate.kind != "instance"
    }


def unwrapped(value: Any) -> Any:
    """The model inside `torch.compile`, `DataParallel` and their like, which only run it otherwise."""
    while isinstance(value, nn.Module):
        wrapper = type(value).__name__
        if wrapper == "OptimizedModule":
            value = value._orig_mod
        elif wrapper in ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel"):
            value = value.module
        else:
            break
    return value


_NO_MODEL: Final = re.compile(r"(loss|criterion|metric|optimizer|scheduler)$", re.IGNORECASE)


def is_model(value: Any) -> bool:
    """Whether this is something that one trains: a module with parameters and a forward."""
    return (
        isinstance(value, nn.Module)
        and not isinstance(value, nn.modules.loss._Loss)
        and not _NO_MODEL.search(type(value).__name__)
        and getattr(type(value), "forward", None) is not nn.Module.forward
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
    value = unwrapped(value)
    if isinstance(value, nn.Module):
        return value
    if isinstance(value, type) and issubclass(value, nn.Module):
        for other in list(namespace.values()):
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
    missing = ", ".join(required_arguments(made))
    detail = f" ({reason})" if reason is not None else ""
    raise LoadError(
        f"{name} needs arguments ({missing}) and no call in the file shows them{detail}; "
        "add a function build_model() that returns one"
    )


def _called(name: str, made: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        with _no_training():
            return unwrapped(made(*args, **kwargs))
    except (Exception, Stop, SystemExit) as error:
        cause = unbound.cause_of(error)
        if cause is not None:
            raise LoadError(cause) from error
        raise LoadError(
            f"constructing {name} stopped: {reason_of(error)}{_where(error)}"
        ) from error


def _where(error: BaseException) -> str:
    from trainlint.capture.tracer import site_of

    site = site_of(error)
    return f" at {site.filename}:{site.row}" if site is not None else ""


def required_arguments(made: Any) -> list[str]:
    """The names of the arguments without which it cannot be called; none where it has no signature."""
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
    return bool(required_arguments(made))


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
        raise LoadError(f"`{name}` gets its value only while the script runs")

    def _allow(self, call: ast.Call, names: dict[str, Any]) -> None:
        callee = call.func
        value: Any = None
        if isinstance(callee, ast.Name):
            value = names.get(callee.id)
        elif isinstance(callee, ast.Attribute):
            with contextlib.suppress(Exception):
                code = compile(ast.Expression(callee), self._filename, "eval")
                value = eval(code, {**self._namespace, **names})
        if not (isinstance(value, type) or _is_harmless(value)):
            raise LoadError(f"`{ast.unparse(call)}` is not called to find arguments")


def _is_harmless(function: Any) -> bool:
    """Built-in functions of values, methods of plain values, and what `torch` and `math` compute."""
    owner = getattr(function, "__self__", None)
    if isinstance(owner, (str, dict, list, tuple, set, int, float)):
        return True
    module = getattr(function, "__module__", None) or getattr(owner, "__name__", "")
    root = str(module).partition(".")[0]
    if root == "builtins":
        return getattr(function, "__name__", "") in _HARMLESS
    return root in ("math", "numpy", "torch") or type(owner).__module__.startswith("torch._C")


def example_inputs(loaded: LoadedFile) -> Any:
    """The file's `example_inputs`, or None."""
    return vars(loaded.module).get("example_inputs")


# ---------------------------------------------------------------------- the recipe

_LOSS_NAMES: Final = ("loss_fn", "criterion", "loss", "loss_func", "loss_function")


def recipe_of(loaded: LoadedFile, model: nn.Module, name: str, *, loops: bool = True) -> Recipe:
    """What the file shows of the training of this model, which it calls `name`.

    Without `loops`, a loop of the user's own does not count.
    """
    from trainlint.loss.objective import kind_of

    namespace = vars(loaded.module)
    bound = {key for key, value in namespace.items() if unwrapped(value) is model}
    # A class that has another instance, such as a target network, is no name of this one.
    is_only = not bound or all(
        value is model or not isinstance(value, type(model))
        for value in map(unwrapped, namespace.values())
    )
    mro = {kind.__name__ for kind in type(model).__mro__}
    classes = frozenset(mro & set(loaded.discovery.classes))
    own = frozenset({name.partition(".")[0]} | bound | (classes if is_only else set()))
    others = {candidate.name for candidate in loaded.discovery.candidates if candidate.likely}
    live = {key: kind for key, value in namespace.items() if (kind := kind_of(value))}
    loss = next((v for key in _LOSS_NAMES if _is_loss(v := namespace.get(key))), None)
    uses = loss_uses(loaded.text, live)
    judged = [use.scores.models for use in uses if use.scores is not None]
    return Recipe(
        uses=uses,
        names=own,
        classes=classes,
        others=frozenset(others - own - classes),
        loss=loss,
        targets=namespace.get("example_targets"),
        training=training_of(loaded.text),
        setup=setup_of(namespace, model, loss, frozenset[str]().union(*judged), loops=loops),
    )


def _is_loss(value: Any) -> bool:
    """A layer or function of (output, target)."""
    if isinstance(value, nn.Module):
        return not any(True for _ in value.parameters())
    return callable(value) and not isinstance(value, (type, torch.Tensor))
