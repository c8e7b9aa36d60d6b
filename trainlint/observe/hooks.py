"""Tell an observer what a training loop does, through torch's own seams.

Comes in: an `Observer`. What it is told: forwards of root modules, backward passes, optimizer steps,
clipping, loss scaling, schedulers, passes over loaders, modes. Nothing else changes: an observer that
raises is noted and then left alone, never heard by the loop. All seams are as before afterwards.

`Tensor.backward` calls `torch.autograd.backward`, and both are the user's way in, so the inner one is
patched for the event and the outer one only so that our function mode is left *before* the call, which
is itself a torch function: leaving the mode inside would pop another one.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn

from trainlint.sites import Site, calling_site, replaced


class Observer(Protocol):
    """What `observed` tells. Sites are the nearest calls in the user's code, None where there is none."""

    def forward_begins(self, module: nn.Module, site: Site | None) -> None:
        """An outermost module with parameters is called."""

    def forward_ends(self, module: nn.Module, inputs: Any, output: Any, site: Site | None) -> None:
        """It returned; not told where it raised."""

    def module_begins(self, module: nn.Module) -> None:
        """A module inside of a root is called. Only while `wants_modules`."""

    def module_ends(self) -> None:
        """It returned or raised."""

    def backward_begins(self, losses: list[Tensor], site: Site | None) -> None:
        """Before a backward pass."""

    def backward_ends(self, losses: list[Tensor], error: BaseException | None) -> None:
        """After it."""

    def leaves_mode(self) -> None:
        """A torch function of the user's begins, in which no mode may be left: leave ours now."""

    def enters_compiled(self) -> None:
        """Compiled code is called: the compiler would compile it again for a mode, so leave ours now."""

    def optimizer_made(self, optimizer: Any, site: Site | None) -> None:
        """An optimizer was constructed."""

    def step_begins(self, optimizer: Any, closure: bool, site: Site | None) -> None:
        """Before `optimizer.step()`."""

    def step_ends(self, optimizer: Any) -> None:
        """After it."""

    def clips(self, parameters: list[Tensor], limit: float, norm: Any, site: Site | None) -> None:
        """After `clip_grad_norm_`, with the norm before it, or `clip_grad_value_`, with None."""

    def scales(self, scaler: Any, outputs: Any, scaled: Any) -> None:
        """A `GradScaler` made `scaled` losses of `outputs`."""

    def scaler_steps(self, scaler: Any, optimizer: Any, site: Site | None) -> None:
        """After `scaler.step(optimizer)`, which may have left the optimizer's step out."""

    def schedules(self, scheduler: Any, site: Site | None) -> None:
        """After a scheduler's step."""

    def loader_made(self, loader: Any, site: Site | None) -> None:
        """A `DataLoader` was constructed."""

    def passes(self, loader: Any, site: Site | None) -> None:
        """A pass over a `DataLoader` begins."""

    def switches(self, module: nn.Module, training: bool, site: Site | None) -> None:
        """`module.train(training)` was called from outside of another such call."""

    after_step: Callable[[int], None] | None

    @property
    def step(self) -> int:
        """How many steps there were."""

    @property
    def wants_modules(self) -> bool:
        """Whether calls of inner modules are to be told as well."""


# Those at work; a process that is forked has nobody to report to.
_TELLERS: Final[weakref.WeakSet[_Teller]] = weakref.WeakSet()


def _forked() -> None:
    for tell in list(_TELLERS):
        tell.is_elsewhere = True
        with contextlib.suppress(Exception):
            tell.observer.leaves_mode()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class _Teller:
    """Hands events over. The first failure of the observer ends it; the loop never hears of it."""

    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self.problem: BaseException | None = None
        self.home = threading.get_ident()
        # How deep this thread is in calls of each kind.
        self.forward = self.backward = self.train = self.schedule = 0
        # The observer may run the model itself, to look for a NaN.
        self.is_telling = False
        self.is_elsewhere = False
        _TELLERS.add(self)

    def is_listening(self) -> bool:
        """Not to other threads, forked processes, nor to code that is being compiled."""
        # This first: the compiler takes it for a constant, and warns of what is behind it.
        if torch.compiler.is_compiling():
            return False
        return (
            self.problem is None
            and not self.is_telling
            and not self.is_elsewhere
            and threading.get_ident() == self.home
        )

    def __call__(self, event: str, *args: Any) -> None:
        if self.problem is not None:
            return
        self.is_telling = True
        try:
            with torch._C.DisableTorchFunction():
                getattr(self.observer, event)(*args)
        except Exception as error:
            self.problem = error
            with contextlib.suppress(Exception):
                self.observer.leaves_mode()
        finally:
            self.is_telling = False


