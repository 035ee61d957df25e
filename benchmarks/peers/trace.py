"""A whole-model trace and its peers: a GPT-2 with random weights, and the surprisal of the token after each example.

Every peer computes the logits of the last position only, so that none computes logits that it does not read.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.problem import Problem

Run = Callable[[], Any]
EAGER, FROZEN = "Hugging Face eager + autograd.grad on attentions", "SDPA pass, frozen weights"
TRACE, CHECKPOINTED = "sg.trace", "sg.trace, activation checkpointing"
SALIENCY_ONLY = "symground, saliency only"


@dataclass(frozen=True)
class Model(Problem):
    """GPT-2's shape. The batch is B × T tokens."""

    B: int = 2
    T: int = 1024
    layers: int = 12
    heads: int = 12
    width: int = 768
    vocabulary: int = 50257
    dtype: str = "float32"
    device: str = "cpu"

    def build(self, attention: str) -> Any:
        from transformers import GPT2Config, GPT2LMHeadModel

        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=self.vocabulary, n_positions=self.T, n_embd=self.width, n_layer=self.layers, n_head=self.heads,
            attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0, use_cache=False, bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        model = GPT2LMHeadModel._from_config(config, attn_implementation=attention)
        return model.to(self.device, self.element).eval()

    def batch(self) -> tuple[Tensor, Tensor]:
        """ids [B,T] and targets [B]"""
        g = torch.Generator().manual_seed(1)
        ids = torch.randint(self.vocabulary, (self.B, self.T + 1), generator=g).to(self.device)
        return ids[:, :-1].contiguous(), ids[:, -1].contiguous()


def surprisal(logits: Tensor, targets: Tensor) -> Tensor:
    """[B], from logits [B,1,V]"""
    return torch.nn.functional.cross_entropy(logits[:, -1].float(), targets, reduction="none")


def _eager(m: Model) -> Run:
    model, (ids, targets) = m.build("eager"), m.batch()

    def run() -> list[Tensor]:
        out = model(ids, output_attentions=True, logits_to_keep=1)
        grads = torch.autograd.grad(surprisal(out.logits, targets).sum(), out.attentions)
        return [(a.detach() * g).sum(1).abs() for a, g in zip(out.attentions, grads, strict=True)]

    return run


def _frozen(m: Model) -> Run:
    """Forward and backward pass to the embeddings, which every trace needs."""
    model, (ids, targets) = m.build("sdpa").requires_grad_(False), m.batch()

    def run() -> Tensor:
        embedded = model.transformer.wte(ids).requires_grad_()
        logits = model(inputs_embeds=embedded, logits_to_keep=1).logits
        return torch.autograd.grad(surprisal(logits, targets).sum(), embedded)[0]

    return run


def _attached(m: Model) -> Any:
    from symground.models import attach

    return attach(m.build("eager"))


def _trace(m: Model, checkpoint: bool = False) -> Run:
    from symground.analysis import trace

    model, (ids, targets) = _attached(m), m.batch()
    return lambda: trace(model, ids, targets, checkpoint=checkpoint)


def _saliency_only(m: Model) -> Run:
    """The saliency probes with torch and transformers only, for machines without xarray and pandas."""
    from symground.models import mixers

    model, (ids, targets) = _attached(m).requires_grad_(False), m.batch()
    layers = mixers(model)

    def run() -> list[Tensor]:
        probes = [torch.zeros(1, device=m.device).expand(m.B, m.T, m.T).requires_grad_() for _ in layers]
        with ExitStack() as stack:
            for mixer, probe in zip(layers, probes, strict=True):
                stack.enter_context(mixer.tapped(saliency_probe=probe))
            logits = model(ids, logits_to_keep=1).logits
            return [s.abs() for s in torch.autograd.grad(surprisal(logits, targets).sum(), probes)]

    return run


PEERS: dict[str, Callable[[Model], Run]] = {
    EAGER: _eager,
    FROZEN: _frozen,
    TRACE: _trace,
    CHECKPOINTED: lambda m: _trace(m, checkpoint=True),
    SALIENCY_ONLY: _saliency_only,
}


def available() -> tuple[list[str], dict[str, str]]:
    """The peers that can run on this machine, and the others → the reason."""
    import importlib

    names, missing = list(PEERS), {}
    for name in (TRACE, CHECKPOINTED):
        try:
            importlib.import_module("symground.analysis")
        except ImportError as error:
            missing[f"trace: {name}"] = f"{error}"
            names.remove(name)
    return names, missing


def in_memory(name: str, model: dict[str, Any]) -> tuple[Run, Run]:
    """For `memory.py`: (one layer and few tokens to run first, in another model; the measured trace)."""
    m = Model(**model)
    small = Model(m.B, 16, 1, 2, 16, 101, m.dtype, m.device)
    return PEERS[name](small), PEERS[name](m)
