"""The data of a training: other batches of the same samples, or the same batches with other values."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from trainlint.data.pool import pool_of
from trainlint.preserve import random_states
from trainlint.probe.batches import LABELS, same_draws
from trainlint.probe.setup import TRAIN_LOADERS, VAL_LOADERS
from trainlint.surgery.case import Case, PatchProblem
from trainlint.tree import map_tensors

if TYPE_CHECKING:
    from trainlint.fixes.patch import Patch

_SAMPLES: Final = 2048
_CHANNELS: Final = (1, 3, 4)
# From a raw batch to another.
RawChange = Callable[[Any], Any]


# ---------------------------------------------------------------------- values


@dataclass(frozen=True)
class _Parts:
    """Changes of a batch's inputs and of its targets, by the names of `tree.map_tensors`."""

    inputs: Callable[[str, Tensor], Tensor] | None
    targets: Callable[[str, Tensor], Tensor] | None
    # Whether the last part of a tuple is the target.
    has_target: bool

    def __call__(self, raw: Any) -> Any:
        if isinstance(raw, Mapping):
            made = copy.copy(raw) if type(raw) is not dict else dict(raw)
            label = next((key for key in LABELS if key in raw), None)
            for key, value in raw.items():
                made[key] = self._part(value, str(key), is_target=key == label)  # type: ignore[index]
            return made
        if isinstance(raw, (list, tuple)):
            last = len(raw) - 1 if self.has_target and len(raw) > 1 else len(raw)
            parts = [
                self._part(part, str(place), is_target=place == last)
                for place, part in enumerate(raw)
            ]
            return type(raw)(*parts) if hasattr(raw, "_fields") else type(raw)(parts)
        return self._part(raw, "0", is_target=False)

    def _part(self, value: Any, name: str, *, is_target: bool) -> Any:
        change = self.targets if is_target else self.inputs
        return value if change is None else map_tensors(value, change, name)


def _with_values(
    case: Case,
    inputs: Callable[[str, Tensor], Tensor] | None = None,
    targets: Callable[[str, Tensor], Tensor] | None = None,
) -> None:
    change = _Parts(inputs, targets, _has_target(case))
    _put(case, partial(_mapped, change=change), both=True)


def _has_target(case: Case) -> bool:
    setup = case.setup
    return setup.loss is not None or setup.step is not None or setup.train is not None


def normalise_inputs(case: Case, _: Patch) -> None:
    """Inputs of real numbers less their mean, over their standard deviation, of training samples.

    Of each feature, which is the last axis, or of each channel of images and of what `Conv1d` takes.
    """
    _with_values(case, inputs=_standard(case, "inputs"))


def normalise_targets(case: Case, _: Patch) -> None:
    """The same for targets of real numbers, each column by its own."""
    _with_values(case, targets=_standard(case, "targets"))


def _standard(case: Case, what: str) -> _Standard:
    figures = _figures(case, of_targets=what == "targets")
    if not figures:
        raise PatchProblem(f"the {what} are no real numbers")
    return _Standard(figures)


@dataclass(frozen=True)
class _Standard:
    """(mean, standard deviation) of each tensor, in shapes that broadcast."""

    figures: Mapping[str, tuple[Tensor, Tensor]]

    def __call__(self, name: str, value: Tensor) -> Tensor:
        known = self.figures.get(name)
        if known is None:
            return value
        kind = value.dtype if value.is_floating_point() else torch.get_default_dtype()
        mean, deviation = (figure.to(value.device, kind) for figure in known)
        return (value.to(kind) - mean) / deviation


def _figures(case: Case, *, of_targets: bool) -> dict[str, tuple[Tensor, Tensor]]:
    has_conv = any(isinstance(module, nn.Conv1d) for module in case.model.modules())
    sums: dict[str, list[Tensor]] = {}

    def add(name: str, value: Tensor) -> Tensor:
        is_bytes = value.dtype == torch.uint8 and value.dim() > 2 and not of_targets
        if not (value.is_floating_point() or is_bytes) or not value.dim():
            return value
        axis = _axis(value, has_conv) if not of_targets else max(1, value.dim() - 1)
        over = [a for a in range(value.dim()) if a != axis]
        wide = value.double()
        found = [
            torch.ones_like(wide).sum(over, keepdim=True),
            wide.sum(over, keepdim=True),
            wide.square().sum(over, keepdim=True),
        ]
        before = sums.get(name)
        sums[name] = (
            found if before is None else [a + b for a, b in zip(before, found, strict=True)]
        )
        return value

    has_target = _has_target(case)
    look = _Parts(None, add, has_target) if of_targets else _Parts(add, None, has_target)
    _look_at(case, look, _SAMPLES)
    figures = {}
    for key, (count, total, squares) in sums.items():
        mean = total / count
        deviation = (squares / count - mean.square()).clamp_min(0).sqrt()
        # What never varies is only moved.
        constant = deviation <= 1e-7 * mean.abs().clamp_min(1e-30)
        figures[key] = (mean, torch.where(constant, torch.ones_like(deviation), deviation))
    return figures


