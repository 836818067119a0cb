"""What both sides of a measurement read: python -m benchmarks.sides.make_inputs --model NAME --rows N --length N ...

The base is written by jlora in Hugging Face's format, the adapter by PEFT; what is there already stays as it is.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common.work import PACKAGES, SHAPES, Work, add_flags
from jlora.pretrained.load import abstract_base, build, load_base, save_base
from jlora.pretrained.locate import model_folder
from jlora.pretrained.source import PretrainedSource
from jlora.tree.leaf_paths import leaves_by_path, replace_leaves


def main(argv: Sequence[str]) -> int:
    """Runs the command; 0 is success."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sides.make_inputs", description=__doc__)
    add_flags(parser)
    make(Work.of(parser.parse_args(argv)))
    return 0


def make(work: Work) -> None:
    """Writes `work.base` and `work.adapter` where they are missing; each appears whole."""
    if not work.base.exists():
        _whole(work.base, lambda folder: write_base(work, folder))
    if not work.adapter.exists():
        _whole(work.adapter, lambda folder: _write_adapter(work, folder))


def write_base(work: Work, folder: Path) -> None:
    """The model of a package with its tokenizer, or random weights in the shape, those of 1B in bfloat16."""
    if work.model in PACKAGES:
        labels = {"num_labels": 2, "key": jax.random.key(0)} if work.is_encoder else {}
        save_base(folder, *load_base(str(model_folder(PACKAGES[work.model])), **labels))
        PretrainedSource(PACKAGES[work.model]).tokenizer.save_pretrained(folder)
        return
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SHAPES[work.model]))
    dtype = "bfloat16" if work.model == "llama-1b" else "float32"
    model = build(PretrainedSource(folder).config)
    save_base(folder, model, _random(abstract_base(model), dtype), dtype=dtype)
    if not work.is_encoder:
        PretrainedSource(PACKAGES["smollm2"]).tokenizer.save_pretrained(folder)


def _random(shapes: Any, dtype: str) -> Any:
    rng = np.random.default_rng(0)

    def leaf(path: str, shape: tuple[int, ...]) -> jax.Array:
        values = rng.standard_normal(shape, np.float32) * np.float32(0.02)
        return jnp.asarray(values + np.float32(path.endswith("/scale")), dtype)

    return replace_leaves(shapes, {path: leaf(path, spec.shape) for path, spec in leaves_by_path(shapes).items()})


def _write_adapter(work: Work, folder: Path) -> None:
    """PEFT's own, of seed 0."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    torch.manual_seed(0)
    kind = AutoModelForSequenceClassification if work.is_encoder else AutoModelForCausalLM
    lora = LoraConfig(
        task_type="SEQ_CLS" if work.is_encoder else "CAUSAL_LM",
        r=work.rank,
        lora_alpha=16,
        lora_dropout=0.1 if work.dropout else 0.0,
        target_modules=work.modules,
    )
    get_peft_model(kind.from_pretrained(work.base), lora).save_pretrained(folder)


def _whole(folder: Path, write: Any) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
        write(Path(unfinished, "new"))
        shutil.move(Path(unfinished, "new"), folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
