"""Calls of functions in a forward, `torch.sigmoid(x)`, changed where the module that makes them runs.

An `Occurrence` names a place in a module's code: the `ordinal`-th from which this operation is called
there, in the order in which they are first reached. A place that runs in a loop, or for each of several
samples, is one, as it is in the source.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trainlint.ops import canonical_name, writes_in_place
from trainlint.sites import calling_site, place_key
from trainlint.surgery.case import Case, PatchProblem

if TYPE_CHECKING:
    from trainlint.fixes.patch import Occurrence, Patch

# From the module that runs, the function and its arguments to the result.
CallChange = Callable[[nn.Module, Any, tuple[Any, ...], dict[str, Any]], Any]


def changed_calls(case: Case, calls: Collection[Occurrence], change: CallChange) -> None:
    """Let these calls be `change`d."""
    for call in calls:
        module = case.module(call.module)
        seen = _calls_of(module)
        key = (call.operation, call.ordinal)
        seen.changes[key] = change
        case.awaited.append(_Awaited(seen, call))


@dataclass
class _Calls:
    """Hooks on one module, and on all within it: what those call is not its own code."""

    changes: dict[tuple[str, int], CallChange] = field(default_factory=dict)
    made: set[tuple[str, int]] = field(default_factory=set)
    # The places of each operation, in the order in which they were first reached.
    places: dict[str, list[Any]] = field(default_factory=dict)
    running: list[_Mode] = field(default_factory=list)

    def enter(self, module: nn.Module, *_: Any) -> None:
        self.running.append(_Mode(self, module))
        self.running[-1].__enter__()  # type: ignore[no-untyped-call]

    def leave(self, *_: Any) -> None:
        if self.running:
            self.running.pop().__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def enter_child(self, *_: Any) -> None:
        if self.running:
            self.running[-1].inside += 1

    def leave_child(self, *_: Any) -> None:
        if self.running:
            self.running[-1].inside -= 1

    def ordinal(self, operation: str, counts: dict[str, int]) -> int:
        key = place_key(calling_site(2))
        if key is None:  # its code has no place that could be told from others: calls are counted
            counts[operation] = counts.get(operation, -1) + 1
            return counts[operation]
        places = self.places.setdefault(operation, [])
        if key not in places:
            places.append(key)
        return places.index(key)


@dataclass
class _Awaited:
    """That a change is made at least once. The order of places is then that of this forward for good."""

    calls: _Calls
    call: Occurrence
    _places: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def problem(self) -> str:
        call = self.call
        what = f"{call.operation} number {call.ordinal + 1}"
        return f"{call.module or 'the model'} makes no call of {what} in its own code"

    def came(self) -> bool:
        self._places = {name: list(places) for name, places in self.calls.places.items()}
        return (self.call.operation, self.call.ordinal) in self.calls.made

    def settle(self) -> None:
        self.calls.places = self._places


class _Mode(TorchFunctionMode):
    def __init__(self, calls: _Calls, module: nn.Module) -> None:
        super().__init__()
        self.calls = calls
        self.module = module
        self.inside = 0
        self._counts: dict[str, int] = {}
        self._operations = {operation for operation, _ in calls.changes}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if self.inside or (name := canonical_name(func)) not in self._operations:
            return func(*args, **given)
        key = (name, self.calls.ordinal(name, self._counts))
        change = self.calls.changes.get(key)
        if change is None:
            return func(*args, **given)
        self.calls.made.add(key)
        in_place = _is_in_place(func, args, given)
        result = change(self.module, func, args, given)
        operand = operand_of(args, given)
        if in_place and result is not operand:
            return operand.copy_(result)
        return result


def _is_in_place(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """`x.relu_()`, `F.relu(x, inplace=True)`, `F.relu(x, True)`."""
    if writes_in_place(func):
        return True
    if "inplace" in kwargs:
        return bool(kwargs.pop("inplace"))
    if not any(value is True for value in args[1:]):
        return False
    try:
        names = list(inspect.signature(func).parameters)
    except (TypeError, ValueError):
        return False
    return bool(dict(zip(names, args, strict=False)).get("inplace"))


_ATTRIBUTE: Final = "_trainlint_calls"


def _calls_of(module: nn.Module) -> _Calls:
    known = vars(module).get(_ATTRIBUTE)
    if isinstance(known, _Calls):
        return known
    calls = _Calls()
    vars(module)[_ATTRIBUTE] = calls
    module.register_forward_pre_hook(calls.enter, prepend=True)
    module.register_forward_hook(calls.leave, always_call=True)
    for child in module.modules():
        if child is not module:  # not only its children: containers in between are not called
            child.register_forward_pre_hook(calls.enter_child, prepend=True)
            child.register_forward_hook(calls.leave_child, always_call=True)
    return calls


def operand_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The value that a function changes: its first argument."""
    value = args[0] if args else kwargs.get("input")
    if not isinstance(value, Tensor):
        raise PatchProblem(f"a call takes {type(value).__name__}, no tensor")
    return value


def function_of(name: str) -> Callable[..., Tensor]:
    """The function of an activation."""
    if name == "identity":
        return lambda value: value
    for owner in (nn.functional, torch):
        found = getattr(owner, name, None)
        if callable(found):
            known: Callable[..., Tensor] = found
            return known
    raise PatchProblem(f"torch.nn.functional has no {name}")


def arguments(case: Case, patch: Patch) -> None:
    """Give calls other arguments; the value `self.training` is the mode of the module."""
    if not patch.calls or not patch.values:
        raise PatchProblem("no call, or no argument of one, is named")
    changed_calls(case, patch.calls, _with_arguments(patch.values))


def _with_arguments(values: Mapping[str, Any]) -> CallChange:
    def change(module: nn.Module, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        from trainlint.graph import argument_names

        new = {k: module.training if v == "self.training" else v for k, v in values.items()}
        try:
            names = tuple(inspect.signature(func).parameters)
        except (TypeError, ValueError):
            names = argument_names(canonical_name(func), func)
        given = {**dict(zip(names, args, strict=False)), **kwargs, **new}
        # Methods know their operand by its place alone.
        first = given.pop(names[0]) if names and args else None
        rest = args[len(names) :] if names else args
        return func(*([first] if names and args else []), *rest, **given)

    return change