@contextlib.contextmanager
def observed(observer: Observer) -> Iterator[Callable[[], BaseException | None]]:
    """Tell the observer of everything within. Gives a function that tells what stopped it, if anything did.

    Only the thread that enters is observed: training loops of other threads run as ever.
    """
    tell = _Teller(observer)
    with contextlib.ExitStack() as stack:
        for owner, name, value in (
            *_modules(tell),
            *_backwards(tell),
            *_clipping(tell),
            *_schedulers(tell),
            *_others(tell),
            (warnings, "warn", _warn_at_the_users_line(warnings.warn)),
        ):
            stack.enter_context(replaced(owner, name, value))
        for remove in _optimizer_hooks(tell):
            stack.callback(remove)
        _compiled_calls(tell, stack)
        stack.callback(observer.leaves_mode)
        yield lambda: tell.problem


@contextlib.contextmanager
def unobserved(*, leaving: bool = True) -> Iterator[None]:
    """Nothing within is told to any observer. Function modes are left, but not from inside of one."""
    silenced = [tell for tell in list(_TELLERS) if tell.problem is None and not tell.is_telling]
    for tell in silenced:
        if leaving:
            tell.observer.leaves_mode()
        tell.is_telling = True
    try:
        yield
    finally:
        for tell in silenced:
            tell.is_telling = False


def _warn_at_the_users_line(original: Callable[..., None]) -> Callable[..., None]:
    """`warnings.warn` that looks past our function mode, so that a warning names the line that it did.

    Through a mode, torch's Python functions call themselves again: caller, function,
    `handle_torch_function`, mode, function.
    """
    own = str(Path(__file__).parent)

    def warn(
        message: Any, category: Any = None, stacklevel: int = 1, source: Any = None, **options: Any
    ) -> None:
        frame = _frame(stacklevel)
        if frame is None or not frame.f_code.co_filename.startswith(own):
            original(message, category, stacklevel + 1, source, **options)
            return
        while frame is not None and frame.f_code.co_filename.startswith(own):
            frame = frame.f_back
        if frame is not None and frame.f_code.co_name == "handle_torch_function":
            frame = None if frame.f_back is None else frame.f_back.f_back
        if frame is None:
            original(message, category, stacklevel + 1, source, **options)
            return
        kind = type(message) if isinstance(message, Warning) else category or UserWarning
        warnings.warn_explicit(
            message,
            kind,
            frame.f_code.co_filename,
            frame.f_lineno,
            module=frame.f_globals.get("__name__", "<unknown>"),
            registry=frame.f_globals.setdefault("__warningregistry__", {}),
            source=source,
        )

    return warn


def _frame(stacklevel: int) -> FrameType | None:
    try:
        return sys._getframe(stacklevel + 1)
    except ValueError:
        return None


_Seam = tuple[Any, str, Any]


def _modules(tell: _Teller) -> Iterator[_Seam]:
    original_call: Any = nn.Module.__call__
    original_train = nn.Module.train
    observer = tell.observer

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not tell.is_listening():
            return original_call(self, *args, **kwargs)
        if tell.forward:
            if not observer.wants_modules:
                return original_call(self, *args, **kwargs)
            # They touch no tensor and cannot fail: a `tell` would cost more than they do.
            observer.module_begins(self)
            try:
                return original_call(self, *args, **kwargs)
            finally:
                observer.module_ends()
        if not has_parameters(self):
            return original_call(self, *args, **kwargs)
        site = calling_site(2)
        tell("forward_begins", self, site)
        tell.forward += 1
        try:
            output = original_call(self, *args, **kwargs)
        finally:
            tell.forward -= 1
        tell("forward_ends", self, (args, kwargs), output, site)
        return output

    def train(self: nn.Module, mode: bool = True) -> nn.Module:
        if not tell.is_listening() or tell.train:
            return original_train(self, mode)
        tell.train += 1
        try:
            result = original_train(self, mode)
        finally:
            tell.train -= 1
        tell("switches", self, bool(mode), calling_site(2))
        return result

    yield nn.Module, "__call__", call
    yield nn.Module, "train", train


