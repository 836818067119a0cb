"""The protocol of a kind of training: the methods that the runner calls, and the types of their arguments."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

import numpy as np
from jax.sharding import Mesh

from jlora.lora.adapted_model import Adapted
from train.artifacts.merge_for_export import write_merged
from train.config.command import Flags
from train.config.run_config import AnyConfig
from train.data.bucketing import Places, PlannedBatch
from train.devices.compile_ahead import CompiledAhead
from train.loop.assemble import Training
from train.loop.step import TotalLoss
from train.planning.memory_advice import advice
from train.run.best import Best

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class SplitRows(Protocol):
    """The rows of one split: their number and their lengths."""

    @property
    def lengths(self) -> np.ndarray:
        """The number of tokens of each row, int (n,); 1 if rows have no length."""

    def __len__(self) -> int: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """Everything that a task reads before the weights; a task adds its own attributes.

    Attributes:
      model: the module without weights.
      tokenizer: written into adapter/ and merged/; None if there is none.
      rows: {split: its rows}: `train`, `validation` and, if the final report needs it, `test`.
      contents: {split: {name: array}}, the data of the run: it is resumed only with equal arrays.
      metric: the validation metric that chooses the best step.
      curve: the metric in curves.png; None means `metric`.
      width: the length that every row is padded to; None means that a few lengths are chosen for the rows.
      attention: {"kernel": the attention kernel, "reason": why}, for environment.json.
      day: the day on which the data depends, for manifest.json; None if it depends on no day.
      label_entries: keys that a classifier's labels add to config.json, for adapter/labels.json.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase | None
    rows: Mapping[str, SplitRows]
    contents: Mapping[str, Mapping[str, Any]]
    metric: str = "loss"
    curve: str | None = None
    width: int | None = None
    attention: dict[str, str] = dataclasses.field(default_factory=dict)
    day: datetime.date | None = None
    label_entries: dict[str, Any] | None = None


AnyOpened = TypeVar("AnyOpened", bound=Opened)
"""The subclass of Opened of one task."""

Results = Mapping[str, Mapping[str, float]]
"""{split, or another name of what was evaluated: {metric: value}}."""

Found = Sequence[tuple[PlannedBatch, Any]]
"""The batches of a split, each with the result of `TrainingTask.forward`, as numpy arrays."""


@dataclasses.dataclass(frozen=True)
class Run(Generic[AnyConfig, AnyOpened]):
    """A run that is ready for its first step.

    Attributes:
      task: the kind of training, whose methods are called.
      config: the resolved configuration.
      opened: what `TrainingTask.open` returned.
      adapted: the model with its base and the adapter that training starts from.
      mesh: the mesh that they are on; None means one device.
      lengths: the padded lengths of batches, ascending.
      eval_step: `TrainingTask.forward` of the model, compiled ahead.
    """

    task: TrainingTask[AnyConfig, AnyOpened]
    config: AnyConfig
    opened: AnyOpened
    adapted: Adapted
    mesh: Mesh | None
    lengths: tuple[int, ...]
    eval_step: CompiledAhead


@dataclasses.dataclass(frozen=True)
class EndedRun(Run[AnyConfig, AnyOpened]):
    """A run after its last step; it also has the attributes of Run.

    Attributes:
      adapter: of the best step, on the devices.
      folder: the run folder.
      best: the best evaluation: its `step`, `value` and `metrics`.
      times: {part of the run: seconds}.
      offline: whether the config's `offline:` block was used.
    """

    adapter: dict[str, Any]
    folder: Path
    best: Best
    times: dict[str, float]
    offline: bool


