"""Sections and value types that the configs of all training commands share."""

from __future__ import annotations

import os
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from jlora.lora.named_initializations import INITIALIZATIONS, find_initialization, is_residual
from train.config.key_problem import KeyProblem

Count = Annotated[int, Field(ge=1)]
Rank = Annotated[int, Field(ge=1, le=2**16)]
Whole = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""JAX drops the higher bits of a key's seed."""
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Parts = Annotated[int, Field(ge=-1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]

_NEEDS_DATA: dict[Any, str] = {
    "eva": "eva: jlora.init_eva makes such an adapter; jlora.save_adapter it, and give lora.from=FOLDER",
    "lora_ga": "lora_ga: jlora.init_lora_ga makes a base and an adapter; save both, and give model= and lora.from=",
}


class Section(BaseModel):
    """A mapping of keys: no other keys, no conversions between types, no changes.

    Made of keyword arguments; those without a default are required, and wrong ones raise pydantic.ValidationError. The
    key `from` is given as **{"from": ...} and read as `from_`. `model_copy(update={...})` makes a changed copy.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class DataSource(Section):
    """Where the rows come from."""

    train: Text | list[Text] = Field(
        description="rows to train on: a hub data set (owner/name or owner/name:split), a file (.csv .tsv "
        ".json .jsonl .parquet), a list of files, or package:PACKAGE/FILE in an installed Python package; "
        "on the command line it drops the splits and source settings that were not given with it"
    )
    validation: Text | list[Text] | None = Field(
        default=None, description="rows that choose the best step; null: split off from train"
    )
    config: Text | None = Field(
        default=None, description="configuration of a hub data set, such as mrpc of nyu-mll/glue"
    )
    revision: Text | None = Field(default=None, description="branch, tag or commit of a hub data set")
    encoding: Text = Field(default="utf-8", description="encoding of text files")
    separator: Literal[",", ";", "|"] = Field(default=",", description="field separator of .csv files")
    skip_bad_rows: bool = Field(
        default=False, description="leave out rows that cannot be read, and count and log them, instead of stopping"
    )
    validation_fraction: Share = Field(
        default=0.1, description="share of train that is split off, seeded, where data.validation is null"
    )
    max_length: Annotated[int, Field(ge=4)]


class LoraSection(Section):
    """The adapter, in the words of PEFT's LoraConfig."""

    initializations: ClassVar[tuple[str, ...]] = ()
    """Values of `init_lora_weights` that a command accepts in addition to the library's."""

    r: Rank = Field(default=8, description="rank of the update")
    lora_alpha: Annotated[int, Field(gt=0)] | Positive = Field(
        default=8, description="the update is scaled by lora_alpha / r"
    )
    lora_dropout: BelowOne = Field(default=0.0, description="dropout on the input of the update")
    target_modules: Text | list[Text] | None = Field(
        default=None,
        description="modules to adapt: all-linear, a regular expression for the whole dotted name, or a list "
        "of last components of names; null: what PEFT takes for the model",
    )
    exclude_modules: Text | list[Text] | None = Field(
        default=None, description="modules to leave out, written like target_modules"
    )
    modules_to_save: list[Text] | None = Field(
        default=None,
        description="modules trained whole; null: the classification head; []: none, the head is frozen too",
    )
    rank_pattern: dict[str, Rank] = Field(default={}, description="r for single modules, {regular expression: r}")
    alpha_pattern: dict[str, Annotated[int, Field(gt=0)] | Positive] = Field(
        default={}, description="lora_alpha for single modules, {regular expression: lora_alpha}"
    )
    layers_to_transform: Whole | list[Whole] | None = Field(
        default=None,
        description="numbers of the layers to adapt, from 0, with a list of target_modules; null: all",
    )
    use_rslora: bool = Field(default=False, description="scale by lora_alpha / sqrt(r)")
    use_dora: bool = Field(default=False, description="train the norms of the adapted weights too (DoRA)")
    init_lora_weights: bool | Text = Field(
        default=True,
        description="true: A Kaiming uniform, B zero; false: B random too; gaussian; orthogonal; or out of the base's "
        "weights: pissa, pissa_niter_N (N steps, faster), olora; adapter/ has rank 2 r then",
    )
    bias: Literal["none", "all", "lora_only"] = Field(
        default="none", description="biases that are trained: none, all, or those of adapted modules"
    )
    trainable_token_indices: list[Whole] | dict[str, list[Whole]] | None = Field(
        default=None, description="ids of tokens whose embeddings are trained, or {name of an embedding or head: ids}"
    )
    ensure_weight_tying: bool = Field(
        default=False,
        description="keep a tied embedding and output head one table when one of them is trained; false: they become "
        "two tables, in merged/ too",
    )
    from_: Text | None = Field(
        default=None, alias="from", description="folder of an adapter in PEFT's format to start from"
    )

    @field_validator("from_")
    @classmethod
    def _home_is_the_users(cls, folder: str | None) -> str | None:
        return folder and os.path.expanduser(folder)

    @model_validator(mode="after")
    def _initialization_needs_no_data(self) -> Self:
        given = self.init_lora_weights
        if given in _NEEDS_DATA:
            raise KeyProblem("lora.init_lora_weights", f"expected one that needs no data, found {_NEEDS_DATA[given]}")
        known = [one for one in INITIALIZATIONS if not one.needs_data]
        known = [one for one in known if one.name != "loftq" or "loftq" in self.initializations]
        if not isinstance(given, bool) and find_initialization(given) not in known:
            *names, last = ("true", "false", *(one.name for one in known))
            raise KeyProblem("lora.init_lora_weights", f"expected {', '.join(names)} or {last}; found {given!r}")
        return self

    @property
    def is_residual(self) -> bool:
        """Whether training starts with part of the base's weights moved into the adapter (a residual base)."""
        return is_residual(self.init_lora_weights)


class TrainSection(Section):
    """Optimization, evaluation and checkpoints."""

    epochs: Positive = Field(default=3.0, description="passes over the training rows")
    max_steps: Count | None = Field(default=None, description="optimizer steps, instead of train.epochs")
    batch_size: Count = Field(default=32, description="rows a batch")
    eval_batch_size: Count = Field(default=64, description="rows a batch in evaluation")
    gradient_accumulation_steps: Count = Field(default=1, description="batches an optimizer step")
    learning_rate: Any = Field(default=None, description="peak learning rate, or {method: rate}; null: the command's")
    loraplus_lr_ratio: Positive | None = Field(
        default=None, description="LoRA+: by what the learning rate is multiplied for the B of adapters; null: 1"
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(default="linear", description="decay after the warmup")
    warmup_ratio: BelowOne = Field(default=0.06, description="share of the steps that warm up")
    warmup_steps: Whole | None = Field(default=None, description="steps that warm up, instead of train.warmup_ratio")
    weight_decay: NotNegative = Field(default=0.01, description="decoupled decay of matrices, not of biases and norms")
    max_grad_norm: NotNegative | None = Field(
        default=1.0, description="clip the gradient's global norm; null or 0: off"
    )
    adam_beta1: BelowOne = Field(default=0.9, description="AdamW's decay of the first moment")
    adam_beta2: BelowOne = Field(default=0.999, description="AdamW's decay of the second moment")
    adam_epsilon: Positive = Field(default=1e-8, description="AdamW's epsilon")
    eval_every: Count | None = Field(default=None, description="steps between evaluations; null: once an epoch")
    checkpoint_every: Count | None = Field(
        default=None, description="steps between checkpoints; null: at each evaluation"
    )
    keep_checkpoints: Count = Field(default=2, description="newest checkpoints to keep, the best apart")
    early_stopping_patience: Count | None = Field(
        default=None, description="stop after this many evaluations without a better metric; null: never"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="type of the computation, adapters stay float32; auto: bfloat16 on GPUs, TPUs and CPUs that have "
        "units for it (avx512_bf16, amx_bf16), else float32",
    )
    attention: Literal["auto", "blockwise", "cudnn", "splash", "full"] = Field(
        default="auto",
        description="what computes attention: cudnn (NVIDIA GPUs), splash (TPUs), blockwise (everywhere), full (all "
        "scores at once, to compare with); auto: the fastest that can",
    )
    remat: bool = Field(default=False, description="recompute activations in the backward pass, to save memory")
    dropout: bool = Field(default=True, description="the model's own dropout while training")
    bucket_count: Count | None = Field(
        default=None,
        description="batch lengths at most: rows of like length share a batch; null: as many as save more time "
        "over the run than compiling them takes",
    )
    data_seed: Seed | None = Field(default=None, description="seed of the order of the rows; null: seed")
    log_every: Count = Field(default=10, description="steps between log lines")
    eval_on_start: bool = Field(
        default=True, description="also evaluate the model before training, for curves.png and the end of the log"
    )
    max_hours: Positive | None = Field(
        default=None, description="hours after which the run saves and ends with exit code 75; null: no limit"
    )


class MeshSection(Section):
    """How several devices share the work; see docs/devices.md."""

    data: Parts = Field(
        default=-1, description="shards of the batch, each with all weights; -1: all devices that the others leave"
    )
    fsdp: Parts = Field(
        default=1,
        description="shards of the batch and of the weights; a layer's weights are gathered when it runs",
    )
    tensor: Parts = Field(default=1, description="tensor parallelism: shards of each layer's weights and of its work")
    adapters: Literal["replicated", "inherit"] = Field(
        default="replicated",
        description="replicated: the whole adapter on each device; inherit: sharded like the weights it adapts",
    )


class ExportSection(Section):
    """What is written in addition to the adapter."""

    merged: bool = Field(default=True, description="write merged/, a whole Hugging Face checkpoint")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="type of the weights in merged/"
    )


class HubSection(Section):
    """Upload to the Hugging Face hub."""

    push: bool = Field(default=False, description="upload the result when the run is done")
    repo: Text | None = Field(default=None, description="owner/name to upload to")
    private: bool = Field(default=True, description="make a new repository private")

    @model_validator(mode="after")
    def _push_has_a_target(self) -> Self:
        if self.push and self.repo is None:
            raise KeyProblem("hub.repo", "missing; hub.push: true needs the owner/name to upload to")
        return self
