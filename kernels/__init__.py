"""Triton kernels, imported as ``symground.kernels``.

The name ``kernels`` alone belongs to another package, so this folder is reached only through the symlink
``symground/kernels``. Nothing above ``symground.ops`` may import from here.
"""
