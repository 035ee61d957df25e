"""The control flow of machine code as nvdisasm prints it: which instructions a warp can come back to."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, connected_components

_LABEL = re.compile(r"([\w.$]+):$")
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?(\S+)\s*(.*?)\s*;")
_TARGET = re.compile(r"`\(([\w.$]+)\)")
#: What does not go on with the next instruction, without a guard.
_LEAVES = ("EXIT", "RET", "BRA")
#: The target is in a register.
_INDIRECT = ("BRX", "BRXU", "JMX", "JMXU")


class _Instruction(NamedTuple):
    guard: str
    name: str
    operands: str

    @property
    def base(self) -> str:
        return self.name.partition(".")[0]

    @property
    def goes_on(self) -> bool:
        """Whether the next instruction may follow. A conditional branch without a guard has a condition as operand."""
        conditional = self.base == "BRA" and not self.operands.startswith("`")
        return bool(self.guard) or conditional or self.base not in _LEAVES


def names_in_loops(sass: str) -> list[str]:
    """The names of the instructions in loops, such as LDL.64; those of functions that a loop calls are among them.

    A loop is a strongly connected component of the graph of instructions. A branch to an earlier address is not enough:
    a rare path at the end of a kernel jumps back too, and what lies between is no loop.

    Raises:
        ValueError: an indirect branch, whose targets cannot be read.
    """
    code, labels = _read(sass)
    edges = [(i, j) for i, x in enumerate(code) for j in _successors(i, x, labels) if j < len(code)]
    graph = csr_array(([True] * len(edges), tuple(zip(*edges, strict=True))), shape=(len(code),) * 2)
    _, component = connected_components(graph, connection="strong")
    sizes = Counter(component)
    looped = {i for i, c in enumerate(component) if sizes[c] > 1}
    waiting = list(looped)
    while waiting:
        function = _function(code[waiting.pop()], labels)
        if function is not None and function not in looped:
            reached = {int(i) for i in breadth_first_order(graph, function, return_predecessors=False)}
            waiting += reached - looped
            looped |= reached
    return [code[i].name for i in sorted(looped)]


def _read(sass: str) -> tuple[list[_Instruction], dict[str, int]]:
    code: list[_Instruction] = []
    labels: dict[str, int] = {}
    for line in map(str.strip, sass.splitlines()):
        if label := _LABEL.match(line):
            labels[label[1]] = len(code)
        elif found := _INSTRUCTION.match(line):
            code.append(_Instruction(found[1] or "", found[2], found[3]))
    return code, labels


def _successors(i: int, x: _Instruction, labels: dict[str, int]) -> Iterator[int]:
    """What may follow in the same function. A call of a label within the function never returns: it is a branch."""
    if x.base in _INDIRECT:
        raise ValueError(f"sass: a branch whose targets are in the code is expected, got {x.name} {x.operands}")
    if x.goes_on:
        yield i + 1
    if _function(x, labels) is None:
        yield from (labels[name] for name in _TARGET.findall(x.operands) if name in labels and x.base != "RET")


def _function(x: _Instruction, labels: dict[str, int]) -> int | None:
    """The first instruction of the function that is called, if ``x`` calls one."""
    target = _TARGET.search(x.operands)
    if x.base != "CALL" or target is None or target[1].startswith(".L"):
        return None
    return labels.get(target[1])
