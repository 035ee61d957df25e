"""Words and nouns: the ENV and LAN tokens of a word, the nouns to probe, the age at which children say them."""

from symground.data.words.acquisition import age_of_acquisition
from symground.data.words.nouns import STUDY_NOUNS, cdi_categories, noun_list, noun_tokens, nouns_over_threshold
from symground.data.words.tokens import (
    IMAGE,
    PADDING,
    TIERS,
    UNKNOWN,
    WORD,
    base_of,
    env,
    env_tokens,
    lan,
    lan_tokens,
    normalized,
    replace_words,
    shown,
    speaker,
    with_base,
    words_in,
)

__all__ = [
    "IMAGE",
    "PADDING",
    "STUDY_NOUNS",
    "TIERS",
    "UNKNOWN",
    "WORD",
    "age_of_acquisition",
    "base_of",
    "cdi_categories",
    "env",
    "env_tokens",
    "lan",
    "lan_tokens",
    "normalized",
    "noun_list",
    "noun_tokens",
    "nouns_over_threshold",
    "replace_words",
    "shown",
    "speaker",
    "with_base",
    "words_in",
]
