"""Assertions about models, for tests. Each raises `AssertionError` with what was measured.

Whatever model is given is as it was afterwards: weights, buffers, gradients, modes, random states. Where a
model is asked for, its class or a function that makes it will do as well. `inputs` are a tensor, a tuple of
arguments, or a dict of keyword arguments, in all of them. What makes no sense, such as a rule that does not
exist, raises `ValueError`. Importing this imports no torch.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from os.path import relpath
from typing import TYPE_CHECKING, Any, Final

from trainlint.asserting import (
    WIDTH,
    layers_of,
    mixture_loss,
    reasons,
    run_once,
    samples_of,
    total_of,
    try_loss,
)
from trainlint.choices import known_word, words
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

    `model` may also be a file. The other arguments are those of `trainlint.check`: with `loss`, a function
    of (output, targets), the outputs are judged as what it is given, such as probabilities where it wants
    scores, and gradients are those of the loss; without `targets`, some that suit it are made up. Gives the
    report. Raises `AssertionError` with the findings as the command line shows them, and where the model
    cannot be checked.
    """
    __tracebackhide__ = True
    from trainlint.api import check

    known_word(fail_on, tuple(Severity), "fail_on")
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
    shown = as_text(report, WIDTH, show_info=fail_on == "info")
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
    unreached: Sequence[str] = (),
) -> Report:
    """Gradients reach every layer, at a size that lets it learn.

    The rules on gradients find nothing; they know that a zero-initialised branch or adapter is meant to
    start with gradients of 0. And each parameter that requires a gradient gets one, from `loss` on
    `targets`, else from the loss that the model returns, else from all of its outputs. What is to stay as
    it is says so by `requires_grad_(False)`; or `unreached` names parameters, or modules, that are meant to
    get none. `ignore` are rules.
    """
    __tracebackhide__ = True
    from trainlint.given import given_loss, instance_of

    network = instance_of(model)
    loss = given_loss(loss)
    report = assert_clean(
        network,
        inputs,
        targets=targets,
        loss=loss,
        select=_rules_on("gradient-flow"),
        ignore=ignore,
        stages=STAGES,
    )
    _assert_arrives(network, inputs, targets, loss, words(unreached))
    return report


def _assert_arrives(
    model: nn.Module, inputs: Any, targets: Any, loss: Any, meant: Sequence[str]
) -> None:
    """Each trainable parameter gets a gradient, but for those that are `meant` to get none."""
    __tracebackhide__ = True
    from trainlint.measure.arrival import without_gradient
    from trainlint.preserve import preserved_training
    from trainlint.probe.loop import own_loss
    from trainlint.sites import construction_site

    def value(output: Any) -> Tensor:
        if loss is not None and targets is not None:
            judged: Tensor = loss(output, targets)
            return judged.mean()
        own = own_loss(output)
        return total_of(output) if own is None else own

    with preserved_training(model, beside=layers_of(loss)):
        given = run_once(model, inputs)
        missing = without_gradient(model, given, value)
        # Here, where lazy layers have their shapes.
        sizes = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    for prefix in meant:
        if not any(_is_in(name, prefix) for name, _ in model.named_parameters()):
            raise ValueError(f"unreached: the model has no parameter or module {prefix!r}")
    missing = [name for name in missing if not any(_is_in(name, each) for each in meant)]
    if not missing:
        return
    share = sum(sizes[name] for name in missing) / sum(sizes.values())
    modules: dict[str, list[str]] = {}
    for name in missing:
        modules.setdefault(name.rpartition(".")[0], []).append(name)
    rows = []
    for path, inside in modules.items():
        site = construction_site(model.get_submodule(path))
        place = "" if site is None else f" ({relpath(site.project.filename)}:{site.project.row})"
        rows.append(f"  {', '.join(inside)}{place}")
    raise AssertionError(
        f"no gradient comes to {_counted(len(missing), 'parameter')} of {type(model).__name__}, "
        f"{share:.0%} of what is trainable:\n"
        + "\n".join(rows)
        + "\n(if that is meant: requires_grad_(False) on them, "
        f"or name them in unreached){reasons(model, inputs, targets, loss, advice=True)}"
    )


