"""The state of an evaluation: the dropout key of its level, and the recorded uses of the leaves."""

from __future__ import annotations

import dataclasses
import zlib
from collections import Counter
from typing import Any

import jax

from jlora.errors import NoRuleError
from jlora.transform import jax_versions
from jlora.transform.adapted_weight import AdaptedWeight, Role, Update, compute_dense
from jlora.transform.uses import Use


@dataclasses.dataclass
class Context:
    """One level of an evaluation: the function itself, or a function or iteration inside it.

    `Context(key)` is that of the function itself; `enter`, `at` and `once` make the others.

    Attributes:
      key: dropout key of this level; None is evaluation.
      materialize: whether a weight plus update may be formed where no rule takes it.
      uses: {path: uses in their order, as keys} of the leaves that are observed, one dict for all levels.
      formed: {(path, primitive, id of the equation or 0)} of what was materialized, one dict (as a set) for all levels.
      drawn: how many keys this level has given away, by path ("" for nested loops and branches).
    """

    key: jax.Array | None
    materialize: bool = False
    uses: dict[str, dict[Use, None]] = dataclasses.field(default_factory=dict)
    formed: dict[tuple[str, str, int], None] = dataclasses.field(default_factory=dict)
    drawn: Counter = dataclasses.field(default_factory=Counter)

    def saw(self, leaf: Update, use: Use) -> None:
        """Records a use of the leaf that `leaf` is the update of; each use of a leaf is recorded once."""
        self.uses.setdefault(leaf.path, {})[use] = None

    def whole(self, value: Any, where: str, equation: int = 0) -> Any:
        """Converts a value to an array for the primitive `where`, which has no rule for weights with updates.

        A quantized weight without an update is dequantized. The use of a watched leaf is recorded.

        Raises:
          NoRuleError: the value has an update, and nothing may be materialized. A leaf that is only observed is
            noted instead.
        """
        if not isinstance(value, AdaptedWeight):
            return value
        for update in value.updates:
            if value.role is Role.OBSERVED:
                self.saw(update, Use(where, tuple(sorted({*update.stack, *update.picked}))))
            elif self.materialize:
                self.formed[update.path, where, equation] = None
            else:
                raise NoRuleError(
                    f"{update.path}: expected to be used in a matrix product, a convolution or a table lookup, found it"
                    f" in {where!r}, for which there is no low-rank rule. Leave the leaf out of target_modules, train"
                    " it whole with modules_to_save, or allow W + BA to be computed there: adapt(fn,"
                    " allow_materialize=True)."
                )
        return compute_dense(value)

    def draw(self, weight: Update, x: jax.Array) -> jax.Array | None:
        """Draws the dropout key of `x` for this use of the weight; no two uses and no two shards share a key."""
        if self.key is None or weight.dropout == 0.0:
            return None
        self.drawn[weight.path] += 1
        key = _fold(_fold(self.key, weight.path), self.drawn[weight.path])
        for axis in jax_versions.varying_axes(x):
            key = jax.random.fold_in(key, jax.lax.axis_index(axis))
        return key

    def once(self, drawn: Counter) -> Context:
        """Copies this context with its key counters set to `drawn`, for a nested function that runs once.

        So wrapping code in `jit` or `checkpoint` does not change its dropout masks.
        """
        return dataclasses.replace(self, drawn=Counter(drawn))

    def enter(self) -> Context:
        """Makes the context of a nested loop, of branches or of shards."""
        self.drawn[""] += 1
        return self._below(None if self.key is None else _fold(_fold(self.key, ""), self.drawn[""]))

    def at(self, count: jax.Array) -> Context:
        """Makes the context of one iteration."""
        return self._below(None if self.key is None else jax.random.fold_in(self.key, count))

    def _below(self, key: jax.Array | None) -> Context:
        return Context(key, self.materialize, self.uses, self.formed)


def _fold(key: jax.Array, what: str | int) -> jax.Array:
    return jax.random.fold_in(key, zlib.crc32(what.encode()) if isinstance(what, str) else what)
