"""Train a file of the repair benchmark as its author would, without trainlint, and score what comes of it.

A score is the loss on the training data in eval mode, with the unbroken twin's kind of loss, after as many
samples as the twin sees in `STEPS` steps; or after the file's own loop.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import re
import signal
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from trainlint.fixes.patch import Patch
from trainlint.generalization.trials import Copy
from trainlint.probe.setup import Setup, setup_of
from trainlint.surgery import patched

STEPS = 200
_SECONDS = 90
_NAMES = {
    "model": ("model", "net"),
    "loss": ("criterion", "loss_fn"),
    "optimizer": ("optimizer", "opt"),
    "loader": ("train_loader", "train_dl", "loader"),
    "loop": ("train", "fit", "train_one_epoch"),
}
_OF_DATA = ("normalise-inputs", "normalise-targets", "channels-first", "cast")


@dataclass(frozen=True)
class Outcome:
    """`loss` is infinite where the file does not run, or its loss is not finite; `error` says why."""

    loss: float
    error: str = ""


class _Slow(BaseException):
    pass


@contextlib.contextmanager
def _limited(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise _Slow

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def seeded(text: str, shift: int) -> str:
    """The file with another seed; its data are others, too."""
    return re.sub(
        r"manual_seed\((\d+)\)", lambda m: f"manual_seed({int(m[1]) + 1000 * shift})", text
    )


def run(text: str, name: str = "benchmark_case") -> dict[str, Any]:
    """The names of the file after it ran, and no training."""
    module = types.ModuleType(name)
    exec(compile(text, f"{name}.py", "exec"), vars(module))
    return vars(module)


def part(namespace: dict[str, Any], what: str) -> Any:
    return next((namespace[name] for name in _NAMES[what] if name in namespace), None)


def _samples(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def _split(batch: Any) -> tuple[list[Any], Any]:
    *inputs, target = batch
    return inputs, target


def setup_in(namespace: dict[str, Any]) -> Setup:
    """What trainlint finds in these names to train the model with."""
    return setup_of(namespace, part(namespace, "model"), part(namespace, "loss"))


def patched_in(namespace: dict[str, Any], patches: list[Patch], seed: int) -> Copy:
    """The file's own model and training, changed in place. Raises `PatchProblem` where that fails."""
    setup = setup_in(namespace)
    copy = Copy(part(namespace, "model"), part(namespace, "optimizer"), setup)
    return patched(copy, patches, seed=seed).subject


def train(namespace: dict[str, Any], batch_size: int, changed: Copy | None = None) -> None:
    """The file's loop, or a plain one over `STEPS` batches of the twin's size in samples."""
    if changed is not None:
        namespace[next(n for n in _NAMES["model"] if n in namespace)] = changed.model
        with changed.setup.entered():
            if changed.setup.train is not None:
                changed.setup.train()
            else:
                given = changed.setup
                _plain(changed.model, given.loss, changed.optimizer, given.train_loader, batch_size)
        namespace[next(n for n in _NAMES["loss"] if n in namespace)] = changed.setup.loss
        return
    model, loop = part(namespace, "model"), part(namespace, "loop")
    if loop is not None:
        loop(model)
        return
    loss, optimizer = part(namespace, "loss"), part(namespace, "optimizer")
    _plain(model, loss, optimizer, part(namespace, "loader"), batch_size)


def _plain(model: Any, loss: Any, optimizer: Any, loader: Any, batch_size: int) -> None:
    model.train()
    left = STEPS * batch_size
    for batch in _samples(loader):
        inputs, target = _split(batch)
        optimizer.zero_grad()
        loss(model(*inputs), target).backward()
        optimizer.step()
        left -= len(target)
        if left <= 0:
            return


