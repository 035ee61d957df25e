"""Shared fixtures: a tiny corpus, a tiny GPT-2 and a tiny LSTM, and the real corpora where they are at hand."""

from __future__ import annotations

import os

import torch

# Before anything imports Triton (transformers does): without a GPU its kernels run on CPU tensors, in its interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from transformers import GPT2Config, GPT2LMHeadModel

import symground as sg
from symground.data import Corpus, CorpusBuilder, GeneratedSettings, add_scenes
from symground.folders import write_json
from symground.models.lstm import LSTMConfig, LSTMForCausalLM

# Examples are drawn from a fixed seed and take as long as they take: a test never fails for being slow.
settings.register_profile(
    "symground", deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("symground")

# The models are tiny: a second thread gains nothing, and on a busy machine each waits for the other.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of the real corpora; skips, by name, where SYMGROUND_DATA is not set."""
    folder = os.environ.get("SYMGROUND_DATA")
    if not folder:
        pytest.skip("SYMGROUND_DATA is not set: real-data test")
    return Path(folder)


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    builder = CorpusBuilder()
    add_scenes(builder, GeneratedSettings(scenes=1000, nouns=6))
    return builder.build()


@pytest.fixture
def gpt2() -> GPT2LMHeadModel:
    """A tiny attached GPT-2 with random weights, in evaluation."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=101, n_positions=32, n_embd=24, n_layer=3, n_head=3, initializer_range=0.3,
        attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0, bos_token_id=None, eos_token_id=None, pad_token_id=1,
    )  # fmt: skip
    return sg.attach(GPT2LMHeadModel(config)).eval()


@pytest.fixture
def lstm() -> LSTMForCausalLM:
    torch.manual_seed(0)
    return sg.attach(LSTMForCausalLM(LSTMConfig(vocab_size=101, hidden_size=16, num_hidden_layers=2))).eval()


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """The folder of a study with a tiny corpus, to train on."""
    builder = CorpusBuilder()
    add_scenes(builder, GeneratedSettings(scenes=60, nouns=4))
    builder.write(tmp_path / "study" / "data").tokenizer.save_pretrained(tmp_path / "study")
    write_json(tmp_path / "study" / "config.json", {})
    return tmp_path / "study"
