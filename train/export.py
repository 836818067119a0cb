"""Merge an adapter, made here or by PEFT, or write it for vLLM or llama.cpp: jlora export --adapter A ..."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jlora
from jlora.closed_pipe import end_quietly
from jlora.errors import JloraError
from jlora.files.atomic_folder import whole_folder
from jlora.generation.open_model import open_language_model
from jlora.lora.adapted_model import Adapted
from jlora.models.registry import family
from jlora.peft.base_model import base_of
from jlora.pretrained.locate import settle_hub
from jlora.pretrained.source import PretrainedSource
from train.artifacts.merge_for_export import write_merged
from train.classify.classifier import TrainedSource
from train.cli import arguments
from train.cli.exit_codes import exit_code, require_new, require_new_file
from train.cli.log_slow_steps import working
from train.cli.without_torch import keep_torch_from_transformers
from train.sources.refuse_overwrite import require_kept

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM's --max-lora-rank accepts."""
_AUTO_CLASSES = {"SEQ_CLS": "AutoModelForSequenceClassification", "CAUSAL_LM": "AutoModelForCausalLM"}


def main(argv: Sequence[str]) -> int:
    """Runs `jlora export`; returns 0, or 2 after an error that the user can fix (printed on stderr).

    Args:
      argv: the flags of `arguments.make_export_parser`: ["--adapter", "A", "--out", "M"] merges the adapter in folder A
        into its base and writes the model to M. Without --out and --gguf-lora, or if what they name is there and
        --overwrite is not given, that is an error.
    """
    return exit_code(lambda: _export(arguments.make_export_parser().parse_args(argv)))


def _export(options: argparse.Namespace) -> None:
    if options.out is None and options.gguf_lora is None:
        raise JloraError("command line: expected --out FOLDER or --gguf-lora FILE, found neither")
    if options.out is not None:
        require_new(options.out, options.overwrite)
    if options.gguf_lora is not None:
        require_new_file("--gguf-lora", options.gguf_lora, options.overwrite)
    base = options.base or base_of(options.adapter)
    written = [path for path in (options.out, options.gguf_lora) if path is not None]
    require_kept({"--adapter": options.adapter, "--base": base}, written, "give another --out")
    with working(f"reading {base} and {options.adapter}"):
        adapted, tokenizer = _open_adapted(options.adapter, base, options.quantize)
    if options.gguf_lora is not None:
        _write_for_llama_cpp(options, adapted)
    if options.out is not None:
        if options.vllm:
            _write_for_vllm(options.out, adapted, tokenizer, base)
        else:
            with working(f"merging, and writing {options.out}"):
                write_merged(options.out, adapted, adapted.adapter, tokenizer, options.dtype)
            auto = _AUTO_CLASSES[family(adapted.model.config.model_type).task]
            logger.info("merged model: %s", options.out)
            logger.info("It opens with transformers: %s.from_pretrained(%r)", auto, str(options.out))


def _open_adapted(folder: Path, base: str, quantize: Any) -> tuple[Adapted, PreTrainedTokenizerBase]:
    """Loads the adapter and its base, whose config says what kind of model it is."""
    settle_hub(base)
    source = PretrainedSource(base)
    if family(source.config.model_type).task == "CAUSAL_LM":
        language = open_language_model(source, folder, quantize=quantize)
        return language.adapted, language.tokenizer
    if quantize is not None:
        raise JloraError(f"--quantize: expected none for a classifier, whose base is not quantized; found {quantize}")
    trained = TrainedSource(source, folder).load()
    return trained.adapted, trained.tokenizer


def _write_for_llama_cpp(options: argparse.Namespace, adapted: Adapted) -> None:
    half = options.dtype == "float16"
    jlora.save_gguf_lora(
        options.gguf_lora, adapted.adapter, adapted.model.config, dtype="float16" if half else "float32"
    )
    logger.info("adapter for llama.cpp: %s", options.gguf_lora)
    logger.info("Run it: llama-cli -m BASE.gguf --lora %s", options.gguf_lora)


def _write_for_vllm(out: Path, adapted: Adapted, tokenizer: PreTrainedTokenizerBase, base: str) -> None:
    """Writes an adapter with one rank, the scale in B and lora_alpha = r, because vLLM reads no patterns."""
    assert adapted.lora is not None
    adapter = adapted.adapter
    with whole_folder(out) as partial:
        try:
            jlora.save_adapter(partial, adapter, adapted.lora, base_model=base, vllm=True)
        except JloraError as error:
            raise JloraError(f"--vllm: {error}") from error
        tokenizer.save_pretrained(partial)
    logger.info("adapter for vLLM: %s", out)
    rank = max(rank for entry in adapter.values() if isinstance(entry, jlora.LowRank) for rank in entry.ranks)
    flags = f"--enable-lora --max-lora-rank {next(size for size in _VLLM_RANKS if size >= rank)}"
    logger.info("Serve it: vllm serve %s %s --lora-modules NAME=%s", base, flags, out)


if __name__ == "__main__":
    keep_torch_from_transformers()
    sys.exit(end_quietly(lambda: main(sys.argv[1:])))
