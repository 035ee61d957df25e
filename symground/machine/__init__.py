"""What this machine can run: ``symground check`` tries every implementation of every op, each part in its own process.

`command.py` prints what the parts find, and `parts.py` runs them. `child.py` is the process of one part. In it,
`surroundings.py` finds versions and faults of drivers, `accuracy.py` compares an implementation with the reference on
the calls of `cases.py`, and `speed.py` times one layer.
"""
