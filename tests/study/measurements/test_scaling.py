"""The cost formulas of docs/scaling.md against real models."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import symground as sg

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from benchmarks import attention_scale, scaling, training_log  # noqa: E402

SHAPES = [scaling.Llama(4, 64, 4, 2, 16, 176, 50), scaling.Llama(6, 64, 4, 4, 32, 160, 50)]


def llama(m: scaling.Llama) -> LlamaForCausalLM:
    config = LlamaConfig(
        num_hidden_layers=m.L, hidden_size=m.E, num_attention_heads=m.H, num_key_value_heads=m.Hk, head_dim=m.D,
        intermediate_size=m.M, vocab_size=m.V, max_position_embeddings=128,
    )  # fmt: skip
    model: LlamaForCausalLM = sg.attach(LlamaForCausalLM(config)).eval()
    return model


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_weights_are_counted(shape: scaling.Llama) -> None:
    model = llama(shape)
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name)
    assert shape.matrices == matrices
    norms = sum(p.numel() for p in model.parameters() if p.ndim == 1)
    assert shape.parameters == sum(p.numel() for p in model.parameters()) - norms


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("saliency", [False, True])
def test_memory_is_that_of_the_model_itself(shape: scaling.Llama, checkpoint: bool, saliency: bool) -> None:
    read = sg.trace_memory(llama(shape), 100, 2, checkpoint=checkpoint, saliency=saliency)
    said = scaling.trace_bytes(shape, 2, 100, checkpoint=checkpoint, saliency=saliency)
    assert said["kept"] == pytest.approx(read.kept, rel=0.05)
    assert said["layer"] == pytest.approx(read.layer, rel=0.05)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("groups", [1, 3])
def test_what_is_read_of_attention_has_the_size_that_is_said(shape: scaling.Llama, groups: int) -> None:
    at = torch.arange(30)[None] * groups // 30
    found = sg.attention(
        llama(shape), torch.zeros(1, 30, dtype=torch.int64), rows=None, received=True,
        groups={str(g): at == g for g in range(groups)},
    )  # fmt: skip
    assert attention_scale.result_bytes(shape, 30, groups) == sum(x.nbytes for x in found.data_vars.values())


def test_operations_by_hand() -> None:
    """A model with sizes of 1 and two tokens has 7 weights, and the causal half of seven products of T × T × 1."""
    one = scaling.Llama(1, 1, 1, 1, 1, 1, 1)
    assert one.matrices == 2 + 2 + 3
    assert scaling.trace_flops(one, 1, 2) == 2 * 7 * 2 + 2 * 7 * 2 + 7 * 2 * 2
    assert scaling.trace_flops(one, 1, 2, checkpoint=True) == 3 * (2 * 7 * 2) + 9 * 2 * 2
    assert scaling.eager_bytes(one, 1, 2) == 2 * 4 * 4
    assert attention_scale.matrices_bytes(one, 2) == 4 * 4
    assert attention_scale.pass_bytes(one, 2) == 2 * 4 * (3 + 4 + 2 + 2)
    assert scaling.grid_flops(weights=7, width=3, vocabulary=5, contexts=2, nouns=4, tokens=6) == 2 * 8 * (6 * 7 + 15)


def test_the_steps_of_a_training_log_train_alike() -> None:
    """The step that is read is the one that is not, so that only reading differs in time."""
    runs = training_log.steps((32, 2, 2), batch=2, length=16)
    assert list(runs) == ["transformers", "attached", "read", "read, with flow"]
    for run in runs.values():
        run()
