"""The ``torch`` implementation: the tiles of `tiles.py` on any device, without reading a value there."""

from symground.ops.attention.weights.autograd import register
from symground.ops.attention.weights.tiles import backend
from symground.ops.common import needs

#: Reading a value would wait for the device.
ops = register("torch", backend(reads=False), needs.nothing)
