"""GELU's tanh form in an attached model: the same numbers, and fewer tensors saved for the backward pass."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import symground as sg


def model(activation: str) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=50, n_positions=32, n_embd=24, n_layer=2, n_head=2, activation_function=activation,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return GPT2LMHeadModel._from_config(config, attn_implementation="eager").eval().double()


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_fast", "gelu_accurate", "gelu", "relu"])
def test_numbers_and_gradients_are_those_of_the_model(activation: str) -> None:
    theirs = model(activation)
    ours, ids = sg.attach(copy.deepcopy(theirs)), torch.randint(50, (2, 9))
    found, expected = ([] for _ in range(2))
    for each, into in ((ours, found), (theirs, expected)):
        with torch.no_grad():
            each.transformer.h[0].mlp.c_fc.weight.mul_(30)  # inputs so large that forms of GELU differ
        loss = each(ids, labels=ids).loss
        into += [loss.detach(), *torch.autograd.grad(loss, [*each.parameters()])]
    # The constant of "gelu_fast" has ten digits.
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_fast", "gelu_accurate"])
def test_a_token_keeps_what_one_operation_keeps(activation: str) -> None:
    """The tensors are two norms' inputs, q, k, v and attention's output, each of width E, and one of width 4·E."""
    kept = sg.trace_memory(sg.attach(model(activation)), 20).kept
    of_one = sg.trace_memory(sg.attach(model("gelu_pytorch_tanh")), 20).kept
    assert kept == of_one
    assert kept == pytest.approx(20 * 2 * (2 + 3 + 1 + 4) * 24 * 8, rel=0.1)


def test_a_copy_of_an_attached_model_is_one() -> None:
    attached = sg.attach(model("gelu_new"))
    ids = torch.randint(50, (1, 5))
    for again in (copy.deepcopy(attached), sg.attach(sg.attach(attached)), pickle.loads(pickle.dumps(attached))):
        assert torch.equal(again(ids).logits, attached(ids).logits)
