"""Makes the summary that a run prints before its first step: parameters, which are trained, memory and steps."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jlora.lora.entries import Adapter, Entry, Full, LowRank, Rows, count_trained
from jlora.peft.tensor_keys import PREFIX, Slot, slots
from jlora.tree.leaf_paths import leaves_by_path

_MIB = 2**20


@dataclass(frozen=True)
class ParameterRow:
    """One parameter of one layer, with its name and shape in a checkpoint.

    Attributes:
      name: `bert.encoder.layer.0.attention.self.query.weight`; PEFT's name if it is added, `….query.lora_A.weight`.
      shape: torch's, (out, in) for a dense weight, (r, in) and (out, r) for the factors.
      trainable: whether it is trained.
      target: whether it is a weight that a low-rank update is added to.
      elsewhere: how many of its numbers are counted in another row: an embedding's trained rows.
    """

    name: str
    shape: tuple[int, ...]
    trainable: bool
    target: bool
    elsewhere: int = 0

    @property
    def count(self) -> int:
        """The number of parameters."""
        return math.prod(self.shape) - self.elsewhere


def rows(base: Any, adapter: Adapter | None = None) -> list[ParameterRow]:
    """Lists every parameter of the base with the adapter, layer by layer; arrays or ShapeDtypeStructs.

    A stack of 2 layers gives 2 rows. The counts add up to the result of `jlora.count_parameters`. Rows are in the order
    of their names, layer 2 before layer 10. Without an adapter nothing is trainable.

    Args:
      base: a tree whose paths are those of a model, such as `layers/q/kernel`.
      adapter: {path: LowRank | Full | Rows}, or None.
    """
    entries = adapter or {}
    leaves = {path: Full(leaf) for path, leaf in leaves_by_path(base).items()}
    added = {path: entry for path, entry in entries.items() if not isinstance(entry, Full)}
    found = [_leaf_row(slot, entries.get(slot.path)) for slot in slots(leaves)]
    found += [ParameterRow(slot.key.removeprefix(PREFIX), slot.shape, True, False) for slot in slots(added)]
    return sorted(found, key=lambda row: [part.zfill(6) if part.isdigit() else part for part in row.name.split(".")])


def table(rows: Sequence[ParameterRow], verbose: bool = False) -> str:
    """Formats the rows as an aligned table with a header: name, trainable (yes or no), count.

    By default there is one line for the same trained parameter of all layers (`layers.*.q.lora_A.weight`), with the sum
    of their counts, and at the end one line for all frozen ones. With `verbose` there is one line for each parameter,
    with two more columns: its shape, and whether it is a target.
    """
    if not verbose:
        return align(_group_over_layers(rows), right=[2])
    lines = [(r.name, _yes(r.trainable), f"{r.count:,}", str(r.shape), _yes(r.target)) for r in rows]
    return align([("name", "trainable", "count", "shape", "target"), *lines], right=[2])


def parameters(base: Any, adapter: Adapter | None, *, verbose: bool = False) -> str:
    """Formats the `table` of the `rows` of base and adapter, an empty line, and the facts total, trainable and percent.

    Args:
      adapter: without one (None) nothing is trainable.
      verbose: one line for each parameter, instead of one for all layers and one for all frozen parameters.
    """
    listed = rows(base, adapter)
    total, trainable = _counts(listed)
    facts = [
        ("total", f"{total:,}"),
        ("trainable", f"{trainable:,}"),
        ("percent", f"{100 * trainable / total:.4f} %"),
    ]
    return table(listed, verbose) + "\n\n" + facts_table(facts)


def summary(base: Any, adapter: Adapter | None, *, verbose: bool = False, steps: int | None = None) -> str:
    """Formats `parameters`, then two facts: estimated memory in MiB, and the run's optimizer steps.

    Memory is `weight_bytes` and `training_bytes`; `verbose` is that of `table`. If `steps` is None, no data was read,
    and the text says "unknown".
    """
    _, trainable = _counts(rows(base, adapter))
    weights, training = weight_bytes(base, adapter) / _MIB, training_bytes(trainable) / _MIB
    memory = f"weights {weights:,.1f} + gradients and optimizer state {training:,.1f} = {weights + training:,.1f} MiB"
    facts = [
        ("memory", f"{memory}, activations apart"),
        ("steps", "unknown, no data read" if steps is None else f"{steps:,}"),
    ]
    return parameters(base, adapter, verbose=verbose) + "\n" + facts_table(facts)


def weight_bytes(base: Any, adapter: Adapter | None = None) -> int:
    """Returns the bytes of all arrays of base and adapter, each in its own dtype.

    A leaf that is trained in full counts twice, because the base is not changed and keeps its own.
    """
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves((base, adapter)))


def training_bytes(trainable: int) -> int:
    """Returns 12 bytes for each trained parameter: its gradient and AdamW's two moments, each float32."""
    return 12 * trainable


def _group_over_layers(rows: Sequence[ParameterRow]) -> list[tuple[str, ...]]:
    trained: dict[str, int] = {}
    for row in rows:
        if row.trainable:
            name = re.sub(r"\.\d+\.", ".*.", row.name)
            trained[name] = trained.get(name, 0) + row.count
    lines: list[tuple[str, ...]] = [("name", "trainable", "count")]
    lines += [(name, "yes", f"{count:,}") for name, count in trained.items()]
    frozen = [row.count for row in rows if not row.trainable]
    if frozen:
        lines.append((f"({len(frozen)} frozen parameters; all with --verbose)", "no", f"{sum(frozen):,}"))
    return lines


def _counts(rows: Sequence[ParameterRow]) -> tuple[int, int]:
    """Returns (the number of all parameters, of those that are trained)."""
    return sum(row.count for row in rows), sum(row.count for row in rows if row.trainable)


def _leaf_row(slot: Slot, entry: Entry | None) -> ParameterRow:
    """Makes the row of one layer of a leaf of the base; the slot is one of `Full(leaf)`."""
    layer = int(slot.index[0]) if slot.index else 0  # type: ignore[arg-type]
    trained = isinstance(entry, Full) and (entry.layers is None or layer in entry.layers)
    target = isinstance(entry, LowRank) and entry.ranks[layer] > 0
    elsewhere = count_trained(entry) if isinstance(entry, Rows) else 0
    return ParameterRow(slot.key.removeprefix(PREFIX), slot.shape, trained, target, elsewhere)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def facts_table(facts: Sequence[tuple[str, str]]) -> str:
    """Formats facts (name, value) as lines `name  value`, with the names padded to ten characters, no final newline."""
    return "\n".join(f"{name:<10} {value}" for name, value in facts)


def align(lines: Sequence[tuple[str, ...]], right: Container[int]) -> str:
    """Aligns columns, with two spaces between them; those whose numbers are in `right` are right-aligned.

    Args:
      lines: the cells of each line, equally many in all; at least one line.
      right: numbers of columns, counted from 0.

    Returns:
      The lines, without blanks at their ends, joined by newlines.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [
        "  ".join(
            text.rjust(width) if column in right else text.ljust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join(line.rstrip() for line in padded)
