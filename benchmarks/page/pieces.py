"""The pieces of `make bench`: what each runs, and how many seconds it may take on two cores."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from benchmarks.common.work import Work

CENTRE = Work("minilm", 32, 64)
"""The encoder's step around which one axis at a time is varied."""

ENCODERS = {
    "encoder-8x64": dataclasses.replace(CENTRE, rows=8),
    "encoder-128x64": dataclasses.replace(CENTRE, rows=128),
    "encoder-32x128": dataclasses.replace(CENTRE, length=128),
    "encoder-8x512": dataclasses.replace(CENTRE, rows=8, length=512),
    "encoder-query-value": dataclasses.replace(CENTRE, targets=("query", "value")),
    "encoder-r64": dataclasses.replace(CENTRE, rank=64),
    "encoder-bert-base": Work("bert-base", 8, 128),
}
"""{piece: work} of the centre's neighbours."""


class Piece(NamedTuple):
    """A command that prints its result as JSON, and the seconds after which it begins no further round."""

    seconds: int
    command: list[str]


def _steps(work: Work, sides: str, seconds: int, *more: str) -> Piece:
    command = ["benchmarks.steps", "--sides", sides, *work.flags(), "--seconds", str(seconds), *more]
    return Piece(seconds, command)


def _generation(rows: int, dtype: str, seconds: int) -> Piece:
    given = ["--rows", str(rows), "--dtype", dtype, "--seconds", str(seconds * 3 // 4)]
    return Piece(seconds, ["benchmarks.generation", *given])


def _growth(axis: str, seconds: int) -> Piece:
    return Piece(seconds, ["benchmarks.growth", "--axis", axis, "--seconds", str(seconds)])


_SMOLLM2 = Work("smollm2", 4, 256)
_2048 = Work("smollm2", 1, 2048)

PIECES: dict[str, Piece] = {
    "machine": Piece(15, ["benchmarks.roofline"]),
    "encoder-centre": _steps(CENTRE, "lora,full,peft,compiled,torch full,qwix,dense,by hand", 140),
    "encoder-dropout": _steps(dataclasses.replace(CENTRE, dropout=True), "lora,peft", 45),
    "lm-4x256": _steps(_SMOLLM2, "lora,peft,qwix", 100),
    "lm-1x2048": _steps(_2048, "lora,peft", 160),
    "lm-2x1024": _steps(Work("smollm2", 2, 1024), "lora,peft", 135),
    "lm-bf16-4x256": _steps(
        dataclasses.replace(_SMOLLM2, dtype="bfloat16"), "lora,peft,lora:float32", 105
    ),
    "lm-bf16-1x2048": _steps(dataclasses.replace(_2048, dtype="bfloat16"), "lora,peft", 110),
    "growth-temporaries": _growth("temporaries", 30),
    "epoch": Piece(330, ["benchmarks.epoch"]),
    "epoch-dropout": Piece(370, ["benchmarks.epoch", "--dropout"]),
    "generation-1-float32": _generation(1, "float32", 110),
    "generation-8-float32": _generation(8, "float32", 160),
    "generation-1-bfloat16": _generation(1, "bfloat16", 90),
    "generation-8-bfloat16": _generation(8, "bfloat16", 130),
    "first-step-classify": Piece(140, ["benchmarks.first_step", "--task", "classify"]),
    "lm-1x8192": _steps(Work("smollm2", 1, 8192), "lora,peft", 220, "--apart", "--rounds", "0"),
    "lm-compiled-4x256": _steps(_SMOLLM2, "lora,compiled", 140),
    "lm-nf4-4x256": _steps(dataclasses.replace(_SMOLLM2, quantize="nf4"), "lora,peft", 130),
    "lm-full-4x256": _steps(_SMOLLM2, "lora,full,torch full", 110),
    **{
        name: _steps(work, "lora,peft", {"encoder-128x64": 60, "encoder-bert-base": 60}.get(name, 50))
        for name, work in ENCODERS.items()
    },
    "growth-tokens": _growth("tokens", 100),
    "growth-ranks": _growth("ranks", 50),
    "growth-layers": _growth("layers", 50),
    "ci": Piece(90, ["benchmarks.short", "--spread", "10"]),
    "merging": Piece(90, ["benchmarks.merging", "--rounds", "2"]),
    "first-step-lm": Piece(80, ["benchmarks.first_step", "--task", "lm"]),
}  # fmt: skip
"""{name: piece}, those that matter most first: what the time does not reach is left out, and said."""
