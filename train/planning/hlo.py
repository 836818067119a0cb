"""Reads XLA's text of a compiled program: which instructions one device runs, and how often."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import prod
from typing import NamedTuple

from jlora.errors import JloraError

_HEAD = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<shape>.*?) (?P<opcode>[a-z][\w-]*)\((?P<operands>[^)]*)\)")
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_NAME = re.compile(r"%([\w.-]+)")
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Shape(NamedTuple):
    """The type of an array in a program's text, `bf16[4,8]`.

    Attributes:
      dtype: in XLA's notation, such as `bf16`.
      sizes: of the axes; () for a scalar.
    """

    dtype: str
    sizes: tuple[int, ...]

    @property
    def bytes(self) -> float:
        """The bytes of the array; numbers of 4 bits have half a byte."""
        bits = 8 if self.dtype == "pred" else int(re.search(r"\d+", self.dtype)[0])  # type: ignore[index]
        return prod(self.sizes) * bits / 8


class Instruction(NamedTuple):
    """One line of a program.

    Attributes:
      opcode: `all-gather`, `dot`, ...
      operands: its operands, with tuples flattened.
      result: its results, with tuples flattened.
      text: the whole line, with its attributes.
    """

    opcode: str
    operands: tuple[Shape, ...]
    result: tuple[Shape, ...]
    text: str


def walk_executed(text: str) -> Iterator[tuple[Instruction, int]]:
    """Yields (instruction, how often one device runs it in one call) from a program's text, `compiled.as_text()`.

    Loop bodies count as often as the loop iterates; each branch of a conditional counts once. An instruction that
    contains others, such as a loop or a fusion, comes before them.

    Raises:
      JloraError: the text has no entry computation, or a loop whose number of iterations it does not say.
    """
    entry, computations = _computations(text)
    yield from _walk_computation(computations, entry, 1)


def _walk_computation(computations: dict[str, list[str]], name: str, times: int) -> Iterator[tuple[Instruction, int]]:
    shapes: dict[str, tuple[Shape, ...]] = {}
    if name not in computations:
        raise JloraError(f"compiled step: expected a computation {name or 'that is the entry'}; found none in its text")
    for line in computations[name]:
        instruction, own_name = _instruction(line, shapes)
        shapes[own_name] = instruction.result
        yield instruction, times
        if instruction.opcode in ("async-update", "async-done"):  # async-start has already counted its computation
            continue
        turns = _turns(line, computations) if instruction.opcode == "while" else 1
        for called in _find_callees(line):
            yield from _walk_computation(computations, called, times * turns)


def _computations(text: str) -> tuple[str, dict[str, list[str]]]:
    """Returns (the name of the entry computation, {name: its lines})."""
    entry, lines = "", []
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if head := _HEAD.match(line):
            lines = found[head["name"]] = []
            entry = head["name"] if head["entry"] else entry
        elif _LINE.match(line):
            lines.append(line)
    return entry, found


def _instruction(line: str, shapes: dict[str, tuple[Shape, ...]]) -> tuple[Instruction, str]:
    """Parses a line to (instruction, its name); `shapes` has the results of the instructions before it."""
    parts = _LINE.match(line)
    assert parts is not None
    operands = [shape for name in _NAME.findall(parts["operands"]) for shape in shapes.get(name, ())]
    return Instruction(parts["opcode"], tuple(operands), _shapes(parts["shape"]), line.strip()), parts["name"]


def _shapes(text: str) -> tuple[Shape, ...]:
    return tuple(Shape(dtype, tuple(map(int, filter(None, sizes.split(","))))) for dtype, sizes in _SHAPE.findall(text))


def _find_callees(line: str) -> list[str]:
    """Returns the computations that an instruction runs, except the scalar functions of reductions."""
    names = "body|calls|branch_computations|true_computation|false_computation"
    lists = re.findall(rf"(?:{names})=(\{{[^}}]*\}}|%[\w.-]+)", line)
    if re.search(r" call\(", line):
        lists += re.findall(r"to_apply=(%[\w.-]+)", line)
    return [name for names in lists for name in _NAME.findall(names)]


def _turns(line: str, computations: dict[str, list[str]]) -> int:
    """Returns how often a loop iterates: from XLA's annotation, else from the limit in the loop's condition."""
    if noted := _TURNS.search(line):
        return int(noted[1])
    condition = re.search(r"condition=%([\w.-]+)", line)
    lines = computations.get(condition[1], []) if condition else []
    constants = [int(number) for one in lines for number in re.findall(r"s32\[\] constant\((\d+)\)", one)]
    if len(constants) != 1 or not any("direction=LT" in one for one in lines):
        raise JloraError(f"compiled step: expected loops that turn a known number of times, found {line.strip()[:200]}")
    return constants[0]