def _look_at(case: Case, look: RawChange, most: int) -> None:
    """Show some of the training samples; nothing is drawn by it."""
    name, loader = _training_loader(case)
    with random_states(), same_draws(loader):
        pool = pool_of(loader, name, most=most)
        for raw in pool.batches(pool.drawn(most)):
            look(raw)


def _axis(value: Tensor, has_conv: bool) -> int:
    """Which axis has figures of its own: features, or channels."""
    if value.dim() >= 4:
        return value.dim() - 1 if _is_channels_last(value) else 1
    if value.dim() == 3 and has_conv:
        return 1
    return max(1, value.dim() - 1)


def _is_channels_last(value: Tensor) -> bool:
    return value.dim() == 4 and value.shape[-1] in _CHANNELS and value.shape[1] not in _CHANNELS


def channels_first(case: Case, _: Patch) -> None:
    """Images (N, H, W, C) as (N, C, H, W)."""
    found: list[str] = []

    def look(name: str, value: Tensor) -> Tensor:
        if _is_channels_last(value):
            found.append(name)
        return value

    _look_at(case, _Parts(look, None, _has_target(case)), most=2)
    if not found:
        raise PatchProblem("no input is of images with their channels last")
    _with_values(case, inputs=_moved_channels)


def _moved_channels(_: str, value: Tensor) -> Tensor:
    return value.movedim(-1, 1).contiguous() if _is_channels_last(value) else value


def target_shape(case: Case, patch: Patch) -> None:
    """Targets without their axis `squeeze` of length 1, or with another at `unsqueeze`."""
    places = {name: patch.values.get(name) for name in ("squeeze", "unsqueeze")}
    given = {name: place for name, place in places.items() if isinstance(place, int)}
    if len(given) != 1 or not _has_target(case):
        raise PatchProblem("one axis of the targets is to be named: squeeze or unsqueeze")
    [(name, place)] = given.items()
    _with_values(case, targets=partial(_reshaped, change=name, place=place))


def _reshaped(_: str, value: Tensor, change: str, place: int) -> Tensor:
    if not -value.dim() - 1 <= place <= value.dim() - (change == "squeeze"):
        raise PatchProblem(f"targets of shape {tuple(value.shape)} have no axis {place}")
    made: Tensor = getattr(value, change)(place)
    return made


def cast(case: Case, patch: Patch) -> None:
    """Inputs to the type `inputs`, targets to `targets`; by default, inputs to that of the weights."""
    of_inputs, of_targets = (_dtype(patch.values.get(name)) for name in ("inputs", "targets"))
    if of_inputs is None and of_targets is None:
        of_inputs = next(
            (p.dtype for p in case.model.parameters() if p.is_floating_point()), torch.float32
        )
    _with_values(
        case,
        None if of_inputs is None else partial(_as_type, kind=of_inputs),
        None if of_targets is None else partial(_as_type, kind=of_targets),
    )


def _as_type(_: str, value: Tensor, kind: torch.dtype) -> Tensor:
    return value.to(kind)


