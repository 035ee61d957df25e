"""What this machine can run: ``symground check`` tries every implementation of every op, each part in its own process.

`command.py` runs the parts one step after the other, `parts.py` in a process each, and `printed.py` has the lines for
a reader. `child.py` is the process of one part. In it, `loading.py` loads packages and the extension,
`surroundings.py` finds faults of drivers, `accuracy.py` compares an implementation with the reference on the calls of
`cases.py`, and `speed.py` times one layer. `building.py` is ``symground build``.
"""
