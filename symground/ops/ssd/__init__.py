"""Mamba-2's state-space mixing (SSD): the op, its saliency, and its flow between groups of positions.

`api.py` has the public functions, `reference.py` the specification, `scan.py` the record of their inputs. `cpu.py`,
`triton.py` and `mamba_ssm.py` are implementations, and `autograd.py` makes them differentiable.
"""
