"""Architectures from public libraries, shrunk, with inputs known to be good.

The lists are fixed: each row was built and run forwards and backwards, eagerly and in training
mode. Nothing is imported from the libraries until a model is built.
"""

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

Call = tuple[tuple[Any, ...], dict[str, Any]]
Draw = Callable[[], Tensor]


@dataclass(frozen=True)
class Entry:
    """One model of a zoo: how to build it and, where known, how to call it."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Call] | None


def entries() -> list[Entry]:
    """Return all entries; a few of MONAI's need einops and are left out where it is missing."""
    found = [
        Entry(f"transformers/{name}", partial(build_transformer, name, changes), keywords(draws))
        for draws, families in TRANSFORMERS
        for name, changes in families
    ]
    nets = list(MONAI)
    if importlib.util.find_spec("einops") is not None:
        nets += MONAI_WITH_EINOPS
    for label, options, draws in nets:
        name = label.partition("-")[0]
        found.append(Entry(f"monai/{label}", partial(build_monai, name, options), keywords(draws)))
    return found


# --- inputs -----------------------------------------------------------------------------------


def normal(*shape: int) -> Draw:
    """Draw normal numbers for a batch of two."""
    return lambda: torch.randn(2, *shape)


def uniform(*shape: int) -> Draw:
    """Draw numbers between zero and one for a batch of two."""
    return lambda: torch.rand(2, *shape)


def ids(*shape: int, low: int = 3, high: int = 30) -> Draw:
    """Draw indices for a batch of two, away from the special ones."""
    return lambda: torch.randint(low, high, (2, *shape))


def constant(values: Any) -> Draw:
    """Give the same tensor for both samples."""
    return lambda: torch.tensor(values).expand(2, *torch.tensor(values).shape).clone()


def after_image(places: int, words: int, token: int = 99) -> Draw:
    """Draw a text that starts with the places of an image."""
    return lambda: torch.cat(
        [torch.full((2, places), token), torch.randint(3, 30, (2, words))], dim=1
    )


def keywords(draws: dict[str, Draw]) -> Callable[[], Call]:
    """Make the call of a row: names that start with an underscore are given by position."""

    def draw() -> Call:
        args = tuple(make() for name, make in draws.items() if name.startswith("_"))
        kwargs = {name: make() for name, make in draws.items() if not name.startswith("_")}
        return args, kwargs

    return draw


# --- transformers -----------------------------------------------------------------------------

SMALL: dict[str, float] = {
    "attention_heads": 4,
    "bos_token_id": 1,
    "d_ff": 128,
    "d_kv": 16,
    "d_model": 64,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 128,
    "decoder_layerdrop": 0.0,
    "decoder_layers": 2,
    "decoder_start_token_id": 1,
    "depth": 2,
    "dim": 64,
    "embedding_size": 64,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "encoder_layerdrop": 0.0,
    "encoder_layers": 2,
    "eos_token_id": 2,
    "ffn_dim": 128,
    "first_k_dense_replace": 1,
    "head_dim": 16,
    "hidden_size": 64,
    "image_size": 32,
    "intermediate_size": 128,
    "kv_lora_rank": 16,
    "layerdrop": 0.0,
    "max_position_embeddings": 64,
    "max_source_positions": 64,
    "max_target_positions": 64,
    "mlp_dim": 128,
    "moe_intermediate_size": 32,
    "n_embd": 64,
    "n_group": 1,
    "n_head": 4,
    "n_heads": 4,
    "n_layer": 2,
    "n_layers": 2,
    "n_positions": 64,
    "n_routed_experts": 4,
    "num_attention_heads": 4,
    "num_decoder_layers": 2,
    "num_encoder_layers": 2,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "num_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "num_layers": 2,
    "num_local_experts": 4,
    "pad_token_id": 0,
    "patch_size": 8,
    "projection_dim": 32,
    "q_lora_rank": 32,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "shared_expert_intermediate_size": 32,
    "topk_group": 1,
    "v_head_dim": 16,
    "vocab_size": 100,
}