class TrainingTask(Protocol[AnyConfig, AnyOpened]):
    """A kind of training. Methods are in the order in which the runner calls them; those with a body are optional."""

    unit: Literal["examples", "tokens"] = "examples"
    """The unit in which the speed of training is measured."""

    records_best: bool = False
    """Whether the metrics of the best step are recorded again at the end, as best/..."""

    def describe(self, config: AnyConfig, flags: Flags) -> None:
        """Prints the output of --dry-run or --preview; writes no files."""

    def open(self, config: AnyConfig, mesh: Mesh | None, *, resume: bool) -> AnyOpened:
        """Reads everything except weights, logs what was left out, and refuses rows that the model cannot process."""

    def build(self, config: AnyConfig, opened: AnyOpened, mesh: Mesh | None) -> Adapted:
        """Loads the weights and makes the adapter, on the mesh if there is one."""

    def loss(self, config: AnyConfig, opened: AnyOpened, model: Any) -> TotalLoss:
        """Returns total_loss(trainable, frozen, base, batch, key): the sum of the batch's losses times its weights."""

    def batch(self, opened: AnyOpened, split: str, planned: PlannedBatch, size: int, places: Places) -> Any:
        """Makes a batch of `size` rows, or its rows at `places`: a tree of arrays with an attribute `weights`."""

    def forward(self, model: Any) -> Callable[[Any, Any, Any], Any]:
        """Returns forward(adapter, base, batch): the outputs for evaluation, without dropout; adapter may be None."""

    def metrics(self, opened: AnyOpened, split: str, found: Found) -> dict[str, float]:
        """Computes the metrics of a split, including `loss`; {} if the split has no labels to compare with."""

    def memory_help(
        self, config: AnyConfig, mesh: Mesh | None, adapted: Adapted | None = None, training: Training | None = None
    ) -> str:
        """Says which settings to reduce after running out of memory, while loading the model or in `training`."""
        return advice(config, None if mesh is None else mesh.shape)

    def predict(self, run: EndedRun[AnyConfig, AnyOpened]) -> Any:
        """Computes predictions of the best step, which `write_files` writes and `compare` compares with merged/."""
        return None

    def card(self, run: EndedRun[AnyConfig, AnyOpened]) -> dict[str, Any] | None:
        """Returns the fields of `model_card.Facts` that the task knows; None if no README.md should be written."""
        return None

    def optional_files(self, config: AnyConfig) -> dict[str, bool]:
        """Returns {name in the run folder: whether this run writes it} of the task's optional files."""
        return {}

    def write_files(self, run: EndedRun[AnyConfig, AnyOpened], adapter: dict[str, Any], predicted: Any) -> None:
        """Writes the task's files into the run folder; called in one process, with the adapter in its memory."""
        return None

    def write_merged(self, run: EndedRun[AnyConfig, AnyOpened]) -> None:
        """Merges base and adapter and writes merged/."""
        folder, tokenizer = run.folder / "merged", run.opened.tokenizer
        write_merged(folder, run.adapted, run.adapter, tokenizer, run.config.export.dtype)

    def compare(self, run: EndedRun[AnyConfig, AnyOpened], results: Results, predicted: Any) -> Any:
        """Reads merged/ back and returns a result for `report`; raises JloraError if it is not the same model."""
        return None

    def write_samples(self, run: EndedRun[AnyConfig, AnyOpened]) -> None:
        """Writes samples generated by the tuned model, after everything else has been exported."""
        return None

    def report(self, run: EndedRun[AnyConfig, AnyOpened], results: Results, compared: Any) -> dict[str, Any]:
        """Returns the task's entries of report.json; a `note` among them is logged at the end, as a warning."""
        return {"rows": {name: len(rows) for name, rows in run.opened.rows.items()}}

    def next_steps(self, config: AnyConfig, opened: AnyOpened) -> list[str]:
        """Returns lines that are logged at the end: what is in the run folder, and what to do with it."""
        return []


@dataclasses.dataclass(frozen=True)
class Finished:
    """The results of a run.

    Attributes:
      report: the content of report.json.
      model, base, adapter: the module, its frozen tree, and the adapter of the best step, on the devices.
      folder: the run folder.
    """

    report: dict[str, Any]
    model: Any
    base: Any
    adapter: dict[str, Any]
    folder: Path

    @property
    def report_file(self) -> Path:
        """The path of report.json."""
        return self.folder / "report.json"

    @property
    def adapter_folder(self) -> Path | None:
        """The folder adapter/, which PEFT opens; None if the method trains no adapter."""
        return _if_there(self.folder / "adapter")

    @property
    def merged_folder(self) -> Path | None:
        """The folder merged/, which transformers opens; None if `export.merged` is false."""
        return _if_there(self.folder / "merged")


def _if_there(folder: Path) -> Path | None:
    return folder if folder.is_dir() else None
