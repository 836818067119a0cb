"""What a run prints before its first step: its parameters, which of them train, memory and steps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jlora.adapter import Adapter, Full, LowRank
from jlora.names import hf_keys, is_stacked, is_transposed, module_names
from jlora.paths import leaves_by_path

_MIB = 2**20


@dataclass(frozen=True)
class Row:
    """One parameter of one layer, by the name and shape it has in a checkpoint.

    Attributes:
      name: `bert.encoder.layer.0.attention.self.query.weight`, or `….query.lora_A.weight` for a factor.
      shape: torch's, (out, in) for a dense weight, (r, in) and (out, r) for the factors.
      trainable: whether it is trained.
      target: whether it is a weight that a low-rank update is added to.
    """

    name: str
    shape: tuple[int, ...]
    trainable: bool
    target: bool

    @property
    def count(self) -> int:
        """Number of parameters."""
        return int(np.prod(self.shape))


def rows(base: Any, adapter: Adapter | None = None) -> list[Row]:
    """Every parameter of the base with the adapter on it, layer by layer; arrays or ShapeDtypeStructs.

    The counts add up to what `jlora.count_parameters` returns.
    """
    entries = adapter or {}
    leaves = leaves_by_path(base).items()
    found = [row for path, leaf in leaves for row in _leaf_rows(path, leaf, entries.get(path))]
    return sorted(found, key=lambda row: [part.zfill(6) if part.isdigit() else part for part in row.name.split(".")])


def table(rows: Sequence[Row], verbose: bool = False) -> str:
    """`name  trainable  count`, aligned.

    Short: one line for the same parameter of all layers (`layer.*.`), and one line for all that is frozen.
    Verbose: one line a parameter, with its shape and whether it is a target.
    """
    return _align(_every_parameter(rows) if verbose else _trained_over_layers(rows))


def summary(
    base: Any,
    adapter: Adapter | None,
    *,
    verbose: bool = False,
    steps: int | None = None,
    tokens: int | None = None,
    activation_bytes: int | None = None,
) -> str:
    """The whole text: the table, then total, trainable, percent, estimated memory, steps and tokens.

    Args:
      steps: optimizer steps of the run; None where no data were read.
      tokens: tokens that the run computes, padding included; None where no data were read.
      activation_bytes: what XLA needs beside its arguments for one step, from
        `compiled.memory_analysis().temp_size_in_bytes`; None where nothing was compiled.
    """
    listed = rows(base, adapter)
    total = sum(row.count for row in listed)
    trainable = sum(row.count for row in listed if row.trainable)
    facts = [
        ("total", f"{total:,}"),
        ("trainable", f"{trainable:,}"),
        ("percent", f"{100 * trainable / total:.4f} %"),
        ("memory", _memory(weight_bytes(base, adapter), training_bytes(trainable), activation_bytes)),
        ("steps", "unknown, no data read" if steps is None else f"{steps:,}"),
    ]
    if tokens is not None:
        facts.append(("tokens", f"{tokens:,}, padding included"))
    return table(listed, verbose) + "\n\n" + "\n".join(f"{name:<10} {value}" for name, value in facts)


def weight_bytes(base: Any, adapter: Adapter | None = None) -> int:
    """Bytes of all arrays of base and adapter, each in its own dtype.

    A leaf trained whole counts twice: the base is never changed and keeps its own.
    """
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves((base, adapter)))


def training_bytes(trainable: int) -> int:
    """12 a trained parameter: its gradient and AdamW's two moments, each float32."""
    return 12 * trainable


def _every_parameter(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    lines = [(r.name, _yes(r.trainable), f"{r.count:,}", str(r.shape), _yes(r.target)) for r in rows]
    return [("name", "trainable", "count", "shape", "target"), *lines]


def _trained_over_layers(rows: Sequence[Row]) -> list[tuple[str, ...]]:
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


def _memory(weights: int, training: int, activations: int | None) -> str:
    parts = [f"weights {weights / _MIB:,.1f}", f"gradients and optimizer state {training / _MIB:,.1f}"]
    if activations is None:
        return f"{' + '.join(parts)} = {(weights + training) / _MIB:,.1f} MiB, activations apart"
    parts.append(f"activations {activations / _MIB:,.1f}")
    return f"{' + '.join(parts)} = {(weights + training + activations) / _MIB:,.1f} MiB"


def _leaf_rows(path: str, leaf: Any, entry: LowRank | Full | None) -> list[Row]:
    count = leaf.shape[0] if is_stacked(path) else None
    shape = leaf.shape[1:] if is_stacked(path) else leaf.shape
    if is_transposed(path):
        shape = shape[::-1]
    found = []
    for layer, (key, module) in enumerate(zip(hf_keys(path, count), module_names(path, count), strict=True)):
        rank = entry.ranks[layer] if isinstance(entry, LowRank) else 0
        found.append(Row(key, tuple(shape), isinstance(entry, Full), rank > 0))
        if isinstance(entry, LowRank) and rank > 0:
            found += _factor_rows(path, module, entry, rank)
    return found


def _factor_rows(path: str, module: str, entry: LowRank, rank: int) -> list[Row]:
    after_rank = len(entry.scale.shape)
    names = (
        ("lora_embedding_A", "lora_embedding_B") if path.endswith("/embedding") else ("lora_A.weight", "lora_B.weight")
    )
    shapes = ((rank, *entry.a.shape[after_rank:]), (*entry.b.shape[after_rank:], rank))
    return [Row(f"{module}.{name}", shape, True, False) for name, shape in zip(names, shapes, strict=True)]


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _align(lines: Sequence[tuple[str, ...]]) -> str:
    """Columns two blanks apart; the third, the count, to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    padded = [
        "  ".join(
            text.rjust(w) if column == 2 else text.ljust(w)
            for column, (text, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join(line.rstrip() for line in padded)
