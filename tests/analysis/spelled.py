"""The ids of probes as text, for analyses that take text."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from symground.analysis import Probes


def spelled(probes: Probes) -> tuple[list[str], PreTrainedTokenizerFast]:
    """Each matched context and its target as a text with a word per id, and the tokenizer that reads it."""
    examples = probes.matched()
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(probes.largest_id + 1)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    rows = zip(examples.input_ids.tolist(), examples.prediction.tolist(), examples.targets.tolist(), strict=True)
    texts = [" ".join(f"w{i}" for i in (*ids[: p + 1], target)) for ids, p, target in rows]
    return texts, PreTrainedTokenizerFast(tokenizer_object=words)
