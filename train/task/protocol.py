"""What a kind of training is: the methods that the runner calls, and what it hands to them."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

import numpy as np
from jax.sharding import Mesh

from jlora.lora.adapted_model import Adapted
from train.artifacts.adapter_and_merged import write_merged
from train.config.command import Flags
from train.config.run_config import AnyConfig
from train.data.bucketing import Places, PlannedBatch
from train.devices.programs import CompiledAhead
from train.loop.assemble import Training
from train.loop.step import TotalLoss
from train.planning.memory_advice import advice
from train.run.best import Best

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class SplitRows(Protocol):
    """The rows of one split: how many there are, and how long each is."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int (n,); ones where a row has no length."""

    def __len__(self) -> int: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """What a task reads before it reads any weights; a task adds attributes of its own.

    Attributes:
      model: the module without weights. tokenizer: written beside adapter/ and merged/; None: there is none.
      rows: {split: its rows}: `train`, `validation` and, where the end is to report on it, `test`.
      contents: {split: {name: array}}, of which the run is made: it is resumed with equal arrays alone.
      metric: the validation metric that chooses the best step. curve: the one in curves.png; None: `metric`.
      width: the tokens that every row is padded to; None: a few lengths are chosen for the rows.
      attention: what computes it and why, for environment.json.
      day: the day that the data depend on, for manifest.json; None: they depend on none.
      label_entries: what a classifier's labels add to a config.json, for adapter/labels.json.
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
"""What one task opens."""

Results = Mapping[str, Mapping[str, float]]
"""{split, or what else was evaluated: {metric: value}}."""

Found = Sequence[tuple[PlannedBatch, Any]]
"""The batches of a split, each with what `TrainingTask.forward` computes of it, as numpy arrays."""


@dataclasses.dataclass(frozen=True)
class Run(Generic[AnyConfig, AnyOpened]):
    """A run that is ready for its first step.

    Attributes:
      adapted: the model with its base and the adapter that training starts from.
      mesh: what they lie on; None is one device.
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
    """A run after its last step.

    Attributes:
      adapter: that of the best step, on the devices. folder: the run folder.
      times: {part of the run: seconds}. offline: whether the config's `offline:` block was used.
    """

    adapter: dict[str, Any]
    folder: Path
    best: Best
    times: dict[str, float]
    offline: bool


class TrainingTask(Protocol[AnyConfig, AnyOpened]):
    """One kind of training, in the order in which the runner calls it. What has a body here may be left out."""

    unit: Literal["examples", "tokens"] = "examples"
    """What the speed of training counts."""

    records_best: bool = False
    """Whether the numbers of the best step are recorded once more, as best/..."""

    def describe(self, config: AnyConfig, flags: Flags) -> None:
        """Prints what --dry-run or --preview asks for; writes nothing."""

    def open(self, config: AnyConfig, mesh: Mesh | None, *, resume: bool) -> AnyOpened:
        """Reads everything but weights, says what was left out of it, and refuses rows that the model does not take."""

    def build(self, config: AnyConfig, opened: AnyOpened, mesh: Mesh | None) -> Adapted:
        """Reads the weights and makes the adapter, on the mesh where there is one."""

    def loss(self, config: AnyConfig, opened: AnyOpened, model: Any) -> TotalLoss:
        """total_loss(trainable, frozen, base, batch, key): the batch's losses times its weights, summed."""

    def batch(self, opened: AnyOpened, split: str, planned: PlannedBatch, size: int, places: Places) -> Any:
        """The arrays of a batch of `size` rows, those at `places` of it: a tree with an attribute `weights`."""

    def forward(self, model: Any) -> Callable[[Any, Any, Any], Any]:
        """forward(adapter, base, batch): what evaluation needs of a batch, without dropout; the adapter may be None."""

    def metrics(self, opened: AnyOpened, split: str, found: Found) -> dict[str, float]:
        """The numbers of a whole split, `loss` among them; empty where there is nothing to hold them against."""

    def memory_help(
        self, config: AnyConfig, mesh: Mesh | None, adapted: Adapted | None = None, training: Training | None = None
    ) -> str:
        """What to turn down where memory ran out: while the model was read, or in `training` it."""
        return advice(config, None if mesh is None else mesh.shape)

    def predict(self, run: EndedRun[AnyConfig, AnyOpened]) -> Any:
        """What `write_files` shows of the best step, and `compare` holds merged/ against."""
        return None

    def card(self, run: EndedRun[AnyConfig, AnyOpened]) -> dict[str, Any] | None:
        """The fields of `model_card.Facts` that the task knows; None: the folders get no README.md."""
        return None

    def optional_files(self, config: AnyConfig) -> dict[str, bool]:
        """{name in the run folder: whether this run writes it}, of files of the task that a run may leave out."""
        return {}

    def write_files(self, run: EndedRun[AnyConfig, AnyOpened], adapter: dict[str, Any], predicted: Any) -> None:
        """Writes the task's files beside adapter/; called in one process, with the adapter in its memory."""
        return None

    def write_merged(self, run: EndedRun[AnyConfig, AnyOpened]) -> None:
        """Writes merged/."""
        folder, tokenizer = run.folder / "merged", run.opened.tokenizer
        write_merged(folder, run.adapted, run.adapter, tokenizer, run.config.export.dtype)

    def compare(self, run: EndedRun[AnyConfig, AnyOpened], results: Results, predicted: Any) -> Any:
        """Reads merged/ back and returns what `report` says of it; raises JloraError where it is another model."""
        return None

    def write_samples(self, run: EndedRun[AnyConfig, AnyOpened]) -> None:
        """Writes what the tuned model makes, when everything else is exported."""
        return None

    def report(self, run: EndedRun[AnyConfig, AnyOpened], results: Results, compared: Any) -> dict[str, Any]:
        """The task's entries of report.json; a `note` among them is said at the end, as a warning."""
        return {"rows": {name: len(rows) for name, rows in run.opened.rows.items()}}

    def next_steps(self, config: AnyConfig, opened: AnyOpened) -> list[str]:
        """Lines said at the end: what is in the run folder, and what to do with it."""
        return []


@dataclasses.dataclass(frozen=True)
class Finished:
    """What a run has made.

    Attributes:
      report: as report.json holds it.
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
        """report.json."""
        return self.folder / "report.json"

    @property
    def adapter_folder(self) -> Path | None:
        """adapter/, which PEFT opens; None where the method trains no adapter."""
        return _if_there(self.folder / "adapter")

    @property
    def merged_folder(self) -> Path | None:
        """merged/, which transformers opens; None where `export.merged` is false."""
        return _if_there(self.folder / "merged")


def _if_there(folder: Path) -> Path | None:
    return folder if folder.is_dir() else None
