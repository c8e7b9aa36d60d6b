"""What a model may be called with: shapes that its first layers take, and names of its arguments tell."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import nn

from trainlint.capture.hugging_face import by_config
from trainlint.capture.inputs import BATCH, SEQUENCE, Inputs, forward_parameters, from_value

IMAGE_SIDES: Final = (32, 224, 64, 28, 128, 256, 299, 96, 112, 384, 48, 16, 8, 40, 160, 192, 512)
_SIGNAL_LENGTHS: Final = (16, 128, 100, 1000, 16000, 28, 64, 50, 1024, 4000)
_VOLUME_SIDES: Final = (32, 96, 64, 16, 128, 48)
_LAYERS: Final = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.Linear, nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.RNNCellBase, nn.LayerNorm,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.MultiheadAttention, nn.GroupNorm,
)  # fmt: skip


def candidates(model: nn.Module) -> Iterator[Inputs]:
    """What the model may be called with, the likeliest first."""
    if hasattr(model, "config") and hasattr(model, "main_input_name"):
        yield from by_config(model)
        return
    example = getattr(model, "example_input_array", None)
    if example is not None:
        inputs = from_value(example, model, "example_input_array of the model")
        yield replace(inputs, given=False)
    yield from _by_first_layers(model)


def _required(model: nn.Module) -> list[inspect.Parameter]:
    named = [
        parameter
        for parameter in forward_parameters(model)
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    required = [parameter for parameter in named if parameter.default is parameter.empty]
    return required or named[:1]


def _first_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, _LAYERS) and not isinstance(layer, nn.modules.lazy.LazyModuleMixin)
    ]


@dataclass(frozen=True)
class _Ids:
    """Token ids of this shape, below `limit`."""

    shape: tuple[int, ...]
    limit: int


@dataclass(frozen=True, eq=False)
class _Value:
    """A Python value, or None."""

    value: Any


_Shape = tuple[int, ...] | _Ids | _Value


def _shapes_for(layer: nn.Module) -> list[_Shape]:
    """Input shapes that the layer takes, the most usual first."""
    n, t = BATCH, SEQUENCE
    match layer:
        case nn.Conv2d() | nn.ConvTranspose2d():
            return [(n, layer.in_channels, side, side) for side in IMAGE_SIDES]
        case nn.Conv1d() | nn.ConvTranspose1d():
            return [(n, layer.in_channels, length) for length in _SIGNAL_LENGTHS]
        case nn.Conv3d() | nn.ConvTranspose3d():
            return [(n, layer.in_channels, side, side, side) for side in _VOLUME_SIDES]
        case nn.Linear():
            return [(n, layer.in_features), (n, t, layer.in_features), *_images_of(layer)]
        case nn.LayerNorm():
            return [(n, t, *layer.normalized_shape), (n, *layer.normalized_shape)]
        case nn.RNNBase():
            return [(*((n, t) if layer.batch_first else (t, n)), layer.input_size)]
        case nn.RNNCellBase():
            width = layer.input_size
            return [(n, width), (n, t, width), (t, n, width)]
        case nn.MultiheadAttention():
            return [(*((n, t) if layer.batch_first else (t, n)), layer.embed_dim)]
        case nn.BatchNorm1d():
            return [(n, layer.num_features), (n, layer.num_features, t)]
        case nn.BatchNorm2d():
            return [(n, layer.num_features, side, side) for side in IMAGE_SIDES[:3]]
        case nn.BatchNorm3d():
            return [(n, layer.num_features, side, side, side) for side in _VOLUME_SIDES[:3]]
        case nn.GroupNorm():
            return [(n, layer.num_channels, t, t), (n, layer.num_channels, t)]
        case nn.Embedding() | nn.EmbeddingBag():
            limit = layer.num_embeddings
            return [_Ids((n, t), limit), _Ids((n,), limit), _Ids((n, 256), limit)]
    return []


def _images_of(layer: nn.Linear) -> list[_Shape]:
    """An MLP that flattens its input: square images of one or three channels."""
    shapes: list[_Shape] = []
    for channels in (1, 3):
        side = math.isqrt(layer.in_features // channels)
        if side > 3 and side * side * channels == layer.in_features:
            shapes.append((BATCH, channels, side, side))
    return shapes


_ID_NAMES: Final = frozenset(
    "input_ids ids tokens token_ids src tgt text decoder_input_ids x_ids words idx indices seq users "
    "items user_ids item_ids user item labels target targets y t timesteps timestep".split()
)
_TIME_NAMES: Final = frozenset("t timestep timesteps time noise_labels sigma".split())
_STATE_NAMES: Final = frozenset("h h0 hx h_state state states prev_state init_state".split())
_LENGTH_NAMES: Final = frozenset("lens lengths length seq_len seq_lens x_lengths".split())
_TARGET_NAMES: Final = frozenset("y target targets labels label".split())
_SAME: Final = _Value("same as the first")
_USUAL: Final[tuple[_Shape, ...]] = (
    (BATCH, 3, 32, 32), (BATCH, 3, 224, 224), (BATCH, 1, 28, 28), _Ids((BATCH, SEQUENCE), 100),
    (BATCH, SEQUENCE, 64), (BATCH, SEQUENCE), (BATCH, 1, 16000),
)  # fmt: skip


def _by_first_layers(model: nn.Module) -> Iterator[Inputs]:
    required = _required(model)
    layers = _first_layers(model)
    choices = [
        _choices(index, parameter, model, layers) for index, parameter in enumerate(required)
    ] or [list(_USUAL)]
    origin = "guessed"
    if layers:
        name, layer = layers[0]
        name = f"layer {name}" if name.isdigit() else name
        origin = f"inferred from {name or type(layer).__name__}"
    for shapes in _nearest_first(choices):
        values: list[Any] = []
        for shape in shapes:
            values.append(values[0].clone() if shape is _SAME else _made(shape))
        args = [
            value
            for value, parameter in itertools.zip_longest(values, required)
            if parameter is None or parameter.kind is not parameter.KEYWORD_ONLY
        ]
        kwargs = {
            parameter.name: value
            for value, parameter in zip(values, required, strict=False)
            if parameter.kind is parameter.KEYWORD_ONLY
        }
        yield Inputs(tuple(args), kwargs, origin, given=False)


def _nearest_first(choices: list[list[_Shape]]) -> Iterator[tuple[_Shape, ...]]:
    """All combinations, those of first choices first; the first argument varies the most."""
    if len(choices) == 1:
        yield from ((choice,) for choice in choices[0])
        return
    ranges = [range(min(len(some), 24 if i == 0 else 6)) for i, some in enumerate(choices)]
    for places in sorted(itertools.product(*ranges), key=sum):
        yield tuple(some[place] for some, place in zip(choices, places, strict=True))


def _made(shape: _Shape) -> Any:
    if isinstance(shape, _Value):
        return shape.value
    if isinstance(shape, _Ids):
        return torch.randint(0, max(2, min(shape.limit, 100)), shape.shape) % max(1, shape.limit)
    return torch.randn(shape)


def _choices(
    index: int,
    parameter: inspect.Parameter,
    model: nn.Module,
    layers: list[tuple[str, nn.Module]],
) -> list[_Shape]:
    """Shapes to try for one argument of forward, the likeliest first."""
    name = parameter.name.lower()
    by_name = _choices_by_name(index, name, parameter.annotation)
    if by_name is not None:
        return by_name
    embeddings = [
        layer for _, layer in layers if isinstance(layer, (nn.Embedding, nn.EmbeddingBag))
    ]
    shapes: list[_Shape] = []
    if index > 0 and ("hidden" in name or name in _STATE_NAMES):
        shapes += _states(model)
    if name in _TIME_NAMES:
        shapes += [_Ids((BATCH,), 100), (BATCH,)]
    if "mask" in name:
        shapes.append(_Value(None))
    if index == 0:
        shapes += _declared_image(model, layers)
    if name in _ID_NAMES and embeddings:
        shapes += _shapes_for(embeddings[min(index, len(embeddings) - 1)])
    if len(name) > 1:
        for path, layer in [
            (path, layer) for path, layer in layers if name in path or path.split(".")[0] in name
        ][:2]:
            shapes += _shapes_for(layer) if path else []
    if index == 0 and layers:
        shapes += _shapes_for(layers[0][1])
    if index > 0:
        shapes.append(_SAME)
    for _, layer in layers[:12]:
        shapes += _shapes_for(layer)[:4]
    if index == 0:
        shapes += [(BATCH, channels, side, side) for channels in (3, 1) for side in IMAGE_SIDES]
        shapes += _USUAL
    return list(dict.fromkeys(shapes)) or list(_USUAL)


def _choices_by_name(index: int, name: str, annotation: Any) -> list[_Shape] | None:
    if name in _TARGET_NAMES and index > 0:
        return [_Ids((BATCH,), 10), _SAME, _Value(None)]
    if name in _LENGTH_NAMES:
        return [_Ids((BATCH,), 8)]
    if name == "edge_index":
        return [_Ids((2, 12), 8), _Ids((2, 12), BATCH)]
    if name in ("edge_attr", "edge_weight"):
        return [(12,), (12, 1)]
    plain = {int: 1, float: 1.0, bool: False, str: ""}
    if isinstance(annotation, type) and annotation in plain:
        return [_Value(plain[annotation])]
    return None


def _states(model: nn.Module) -> list[_Shape]:
    """A first state for the model's recurrent layer: (layers, batch, hidden), two of them for an LSTM."""
    for layer in model.modules():
        if isinstance(layer, nn.RNNBase):
            directions = 2 if layer.bidirectional else 1
            batch = (layer.num_layers * directions, BATCH)
            hidden = (*batch, layer.proj_size or layer.hidden_size)
            if isinstance(layer, nn.LSTM):
                cell = torch.zeros(*batch, layer.hidden_size)
                return [_Value((torch.zeros(hidden), cell)), _Value(None)]
            return [hidden, _Value(None)]
        if isinstance(layer, nn.RNNCellBase):
            state = (BATCH, layer.hidden_size)
            if isinstance(layer, nn.LSTMCell):
                return [_Value((torch.zeros(state), torch.zeros(state))), _Value(None)]
            return [state, _Value(None)]
    return []


def _declared_image(model: nn.Module, layers: list[tuple[str, nn.Module]]) -> list[_Shape]:
    """The image size that the model itself names."""
    convolution = next((layer for _, layer in layers if isinstance(layer, nn.Conv2d)), None)
    if convolution is None:
        return []
    for attribute in ("in_size", "img_size", "image_size", "input_size"):
        size = getattr(model, attribute, None)
        sides = (size, size) if isinstance(size, int) else size
        if (
            isinstance(sides, (tuple, list))
            and len(sides) >= 2
            and all(isinstance(side, int) for side in sides[-2:])
        ):
            return [(BATCH, convolution.in_channels, *sides[-2:]), (BATCH, 3, *sides[-2:])]
    return []
