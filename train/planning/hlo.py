"""XLA's text of a compiled program, read: which instructions one device runs, and how often."""

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
    """One array: its type as XLA writes it, such as `bf16`, and the sizes of its axes."""

    dtype: str
    sizes: tuple[int, ...]

    @property
    def bytes(self) -> float:
        """Of the whole array; numbers of 4 bits are half a byte."""
        bits = 8 if self.dtype == "pred" else int(re.search(r"\d+", self.dtype)[0])  # type: ignore[index]
        return prod(self.sizes) * bits / 8


class Instruction(NamedTuple):
    """One line of a program.

    Attributes:
      opcode: `all-gather`, `dot`, ...
      operands: the arrays that it takes, those of tuples one by one.
      result: the arrays that it gives.
      text: the whole line, with its attributes.
    """

    opcode: str
    operands: tuple[Shape, ...]
    result: tuple[Shape, ...]
    text: str


def executed(text: str) -> Iterator[tuple[Instruction, int]]:
    """(instruction, how often one device runs it in one call) of a compiled program's text, `compiled.as_text()`.

    Bodies of loops count as often as the loop turns; all branches of a conditional count, once each.
    """
    entry, computations = _computations(text)
    yield from _executed(computations, entry, 1)


def _executed(computations: dict[str, list[str]], name: str, times: int) -> Iterator[tuple[Instruction, int]]:
    shapes: dict[str, tuple[Shape, ...]] = {}
    if name not in computations:
        raise JloraError(f"compiled step: expected a computation {name or 'that is the entry'}; found none in its text")
    for line in computations[name]:
        instruction, own_name = _instruction(line, shapes)
        shapes[own_name] = instruction.result
        yield instruction, times
        if instruction.opcode in ("async-update", "async-done"):  # of what async-start has begun
            continue
        turns = _turns(line, computations) if instruction.opcode == "while" else 1
        for called in _called(line):
            yield from _executed(computations, called, times * turns)


def _computations(text: str) -> tuple[str, dict[str, list[str]]]:
    """(the name of the first that runs, {name: its lines})."""
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
    """The instruction and its name; `shapes` are those of the instructions before it."""
    parts = _LINE.match(line)
    assert parts is not None
    operands = [shape for name in _NAME.findall(parts["operands"]) for shape in shapes.get(name, ())]
    return Instruction(parts["opcode"], tuple(operands), _shapes(parts["shape"]), line.strip()), parts["name"]


def _shapes(text: str) -> tuple[Shape, ...]:
    return tuple(Shape(dtype, tuple(map(int, filter(None, sizes.split(","))))) for dtype, sizes in _SHAPE.findall(text))


def _called(line: str) -> list[str]:
    """The computations that an instruction runs; what a reduction does with two numbers is left out."""
    names = "body|calls|branch_computations|true_computation|false_computation"
    lists = re.findall(rf"(?:{names})=(\{{[^}}]*\}}|%[\w.-]+)", line)
    if re.search(r" call\(", line):
        lists += re.findall(r"to_apply=(%[\w.-]+)", line)
    return [name for names in lists for name in _NAME.findall(names)]


def _turns(line: str, computations: dict[str, list[str]]) -> int:
    """How often a loop turns: as XLA notes it, else the number that its condition compares a counter from 0 with."""
    if noted := _TURNS.search(line):
        return int(noted[1])
    condition = re.search(r"condition=%([\w.-]+)", line)
    lines = computations.get(condition[1], []) if condition else []
    constants = [int(number) for one in lines for number in re.findall(r"s32\[\] constant\((\d+)\)", one)]
    if len(constants) != 1 or not any("direction=LT" in one for one in lines):
        raise JloraError(f"compiled step: expected loops that turn a known number of times, found {line.strip()[:200]}")
    return constants[0]
