"""What one chip of a mesh does in a step."""

from __future__ import annotations

import math
from typing import NamedTuple

from train.planning.collectives import Collective
from train.planning.flops import Product
from train.planning.memory import Memory


class Plan(NamedTuple):
    """What one chip of a mesh holds, computes and receives in one optimizer step.

    Attributes:
      mesh: {axis: size}.
      tokens: of the step, on all chips together, padding included.
      width: bytes of a number in the products.
      memory: bytes of one chip.
      products, collectives: of one chip.
      undivided: {axis: modules whose weights it should split, and does not, for it does not divide them}.
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
        """How many the mesh has."""
        return math.prod(self.mesh.values())
