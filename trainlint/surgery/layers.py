"""Layers of the copy: others in their place, without them, with other arguments and attributes."""

from __future__ import annotations

import copy
import inspect
import math
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize

from trainlint.surgery.calls import changed_calls, function_of, operand_of
from trainlint.surgery.case import Case, PatchProblem

if TYPE_CHECKING:
    from trainlint.fixes.patch import Patch

_MISSING: Final = object()
_ACTIVATIONS: Final = {
    name.lower(): getattr(nn, name)
    for name in nn.modules.activation.__all__
    if name != "MultiheadAttention"
} | {"identity": nn.Identity}


# ---------------------------------------------------------------------- activations


def activation(case: Case, patch: Patch) -> None:
    """Put the activation `to` in the place of layers and calls; other values are its arguments."""
    values = dict(patch.values)
    to = str(values.pop("to", ""))
    for path, module in case.layers_of(patch, "no activation is named"):
        if any(True for _ in module.children()):
            raise PatchProblem(f"{path} is {type(module).__name__}, which is no activation")
        case.put(module, made_activation(to, values))
        case.leaves(module.parameters())
    if patch.calls:
        function = function_of(to)
        changed_calls(
            case,
            patch.calls,
            lambda _, __, args, kwargs: function(operand_of(args, kwargs), **values),
        )


def made_activation(to: str, values: dict[str, Any]) -> nn.Module:
    """The layer of that activation, `relu`, with these arguments."""
    kind = _ACTIVATIONS.get(to.lower().replace("_", ""))
    if kind is None:
        raise PatchProblem(f"torch.nn has no activation {to}")
    try:
        made: nn.Module = kind(**values)
    except TypeError as error:
        raise PatchProblem(f"{kind.__name__}: {error}") from None
    return made


