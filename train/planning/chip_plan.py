"""The plan of one chip of a mesh in a step."""

from __future__ import annotations

import math
from typing import NamedTuple

from train.planning.collectives import Collective
from train.planning.flops import Product
from train.planning.memory import Memory


class ChipPlan(NamedTuple):
    """The memory, work and communication of one chip of a mesh in one optimizer step.

    Attributes:
      mesh: {axis: size}.
      tokens: of the step, on all chips together, padding included.
      width: bytes of a number in the products.
      memory: bytes of one chip.
      products, collectives: of one chip.
      undivided: {axis: modules whose weights it should split but does not divide evenly}.
    """

    mesh: dict[str, int]
    tokens: int
    width: int
    memory: Memory
    products: list[Product]
    collectives: list[Collective]
    undivided: dict[str, list[str]]

    @property
    def chips(self) -> int:
        """How many chips the mesh has."""
        return math.prod(self.mesh.values())
