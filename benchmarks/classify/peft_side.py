"""The same training in PyTorch, as PEFT's users write it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    get_linear_schedule_with_warmup,
)

from train.classify.config import Config
from train.classify.model import Prepared
from train.config.run_config import learning_rate_of


@dataclasses.dataclass
class TorchRun:
    """A training run in PyTorch, one step a call."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    max_grad_norm: float

    def __call__(self, batch: dict[str, torch.Tensor]) -> float:
        """Takes one step; returns the loss."""
        loss = self.model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        return loss.item()

    @property
    def trainable(self) -> int:
        """The number of trained parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)


def start(config: Config, folder: Path, steps: int) -> TorchRun:
    """A run with the config's recipe on the model in `folder`, `steps` steps long; method lora (PEFT) or full."""
    train = config.train
    torch.manual_seed(config.seed)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    if config.method == "lora":
        lora = LoraConfig(
            task_type=TaskType.SEQ_CLS,
            r=config.lora.r,
            lora_alpha=config.lora.lora_alpha,  # type: ignore[arg-type]  # PEFT takes floats too
            lora_dropout=config.lora.lora_dropout,
            target_modules=config.lora.target_modules,
        )
        model = get_peft_model(model, lora)
    model.train(train.dropout)  # dropout is all that evaluation mode switches off
    # Fused is what transformers' Trainer takes and the fastest of PyTorch's three.
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=learning_rate_of(config),
        betas=(train.adam_beta1, train.adam_beta2),
        eps=train.adam_epsilon,
        weight_decay=train.weight_decay,
        fused=True,
    )
    scheduler = get_linear_schedule_with_warmup(optimizer, math.ceil(train.warmup_ratio * steps), steps)
    return TorchRun(model, optimizer, scheduler, train.max_grad_norm or math.inf)


def tensors(inputs: dict[str, np.ndarray], labels: np.ndarray) -> dict[str, torch.Tensor]:
    """A batch of the trainer's as the model takes it: int64 (B, T), labels (B,)."""
    arrays = {**inputs, "labels": labels}
    return {name: torch.from_numpy(np.asarray(array, np.int64)) for name, array in arrays.items()}


def dynamic_padding(
    split: Prepared, tokenizer: PreTrainedTokenizerBase, batch_size: int, seed: int
) -> DataLoader[dict[str, Any]]:
    """Batches in random order, each padded to its own longest row."""
    tokens = split.tokens
    rows = []
    for index in range(len(tokens)):
        at = slice(tokens.offsets[index], tokens.offsets[index + 1])
        row = {"input_ids": tokens.ids[at].tolist(), "labels": int(split.labels[index])}
        if tokens.token_type_ids is not None:
            row["token_type_ids"] = tokens.token_type_ids[at].tolist()
        rows.append(row)
    return DataLoader(
        rows,  # type: ignore[arg-type]
        batch_size=batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(seed),
        collate_fn=DataCollatorWithPadding(tokenizer),
    )
