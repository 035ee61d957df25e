"""Ops on a vocabulary head: the surprisal of candidates, also through each layer's lens, and the training loss.

`api.py` has the public functions, `reference.py` the specification. `cpu.py` and `triton.py` are implementations, which
`autograd.py` makes differentiable. Neither of them materialises the logits, [N,V].
"""
