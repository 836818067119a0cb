"""SST-2 as PEFT's users train it: python -m benchmarks.classify.peft_script --model FOLDER --train FILE ... --out OUT.

Dynamic padding, AdamW with a linear schedule, an evaluation at the end, the adapter and the merged model saved.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    get_linear_schedule_with_warmup,
)

_BATCH = 32
_LENGTH = 64


def main(argv: Sequence[str]) -> int:
    """Trains for an epoch and writes adapter/ and merged/ into --out; 0 is success."""
    flags = _parser().parse_args(argv)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(flags.model)
    lora = LoraConfig(
        task_type="SEQ_CLS", r=8, lora_alpha=16, lora_dropout=0.1 * flags.dropout, target_modules="all-linear"
    )
    model = get_peft_model(AutoModelForSequenceClassification.from_pretrained(flags.model), lora)
    train(model, batches(tokenizer, flags.train, shuffle=True), flags.dropout)
    print(json.dumps({"accuracy": accuracy(model, batches(tokenizer, flags.validation, shuffle=False))}))
    model.save_pretrained(flags.out / "adapter")
    for folder in (flags.out / "adapter", flags.out / "merged"):
        tokenizer.save_pretrained(folder)
    model.merge_and_unload().save_pretrained(flags.out / "merged")
    return 0


def batches(tokenizer: Any, file: Path, *, shuffle: bool) -> DataLoader:
    """Batches of the rows {"sentence", "label"} of a JSONL file, each padded to its own longest row."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    encoded = tokenizer([row["sentence"] for row in rows], truncation=True, max_length=_LENGTH)
    examples = [
        {name: values[index] for name, values in encoded.items()} | {"labels": row["label"]}
        for index, row in enumerate(rows)
    ]
    return DataLoader(examples, _BATCH, shuffle=shuffle, collate_fn=DataCollatorWithPadding(tokenizer))


def train(model: Any, loader: DataLoader, dropout: bool) -> None:
    """One epoch."""
    model.train(dropout)  # dropout is all that evaluation mode switches off
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.01, fused=True)
    scheduler = get_linear_schedule_with_warmup(optimizer, round(0.06 * len(loader)), len(loader))
    for step, batch in enumerate(loader, 1):
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step == 1 or step % 10 == 0:
            print(f"step {step}/{len(loader)}  loss {loss.item():.4f}", file=sys.stderr, flush=True)


def accuracy(model: Any, loader: DataLoader) -> float:
    """The share of rows that are classified right."""
    model.eval()

    def right() -> Iterator[int]:
        for batch in loader:
            labels = batch.pop("labels")
            yield int((model(**batch).logits.argmax(-1) == labels).sum())

    with torch.no_grad():
        return sum(right()) / len(loader.dataset)  # type: ignore[arg-type]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.classify.peft_script", description=__doc__)
    parser.add_argument("--model", metavar="FOLDER", required=True)
    parser.add_argument("--train", metavar="FILE", type=Path, required=True)
    parser.add_argument("--validation", metavar="FILE", type=Path, required=True)
    parser.add_argument("--out", metavar="FOLDER", type=Path, required=True)
    parser.add_argument("--dropout", action="store_true", help="of model and adapter")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
