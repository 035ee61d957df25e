"""Ops that read a vocabulary head: the surprisal of candidates, of each layer's lens, and the training loss.

`api.py` has the public functions, `reference.py` the specification; `cpu.py` and `triton.py` are implementations, which
`registered.py` makes ops of torch.library. None of them materialises the logits, [N,V].
"""