@torch.no_grad()
def score(
    namespace: dict[str, Any], twin: dict[str, Any], patches: list[Patch] | None = None
) -> float:
    """Mean loss over the training data. Targets of another scale than the twin's are standardised."""
    model, loss, judge = part(namespace, "model"), part(namespace, "loss"), part(twin, "loss")
    # Cross entropy of log-probabilities is their negative logarithm; only probabilities need their own.
    if not isinstance(loss, nn.BCELoss) or not isinstance(judge, nn.BCEWithLogitsLoss):
        loss = judge
    model.eval()
    batches = list(_evaluated(namespace, patches or []))
    is_regression = isinstance(judge, (nn.MSELoss, nn.SmoothL1Loss))
    one_shape = is_regression or isinstance(judge, (nn.BCELoss, nn.BCEWithLogitsLoss))
    scale: tuple[float, float] | None = None
    if is_regression:
        own = torch.cat([target.double().flatten() for _, target in batches])
        usual = torch.cat([t.double().flatten() for *_, t in part(twin, "loader")])
        if not 0.98 < float(own.std() / usual.std()) < 1.02:
            scale = (float(own.mean()), float(own.std()))
    total = count = 0.0
    for inputs, target in batches:
        output = model(*inputs)
        if one_shape and output.numel() == target.numel():
            output = output.reshape(target.shape)
        if scale is not None:
            output, target = ((v.double() - scale[0]) / scale[1] for v in (output, target))
        total += float(loss(output, target)) * len(target)
        count += len(target)
    return total / count


def _evaluated(namespace: dict[str, Any], patches: list[Patch]) -> Iterator[tuple[list[Any], Any]]:
    """All training data once; where patches change it on its way to the model, as the model gets it."""
    loader = part(namespace, "loader")
    of_data = [patch for patch in patches if patch.kind in _OF_DATA]
    if not of_data:
        yield from map(_split, DataLoader(loader.dataset, batch_size=100))
        return
    model, loss = part(namespace, "model"), part(namespace, "loss")
    setup = setup_of(namespace, model, loss, loops=False)
    setup = patched(Copy(model, part(namespace, "optimizer"), setup), of_data).subject.setup
    with setup.entered():
        yield from map(_split, setup.train_loader)


def outcome(text: str, twin: str, shift: int = 0, patches: list[Patch] | None = None) -> Outcome:
    """Run, train and score a file beside its twin, which gives the loss and the batch size.

    `patches` are made in the live model and training before it trains.
    """
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        judge = run(seeded(twin, shift))
        loader = part(judge, "loader")
        try:
            with _limited(_SECONDS):
                namespace = run(seeded(text, shift))
                changed = patched_in(namespace, patches, shift) if patches else None
                train(namespace, loader.batch_size, changed)
                loss = score(namespace, judge, patches)
        except (_Slow, Exception) as error:
            return Outcome(math.inf, f"{type(error).__name__}: {error}"[:200])
    return Outcome(loss) if math.isfinite(loss) else Outcome(math.inf, "the loss is not finite")


def constant(twin: str, shift: int = 0) -> float:
    """The twin's loss if every answer were the same, and the best."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        namespace = run(seeded(twin, shift))
    model, loss = part(namespace, "model").eval(), part(namespace, "loss")
    data = part(namespace, "loader").dataset
    batch = next(iter(DataLoader(data, batch_size=len(data))))
    inputs, target = _split(batch)
    with torch.no_grad():
        output = model(*inputs)
    single = isinstance(output, Tensor)
    outputs = [output] if single else list(output)
    answers = [o.mean(0, keepdim=True).clone().requires_grad_() for o in outputs]
    optimizer = torch.optim.Adam(answers, lr=0.03)
    best = math.inf
    for _ in itertools.repeat(None, 400):
        optimizer.zero_grad()
        spread = [a.expand_as(o).contiguous() for a, o in zip(answers, outputs, strict=True)]
        value = loss(spread[0] if single else tuple(spread), target)
        value.backward()
        optimizer.step()
        best = min(best, float(value.detach()))
    return best
