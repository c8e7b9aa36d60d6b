"""What assertions on a model have in common: run it, try its loss, say why it fails. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainlint.capture.inputs import Inputs

WIDTH: Final = 100


def samples_of(model: nn.Module, inputs: Any, targets: Any) -> Inputs:
    """The model's arguments. Raises `ValueError` for too few samples, or not as many as targets."""
    from trainlint.given import given_inputs
    from trainlint.probe.memory import LEAST_SAMPLES
    from trainlint.tree import tensors

    given = given_inputs(model, inputs)
    if given is None:
        raise ValueError("no inputs: samples to be learnt are needed")
    sizes = {
        f"{name}{f'[{path}]' if path else ''}": tensor.shape[0]
        for name, value in (("inputs", inputs), ("targets", targets))
        for path, tensor in tensors(value)
        if tensor.dim()
    }
    if len(set(sizes.values())) > 1:
        said = ", ".join(f"{count} in {name}" for name, count in sizes.items())
        raise ValueError(f"the first axis of all must count the same samples: {said}")
    if min(sizes.values(), default=0) < LEAST_SAMPLES:
        count = min(sizes.values(), default=0)
        raise ValueError(
            f"at least {LEAST_SAMPLES} samples are needed, on the first axis of all: {count}"
        )
    return given


def try_loss(model: nn.Module, given: Inputs, inputs: Any, targets: Any, loss: Any) -> None:
    """Raises `AssertionError` where the model does not run, `ValueError` where the loss does not."""
    __tracebackhide__ = True
    from trainlint.probe.batches import Batch, ProbeProblem, described
    from trainlint.probe.loop import loss_of

    run_once(model, inputs, given, targets, loss)
    try:
        loss_of(model, Batch(given.args, given.kwargs, targets), loss)
    except ProbeProblem as problem:
        what = "give one, or a model that returns its own as .loss" if loss is None else problem
        raise ValueError(f"no loss: {what}") from None
    except Exception as error:
        shown = "" if targets is None else f", on targets {_described(targets)}"
        raise ValueError(f"the loss raised {described(error)}{shown}") from None


def _described(targets: Any) -> str:
    """`(16,) int64 from 5 to 14`."""
    from torch import Tensor

    if not isinstance(targets, Tensor) or not targets.numel():
        return type(targets).__name__
    kind = str(targets.dtype).removeprefix("torch.")
    return f"{tuple(targets.shape)} {kind} from {targets.min():.4g} to {targets.max():.4g}"


def mixture_loss(model: nn.Module, given: Inputs, targets: Any, loss: Any) -> float | None:
    """The loss of the best mixture of the outputs, on the samples that will be learnt."""
    import torch

    from trainlint.preserve import preserved_training
    from trainlint.probe.batches import first_samples, size_of
    from trainlint.probe.constant import best_mixture
    from trainlint.probe.memory import SAMPLES, train_without_dropout

    args, kwargs, few = first_samples((given.args, given.kwargs, targets), SAMPLES)
    with preserved_training(model, beside=layers_of(loss)):
        train_without_dropout(model)
        with torch.no_grad():
            outputs = model(*args, **kwargs)
        return best_mixture(outputs, size_of((args, kwargs, few)) or 0, few, loss)


def run_once(
    model: nn.Module,
    inputs: Any,
    given: Inputs | None = None,
    targets: Any = None,
    loss: Any = None,
) -> Inputs:
    """Run the model once; its arguments, made up where none are given.

    Raises `AssertionError` with the reasons where it does not run.
    """
    __tracebackhide__ = True
    from trainlint.capture.search import synthesize
    from trainlint.given import given_inputs
    from trainlint.probe.batches import described

    given = given or given_inputs(model, inputs) or synthesize(model).inputs
    try:
        model(*given.args, **given.kwargs)
    except Exception as error:
        raise AssertionError(
            f"{type(model).__name__} does not run on {given.describe()}: {described(error)}"
            f"{reasons(model, inputs, targets, loss)}"
        ) from None
    return given


def layers_of(loss: Any) -> list[nn.Module]:
    """The loss, if it is a layer, which may have parameters and buffers of its own."""
    from torch import nn

    return [loss] if isinstance(loss, nn.Module) else []


def reasons(
    model: nn.Module, inputs: Any, targets: Any = None, loss: Any = None, *, advice: bool = False
) -> str:
    """What a check without training finds on the model, behind a failure that was measured."""
    from trainlint.api import check
    from trainlint.report.text import as_text

    report = check(model, inputs, targets=targets, loss=loss, stages=("static", "signal"))
    if not report.fails("info" if advice else "warning"):
        return ""
    return f"\n\n{as_text(report, WIDTH, show_info=advice)}"


def total_of(output: Any) -> Tensor:
    """A number that all outputs have a part in."""
    from trainlint.tree import tensors

    parts = [t.float().square().sum() for _, t in tensors(output) if t.requires_grad]
    if not parts:
        raise ValueError("no output of the model has a gradient")
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
