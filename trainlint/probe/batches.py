"""The batches that a probe trains on, as the user's loaders give them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from trainlint.tree import map_tensors, tensors

if TYPE_CHECKING:
    from torch import nn

LABELS: Final = ("labels", "label", "target", "targets", "y")


class ProbeProblem(Exception):  # noqa: N818 (an answer, not an error of ours)
    """Why there is no probe, or no more of it; the text is for the report."""


@dataclass(frozen=True)
class Batch:
    """Arguments for the model, and what the loss compares its output with.

    `target` is None where the model computes its loss itself. `whole` is what the loader gave.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    target: Any
    whole: Any = None


@contextmanager
def same_draws(*loaders: Any) -> Iterator[None]:
    """The loaders' own random generators draw the same again afterwards."""
    holders = [
        holder for loader in loaders for holder in (loader, getattr(loader, "sampler", None))
    ]
    found = [getattr(holder, "generator", None) for holder in holders]
    states = [(g, g.get_state()) for g in found if isinstance(g, torch.Generator)]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)


def batches(loader: Any, name: str, *, once: bool = False) -> Iterator[Any]:
    """What the loader gives, pass after pass, or `once`; a function without arguments is called for each.

    Raises `ProbeProblem` where it fails or gives nothing. An iterator is refused: it could not be read
    again, and its owner would miss what we have read.
    """
    is_made = callable(loader) and not hasattr(loader, "__iter__")
    if not is_made and hasattr(loader, "__next__"):
        raise ProbeProblem(
            f"{name} is an iterator, which can be read only once: give what it reads"
        )
    while True:
        count = 0
        try:
            for batch in loader() if is_made else loader:
                count += 1
                yield batch
        except Exception as error:
            raise ProbeProblem(f"{name} raised {described(error)}") from error
        if not count:
            raise ProbeProblem(f"{name} is empty")
        if once:
            return


def split(batch: Any, model: nn.Module, loss: Callable[..., Any] | None, name: str) -> Batch:
    """The model's arguments and the target of a batch. Raises `ProbeProblem` for what is neither."""
    if not any(True for _ in tensors(batch)):
        raise ProbeProblem(f"{name} gives {_described(batch)}: no tensors to train on")
    if isinstance(batch, Mapping):
        return _split_mapping(batch, model, loss, name)
    if isinstance(batch, (list, tuple)):
        if loss is None:
            _refuse_targets(batch, model, name)
            return Batch(tuple(batch), {}, None, batch)
        if len(batch) == 1:
            return Batch((batch[0],), {}, batch[0], batch)
        if len(batch) > 1:
            return Batch(tuple(batch[:-1]), {}, batch[-1], batch)
    elif any(True for _ in tensors(batch)):
        target = None if loss is None else getattr(batch, "y", batch)
        return Batch((batch,), {}, target, batch)
    raise ProbeProblem(f"{name} gives {_described(batch)}: no tensors to train on")


def _refuse_targets(batch: Sequence[Any], model: nn.Module, name: str) -> None:
    """Without a loss, all of a batch goes to the model."""
    try:
        inspect.signature(model.forward).bind(*batch)
    except TypeError:
        raise ProbeProblem(
            f"{name} gives {len(batch)} parts, of which forward does not take all, and no loss is known "
            "for the rest: name it criterion"
        ) from None
    except ValueError:  # no signature to be had
        pass


def _split_mapping(
    batch: Mapping[str, Any], model: nn.Module, loss: Callable[..., Any] | None, name: str
) -> Batch:
    if loss is None:
        return Batch((), dict(batch), None, batch)
    label = next((key for key in LABELS if key in batch), None)
    if label is None:
        raise ProbeProblem(f"{name} gives a dict without any of {', '.join(LABELS)}")
    rest = {key: value for key, value in batch.items() if key != label}
    try:
        inspect.signature(model.forward).bind(**rest)
    except (TypeError, ValueError):
        return Batch(tuple(rest.values()) if len(rest) == 1 else (rest,), {}, batch[label], batch)
    return Batch((), rest, batch[label], batch)


def _described(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        kind = type(value).__name__
        return f"a {kind} of {type(value[0]).__name__}" if value else f"an empty {kind}"
    return "None" if value is None else f"a {type(value).__name__}"


def moved(value: Any, device: torch.device) -> Any:
    """The same with all tensors on the device."""
    return map_tensors(value, lambda _, tensor: tensor.to(device))


def size_of(value: Any) -> int | None:
    """The number of samples, where all tensors with axes agree on it."""
    sizes = {tensor.shape[0] for _, tensor in tensors(value) if tensor.dim()}
    return sizes.pop() if len(sizes) == 1 else None


def first_samples(value: Any, count: int) -> Any:
    """As many of the samples, from the first on; the value itself where it has not more."""
    size = size_of(value)
    if size is None or size <= count:
        return value
    return map_tensors(value, lambda _, tensor: tensor[:count] if tensor.dim() else tensor)


def described(error: BaseException) -> str:
    """`KeyError: 'x' at net.py:12`."""
    from trainlint.capture.tracer import site_of
    from trainlint.targets.loading import reason_of

    site = site_of(error)
    place = "" if site is None else f" at {site.project.filename}:{site.project.row}"
    return f"{reason_of(error)}{place}"
