"""The figures as one table of plain text."""

from __future__ import annotations

from typing import Any

from benchmarks.common.timing import ratio

_PAIRS = (
    ("jlora lora", "jlora full"),
    ("jlora lora", "peft lora"),
    ("jlora full", "torch full"),
    ("peft lora", "torch full"),
)


def table(results: dict[str, Any]) -> str:
    """The results of `benchmarks.classify` in lines of at most 80 characters."""
    found, recipe = results["environment"], results["recipe"]
    versions = "  ".join(f"{name} {found['versions'][name]}" for name in ("jlora", "jax", "torch", "peft"))
    lines = [
        f"{recipe['model']}",
        f"{versions}  {found['cpu_count']} cores  load {found['load_before'][0]:.1f} to {found['load_after'][0]:.1f}",
    ]
    for name, step in results["step"].items():
        lines += ["", *_step_lines(name, step, *results["shape"])]
    for name, epoch in results["epoch"].items():
        lines += ["", *_epoch_lines(name, epoch, recipe)]
    return "\n".join(lines)


def _step_lines(name: str, step: dict[str, Any], rows: int, length: int) -> list[str]:
    lines = [_line(f"one step of {rows} x {length} tokens, {name}", "min", "q1", "median", "q3")]
    for run, found in step["spread"].items():
        lines.append(_line(f"  {run}, ms", *(f"{1000 * value:.0f}" for value in found.values())))
    for above, below in _PAIRS:
        found = ratio(step["seconds"][above], step["seconds"][below])
        lines.append(_line(f"  {above} / {below}", *(f"{value:.2f}" for value in found.values())))
    return lines


def _epoch_lines(name: str, epoch: dict[str, Any], recipe: dict[str, Any]) -> list[str]:
    lines = [_line(f"one epoch of {recipe['rows']:,} rows, LoRA, {name}", "jlora", "peft", "ratio")]
    for label, key in (("seconds", "total"), ("seconds, compilation included", "with_compilation")):
        ours, theirs = epoch[key]["jlora"], epoch[key]["peft"]
        lines.append(_line(f"  {label}", f"{ours:.1f}", f"{theirs:.1f}", f"{ours / theirs:.2f}"))
    chunks = ratio(epoch["seconds"]["jlora"], epoch["seconds"]["peft"])
    lines.append(_line("  ratio of the chunks: min, median", f"{chunks['min']:.2f}", f"{chunks['median']:.2f}"))
    ours, theirs = epoch["tokens"]["jlora"], epoch["tokens"]["peft"]
    counts = (f"{ours:,}", f"{theirs:,}", f"{ours / theirs:.2f}")
    lines.append(_line(f"  tokens computed ({epoch['real_tokens']:,} real)", *counts))
    return lines


def _line(label: str, *cells: str) -> str:
    return f"{label:46}" + "".join(f"{cell:>9}" for cell in cells)
