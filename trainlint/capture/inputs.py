"""The arguments for one forward of a model: given in its file, given as text, or made up."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from trainlint.targets.specs import parse_spec

# Of inputs that are made up: samples, and positions of a sequence.
BATCH: Final = 2
SEQUENCE: Final = 16


@dataclass(frozen=True)
class Inputs:
    """Arguments for one forward, and where they came from, in words for the report.

    `given` is False for inputs that trainlint made up: a fault that could be their doing is then no
    fault of the model's.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    origin: str
    given: bool

    def describe(self) -> str:
        """`(2, 3, 32, 32) float32`, or several of them with the names of keyword arguments."""
        parts = [_describe(value) for value in self.args]
        parts += [f"{name}={_describe(value)}" for name, value in self.kwargs.items()]
        return ", ".join(parts) or "none"


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"({', '.join(map(str, value.shape))}) {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__ if not isinstance(value, (int, float, bool, str)) else repr(value)


def from_value(value: Any, model: nn.Module, origin: str) -> Inputs:
    """Inputs from `example_inputs`: a tensor, a tuple or list of arguments, a dict, or a callable.

    A dict becomes keyword arguments if forward has arguments of these names, else one argument.
    """
    if callable(value) and not isinstance(value, Tensor):
        value = value()
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return Inputs(tuple(value), {}, origin, given=True)
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        names, takes_any = _argument_names(model)
        if takes_any or set(value) <= names:
            return Inputs((), dict(value), origin, given=True)
    return Inputs((value,), {}, origin, given=True)


def fits_signature(inputs: Inputs, model: nn.Module) -> bool:
    """Whether forward can be called with these arguments at all."""
    try:
        inspect.signature(model.forward).bind(*inputs.args, **inputs.kwargs)
    except TypeError:
        return False
    except ValueError:  # no signature to be had
        return True
    return True


def from_text(text: str, model: nn.Module | None = None) -> Inputs:
    """Inputs from `--inputs`: `2x3x32x32,2x16:long` is one float image batch and one of token ids.

    Sizes are separated by `x`, arguments by commas; a type may follow a colon. Integers are drawn
    below the size of the model's smallest embedding (below 10 without one). Raises `InputError`.
    """
    smallest = min(
        (layer.num_embeddings for layer in (model.modules() if model is not None else ())
         if isinstance(layer, nn.Embedding)),
        default=10,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    values = [
        _random(shape, getattr(torch, dtype), smallest, generator)
        for shape, dtype in parse_spec(text)
    ]
    return Inputs(tuple(values), {}, "given by --inputs", given=True)


def _random(
    shape: tuple[int, ...], dtype: torch.dtype, below: int, generator: torch.Generator
) -> Tensor:
    if dtype == torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, max(1, below), shape, generator=generator).to(dtype)


def forward_parameters(model: nn.Module) -> list[inspect.Parameter]:
    """The arguments that forward has; none where they cannot be had."""
    try:
        return list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return []


def _argument_names(model: nn.Module) -> tuple[set[str], bool]:
    parameters = forward_parameters(model)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    return {parameter.name for parameter in parameters}, takes_any
