"""The einsum of a low-rank update, such as "lri,lro->lio", as the axes that it names."""

from __future__ import annotations

import dataclasses
import functools


@dataclasses.dataclass(frozen=True)
class Spec:
    """The axes of a low-rank update, one letter each; "r" is the axis of the components.

    Attributes:
      stack: axes that A, B and the leaf share, such as that of scanned layers.
      inputs: axes of A and the leaf, over which the function contracts the leaf (or looks it up).
      outputs: axes of B and the leaf.
      leaf: all axes of the leaf, in its order.
    """

    stack: str
    inputs: str
    outputs: str
    leaf: str

    @property
    def a(self) -> str:
        """The axes of A."""
        return f"{self.stack}r{self.inputs}"

    @property
    def b(self) -> str:
        """The axes of B."""
        return f"{self.stack}r{self.outputs}"

    def __str__(self) -> str:
        return f"{self.a},{self.b}->{self.leaf}"


@functools.cache
def parse_spec(text: str) -> Spec:
    """Reads a spec as `LowRank.spec` stores it: "arb,arc->abc" is Spec("a", "b", "c", "abc"). The inverse of `str`."""
    factors, leaf = text.split("->")
    a, b = factors.split(",")
    stack, inputs = a.split("r")
    return Spec(stack, inputs, b.split("r")[1], leaf)
