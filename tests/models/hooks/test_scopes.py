"""Each pass sees the blocks of its own thread and task, also under checkpointing, compilation and copies."""

from __future__ import annotations

import _thread
import asyncio
import copy
import io
import pickle
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import fields
from typing import Any, get_type_hints

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint
from transformers import GPT2LMHeadModel

import symground as sg
from symground.models import Tap, mixers
from tests.tiny import llama

IDS = torch.randint(2, 101, (2, 6), generator=torch.Generator().manual_seed(0))


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
    assert "which does not see the open blocks; use model.gradient_checkpointing_enable()" in found[0]
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


@pytest.mark.slow
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
    with two, pytest.raises(ValueError, match="model: two blocks ask the saliency of one layer"):
        gpt2(IDS)
    message = "heads: each of 3 examples has its own silenced heads, within a block for 2"
    with sg.ablate(gpt2, [[(1, 0)], []]), sg.ablate(gpt2, [[(1, 1)], [], []]), pytest.raises(ValueError, match=message):
        gpt2(IDS)
    gpt2(IDS)


#: They belong to a probe or to what is read, and ask for nothing themselves.
HOW = ("query_groups", "key_groups", "apart")


@pytest.mark.parametrize("name", [field.name for field in fields(Tap) if field.name not in HOW])
def test_whatever_is_asked_a_tap_is_not_idle(name: str) -> None:
    """Else the fast path of a mixer would leave the request out."""
    asked: Any = torch.ones(1) if get_type_hints(Tap)[name] == Tensor | None else (print,)
    assert Tap().idle
    assert not Tap(**{name: asked}).idle
    assert not Tap().then(Tap(**{name: asked})).idle
