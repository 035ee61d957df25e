"""The ``cpu`` implementation of surprisal: the tiles of `tiles.py`, with the C++ extension if it is built."""

from __future__ import annotations

from symground.ops.common import needs
from symground.ops.vocabulary import tiles
from symground.ops.vocabulary.autograd import register

refuses = needs.cpu

backend = tiles.backend(reads=True)
ops = register("cpu", backend, refuses, cpu_only=True)
