"""Assertions about models, for tests. Each raises `AssertionError` with what was measured.

Whatever model is given is as it was afterwards: weights, buffers, gradients, modes, random states. Where a
model is asked for, its class or a function that makes it will do as well. Importing this imports no torch.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from trainlint.rule import STAGES, Severity

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainlint.records import Report

__all__ = [
    "assert_clean",
    "assert_examples",
    "assert_gradients_flow",
    "assert_learns",
    "assert_no_dead_units",
    "assert_restores",
    "assert_same_in_eval",
    "assert_samples_independent",
]

Model = Any
_WIDTH: Final = 100
_LEAST_SAMPLES: Final = 8
_WINDOWS: Final = 10


def assert_clean(
    model: Model,
    inputs: Any = None,
    *,
    targets: Any = None,
    loss: Callable[..., Any] | None = None,
    optimizer: Any = None,
    train_loader: Any = None,
    val_loader: Any = None,
    select: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    fail_on: str = "warning",
    stages: Sequence[str] = STAGES,
) -> Report:
    """`trainlint.check` finds nothing at or above `fail_on` (error, warning or info).

    `model` may also be a file. The other arguments are those of `trainlint.check`. Gives the report.
    Raises `AssertionError` with the findings as the command line shows them, and where the model cannot be
    checked.
    """
    __tracebackhide__ = True
    from trainlint.api import check

    report = check(
        model, inputs, targets=targets, loss=loss, optimizer=optimizer, train_loader=train_loader,
        val_loader=val_loader, select=select, ignore=ignore, stages=stages,
    )  # fmt: skip
    for target in report.targets:
        if target.status == "error":
            raise AssertionError(f"{target.target} could not be checked: {target.reason}")
    if report.fails(fail_on):
        raise AssertionError(_findings(report, fail_on))
    return report


def _findings(report: Report, fail_on: str) -> str:
    from trainlint.report.text import as_text

    limit = Severity(fail_on).rank
    failed = [found for found in report.findings if Severity(found.severity).rank <= limit]
    names = ", ".join(dict.fromkeys(f"{found.code} {found.name}" for found in failed))
    shown = as_text(report, _WIDTH, show_info=fail_on == "info")
    return f"trainlint finds {names}\n\n{shown}"


def _rules_on(topic: str) -> list[str]:
    from trainlint.registry import all_rules

    return [rule.code for rule in all_rules() if topic in rule.topics]


def assert_gradients_flow(
    model: Model,
    inputs: Any = None,
    *,
    targets: Any = None,
    loss: Callable[..., Any] | None = None,
    ignore: Sequence[str] = (),
) -> Report:
    """Gradients reach every layer, at a size that lets it learn: the rules on gradients find nothing.

    They know that a zero-initialised branch or adapter is meant to start without a gradient.
    """
    __tracebackhide__ = True
    return assert_clean(
        model,
        inputs,
        targets=targets,
        loss=loss,
        select=_rules_on("gradient-flow"),
        ignore=ignore,
        stages=STAGES,
    )


def assert_samples_independent(model: Model, inputs: Any = None) -> Report:
    """No sample's output depends on another sample of the batch."""
    __tracebackhide__ = True
    return assert_clean(model, inputs, select=_rules_on("independent-samples"))


def assert_same_in_eval(model: Model, inputs: Any = None) -> Report:
    """In eval mode, two passes on the same inputs give the same."""
    __tracebackhide__ = True
    return assert_clean(model, inputs, select=_rules_on("same-in-eval"))


def assert_learns(
    model: Model,
    inputs: Any,
    targets: Any,
    loss: Callable[..., Any],
    *,
    left: float = 0.5,
    seconds: float = 60.0,
) -> float:
    """Trained on these samples alone, the first 16 of them, the model learns them by heart.

    `inputs` are a tensor or a tuple of arguments, whose first axis counts the samples, as that of
    `targets`; `loss` is called as (output, targets). Adam at 3e-3, 3e-4 and 3e-2 in turn, 60 steps each,
    then 400 of the best: one must leave less than the share `left` of the loss of the best constant answer
    (Karpathy 2019, "A Recipe for Training Neural Networks"). Gives the share that was left. Raises
    `ValueError` for fewer than 8 samples, and where the best constant answer to the loss is not known.
    """
    __tracebackhide__ = True
    import torch

    from trainlint.preserve import preserved_training
    from trainlint.probe.batches import Batch, size_of
    from trainlint.probe.memory import memorise
    from trainlint.probe.setup import Setup

    network = _instance(model)
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    size = size_of((args, targets))
    if size is None or size < _LEAST_SAMPLES:
        raise ValueError(f"at least {_LEAST_SAMPLES} samples are needed, on the first axis of all")
    beside = [loss] if isinstance(loss, torch.nn.Module) else []
    with preserved_training(network, beside=beside):
        torch.manual_seed(0)
        found = memorise(
            network,
            Setup(loss=loss),
            Batch(args, {}, targets),
            lambda: preserved_training(network, beside=beside),
            seconds,
        )
    if isinstance(found, str):
        raise ValueError(found)
    if found.left > left:
        raise AssertionError(
            f"{type(network).__name__} does not learn {found.samples} samples by heart: the loss came "
            f"from {found.losses[0]:.4g} to {min(found.losses):.4g}, which is {found.left:.0%} of that of "
            f"the best constant answer, {found.guess:.4g} (at most {left:.0%} is allowed)"
            f"{_reasons(network, inputs, targets, loss)}"
        )
    return found.left