def _dtype(name: Any) -> torch.dtype | None:
    if name is None:
        return None
    found = getattr(torch, str(name).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise PatchProblem(f"torch has no type {name}")
    return found


# ---------------------------------------------------------------------- batches


def batch_size(case: Case, patch: Patch) -> None:
    """Batches of `value` samples for training."""
    value = patch.values.get("value")
    if not isinstance(value, int) or value < 1:
        raise PatchProblem(f"no batch has {value!r} samples")
    _put(case, partial(_made_anew, batch_size=value), both=False)


def drop_last(case: Case, _: Patch) -> None:
    """No batch that is smaller than the others."""
    _put(case, partial(_made_anew, drop_last=True), both=False)


def shuffle(case: Case, _: Patch) -> None:
    """The training samples in a new order in each pass."""
    _put(case, partial(_made_anew, shuffle=True), both=False)


def _made_anew(loader: Any, name: str, **changed: Any) -> Any:
    """A `DataLoader` over the same dataset."""
    if callable(loader) and not hasattr(loader, "__iter__"):
        return _Called(loader, partial(_made_anew, name=name, **changed))
    if type(loader) is not DataLoader or type(loader.batch_sampler) is not BatchSampler:
        raise PatchProblem(f"{name} is no plain DataLoader with batches of its own")
    options: dict[str, Any] = {
        "batch_size": loader.batch_size,
        "drop_last": loader.drop_last,
        "sampler": loader.sampler,
        **{
            key: getattr(loader, key)
            for key in (
                "num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "generator",
                "prefetch_factor", "persistent_workers", "multiprocessing_context",
            )
        },
    }  # fmt: skip
    size = loader.batch_size or 1
    if changed.get("drop_last") and len(loader.sampler) < size:  # type: ignore[arg-type]
        raise PatchProblem(f"{name} has less than one whole batch")
    if changed.get("shuffle"):
        if isinstance(loader.sampler, RandomSampler):
            raise PatchProblem(f"{name} is shuffled already")
        del options["sampler"]
    return DataLoader(loader.dataset, **{**options, **changed})


@dataclass(frozen=True)
class _Called:
    """A function that gives a loader, changed when it is called."""

    function: Callable[[], Any]
    change: Callable[[Any], Any]

    def __call__(self) -> Any:
        return self.change(self.function())


@dataclass(frozen=True)
class _Collated:
    """What a loader makes of its samples, changed."""

    collate: Callable[[Any], Any]
    change: RawChange

    def __call__(self, samples: Any) -> Any:
        return self.change(self.collate(samples))


@dataclass(frozen=True)
class _Mapped:
    """Any other loader, batch by batch."""

    loader: Any
    change: RawChange

    def __iter__(self) -> Iterator[Any]:
        return map(self.change, self.loader)

    def __len__(self) -> int:
        return len(self.loader)


def _mapped(loader: Any, name: str, change: RawChange) -> Any:
    if callable(loader) and not hasattr(loader, "__iter__"):
        return _Called(loader, partial(_mapped, name=name, change=change))
    if isinstance(loader, DataLoader):
        # Its iterator is its own; samplers and generators are shared, and draw the same.
        made = copy.copy(loader)
        made._iterator = None
        made.collate_fn = _Collated(loader.collate_fn, change)
        return made
    if isinstance(loader, list):
        return [change(batch) for batch in loader]
    return _Mapped(loader, change)


# ---------------------------------------------------------------------- where loaders stand


def _training_loader(case: Case) -> tuple[str, Any]:
    for name, loader, is_training in _loaders(case):
        if is_training:
            return name, loader
    raise PatchProblem("no training data are known: name them train_loader")


def _loaders(case: Case) -> list[tuple[str, Any, bool]]:
    """(name, loader, whether it is for training): the setup's, or those that the user's loop is given."""
    setup = case.setup
    if setup.train is None:
        names = setup.names
        return [
            (names.get(part, part), loader, part == "train_loader")
            for part, loader in (
                ("train_loader", setup.train_loader),
                ("val_loader", setup.val_loader),
            )
            if loader is not None
        ]
    given, namespace = _of_loop(setup.train)
    found = {
        name: value
        for name, value in {**namespace, **given}.items()
        if isinstance(value, DataLoader)
        or (name in (*TRAIN_LOADERS, *VAL_LOADERS) and hasattr(value, "__iter__"))
    }
    return [(name, loader, name in TRAIN_LOADERS) for name, loader in found.items()]


def _of_loop(loop: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(its arguments, the names of its module)."""
    function = getattr(loop, "func", loop)
    return dict(getattr(loop, "keywords", {})), getattr(function, "__globals__", {})


def _put(case: Case, make: Callable[[Any, str], Any], *, both: bool) -> None:
    """Put changed loaders where the training finds them; of validation only with `both`."""
    setup = case.setup
    loaders = [(n, loader, t) for n, loader, t in _loaders(case) if t or both]
    if not any(is_training for _, _, is_training in loaders):
        raise PatchProblem(
            "the training loop makes its loaders itself"
            if setup.train is not None
            else "no training data are known: name them train_loader"
        )
    made = {name: make(loader, name) for name, loader, _ in loaders}
    case.has_other_data = True
    if setup.train is None:
        parts = {
            "train_loader" if is_training else "val_loader": made[name]
            for name, _, is_training in loaders
        }
        case.setup = replace(setup, **parts)
        return
    given, namespace = _of_loop(setup.train)
    inside = {name: value for name, value in made.items() if name in given}
    if inside:
        case.setup = replace(setup, train=partial(setup.train, **inside))
    outside = {name: value for name, value in made.items() if name in namespace}
    if outside:
        case.conduct.seams.append(lambda: _renamed(namespace, outside))


@contextlib.contextmanager
def _renamed(namespace: dict[str, Any], values: Mapping[str, Any]) -> Iterator[None]:
    before = {name: namespace[name] for name in values}
    namespace.update(values)
    try:
        yield
    finally:
        namespace.update(before)
