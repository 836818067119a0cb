"""Tiny encoders with a tokenizer, tiny data files, and the commands run on them in this process."""

from __future__ import annotations

import atexit
import contextlib
import csv
import functools
import json
import logging
import os
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from huggingface_hub import constants
from jax.experimental.compilation_cache import compilation_cache
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from jlora.pretrained.load import build, example_batch, save_base
from jlora.tree.leaf_paths import leaves_by_path, replace_leaves
from tests.support.models.encoder_cases import tiny_config
from train.classify import __main__ as classify

ROOT = Path(__file__).parents[3]
EIGHT_DEVICES = (
    "--xla_force_host_platform_device_count=8"
    " --xla_cpu_collective_call_terminate_timeout_seconds=600"  # eight that wait for each other on a busy machine
)
"""Flags of XLA."""
HOME = Path(tempfile.mkdtemp(prefix="jlora-tests-"))
atexit.register(shutil.rmtree, HOME, ignore_errors=True)

WORDS = [
    "a", "an", "the", "this", "that", "it", "is", "was", "very", "film", "plot", "actor", "scene", "story", "music",
    "end", "so", "too", "quite", "rather", "not", "never", "always", "and", "but", "with", "of", "in",
    "good", "bad", "fine", "dull", "long",
]  # fmt: skip
_SPECIAL = ["[CLS]", "[PAD]", "[SEP]", "[UNK]"]
_HEADS = ("classifier.", "pre_classifier.")


@functools.cache
def model_folder(family: str = "bert", *, head: bool = False, **config: Any) -> Path:
    """A folder as `save_pretrained` leaves one: random weights (with a classifier where `head`) and a tokenizer."""
    folder = HOME / "-".join([family, *(["head"] if head else []), *map(str, config.values())])
    model = build(tiny_config(family, pad_token_id=1, bos_token_id=0, eos_token_id=2, **config))
    batch = {name: jnp.zeros(spec.shape, spec.dtype) for name, spec in example_batch(model.config).items()}
    base = jax.jit(model.init)(jax.random.key(0), batch)
    save_base(folder, model, _noisy(base))
    if not head:
        drop_keys(folder, *_HEADS)
    tokenizer(typed=family == "bert").save_pretrained(folder)
    return folder


def drop_keys(folder: Path, *prefixes: str) -> None:
    """Takes the keys that begin so out of the folder's weights."""
    file = folder / "model.safetensors"
    kept = {key: value for key, value in load_file(file).items() if not key.startswith(prefixes)}
    save_file(kept, file, metadata={"format": "pt"})


def tokenizer(*, typed: bool) -> PreTrainedTokenizerFast:
    """One token a word of WORDS, [CLS] ... [SEP] around a text."""
    vocabulary = {word: index for index, word in enumerate([*_SPECIAL, *WORDS])}
    fast = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 0), ("[SEP]", 2)],
    )
    names = ["input_ids", "token_type_ids", "attention_mask"] if typed else ["input_ids", "attention_mask"]
    special = {"cls_token": "[CLS]", "pad_token": "[PAD]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=fast, model_max_length=20, model_input_names=names, **special)


def texts(count: int, seed: int = 0) -> list[tuple[str, int]]:
    """(text, 1 where it says `good`, 0 where it says `bad`), half of each."""
    draw = random.Random(seed)
    rows = []
    for row in range(count):
        words = draw.choices(WORDS[:28], k=draw.randint(2, 11))
        words.insert(draw.randrange(len(words) + 1), ("bad", "good")[row % 2])
        rows.append((" ".join(words), row % 2))
    return rows


@functools.cache
def data_file(count: int = 24, seed: int = 0, task: str = "single") -> Path:
    """A CSV with the columns text, other and label; `task` is single, multi or regression."""
    path = HOME / f"{task}-{count}-{seed}.csv"
    labels = {"single": str, "multi": lambda y: ("dull;long", "fine")[y], "regression": lambda y: str(0.5 + 2 * y)}
    rows = texts(count, seed)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "other", "label"])
        writer.writerows([text, rows[-1 - i][0], labels[task](label)] for i, (text, label) in enumerate(rows))
    return path


