"""A tiny Llama with a tokenizer of bytes, texts and chats for it, and train.lm run on them in this process."""

from __future__ import annotations

import functools
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jlora.pretrained.load import build, example_batch, save_base
from tests.support.models.decoder_cases import tiny_decoder
from tests.support.training import lm_data, tiny
from train.lm import __main__ as lm

WORDS = ["the", "a", "sea", "ship", "wind", "star", "night", "calm", "cold", "sails", "under", "over", "and", "holds"]


@functools.cache
def model_folder(model_type: str = "llama", **config: Any) -> Path:
    """A folder as `save_pretrained` leaves one: random weights and a tokenizer with a chat template."""
    tokenizer = lm_data.byte_tokenizer()
    ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "max_position_embeddings": 128}
    model = build(tiny_decoder(model_type, **ids, bos_token_id=None, pad_token_id=None, **config))
    batch = {name: jnp.zeros(spec.shape, spec.dtype) for name, spec in example_batch(model.config).items()}
    folder = tiny.HOME / "-".join([model_type, *map(str, config.values())])
    save_base(folder, model, jax.jit(model.init)(jax.random.key(0), batch))
    tokenizer.save_pretrained(folder)
    return folder


@functools.cache
def text_file(words: int = 400, seed: int = 0) -> Path:
    """Words in random order, a line every ten."""
    draw = random.Random(seed)
    lines = [" ".join(draw.choices(WORDS, k=10)) for _ in range(words // 10)]
    path = tiny.HOME / f"text-{words}-{seed}.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@functools.cache
def chats_file(count: int = 16) -> Path:
    """Chats in which the assistant repeats a word."""
    path = tiny.HOME / f"chats-{count}.jsonl"
    words = [WORDS[row % len(WORDS)] for row in range(count)]
    chats = [[{"role": "user", "content": word}, {"role": "assistant", "content": word * 2}] for word in words]
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats), encoding="utf-8")
    return path


def arguments(output: Path, *more: str, model: Path | None = None, data: Path | None = None) -> list[str]:
    """A command line of train.lm: two steps of batch 4 x 32 in float32; a later `key=value` counts."""
    return [
        f"model={model or model_folder()}",
        f"output_dir={output}",
        f"data.train={data or text_file()}",
        "data.max_length=32",
        "train.batch_size=4",
        "train.eval_batch_size=4",
        "train.bucket_count=1",
        "train.dtype=float32",
        "train.max_steps=2",
        "train.log_every=1",
        "train.warmup_steps=0",
        *more,
    ]


def train(output: Path, *more: str, **options: Any) -> Path:
    """Runs train.lm with `arguments`; the run folder, after it has ended well."""
    assert tiny.call(lm.main, arguments(output, *more, **options)) == 0
    return output


@functools.cache
def finished_run(*more: str, model_type: str = "llama") -> Path:
    """A run that several tests read and none changes, with a learning rate that tells."""
    output = Path(tempfile.mkdtemp(dir=tiny.HOME)) / model_type
    telling = ["train.learning_rate=1e-2", "train.max_steps=4", "samples.count=3", "samples.max_length=24"]
    return train(output, *telling, "samples.prompt_tokens=8", *more, model=model_folder(model_type))
