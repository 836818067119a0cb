"""What a run of train.lm leaves, made without training: a random adapter of the tiny Llama, and both in one."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jlora
from jlora.models.registry import example_batch
from tests.support.adapters.lora_cases import random_adapter
from tests.support.training import lm_data, tiny, tiny_lm


def adapted(**fields: Any) -> tuple[Any, Any, dict[str, Any], jlora.LoraConfig]:
    """(model, base, a random adapter, its settings)."""
    model, base = jlora.load_base(str(tiny_lm.model_folder()))
    targets = ["q_proj", "v_proj", "down_proj"]
    adapter = random_adapter(model.apply, base, example_batch(model.config), targets=targets, **fields)
    return model, base, adapter, jlora.LoraConfig(r=2, lora_alpha=3, target_modules=targets, **fields)


@functools.cache
def run_folder() -> Path:
    """adapter/ and merged/, with a tokenizer in each."""
    folder = tiny.HOME / "lm-run"
    model, base, adapter, config = adapted(task_type="CAUSAL_LM")
    jlora.save_adapter(folder / "adapter", adapter, config, base_model=str(tiny_lm.model_folder()))
    jlora.save_base(folder / "merged", model, jlora.merge(base, adapter))
    for name in ("adapter", "merged"):
        lm_data.byte_tokenizer().save_pretrained(folder / name)
    return folder
