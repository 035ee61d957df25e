"""The page of examples: all blocks run in order, with tiny models in place of the user's."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import symground
import symground as sg

PAGE = (Path(symground.__file__).resolve().parent.parent / "docs" / "examples.md").read_text(encoding="utf-8")
_TITLES = re.findall(r"^## (.+)$", PAGE, re.M)
_TEXTS = re.split(r"^## .+$", PAGE, flags=re.M)[1:]
_CODE = ["\n".join(re.findall(r"```python\n(.*?)```", text, re.S)) for text in _TEXTS]
EXAMPLES = dict(zip(_TITLES, _CODE, strict=True))
ELSEWHERE = "TransformerLens"


def words() -> transformers.PreTrainedTokenizerFast:
    """A tokenizer in which each word of the page's texts is one token, with the space before it."""
    text = "The dog saw the cat and the horse. She saw a park fed There was outside He liked it in dog cat horse the"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([text] * 9, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(scope="module")
def names(
    llava_folder: Path, llava_processor: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:  # fmt: skip
    torch.manual_seed(0)
    tokenizer = words()
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_positions=256, n_embd=32, n_layer=3, n_head=4, initializer_range=0.3,
        attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("examples")
    for path in llava_folder.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    return {
        "model": transformers.GPT2LMHeadModel(config).eval(), "tokenizer": tokenizer, "processor": llava_processor,
        "vlm": sg.load(llava_folder / "model"), "image": Image.fromarray(pixels), "_folder": folder,
    }  # fmt: skip


@pytest.mark.parametrize("title", [title for title in EXAMPLES if title != ELSEWHERE])
def test_runs(title: str, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks run in the order of the page, since later blocks use names of earlier ones."""
    monkeypatch.chdir(names["_folder"])
    with mpl.rc_context():
        exec(EXAMPLES[title], names)


def test_transformer_lens(names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformer_lens.model_bridge", reason="needs transformer_lens 4", exc_type=ImportError)
    # Its import silences the logger of transformers.
    monkeypatch.setattr(logging.getLogger("transformers"), "level", logging.getLogger("transformers").level)
    exec(EXAMPLES[ELSEWHERE], dict(names))


def test_they_show_what_they_say(names: dict[str, Any]) -> None:
    """The values of the page's names after it has run."""
    assert "loss" in names, "the page ran before"
    assert names["traced"].rows.dims == ("example", "layer", "head", "key")
    assert abs(names["probe"].grad[0, -1]).sum() > 0
    assert (names["_folder"] / "where.png").stat().st_size > 5000


@pytest.mark.parametrize("title", EXAMPLES)
def test_they_are_about_ten_lines(title: str) -> None:
    assert 1 <= len([line for line in EXAMPLES[title].splitlines() if line.strip()]) <= 14
