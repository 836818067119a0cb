"""The same causal language model with the same adapter, data and order on both sides."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bitsandbytes import functional
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from jlora.lora.adapted_model import Adapted
from jlora.pretrained.load import save_base
from jlora.pretrained.source import PretrainedSource
from train.config.run_config import rows_of_a_step, steps_of
from train.data.bucketing import plan_epoch
from train.lm.config import LMConfig
from train.lm.data.batches import Batch, make_batch
from train.lm.data.examples import Examples
from train.lm.data.packing import Packed
from train.lm.model import prepare_model


@dataclasses.dataclass(frozen=True)
class Setup:
    """A run's config, its model (not quantized), and what PyTorch reads: the base in float32, PEFT's fresh adapter."""

    config: LMConfig
    adapted: Adapted
    base: Path
    adapter: Path


@dataclasses.dataclass(frozen=True)
class Texts:
    """The rows of each split, the padded lengths of batches, and what fills rows up."""

    rows: dict[str, Examples | Packed]
    lengths: tuple[int, ...]
    pad_id: int


def prepare(config: LMConfig, folder: Path) -> Setup:
    """Loads the model, and lets PEFT make the adapter that both sides start from; needs `method: lora`."""
    source = PretrainedSource(config.model)
    dense = prepare_model(_unquantized(config), source)
    assert dense.lora is not None
    save_base(folder / "base", dense.model, dense.base)
    torch.manual_seed(config.seed)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora.r,
        lora_alpha=config.lora.lora_alpha,  # type: ignore[arg-type]  # PEFT takes floats too
        lora_dropout=config.lora.lora_dropout,
        target_modules=dense.lora.target_modules,
        use_rslora=config.lora.use_rslora,
        use_dora=config.lora.use_dora,
    )
    get_peft_model(_torch_base(folder / "base"), lora).save_pretrained(folder / "adapter")
    section = config.lora.model_copy(update={"from_": str(folder / "adapter")})
    config = config.model_copy(update={"lora": section})
    return Setup(config, prepare_model(_unquantized(config), source), folder / "base", folder / "adapter")


def torch_model(setup: Setup) -> PeftModel:
    """The PyTorch model with the same adapter, in training mode, on a GPU where there is one."""
    model = PeftModel.from_pretrained(_torch_base(setup.base), setup.adapter, is_trainable=True).train()
    if setup.config.train.remat:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    dtype = getattr(torch, setup.config.train.dtype)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(device(), torch.float32 if "lora_" in name else dtype)
    return model.to(device())


def round_to_nf4(model: PeftModel) -> None:
    """Replaces the layers' frozen matrices by what bitsandbytes stores of them in NF4, its scales quantized too."""
    for name, parameter in model.named_parameters():
        if "layers" in name and parameter.ndim == 2 and not parameter.requires_grad:
            numbers = parameter.data.flatten()  # of rows shorter than a block its CPU code makes something else
            codes, scales = functional.quantize_4bit(numbers, compress_statistics=True, quant_type="nf4")
            parameter.data = functional.dequantize_4bit(codes, scales).reshape(parameter.shape)


def device() -> torch.device:
    """PyTorch's device."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def training_batches(config: LMConfig, texts: Texts) -> Iterator[Batch]:
    """What the trainer trains on, step by step."""
    rows, size = texts.rows["train"], rows_of_a_step(config)
    per_epoch, steps = steps_of(config, len(rows))
    for step in range(steps):
        epoch, place = divmod(step, per_epoch)
        plan = plan_epoch(rows.lengths, texts.lengths, size, config.seed, epoch)
        yield make_batch(rows, plan[place], size, texts.pad_id)


def random_batch(config: LMConfig, words: int) -> Batch:
    """Tokens of all rows of a step, without padding and all learnt."""
    ids = np.random.default_rng(0).integers(0, words, (rows_of_a_step(config), config.data.max_length + 1), np.int32)
    inputs = {"input_ids": ids[:, :-1], "attention_mask": np.ones_like(ids[:, 1:])}
    return Batch(inputs, ids[:, 1:], np.ones(ids[:, 1:].shape, np.float32))


def torch_sums(model: Any, batch: Batch) -> torch.Tensor:
    """The batch's losses times their weights, summed: what `train.lm.loss` gives, by the plain formula."""
    to = {name: torch.from_numpy(np.asarray(value, np.int64)).to(device()) for name, value in batch.inputs.items()}
    logits = model(input_ids=to["input_ids"], attention_mask=to["attention_mask"]).logits.float()
    targets = torch.from_numpy(np.asarray(batch.targets, np.int64)).to(device())
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return (losses * torch.from_numpy(batch.weights).to(device()).flatten()).sum()


def trained_parameters(model: Any) -> list[torch.nn.Parameter]:
    """Those of A and B."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def torch_optimizer(config: LMConfig, model: Any) -> torch.optim.Optimizer:
    """AdamW as the config has it; its learning rate is set step by step."""
    train = config.train
    return torch.optim.AdamW(
        trained_parameters(model),
        betas=(train.adam_beta1, train.adam_beta2),
        eps=train.adam_epsilon,
        weight_decay=train.weight_decay,
        fused=True,
    )


def torch_step(config: LMConfig, model: Any, optimizer: torch.optim.Optimizer, batch: Batch, rate: float) -> float:
    """One step of PyTorch's, normalized by the learnt tokens and clipped as ours; returns the loss."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss = torch_sums(model, batch) / max(1.0, float(batch.weights.sum()))
    loss.backward()
    if config.train.max_grad_norm:
        torch.nn.utils.clip_grad_norm_(trained_parameters(model), config.train.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def _unquantized(config: LMConfig) -> LMConfig:
    return config.model_copy(update={"quantize": None})


def _torch_base(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
