"""llama.cpp's side of benchmarks.llama_cpp, run by a Python that has llama-cpp-python and NumPy but not jlora."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

_CONTEXT = 256


def main(argv: Sequence[str]) -> int:
    """Completes each prompt and writes an .npz with what `complete` returns; 0 is success."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.llama_cpp.side", description=__doc__)
    parser.add_argument("--base", required=True, help="GGUF file of the model")
    parser.add_argument("--lora", help="GGUF file of the adapter")
    parser.add_argument("--prompts", type=Path, required=True, help="JSON list of texts")
    parser.add_argument("--new", type=int, required=True, help="new tokens")
    parser.add_argument("--out", type=Path, required=True, help="the .npz to write")
    flags = parser.parse_args(argv)
    llama = _open(flags.base, flags.lora)
    for number, prompt in enumerate(json.loads(flags.prompts.read_text())):
        np.savez(flags.out / f"{number}.npz", **complete(llama, prompt, flags.new))
    return 0


def complete(llama: Any, prompt: str, new: int) -> dict[str, np.ndarray]:
    """{"prompt": its token ids (P,), "tokens": the greedy ones (new,), "logits": each token's (new, vocab)}."""
    ids = llama.tokenize(prompt.encode(), add_bos=False, special=False)
    llama.reset()
    llama.eval(ids)
    tokens, logits = [], []
    for _ in range(new):
        logits.append(np.array(llama.scores[llama.n_tokens - 1]))
        tokens.append(int(logits[-1].argmax()))
        llama.eval(tokens[-1:])
    return {"prompt": np.array(ids), "tokens": np.array(tokens), "logits": np.stack(logits)}


def _open(base: str, lora: str | None) -> llama_cpp.Llama:
    """The model in float32; llama.cpp's cache of keys and values would be float16."""
    cache = llama_cpp.GGML_TYPE_F32
    options = {"type_k": cache, "type_v": cache, "flash_attn": False, "logits_all": True, "verbose": False}
    return llama_cpp.Llama(base, lora_path=lora, n_ctx=_CONTEXT, **options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
