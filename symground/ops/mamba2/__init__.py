"""The ops around Mamba-2's SSD: the short convolution, and the whole layer between its two projections.

`api.py` has the public functions, `reference.py` the specification, `layer.py` the record of a layer's inputs. `cpu.py`
and `causal_conv1d.py` are implementations.
"""
