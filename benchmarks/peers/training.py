"""A training step of a GPT-2 and its peers: transformers' model in the same loop, and a model written for this purpose.

The peers have the same sizes and start from weights as large; rows, loss, clipping and AdamW are the same.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.common.problem import Problem
from symground.models import create
from symground.models.architectures import unpadded
from symground.ops.common import extension
from symground.running import keep_freed_memory
from symground.training import Hardware, TrainSettings
from symground.training.step import Trainer, optimizer_of
from symground.training.workers import Workers

Run = Callable[[], Any]
_LIFELONG = ExitStack()
STAGE = "training step"
SYMGROUND, COMPILED = "symground", "symground, torch.compile"
KEPT, GIVEN_BACK = "memory kept", "memory given back"
TRANSFORMERS, NANOGPT = "transformers, SDPA", "a nanoGPT-style model"
PEERS = (SYMGROUND, COMPILED, TRANSFORMERS, NANOGPT)


@dataclass(frozen=True)
class Shape(Problem):
    """A preset, and the rows of a step."""

    model: str = "gpt2-4l"
    B: int = 24
    T: int = 128
    vocabulary: int = 12_714
    """Words of the vocabulary; the default is that of Eng-NA and Eng-UK."""
    precision: str = "float32"

    def __str__(self) -> str:
        half = "" if self.precision == "float32" else f" {self.precision}"
        return f"{self.model} B{self.B} T{self.T} V{self.vocabulary}{half}"

    @property
    def settings(self) -> TrainSettings:
        return TrainSettings(model=self.model, batch_size=self.B, length=self.T, precision=self.precision)


SHAPES = (Shape(), Shape(B=16, T=64, vocabulary=223), Shape("gpt2-4l-768", 2, 512, 12_714))


def batch(shape: Shape) -> tuple[Tensor, Tensor]:
    """Rows [B,T] and their next ids; some end early, as documents do."""
    g = torch.Generator().manual_seed(0)
    inputs, targets = (torch.randint(2, shape.vocabulary, (shape.B, shape.T), generator=g) for _ in range(2))
    targets[:: max(2, shape.B // 4), shape.T // 2 :] = -100
    return inputs, targets


class Block(nn.Module):
    """A layer of GPT-2."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, T, E = x.shape
        q, k, v = (z.view(B, T, self.heads, -1).transpose(1, 2) for z in self.qkv(self.norm1(x)).split(E, 2))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)  # [B,H,T,D]
        x = x + self.out(mixed.transpose(1, 2).reshape(B, T, E))
        up = functional.gelu(self.up(self.norm2(x)), approximate="tanh")
        return x + self.down(up)


class Small(nn.Module):
    """A GPT-2 in the style of nanoGPT: fused queries, keys and values, SDPA, and tied embeddings."""

    def __init__(self, vocabulary: int, positions: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(vocabulary, width), nn.Embedding(positions, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.5 * width**-0.5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return functional.linear(self.norm(x), self.words.weight)


def prepared(shape: Shape, device: str) -> dict[str, Run]:
    """Returns a training step of the peer. On a CPU freed memory is kept for all peers, as symground's loop does."""
    _LIFELONG.enter_context(keep_freed_memory(device == "cpu"))
    return {name: prepare(name, shape, device) for name in PEERS}


def prepare(name: str, shape: Shape, device: str) -> Run:
    """A training step of the peer of this name."""
    if name in (SYMGROUND, COMPILED):
        return _ours(shape, Hardware(device=device, compile=name == COMPILED))
    hugging = create(shape.model, shape.vocabulary, positions=shape.T)
    if name == TRANSFORMERS:
        hugging.set_attn_implementation("sdpa")
        return _theirs(hugging, lambda ids: hugging(input_ids=ids).logits, shape, device)
    config = hugging.config
    torch.manual_seed(0)
    small = Small(shape.vocabulary, shape.T, config.hidden_size, config.num_hidden_layers, config.num_attention_heads)
    return _theirs(small, small, shape, device)


def _ours(shape: Shape, hardware: Hardware) -> Run:
    inputs, targets = batch(shape)
    device = str(hardware.device)
    model = create(shape.model, shape.vocabulary, positions=shape.T).to(device).train()
    _LIFELONG.enter_context(unpadded(model))  # as the loop does
    trainer = Trainer(model, shape.settings, hardware, Workers(0, 1, torch.device(device)))
    return lambda: trainer.step(inputs, targets, 1e-4).loss.item()


def _theirs(model: nn.Module, logits_of: Callable[[Tensor], Tensor], shape: Shape, device: str) -> Run:
    model.to(device).train()
    optimizer = optimizer_of(model, shape.settings)
    ids, next_ids = (rows.to(device) for rows in batch(shape))

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=shape.precision == "bfloat16"):
            logits = logits_of(ids)
        loss = functional.cross_entropy(logits.flatten(0, 1).float(), next_ids.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return run


def seconds_alone(shape: Shape, keep: bool, rounds: int = 9) -> list[float]:
    """Seconds per step of symground in this process, with freed memory kept between steps or returned."""
    model = create(shape.model, shape.vocabulary, positions=shape.T).train()
    trainer = Trainer(model, shape.settings, Hardware(device="cpu"), Workers(0, 1, torch.device("cpu")))
    inputs, targets = batch(shape)
    seconds = []
    with unpadded(model), keep_freed_memory(keep):
        for _ in range(rounds + 2):
            since = time.perf_counter()
            float(trainer.step(inputs, targets, 1e-4).loss)
            seconds.append(time.perf_counter() - since)
    return seconds[2:]


if __name__ == "__main__":
    extension.library = None  # with it, no logits are materialised, and nothing large would be freed
    torch.set_num_threads(int(sys.argv[2]))
    print(seconds_alone(SHAPES[0], sys.argv[1] == KEPT))
