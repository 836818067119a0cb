"""jlora beside PEFT on PyTorch: python -m benchmarks.classify [--train FILE] [--model FOLDER] [--epoch] [--json FILE].

The recipe is that of configs/sst2.yaml; without --train and --model its offline model and data.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import torch

from benchmarks.classify import measure, report
from benchmarks.classify.setup import MAX_LENGTH, Setup, prepare, read_config
from jlora.errors import JloraError
from train.run import environment

_BATCH = 32
_CHUNKS = 8


def main(argv: Sequence[str]) -> int:
    """Runs the command; 0 is success, 2 something that the user can mend."""
    flags = _parser().parse_args(argv)
    jax.config.update("jax_enable_compilation_cache", False)  # compilation is timed
    try:
        config = read_config(flags.train, flags.model)
        with tempfile.TemporaryDirectory() as folder:
            setup = prepare(config, Path(folder))
            torch.set_num_threads(environment.collect()["cpu_count"])
            results = {"environment": _environment(), "recipe": _recipe(setup, config.model)}
            results |= run(setup, flags.repeats, with_epoch=flags.epoch)
    except JloraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    results["environment"]["load_after"] = os.getloadavg()
    print(report.table(results))
    if flags.json:
        flags.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


def run(
    setup: Setup, rounds: int, *, with_epoch: bool, shape: tuple[int, int] = (_BATCH, MAX_LENGTH)
) -> dict[str, Any]:
    """{"shape", "step": {"dropout on": ..., "dropout off": ...}, "epoch": the same or {}}, all plain JSON."""
    switches = {"dropout on": True, "dropout off": False}
    step = {name: measure.steps(setup, *shape, rounds, dropout=on) for name, on in switches.items()}
    epoch = {name: measure.epoch(setup, _CHUNKS, dropout=on) for name, on in switches.items()} if with_epoch else {}
    return {"shape": list(shape), "step": step, "epoch": epoch}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.classify", description=__doc__)
    parser.add_argument("--train", metavar="FILE", help="training rows with the columns sentence and label")
    parser.add_argument("--model", metavar="FOLDER", help="encoder in Hugging Face's format")
    parser.add_argument("--repeats", metavar="N", type=int, default=10, help="rounds of single steps (default 10)")
    parser.add_argument("--epoch", action="store_true", help="measure whole epochs too: about 15 minutes on 2 cores")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures here")
    return parser


def _environment() -> dict[str, Any]:
    """The trainer's description, what PyTorch adds to it, and how busy the machine is before the start."""
    found = environment.collect()
    versions = {name: metadata.version(name) for name in ("torch", "peft")}
    return found | {
        "versions": found["versions"] | versions,
        "torch_threads": torch.get_num_threads(),
        "load_before": os.getloadavg(),
    }


def _recipe(setup: Setup, model: str) -> dict[str, Any]:
    config = setup.config
    shown = config.model_dump(mode="json", by_alias=True, include={"data", "lora", "train", "seed"})
    return {"model": model, "rows": len(setup.split.tokens), "buckets": list(setup.buckets), **shown}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
