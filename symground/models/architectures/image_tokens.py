"""Language models that read images: ids beyond the vocabulary are patches, embedded by a learnt projection.

An image is a prefix of P ids (`symground.data.sequences.image_set`), so every function that accepts ids accepts images:
training, scoring with shared prefixes, traces, interventions, sweeps and generation. The frozen features of the patches
are not part of the model's weights; :func:`set_images` sets them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Mamba2Config,
    Mamba2ForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from symground.models.architectures.lstm import LSTMConfig, LSTMForCausalLM


class PatchEmbedding(nn.Embedding):
    """Word embeddings [V,D], followed by the projections of patch features."""

    def __init__(self, words: nn.Embedding, width: int) -> None:
        super().__init__(words.num_embeddings, words.embedding_dim, words.padding_idx, _weight=words.weight)
        self.projection = nn.Linear(width, words.embedding_dim)
        self.features: Tensor | None = None
        """[N·P,E] in host memory, possibly memory-mapped; only the rows of a batch are copied to its device."""

    def forward(self, input: Tensor) -> Tensor:
        """ids [B,T] → [B,T,D].

        Raises:
            ValueError: an id is beyond the vocabulary, and no images are set.
        """
        if self.features is None:
            if bool((input >= self.num_embeddings).any()):
                raise ValueError(
                    f"input_ids: id {int(input.max())} is a patch beyond the vocabulary of {self.num_embeddings}, and "
                    "the model has no images; symground.models.set_images(model, features) sets them"
                )
            return super().forward(input)
        is_patch = input >= self.num_embeddings
        words = super().forward(input.masked_fill(is_patch, 0))
        # All positions are looked up: selecting the patches would wait for the GPU to count them.
        at = (input - self.num_embeddings).clamp(min=0).to(self.features.device)
        patches: Tensor = self.projection(self.features[at].to(words.device, words.dtype))
        return torch.where(is_patch[..., None], patches, words)


class _ReadsImages:
    """Adds to a causal language model an embedding of patches with ``config.image_width`` features."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        self.set_input_embeddings(PatchEmbedding(self.get_input_embeddings(), config.image_width))  # type: ignore[attr-defined]
        self.post_init()  # type: ignore[attr-defined]


class ImageGPT2Config(GPT2Config):
    model_type = "symground-image-gpt2"
    image_width: int = 768


class ImageGPT2ForCausalLM(_ReadsImages, GPT2LMHeadModel):
    config_class = ImageGPT2Config


class ImageMamba2Config(Mamba2Config):
    model_type = "symground-image-mamba2"
    image_width: int = 768


class ImageMamba2ForCausalLM(_ReadsImages, Mamba2ForCausalLM):
    config_class = ImageMamba2Config


class ImageLSTMConfig(LSTMConfig):
    model_type = "symground-image-lstm"
    image_width: int = 768


class ImageLSTMForCausalLM(_ReadsImages, LSTMForCausalLM):
    config_class = ImageLSTMConfig  # type: ignore[assignment]


_MODELS: dict[type[PreTrainedConfig], tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {
    GPT2Config: (ImageGPT2Config, ImageGPT2ForCausalLM),
    Mamba2Config: (ImageMamba2Config, ImageMamba2ForCausalLM),
    LSTMConfig: (ImageLSTMConfig, ImageLSTMForCausalLM),
}
for _config, _model in _MODELS.values():
    AutoConfig.register(_config.model_type, _config)
    AutoModelForCausalLM.register(_config, _model)


def with_images(config: PreTrainedConfig, image_width: int) -> PreTrainedModel:
    """A new model of this configuration that reads patches of ``image_width`` features."""
    config_class, model_class = _MODELS[type(config)]
    settings = {name: value for name, value in config.to_dict().items() if name not in ("model_type", "architectures")}
    settings["image_width"] = image_width
    model = model_class(config_class(**settings))
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, PatchEmbedding)
    with torch.no_grad():  # a patch with features of variance 1 then has the norm of a word
        embedding.projection.weight.mul_(image_width**-0.5)
        embedding.projection.bias.zero_()
    return model


def set_images(model: PreTrainedModel, features: NDArray[Any] | Tensor) -> None:
    """Set the patch features of the ids beyond the vocabulary.

    Args:
        model: a model that reads images.
        features: [N,P,E], possibly memory-mapped; id V + i·P + p is patch p of image i. They are not copied.

    Raises:
        ValueError: the model reads no images, or the features have another shape or width.
    """
    embedding = model.get_input_embeddings()
    if not isinstance(embedding, PatchEmbedding):
        raise ValueError(f"model: {type(model).__name__} reads no images; one trained on a corpus with images does")
    width = embedding.projection.in_features
    if features.ndim != 3 or features.shape[-1] != width:
        raise ValueError(f"features: expected [N,P,{width}], got {list(features.shape)}")
    table = torch.from_numpy(features) if isinstance(features, np.ndarray) else features
    embedding.features = table.flatten(0, 1)
