"""The copy that is being changed: its modules and parameters by name, and its optimizer's groups."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch
from torch import nn
from torch.nn.utils import parametrize

from trainlint.measure.pulse import on_device_of
from trainlint.preserve import is_lazy, preserved_evaluation, random_states, unchanged_weights
from trainlint.probe.batches import ProbeProblem, described
from trainlint.surgery.conduct import Conduct

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from trainlint.capture.inputs import Inputs
    from trainlint.fixes.patch import Patch
    from trainlint.probe.setup import Setup

_REGISTERS: Final = ("_parameters", "_buffers", "_modules")
_DEEPEST: Final = 3


class PatchProblem(ProbeProblem):
    """Why a change cannot be made; the text is for the report."""


class Awaited(Protocol):
    """What has to come in a forward of the changed model, or there is a `problem`."""

    @property
    def problem(self) -> str:
        """A sentence on what does not come."""

    def came(self) -> bool:
        """Asked when the forward is over."""

    def settle(self) -> None:
        """All that the forward has left is gone: keep what is to be known of it."""


@dataclass
class Case:
    """A model with optimizer and setup, changed in place, and what its training does besides.

    `given` are inputs for a real forward, where no loader has any. `seed` decides what is drawn. Modules
    that have to be `called` for a change to show, and what else is `awaited` of a forward, have a sentence
    each for where that does not come. `rate` is what a range test has found.
    """

    model: nn.Module
    optimizer: Any
    setup: Setup
    conduct: Conduct
    given: Inputs | None = None
    seed: int = 0
    called: list[tuple[nn.Module, str]] = field(default_factory=list)
    awaited: list[Awaited] = field(default_factory=list)
    details: list[str] = field(default_factory=list)
    rate: float | None = None
    has_other_data: bool = False
    fails: bool = False

    @property
    def root(self) -> nn.Module:
        """What paths are counted from: the user's model, not what we put around it."""
        inner = getattr(self.model, "inner", None)
        is_ours = type(self.model).__module__.startswith("trainlint.")
        return inner if is_ours and isinstance(inner, nn.Module) else self.model

    def module(self, path: str) -> nn.Module:
        """The module of that dotted path. Raises `PatchProblem` where it is out of reach."""
        module, walked = self.root, ""
        for name in ["", *path.split(".")] if path else [""]:
            if name:
                inner = module._modules.get(name)
                if inner is None:
                    raise PatchProblem(f"the model has no module {path}")
                module, walked = inner, f"{walked}.{name}" if walked else name
            _refuse_wrapped(module, walked)
        return module

    def modules(self, paths: Iterable[str]) -> list[tuple[str, nn.Module]]:
        """Each with its path. A module of several paths comes once."""
        found = {id(module): (path, module) for path in paths for module in [self.module(path)]}
        if not found:
            raise PatchProblem("no module is named")
        return list(found.values())

    def layers_of(self, patch: Patch, otherwise: str) -> list[tuple[str, nn.Module]]:
        """The modules of a patch that may also name calls. Raises `PatchProblem` where it names neither."""
        if not patch.modules and not patch.calls:
            raise PatchProblem(otherwise)
        return self.modules(patch.modules) if patch.modules else []

    def parameters_of(self, patch: Patch) -> Sequence[str]:
        """The names of a patch's parameters. Raises `PatchProblem` where there are none."""
        if not patch.parameters:
            raise PatchProblem("no parameter is named")
        return patch.parameters

    def parameter(self, name: str) -> tuple[nn.Module, str, nn.Parameter]:
        """(owner, attribute, parameter) of a dotted name."""
        path, _, attribute = name.rpartition(".")
        owner = self.module(path)
        if parametrize.is_parametrized(owner, attribute):
            raise PatchProblem(f"{name} is computed by a parametrisation, and is no parameter")
        parameter = owner._parameters.get(attribute)
        if parameter is None:
            raise PatchProblem(f"the model has no parameter {name}")
        if is_lazy(parameter):
            raise PatchProblem(f"{name} has no shape before the first forward")
        if parameter.is_meta:
            raise PatchProblem(f"{name} has no values, it is on the meta device")
        return owner, attribute, parameter

    def put(self, old: nn.Module, new: nn.Module) -> None:
        """`new` in the place of `old`, wherever the model holds it, and with its mode."""
        if old is self.root:
            raise PatchProblem(
                "the model itself is this layer: there is nothing to put another into"
            )
        new.train(old.training)
        for parent in list(self.root.modules()):
            for name, child in parent._modules.items():
                if child is old:
                    parent._modules[name] = new
            for name, value in vars(parent).items():
                if name not in _REGISTERS:
                    vars(parent)[name] = _with(value, old, new, _DEEPEST)

    # ------------------------------------------------------------------ the optimizer's parameters

    def optimizers(self) -> list[Optimizer]:
        """Those that are known before the training."""
        return [] if self.optimizer is None else [self.optimizer]

    def leaves(self, parameters: Iterable[nn.Parameter]) -> None:
        """These parameters are no longer the model's."""
        left = {id(p) for p in self.model.parameters()}
        gone = {id(p) for p in parameters} - left
        for optimizer in self.optimizers():
            for group in optimizer.param_groups:
                group["params"][:] = [p for p in group["params"] if id(p) not in gone]
            for parameter in [p for p in optimizer.state if id(p) in gone]:
                del optimizer.state[parameter]
            _forget_size(optimizer)

    def joins(self, parameters: Iterable[nn.Parameter], beside: Iterable[nn.Parameter]) -> None:
        """New parameters get into the group of those `beside`, else into the model's first."""
        near = {id(p) for p in beside}
        own = {id(p) for p in self.model.parameters()}
        for optimizer in self.optimizers():
            held = {id(p) for group in optimizer.param_groups for p in group["params"]}
            new = [p for p in parameters if p.requires_grad and id(p) not in held]
            groups = [
                *(g for g in optimizer.param_groups if any(id(p) in near for p in g["params"])),
                *(g for g in optimizer.param_groups if any(id(p) in own for p in g["params"])),
            ]
            if groups:
                groups[0]["params"].extend(new)
                _forget_size(optimizer)

    # ------------------------------------------------------------------ a real forward

    def inputs(self) -> Inputs | None:
        """A few samples for the model, None where none are known."""
        from trainlint.probe.stage import first_inputs

        setup = self.setup
        if setup.train_loader is None or setup.step is not None or setup.train is not None:
            return None if self.has_other_data else self.given
        if self.given is not None and not self.has_other_data:
            return self.given
        try:
            return first_inputs(self.model, setup)
        except ProbeProblem:
            if self.has_other_data:
                raise
            return None

    def forward(self, then: Callable[[], None] = lambda: None) -> bool:
        """Run the model on them, and `then` look at it; all is as before. False where there are none.

        In the mode that it has; in the other one where it fails so, as a BatchNorm may on one sample.
        """
        inputs = self.inputs()
        if inputs is None:
            return False
        here = on_device_of(self.model, inputs)
        training = self.model.training
        failure: Exception | None = None
        for mode in (training, not training):
            with random_states(), unchanged_weights(self.model), preserved_evaluation(self.model):
                if mode is not training:
                    self.model.train(mode)
                try:
                    with torch.no_grad():
                        self.model(*here.args, **here.kwargs)
                except ProbeProblem:
                    raise
                except Exception as error:
                    failure = failure or error
                    continue
                then()
                return True
        assert failure is not None
        raise PatchProblem(f"the changed model raised {described(failure)}") from failure

    def look_before(self) -> None:
        """Run the model as it is: where it fails, a change that leaves it so may yet be one of several."""
        try:
            self.forward()
        except PatchProblem:
            self.fails = True
        except ProbeProblem:  # there are no such data
            pass

    def check(self) -> None:
        """Run the changed model once. Raises `PatchProblem` where it fails or shows no change."""
        calls: set[int] = set()

        def look() -> None:
            problems = [problem for module, problem in self.called if id(module) not in calls]
            problems += [awaited.problem for awaited in self.awaited if not awaited.came()]
            if problems:
                raise PatchProblem(problems[0])

        if self.fails:  # for other reasons, that are left
            return
        with contextlib.ExitStack() as stack:
            for module, _ in self.called:
                stack.enter_context(module.register_forward_hook(_noting(calls)))
            if self.forward(look):
                for awaited in self.awaited:
                    awaited.settle()


