"""Something behind layers of the copy, or around them: normalisations, and sums with what went in.

What is put behind a layer is a child of it, run by a hook: names and attributes of all others stay.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from torch import Tensor, nn

from trainlint.surgery.calls import changed_calls
from trainlint.surgery.case import Case, PatchProblem
from trainlint.surgery.layers import made_activation

if TYPE_CHECKING:
    from trainlint.fixes.patch import Patch

_CONVOLUTIONS: Final = {
    nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3,
    nn.ConvTranspose1d: 1, nn.ConvTranspose2d: 2, nn.ConvTranspose3d: 3,
}  # fmt: skip
_BATCH_NORMS: Final = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_MOST_GROUPS: Final = 32


@dataclass
class _Behind:
    """A forward hook: the child of that name takes what the layer gives."""

    name: str
    path: str

    def __call__(self, module: nn.Module, _: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            kind = type(output).__name__
            raise PatchProblem(f"{self.path} gives a {kind}, no tensor")
        return module._modules[self.name](output)  # type: ignore[misc]


class _OverFeatures(nn.BatchNorm1d):
    """Of the last axis, however many there are before it."""

    def forward(self, value: Tensor) -> Tensor:
        return super().forward(value.reshape(-1, value.shape[-1])).reshape(value.shape)


class _Channels(nn.Module):
    """A layer normalisation of the channels of each place, which are the second axis."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(count)

    def forward(self, value: Tensor) -> Tensor:
        normalised: Tensor = self.norm(value.movedim(1, -1))
        return normalised.movedim(-1, 1)


def activation_behind(case: Case, patch: Patch) -> None:
    """An activation `to` more, behind each layer."""
    values = dict(patch.values)
    to = str(values.pop("to", ""))
    for path, module in case.modules(patch.modules):
        made = made_activation(to, values)
        _put_behind(case, path, module, made, "activation", "nothing comes behind it")


def norm(case: Case, patch: Patch) -> None:
    """A normalisation behind each layer; `groups` is of `group`, other values are its arguments."""
    values = dict(patch.values)
    kind = str(values.pop("norm", ""))
    if kind not in ("batch", "layer", "group"):
        raise PatchProblem(f"no normalisation {kind!r}: batch, layer, group")
    for path, module in case.modules(patch.modules):
        made = _norm_for(case, path, module, kind, values)
        _put_behind(case, path, module, made, "norm", "nothing is normalised there")


def _put_behind(
    case: Case, path: str, module: nn.Module, made: nn.Module, name: str, otherwise: str
) -> None:
    """`made` as a child of a layer, of that `name` if it is free, which takes what the layer gives."""
    beside = list(module.parameters())
    like = next(itertools.chain(beside, case.model.parameters()), None)
    if like is not None:
        made.to(like.device, like.dtype)
    made.train(module.training)
    name = _free_name(module, name)
    module.add_module(name, made)
    module.register_forward_hook(_Behind(name, path))
    case.joins(made.parameters(), beside)
    case.called.append((made, f"{path} is never called, so that {otherwise}"))


def _free_name(module: nn.Module, name: str) -> str:
    found, number = name, 1
    while hasattr(module, found):
        found, number = f"{name}_{number}", number + 1
    return found


def _norm_for(
    case: Case, path: str, module: nn.Module, kind: str, values: dict[str, Any]
) -> nn.Module:
    """By the layer's class where that tells, else by a real forward."""
    rank = next((rank for known, rank in _CONVOLUTIONS.items() if isinstance(module, known)), None)
    if isinstance(module, nn.Linear):
        return _over_features(module.out_features, kind, values)
    if isinstance(module, nn.Embedding):
        return _over_features(module.embedding_dim, kind, values)
    if rank is not None:
        return _over_channels(module.out_channels, rank, kind, values)  # type: ignore[arg-type]
    shape = _shape_behind(case, path, module)
    if len(shape) == 2:
        return _over_features(shape[1], kind, values)
    if len(shape) == 3 and any(isinstance(inner, nn.Linear) for inner in module.modules()):
        return _over_features(shape[2], kind, values)
    if len(shape) - 2 in _BATCH_NORMS:
        return _over_channels(shape[1], len(shape) - 2, kind, values)
    raise PatchProblem(f"{path} gives {shape}, of which it is not known what to normalise")


