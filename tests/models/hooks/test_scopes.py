"""Blocks in any order and in any thread: each pass sees the blocks of its own thread, and no others."""

from __future__ import annotations

import _thread
import asyncio
import copy
import io
import pickle
import random
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint
from transformers import GPT2LMHeadModel, PreTrainedModel

import symground as sg
from symground.models import mixers
from symground.models.hooks.mixers import head_outputs
from tests.tiny import llama

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


def test_one_object_serves_several_threads(gpt2: GPT2LMHeadModel) -> None:
    plain, silent = gpt2(IDS).logits, sg.ablate(gpt2, [(1, 1)])
    with ThreadPoolExecutor(1) as other:
        with silent:
            silenced = gpt2(IDS).logits
            assert torch.equal(other.submit(lambda: gpt2(IDS).logits).result(), plain)
            other.submit(silent.__enter__).result()
            assert torch.equal(other.submit(lambda: gpt2(IDS).logits).result(), silenced)
        assert torch.equal(gpt2(IDS).logits, plain)  # this thread's block has ended, the other thread's has not
        assert torch.equal(other.submit(lambda: gpt2(IDS).logits).result(), silenced)
        silent.__exit__(None, None, None)  # ends the block that the other thread entered
        assert torch.equal(other.submit(lambda: gpt2(IDS).logits).result(), plain)


def test_tasks_see_their_own_blocks_and_those_they_were_started_in(gpt2: GPT2LMHeadModel) -> None:
    def logits(*blocks: AbstractContextManager[None]) -> Tensor:
        with ExitStack() as stack:
            for block in blocks:
                stack.enter_context(block)
            return gpt2(IDS).logits

    first, second = sg.ablate(gpt2, [(0, 1)]), sg.ablate(gpt2, [(1, 2)])
    plain, one, two, both = logits(), logits(first), logits(second), logits(first, second)

    async def within(block: AbstractContextManager[None], wait: asyncio.Event, tell: asyncio.Event) -> Tensor:
        with block:
            tell.set()
            await wait.wait()
            return gpt2(IDS).logits

    async def run() -> None:
        a, b = asyncio.Event(), asyncio.Event()
        found = await asyncio.gather(within(first, a, b), within(second, b, a))
        assert torch.equal(found[0], one)
        assert torch.equal(found[1], two)
        assert torch.equal(gpt2(IDS).logits, plain)
        with first:
            now, later = asyncio.Event(), asyncio.Event()
            now.set()
            assert torch.equal(await asyncio.create_task(within(second, now, later)), both)
            child = asyncio.create_task(within(second, later := asyncio.Event(), asyncio.Event()))
            await asyncio.sleep(0)
        later.set()
        assert torch.equal(await child, two)  # the block in which the task started has ended

    asyncio.run(run())
    with first:
        asyncio.run(run_within(gpt2, one))
    assert torch.equal(gpt2(IDS).logits, plain)


async def run_within(model: GPT2LMHeadModel, expected: Tensor) -> None:
    assert torch.equal(model(IDS).logits, expected)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("where", ["within", "after", "in another", "in a thread"])
def test_what_runs_again_on_the_way_back_is_asked_what_it_was_asked_before(reentrant: bool, where: str) -> None:
    """On a GPU, the backward pass runs in threads of its own."""

    def gradient(checkpointing: bool, asked: list[tuple[int, int]]) -> Tensor:
        model = llama().train()
        if checkpointing:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
            model.enable_input_require_grads()
        with sg.ablate(model, asked):
            loss = model(IDS, use_cache=False).logits.logsumexp(-1).sum()
            if where == "within":
                loss.backward()
        with sg.ablate(model, [(1, 1)] if where == "in another" else []):
            if where == "in a thread":
                with ThreadPoolExecutor(1) as other:
                    other.submit(loss.backward).result()
            elif where != "within":
                loss.backward()
        found: Tensor = model.model.embed_tokens.weight.grad
        return found

    for asked in ([], [(1, 0), (2, 3)]):
        torch.testing.assert_close(gradient(True, asked), gradient(False, asked))