def _forget_size(optimizer: Any) -> None:
    """LBFGS keeps the number of its elements."""
    if hasattr(optimizer, "_numel_cache"):
        optimizer._numel_cache = None


def _noting(calls: set[int]) -> Callable[..., None]:
    def note(module: nn.Module, *_: Any) -> None:
        calls.add(id(module))

    return note


def _refuse_wrapped(module: nn.Module, path: str) -> None:
    kinds = {kind.__name__ for kind in type(module).__mro__}
    what = path or "the model"
    if "OptimizedModule" in kinds:
        raise PatchProblem(f"{what} is compiled: give the model before torch.compile")
    if kinds & {
        "DistributedDataParallel",
        "DataParallel",
        "FullyShardedDataParallel",
        "FSDPModule",
    }:
        raise PatchProblem(f"{what} is wrapped in {type(module).__name__}: give the model itself")
    if isinstance(module, torch.jit.ScriptModule):
        raise PatchProblem(f"{what} is scripted, and cannot be changed")


def _with(value: Any, old: Any, new: Any, depth: int) -> Any:
    """Plain containers of modules, which forwards also loop over."""
    if value is old:
        return new
    if not depth:
        return value
    if type(value) is list:
        value[:] = [_with(part, old, new, depth - 1) for part in value]
    elif type(value) is dict:
        for key, part in list(value.items()):
            value[key] = _with(part, old, new, depth - 1)
    elif type(value) is tuple:
        parts = tuple(_with(part, old, new, depth - 1) for part in value)
        return parts if any(a is not b for a, b in zip(parts, value, strict=True)) else value
    return value
