"""A kernel's PTX as a list of instructions.

The grammar is that of NVIDIA's "Parallel Thread Execution ISA", as far as Triton's compiler writes it: one entry, no
functions, registers of 1, 16, 32 and 64 bits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias


class Register(NamedTuple):
    """A virtual register: its place among those of its width, 1 for a predicate."""

    name: str
    width: int


class Constant(NamedTuple):
    """An immediate value, or the address of shared memory, which starts at 0. A float is given by its bits."""

    bits: int


class Special(NamedTuple):
    """A special register, such as %tid.x."""

    name: str


class Address(NamedTuple):
    """A base and bytes to add to it."""

    base: Register | Constant
    offset: int


class Name(NamedTuple):
    """A label or a kernel parameter."""

    name: str


class Vector(NamedTuple):
    """Registers that are read or written together."""

    parts: tuple[Register | Constant, ...]


Operand: TypeAlias = Register | Constant | Special | Address | Name | Vector


def parts_of(operand: Operand) -> tuple[Operand, ...]:
    """The registers of a vector, or the one operand."""
    return operand.parts if isinstance(operand, Vector) else (operand,)


class Instruction(NamedTuple):
    """One instruction: ``@guard opcode operands``, and where it stands."""

    guard: Register | None
    #: Whether the guard is negated.
    negated: bool
    opcode: str
    operands: tuple[Operand, ...]
    #: "file.py:12", the line of the source that it was compiled from.
    source: str


@dataclass
class Program:
    """A compiled kernel."""

    name: str
    #: (type without its dot, name) of each parameter.
    parameters: list[tuple[str, str]] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    #: Label → the place of the instruction after it.
    labels: dict[str, int] = field(default_factory=dict)


_DIRECTIVES = (".reg", ".section", ".pragma", ".reqntid", ".maxntid", ".minnctapersm", ".b8", ".b32", ".b64", ".file")


def parse(text: str) -> Program:
    """The entry of a PTX module.

    Raises:
        ValueError: the text has no entry, or something in it is not understood.
    """
    entry = re.search(r"\.entry\s+(\w+)\(([^)]*)\)", text)
    if entry is None:
        raise ValueError(f"text: expected a PTX module with an .entry, got {text[:60]!r}")
    files = {number: name.rpartition("/")[2] for number, name in re.findall(r'\.file\s+(\d+)\s+"([^"]+)"', text)}
    program = Program(entry[1])
    for line in filter(None, map(str.strip, entry[2].split(","))):
        words = line.split()
        program.parameters.append((words[1].lstrip("."), words[-1]))
    source, statement = "", ""
    for raw in _body(text, entry.end()):
        line = raw.partition("//")[0].strip()
        location = re.match(r"\.loc\s+(\d+)\s+(\d+)", line)
        if location:
            source = f"{files.get(location[1], location[1])}:{location[2]}"
        elif (label := re.fullmatch(r"(\$\S+):", line)) is not None:
            program.labels[label[1]] = len(program.instructions)
        elif line and line not in "{}" and not line.startswith(_DIRECTIVES):
            statement = f"{statement} {line}"
            *whole, statement = statement.split(";")
            program.instructions += [_instruction(part.strip(), source) for part in whole]
    return program


def _body(text: str, start: int) -> list[str]:
    """The lines between the braces of the entry."""
    lines, depth = [], 0
    for line in text[start:].splitlines():
        code = line.partition("//")[0]
        alone = code.strip()
        if alone in ("{", "}"):  # braces of blocks stand alone; those of vectors do not
            depth += 1 if alone == "{" else -1
            if depth == 0:
                break
        lines.append(line)
    return lines


def _instruction(text: str, source: str) -> Instruction:
    found = re.fullmatch(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", text, re.DOTALL)
    if found is None:
        raise ValueError(f"not an instruction of PTX: {text!r}")
    guard = _operand(found[2]) if found[2] else None
    assert guard is None or isinstance(guard, Register)
    return Instruction(guard, found[1] == "!", found[3], tuple(map(_operand, _split(found[4]))), source)


def _split(text: str) -> list[str]:
    """Operands are divided by commas, unless these are within braces or brackets."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        depth += (character in "{[") - (character in "}]")
        if character == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return [part.strip() for part in [*parts, text[start:]] if part.strip()]


_WIDTHS = {"%p": 1, "%rs": 16, "%r": 32, "%rd": 64}


def _operand(text: str) -> Operand:
    if text.startswith("{"):
        return Vector(tuple(map(_operand, _split(text[1:-1]))))  # type: ignore[arg-type]
    if text.startswith("["):
        base, sign, offset = re.fullmatch(r"\[\s*(\S+?)\s*(?:([+-])\s*(-?\w+))?\s*\]", text).groups()  # type: ignore[union-attr]
        at = _operand(base)
        if isinstance(at, Name):
            return at  # a kernel parameter
        assert isinstance(at, Register | Constant)
        return Address(at, int(f"{sign or ''}{offset or 0}".replace("+-", "-"), 0))
    if (register := re.fullmatch(r"(%[a-z]+)\d+", text)) is not None and register[1] in _WIDTHS:
        return Register(text, _WIDTHS[register[1]])
    if text.startswith("%"):
        return Special(text)
    if re.fullmatch(r"0f[0-9a-fA-F]{8}|0d[0-9a-fA-F]{16}", text):
        return Constant(int(text[2:], 16))
    if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)U?", text):
        return Constant(int(text.rstrip("U"), 0))
    if text == "global_smem":
        return Constant(0)
    return Name(text)
