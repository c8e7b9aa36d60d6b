"""Run a user's file with other sizes in it: arguments of what builds its models, and names at module level.

Comes in: while the file runs as it is, what its models were built with (`Constructions`). Goes out: the
same file run with other values (`Resized`), so that its optimizer and all else that it makes fit.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import dataclasses
import functools
import inspect
import sys
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

if TYPE_CHECKING:
    from torch import nn

Path = list[str | int]


class Size(msgspec.Struct, frozen=True):
    """One integer of a file with another `value`; it `was` this.

    `owner` is the class or function that takes it, `module:qualified.name`, or empty where `path` begins
    with a name at module level. `path` goes on into tuples, dicts and objects: `["config", "n_embd"]`.
    """

    owner: str
    path: Path
    was: int
    value: int

    @property
    def name(self) -> str:
        """`hidden`, `sizes[1]`, `config.n_embd`: as the user may write it."""
        return written(self.path)

    def at(self, value: int) -> Size:
        """The same place with another value."""
        return msgspec.structs.replace(self, value=value)


def written(path: Sequence[str | int]) -> str:
    """`config.sizes[1]`."""
    first, *rest = path
    return str(first) + "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in rest
    )


@dataclass(frozen=True)
class Call:
    """A call that built a model, to be made again: its arguments by name, defaults included."""

    owner: str
    make: Callable[..., Any]
    signature: inspect.Signature
    arguments: Mapping[str, Any]

    def again(self, sizes: Sequence[Size] = ()) -> Any:
        """Call it once more, with these sizes in the arguments. What it raises passes through."""
        bound = inspect.BoundArguments(self.signature, OrderedDict())
        bound.arguments.update(changed(self.arguments, sizes))
        return self.make(*bound.args, **bound.kwargs)


def changed(values: Mapping[str, Any], sizes: Sequence[Size]) -> dict[str, Any]:
    """The values with these sizes in them; what holds a size is copied first, all else is shared.

    A size whose place is not there, or holds another number than it was, is passed over.
    """
    result = dict(values)
    for size in sizes:
        with contextlib.suppress(LookupError, AttributeError, TypeError):
            if found(result, size.path) == size.was:
                result = _with(result, size.path, size.value)
    return result


def found(value: Any, path: Sequence[str | int]) -> Any:
    """What lies there. Raises `LookupError`, `AttributeError` or `TypeError` where nothing does."""
    for part in path:
        is_held = isinstance(part, int) or isinstance(value, Mapping)
        value = value[part] if is_held else getattr(value, str(part))
    return value


def _with(value: Any, path: Sequence[str | int], new: int) -> Any:
    if not path:
        return new
    part, *rest = path
    inner = _with(found(value, [part]), rest, new)
    if isinstance(value, tuple):
        items = [*value[: int(part)], inner, *value[int(part) + 1 :]]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        with contextlib.suppress(TypeError, ValueError):  # fields that are computed
            return dataclasses.replace(value, **{str(part): inner})
    result = copy.copy(value)
    if isinstance(value, (Mapping, list)):
        result[part] = inner
    else:
        object.__setattr__(result, str(part), inner)
    return result


# ---------------------------------------------------------------------- what models were built with

_VARIADIC: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Constructions:
    """The calls that built the models of a file. To be entered before the file is run."""

    def __init__(self) -> None:
        self._classes: dict[int, tuple[weakref.ref[Any], Call]] = {}
        self._functions: dict[int, tuple[weakref.ref[Any], Call]] = {}
        self._wrapped: set[str] = set()

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Note the arguments of each module that is built within."""
        from torch import nn

        from trainlint.sites import replaced

        original = nn.Module.__init__

        @functools.wraps(original)
        def init(module: nn.Module, *args: Any, **kwargs: Any) -> None:
            original(module, *args, **kwargs)
            with contextlib.suppress(
                Exception
            ):  # a signature that is none, a module without weak references
                call = _constructor_call(module)
                if call is not None:
                    self._classes[id(module)] = (weakref.ref(module), call)

        with replaced(nn.Module, "__init__", init):
            yield

    def after(self, statement: ast.stmt, module: types.ModuleType) -> None:
        """To be called when a statement of the file was run: its functions are then listened to."""
        if isinstance(statement, ast.FunctionDef) and _returns(statement):
            function = vars(module).get(statement.name)
            if inspect.isfunction(function):
                setattr(module, statement.name, self._listened(function, module))

    def _listened(self, function: Callable[..., Any], module: types.ModuleType) -> Any:
        from torch import nn

        owner = f"{module.__name__}:{function.__qualname__}"
        signature = inspect.signature(function)

        @functools.wraps(function)
        def listened(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            if isinstance(result, nn.Module):
                bound = signature.bind(*args, **kwargs)
                bound.apply_defaults()
                call = Call(owner, function, signature, dict(bound.arguments))
                self._functions[id(result)] = (weakref.ref(result), call)
            return result

        return listened

    def of(self, model: nn.Module) -> list[Call]:
        """The calls that built this model: the file's own function first, then its class."""
        noted = [calls.get(id(model)) for calls in (self._functions, self._classes)]
        return [one[1] for one in noted if one is not None and one[0]() is model]


def _returns(function: ast.FunctionDef) -> bool:
    inner = list(ast.walk(function))
    is_generator = any(isinstance(node, (ast.Yield, ast.YieldFrom)) for node in inner)
    return not is_generator and any(
        isinstance(node, ast.Return) and node.value is not None for node in inner
    )


def _constructor_call(module: nn.Module) -> Call | None:
    """From the frame of its `__init__`: what it was called with, if no name was assigned anew before.

    `nn.Module.__init__` is called before anything else can be done with a module. Whether the arguments
    are those of the call shows when it is made again. `nn.Module.__new__`, which would get the very
    arguments, cannot be put back once it was replaced: Python then refuses arguments for good.
    """
    kind = type(module)
    code = getattr(inspect.unwrap(kind.__init__), "__code__", None)
    frame: types.FrameType | None = sys._getframe(2)
    while code is not None and frame is not None:
        if frame.f_code is code and frame.f_locals.get(code.co_varnames[0]) is module:
            break
        frame = frame.f_back
    if code is None or frame is None:
        return None
    whole = inspect.signature(kind.__init__)
    parameters = list(whole.parameters.values())[1:]
    signature = whole.replace(parameters=parameters)
    values = frame.f_locals
    if any(parameter.name not in values for parameter in parameters):
        return None
    arguments = {parameter.name: values[parameter.name] for parameter in parameters}
    return Call(f"{kind.__module__}:{kind.__qualname__}", kind, signature, arguments)


# ---------------------------------------------------------------------- other values


class Resized:
    """A run of a file with other sizes; to be entered around it, and `after` called for each statement.

    With a `seed`, what takes a size as its argument draws its random numbers from that, and what comes
    after draws as if it had drawn none. Classes of other modules are as before when it is left.
    """

    def __init__(self, sizes: Sequence[Size], seed: int | None = None) -> None:
        self._owners: dict[str, list[Size]] = {}
        for size in sizes:
            self._owners.setdefault(size.owner, []).append(size)
        self._names = self._owners.pop("", [])
        self._open = set(self._owners)
        self._seed = seed
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def after(self, statement: ast.stmt, module: types.ModuleType) -> None:
        """Give the names that it assigned, and the classes and functions that it made, their sizes."""
        if self._names:
            stored = {
                node.id
                for node in ast.walk(statement)
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            }
            values = vars(module)
            names = stored & {str(size.path[0]) for size in self._names} & values.keys()
            values.update(changed({name: values[name] for name in names}, self._names))
        for owner in sorted(self._open):
            home, _, name = owner.partition(":")
            place: Any = module if home == module.__name__ else sys.modules.get(home)
            *outer, last = name.split(".")
            for part in outer:
                place = getattr(place, part, None)
            target = getattr(place, last, None)
            if target is not None:
                self._open.discard(owner)
                self._wrap(target, place, last, self._owners[owner])

    def _wrap(self, target: Any, place: Any, name: str, sizes: Sequence[Size]) -> None:
        from trainlint.sites import replaced

        if isinstance(target, type):
            init = self._with_sizes(target.__init__, sizes, target)  # type: ignore[misc]
            self._undo.enter_context(replaced(target, "__init__", init))
        else:
            self._undo.enter_context(replaced(place, name, self._with_sizes(target, sizes, None)))

    def _with_sizes(
        self, function: Callable[..., Any], sizes: Sequence[Size], kind: type | None
    ) -> Callable[..., Any]:
        from trainlint.measure.pulse import seed_generators
        from trainlint.preserve import random_states

        signature = inspect.signature(function)

        @functools.wraps(function)
        def resized(*args: Any, **kwargs: Any) -> Any:
            if kind is not None and type(args[0]) is not kind:
                return function(*args, **kwargs)
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            bound.arguments.update(changed(bound.arguments, sizes))
            if self._seed is None:
                return function(*bound.args, **bound.kwargs)
            with random_states():
                seed_generators(self._seed)
                return function(*bound.args, **bound.kwargs)

        return resized
