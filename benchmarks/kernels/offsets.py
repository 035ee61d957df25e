"""32-bit products in a compiled kernel, which overflow where a tensor is large: an index times a stride is 64-bit.

The products of TTIR, the text of Triton's first intermediate language, may be 32-bit only if one operand is a constant,
such as a tile's size, and the other does not contain a stride of the launch.
"""

from __future__ import annotations

import re

_NAME = re.compile(r"%[\w.$#-]+")
#: A line that computes 32-bit integers from its operands alone.
_NARROW = re.compile(r"^\s*%\S+ = (?:arith|tt\.splat|tt\.broadcast|tt\.expand_dims)\b.*[ x]i32>?(?: loc\(.*\))?$")


def narrow_products(ttir: str) -> list[str]:
    """The lines of products that may overflow; none in a kernel that computes its offsets in 64 bits."""
    constants = set(re.findall(r"(%\S+) = arith\.constant", ttir))
    strides = set(re.findall(r"(%s_\w+): i32", ttir))
    found = []
    for line in filter(_NARROW.match, ttir.splitlines()):
        result, *operands = _NAME.findall(line)
        if strides & set(operands):
            strides.add(result)
        if "arith.muli" in line and (result in strides or not constants & set(operands)):
            found.append(line.partition(" loc(")[0].strip())
    return found
