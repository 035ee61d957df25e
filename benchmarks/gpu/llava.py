"""A trace in the shape of LLaVA-1.5-7B and its peers: one image of 576 tokens, and text up to T tokens.

The trace is of the surprisal of the token after the last. The weights are random; learnt weights take the same time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.trace import EAGER, FROZEN, surprisal

Run = Callable[[], Any]
STAGE = "llava"
ROWS = "sg.trace, rows and flow"
ROWS_CHECKPOINTED = "sg.trace, rows and flow, activation checkpointing"
MATRICES_CHECKPOINTED = "sg.trace, all matrices, activation checkpointing"


@dataclass(frozen=True)
class Model:
    """The shape of LLaVA-1.5-7B: CLIP ViT-L/14 at 336 pixels, and Vicuna-7B."""

    T: int = 8192
    layers: int = 32
    heads: int = 32
    width: int = 4096
    inner: int = 11008
    vocabulary: int = 32064
    side: int = 24
    """Patches of the image, side × side."""
    tower: tuple[int, int, int] = (24, 1024, 16)
    """Layers, width and heads of the vision tower."""
    dtype: str = "bfloat16"
    device: str = "cuda"

    @property
    def row(self) -> dict[str, Any]:
        return {**asdict(self), "tower": list(self.tower), "image_tokens": self.side**2}

    def build(self) -> Any:
        from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

        layers, width, heads = self.tower
        config = LlavaConfig(
            vision_config=CLIPVisionConfig(
                hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=heads,
                image_size=14 * self.side, patch_size=14, projection_dim=width,
            ),
            text_config=LlamaConfig(
                vocab_size=self.vocabulary, hidden_size=self.width, intermediate_size=self.inner,
                num_hidden_layers=self.layers, num_attention_heads=self.heads, max_position_embeddings=2**16,
                pad_token_id=0, bos_token_id=None, eos_token_id=None,
            ),
            image_token_id=self.vocabulary - 1, vision_feature_layer=-2,
        )  # fmt: skip
        torch.manual_seed(0)
        with torch.device(self.device):
            model = LlavaForConditionalGeneration._from_config(config, dtype=getattr(torch, self.dtype))
        return model.eval().requires_grad_(False)

    def batch(self, model: Any) -> dict[str, Tensor]:
        g = torch.Generator().manual_seed(1)
        ids = torch.randint(1, self.vocabulary - 1, (1, self.T), generator=g)
        ids[:, 5 : 5 + self.side**2] = self.vocabulary - 1
        pixels = torch.randn(1, 3, 14 * self.side, 14 * self.side, generator=g)
        return {"input_ids": ids.to(self.device), "pixel_values": pixels.to(self.device, model.dtype)}


class Inputs:
    """The model and its batch. All peers share them, since no device has memory for two models of this size."""

    def __init__(self, m: Model) -> None:
        self.m, self.model = m, m.build()
        self.given, self.targets = m.batch(self.model), torch.tensor([7], device=m.device)

    def as_implemented(self, attention: str) -> Any:
        self.model.set_attn_implementation({"text_config": attention})
        return self.model


def _trace(x: Inputs, **how: Any) -> Run:
    from symground.analysis import trace
    from symground.models import attach

    return lambda: trace(attach(x.model), targets=x.targets, **how, **x.given)


def _frozen(x: Inputs) -> Run:
    """Forward and backward pass to the embeddings without a result, which every trace needs."""

    def run() -> Tensor:
        model = x.as_implemented("sdpa")
        found: list[Tensor] = []
        embedding = model.get_input_embeddings()
        hook = embedding.register_forward_hook(lambda *a: found.append(a[2].requires_grad_()))
        try:
            logits = model(**x.given, logits_to_keep=1, use_cache=False).logits
            return torch.autograd.grad(surprisal(logits, x.targets).sum(), found[0])[0]
        finally:
            hook.remove()

    return run


def _eager(x: Inputs) -> Run:
    def run() -> Tensor:
        model = x.as_implemented("eager")
        model.get_input_embeddings().weight.requires_grad_(True)
        try:
            out = model(**x.given, output_attentions=True, logits_to_keep=1, use_cache=False)
            grads = torch.autograd.grad(surprisal(out.logits, x.targets).sum(), out.attentions)
            return torch.stack([(a.detach() * g)[:, :, -1] for a, g in zip(out.attentions, grads, strict=True)])
        finally:
            model.get_input_embeddings().weight.requires_grad_(False)

    return run


PEERS: dict[str, Callable[[Inputs], Run]] = {
    ROWS: lambda x: _trace(x, saliency=False, rows=True),
    ROWS_CHECKPOINTED: lambda x: _trace(x, saliency=False, rows=True, checkpoint=True),
    MATRICES_CHECKPOINTED: lambda x: _trace(x, rows=True, checkpoint=True),
    FROZEN: _frozen,
    EAGER: _eager,
}
