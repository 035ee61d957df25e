"""Blocks entered and left at random by several threads, against an oracle that applies each thread's blocks itself."""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel, PreTrainedModel

import symground as sg
from symground.models import mixers
from symground.models.hooks.mixers import head_outputs

IDS = torch.randint(2, 101, (2, 6), generator=torch.Generator().manual_seed(0))
KINDS = ("zero", "mean", "resample", "steer", "positions", "generator", "observe")
#: (layer, its heads' outputs [B,T,H,D]) → the changed outputs.
Change = Callable[[int, Tensor], Tensor]


@dataclass
class Opened:
    """An open block, and its effect according to the oracle."""

    thread: int
    end: Callable[[], None]
    change: Change | None
    seen: dict[int, Tensor] = field(default_factory=dict)
    """The heads' outputs that an observing block received."""


class Oracle:
    """The same model without symground, with plain hooks before its output projections."""

    def __init__(self, model: GPT2LMHeadModel) -> None:
        self.model = GPT2LMHeadModel._from_config(copy.deepcopy(model.config), attn_implementation="eager").eval()
        self.model.load_state_dict(model.state_dict())

    def run(self, changes: list[Change], ids: Tensor = IDS) -> tuple[Tensor, dict[int, Tensor]]:
        """The logits, and the heads' outputs after the changes."""
        outputs: dict[int, Tensor] = {}

        def before(layer: int, _: Any, args: tuple[Tensor]) -> tuple[Tensor]:
            heads = args[0].unflatten(-1, (3, 8))
            for change in changes:
                heads = change(layer, heads)
            outputs[layer] = heads
            return (heads.flatten(2),)

        with ExitStack() as stack, torch.no_grad():
            for i, block in enumerate(self.model.transformer.h):
                stack.callback(block.attn.c_proj.register_forward_pre_hook(partial(before, i)).remove)
            return self.model(ids).logits, outputs


def replaced(pair: tuple[int, int], fill: dict[int, Tensor] | None, where: Tensor | None = None) -> Change:
    def change(layer: int, heads: Tensor) -> Tensor:
        if layer != pair[0]:
            return heads
        heads, own = heads.clone(), heads
        heads[..., pair[1], :] = 0 if fill is None else fill[layer][..., pair[1], :]
        return heads if where is None else torch.where(where[:, None, None], heads, own)

    return change


def multiplied(pair: tuple[int, int], factor: float) -> Change:
    layer, head = pair
    factors = torch.ones(3, 1)
    factors[head] = factor
    return lambda at, heads: heads * factors if at == layer else heads


def opened(model: GPT2LMHeadModel, oracle: Oracle, kind: str, draw: random.Random, before: list[Opened]) -> Opened:
    """Enter a block of this kind in the calling thread; ``before`` are the blocks that are open there."""
    pair = draw.randrange(3), draw.randrange(3)
    changes = [one.change for one in before if one.change is not None]
    thread = threading.get_ident()
    block: AbstractContextManager[Any]
    if kind == "observe":
        block = head_outputs(mixers(model))
        seen = block.__enter__()
        return Opened(thread, lambda: block.__exit__(None, None, None) and None, None, seen)
    if kind == "generator":

        def suspended() -> Iterator[None]:
            with sg.ablate(model, [pair]):
                yield

        made = suspended()
        next(made)
        return Opened(thread, made.close, replaced(pair, None))
    if kind == "steer":
        factor = draw.choice([0.5, 2.0])
        block, change = sg.steer(model, [pair], factor), multiplied(pair, factor)
    elif kind == "positions":
        where = torch.arange(6) > 2
        block, change = sg.ablate(model, [pair], positions=where), replaced(pair, None, where)
    else:
        _, outputs = oracle.run(changes, IDS.flip(0))
        fill = {i: x.mean((0, 1)) for i, x in outputs.items()} if kind == "mean" else outputs
        reference = None if kind == "zero" else IDS.flip(0)
        block, change = sg.ablate(model, [pair], kind, reference), replaced(pair, None if kind == "zero" else fill)
    block.__enter__()
    return Opened(thread, lambda: block.__exit__(None, None, None) and None, change)


def state(model: PreTrainedModel) -> list[Any]:
    return [
        (m, set(vars(m)), vars(m).get("forward"), list(m._forward_hooks), list(m._forward_pre_hooks), m.training)
        for m in model.modules()
    ] + [(p.requires_grad, p.grad) for p in model.parameters()]


@pytest.mark.parametrize("seed", range(12))
def test_blocks_in_any_order_over_threads(gpt2: GPT2LMHeadModel, seed: int) -> None:
    """After every step, each thread's logits are those of the oracle with exactly the blocks that are open there."""
    draw, oracle = random.Random(seed), Oracle(gpt2)
    before, untouched = gpt2(IDS).logits, state(gpt2)
    with ExitStack() as stack:
        threads = [stack.enter_context(ThreadPoolExecutor(1)) for _ in range(3)]
        open_in: list[list[Opened]] = [[] for _ in threads]

        def check(here: list[Opened]) -> None:
            with torch.no_grad():
                found = gpt2(IDS).logits
            expected, outputs = oracle.run([one.change for one in here if one.change is not None])
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
            for one in here:
                if one.change is None:
                    for layer, heads in outputs.items():
                        torch.testing.assert_close(one.seen[layer], heads, atol=1e-5, rtol=1e-4)
            if draw.random() < 0.3:
                traced = sg.trace(gpt2, IDS, torch.tensor([5, 6]), saliency=False, checkpoint=draw.random() < 0.5)
                surprisal = -expected[:, -1].log_softmax(-1)[torch.arange(2), torch.tensor([5, 6])]
                torch.testing.assert_close(torch.from_numpy(traced.surprisal.values), surprisal, atol=1e-4, rtol=1e-4)

        for _ in range(14):
            at = draw.randrange(3)
            if sum(map(len, open_in)) and draw.random() < 0.45:
                owner = draw.choice([i for i in range(3) if open_in[i]])
                ended = open_in[owner].pop(draw.randrange(len(open_in[owner])))
                threads[at].submit(ended.end).result()  # possibly not the thread that entered it
            else:
                kind = draw.choice(KINDS)
                made = threads[at].submit(opened, gpt2, oracle, kind, draw, list(open_in[at])).result()
                open_in[at].append(made)
            for thread, here in zip(threads, open_in, strict=True):
                thread.submit(check, list(here)).result()
        for here in open_in:
            for one in here:
                one.end()
    assert torch.equal(gpt2(IDS).logits, before)
    assert all(mixer.tap.idle for mixer in mixers(gpt2))
    assert state(gpt2) == untouched
