"""The part of the config schema that all training commands share."""

from __future__ import annotations

import math
import os
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import Field, field_validator, model_validator

from jlora.files import yaml12
from train.config.key_problem import KeyProblem
from train.config.sections import (
    DataSource,
    ExportSection,
    HubSection,
    LoraSection,
    MeshSection,
    Section,
    Seed,
    Text,
    TrainSection,
)


class RunConfig(Section):
    """The keys that every training command has; a command's own schema narrows them and adds its own.

    Only subclasses are made: `train.classify.config.Config` and `train.lm.config.LMConfig`.
    """

    learning_rates: ClassVar[dict[str, float]]
    """{method: the peak learning rate if the config gives none}."""

    model: Text = Field(description="model to start from")
    method: str
    output_dir: Text = Field(description="the run folder itself")
    seed: Seed = Field(default=0, description="seed of initialization, dropout, order and sampling")
    tracker: Literal["none", "wandb", "trackio"] = Field(
        default="none", description="where metrics go besides the run folder"
    )
    project: Text = Field(default="jlora", description="the tracker's project that the run goes to")
    data: DataSource
    lora: LoraSection = LoraSection()
    train: TrainSection = TrainSection()
    mesh: MeshSection = MeshSection()
    export: ExportSection = ExportSection()
    hub: HubSection = HubSection()
    offline: dict[str, Any] | None = Field(
        default=None,
        exclude=True,  # `train.cli.resolve` has applied or dropped it
        description="any of these keys, laid over the file with --offline or where the hub cannot be reached",
    )

    @field_validator("output_dir")
    @classmethod
    def _home_is_the_users(cls, folder: str) -> str:
        return os.path.expanduser(folder)

    @model_validator(mode="after")
    def _parts_fit_the_method(self) -> Self:
        rates = self.train.learning_rate
        if isinstance(rates, dict) and self.method not in rates:
            given = ", ".join(rates) or "no method"
            raise KeyProblem(f"train.learning_rate.{self.method}", f"missing; the mapping has {given}")
        if self.method != "lora" and not self.export.merged:
            raise KeyProblem("export.merged", f"expected true with method: {self.method}, which leaves nothing else")
        if self.method != "lora" and self.lora.from_ is not None:
            raise KeyProblem("lora.from", f"expected null with method: {self.method}, found {self.lora.from_!r}")
        if self.method != "lora" and self.train.loraplus_lr_ratio is not None:
            found = f"found {self.train.loraplus_lr_ratio:g}"
            raise KeyProblem("train.loraplus_lr_ratio", f"expected null with method: {self.method}, {found}")
        return self


AnyConfig = TypeVar("AnyConfig", bound=RunConfig)
"""The config class of one command."""


def learning_rate_of(config: RunConfig) -> float:
    """Returns the peak learning rate of the config's method.

    It is `train.learning_rate`, that mapping's entry for `method`, or if it is null the entry in
    `config.learning_rates`.
    """
    rates = config.train.learning_rate
    if isinstance(rates, float):
        return rates
    return (config.learning_rates if rates is None else rates)[config.method]


def order_seed_of(config: RunConfig) -> int:
    """Returns the seed of the order of the training rows: `train.data_seed`, or if it is null `seed`."""
    return config.seed if config.train.data_seed is None else config.train.data_seed


def to_yaml(config: RunConfig) -> str:
    """Writes a config's keys and values as YAML, without `offline`; read as a config file, it gives an equal config."""
    return yaml12.dump(config.model_dump(by_alias=True))


def rows_of_a_step(config: RunConfig) -> int:
    """Returns the rows of an optimizer step: train.batch_size * train.gradient_accumulation_steps."""
    return config.train.batch_size * config.train.gradient_accumulation_steps


def length_key(config: RunConfig) -> str:
    """Returns the key that says how long the run trains: train.max_steps if that is set, else train.epochs."""
    return "train.epochs" if config.train.max_steps is None else "train.max_steps"


def steps_of(config: RunConfig, rows: int) -> tuple[int, int]:
    """Returns (optimizer steps of an epoch, optimizer steps of the run) for `rows` training rows.

    A step has batch_size * gradient_accumulation_steps rows; a last one that is not full is a step too. The run's steps
    are `train.max_steps`, or else `train.epochs` epochs, rounded, at least one.
    """
    per_epoch = math.ceil(rows / rows_of_a_step(config))
    return per_epoch, config.train.max_steps or max(1, round(config.train.epochs * per_epoch))
