"""Parameters of the copy: drawn anew, or made trainable."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from trainlint.preserve import is_lazy
from trainlint.surgery.case import Case, PatchProblem

if TYPE_CHECKING:
    from trainlint.fixes.patch import Patch

_RECURRENT: Final = (nn.RNNBase, nn.RNNCellBase)
# Their weights are those of several gates, one above the other.
_OF_MATRICES: Final = frozenset(
    {"xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "orthogonal"}
)
# A gain is given as such, or by the activation behind the layer.
_WITH_GAIN: Final = frozenset({"xavier_uniform", "xavier_normal", "orthogonal"})


def initialise(case: Case, patch: Patch) -> None:
    """Draw the parameters by `scheme`; `bias` sets the biases beside them."""
    values = dict(patch.values)
    scheme = str(values.pop("scheme", "")).rstrip("_")
    bias = values.pop("bias", None)
    for name in case.parameters_of(patch):
        owner, attribute = _owner(case, name)
        _draw(owner, attribute, scheme, values, name)
        if bias is not None and isinstance(owner._parameters.get("bias"), nn.Parameter):
            nn.init.constant_(owner._parameters["bias"], float(bias))  # type: ignore[arg-type]


def unfreeze(case: Case, patch: Patch) -> None:
    """Let the parameters be trained."""
    for name in case.parameters_of(patch):
        owner, _, parameter = case.parameter(name)
        if not (parameter.is_floating_point() or parameter.is_complex()):
            raise PatchProblem(f"{name} is of whole numbers, and has no gradient")
        parameter.requires_grad_(True)
        case.joins([parameter], [p for p in owner.parameters() if p is not parameter])


def _owner(case: Case, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    owner = case.module(path)
    if not parametrize.is_parametrized(owner, attribute):
        owner, attribute, _ = case.parameter(name)
    return owner, attribute


@torch.no_grad()
def _draw(
    owner: nn.Module, attribute: str, scheme: str, values: Mapping[str, Any], name: str
) -> None:
    if scheme == "default":
        _as_its_class(owner, attribute, name)
        return
    computed = parametrize.is_parametrized(owner, attribute)
    tensor: Tensor = getattr(owner, attribute)
    tensor = tensor.clone() if computed else tensor
    if scheme == "scaled":
        tensor.mul_(float(values.get("factor", 1.0)))
    else:
        fill = getattr(nn.init, f"{scheme}_", None)
        if fill is None or not scheme:
            raise PatchProblem(f"torch.nn.init has no {scheme}_")
        options = _options(fill, scheme, values)
        parts = [tensor]
        if scheme in _OF_MATRICES and isinstance(owner, _RECURRENT) and tensor.dim() == 2:
            hidden = owner.hidden_size
            parts = list(torch.split(tensor, hidden)) if len(tensor) % hidden == 0 else parts
        for part in parts:
            try:
                fill(part, **options)
            except (ValueError, TypeError, RuntimeError) as error:
                shape = tuple(tensor.shape)
                raise PatchProblem(f"{scheme}_ of {name} {shape}: {error}") from None
    if computed:
        try:
            setattr(owner, attribute, tensor)
        except (NotImplementedError, RuntimeError, ValueError) as error:
            raise PatchProblem(f"{name} is computed, and cannot be set: {error}") from None


def _options(fill: Any, scheme: str, values: Mapping[str, Any]) -> dict[str, Any]:
    options = dict(values)
    if scheme in _WITH_GAIN and "nonlinearity" in options:
        activation, slope = options.pop("nonlinearity"), options.pop("a", None)
        try:
            gain = nn.init.calculate_gain(activation, slope)
        except ValueError:
            raise PatchProblem(f"no gain is known for {activation}") from None
        options.setdefault("gain", gain)
    known = inspect.signature(fill).parameters
    unknown = [key for key in options if key not in known]
    if unknown:
        raise PatchProblem(f"{scheme}_ takes no {', '.join(unknown)}")
    return options


def _as_its_class(owner: nn.Module, attribute: str, name: str) -> None:
    """This parameter as `reset_parameters` draws it; the others keep their values."""
    reset = getattr(owner, "reset_parameters", None) or getattr(owner, "_reset_parameters", None)
    if not callable(reset) or attribute not in owner._parameters:
        raise PatchProblem(f"{type(owner).__name__} has no reset_parameters for {name}")
    tensors = {**owner._parameters, **owner._buffers}
    kept = [
        (tensor, tensor.detach().clone())
        for key, tensor in tensors.items()
        if tensor is not None and key != attribute and not is_lazy(tensor)
    ]
    reset()
    for tensor, before in kept:
        tensor.copy_(before)
