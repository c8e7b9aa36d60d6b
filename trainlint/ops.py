"""One canonical name for an operation, whichever way it was spelt, and the families that rules ask for.

`nn.ReLU()(x)`, `F.relu(x)`, `torch.relu(x)`, `x.relu()` and `x.relu_()` are all `relu`. Comes in: the
callable that PyTorch hands to `__torch_function__`. Goes out: a name, and whether the call writes in
place. Imports no torch, so that rules may use the families freely.
"""

from __future__ import annotations

from typing import Any, Final

ALIASES: Final = {
    "true_divide": "div",
    "truediv": "div",
    "divide": "div",
    "floordiv": "floor_divide",
    "mod": "remainder",
    "multiply": "mul",
    "subtract": "sub",
    "rsub": "sub",
    "absolute": "abs",
    "concat": "cat",
    "concatenate": "cat",
    "clip": "clamp",
    "_softmax": "softmax",
    "view": "reshape",
    "mm": "matmul",
    "bmm": "matmul",
    "special_expit": "sigmoid",
    "expit": "sigmoid",
    "swapaxes": "transpose",
    "swapdims": "transpose",
}
_REFLECTED: Final = frozenset(
    "add sub mul truediv div matmul pow floordiv mod and or xor lshift rshift".split()
)


def canonical_name(func: Any) -> str:
    """Return the canonical name of an operation.

    Property reads are named `get_<property>` (`x.T` is `get_T`), property writes `set_<property>`;
    operators lose their underscores and their reflected or in-place prefix (`1 + x` is `add`).
    """
    name = getattr(func, "__name__", None) or str(func)
    if name in ("__get__", "__set__"):
        owner = getattr(getattr(func, "__self__", None), "__name__", "unknown")
        return f"{name[2:5]}_{owner}"
    if name.startswith("__") and name.endswith("__"):
        bare = name[2:-2]
        if bare[:1] in ("r", "i") and bare[1:] in _REFLECTED:
            bare = bare[1:]
        return ALIASES.get(bare, bare)
    if name.endswith("_") and not name.startswith("_"):
        name = name[:-1]
    return ALIASES.get(name, name)


def writes_in_place(func: Any) -> bool:
    """Whether the operation changes its first tensor: `x.add_(y)`, `x += y`, `x[i] = y`."""
    name = getattr(func, "__name__", "")
    if name.startswith("__"):
        return name == "__setitem__" or (name[2:3] == "i" and name[3:-2] in _REFLECTED)
    return name.endswith("_")


CONVOLUTIONS: Final = frozenset(
    f"conv{transpose}{rank}d" for transpose in ("", "_transpose") for rank in (1, 2, 3)
)
WEIGHTED: Final = CONVOLUTIONS | {"linear"}
RECURRENT: Final = frozenset(
    f"{kind}{cell}" for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu") for cell in ("", "_cell")
)
ATTENTION: Final = frozenset(
    {"scaled_dot_product_attention", "multi_head_attention_forward", "flex_attention"}
)
NORMALIZATIONS: Final = frozenset(
    {"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "local_response_norm"}
)
DROPOUTS: Final = frozenset(
    "dropout dropout1d dropout2d dropout3d feature_dropout alpha_dropout feature_alpha_dropout "
    "native_dropout".split()
)

# Values pass these unchanged: only their arrangement, type or place differs.
REARRANGEMENTS: Final = frozenset(
    "reshape view_as reshape_as flatten unflatten permute transpose get_T get_mT get_H get_mH t "
    "movedim moveaxis contiguous squeeze unsqueeze expand expand_as clone to float double half "
    "bfloat16 type_as get_data identity alias".split()
)
# Each output is a part of the input.
PARTS: Final = frozenset(
    "getitem output chunk split unbind narrow select index_select split_with_sizes tensor_split "
    "unsafe_chunk unsafe_split".split()
)
# Linear over space, with the channels left alone.
SPATIAL: Final = frozenset(
    "pad avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d interpolate upsample upsample_nearest upsample_bilinear pixel_shuffle "
    "pixel_unshuffle roll flip mean fold unfold channel_shuffle native_channel_shuffle repeat "
    "sum".split()
)
MAX_POOLS: Final = frozenset(
    "max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
    "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices".split()
)
ACTIVATIONS: Final = frozenset(
    "relu relu6 gelu silu sigmoid tanh elu selu celu leaky_relu prelu hardswish hardsigmoid "
    "hardtanh softplus mish softsign logsigmoid softmax log_softmax glu rrelu clamp clamp_min "
    "threshold tanhshrink softshrink hardshrink".split()
)
# Of their operand, only shape, type and place matter.
SHAPE_ONLY: Final = frozenset(
    "zeros_like ones_like rand_like randn_like empty_like full_like new_zeros new_ones new_full "
    "new_empty".split()
)
# The gradient ends here: the result does not vary with the input, or is cut off on purpose.
NON_DIFFERENTIABLE: Final = frozenset(
    "detach argmax argmin argsort sign round floor ceil trunc get_data bernoulli multinomial "
    "one_hot eq ne lt gt le ge searchsorted bucketize item numpy heaviside isnan bincount histc "
    "zeros_like ones_like rand_like randn_like empty_like full_like new_zeros new_ones new_full "
    "new_empty new_tensor floor_divide".split()
)
# Largest slope of the activation, max |f'(x)|: σ' = σ(1 − σ) ≤ 1/4; hardsigmoid is x/6 + 1/2; a softmax
# Jacobian diag(p) − ppᵀ has spectral norm at most 1/2 (Gao & Pavel 2017, arXiv:1704.00805, prop. 2).
MAX_SLOPE: Final = {"sigmoid": 1 / 4, "hardsigmoid": 1 / 6, "softmax": 1 / 2}
