"""Softmax attention: the op, its saliency, the signed saliency of chosen queries, and flow between groups of positions.

`api.py` has the public functions, `reference.py` the specification, `mixing.py` the record of how queries see keys.
`cpu.py`, `triton.py` and `flash.py` are implementations, and `autograd.py` makes each differentiable.
"""
