"""`trainlint.patched`: a repaired copy of a live model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainlint.errors import UsageError
from trainlint.generalization.trials import copied
from trainlint.probe.batches import ProbeProblem
from trainlint.probe.setup import Setup
from trainlint.surgery.patching import OF_TRAINING
from trainlint.surgery.patching import patched as _patched

if TYPE_CHECKING:
    from torch import nn

    from trainlint.fixes.edit import Fix


def patched(model: nn.Module, fix: Fix, inputs: Any = None, *, seed: int = 0) -> nn.Module:
    """A copy of the model with this fix made: other layers, or weights drawn anew by `seed`.

    `fix` is one of a finding's `fixes` that has `patches`. `inputs`, as for `check`, are for one forward
    that shows whether the changed model runs. The model stays as it was; the copy has parameters of its
    own, and needs an optimizer made for them. Raises `UsageError` for a fix that changes the training, or
    that cannot be made on this model.

        report = trainlint.check(model, inputs)
        repaired = trainlint.patched(model, report.findings[0].fixes[0])
    """
    from torch import nn

    from trainlint.capture.inputs import from_value
    from trainlint.fixes.edit import Fix

    given: tuple[Any, Any] = (model, fix)
    if not all(map(isinstance, given, (nn.Module, Fix))):
        kinds = " and ".join(type(value).__name__ for value in given)
        raise UsageError(f"patched takes a model and one of a finding's fixes, not {kinds}")
    if not fix.patches:
        why = f": {fix.obstacle}" if fix.obstacle else ""
        raise UsageError(f"{fix.title!r} is not made on a live model{why}")
    of_training = [patch.kind for patch in fix.patches if patch.kind in OF_TRAINING]
    if of_training:
        raise UsageError(
            f"{fix.title!r} changes the training ({', '.join(of_training)}), and not the model alone"
        )
    known = None if inputs is None else from_value(inputs, model, "the inputs given")
    try:
        subject = copied(model, Setup(), None)
        return _patched(subject, fix.patches, inputs=known, seed=seed).subject.model
    except ProbeProblem as problem:
        raise UsageError(f"{fix.title!r} cannot be made on this model: {problem}") from None