def _reasons(model: nn.Module, inputs: Any, targets: Any = None, loss: Any = None) -> str:
    """What a check without training finds on the model, behind a failure that was measured."""
    from trainlint.api import check
    from trainlint.report.text import as_text

    report = check(model, inputs, targets=targets, loss=loss, stages=("static", "signal"))
    return f"\n\n{as_text(report, _WIDTH)}" if report.fails("warning") else ""


def assert_no_dead_units(
    model: Model,
    inputs: Any,
    *,
    most: float = 0.5,
) -> dict[str, float]:
    """In no layer with ReLUs (or the like) more than the share `most` of the units is dead.

    Dead is a unit (channel, feature) that is 0 for every sample and position of `inputs`, in train mode.
    Gives the share by layer.
    """
    __tracebackhide__ = True
    import torch

    from trainlint.observe.hooks import observed
    from trainlint.observe.observer import TrainingObserver
    from trainlint.preserve import preserved_training

    network = _instance(model)
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    parameters = [p for p in network.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("none of its parameters is trainable")
    observer = TrainingObserver(period=1)
    with preserved_training(network), observed(observer):
        network.train()
        optimizer = torch.optim.SGD(parameters, lr=0.0)  # looks, and changes nothing
        for _ in range(_WINDOWS):
            optimizer.zero_grad()
            _total(network(*args)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    shares: dict[str, float] = {}
    for trace in observer.trace().models:
        for site in trace.sites:
            if site.dead:
                shares[str(site.place)] = min(site.dead)
    dead = {name: share for name, share in shares.items() if share > most}
    if dead:
        rows = "\n".join(f"  {name}: {share:.0%}" for name, share in dead.items())
        raise AssertionError(
            f"units of {type(network).__name__} are 0 for every sample, and get no gradient:\n{rows}\n"
            f"(at most {most:.0%} of a layer are allowed)"
            f"{_reasons(network, inputs)}"
        )
    return shares


def assert_examples(*selectors: str) -> None:
    """The Bad examples in the docstrings of these rules fire, and the Good ones are silent for all rules.

    For the tests of a rule pack; `selectors` are codes, prefixes, names or families, as for `--select`.
    Good ones may have advice (info) of other rules. Raises `AssertionError` with a line for each example
    that does otherwise, and `UsageError` for a selector that fits no rule.
    """
    __tracebackhide__ = True
    from trainlint.examples import failures
    from trainlint.registry import select_rules

    wrong = list(failures(select_rules(selectors)))
    if wrong:
        raise AssertionError("\n".join(wrong))


def _total(output: Any) -> Tensor:
    """A number that all outputs have a part in."""
    from trainlint.tree import tensors

    parts = [t.float().square().sum() for _, t in tensors(output) if t.requires_grad]
    if not parts:
        raise ValueError("no output of the model has a gradient")
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def assert_restores(make: Callable[[], nn.Module], inputs: Any) -> None:
    """A checkpoint holds all of the model: a new one that loads it gives the same outputs in eval mode.

    `make` is called twice, and the `state_dict` of the first goes through a file into the second. What is
    kept in plain attributes instead of parameters and buffers is lost on the way, and shows here if it is
    random or was trained.
    """
    __tracebackhide__ = True
    import torch

    from trainlint.preserve import random_states
    from trainlint.tree import tensors

    args = inputs if isinstance(inputs, tuple) else (inputs,)
    with random_states():
        torch.manual_seed(0)
        first = _instance(make).eval()
        torch.manual_seed(1)
        second = _instance(make).eval()
        if first is second:
            raise TypeError("give a function that makes a new model each time, or its class")
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        try:
            second.load_state_dict(torch.load(file, weights_only=True))
        except RuntimeError as error:
            raise AssertionError(f"the checkpoint does not load: {error}") from None
        outputs = []
        for model in (first, second):
            torch.manual_seed(0)
            with torch.no_grad():
                outputs.append([t for _, t in tensors(model(*args))])
    for number, (before, after) in enumerate(zip(*outputs, strict=True)):
        if before.shape != after.shape or not torch.equal(before, after):
            farthest = (
                "" if before.shape != after.shape else f" by up to {_distance(before, after):.3g}"
            )
            raise AssertionError(
                f"output {number} of {type(first).__name__} differs{farthest} after its checkpoint was "
                "loaded into a new model: something that it computes with is neither parameter nor buffer"
            )


def _distance(first: Tensor, second: Tensor) -> float:
    return float((first.double() - second.double()).abs().max())


def _instance(model: Model) -> nn.Module:
    from torch import nn

    made = model if isinstance(model, nn.Module) else model()
    if not isinstance(made, nn.Module):
        raise TypeError(f"{model!r} makes no torch.nn.Module but {type(made).__name__}")
    return made
