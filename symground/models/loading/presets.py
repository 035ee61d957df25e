"""Named sizes of the study's architectures, and smaller sizes for a CPU."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Mamba2Config, Mamba2ForCausalLM, PreTrainedModel

from symground.errors import choice, integer
from symground.models.architectures import LSTMConfig, LSTMForCausalLM, initialize_decay, with_images
from symground.models.attachment import attach


def _gpt2(layers: int, size: int, heads: int) -> GPT2Config:
    # Dropout is 0 because the analyses need it, and one pass over a large corpus does not overfit. At small widths, an
    # initial standard deviation of half 1/√fan_in let the link emerge earlier than GPT-2's 0.02.
    return GPT2Config(
        n_layer=layers, n_embd=size, n_head=heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        activation_function="gelu_pytorch_tanh",  # GPT-2's GELU as one operation
        initializer_range=0.5 * size**-0.5, bos_token_id=None, eos_token_id=None, use_cache=False,
    )  # fmt: skip


def _mamba2(layers: int, size: int, heads: int, state: int, steps: tuple[float, float]) -> Mamba2Config:
    return Mamba2Config(
        num_hidden_layers=layers, hidden_size=size, num_heads=heads, head_dim=2 * size // heads, state_size=state,
        n_groups=1, expand=2, time_step_min=steps[0], time_step_max=steps[1], initializer_range=0.5 * size**-0.5,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=None, use_cache=False,
    )  # fmt: skip


#: Decay rates -A of a new Mamba-2. The published rates of 1 to 16, with dt of 0.001 to 0.1, forget and learn too slowly
#: for short texts: they learnt no link in 1,300 steps, whereas slow decay and long dt learnt it in 800.
_DECAY = {"small": (0.02, 1.0), "published": (1.0, 16.0)}

_FAMILIES: dict[str, tuple[type[Any], type[Any]]] = {
    "gpt2": (GPT2Config, GPT2LMHeadModel),
    "mamba2": (Mamba2Config, Mamba2ForCausalLM),
    "lstm": (LSTMConfig, LSTMForCausalLM),
}

#: name → configuration without a vocabulary. "-768" is the study's width (GPT-2's default); other sizes fit a CPU.
PRESETS: dict[str, GPT2Config | Mamba2Config | LSTMConfig] = {
    "gpt2-4l": _gpt2(4, 128, 4),
    "gpt2-12l": _gpt2(12, 128, 4),
    "gpt2-18l": _gpt2(18, 128, 4),
    "gpt2-4l-768": _gpt2(4, 768, 12),
    "gpt2-12l-768": _gpt2(12, 768, 12),
    "gpt2-18l-768": _gpt2(18, 768, 12),
    "mamba2-4l": _mamba2(4, 160, 10, 128, (0.1, 1.0)),
    "mamba2-12l": _mamba2(12, 160, 10, 128, (0.1, 1.0)),
    "mamba2-4l-768": _mamba2(4, 768, 24, 128, (0.001, 0.1)),
    "mamba2-12l-768": _mamba2(12, 768, 24, 128, (0.001, 0.1)),
    "lstm-1l": LSTMConfig(num_hidden_layers=1, hidden_size=160),
    "lstm-1l-304": LSTMConfig(num_hidden_layers=1, hidden_size=304),
    "lstm-4l": LSTMConfig(num_hidden_layers=4, hidden_size=160),
    "lstm-4l-768": LSTMConfig(num_hidden_layers=4, hidden_size=768),
}


def create(
    preset: str,
    vocab_size: int,
    seed: int = 0,
    positions: int = 1024,
    pad_token_id: int = 1,
    image_width: int | None = None,
) -> PreTrainedModel:
    """A randomly initialised, attached model of the named size.

    Args:
        preset: a name in `PRESETS`.
        vocab_size: the number of ids in the vocabulary.
        seed: the seed of the initial weights; the state of torch's global generator does not change.
        positions: the longest sequence (Transformers only).
        pad_token_id: the vocabulary's padding id.
        image_width: the number of features of a patch, for a model that reads images; None for text only.

    Raises:
        ValueError: the preset is unknown (the message lists all), or the vocabulary has fewer than two ids.
    """
    choice("preset", preset, PRESETS)
    vocab_size, seed = integer("vocab_size", vocab_size, 2), integer("seed", seed)
    positions, pad_token_id = integer("positions", positions, 1), integer("pad_token_id", pad_token_id)
    image_width = None if image_width is None else integer("image_width", image_width, 1)
    settings = {**PRESETS[preset].to_dict(), "vocab_size": vocab_size, "pad_token_id": pad_token_id}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel
        config_class, model_class = next(of for name, of in _FAMILIES.items() if preset.startswith(name))
        if config_class is GPT2Config:
            settings["n_positions"] = positions
        config = config_class(**settings)
        model = model_class(config) if image_width is None else with_images(config, image_width)
        if config_class is Mamba2Config:
            initialize_decay(model, *_DECAY["published" if preset.endswith("-768") else "small"])
    return attach(model)


def parameter_count(preset: str, vocab_size: int, positions: int = 1024) -> int:
    """The number of parameters of the named size, with tied ones counted once; arguments and errors as in `create`."""
    return sum(p.numel() for p in create(preset, vocab_size, positions=positions).parameters())
