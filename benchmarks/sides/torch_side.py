"""One step in PyTorch, in a process of its own: python -m benchmarks.sides.torch_side --side SIDE --model NAME ...

`peft` is what PEFT's users write, `compiled` the same through torch.compile, `full` trains all weights.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

from benchmarks.common.alternate import serve
from benchmarks.common.timing import timed
from benchmarks.common.work import Work, side_and_work

SIDES = ("peft", "compiled", "full")


def main(argv: Sequence[str]) -> int:
    """Takes a step for each line on stdin."""
    side, work = side_and_work(argv, SIDES)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    serve(partial(start, work, side))
    return 0


def start(work: Work, side: str) -> tuple[Callable[[], float], dict[str, Any]]:
    """(one step a call, which returns the loss; {"trainable", "compile_seconds"})."""
    model = model_of(work, side).train(work.dropout)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Fused is what transformers' Trainer takes and the fastest of PyTorch's three.
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.01, fused=True)
    fast: Any = torch.compile(model) if side == "compiled" else model
    batch = batch_of(work)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=work.dtype == "bfloat16" and side == "full"):
            loss = fast(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    facts: dict[str, Any] = {"trainable": sum(parameter.numel() for parameter in trained)}
    if side == "compiled":
        facts["compile_seconds"] = timed(step)[0]
    return step, facts


def model_of(work: Work, side: str) -> Any:
    """The model with PEFT's adapter (float32, as PEFT keeps it), or all of its weights to be trained."""
    kind = AutoModelForSequenceClassification if work.is_encoder else AutoModelForCausalLM
    options: dict[str, Any] = {"dtype": getattr(torch, work.dtype if side != "full" else "float32")}
    if work.quantize:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, work.dtype),
        )
    model = kind.from_pretrained(work.base, **options)
    if side == "full":
        return model
    return PeftModel.from_pretrained(model, work.adapter, is_trainable=True)


def batch_of(work: Work) -> dict[str, torch.Tensor]:
    """The tokens that every side trains on, and the next ones of a language model."""
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(1000, 30000, (work.rows, work.length + 1), np.int32).astype(np.int64))
    inputs, mask = ids[:, :-1].contiguous(), torch.ones(work.rows, work.length, dtype=torch.int64)
    if work.is_encoder:
        return {"input_ids": inputs, "attention_mask": mask, "labels": torch.arange(work.rows) % 2}
    return {"input_ids": inputs, "attention_mask": mask, "labels": inputs, "shift_labels": ids[:, 1:].contiguous()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
