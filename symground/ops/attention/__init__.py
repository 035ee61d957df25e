"""Softmax attention: the op, its saliency, signed rows of it, and its flow between groups of positions.

`api.py` has the public functions, `reference.py` the specification, `mixing.py` the record of how queries see keys;
`cpu.py`, `triton.py` and `flash.py` are implementations, which `registered.py` makes ops of torch.library.
"""
