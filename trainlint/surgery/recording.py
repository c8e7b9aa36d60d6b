"""Gradients recorded where a forward switches them off."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trainlint.surgery.calls import changed_calls
from trainlint.surgery.case import Case, PatchProblem

if TYPE_CHECKING:
    from trainlint.fixes.patch import Patch


@dataclass
class _Recording:
    """Hooks: layers run as the model's caller has it, with or without gradients."""

    asked: bool = False
    before: list[bool] = field(default_factory=list)

    def begin(self, *_: Any) -> None:
        self.asked = torch.is_grad_enabled()

    def enter(self, *_: Any) -> None:
        self.before.append(torch.is_grad_enabled())
        if self.asked:
            torch.set_grad_enabled(True)

    def leave(self, *_: Any) -> None:
        if self.before:
            torch.set_grad_enabled(self.before.pop())

    def at_call(self, _: nn.Module, function: Any, args: Any, kwargs: Any) -> Any:
        with torch.set_grad_enabled(self.asked or torch.is_grad_enabled()):
            return function(*args, **kwargs)


def with_gradients(case: Case, patch: Patch) -> None:
    """Let layers and calls that run under `no_grad` be recorded, where the model's caller asks for it."""
    named = case.layers_of(patch, "nothing is named to be recorded")
    recording = _Recording()
    case.root.register_forward_pre_hook(recording.begin, prepend=True)
    for path, module in named:
        if module is case.root:
            raise PatchProblem("the whole model runs without gradients: its caller decides that")
        module.register_forward_pre_hook(recording.enter, prepend=True)
        module.register_forward_hook(recording.leave, always_call=True)
        case.called.append((module, f"{path} is never called, so that nothing is recorded there"))
    changed_calls(case, patch.calls, recording.at_call)
