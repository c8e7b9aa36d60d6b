"""What a Hugging Face model may be called with: its arguments have usual names, its config their sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor

from trainlint.capture.inputs import BATCH, SEQUENCE, Inputs, forward_parameters

# Ids below the size of any vocabulary do.
_VOCABULARY: Final = 50


def by_config(model: Any) -> Iterator[Inputs]:
    """By argument name and configuration: such models name their inputs alike."""
    names = {parameter.name for parameter in forward_parameters(model)}
    origin = "inferred from the model's config"
    maker = _Maker(model.config)
    main = model.main_input_name if isinstance(model.main_input_name, str) else ""
    required = [
        parameter.name
        for parameter in forward_parameters(model)
        if parameter.name == main or parameter.default is parameter.empty
    ]
    base = {name: value for name in required if (value := maker.make(name)) is not None}
    if not base:
        usual = ("input_ids", "pixel_values", "input_values", "input_features")
        first = next((name for name in usual if name in names), None)
        base = {first: maker.make(first)} if first else {}
    if getattr(model.config, "is_encoder_decoder", False) and "decoder_input_ids" in names:
        base["decoder_input_ids"] = maker.make("decoder_input_ids")
    yield Inputs((), base, origin, given=False)
    for extra in ("pixel_values", "input_features", "input_values", "bbox", "attention_mask"):
        if "input_ids" in names and extra in names:
            both = {**base, "input_ids": maker.make("input_ids"), extra: maker.make(extra)}
            yield Inputs((), both, origin, given=False)
    for name in ("pixel_values", "input_values", "input_features"):
        if name in base:
            for value in maker.alternatives(name):
                yield Inputs((), {**base, name: value}, origin, given=False)
    try:
        dummy = model.dummy_inputs
    except Exception:  # many families define it and cannot make it
        return
    if isinstance(dummy, dict):
        known = {name: value for name, value in dummy.items() if name in names}
        yield Inputs((), known, origin, given=False)


class _Maker:
    """Makes arguments of the sizes that a configuration names."""

    def __init__(self, config: Any) -> None:
        self._config = config
        self._vision = getattr(config, "vision_config", None) or config

    def _setting(self, *names: str, default: Any = None, config: Any = None) -> Any:
        """The first of these settings in the config or its sub-configs."""
        queue, seen = [config or self._config], set()
        while queue:
            current = queue.pop(0)
            if id(current) in seen:
                continue
            seen.add(id(current))
            for name in names:
                value = getattr(current, name, None)
                if value is not None:
                    return value
            queue += [part for part in vars(current).values() if hasattr(part, "model_type")]
        return default

    def _image(self) -> tuple[int, int]:
        side = self._setting("image_size", default=64, config=self._vision)
        side = side[0] if isinstance(side, (list, tuple)) else side
        channels = self._setting("num_channels", "in_channels", "in_chans", config=self._vision)
        return (
            channels if isinstance(channels, int) else 3,
            side if isinstance(side, int) else 64,
        )

    def make(self, name: str) -> Any:
        """The argument of this name, None where nothing is known of it."""
        channels, side = self._image()
        mel = self._setting("num_mel_bins", "input_feat_per_channel", "feature_size", default=80)
        match name:
            case "input_ids" | "decoder_input_ids":
                limit = self._setting("vocab_size", default=_VOCABULARY)
                limit = limit if isinstance(limit, int) else _VOCABULARY
                return torch.randint(3, max(4, min(limit, _VOCABULARY)), (BATCH, SEQUENCE))
            case "attention_mask":
                return torch.ones(BATCH, SEQUENCE, dtype=torch.long)
            case "pixel_values":
                return torch.randn(BATCH, channels, side, side)
            case "pixel_values_videos":
                frames = self._setting("num_frames", default=4)
                return torch.randn(BATCH, frames, channels, side, side)
            case "input_values":
                length = self._setting("max_length")
                if isinstance(length, int) and isinstance(self._setting("num_mel_bins"), int):
                    return torch.randn(BATCH, length, mel)
                return torch.randn(BATCH, 4000)
            case "input_features":
                positions = self._setting("max_source_positions")
                if isinstance(positions, int) and positions <= 3000:
                    return torch.randn(BATCH, mel, 2 * positions)
                return torch.randn(BATCH, 64, self._setting("feature_projection_input_dim") or mel)
            case "bbox":
                return torch.randint(0, 50, (BATCH, SEQUENCE, 4)).sort(-1).values
            case "past_values":
                return self._time_series()
            case "input_points":
                return torch.rand(BATCH, 1, 2, 2)
        return None

    def _time_series(self) -> Tensor:
        length = self._setting("context_length", default=16)
        length += max(self._setting("lags_sequence", default=[0]) or [0])
        width = self._setting("num_input_channels", "input_size", default=1)
        return torch.randn(BATCH, length, *((width,) if width > 1 else ()))

    def alternatives(self, name: str) -> Iterator[Tensor]:
        """Other shapes that it may have."""
        channels, side = self._image()
        mel = self._setting("num_mel_bins", default=80)
        if name == "pixel_values":
            for other in (32, 64, 128, 224):
                yield torch.randn(BATCH, channels, other, other)
            yield torch.randn(BATCH, self._setting("num_frames", default=4), channels, side, side)
        elif name == "input_values":
            yield torch.randn(BATCH, 16000)
            yield torch.randn(BATCH, 1, 4000)
        else:
            yield torch.randn(BATCH, 128, mel)
            yield torch.randn(BATCH, mel, 3000)
