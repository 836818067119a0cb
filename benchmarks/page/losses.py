"""Where jlora loses: every median of a peer that is better than ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.page.cells import median, quotients

_LEVEL = 1.02
"""Medians closer than that are called level."""
_PEERS = {"peft": "PEFT", "compiled": "PEFT with torch.compile", "torch full": "PyTorch", "qwix": "Qwix",
          "dense": "W + AB", "by hand": "LoRA by hand", "transformers": "transformers"}  # fmt: skip
_OURS = {"torch full": {"full": "jlora's full fine-tuning"}}
_OUR_LORA = {"lora": "jlora", "jlora": "jlora", "cold": "jlora, nothing cached,"}


def lost(found: dict[str, Any]) -> list[str]:
    """The section's lines."""
    measured = {name: result for name, result in found.items() if not name.startswith("growth")}
    lines = [line for name, result in measured.items() for line in _of(name, result)]
    return ["## Where jlora loses", "", *(lines or ["In none of the pieces that were measured."]), ""]


def _of(name: str, result: dict[str, Any]) -> Iterator[str]:
    for ours, peer, above, below in _pairs(result):
        if above["seconds"] and below["seconds"] and not result.get("apart"):
            slower = median(quotients(above["seconds"], below["seconds"]))
            if slower > _LEVEL:
                yield f"- {name}: {ours} takes {slower:.2f} times the time of {_PEERS[peer]}"
        more = above.get("peak_bytes", 0) / below.get("peak_bytes", 1)
        if more > _LEVEL:
            yield f"- {name}: {ours} takes {more:.2f} times the memory of {_PEERS[peer]}"


def _pairs(result: dict[str, Any]) -> Iterator[tuple[str, str, dict, dict]]:
    """(our side, the peer's, what was found of each), each with `seconds` and, where known, `peak_bytes`."""
    sides = {side: _figures(found) for side, found in result.get("sides", {}).items() if "failed" not in found}
    for peer in [side for side in _PEERS if side in sides]:
        for ours, name in _OURS.get(peer, _OUR_LORA).items():
            if ours in sides:
                yield name, peer, sides[ours], sides[peer]


def _figures(found: Any) -> dict[str, Any]:
    """A side's figures, whether it was measured step by step or as a list of whole commands."""
    if isinstance(found, dict):
        return found
    return {
        "seconds": [each["seconds"] for each in found],
        "peak_bytes": max(each["peak_bytes"] for each in found),
    }
