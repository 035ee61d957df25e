"""Gating heads: the op that silences, scales or replaces each head's output.

`api.py` has the public function, `reference.py` the specification, `extension.py` the
implementations by C++ and CUDA.
"""