class _Passing(nn.Identity):
    """Gives back the first of its arguments."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if args else next(iter(kwargs.values()))


def without(case: Case, patch: Patch) -> None:
    """Layers and calls give back what goes into them."""
    for _, module in case.layers_of(patch, "nothing is named to be taken out"):
        case.put(module, _Passing())
        case.leaves(module.parameters())
    changed_calls(case, patch.calls, lambda _, __, args, kwargs: operand_of(args, kwargs))


class _Each(nn.Module):
    """One layer for each call in a forward of the model, in their order; the last for any more."""

    def __init__(self, first: nn.Module, count: int) -> None:
        super().__init__()
        copies = [copy.deepcopy(first) for _ in range(count - 1)]
        self.parts = nn.ModuleList([first, *copies])
        self.turn = 0

    def begin(self, *_: Any) -> None:
        self.turn = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        part = self.parts[min(self.turn, len(self.parts) - 1)]
        self.turn += 1
        return part(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # `self.bn.weight` is that of the first
            return getattr(next(self._modules["parts"].children()), name)  # type: ignore[union-attr]


def separate(case: Case, patch: Patch) -> None:
    """A copy of a layer for each of its `count` calls in a forward."""
    count = patch.values.get("count")
    if not isinstance(count, int) or count < 2:
        raise PatchProblem(f"{count!r} calls need no copies")
    for path, module in case.modules(patch.modules):
        beside = list(module.parameters())
        each = _Each(module, count)
        case.put(module, each)
        case.root.register_forward_pre_hook(each.begin)
        case.joins(each.parameters(), beside)
        case.called.append((each, f"{path} is never called"))


# ---------------------------------------------------------------------- arguments and attributes


def rebuilt(case: Case, patch: Patch) -> None:
    """The layer made anew with other arguments; what keeps its shape keeps its values."""
    for path, old in case.modules(patch.modules):
        if parametrize.is_parametrized(old) or hasattr(old, "weight_g"):
            raise PatchProblem(f"{path} has a parametrised weight, and cannot be made anew")
        new = _made_anew(path, old, patch.values)
        beside = list(old.parameters(recurse=False))
        case.put(old, new)
        _keep(old, new)
        case.leaves(beside)
        case.joins(new.parameters(), beside)


def _made_anew(path: str, old: nn.Module, changed: dict[str, Any]) -> nn.Module:
    kind = type(old)
    parameters = _signature(kind)
    unknown = [name for name in changed if name not in parameters]
    if unknown:
        raise PatchProblem(f"{kind.__name__} takes no {', '.join(unknown)}")
    arguments = dict(changed)
    for name, parameter in parameters.items():
        if name in arguments:
            continue
        value = _argument(old, name)
        if value is not _MISSING:
            arguments[name] = value
        elif parameter.default is parameter.empty:
            raise PatchProblem(f"{path} does not tell the {name} that it was made with")
    try:
        new = kind(**arguments)
    except Exception as error:
        made = ", ".join(f"{name}={value!r}" for name, value in changed.items())
        raise PatchProblem(f"{kind.__name__}({made}): {error}") from None
    like = next((p for p in (*old.parameters(), *old.buffers()) if p.is_floating_point()), None)
    return new if like is None else new.to(like.device, like.dtype)


def _signature(kind: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """Of its constructor; of one that hands all on, of the next class that names them."""
    found: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        own = vars(base).get("__init__")
        if own is None or base is nn.Module:
            continue
        parameters = list(inspect.signature(own).parameters.values())[1:]
        named = {p.name: p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        found = {**named, **found}
        if len(named) == len(parameters):
            break
    if issubclass(kind, nn.RNNBase):
        # Of its kinds each fixes the mode, and takes what it needs by `**kwargs`.
        mode = found.pop("mode", None)
        if not issubclass(kind, nn.LSTM):
            found.pop("proj_size", None)
        if issubclass(kind, nn.RNN) and mode is not None:
            found.setdefault("nonlinearity", mode.replace(name="nonlinearity", default="tanh"))
    return {n: p for n, p in found.items() if n not in ("device", "dtype") and n[0] != "_"}


def _argument(old: nn.Module, name: str) -> Any:
    """What the constructor was given, as the layer keeps it."""
    if name in ("bias", "in_proj_bias") and (
        isinstance(old._parameters.get(name), Tensor) or old._parameters.get(name, 0) is None
    ):
        return old._parameters[name] is not None
    if isinstance(old, nn.MultiheadAttention):
        if name == "bias":
            return old.in_proj_bias is not None
        if name in ("kdim", "vdim") and getattr(old, name) == old.embed_dim:
            return None  # they follow it
        if name == "add_bias_kv":
            return old.bias_k is not None
    if isinstance(old, nn.RNN) and name == "nonlinearity":
        return old.mode.removeprefix("RNN_").lower()
    if isinstance(old, _NormBase) and name == "bias":
        return old._parameters.get("bias") is not None or not old.affine
    value = getattr(old, name, _MISSING)
    return _MISSING if isinstance(value, (Tensor, nn.Module)) else value


@torch.no_grad()
def _keep(old: nn.Module, new: nn.Module) -> None:
    """The very parameter where the shape is the same: it may be shared, and is the optimizer's."""
    owners = dict(new.named_modules())
    before = dict(old.named_parameters())
    for name, parameter in list(new.named_parameters()):
        path, _, attribute = name.rpartition(".")
        known = before.get(name)
        if known is None:
            continue
        if known.shape == parameter.shape:
            owners[path]._parameters[attribute] = known
        else:
            parameter.requires_grad_(known.requires_grad)
    buffers = dict(old.named_buffers())
    for name, buffer in new.named_buffers():
        known_buffer = buffers.get(name)
        if known_buffer is not None and known_buffer.shape == buffer.shape:
            buffer.copy_(known_buffer)
    for name, module in old.named_modules():
        if name in owners:
            owners[name].train(module.training)


def attribute(case: Case, patch: Patch) -> None:
    """Set attributes of layers: `p`, `eps`, `momentum`, `dim`, `track_running_stats`, `training`."""
    if not patch.values:
        raise PatchProblem("no attribute is named")
    for path, module in case.modules(patch.modules):
        for name, value in patch.values.items():
            if name == "training":
                module.train(bool(value))
            elif name == "track_running_stats" and isinstance(module, _NormBase):
                _track(module, tracks=bool(value))
            elif isinstance(getattr(module, name, _MISSING), (Tensor, nn.Module)):
                raise PatchProblem(f"{path}.{name} is no plain value")
            elif not hasattr(module, name):
                raise PatchProblem(f"{path} is {type(module).__name__}, which has no {name}")
            elif isinstance(value, float) and not math.isfinite(value):
                raise PatchProblem(f"{name} cannot be {value}")
            else:
                setattr(module, name, value)


def _track(module: _NormBase, *, tracks: bool) -> None:
    """As its constructor does: without running statistics, eval mode takes those of the batch as well."""
    like = module.running_mean if module.weight is None else module.weight
    device, count = (None if like is None else like.device), module.num_features
    module.track_running_stats = tracks
    if not tracks:
        module.running_mean = module.running_var = module.num_batches_tracked = None
    elif module.running_mean is None:
        module.running_mean = torch.zeros(count, device=device)
        module.running_var = torch.ones(count, device=device)
        module.num_batches_tracked = torch.tensor(0, dtype=torch.long, device=device)
