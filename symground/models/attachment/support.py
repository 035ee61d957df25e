"""The layers of a transformers decoder whose attention symground can compute; other kinds are refused by name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from symground.models.attachment.lookup import INSTEAD
from symground.models.hooks import Mixer
from symground.ops.attention.mixing import MAX_HEAD_SIZE

#: Models with ALiBi whose configuration does not mention it.
_ALIBI = ("Bloom", "Mpt")
#: Matches the class names of transformers' modules that mix positions.
_MIXES = re.compile("attention|attn|mixer|delta|recurrent|lightning|ssm|lstm|mamba|rwkv", re.IGNORECASE)


def attention_layers(model: PreTrainedModel) -> tuple[Mixer, ...]:
    name = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(
            f"model: {name} has an encoder and cross-attention, which symground does not support; {INSTEAD}"
        )
    if getattr(model.config.get_text_config(), "alibi", False) or type(model).__name__.startswith(_ALIBI):
        raise ValueError(
            f"model: {name} biases its scores by distance (ALiBi), which symground does not support; {INSTEAD}"
        )
    found = []
    for module in model.get_decoder().modules():
        layer = getattr(module, "layer_idx", None)
        if not type(module).__name__.endswith("Attention") or not isinstance(layer, int):
            continue
        config = getattr(module, "config", None)
        for applies, variant in _unlike(module, config):
            if applies:
                raise ValueError(f"model: {name} {variant}, which symground does not support; {INSTEAD}")
        heads = getattr(module, "num_heads", None) or getattr(config, "num_attention_heads", None)
        if config is None or not isinstance(heads, int):
            raise ValueError(_unknown(model, [type(module).__name__]))
        found.append(Mixer(layer, heads, module))
    if not found:
        raise ValueError(_unknown(model, _what_mixes(model)))
    return tuple(sorted(found, key=lambda mixer: mixer.layer))


def _unknown(model: PreTrainedModel, parts: Sequence[str]) -> str:
    return (
        f"model: the layers of {type(model).__name__} mix positions by {', '.join(parts)}: symground sees no heads "
        "there, since this is no attention with heads, or one that takes no attention function of transformers "
        f"(attn_implementation); {INSTEAD}"
    )


def _what_mixes(model: PreTrainedModel) -> list[str]:
    """Class names of the modules that mix positions, judged by name; if none matches, those of the layers."""
    decoder = model.get_decoder()
    layers = [part for part in decoder.modules() if isinstance(part, nn.ModuleList) and len(part)]
    inside = {type(part).__name__ for stack in layers for layer in stack for part in layer.modules()}
    named = sorted(name for name in inside if _MIXES.search(name) and not name.endswith(("Layer", "Block")))
    return (
        named or sorted({type(layer).__name__ for stack in layers[:1] for layer in stack}) or [type(decoder).__name__]
    )


def _unlike(module: nn.Module, config: Any) -> Iterator[tuple[bool, str]]:
    """For each difference from `ops.attention`: whether the attention module has it, and its name."""
    kind = type(module)
    crosses = getattr(module, "is_cross_attention", False) or "CrossAttention" in kind.__name__
    yield crosses, "has cross-attention"
    encodes = getattr(config, "is_decoder", True) is False
    follows = "lets text see what follows it" + (" (is_decoder=False in its configuration)" if encodes else "")
    yield getattr(module, "is_causal", True) is False, follows
    yield (getattr(module, "head_dim", None) or 0) > MAX_HEAD_SIZE, f"has heads wider than {MAX_HEAD_SIZE}"
    yield kind.__name__.startswith("DiffLlama"), "has two attention matrices a head"
    yield getattr(module, "indexer", None) is not None, "lets an indexer choose the keys that each query sees"
    window = getattr(config, "sliding_window", None)
    passes_window = "sliding_window" in inspect.getsource(kind.forward)
    yield (
        window is not None and not passes_window,
        "has a sliding window that its layers do not tell their attention function",
    )