def has_parameters(module: nn.Module) -> bool:
    """Whether the module, or one inside of it, has a parameter."""
    # Asked at each call of a model: the first of its layers mostly tells. Not where it is scripted.
    if type(module._modules) is dict:
        for part in (module, *module._modules.values()):
            own = None if part is None else part._parameters
            if type(own) is dict and any(p is not None for p in own.values()):
                return True
    return next(iter(module.parameters()), None) is not None


def _backwards(tell: _Teller) -> Iterator[_Seam]:
    original = torch.autograd.backward
    original_method: Any = Tensor.backward

    def backward(losses: Any, *args: Any, **kwargs: Any) -> Any:
        if not tell.is_listening() or tell.backward:
            return original(losses, *args, **kwargs)
        tell.observer.leaves_mode()
        given = [losses] if isinstance(losses, Tensor) else list(losses)
        tensors = [loss for loss in given if isinstance(loss, Tensor)]
        tell("backward_begins", tensors, calling_site(2))
        tell.backward += 1
        # A checkpoint runs its modules again: those are no forwards of a root.
        tell.forward += 1
        failure: BaseException | None = None
        try:
            return original(losses if isinstance(losses, Tensor) else given, *args, **kwargs)
        except BaseException as error:
            failure = error
            raise
        finally:
            tell.forward -= 1
            tell.backward -= 1
            tell("backward_ends", tensors, failure)

    def method(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        if tell.is_listening():
            tell.observer.leaves_mode()
        return original_method(self, *args, **kwargs)

    yield torch.autograd, "backward", backward
    yield Tensor, "backward", method


def _clipping(tell: _Teller) -> Iterator[_Seam]:
    from torch.nn import utils
    from torch.nn.utils import clip_grad

    def noted(original: Callable[..., Any], keyword: str) -> Callable[..., Any]:
        def clip(parameters: Any, *args: Any, **kwargs: Any) -> Any:
            if not tell.is_listening():
                return original(parameters, *args, **kwargs)
            # An iterator can be read only once.
            given = parameters if isinstance(parameters, Tensor) else list(parameters)
            norm = original(given, *args, **kwargs)
            limit = args[0] if args else kwargs.get(keyword)
            tensors = [given] if isinstance(given, Tensor) else given
            tell("clips", tensors, float(limit or 0.0), norm, calling_site(2))
            return norm

        clip.__wrapped__ = original  # type: ignore[attr-defined]
        clip.__name__ = original.__name__
        return clip

    def noted_inner(original: Callable[..., Any]) -> Callable[..., Any]:
        def clip(parameters: Any, max_norm: Any, total_norm: Any, *args: Any, **kwargs: Any) -> Any:
            if not tell.is_listening():
                return original(parameters, max_norm, total_norm, *args, **kwargs)
            given = [parameters] if isinstance(parameters, Tensor) else list(parameters)
            result = original(given, max_norm, total_norm, *args, **kwargs)
            tell("clips", given, float(max_norm), total_norm, calling_site(2))
            return result

        return clip

    replacement = noted(clip_grad.clip_grad_value_, "clip_value")
    yield clip_grad, "clip_grad_value_", replacement
    yield utils, "clip_grad_value_", replacement
    # What a script has imported by name before, is its own: but it calls this one.
    inner: Any = getattr(clip_grad, "_clip_grads_with_norm_", None)
    if inner is not None:
        yield clip_grad, "_clip_grads_with_norm_", noted_inner(inner)
    else:
        replacement = noted(clip_grad.clip_grad_norm_, "max_norm")
        yield clip_grad, "clip_grad_norm_", replacement
        yield utils, "clip_grad_norm_", replacement


def _schedulers(tell: _Teller) -> Iterator[_Seam]:
    from torch.optim import lr_scheduler

    def noted(original: Callable[..., Any]) -> Callable[..., Any]:
        def step(self: Any, *args: Any, **kwargs: Any) -> Any:
            # A constructor takes a first step of its own; a chain steps its parts.
            if not tell.is_listening() or tell.schedule or getattr(self, "_is_initial", False):
                return original(self, *args, **kwargs)
            tell.schedule += 1
            try:
                result = original(self, *args, **kwargs)
            finally:
                tell.schedule -= 1
            tell("schedules", self, calling_site(2))
            return result

        step.__wrapped__ = original  # type: ignore[attr-defined]
        step.__name__ = "step"
        return step

    for kind in list(vars(lr_scheduler).values()):
        if isinstance(kind, type) and issubclass(kind, lr_scheduler.LRScheduler):
            own = vars(kind).get("step")
            if own is not None:
                yield kind, "step", noted(own)


def _others(tell: _Teller) -> Iterator[_Seam]:
    from torch.amp import GradScaler
    from torch.optim import Optimizer
    from torch.utils.data import DataLoader

    original_init = Optimizer.__init__
    original_scale = GradScaler.scale
    original_step = GradScaler.step
    original_iter = DataLoader.__iter__
    original_loader: Any = DataLoader.__init__

    # With the signatures of what they replace: Lightning makes a loader anew by that of its constructor.
    @functools.wraps(original_init)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original_init(self, *args, **kwargs)
        if tell.is_listening():
            tell("optimizer_made", self, calling_site(2))

    @functools.wraps(original_scale)
    def scale(self: Any, outputs: Any) -> Any:
        if not tell.is_listening():
            return original_scale(self, outputs)
        scaled = original_scale(self, outputs)
        tell("scales", self, outputs, scaled)
        return scaled

    @functools.wraps(original_step)
    def step(self: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        result = original_step(self, optimizer, *args, **kwargs)
        if tell.is_listening():
            tell("scaler_steps", self, optimizer, calling_site(2))
        return result

    @functools.wraps(original_loader)
    def load(self: Any, *args: Any, **kwargs: Any) -> None:
        original_loader(self, *args, **kwargs)
        if tell.is_listening():
            tell("loader_made", self, calling_site(2))

    @functools.wraps(original_iter)
    def iterate(self: Any) -> Any:
        if tell.is_listening():
            tell("passes", self, calling_site(2))
        return original_iter(self)

    yield Optimizer, "__init__", init
    yield GradScaler, "scale", scale
    yield DataLoader, "__init__", load
    yield GradScaler, "step", step
    yield DataLoader, "__iter__", iterate


def _compiled_calls(tell: _Teller, stack: contextlib.ExitStack) -> None:
    """Calls of compiled code. The compiler is seconds to import, and is so only where it is used."""
    original = torch.compile
    # Every call of compiled code asks this, once, before it looks at modes.
    seam = "_is_skip_guard_eval_unsafe_stance"
    is_watched = False

    def watch_calls() -> None:
        nonlocal is_watched
        frames = sys.modules.get("torch._dynamo.eval_frame")
        asks: Any = getattr(frames, seam, None)
        if is_watched or asks is None:
            return
        is_watched = True

        def ask() -> Any:
            if tell.is_listening():
                tell("enters_compiled")
            return asks()

        stack.enter_context(replaced(frames, seam, ask))

    def compile_(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        watch_calls()
        return result

    compile_.__wrapped__ = original  # type: ignore[attr-defined]
    watch_calls()
    stack.enter_context(replaced(torch, "compile", compile_))


def _optimizer_hooks(tell: _Teller) -> Iterator[Callable[[], None]]:
    from torch.optim.optimizer import (
        register_optimizer_step_post_hook,
        register_optimizer_step_pre_hook,
    )

    def before(optimizer: Any, args: Any, kwargs: Any) -> None:
        if tell.is_listening():
            tell.observer.leaves_mode()
            # The arguments are those of the method, the optimizer among them.
            closure = any(callable(given) for given in (*args[1:], kwargs.get("closure")))
            tell("step_begins", optimizer, closure, calling_site(2))

    def after(optimizer: Any, _: Any, __: Any) -> None:
        if tell.is_listening():
            tell("step_ends", optimizer)
            if tell.observer.after_step is not None:
                tell.observer.after_step(tell.observer.step)

    yield register_optimizer_step_pre_hook(before).remove
    yield register_optimizer_step_post_hook(after).remove
