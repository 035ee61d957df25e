"""Tiny decoders of transformers: which can be traced, and which are refused by name."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import PreTrainedModel

from benchmarks.common.twins import twins

SIZES = {
    "vocab_size": 101, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 2}
_OLD = {"n_embd": 32, "n_layer": 2, "n_head": 4}
#: name → (prefix of transformers' classes, prefix of the configuration's class, settings beyond the sizes)
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "GPT-NeoX (Pythia)": ("GPTNeoX", "GPTNeoX", {}),
    "Llama": ("Llama", "Llama", GROUPED),
    "Mistral, sliding window": ("Mistral", "Mistral", {**GROUPED, "sliding_window": 4}),
    "Mixtral": ("Mixtral", "Mixtral", {**GROUPED, "num_local_experts": 2}),
    "Qwen2": ("Qwen2", "Qwen2", GROUPED),
    "Qwen2, window in some layers": (
        "Qwen2", "Qwen2", {**GROUPED, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "Qwen3": ("Qwen3", "Qwen3", {**GROUPED, "head_dim": 8}),
    "Gemma": ("Gemma", "Gemma", {**GROUPED, "head_dim": 8}),
    "Gemma-3, sliding window": ("Gemma3", "Gemma3Text", {**GROUPED, "head_dim": 8, "sliding_window": 4}),
    "OLMo-2": ("Olmo2", "Olmo2", GROUPED),
    "Phi": ("Phi", "Phi", {}),
    "Phi-3": ("Phi3", "Phi3", GROUPED),
    "OPT": ("OPT", "OPT", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "Gemma-2 without capped logits": (
        "Gemma2", "Gemma2",
        {**GROUPED, "head_dim": 8, "sliding_window": 4, "attn_logit_softcapping": 0.5,
         "final_logit_softcapping": None},
    ),
    "Gemma-2": (
        "Gemma2", "Gemma2",
        {**GROUPED, "head_dim": 8, "sliding_window": 4, "attn_logit_softcapping": 0.5,
         "final_logit_softcapping": 3.0},
    ),
    "Cohere": ("Cohere", "Cohere", {**GROUPED, "logit_scale": 0.3}),
    "Cohere-2": ("Cohere2", "Cohere2", {**GROUPED, "logit_scale": 0.3, "sliding_window": 4}),
    "Granite": ("Granite", "Granite", {**GROUPED, "logits_scaling": 4.0, "attention_multiplier": 0.2}),
    "NanoChat": ("NanoChat", "NanoChat", {**GROUPED, "final_logit_softcapping": 0.7}),
    "MiniCPM-3": (
        "MiniCPM3", "MiniCPM3",
        {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
         "v_head_dim": 12, "dim_model_base": 8, "scale_emb": 1.0},
    ),
    "Gemma-3n": (
        "Gemma3n", "Gemma3nText",
        {**GROUPED, "num_hidden_layers": 4, "head_dim": 8, "sliding_window": 4, "num_kv_shared_layers": 2,
         "layer_types": ["full_attention", "sliding_attention"] * 2, "vocab_size_per_layer_input": 101,
         "hidden_size_per_layer_input": 8, "laurel_rank": 4, "activation_sparsity_pattern": None},
    ),
    "Gemma-4": (
        "Gemma4", "Gemma4Text",
        {**GROUPED, "head_dim": 8, "per_layer_config": {"1": {"head_dim": 320}}, "sliding_window": 4,
         "layer_types": ["sliding_attention", "full_attention"], "vocab_size_per_layer_input": 101,
         "hidden_size_per_layer_input": 8, "final_logit_softcapping": 3.0},
    ),
    "DeepSeek-V2": (
        "DeepseekV2", "DeepseekV2",
        {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
         "qk_nope_head_dim": 8, "v_head_dim": 12, "n_routed_experts": 4, "num_experts_per_tok": 1, "n_group": 1,
         "topk_group": 1, "first_k_dense_replace": 1, "moe_intermediate_size": 16},
    ),
    "GLM-4.7-lite": (
        "Glm4MoeLite", "Glm4MoeLite",
        {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
         "qk_nope_head_dim": 8, "v_head_dim": 12, "n_routed_experts": 4, "num_experts_per_tok": 1,
         "mlp_layer_types": ["dense", "sparse"], "moe_intermediate_size": 16},
    ),
    "ModernBERT as a decoder": (
        "ModernBertDecoder", "ModernBertDecoder",
        {"local_attention": 4, "layer_types": ["sliding_attention", "full_attention"], "bos_token_id": 1,
         "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
    ),
    "RoBERTa as a decoder": (
        "Roberta", "Roberta",
        {"is_decoder": True, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    ),
    "GPT-OSS": (
        "GptOss", "GptOss",
        {**GROUPED, "head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 4},
    ),
    "DeepSeek-V3": (
        "DeepseekV3", "DeepseekV3",
        {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
         "qk_nope_head_dim": 8, "v_head_dim": 12, "n_routed_experts": 4, "num_experts_per_tok": 1, "n_group": 1,
         "topk_group": 1, "first_k_dense_replace": 1},
    ),
    "Llama-4, chunks": (
        "Llama4", "Llama4Text",
        {**GROUPED, "head_dim": 8, "attention_chunk_size": 4, "num_local_experts": 1, "intermediate_size_mlp": 48,
         "no_rope_layers": [1, 0]},
    ),
    "Llama, heads of 320": ("Llama", "Llama", {**GROUPED, "head_dim": 320}),
    "LongCat-Flash": (
        "LongcatFlash", "LongcatFlash",
        {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
         "head_dim": 8, "expert_ffn_hidden_size": 16, "n_routed_experts": 4, "zero_expert_num": 1, "moe_topk": 2},
    ),
    "JetMoe": (
        "JetMoe", "JetMoe",
        {**GROUPED, "kv_channels": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "PhiMoE, sliding window": (
        "Phimoe", "Phimoe", {**GROUPED, "sliding_window": 4, "num_local_experts": 2},
    ),
    "Qwen2-MoE, window in some layers": (
        "Qwen2Moe", "Qwen2Moe",
        {**GROUPED, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2, "num_experts": 4,
         "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    ),
    "GPT-J": ("GPTJ", "GPTJ", {**_OLD, "n_positions": 64, "rotary_dim": 4}),  # written out before transformers 5.24
    "GPT-Neo, local layers": (
        "GPTNeo", "GPTNeo",
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 4},
    ),
    "XGLM": (
        "XGLM", "XGLM",
        {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48, "scale_embedding": False},
    ),
    "BLOOM": ("Bloom", "Bloom", {"n_layer": 2, "n_head": 4}),
    "MPT": ("Mpt", "Mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64}),
    "Falcon": ("Falcon", "Falcon", {}),
    "Falcon, grouped heads": ("Falcon", "Falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    # Its eager attention adds the bias twice (transformers 5.24), so its twin is attached with eager attention too.
    "Falcon with ALiBi": ("Falcon", "Falcon", {"alibi": True, "attn_implementation": "eager"}),
}  # fmt: skip
REFUSED: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "DiffLlama": ("DiffLlama", "DiffLlama", GROUPED, "has two attention matrices a head"),
}  # fmt: skip


def pair(model: str, config: str, more: dict[str, Any]) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The model under transformers' eager attention, and a copy to attach."""
    settings = getattr(transformers, f"{config}Config")(**{**SIZES, **more})
    kind = getattr(transformers, f"{model}ForCausalLM")
    return twins(kind, settings)
