"""Surprisal of many words after one text, which runs once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel

from symground.analysis.checks import words_of
from symground.analysis.probing.encoding import check_tokenizer, own_tokenizer, takes_opening
from symground.analysis.probing.prompting import check_prompt, following, ids_of_text
from symground.analysis.probing.scan import of_rest
from symground.errors import check_kind
from symground.models.passes import Reader, check_length, check_weights, check_words
from symground.models.trials import check_deterministic


def score_words(
    model: PreTrainedModel, text: str, words: Sequence[str] | None, tokenizer: Any, joint: str | None, batch_size: int
) -> pd.DataFrame:
    """A row for each word: target, surprisal, tokens; the arguments are those of `symground.score`."""
    check_weights(model)
    check_prompt(text, "probes")
    if words is None:
        raise ValueError("words: expected the words to score after the text, got None")
    asked = words_of(words, "words")
    if not asked:
        raise ValueError("words: expected at least one, got none")
    spaced = joint is None  # then a word may bring its own space
    if joint is None:  # many tokenizers encode a word with the space before it
        text = text.rstrip(" ")
        joint = "" if text.endswith(("\n", "\t")) else " "
    check_kind(joint, str, "joint")
    tokenizer = own_tokenizer(model) if tokenizer is None else tokenizer
    check_tokenizer(tokenizer)
    special = takes_opening(tokenizer, text)
    before, _ = ids_of_text(tokenizer, text, special)
    each = [
        following(tokenizer, text, before, word if spaced and word.startswith(" ") else joint + word, special, "words")
        for word in asked
    ]
    check_length(model, len(before) + max(map(len, each)), "probes", " with the longest word")
    check_words(model, max(max(ids) for ids in (before, *each)), "tokenizer")
    check_deterministic(model)
    with torch.inference_mode():
        reader = Reader(model)
        seen, state = reader.read(torch.tensor([before]))
        first = torch.tensor([ids[0] for ids in each])
        values = reader.surprisal(seen[:, -1], first)[0].double().cpu().numpy()
        for count in sorted({len(ids) for ids in each} - {1}):
            at = [i for i, ids in enumerate(each) if len(ids) == count]
            for start in range(0, len(at), batch_size):
                rows = at[start : start + batch_size]
                ids = torch.tensor([each[i] for i in rows])
                rest = of_rest(reader, state, torch.zeros(len(rows), dtype=torch.long), ids)
                values[rows] += rest.double().cpu().numpy()
    wrong = np.flatnonzero(np.isnan(values))
    if len(wrong):
        raise ValueError(f"model: {type(model).__name__} gives NaN for {asked[wrong[0]]!r} after the text")
    return pd.DataFrame({"target": asked, "surprisal": values, "tokens": [len(ids) for ids in each]})