def shrink(config_class: type, changes: dict[str, Any]) -> Any:
    """Make a small config: the table where it applies, then the changes of the row.

    A change to ``None`` leaves the default of the library in its place.
    """
    default = config_class()
    options: dict[str, Any] = {}
    for key, value in SMALL.items():
        if isinstance(inspect.getattr_static(config_class, key, None), property):
            continue
        if type(getattr(default, key, None)) is type(value):
            options[key] = value
    for key in getattr(config_class, "sub_configs", None) or {}:
        part = getattr(default, key, None)
        if hasattr(part, "to_dict") and not isinstance(changes.get(key, {}).get("model_type"), str):
            options[key] = shrink(type(part), changes.get(key, {})).to_dict()
    for key, value in changes.items():
        if value is None:
            options.pop(key, None)
        elif not (isinstance(value, dict) and key in options):
            options[key] = value
    return config_class(**options)


def build_transformer(name: str, changes: dict[str, Any]) -> nn.Module:
    """Build a model of transformers with random weights."""
    model_class = getattr(importlib.import_module("transformers"), name)
    return model_class(shrink(model_class.config_class, changes))


STAGES = {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1]}
WAVE = {"conv_dim": [32] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
RESNET = {**STAGES, "model_type": "resnet", "embedding_size": 16, "out_features": ["stage4"]}
DETECTOR = {"backbone_config": RESNET, "use_timm_backbone": False, "num_queries": 5}
SERIES = {"prediction_length": 4, "context_length": 8, "lags_sequence": [1, 2]}
SERIES |= {"num_time_features": 1, "d_model": 32}
SSM = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 16}
BOXES = [[i, i + 1, i + 10, i + 11] for i in range(16)]

Family = tuple[str, dict[str, Any]]

