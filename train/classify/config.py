"""The schema of `train.classify`: every key of a config, its type, default and meaning; and its help."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from train.config.command import PROCESSES, SWITCHES, Command, describe_flags
from train.config.key_problem import KeyProblem
from train.config.run_config import RunConfig
from train.config.sections import Count, DataSource, Positive, Share, Text, TrainSection

Method = Literal["lora", "full", "head"]


class DataConfig(DataSource):
    """Where the rows come from and which columns they use."""

    test: Text | list[Text] | None = Field(default=None, description="rows to report on at the end")
    text: Text = Field(default="text", description="column of the text")
    text_pair: Text | None = Field(default=None, description="column of the second text, for sentence pairs")
    label: Text | list[Text] = Field(
        default="label",
        description="column of the label; or a list of columns that hold 0 or 1, one for each class, for rows with "
        "several labels",
    )
    label_names: list[Text] | dict[str | int | float | bool, Text] | None = Field(
        default=None,
        description="names of the classes in the order of their ids, or a mapping from values to names",
    )
    drop_other_labels: bool = Field(
        default=False,
        description="leave out rows whose label the mapping data.label_names lacks, instead of refusing them",
    )
    max_rows: Count | None = Field(
        default=None, description="use a seeded, class-balanced sample of this many rows of a split"
    )
    max_length: Annotated[int, Field(ge=4)] = Field(
        default=128, description="tokens a row; longer rows are cut, counted and said"
    )
    test_fraction: Share | None = Field(
        default=None,
        description="share of train that is split off, seeded, where data.test is null; null: no test rows",
    )

    @model_validator(mode="after")
    def _mapping_decides_what_to_drop(self) -> Self:
        if self.drop_other_labels and not isinstance(self.label_names, dict):
            raise KeyProblem(
                "data.drop_other_labels", "true needs data.label_names to be a mapping of the values to keep"
            )
        return self

    @model_validator(mode="after")
    def _several_columns_are_several_classes(self) -> Self:
        if not isinstance(self.label, list):
            return self
        if len(set(self.label)) < max(2, len(self.label)):
            raise KeyProblem("data.label", f"expected a column, or two or more different ones; found {self.label}")
        names = self.label_names
        if isinstance(names, dict) or (names is not None and len(names) != len(self.label)):
            raise KeyProblem("data.label_names", f"expected a name for each column of data.label; found {names}")
        return self


class ClassifierTrain(TrainSection):
    """Optimization, evaluation and checkpoints."""

    learning_rate: Positive | dict[Method, Positive] | None = Field(
        default=None,
        description="peak learning rate, or one for each method; null: lora 5e-4, full 5e-5, head 1e-3",
    )
    metric: Text | None = Field(
        default=None,
        description="metric that chooses the best step; null: accuracy, f1_micro (multi-label) or pearson (regression)",
    )


class Config(RunConfig):
    """The resolved configuration of a run of `jlora classify`, as its run folder records it.

    Required are model, output_dir and data: Config(model="org/encoder", output_dir="out",
    data=DataConfig(train="t.csv")).
    """

    learning_rates: ClassVar[dict[str, float]] = {"lora": 5e-4, "full": 5e-5, "head": 1e-3}

    model: Text = Field(
        description="encoder to start from: a hub name, a folder in Hugging Face's format, or "
        "package:PACKAGE/FOLDER in an installed Python package"
    )
    method: Method = Field(
        default="lora", description="lora: adapter and head; full: every weight; head: only the head"
    )
    task: Literal["single_label_classification", "multi_label_classification", "regression"] | None = Field(
        default=None, description="kind of head; null: seen from the labels"
    )
    new_head: bool = Field(
        default=False, description="replace the model's head with a new one if it is for another number of classes"
    )
    data: DataConfig
    train: ClassifierTrain = ClassifierTrain()

    @model_validator(mode="after")
    def _labels_fit_the_task(self) -> Self:
        if self.task == "regression" and self.data.label_names is not None:
            raise KeyProblem("data.label_names", "expected null with task: regression, whose labels are numbers")
        if isinstance(self.data.label, list) and self.task not in (None, "multi_label_classification"):
            raise KeyProblem("data.label", f"expected one column with task: {self.task}; found {self.data.label}")
        return self


COMMAND = Command(
    program="jlora classify",
    purpose="Fine-tunes an encoder as one YAML file says.",
    schema=Config,
    config="configs/sst2.yaml",
    examples=(
        "",
        "lora.r=4 lora.target_modules=query,value output_dir=runs/r4",
        "data.train=my.tsv data.text=review output_dir=runs/mine",
    ),
    flags=describe_flags(*SWITCHES, *PROCESSES),
)
