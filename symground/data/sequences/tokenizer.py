"""The word-level tokenizer, in Hugging Face format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from symground.data.words import PADDING, UNKNOWN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def word_level_tokenizer(counts: Mapping[str, int], min_count: int = 1) -> PreTrainedTokenizerFast:
    """One id for each token that occurs at least ``min_count`` times, most frequent first; [UNK] is 0 and [PAD] is 1.

    Ties are broken by the token's text, so that the same counts give the same ids. Text is split at white space.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = (UNKNOWN, PADDING)
    kept = sorted((t for t, n in counts.items() if n >= min_count and t not in specials), key=lambda t: (-counts[t], t))
    vocabulary = {token: i for i, token in enumerate((*specials, *kept))}
    model = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=model, unk_token=UNKNOWN, pad_token=PADDING)