def _over_features(count: int, kind: str, values: dict[str, Any]) -> nn.Module:
    if kind == "layer":
        return nn.LayerNorm(count, **values)
    if kind == "group":
        return nn.GroupNorm(_groups(count, values), count)
    return _OverFeatures(count, **values)


def _over_channels(count: int, rank: int, kind: str, values: dict[str, Any]) -> nn.Module:
    if kind == "batch":
        return _BATCH_NORMS[rank](count, **values)
    if kind == "group":
        return nn.GroupNorm(_groups(count, values), count)
    return _Channels(count)


def _groups(count: int, values: dict[str, Any]) -> int:
    """As many as are asked for, or up to 32 (Wu & He 2018) of at least two channels each."""
    wanted = int(values.get("groups", 0))
    if wanted:
        if count % wanted:
            raise PatchProblem(f"{count} channels do not make {wanted} groups")
        return wanted
    return next(g for g in range(min(_MOST_GROUPS, max(1, count // 2)), 0, -1) if count % g == 0)


def _shape_behind(case: Case, path: str, module: nn.Module) -> tuple[int, ...]:
    given: list[Any] = []
    found: list[Any] = []
    with module.register_forward_hook(lambda _, __, output: given.append(output)):
        # What a hook has filled is emptied again when the forward is undone.
        case.forward(lambda: found.extend(given))
    if not found:
        raise PatchProblem(f"what {path} gives is not known: no forward shows it")
    if not isinstance(found[0], Tensor):
        raise PatchProblem(f"{path} gives a {type(found[0]).__name__}, no tensor")
    return tuple(found[0].shape)


@dataclass
class _Sum:
    """Hooks at the beginning and the end of blocks: what goes in is added to what comes out.

    Whatever of the ends is reached first belongs to the beginning before it.
    """

    held: list[Tensor] = field(default_factory=list)

    def begin(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        self.held[:] = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)][:1]

    def end(self, _: nn.Module, __: Any, output: Any) -> Any:
        return self.added(output)

    # Bound methods: in a copy of the model they belong to its own sums.
    def at_call(self, _: nn.Module, function: Any, args: Any, kwargs: Any) -> Any:
        return self.added(function(*args, **kwargs))

    def added(self, output: Any) -> Any:
        if not self.held:
            return output
        given = self.held.pop()
        if not isinstance(output, Tensor):
            raise PatchProblem(f"no sum with {type(output).__name__}, which is no tensor")
        if given.shape != output.shape:
            raise PatchProblem(
                f"no sum of what goes in, {tuple(given.shape)}, and what comes out, {tuple(output.shape)}"
            )
        return output + given


def residual(case: Case, patch: Patch) -> None:
    """Add what goes into each module to what it gives, or to what its block gives.

    Its block lasts `until` the next of these modules, or of these calls.
    """
    blocks = case.modules(patch.modules)
    until = list(patch.values.get("until", ()))
    ends = case.modules(until) if until else []
    spans = _Sum()
    for path, module in blocks:
        if module is case.root:
            raise PatchProblem("a sum around the whole model is no remedy")
        span = spans if ends or patch.calls else _Sum()
        module.register_forward_pre_hook(span.begin, with_kwargs=True)
        if span is not spans:
            module.register_forward_hook(span.end)
        case.called.append((module, f"{path} is never called, so that nothing is added there"))
    for path, module in ends:
        module.register_forward_hook(spans.end)
        case.called.append((module, f"{path} is never called, so that nothing is added there"))
    changed_calls(case, patch.calls, spans.at_call)
