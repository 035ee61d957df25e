"""Gating heads: the op that silences, scales or replaces each head's output.

`api.py` has the public function, `reference.py` the specification. `registered.py` registers one op with torch.library,
which the implementations `cpu.py` and `cuda.py` share.
"""
