"""Walk and rebuild the nested inputs and outputs of a model: tuples, dicts, dataclasses, plain objects."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

_LARGEST_DEPTH = 8


def map_tensors(value: Any, change: Callable[[str, Tensor], Any], name: str = "input") -> Any:
    """Rebuild `value` with `change(path, tensor)` in place of each tensor; all else is shared.

    `path` names the place: `input_0`, `batch_pixel_values`. Containers keep their type.
    """
    return _map(value, change, name, _LARGEST_DEPTH)


def _map(value: Any, change: Callable[[str, Tensor], Any], name: str, depth: int) -> Any:
    if isinstance(value, Tensor):
        return change(name, value)
    if depth == 0 or isinstance(value, (nn.Module, str, bytes, torch.Size)):
        return value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        parts = [
            _map(part, change, f"{name}_{field}", depth - 1)
            for field, part in zip(value._fields, value, strict=True)
        ]
        return type(value)(*parts)
    if type(value) in (list, tuple):
        return type(value)(
            _map(part, change, f"{name}_{index}", depth - 1) for index, part in enumerate(value)
        )
    if isinstance(value, dict):
        mapped = {
            key: _map(part, change, f"{name}_{key}", depth - 1) for key, part in value.items()
        }
        if type(value) is dict:
            return mapped
        rebuilt = copy.copy(value)
        for key, part in mapped.items():
            rebuilt[key] = part
        return rebuilt
    if (dataclasses.is_dataclass(value) and not isinstance(value, type)) or _is_plain_object(value):
        rebuilt = copy.copy(value)
        for key, part in vars(value).items():
            object.__setattr__(rebuilt, key, _map(part, change, f"{name}_{key}", depth - 1))
        return rebuilt
    return value


def _is_plain_object(value: Any) -> bool:
    """A user's own batch class, such as a graph with `x` and `edge_index`."""
    attributes = getattr(value, "__dict__", None)
    if not isinstance(attributes, dict) or isinstance(value, type) or callable(value):
        return False
    return any(isinstance(part, Tensor) for part in attributes.values())


def tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield (path, tensor) for every tensor in a nested value, in order."""
    yield from _tensors(value, name, _LARGEST_DEPTH)


def _tensors(value: Any, name: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
        return
    if depth == 0 or isinstance(value, (nn.Module, str, bytes, torch.Size)):
        return
    items: Any = ()
    if isinstance(value, (list, tuple)):
        items = enumerate(value)
    elif isinstance(value, dict):
        items = value.items()
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        items = vars(value).items()
    for key, part in items:
        yield from _tensors(part, f"{name}.{key}" if name else str(key), depth - 1)