def _is_in(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def _counted(count: int, word: str) -> str:
    return f"{count} {word}" + ("" if count == 1 else "s")


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
    targets: Any = None,
    loss: Callable[..., Any] | None = None,
    *,
    left: float = 0.5,
    seconds: float = 60.0,
    constant_loss: float | None = None,
) -> float:
    """Trained on these samples alone, the first 16 of them, the model learns them by heart.

    The first axis of all `inputs` and `targets` counts the samples; `loss` is called as (output, targets),
    and without it the model returns its own, as `.loss`. Adam at 3e-3, 3e-4 and 3e-2 in turn, 60 steps
    each, then 400 of the best: one must leave less than the share `left` of the loss of the best constant
    answer (Karpathy 2019, "A Recipe for Training Neural Networks"). That is known of torch's losses, or
    given as `constant_loss`; else it is the best mixture of the model's first outputs, as the failure says.

    Gives the share that was left. Raises `AssertionError` also where the model does not run, or nothing of
    it is trainable, and `ValueError` for fewer than 8 samples, and where no such loss can be had.
    """
    __tracebackhide__ = True
    import torch

    from trainlint.given import given_loss, instance_of
    from trainlint.preserve import preserved_training
    from trainlint.probe.batches import Batch
    from trainlint.probe.memory import UNKNOWN, memorise
    from trainlint.probe.setup import Setup

    network = instance_of(model)
    loss = given_loss(loss)
    name = type(network).__name__
    found: Any
    with preserved_training(network, beside=layers_of(loss)):
        torch.manual_seed(0)
        given = samples_of(network, inputs, targets)
        try_loss(network, given, inputs, targets, loss)
        if not any(parameter.requires_grad for parameter in network.parameters()):
            raise AssertionError(
                f"{name} cannot learn: nothing is trainable, none of its parameters requires a gradient"
            )
        batch = Batch(given.args, given.kwargs, targets)

        def learnt(guess: float | None) -> Any:
            return memorise(
                network, Setup(loss=loss), batch,
                lambda: preserved_training(network, beside=layers_of(loss)), seconds, guess,
            )  # fmt: skip

        guess, source = constant_loss, "the best constant answer"
        found = learnt(guess)
        if found == UNKNOWN and loss is not None:
            guess, source = (
                mixture_loss(network, given, targets, loss),
                "the best mixture of its outputs",
            )
            found = UNKNOWN if guess is None else learnt(guess)
    if guess is not None and guess <= 0:
        raise ValueError(
            f"the loss of {source} is {guess:.4g}, a share of which means nothing: give a loss that is 0 "
            "at best, or another constant_loss"
        )
    if isinstance(found, str):
        hint = ": give it as constant_loss" if found == UNKNOWN else ""
        raise ValueError(f"{found}{hint}")
    if found.left > left:
        raise AssertionError(
            f"{name} does not learn {found.samples} samples by heart: the loss came "
            f"from {found.losses[0]:.4g} to {min(found.losses):.4g}, which is {found.left:.0%} of that of "
            f"{source}, {found.guess:.4g} (at most {left:.0%} is allowed)"
            f"{reasons(network, inputs, targets, loss)}"
        )
    share: float = found.left
    return share


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

    from trainlint.given import instance_of
    from trainlint.observe.hooks import observed
    from trainlint.observe.observer import TrainingObserver
    from trainlint.preserve import preserved_training

    network = instance_of(model)
    observer = TrainingObserver(period=1)
    with preserved_training(network):
        given = run_once(network.train(), inputs)
        parameters = [p for p in network.parameters() if p.requires_grad]
        if not parameters:
            raise ValueError("none of its parameters is trainable")
        optimizer = torch.optim.SGD(parameters, lr=0.0)  # looks, and changes nothing
        with observed(observer):
            for _ in range(_WINDOWS):
                optimizer.zero_grad()
                total_of(network(*given.args, **given.kwargs)).backward()  # type: ignore[no-untyped-call]
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
            f"{reasons(network, inputs)}"
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


def assert_restores(make: Callable[[], nn.Module], inputs: Any) -> None:
    """A checkpoint holds all of the model: a new one that loads it gives the same outputs in eval mode.

    `make` is called twice, and the `state_dict` of the first goes through a file into the second. What is
    kept in plain attributes instead of parameters and buffers is lost on the way, and shows here if it is
    random or was trained.
    """
    __tracebackhide__ = True
    import torch

    from trainlint.given import instance_of
    from trainlint.preserve import random_states
    from trainlint.tree import tensors

    with random_states():
        torch.manual_seed(0)
        first = instance_of(make).eval()
        torch.manual_seed(1)
        second = instance_of(make).eval()
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
        with torch.no_grad():
            given = run_once(first, inputs)
            for model in (first, second):
                torch.manual_seed(0)
                output = model(*given.args, **given.kwargs)
                outputs.append([t for _, t in tensors(output)])
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
