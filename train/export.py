"""Merge an adapter, made here or by PEFT, or write it for vLLM: python -m train.export --adapter A --out C [--vllm]."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import jlora
from train.artifacts import write_merged
from train.entry import exit_code, require_new
from train.trained import Trained, base_of, load_adapted

logger = logging.getLogger(__name__)

_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM's --max-lora-rank takes."""


def main(argv: Sequence[str]) -> int:
    """Runs the command; 0 is success, 2 something that the user can mend."""
    return exit_code(lambda: _export(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m train.export", description=__doc__)
    parser.add_argument("--adapter", required=True, type=Path, help="folder of the adapter, in PEFT's format")
    parser.add_argument("--base", help="its base model: folder or hub name; default: the one the adapter names")
    parser.add_argument("--out", required=True, type=Path, help="folder to write to")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="(float32)")
    form.add_argument("--vllm", action="store_true", help="write no merged model but an adapter that vLLM serves")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that holds something")
    return parser


def _export(options: argparse.Namespace) -> None:
    require_new(options.out, options.overwrite)
    trained = load_adapted(options.adapter, options.base)
    if options.vllm:
        _write_for_vllm(options, trained)
        return
    write_merged(options.out, trained.adapted, trained.adapted.adapter, trained.tokenizer, options.dtype)
    logger.info("merged model: %s", options.out)
    logger.info("It opens with transformers: AutoModelForSequenceClassification.from_pretrained(%r)", str(options.out))


def _write_for_vllm(options: argparse.Namespace, trained: Trained) -> None:
    """One rank, the scale in B, lora_alpha = r: vLLM reads no patterns."""
    assert trained.adapted.lora is not None
    base = options.base or base_of(options.adapter)
    adapter = trained.adapted.adapter
    jlora.save_adapter(options.out, adapter, trained.adapted.lora, base_model=base, vllm=True)
    trained.tokenizer.save_pretrained(options.out)
    logger.info("adapter for vLLM: %s", options.out)
    rank = max(rank for entry in adapter.values() if isinstance(entry, jlora.LowRank) for rank in entry.ranks)
    flags = f"--enable-lora --max-lora-rank {next(size for size in _VLLM_RANKS if size >= rank)}"
    logger.info("Serve it: vllm serve %s %s --lora-modules NAME=%s", base, flags, options.out)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