def arguments(output: Path, *more: str, model: Path | None = None, task: str = "single") -> list[str]:
    """A command line of train.classify: two steps of batch 8, float32, tiny BERT, no dropout; later `key=value` count.

    One bucket and no dropout keep compilations, which are most of a tiny run's time, few and short.
    """
    return [
        f"model={model or model_folder()}",
        f"output_dir={output}",
        f"data.train={data_file(24, 0, task)}",
        f"data.validation={data_file(10, 1, task)}",
        "data.max_length=16",
        "train.batch_size=8",
        "train.eval_batch_size=8",
        "train.bucket_count=1",
        "train.dropout=false",
        "train.dtype=float32",
        "train.max_steps=2",
        "train.log_every=1",
        *more,
    ]


def train(output: Path, *more: str, **options: Any) -> Path:
    """Runs train.classify with `arguments`; the run folder, after it has ended well."""
    assert call(classify.main, arguments(output, *more, **options)) == 0
    return output


@functools.cache
def finished_run(*more: str, family: str = "bert", task: str = "single") -> Path:
    """A run that several tests read and none changes: every linear layer adapted, a learning rate that tells."""
    adapted = [
        "lora.target_modules=all-linear",
        "train.learning_rate=1e-2",
        "train.max_steps=4",
        "train.warmup_steps=0",
    ]
    output = Path(tempfile.mkdtemp(dir=HOME)) / f"{family}-{task}"
    return train(output, *adapted, *more, model=model_folder(family), task=task)


def call(main: Any, argv: Sequence[Any]) -> int:
    """The exit code of a command's `main`, run so that it changes nothing for the tests after it."""
    with isolated():
        return main([str(argument) for argument in argv])


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """What a command changes in its process (environment, logging, compilation cache) is put back at the end."""
    root, ours = logging.getLogger(), [logging.getLogger(name) for name in ("jlora", "train", "__main__")]
    before = [(logger, logger.level) for logger in (root, *ours)], root.handlers[:]
    cache = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    promotion = jax.config.jax_numpy_dtype_promotion
    with (
        mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(HOME / "cache")}),
        mock.patch.object(constants, "HF_HUB_OFFLINE", constants.HF_HUB_OFFLINE),
    ):
        compilation_cache.reset_cache()
        # optax.adamw raises a float to an integer's power. Not by a context, which the compiler's thread would not see.
        jax.config.update("jax_numpy_dtype_promotion", "standard")
        try:
            yield
        finally:
            jax.config.update("jax_numpy_dtype_promotion", promotion)
            for logger, level in before[0]:
                logger.setLevel(level)
            root.handlers[:] = before[1]
            jax.config.update("jax_compilation_cache_dir", cache[0])
            jax.config.update("jax_persistent_cache_min_compile_time_secs", cache[1])
            compilation_cache.reset_cache()


def environment(**given: str) -> dict[str, str]:
    """The environment of a process of its own, where no hub answers unless HF_ENDPOINT is given."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(HOME / "hf")}
    return inherited | nowhere | {"XDG_CACHE_HOME": str(HOME / "cache")} | given


def report(folder: Path) -> dict[str, Any]:
    """The run's report.json."""
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def tensors(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of the adapter/ or merged/ folder."""
    name = "adapter_model" if (folder / "adapter_config.json").exists() else "model"
    return load_file(folder / f"{name}.safetensors")


def contents(folder: Path) -> dict[str, bytes]:
    """{relative path: bytes} of every file below a folder; empty where it is not there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _noisy(base: Any) -> Any:
    """Every leaf moved a little, so that no bias is zero and no layer norm trivial."""
    draw = np.random.default_rng(0)
    leaves = {
        path: leaf + 0.1 * draw.normal(size=leaf.shape).astype("f") for path, leaf in leaves_by_path(base).items()
    }
    return replace_leaves(base, leaves)
