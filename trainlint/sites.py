"""Where in the user's files things happen: module construction, initialisation, calls.

A site is stored as the pair (code object, instruction offset) and resolved to columns only for what
is reported: resolving every one costs more than the capture itself. `recording()` must be entered
before the user's file is imported; the notes are then made while the model builds itself.
"""

from __future__ import annotations

import ast
import contextlib
import itertools
import linecache
import os
import sys
import sysconfig
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, wraps
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    import torch

SITE_ATTRIBUTE: Final = "_trainlint_site"
_OWN_DIRECTORY: Final = str(os.path.dirname(os.path.abspath(__file__))) + os.sep  # noqa: PTH100, PTH120
_STDLIB: Final = sysconfig.get_path("stdlib") + os.sep
_INSTALLED: Final = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


class Site:
    """A call in source text: the nearest one outside torch, the standard library and trainlint.

    `project` is the nearest call that lies in no installed package either, the one that a user of a
    model library can edit; it is the site itself where there is no such difference.
    """

    __slots__ = ("code", "filename", "instruction", "project", "row")

    def __init__(self, frame: FrameType, project: Site | None = None) -> None:
        self.code: CodeType | None = frame.f_code
        self.instruction = frame.f_lasti
        self.filename = frame.f_code.co_filename
        self.row = frame.f_lineno
        self.project = project if project is not None else self

    def __repr__(self) -> str:
        return f"Site({self.filename}:{self.row})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Site:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # A user's `torch.save(model)` must not meet a code object, nor the file that it writes need us:
        # of what is empty, this is among the things that `torch.load` takes without asking.
        return (OrderedDict, ())

    @property
    def key(self) -> tuple[str, int, int]:
        """Equal for two things made by the very same call in the source."""
        return (self.filename, id(self.code), self.instruction)

    def span(self) -> tuple[int, int, int, int] | None:
        """(row, end row, column, end column) in UTF-8 bytes from 0, or None where Python has none."""
        if self.code is None:
            return None
        positions = next(
            itertools.islice(self.code.co_positions(), self.instruction // 2, None), None
        )
        if positions is None or any(value is None for value in positions):
            return None
        row, end_row, column, end_column = positions
        assert row is not None
        assert end_row is not None
        assert column is not None
        assert end_column is not None
        return row, end_row, column, end_column


def place_key(site: Site | None) -> tuple[str, int, int] | None:
    """Equal for calls from the same place of the source; None where that is not known."""
    return None if site is None else site.key


@lru_cache(maxsize=4096)
def owner_of(filename: str) -> str:
    """`torch` (also the standard library and ourselves), `installed`, or `project`."""
    import torch

    if filename.startswith((os.path.dirname(torch.__file__) + os.sep, _OWN_DIRECTORY)):  # noqa: PTH120
        return "torch"
    if filename.startswith("<") and not filename.startswith("<ipython"):
        return "torch"
    if any(folder in filename for folder in _INSTALLED):
        return "installed"
    return "torch" if filename.startswith(_STDLIB) else "project"


def is_installed(filename: str) -> bool:
    """Whether the file belongs to a package or to Python itself, by its name; imports no torch."""
    return filename.startswith((_STDLIB, _OWN_DIRECTORY)) or any(
        folder in filename for folder in _INSTALLED
    )


def calling_site(depth: int = 1, until: CodeType | None = None) -> Site | None:
    """The nearest call outside torch, the standard library and trainlint; None if there is none.

    Only frames within a run of the code `until` are looked at, where that is given.
    """
    return _site_from(sys._getframe(depth), until=until)


def project_frames(most: int) -> list[FrameType]:
    """The nearest calls in the user's own files, nearest first. A frame kept keeps what it holds alive."""
    found: list[FrameType] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and len(found) < most and frame.f_code not in _OUTERMOST:
        if owner_of(frame.f_code.co_filename) == "project":
            found.append(frame)
        frame = frame.f_back
    return found


def is_caught(until: CodeType) -> bool:
    """Whether code outside torch and trainlint, up the stack, is inside a `try` that has handlers.

    What it catches is its way of deciding, not a fault. Frames from the code `until` on do not count.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not until:
        filename = frame.f_code.co_filename
        if owner_of(filename) != "torch" and any(
            start <= frame.f_lineno <= end for start, end in _guarded_rows(filename)
        ):
            return True
        frame = frame.f_back
    return False


@lru_cache(maxsize=256)
def _guarded_rows(filename: str) -> tuple[tuple[int, int], ...]:
    """First and last rows of the `try` bodies with handlers that lie inside functions."""
    lines = linecache.getlines(filename)
    try:
        tree = ast.parse("".join(lines))
    except (SyntaxError, ValueError):
        return ()
    return tuple(
        (node.body[0].lineno, node.body[-1].end_lineno or node.body[-1].lineno)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
        if isinstance(node, ast.Try) and node.handlers
    )


def _site_from(
    frame: FrameType | None, skip_self: Any = None, until: CodeType | None = None
) -> Site | None:
    nearest: FrameType | None = None
    while frame is not None and frame.f_code is not until and frame.f_code not in _OUTERMOST:
        code = frame.f_code
        owner = owner_of(code.co_filename)
        if owner != "torch" and not (skip_self is not None and _is_method_of(frame, skip_self)):
            if owner == "project":
                site = Site(frame)
                return site if nearest is None else Site(nearest, project=site)
            nearest = nearest or frame
        frame = frame.f_back
    return None if nearest is None else Site(nearest)


def _is_method_of(frame: FrameType, instance: Any) -> bool:
    code = frame.f_code
    if not code.co_argcount:
        return False
    return frame.f_locals.get(code.co_varnames[0]) is instance


def construction_site(module: torch.nn.Module) -> Site | None:
    """Where the module was constructed, if that happened within `recording()`."""
    site = module.__dict__.get(SITE_ATTRIBUTE)
    return site if isinstance(site, Site) else None


_OPTIMIZER_SITES: weakref.WeakKeyDictionary[Any, Site] = weakref.WeakKeyDictionary()


def optimizer_site(optimizer: Any) -> Site | None:
    """Where the optimizer was constructed, if that happened within `recording()`."""
    return None if optimizer is None else _OPTIMIZER_SITES.get(optimizer)


_LOADER_SITES: weakref.WeakKeyDictionary[Any, Site] = weakref.WeakKeyDictionary()


def loader_site(loader: Any) -> Site | None:
    """Where a `DataLoader` was constructed, if that happened within `recording()`."""
    from torch.utils.data import DataLoader

    return _LOADER_SITES.get(loader) if isinstance(loader, DataLoader) else None


_OUTERMOST: Final[set[CodeType]] = set()


_Function = TypeVar("_Function", bound=Callable[..., Any])


def outermost(function: _Function) -> _Function:
    """Mark a function of ours that runs a user's code: what called it is no part of that code's story."""
    _OUTERMOST.add(function.__code__)
    return function


class Initializations:
    """The last call that filled each tensor with values of its choice: `nn.init.*`, `zero_`, `normal_`."""

    def __init__(self) -> None:
        self._by_storage: dict[int, tuple[Any, str, Site, Any, Any]] = {}
        self._most = _MOST_FILLS
        self._declared: dict[int, tuple[weakref.ref[Any], str, Site | None, Any, Any]] = {}

    def note(
        self,
        tensor: torch.Tensor,
        function: str,
        site: Site | None,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Remember that `function`, called at `site` with these further arguments, filled `tensor`."""
        if tensor.is_meta:  # it has no storage of its own, but what it was to hold is declared
            alive = weakref.ref(tensor)
            self._declared[id(tensor)] = (alive, function, site, args, dict(kwargs or {}))
            return
        if site is None:
            return
        self._keep(tensor, function, site, *_without_tensors(args, kwargs or {}))

    def _keep(
        self, tensor: torch.Tensor, function: str, site: Site, args: Any, kwargs: Any
    ) -> None:
        # `p.data.zero_()` writes through an alias, so the address of the storage is the key. Once that
        # storage is gone, another may get its address.
        storage = tensor.untyped_storage()
        noted = (weakref.ref(storage), function, site, args, kwargs)
        self._by_storage[storage.data_ptr()] = noted
        if (
            len(self._by_storage) > self._most
        ):  # a training may fill new tensors at each of its steps
            alive = {key: kept for key, kept in self._by_storage.items() if kept[0]() is not None}
            self._by_storage, self._most = alive, max(_MOST_FILLS, 2 * len(alive))

    @contextlib.contextmanager
    def kept(self, parameters: Mapping[str, torch.Tensor | None]) -> Iterator[None]:
        """What is known of these goes on to what they are afterwards, on another device for instance."""
        known = {
            name: noted
            for name, parameter in parameters.items()
            if parameter is not None and (noted := self._noted(parameter)) is not None
        }
        yield
        for name, noted in known.items():
            with contextlib.suppress(Exception):
                parameter = parameters.get(name)
                if parameter is not None and not parameter.is_meta and not self._noted(parameter):
                    self._keep(parameter, *noted)

    def of(self, parameter: torch.Tensor) -> tuple[str, Site] | None:
        """(function name, site) of the last fill of this parameter, or None."""
        if parameter.is_meta:
            noted = self._declared.get(id(parameter))
            if noted is None or noted[0]() is not parameter or noted[2] is None:
                return None
            return noted[1], noted[2]
        filled = self._noted(parameter)
        return None if filled is None else filled[:2]

    def _noted(self, parameter: torch.Tensor) -> tuple[str, Site, Any, Any] | None:
        with contextlib.suppress(Exception):  # lazy, fake and wrapped tensors have no storage
            storage = parameter.untyped_storage()
            noted = self._by_storage.get(storage.data_ptr())
            return None if noted is None or noted[0]() is not storage else noted[1:]
        return None

    def declared(
        self, parameter: torch.Tensor
    ) -> tuple[str, tuple[Any, ...], Mapping[str, Any]] | None:
        """(function, further arguments) that filled a tensor, or would have if it had values; or None."""
        if not parameter.is_meta:
            filled = self._noted(parameter)
            if filled is None or filled[2] is None:
                return None
            return filled[0], filled[2], filled[3]
        noted = self._declared.get(id(parameter))
        if noted is None or noted[0]() is not parameter:
            return None
        return noted[1], noted[3], noted[4]


def _without_tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """The arguments of a fill, (None, None) where one is a tensor: to keep it would keep its graph."""
    from torch import Tensor

    if any(isinstance(value, Tensor) for value in (*args, *kwargs.values())):
        return None, None
    return args, dict(kwargs)


# Notes on fills that are kept before those of tensors that are gone are thrown away.
_MOST_FILLS: Final = 4096
INITIALIZATIONS: Final = Initializations()
_INIT_FUNCTIONS: Final = (
    "uniform_ normal_ trunc_normal_ constant_ ones_ zeros_ eye_ dirac_ xavier_uniform_ "
    "xavier_normal_ kaiming_uniform_ kaiming_normal_ orthogonal_ sparse_"
).split()

_FILLING_METHODS: Final = ["zero_", "fill_", "normal_", "uniform_"]


@contextlib.contextmanager
def construction_sites() -> Iterator[None]:
    """Note where the modules are constructed that are built within."""
    from torch import nn

    original_init = nn.Module.__init__

    @wraps(original_init)
    def init_with_site(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        # The frames of the module's own __init__ chain lie between us and the call that we want.
        site = _site_from(sys._getframe(1), skip_self=self)
        original_init(self, *args, **kwargs)
        if site is not None:
            self.__dict__[SITE_ATTRIBUTE] = site

    with replaced(nn.Module, "__init__", init_with_site):
        yield


@contextlib.contextmanager
def filling_sites() -> Iterator[None]:
    """Note where weights are filled within, also where a model is then moved to another device."""
    import torch
    from torch import Tensor, nn

    def noted(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        @wraps(function)
        def fill(*args: Any, **kwargs: Any) -> Any:
            # The compiler takes this for a constant, and what is behind it for code that never runs.
            if torch.compiler.is_compiling():
                return function(*args, **kwargs)
            result = function(*args, **kwargs)
            tensor = args[0] if args else kwargs.get("tensor")
            if isinstance(tensor, Tensor):
                options = {key: value for key, value in kwargs.items() if key != "tensor"}
                with contextlib.suppress(Exception):
                    INITIALIZATIONS.note(tensor, name, calling_site(2), args[1:], options)
            return result

        return fill

    original_apply: Any = nn.Module._apply

    @wraps(original_apply)
    def apply(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with INITIALIZATIONS.kept(self._parameters):
            return original_apply(self, *args, **kwargs)

    with contextlib.ExitStack() as stack:
        stack.enter_context(replaced(nn.Module, "_apply", apply))
        for owner, names in ((nn.init, _INIT_FUNCTIONS), (Tensor, _FILLING_METHODS)):
            for name in names:
                stack.enter_context(replaced(owner, name, noted(getattr(owner, name), name)))
        yield


@contextlib.contextmanager
def recording() -> Iterator[None]:
    """Note where modules, optimizers and loaders are constructed within, and where weights are filled."""
    from torch.optim import Optimizer
    from torch.utils.data import DataLoader

    def sited(original_init: Any, sites: weakref.WeakKeyDictionary[Any, Site]) -> Any:
        @wraps(original_init)
        def init_with_site(self: Any, *args: Any, **kwargs: Any) -> None:
            original_init(self, *args, **kwargs)
            site = calling_site(2)
            if site is not None:
                with contextlib.suppress(TypeError):  # a class of the user's that is not hashed
                    sites[self] = site

        return init_with_site

    with contextlib.ExitStack() as stack:
        stack.enter_context(construction_sites())
        stack.enter_context(filling_sites())
        for kind, sites in ((Optimizer, _OPTIMIZER_SITES), (DataLoader, _LOADER_SITES)):
            init = sited(vars(kind)["__init__"], sites)
            stack.enter_context(replaced(kind, "__init__", init))
        yield


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set `owner.name` for the time being; an inherited attribute is inherited again afterwards."""
    own = vars(owner).get(name, _INHERITED)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own is _INHERITED:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


_INHERITED: Final = object()
