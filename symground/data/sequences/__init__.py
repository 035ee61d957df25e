"""A corpus: documents of token ids, the images that they begin with, and the rows on which a model trains."""

from symground.data.sequences.builder import CorpusBuilder
from symground.data.sequences.corpus import Corpus
from symground.data.sequences.image_set import ImageSet, Shown, image_key, patch_ids
from symground.data.sequences.sampler import IGNORED, RowSampler
from symground.data.sequences.splits import share_of
from symground.data.sequences.tokenizer import word_level_tokenizer

__all__ = [
    "IGNORED",
    "Corpus",
    "CorpusBuilder",
    "ImageSet",
    "RowSampler",
    "Shown",
    "image_key",
    "patch_ids",
    "share_of",
    "word_level_tokenizer",
]
