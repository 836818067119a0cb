"""Lists the collectives of a compiled step, with their mesh axes and bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from typing import NamedTuple

import numpy as np

from jlora.errors import JloraError
from train.planning.hlo import Instruction, walk_executed
from train.planning.replica_groups import replica_groups

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")


_UNKNOWN = re.compile(r"(ragged-)?(all|collective|reduce-scatter)-(?!.*(done|start|update)).+")


class Collective(NamedTuple):
    """One collective of a program.

    Attributes:
      kind: one of KINDS.
      groups: for each group, the numbers of the devices that take part; for a permutation, each sender with its
        receiver.
      axes: the axes of the mesh along which the devices of a group differ.
      payload: bytes that each device sends in.
      times: how often it runs in one call of the program.
    """

    kind: str
    groups: tuple[tuple[int, ...], ...]
    axes: tuple[str, ...]
    payload: float
    times: int

    @property
    def bytes_received(self) -> float:
        """Bytes that a device receives in one run, with algorithms that send the least, such as rings."""
        size = len(self.groups[0])
        others, share = size - 1, (size - 1) / size
        factors = {"all-gather": others, "all-reduce": 2 * share, "collective-permute": 1}
        return self.payload * factors.get(self.kind, share)


def collectives(text: str, mesh: Mapping[str, int]) -> list[Collective]:
    """Lists the collectives in a compiled program's text in which more than one device takes part.

    They are in the order of the text, one for each instruction; its `times` says how often it runs.

    Args:
      text: `compiled.as_text()`.
      mesh: {axis: size}, as `jax.sharding.Mesh.shape`; devices are numbered along its last axis first.

    Raises:
      JloraError: a collective that is not one of KINDS, groups of devices in an unknown notation, or a loop whose
        number of iterations the text does not say.
    """
    found = []
    for instruction, times in walk_executed(text):
        kind = instruction.opcode.removesuffix("-start")
        if kind not in KINDS:
            if _UNKNOWN.fullmatch(kind):
                raise JloraError(f"compiled step: expected collectives out of {', '.join(KINDS)}; found {kind}")
            continue
        groups, axes = _groups(instruction, mesh)
        if axes:
            payload = sum(shape.bytes for shape in instruction.operands)
            found.append(Collective(kind, groups, axes, payload, times))
    return found


def _groups(instruction: Instruction, mesh: Mapping[str, int]) -> tuple[tuple[tuple[int, ...], ...], tuple[str, ...]]:
    if instruction.opcode.startswith("collective-permute"):
        pairs = re.search(r"source_target_pairs=\{([\d,{}]*)\}", instruction.text)
        numbers = [int(number) for number in re.findall(r"\d+", pairs[1] if pairs else "")]
        groups = np.array(numbers).reshape(-1, 2)
        groups = groups[groups[:, 0] != groups[:, 1]]
    else:
        written = instruction.text.partition("replica_groups=")[2]
        groups = replica_groups(written, prod(mesh.values()))
    places = np.stack(np.unravel_index(groups, tuple(mesh.values())), -1)
    differ = (places != places[:, :1]).any((0, 1))
    return tuple(map(tuple, groups.tolist())), tuple(
        name for name, differs in zip(mesh, differ, strict=True) if differs
    )
