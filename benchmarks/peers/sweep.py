"""The effect of every head of a 12-layer GPT-2 with random weights over the matched probes, and its peers."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.problem import Problem
from benchmarks.peers.score import Grid

Run = Callable[[], Any]
EXACT, LAST = "sg.sweep_heads", "sg.sweep_heads, at the prediction position"
FIRST_ORDER = "sg.sweep_heads, first-order"
HOOKED, LENS = "one hooked forward a head", "TransformerLens, one hooked forward a head"


@dataclass(frozen=True)
class Sweep(Problem):
    contexts: int = 8
    nouns: int = 32
    preset: str = "gpt2-12l-768"
    vocabulary: int = 9000
    peer_heads: int = 6
    """The number of heads that a peer silences in a round; each takes the same time."""
    device: str = "cpu"

    @property
    def grid(self) -> Grid:
        return Grid(self.contexts, self.nouns, self.preset, self.vocabulary, self.device)


def _ours(sweep: Sweep, **options: Any) -> Run:
    from symground.analysis import sweep_heads

    model, probes = sweep.grid.model(attached=True), sweep.grid.probes()
    return lambda: sweep_heads(model, probes, **options)


def _batches(sweep: Sweep, model: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """(ids [B,T], targets [B]) in batches of one length, with as many rows as symground's own batches."""
    from symground.analysis.probing import MEMORY

    examples = sweep.grid.probes().matched()
    lengths = examples.prediction + 1
    for length in lengths.unique().tolist():
        rows = MEMORY[sweep.device] // (16 * model.config.n_embd * 4 * length)
        for part in (lengths == length).nonzero()[:, 0].split(max(1, rows)):
            yield examples.input_ids[part, :length].to(sweep.device), examples.targets[part].to(sweep.device)


def _hooked(sweep: Sweep) -> Run:
    model = sweep.grid.model(attached=False)
    batches = list(_batches(sweep, model))
    layers, heads = model.config.n_layer, model.config.n_head
    size = model.config.n_embd // heads

    def silence(head: int, _module: Any, args: tuple[Tensor]) -> tuple[Tensor]:
        x = args[0].clone()
        x[..., head * size : (head + 1) * size] = 0
        return (x,)

    @torch.inference_mode()
    def run() -> list[float]:
        found = []
        for i in range(sweep.peer_heads):
            layer, head = divmod(i * (layers * heads) // sweep.peer_heads, heads)
            projection = model.transformer.h[layer].attn.c_proj
            hook = projection.register_forward_pre_hook(partial(silence, head))
            try:
                for ids, targets in batches:
                    logits = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, 0]
                    found.append(torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum").item())
            finally:
                hook.remove()
        return found

    return run


def _lens(sweep: Sweep) -> Run:
    from transformer_lens.model_bridge import TransformerBridge

    plain, tokenizer = sweep.grid.model(attached=False), sweep.grid.tokenizer()
    layers, heads = plain.config.n_layer, plain.config.n_head
    batches = list(_batches(sweep, plain))
    with tempfile.TemporaryDirectory() as folder:  # it reads the configuration from a folder or a hub
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        model = TransformerBridge.boot_transformers(folder, hf_model=plain, tokenizer=tokenizer, device=sweep.device)

    def silence(head: int, z: Tensor, hook: Any) -> Tensor:  # z [B,T,H,D]
        z[:, :, head] = 0
        return z

    @torch.inference_mode()
    def run() -> list[float]:
        found = []
        for i in range(sweep.peer_heads):
            layer, head = divmod(i * (layers * heads) // sweep.peer_heads, heads)
            hooks = [(f"blocks.{layer}.attn.hook_z", partial(silence, head))]
            for ids, targets in batches:
                logits = model.run_with_hooks(ids, fwd_hooks=hooks, logits_to_keep=1)[:, -1]
                found.append(torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum").item())
        return found

    return run


PEERS: dict[str, Callable[[Sweep], Run]] = {
    EXACT: partial(_ours, method="exact"),
    LAST: partial(_ours, method="exact", positions="prediction"),
    FIRST_ORDER: partial(_ours, method="first-order"),
    HOOKED: _hooked,
    LENS: _lens,
}


def pairs(name: str, sweep: Sweep) -> int:
    """The number of (head, example) pairs of a peer in a round."""
    model = sweep.grid.model(attached=False)
    heads = sweep.peer_heads if name in (HOOKED, LENS) else model.config.n_layer * model.config.n_head
    return heads * sweep.contexts * sweep.nouns


def available() -> tuple[list[str], dict[str, str]]:
    """The peers that can run on this machine, and the others → the reason."""
    try:
        importlib.import_module("transformer_lens.model_bridge")
    except Exception as error:
        return [name for name in PEERS if name != LENS], {f"sweep: {LENS}": f"{type(error).__name__}: {error}"}
    return list(PEERS), {}
