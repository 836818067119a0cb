"""docs/benchmarks.md and its plots from docs/benchmarks.json, without measuring: python -m benchmarks.render."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.page import plots, sections
from benchmarks.page.losses import lost
from benchmarks.page.pieces import PIECES

PAGE = Path("docs/benchmarks.md")
RESULTS = Path("docs/benchmarks.json")

_HEAD = """\
# Benchmarks

Written by `make bench` out of [benchmarks.json](benchmarks.json), never by hand: `python -m benchmarks.render` writes
it again without measuring, `python -m benchmarks.run_all PIECE ...` measures pieces again.

Each side runs in a process of its own, which has its own memory, and the sides take turns step by step. Figures are
min / median / max of the rounds after each side's first step. A ratio is formed in each round, jlora's figure over the
other's: below 1 jlora takes less. Peak memory is that of the process (Linux's VmHWM) from its first step on. *Share*
is the part of the measured time that this machine needs at least: the larger of FLOPs over its rate of matrix products
and bytes over its rate of copying (`benchmarks/roofline.py`).

PEFT runs as its users write it: eager, with the fused AdamW; through `torch.compile` where that is a side. Qwix's LoRA
sits on the same linen models, with the same loss and optimizer. Google's Tunix is no side of its own: it takes its LoRA
from Qwix, for models of its own, and brings some thirty packages more.

"""


def main(argv: Sequence[str]) -> int:
    """Writes the page and its plots; 0 is success."""
    write(json.loads(RESULTS.read_text()))
    return 0


def write(results: dict[str, Any], page: Path = PAGE) -> None:
    """Writes the page, and the plots into a folder of its name."""
    page.with_suffix("").mkdir(parents=True, exist_ok=True)
    drawn = plots.draw(results, page.with_suffix(""))
    page.write_text(text(results, drawn))


def text(results: dict[str, Any], drawn: Sequence[str]) -> str:
    """The page. `drawn` are the plots that there are, by their names without .png."""
    found = {name: piece["result"] for name, piece in results["pieces"].items() if "result" in piece}
    lines = [_HEAD + _environment(results["environment"]), *_commits(results["pieces"]), *_missing(results["pieces"])]
    lines += lost(found)
    for section in sections.SECTIONS:
        lines += section(found, results["pieces"], drawn)
    return "\n".join(lines).rstrip() + "\n"


def _environment(found: dict[str, Any]) -> str:
    names = ("jlora", "jax", "jaxlib", "flax", "torch", "transformers", "peft", "bitsandbytes", "qwix")
    versions = ", ".join(f"{name} {found['versions'][name]}" for name in names if name in found["versions"])
    units = ", ".join(found["bf16_units"]) or "no bf16 units"
    matrix = "" if "amx_bf16" in found["bf16_units"] else " It has no AMX."
    return (
        f"{found['date']}: {found['cpu']}, {found['cpu_count']} cores, {found['memory_bytes'] / 2**30:.0f} GiB,"
        f" {units}.{matrix} Python {found['python']}, {versions}.\n"
    )


def _commits(pieces: dict[str, Any]) -> list[str]:
    """Which code was measured, where there are commits; pieces that were run again by their names have their own."""
    names: dict[str, list[str]] = {}
    for name, piece in pieces.items():
        if piece.get("commit"):
            names.setdefault(piece["commit"][:7], []).append(name)
    found = [f"- {commit}: {', '.join(of_commit)}" for commit, of_commit in names.items()]
    return ["Measured, by commit:", "", *found, ""] if found else []


def _missing(pieces: dict[str, Any]) -> list[str]:
    """What is not on the page, and why."""
    found = {name: piece.get("failed") or piece.get("left_out") for name, piece in pieces.items()}
    lines = [f"- {name}: {reason}" for name, reason in found.items() if reason]
    if others := [name for name in PIECES if name not in pieces]:
        lines.append(f"- {', '.join(others)}: not run yet")
    return ["Not measured:", "", *lines, ""] if lines else []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
