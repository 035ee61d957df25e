"""Tiny configurations of transformers' models, made from each class's defaults."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

WORDS, WIDTH, HEADS, HEAD, LAYERS, POSITIONS = 101, 32, 4, 8, 2, 64
#: Setting → its tiny value, where a configuration has it and its default is not None.
_SIZES: dict[str, int] = {
    **dict.fromkeys(("vocab_size", "text_vocab_size", "decoder_vocab_size", "vocab_size_per_layer_input"), WORDS),
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "word_embed_proj_dim", "embedding_size", "emb_dim",
         "decoder_hidden_size", "attention_hidden_size", "lru_width", "text_hidden_size", "projection_dim",
         "out_hidden_size", "output_dim", "width", "mlp_dim", "connector_dim", "mamba_d_ssm"), WIDTH,
    ),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner", "d_ff", "ffn_hidden_size",
         "ff_dim", "d_inner", "intermediate_size_mlp", "dense_intermediate_size", "expert_ffn_hidden_size"), 48,
    ),
    **dict.fromkeys(
        ("moe_intermediate_size", "shared_expert_intermediate_size", "moe_ffn_dim", "expert_dim",
         "shared_intermediate_size", "moe_shared_expert_intermediate_size"), 16,
    ),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads", "encoder_attention_heads",
         "decoder_attention_heads"), HEADS,
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "global_head_dim", "attention_head_dim", "kv_channels"), HEAD),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers",
         "num_decoder_layers", "num_encoder_layers", "depth"), LAYERS,
    ),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length",
                     "max_source_positions", "max_target_positions", "original_max_position_embeddings"), POSITIONS),
    **dict.fromkeys(
        ("sliding_window", "window_size", "attention_window", "attention_window_size", "attention_chunk_size"), 4
    ),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "rotary_dim", "qk_head_dim"), HEAD),
    **dict.fromkeys(
        ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts", "n_experts",
         "num_experts_per_layer"), 4,
    ),
    **dict.fromkeys(
        ("num_experts_per_tok", "moe_k", "top_k_experts", "moe_topk", "n_shared_experts", "num_expert_group"), 1
    ),
    # Else no layer of two has experts.
    **dict.fromkeys(
        ("encoder_sparse_step", "decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_interval"), 1
    ),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_groups", "first_k_dense_replace"), 1),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads", "ssm_num_heads"), 4),
    **dict.fromkeys(("mamba_d_state", "ssm_state_size", "state_size", "mamba_dt_rank", "time_step_rank"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim"), 16),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), HEAD),
    **dict.fromkeys(("mamba_n_groups", "n_groups", "mamba_ngroups"), 1),
    "mamba_chunk_size": 8, "chunk_size": 8, "image_size": 28, "patch_size": 14, "hidden_size_per_layer_input": 8,
    "num_image_tokens": 4, "mm_tokens_per_image": 4, "laurel_rank": 4,
}  # fmt: skip
#: Settings whose default is None, which their class then cannot do without.
_WANTED = {"head_dim": HEAD, "num_key_value_heads": 2, "num_experts_per_tok": 1}
_KINDS = ["linear_attention", "full_attention"]
#: model_type → settings that its class needs beside, since some of its sizes follow from others.
_OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "granitemoehybrid": {"layer_types": _KINDS, "num_hidden_layers": 2},
    "recurrent_gemma": {"num_hidden_layers": 3, "num_key_value_heads": 4, "lru_width": WIDTH},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"], "num_key_value_heads": 4, "n_mamba_heads": 2},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"], "num_key_value_heads": 4, "n_mamba_heads": 8,
               "mamba_headdim": HEAD, "mamba_d_state": 8, "chunk_size": 8, "attention_hidden_size": 64,
               "attention_head_dim": 16},
    "jetmoe": {"num_key_value_heads": 2, "num_experts_per_tok": 2, "num_local_experts": 4},
    "mamba2": {"num_heads": 8, "n_groups": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gemma3n_text": {"layer_types": ["full_attention", "sliding_attention"] * 2, "num_hidden_layers": 4,
                     "num_kv_shared_layers": 2, "activation_sparsity_pattern": None},
    "gemma4_text": {"per_layer_config": {"1": {"head_dim": 16}}, "layer_types": ["sliding_attention", "full_attention"],
                    "num_hidden_layers": 2},
    "mllama_text_model": {"cross_attention_layers": [1]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "deepseek_v2": {"num_experts_per_tok": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "kimi_linear": {"num_experts_per_token": 1, "linear_head_dim": HEAD, "linear_num_heads": HEADS},
    "bailing_hybrid": {"num_experts_per_token": 1, "linear_head_dim": HEAD, "linear_num_heads": HEADS,
                       "num_expert_group": 1, "topk_group": 1},
    "longcat_flash": {"qk_head_dim": 16, "zero_expert_num": 1, "moe_topk": 2, "head_dim": 8, "qk_rope_head_dim": 8,
                      "qk_nope_head_dim": 8},
    "nemotron_h": {"layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"], "mamba_num_heads": 4,
                   "mamba_head_dim": 16, "n_groups": 1},
}  # fmt: skip
#: Models of which the positions of a token have three axes, by a part of their code.
_AXES = "mrope_section"
#: Token ids that must lie in the vocabulary.
_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "decoder_start_token_id")


def tiny(kind: type[PreTrainedConfig], decodes: bool) -> PreTrainedConfig:
    """A configuration of this class with two layers of four heads, or more where its layers are of more kinds.

    ``decodes``: a model that can be a decoder or an encoder is a decoder.
    """
    return _shrunk(kind(), decodes)


def _shrunk(config: PreTrainedConfig, decodes: bool) -> PreTrainedConfig:
    before = config.to_dict()
    settings: dict[str, Any] = {}
    for name, value in before.items():
        if name in _SIZES and isinstance(value, int) and not isinstance(value, bool):
            settings[name] = min(value, _SIZES[name])
        elif name.endswith(("_token_id", "_token_index")) and name not in _IDS and isinstance(value, int):
            settings[name] = WORDS - 1 - len(name) % 8  # of images and the like: none of the ids that are given
    for name in _IDS:
        if isinstance(before.get(name), (int, list)):
            settings[name] = 0
    if "pad_token_id" in before:
        settings["pad_token_id"] = 0
    if "is_decoder" in before and decodes:
        settings["is_decoder"] = True
    if "kv_lora_rank" in before and "num_key_value_heads" in settings:  # MLA has as many heads of keys as of queries
        settings["num_key_value_heads"] = settings.get("num_attention_heads", HEADS)
    settings |= {name: value for name, value in _WANTED.items() if before.get(name, value) is None}
    if "sliding_attention" in (before.get("layer_types") or ()) and before.get("sliding_window", 0) is None:
        settings["sliding_window"] = 4
    kinds = before.get("layer_types")
    if isinstance(kinds, list):
        chosen = list(dict.fromkeys(kinds))
        settings["layer_types"] = chosen * 2 if len(chosen) == 1 else chosen
        for name in ("num_hidden_layers", "n_layer", "num_layers"):
            if name in settings:
                settings[name] = len(settings["layer_types"])
    for name, value in before.items():
        of = vars(config).get(name)
        if isinstance(of, PreTrainedConfig):
            settings[name] = _shrunk(of, decodes)
        elif name in ("rope_parameters", "rope_scaling") and isinstance(value, dict):
            settings[name] = _rope(value)
    rope = settings.get("rope_parameters", before.get("rope_parameters"))
    if "rope_parameters" in before and (rope is None or "rope_type" in rope) and _has_axes(config):
        settings["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, _AXES: [2, 1, 1], **(rope or {})}
    settings |= _OVERRIDES.get(config.model_type, {})
    if "layer_types" in settings and "mlp_layer_types" in before:
        settings["mlp_layer_types"] = ["dense"] * len(settings["layer_types"])
    settings = {name: value for name, value in settings.items() if name in before or name in vars(config)}
    return type(config)(**{**_given(before, config), **settings})


def _has_axes(config: PreTrainedConfig) -> bool:
    """Whether the code of its models splits a head between the axes of positions."""
    folder = Path(inspect.getfile(type(config))).parent
    return any(_AXES in file.read_text(encoding="utf-8") for file in folder.glob("modeling_*.py"))


def _given(before: dict[str, Any], config: PreTrainedConfig) -> dict[str, Any]:
    """The defaults that a size determines are left to the class."""
    derived = ("mlp_layer_types", "layer_types", "layers_block_type", "no_rope_layers", "moe_layers", "model_type",
               "transformers_version", "architectures", "dtype", "torch_dtype")  # fmt: skip
    return {
        name: copy.deepcopy(value) for name, value in before.items()
        if isinstance(value, (bool, float, str)) and name not in derived and name in vars(config)
        and not name.startswith("_")
    }  # fmt: skip


def _rope(value: dict[str, Any]) -> dict[str, Any]:
    """Rotary positions whose sections of a head fit it."""
    found = copy.deepcopy(value)
    for name, part in found.items():
        if isinstance(part, dict):
            found[name] = _rope(part)
    if _AXES in found:
        found[_AXES] = [2, 1, 1]
    if "original_max_position_embeddings" in found:
        found["original_max_position_embeddings"] = POSITIONS
    return found
