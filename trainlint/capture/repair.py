"""What a layer that refused its input would have returned: the shape that it promises.

Only shapes matter, so that the operations behind a fault can be checked in the same run.
`NotImplemented` means that no promise can be told.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from trainlint.ops import CONVOLUTIONS, NORMALIZATIONS, canonical_name
from trainlint.tree import tensors


def operation(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The promised output of a function call that failed."""
    flat = [tensor for _, tensor in tensors((args, kwargs))]
    if not flat:
        return NotImplemented
    name = canonical_name(func)
    promise = _PROMISES.get(name)
    if promise is None:
        return NotImplemented
    try:
        return promise(func, args, kwargs, flat)
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError):
        return NotImplemented


def module(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The promised output of a torch.nn layer that refused its input before computing anything."""
    flat = [tensor for _, tensor in tensors((args, kwargs))]
    promise = next(
        (_LAYER_PROMISES[base] for base in type(layer).__mro__ if base in _LAYER_PROMISES), None
    )
    if promise is None or not flat:
        return NotImplemented
    try:
        return promise(layer, flat)
    except (RuntimeError, ValueError, IndexError):
        return NotImplemented


def flex_attention(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shapes of the higher-order op: output (B, H, L, Dv), log-sum-exp and maxima (B, H, L)."""
    del key
    rows = query.new_empty(query.shape[:-1])
    return query.new_empty(*query.shape[:-1], value.shape[-1]), rows, rows


def _argument(args: Any, kwargs: Any, index: int, name: str, default: Any = None) -> Any:
    return args[index] if len(args) > index else kwargs.get(name, default)


def _linear(_: Any, args: Any, kwargs: Any, flat: list[Tensor]) -> Tensor:
    weight = _argument(args, kwargs, 1, "weight")
    return flat[0].new_empty(*flat[0].shape[:-1], weight.shape[0]).to(weight.dtype)


def _convolution(func: Any, args: Any, kwargs: Any, flat: list[Tensor]) -> Tensor:
    data, weight = flat[0], _argument(args, kwargs, 1, "weight")
    transposed = "transpose" in canonical_name(func)
    groups = _argument(args, kwargs, 6, "groups", 1)
    rank = weight.dim() - 2
    channels = weight.shape[0] if transposed else weight.shape[1] * groups
    space = tuple(data.shape[-rank:]) if data.dim() > rank else (32,) * rank
    batch = data.shape[0] if data.dim() > rank else 1
    accepted = torch.empty(batch, channels, *space, dtype=weight.dtype, device=weight.device)
    try:
        rest = {key: value for key, value in kwargs.items() if key != "input"}
        result: Tensor = func(accepted, *args[1:], **rest)
    except RuntimeError:  # a kernel larger than its input
        out_channels = weight.shape[1] * groups if transposed else weight.shape[0]
        return torch.empty(
            batch, out_channels, *([1] * rank), dtype=weight.dtype, device=weight.device
        )
    return result


def _same(_: Any, args: Any, kwargs: Any, flat: list[Tensor]) -> Tensor:
    return torch.empty_like(flat[0])


def _widest(_: Any, args: Any, kwargs: Any, flat: list[Tensor]) -> Tensor:
    return torch.empty_like(max(flat[:2], key=lambda tensor: (tensor.dim(), tensor.numel())))


def _matmul(_: Any, args: Any, kwargs: Any, flat: list[Tensor]) -> Tensor:
    left, right = flat[:2]
    if left.dim() >= 2 and right.dim() >= 2:
        return left.new_empty(*left.shape[:-1], right.shape[-1])
    return left.new_empty(left.shape[:-1])


def _cat(_: Any, args: Any, kwargs: Any, flat: list[Tensor]) -> Tensor:
    dim = _argument(args, kwargs, 1, "dim", 0)
    model = max(flat, key=lambda tensor: tensor.dim())
    shape = list(model.shape)
    shape[dim] = sum(tensor.shape[dim] for tensor in flat if tensor.dim() == model.dim())
    return model.new_empty(shape)


def _reshape(_: Any, args: Any, kwargs: Any, flat: list[Tensor]) -> Tensor:
    data = flat[0]
    wanted = args[1:] if len(args) > 1 else (kwargs.get("shape", kwargs.get("size")),)
    if len(wanted) == 1 and isinstance(wanted[0], (tuple, list)):
        wanted = wanted[0]
    shape = list(wanted)
    if -1 in shape:
        place = shape.index(-1)
        rest = math.prod(length for length in shape if length != -1)
        shape[place] = data.shape[0] if place == 0 else max(1, data.numel() // max(rest, 1))
    return data.new_empty(shape)


def _scalar(_: Any, args: Any, kwargs: Any, flat: list[Tensor]) -> Tensor:
    return flat[0].new_empty(())


def _embedding(_: Any, args: Any, kwargs: Any, flat: list[Tensor]) -> Tensor:
    weight = _argument(args, kwargs, 1, "weight")
    return torch.empty(*flat[0].shape, weight.shape[-1], dtype=weight.dtype, device=weight.device)


def _attention(_: Any, args: Any, kwargs: Any, flat: list[Tensor]) -> Tensor:
    value = _argument(args, kwargs, 2, "value")
    return flat[0].new_empty(*flat[0].shape[:-1], value.shape[-1])


def _multi_head(_: Any, args: Any, kwargs: Any, flat: list[Tensor]) -> tuple[Tensor, None]:
    return torch.empty_like(flat[0]), None


def _halved(_: Any, args: Any, kwargs: Any, flat: list[Tensor]) -> Tensor:
    data = flat[0]
    return data.new_empty(
        *data.shape[:-2], max(1, data.shape[-2] // 2), max(1, data.shape[-1] // 2)
    )


_PROMISES: Final[dict[str, Callable[..., Any]]] = {
    "linear": _linear,
    **dict.fromkeys(CONVOLUTIONS, _convolution),
    **dict.fromkeys(NORMALIZATIONS, _same),
    **dict.fromkeys(("dropout", "relu", "prelu", "softmax", "log_softmax"), _same),
    **dict.fromkeys("add sub mul div where maximum minimum pow eq ne gt ge lt le".split(), _widest),
    "matmul": _matmul,
    "cat": _cat,
    "reshape": _reshape,
    **dict.fromkeys(
        "cross_entropy nll_loss mse_loss l1_loss binary_cross_entropy "
        "binary_cross_entropy_with_logits kl_div smooth_l1_loss huber_loss".split(),
        _scalar,
    ),
    "embedding": _embedding,
    "scaled_dot_product_attention": _attention,
    "multi_head_attention_forward": _multi_head,
    "max_pool2d": _halved,
    "avg_pool2d": _halved,
}


def _recurrent_layer(layer: Any, flat: list[Tensor]) -> Any:
    data = flat[0]
    directions = 2 if layer.bidirectional else 1
    width = layer.proj_size or layer.hidden_size
    output = data.new_empty(*data.shape[:-1], width * directions)
    batch = () if data.dim() == 2 else (data.shape[0 if layer.batch_first else 1],)
    state = data.new_empty(layer.num_layers * directions, *batch, width)
    if isinstance(layer, nn.LSTM):
        return output, (state, data.new_empty(*state.shape[:-1], layer.hidden_size))
    return output, state


def _recurrent_cell(layer: Any, flat: list[Tensor]) -> Any:
    state = flat[0].new_empty(*flat[0].shape[:-1], layer.hidden_size)
    return (state, state) if isinstance(layer, nn.LSTMCell) else state


def _same_layer(_: nn.Module, flat: list[Tensor]) -> Tensor:
    return torch.empty_like(flat[0])


def _attention_layer(_: nn.Module, flat: list[Tensor]) -> tuple[Tensor, None]:
    return torch.empty_like(flat[0]), None


_LAYER_PROMISES: Final[dict[type, Callable[[Any, list[Tensor]], Any]]] = {
    nn.RNNBase: _recurrent_layer,
    nn.RNNCellBase: _recurrent_cell,
    nn.modules.batchnorm._NormBase: _same_layer,
    nn.MultiheadAttention: _attention_layer,
}
