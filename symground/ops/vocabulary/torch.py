"""The ``torch`` implementation of surprisal: the tiles of `tiles.py` on any device, without reading a value there."""

from __future__ import annotations

from symground.ops.common import needs
from symground.ops.vocabulary import tiles
from symground.ops.vocabulary.autograd import register

refuses = needs.nothing

backend = tiles.backend(reads=False)
ops = register("torch", backend, refuses)
