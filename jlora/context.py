"""What an evaluation carries along: the dropout key of its level, and what was seen of the leaves' uses."""

from __future__ import annotations

import dataclasses
import zlib
from collections import Counter
from typing import Any

import jax

from jlora.consume import Use
from jlora.errors import JloraError
from jlora.factored import Factored


@dataclasses.dataclass
class Context:
    """One level of an evaluation: the function itself, or a function or iteration inside of it.

    Attributes:
      key: dropout key of this level; None is evaluation.
      uses: {path: uses} of the leaves that are watched, one dict for all levels.
      drawn: how many keys this level has given away, by path ("" for nested functions).
    """

    key: jax.Array | None
    uses: dict[str, set[Use]] = dataclasses.field(default_factory=dict)
    drawn: Counter = dataclasses.field(default_factory=Counter)

    def saw(self, weight: Factored, use: Use) -> None:
        self.uses.setdefault(weight.path, set()).add(use)

    def whole(self, value: Any, where: str) -> Any:
        """The value as an array, where no rule takes a weight with an update: `where` is a primitive's name.

        Raises:
          JloraError: the value has an update. A leaf that is only watched is noted instead.
        """
        if not isinstance(value, Factored):
            return value
        if not value.watched:
            raise JloraError(
                f"{value.path}: expected to be used in a matrix product or a table lookup, found it in {where!r},"
                " for which there is no low-rank rule. Take the leaf out of target_modules, or train it whole by"
                " modules_to_save."
            )
        self.saw(value, Use(where, value.stack))
        return value.weight

    def draw(self, weight: Factored) -> jax.Array | None:
        """A key for this use of the weight: no two uses share one."""
        if self.key is None or weight.dropout == 0.0:
            return None
        self.drawn[weight.path] += 1
        return _fold(_fold(self.key, weight.path), self.drawn[weight.path])

    def enter(self) -> Context:
        """The context of a nested function."""
        self.drawn[""] += 1
        return Context(None if self.key is None else _fold(_fold(self.key, ""), self.drawn[""]), self.uses)

    def at(self, count: jax.Array) -> Context:
        """The context of one iteration."""
        return Context(None if self.key is None else jax.random.fold_in(self.key, count), self.uses)


def _fold(key: jax.Array, what: str | int) -> jax.Array:
    return jax.random.fold_in(key, zlib.crc32(what.encode()) if isinstance(what, str) else what)