TRANSFORMERS: list[tuple[dict[str, Draw], list[Family]]] = [
    (
        {"input_ids": ids(16)},
        [
            ("AfmoeForCausalLM", {}),
            ("AlbertForMaskedLM", {}),
            ("ApertusForCausalLM", {}),
            ("ArceeForCausalLM", {}),
            ("BambaForCausalLM", {**SSM, "attn_layer_indices": [1]}),
            ("BertForMaskedLM", {}),
            ("BigBirdForMaskedLM", {"attention_type": "original_full"}),
            ("BioGptForCausalLM", {}),
            ("BitNetForCausalLM", {}),
            ("BloomForCausalLM", {}),
            ("CTRLLMHeadModel", {"dff": 128}),
            ("CanineForSequenceClassification", {"num_hash_buckets": 128}),
            ("CodeGenForCausalLM", {"rotary_dim": 8}),
            ("CohereForCausalLM", {}),
            ("Cohere2ForCausalLM", {}),
            ("ConvBertForMaskedLM", {}),
            ("DebertaForMaskedLM", {}),
            ("DebertaV2ForMaskedLM", {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
            ("DeepseekV2ForCausalLM", {"num_experts_per_tok": 2, "head_dim": 8}),
            ("DeepseekV3ForCausalLM", {"head_dim": 8}),
            ("DiffLlamaForCausalLM", {}),
            ("DistilBertForMaskedLM", {"hidden_dim": 128}),
            ("DogeForCausalLM", {}),
            ("ElectraForMaskedLM", {}),
            ("Ernie4_5ForCausalLM", {}),
            ("EsmForMaskedLM", {"vocab_size": 33, "mask_token_id": 32, "pad_token_id": 1}),
            ("EuroBertForMaskedLM", {}),
            ("Exaone4ForCausalLM", {}),
            ("FNetForMaskedLM", {}),
            ("FalconForCausalLM", {}),
            ("FalconMambaForCausalLM", {}),
            ("FlaubertWithLMHeadModel", {}),
            ("FlexOlmoForCausalLM", {}),
            ("FunnelForMaskedLM", {"block_sizes": [1, 1], "d_head": 16, "d_inner": 128}),
            ("GPT2LMHeadModel", {}),
            ("GPTBigCodeForCausalLM", {}),
            ("GPTJForCausalLM", {"rotary_dim": 8}),
            ("GPTNeoForCausalLM", {"attention_types": [[["global", "local"], 1]]}),
            ("GPTNeoXForCausalLM", {}),
            ("Gemma2ForCausalLM", {}),
            ("Gemma3ForCausalLM", {}),
            ("GemmaForCausalLM", {}),
            ("Glm4ForCausalLM", {}),
            ("Glm4MoeForCausalLM", {}),
            ("GptOssForCausalLM", {}),
            ("GraniteForCausalLM", {}),
            ("GraniteMoeForCausalLM", {}),
            ("GraniteMoeHybridForCausalLM", {**SSM, "layer_types": ["mamba", "attention"]}),
            ("HeliumForCausalLM", {}),
            ("IBertForMaskedLM", {}),
            ("JambaForCausalLM", {"attn_layer_period": 2, "attn_layer_offset": 1}),
            ("JetMoeForCausalLM", {}),
            ("LayoutLMForMaskedLM", {}),
            ("Lfm2ForCausalLM", {"layer_types": ["conv", "full_attention"]}),
            ("Llama4ForCausalLM", {}),
            ("LlamaForCausalLM", {}),
            ("LongformerForMaskedLM", {"attention_window": 8}),
            ("MPNetForMaskedLM", {}),
            ("Mamba2ForCausalLM", {"num_heads": 8, "n_groups": 1, "state_size": 16}),
            ("MambaForCausalLM", {}),
            ("MiniMaxForCausalLM", {}),
            ("MistralForCausalLM", {}),
            ("MixtralForCausalLM", {}),
            ("MobileBertForMaskedLM", {}),
            ("ModernBertForMaskedLM", {}),
            ("MptForCausalLM", {}),
            ("NemotronForCausalLM", {"num_key_value_heads": 2}),
            ("NystromformerForMaskedLM", {}),
            ("OPTForCausalLM", {}),
            ("Olmo2ForCausalLM", {}),
            ("OlmoeForCausalLM", {}),
            ("OpenAIGPTLMHeadModel", {}),
            ("PersimmonForCausalLM", {}),
            ("Phi3ForCausalLM", {}),
            ("PhiForCausalLM", {}),
            ("PhimoeForCausalLM", {}),
            ("Qwen2ForCausalLM", {}),
            ("Qwen2MoeForCausalLM", {}),
            ("Qwen3ForCausalLM", {}),
            ("Qwen3MoeForCausalLM", {}),
            (
                "Qwen3NextForCausalLM",
                {
                    "layer_types": ["linear_attention", "full_attention"],
                    "linear_num_value_heads": 4,
                    "linear_num_key_heads": 2,
                    "linear_key_head_dim": 16,
                    "linear_value_head_dim": 16,
                },
            ),
            ("RecurrentGemmaForCausalLM", {"num_hidden_layers": 3, "lru_width": 64}),
            (
                "ReformerModelWithLMHead",
                {
                    "is_decoder": True,
                    "attn_layers": ["local", "lsh"],
                    "attention_head_size": 16,
                    "feed_forward_size": 128,
                    "axial_pos_shape": [4, 4],
                    "axial_pos_embds_dim": [32, 32],
                    "local_attn_chunk_length": 8,
                    "lsh_attn_chunk_length": 8,
                    "num_hashes": 1,
                    "num_buckets": 2,
                },
            ),
            ("RemBertForCausalLM", {"is_decoder": True}),
            ("RoFormerForMaskedLM", {}),
            ("RobertaForMaskedLM", {}),
            ("RwkvForCausalLM", {}),
            ("SmolLM3ForCausalLM", {}),
            ("SqueezeBertForMaskedLM", {}),
            ("StableLmForCausalLM", {}),
            ("Starcoder2ForCausalLM", {}),
            ("TapasForMaskedLM", {}),
            ("XGLMForCausalLM", {}),
            ("XLMWithLMHeadModel", {}),
            ("XLNetLMHeadModel", {"d_inner": 128}),
            ("YosoForMaskedLM", {}),
            ("xLSTMForCausalLM", {"qk_dim_factor": 1.0}),
        ],
    ),
    (
        {"input_ids": ids(16), "bbox": constant(BOXES)},
        [
            ("BrosModel", {}),
            ("LayoutLMv3Model", {"visual_embed": False, "coordinate_size": 11, "shape_size": 10}),
            ("LiltModel", {"hidden_size": 96}),
        ],
    ),
    (
        {"input_ids": ids(16), "decoder_input_ids": ids(8)},
        [
            ("BartForConditionalGeneration", {}),
            ("BlenderbotForConditionalGeneration", {}),
            ("EncoderDecoderModel", {}),
            ("FSMTForConditionalGeneration", {"src_vocab_size": 100, "tgt_vocab_size": 100}),
            ("LEDForConditionalGeneration", {"attention_window": 8}),
            ("LongT5ForConditionalGeneration", {}),
            ("M2M100ForConditionalGeneration", {}),
            ("MBartForConditionalGeneration", {}),
            ("MT5ForConditionalGeneration", {}),
            ("MarianMTModel", {}),
            ("NllbMoeForConditionalGeneration", {}),
            ("PLBartForConditionalGeneration", {}),
            ("PegasusForConditionalGeneration", {}),
            ("PegasusXForConditionalGeneration", {"block_size": 8}),
            (
                "ProphetNetForConditionalGeneration",
                {"num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4},
            ),
            ("SeamlessM4TForTextToText", {}),
            ("SwitchTransformersForConditionalGeneration", {}),
            ("T5ForConditionalGeneration", {}),
            ("T5GemmaForConditionalGeneration", {}),
            ("UMT5ForConditionalGeneration", {}),
        ],
    ),
    (
        {"pixel_values": normal(3, 32, 32)},
        [
            ("Aimv2VisionModel", {}),
            ("BeitForImageClassification", {}),
            ("Data2VecVisionForImageClassification", {}),
            ("DeiTForImageClassification", {}),
            ("Dinov2ForImageClassification", {}),
            ("DINOv3ViTModel", {}),
            ("IJepaForImageClassification", {}),
            ("MLCDVisionModel", {}),
            ("PixtralVisionModel", {}),
            ("SamVisionModel", {}),
            ("SiglipVisionModel", {}),
            (
                "SwinForImageClassification",
                {
                    "embed_dim": 24,
                    "depths": [1, 1],
                    "num_heads": [2, 4],
                    "patch_size": 4,
                    "window_size": 4,
                },
            ),
            (
                "Swinv2ForImageClassification",
                {
                    "embed_dim": 24,
                    "depths": [1, 1],
                    "num_heads": [2, 4],
                    "pretrained_window_sizes": [0, 0],
                    "patch_size": 4,
                    "window_size": 4,
                },
            ),
            (
                "Swin2SRForImageSuperResolution",
                {
                    "embed_dim": 24,
                    "depths": [1, 1],
                    "num_heads": [2, 2],
                    "patch_size": 1,
                    "window_size": 4,
                },
            ),
            ("ViTForImageClassification", {}),
            (
                "ViTMAEForPreTraining",
                {
                    "decoder_hidden_size": 32,
                    "decoder_num_hidden_layers": 1,
                    "decoder_num_attention_heads": 2,
                    "decoder_intermediate_size": 64,
                },
            ),
            ("ViTMSNForImageClassification", {}),
            ("VitDetModel", {}),
            ("YolosForObjectDetection", {"image_size": [32, 32], "num_detection_tokens": 5}),
        ],
    ),
    (
        {"pixel_values": normal(3, 64, 64)},
        [
            ("BitForImageClassification", {**STAGES, "embedding_size": 16, "num_groups": 8}),
            ("ConditionalDetrForObjectDetection", DETECTOR),
            (
                "ConvNextForImageClassification",
                {**STAGES, "patch_size": 4, "num_hidden_layers": None},
            ),
            (
                "ConvNextV2ForImageClassification",
                {**STAGES, "patch_size": 4, "num_hidden_layers": None},
            ),
            (
                "CvtForImageClassification",
                {"embed_dim": [16, 32, 48], "num_heads": [1, 2, 3], "depth": [1, 2, 3]},
            ),
            ("DINOv3ConvNextModel", STAGES),
            ("DeformableDetrForObjectDetection", {**DETECTOR, "num_feature_levels": 1}),
            ("DetrForObjectDetection", DETECTOR),
            (
                "FocalNetForImageClassification",
                {"embed_dim": 16, "depths": [1, 1, 1, 1], "patch_size": 4},
            ),
            (
                "GLPNForDepthEstimation",
                {
                    "hidden_sizes": [16, 32, 48, 64],
                    "depths": [1, 1, 1, 1],
                    "num_attention_heads": [1, 2, 3, 4],
                    "decoder_hidden_size": 32,
                },
            ),
            (
                "LevitForImageClassification",
                {
                    "hidden_sizes": [32, 48, 64],
                    "depths": [1, 1, 1],
                    "num_attention_heads": [2, 3, 4],
                    "key_dim": [8, 8, 8],
                },
            ),
            ("MobileViTV2ForImageClassification", {"patch_size": 2}),
            ("PPLCNetForImageClassification", {}),
            ("PoolFormerForImageClassification", {**STAGES, "patch_size": None}),
            (
                "PvtForImageClassification",
                {
                    "hidden_sizes": [16, 32, 48, 64],
                    "depths": [1, 1, 1, 1],
                    "num_attention_heads": [1, 2, 3, 4],
                    "image_size": 64,
                },
            ),
            ("PvtV2ForImageClassification", {"image_size": 64}),
            (
                "RegNetForImageClassification",
                {
                    "hidden_sizes": [16, 24, 32, 48],
                    "depths": [1, 1, 1, 1],
                    "embedding_size": 16,
                    "groups_width": 8,
                },
            ),
            ("ResNetForImageClassification", {**STAGES, "embedding_size": 16}),
            (
                "SegformerForSemanticSegmentation",
                {
                    "hidden_sizes": [16, 32, 48, 64],
                    "depths": [1, 1, 1, 1],
                    "num_attention_heads": [1, 2, 3, 4],
                    "decoder_hidden_size": 32,
                },
            ),
            (
                "SwiftFormerForImageClassification",
                {"embed_dims": [16, 24, 32, 48], "depths": [1, 1, 1, 1]},
            ),
            ("TableTransformerForObjectDetection", DETECTOR),
            (
                "UperNetForSemanticSegmentation",
                {
                    "backbone_config": {
                        **STAGES,
                        "model_type": "convnext",
                        "out_features": ["stage1", "stage2", "stage3", "stage4"],
                    },
                    "hidden_size": 32,
                    "auxiliary_in_channels": 32,
                    "auxiliary_channels": 16,
                },
            ),
        ],
    ),
    (
        {"pixel_values": normal(3, 128, 128)},
        [
            (
                "EfficientNetForImageClassification",
                {"width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320},
            ),
            ("MobileNetV1ForImageClassification", {"depth_multiplier": 0.25}),
            ("MobileNetV2ForImageClassification", {"depth_multiplier": 0.35}),
            (
                "MobileViTForImageClassification",
                {
                    "patch_size": 2,
                    "hidden_sizes": [32, 48, 64],
                    "neck_hidden_sizes": [8, 16, 24, 32, 48, 64, 96],
                },
            ),
        ],
    ),
    (
        {"pixel_values": normal(4, 3, 32, 32)},
        [
            ("TimesformerForVideoClassification", {"num_frames": 4}),
            ("VideoMAEForVideoClassification", {"num_frames": 4}),
            ("VivitForVideoClassification", {"num_frames": 4, "tubelet_size": [2, 8, 8]}),
        ],
    ),
    (
        {"input_ids": ids(16), "pixel_values": normal(3, 32, 32)},
        [
            ("AltCLIPModel", {}),
            ("BlipForConditionalGeneration", {}),
            ("BridgeTowerModel", {}),
            ("CLIPModel", {}),
            ("CLIPSegModel", {}),
            ("ChineseCLIPModel", {}),
            ("GroupViTModel", {}),
            ("OwlViTModel", {}),
            ("SiglipModel", {}),
            ("VisionTextDualEncoderModel", {}),
            ("ViltModel", {}),
        ],
    ),
    (
        {"input_ids": after_image(16, 8), "pixel_values": normal(3, 32, 32)},
        [
            ("LlavaForConditionalGeneration", {"image_token_index": 99}),
            ("PaliGemmaForConditionalGeneration", {"image_token_index": 99, "projection_dim": 64}),
            (
                "VipLlavaForConditionalGeneration",
                {"image_token_index": 99, "vision_feature_layers": [-1, -2]},
            ),
        ],
    ),
    (
        {"pixel_values": normal(3, 32, 32), "decoder_input_ids": ids(8)},
        [("VisionEncoderDecoderModel", {})],
    ),
    (
        {
            "input_ids": ids(16),
            "visual_feats": normal(5, 32),
            "visual_pos": uniform(5, 4),
        },
        [("LxmertModel", {"visual_feat_dim": 32, "l_layers": 1, "r_layers": 1, "x_layers": 1})],
    ),
    (
        {"input_ids": ids(16), "visual_embeds": normal(5, 32)},
        [("VisualBertModel", {"visual_embedding_dim": 32})],
    ),
    (
        {"input_values": normal(4000)},
        [
            ("Data2VecAudioForCTC", WAVE),
            ("HubertForCTC", WAVE),
            ("SEWForCTC", {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}),
            ("SEWDForCTC", {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}),
            ("UniSpeechForCTC", {**WAVE, "num_ctc_classes": 100}),
            ("UniSpeechSatForCTC", WAVE),
            ("Wav2Vec2ForCTC", WAVE),
            ("Wav2Vec2ConformerForCTC", {**WAVE, "vocab_size": 100}),
            ("WavLMForCTC", WAVE),
        ],
    ),
    (
        {"input_values": normal(96, 32)},
        [("ASTForAudioClassification", {"max_length": 96, "num_mel_bins": 32})],
    ),
    (
        {"input_values": normal(4000), "decoder_input_ids": ids(8)},
        [
            ("MoonshineForConditionalGeneration", {}),
            ("SpeechT5ForSpeechToText", WAVE),
        ],
    ),
    (
        {"input_features": normal(80, 128), "decoder_input_ids": ids(8)},
        [("WhisperForConditionalGeneration", {})],
    ),
    (
        {"input_features": normal(100, 80), "decoder_input_ids": ids(8)},
        [("Speech2TextForConditionalGeneration", {"conv_channels": 64})],
    ),
    (
        {"input_features": normal(100, 80)},
        [("ParakeetForCTC", {})],
    ),
    (
        {"input_features": normal(100, 160)},
        [("Wav2Vec2BertForCTC", {"vocab_size": 100})],
    ),
    (
        {"past_values": normal(32, 4)},
        [
            (
                "PatchTSMixerForPrediction",
                {"context_length": 32, "prediction_length": 8, "num_input_channels": 4},
            ),
            (
                "PatchTSTForPrediction",
                {
                    "context_length": 32,
                    "prediction_length": 8,
                    "num_input_channels": 4,
                    "patch_length": 8,
                    "patch_stride": 8,
                },
            ),
        ],
    ),
    (
        {
            "past_values": uniform(10),
            "past_time_features": normal(10, 1),
            "past_observed_mask": constant([1.0] * 10),
            "future_values": uniform(4),
            "future_time_features": normal(4, 1),
        },
        [
            ("AutoformerForPrediction", {**SERIES, "label_length": 4}),
            ("InformerForPrediction", SERIES),
            ("TimeSeriesTransformerForPrediction", SERIES),
        ],
    ),
    (
        {
            "states": normal(5, 17),
            "actions": normal(5, 4),
            "rewards": normal(5, 1),
            "returns_to_go": normal(5, 1),
            "timesteps": constant([0, 1, 2, 3, 4]),
            "attention_mask": constant([1, 1, 1, 1, 1]),
        },
        [("DecisionTransformerModel", {"max_ep_len": 32})],
    ),
]


# --- MONAI ------------------------------------------------------------------------------------


def build_monai(name: str, options: dict[str, Any]) -> nn.Module:
    """Build a network of MONAI with random weights."""
    return getattr(importlib.import_module("monai.networks.nets"), name)(**options)


Net = tuple[str, dict[str, Any], dict[str, Draw]]

PLANE = {"_x": normal(1, 32, 32)}
LARGE = {"_x": normal(1, 64, 64)}
COLOUR = {"_x": normal(3, 64, 64)}
PAIR = {"_x": normal(2, 32, 32)}
LABELS = normal(3, 32, 32)
STEPS = ids(low=0, high=100)

FLAT = {"spatial_dims": 2, "in_channels": 1}
LADDER = {**FLAT, "out_channels": 2, "channels": (8, 16, 32), "strides": (2, 2)}
CODER = {"spatial_dims": 2, "out_channels": 1, "channels": (8, 16), "strides": (2, 2)}
SHAPED = {"in_shape": (1, 32, 32), "channels": (8, 16), "strides": (2, 2)}
REGISTER = {"spatial_dims": 2, "in_channels": 2, "num_channel_initial": 8}
FEATURES = {"spatial_dims": 2, "features": (8, 8, 16, 16, 32, 8)}

MONAI: list[Net] = [
    ("AttentionUnet", LADDER, PLANE),
    ("AutoEncoder", {**CODER, "in_channels": 1, "num_res_units": 1}, PLANE),
    ("BasicUNet", FEATURES, PLANE),
    ("BasicUNetPlusPlus", FEATURES, PLANE),
    ("Classifier", {**SHAPED, "classes": 3}, PLANE),
    ("Critic", SHAPED, PLANE),
    (
        "DenseNet",
        {
            **FLAT,
            "out_channels": 3,
            "init_features": 16,
            "growth_rate": 8,
            "block_config": (2, 2, 2),
        },
        PLANE,
    ),
    ("Discriminator", {**SHAPED, "last_act": None}, PLANE),
    (
        "DynUNet",
        {
            **FLAT,
            "out_channels": 2,
            "kernel_size": (3, 3, 3),
            "strides": (1, 2, 2),
            "upsample_kernel_size": (2, 2),
            "filters": (8, 16, 32),
            "res_block": True,
        },
        PLANE,
    ),
    (
        "EfficientNetBN",
        {"model_name": "efficientnet-b0", "pretrained": False, "num_classes": 5},
        COLOUR,
    ),
    (
        "FlexibleUNet",
        {
            "in_channels": 3,
            "out_channels": 2,
            "backbone": "efficientnet-b0",
            "decoder_channels": (32, 16, 8, 8, 8),
        },
        COLOUR,
    ),
    (
        "FullyConnectedNet",
        {"in_channels": 8, "out_channels": 3, "hidden_channels": (16, 16), "dropout": 0.1},
        {"_x": normal(8)},
    ),
    (
        "Generator",
        {
            "latent_shape": (8,),
            "start_shape": (16, 4, 4),
            "channels": (16, 8, 1),
            "strides": (2, 2, 1),
        },
        {"_x": normal(8)},
    ),
    ("GlobalNet", {**REGISTER, "image_size": (32, 32), "depth": 2}, PAIR),
    ("HighResNet", {"spatial_dims": 2, "out_channels": 2}, PLANE),
    ("LocalNet", {**REGISTER, "extract_levels": (0, 1, 2), "out_channels": 2}, PAIR),
    (
        "MedNeXt",
        {
            "spatial_dims": 2,
            "init_filters": 8,
            "kernel_size": 3,
            "blocks_down": (1, 1, 1, 1),
            "blocks_bottleneck": 1,
            "blocks_up": (1, 1, 1, 1),
        },
        PLANE,
    ),
    (
        "MultiScalePatchDiscriminator",
        {**FLAT, "num_d": 2, "num_layers_d": 2, "channels": 8, "minimum_size_im": 64},
        LARGE,
    ),
    ("PatchDiscriminator", {**FLAT, "channels": 8, "num_layers_d": 2}, PLANE),
    ("Quicknat", {"num_classes": 3, "num_filters": 8}, PLANE),
    ("RegUNet", {**REGISTER, "depth": 2, "out_channels": 2}, PAIR),
    ("Regressor", {**SHAPED, "out_shape": (2,)}, PLANE),
    (
        "ResNet",
        {
            "block": "bottleneck",
            "layers": (1, 1, 1, 1),
            "block_inplanes": (8, 16, 32, 64),
            "spatial_dims": 2,
            "n_input_channels": 1,
            "num_classes": 3,
        },
        LARGE,
    ),
    (
        "SENet",
        {
            **FLAT,
            "block": "se_resnet_bottleneck",
            "layers": (1, 1, 1, 1),
            "groups": 1,
            "reduction": 8,
            "inplanes": 16,
            "input_3x3": False,
            "downsample_kernel_size": 1,
            "dropout_prob": None,
            "num_classes": 3,
        },
        LARGE,
    ),
    (
        "SPADENet",
        {
            **FLAT,
            "out_channels": 1,
            "label_nc": 3,
            "input_shape": (32, 32),
            "channels": [8, 16],
            "z_dim": 8,
            "spade_intermediate_channels": 16,
        },
        {"_seg": LABELS, **PLANE},
    ),
    ("SegResNet", {"spatial_dims": 2, "blocks_down": (1, 1, 2), "blocks_up": (1, 1)}, PLANE),
    (
        "SegResNetDS",
        {"spatial_dims": 2, "init_filters": 8, "blocks_down": (1, 1, 1), "dsdepth": 2},
        PLANE,
    ),
    ("SegResNetDS2", {"spatial_dims": 2, "init_filters": 8, "blocks_down": (1, 1, 1)}, PLANE),
    (
        "SegResNetVAE",
        {
            "spatial_dims": 2,
            "input_image_size": (32, 32),
            "vae_nz": 16,
            "vae_estimate_std": True,
            "blocks_down": (1, 1, 1),
            "blocks_up": (1, 1),
        },
        PLANE,
    ),
    ("UNet", {**LADDER, "num_res_units": 2}, PLANE),
    ("VNet", {"spatial_dims": 2}, PLANE),
    (
        "VQVAE",
        {
            **FLAT,
            "out_channels": 1,
            "channels": (16, 32),
            "num_res_layers": 1,
            "num_res_channels": (16, 32),
            "downsample_parameters": ((2, 4, 1, 1),) * 2,
            "upsample_parameters": ((2, 4, 1, 1, 0),) * 2,
            "num_embeddings": 16,
            "embedding_dim": 8,
            "ddp_sync": False,
        },
        PLANE,
    ),
    ("VarAutoEncoder", {**CODER, "in_shape": (1, 32, 32), "latent_size": 4}, PLANE),
    (
        "VarFullyConnectedNet",
        {
            "in_channels": 8,
            "out_channels": 8,
            "latent_size": 3,
            "encode_channels": (16,),
            "decode_channels": (16,),
        },
        {"_x": normal(8)},
    ),
    (
        "VoxelMorph",
        {"spatial_dims": 3},
        {"_moving": normal(1, 32, 32, 32), "_fixed": normal(1, 32, 32, 32)},
    ),
    (
        "VoxelMorphUNet",
        {
            "spatial_dims": 2,
            "in_channels": 2,
            "unet_out_channels": 8,
            "channels": (8, 8, 8, 8),
            "final_conv_channels": (8,),
        },
        PAIR,
    ),
]

NOISE = {
    **FLAT,
    "channels": (16, 32),
    "num_res_blocks": 1,
    "attention_levels": (False, True),
    "norm_num_groups": 8,
    "num_head_channels": 8,
}
LATENT = {
    "spatial_dims": 2,
    "channels": (16, 32),
    "num_res_blocks": (1, 1),
    "attention_levels": (False, True),
    "norm_num_groups": 8,
    "latent_channels": 3,
}
TOKENS = {
    **FLAT,
    "img_size": (32, 32),
    "patch_size": (4, 4),
    "hidden_size": 48,
    "mlp_dim": 96,
    "num_layers": 2,
    "num_heads": 4,
}
SEGMENT = {**FLAT, "out_channels": 2}

MONAI_WITH_EINOPS: list[Net] = [
    ("AutoencoderKL", LATENT, PLANE),
    (
        "ControlNet",
        {**NOISE, "conditioning_embedding_num_channels": (8,)},
        {**PLANE, "_t": STEPS, "_hint": normal(1, 32, 32)},
    ),
    (
        "DecoderOnlyTransformer",
        {
            "num_tokens": 50,
            "max_seq_len": 16,
            "attn_layers_dim": 32,
            "attn_layers_depth": 2,
            "attn_layers_heads": 4,
        },
        {"_x": ids(12)},
    ),
    ("DiffusionModelUNet", {**NOISE, "out_channels": 1}, {**PLANE, "_t": STEPS}),
    (
        "DiffusionModelUNet-context",
        {**NOISE, "out_channels": 1, "with_conditioning": True, "cross_attention_dim": 6},
        {**PLANE, "_t": STEPS, "context": normal(4, 6)},
    ),
    (
        "MaskedAutoEncoderViT",
        {
            **TOKENS,
            "decoder_hidden_size": 48,
            "decoder_mlp_dim": 96,
            "decoder_num_layers": 1,
            "decoder_num_heads": 4,
        },
        PLANE,
    ),
    (
        "SPADEAutoencoderKL",
        {**LATENT, "label_nc": 3, "spade_intermediate_channels": 16},
        {**PLANE, "_seg": LABELS},
    ),
    (
        "SPADEDiffusionModelUNet",
        {**NOISE, "out_channels": 1, "label_nc": 3, "spade_intermediate_channels": 16},
        {**PLANE, "_t": STEPS, "_seg": LABELS},
    ),
    (
        "SwinUNETR",
        {**SEGMENT, "feature_size": 12, "num_heads": (1, 2, 2, 4), "window_size": 4},
        LARGE,
    ),
    (
        "UNETR",
        {
            **SEGMENT,
            "img_size": (32, 32),
            "feature_size": 8,
            "hidden_size": 48,
            "mlp_dim": 96,
            "num_heads": 4,
        },
        PLANE,
    ),
    ("ViT", {**TOKENS, "classification": True}, PLANE),
    ("ViTAutoEnc", TOKENS, PLANE),
]