def test_layers_checkpointed_by_hand_are_refused_where_it_is_not_known_what_they_were_asked() -> None:
    """The backward pass runs in a thread that Python did not start, like autograd's on a GPU."""
    model, found = llama().train(), list[str]()
    done = threading.Event()

    def loss() -> Tensor:
        x = model.model.embed_tokens(IDS)
        places = model.model.rotary_emb(x, torch.arange(6)[None])
        for layer in model.model.layers:
            x = checkpoint(layer, x, position_embeddings=places, attention_mask=None, use_reentrant=False)
        return x.sum()

    def backward(made: Tensor) -> None:
        try:
            made.backward()
        except ValueError as error:
            found.append(str(error))
        done.set()

    with sg.ablate(model, [(1, 0)]):
        loss().backward()  # in the block and in its thread
        _thread.start_new_thread(backward, (loss(),))
        assert done.wait(60)
    assert len(found) == 1
    assert "it is not known what was asked of it; use model.gradient_checkpointing_enable()" in found[0]
    done.clear()
    _thread.start_new_thread(backward, (loss(),))
    assert done.wait(60)
    assert len(found) == 1


def test_a_traces_layers_run_again_as_they_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    model, targets = llama(), torch.tensor([5, 6])
    with sg.ablate(model, [(1, 0)]):
        expected = sg.trace(model, IDS, targets)
    backward = torch.autograd.backward

    def elsewhere(*args: Any, **kwargs: Any) -> None:
        with ThreadPoolExecutor(1) as other:
            other.submit(backward, *args, **kwargs).result()

    monkeypatch.setattr(torch.autograd, "backward", elsewhere)
    with sg.ablate(model, [(1, 0)]):
        found = sg.trace(model, IDS, targets, checkpoint=True)
    assert found.equals(expected) or all(
        torch.allclose(torch.tensor(found[n].values), torch.tensor(expected[n].values)) for n in expected
    )


def test_compiled_in_one_graph_and_never_stale() -> None:
    model, count = llama(), CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=count, fullgraph=True)
    pairs = [[(1, 0)], [(1, 3)], [(1, 0), (1, 2)], [(0, 0)]]

    def check() -> None:
        with torch.no_grad():
            torch.testing.assert_close(compiled(IDS, use_cache=False).logits, model(IDS, use_cache=False).logits)

    check()
    with ThreadPoolExecutor(1) as other:
        for heads in pairs:
            with sg.ablate(model, heads):
                check()
                other.submit(check).result()
                with sg.steer(model, [(2, 1)], 3.0):
                    check()
                check()
            check()
            other.submit(check).result()
    made = count.frame_count
    for heads in pairs:
        with sg.ablate(model, heads):
            check()
    assert count.frame_count == made  # equal requests share one graph
    first, second = sg.ablate(model, [(1, 0)]), sg.ablate(model, [(1, 0)], "mean", IDS)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    check()
    second.__exit__(None, None, None)
    check()
    torch._dynamo.reset()


def test_copies_of_a_model_take_nothing_of_a_block_along(gpt2: GPT2LMHeadModel) -> None:
    plain, targets = gpt2(IDS).logits, torch.tensor([5, 6])
    expected = sg.trace(gpt2, IDS, targets)
    with sg.ablate(gpt2, [(1, 1)]):
        file = io.BytesIO()
        torch.save(gpt2, file)
        file.seek(0)
        for other in (
            copy.deepcopy(gpt2), pickle.loads(pickle.dumps(gpt2)), torch.load(file, weights_only=False),
        ):  # fmt: skip
            assert torch.equal(other(IDS).logits, plain)
            assert sg.trace(other, IDS, targets).equals(expected)
            with sg.ablate(other, [(0, 0)]):
                silenced = other(IDS).logits
            assert not torch.equal(silenced, plain)
        silenced_here = gpt2(IDS).logits
    assert not torch.equal(silenced_here, plain)
    assert torch.equal(gpt2(IDS).logits, plain)


def test_what_can_be_asked_once_is_refused_twice(gpt2: GPT2LMHeadModel) -> None:
    mixer = mixers(gpt2)[1]
    probes = [torch.zeros(1).expand(2, 6, 6).requires_grad_() for _ in range(2)]
    two = ExitStack()
    for probe in probes:
        two.enter_context(mixer.tapped(saliency_probe=probe))
    with two, pytest.raises(ValueError, match="model: a layer is asked for two of saliency_probe at once"):
        gpt2(IDS)
    message = "heads: silenced in 3 examples each its own, within a block for 2"
    with sg.ablate(gpt2, [[(1, 0)], []]), sg.ablate(gpt2, [[(1, 1)], [], []]), pytest.raises(ValueError, match=message):
        gpt2(IDS)
    gpt2(IDS)
