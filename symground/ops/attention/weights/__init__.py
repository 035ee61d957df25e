"""What is read off an attention matrix, without the matrix: from queries, keys and the log-sum-exp alone.

An implementation supplies three functions (`autograd.py`), of which one computes whatever is asked for in one pass.
"""
