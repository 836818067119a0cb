"""The training task of text classifiers; the runner calls its methods."""

from __future__ import annotations

import dataclasses
import logging
import math
import shlex
from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jlora.lora.adapted_model import Adapted
from jlora.pretrained.load import example_batch
from jlora.pretrained.source import PretrainedSource
from train.artifacts import merge_for_export
from train.classify import metrics
from train.classify.baseline import no_better
from train.classify.config import Config
from train.classify.data.batches import Batch, make_batch
from train.classify.data.labels import Labels
from train.classify.data.splits import load_data
from train.classify.evaluate import in_order, logits_forward, logits_of, scores
from train.classify.loss import classification_loss
from train.classify.model import (
    Prepared,
    abstract_model,
    build_model,
    prepare_model,
    prepare_splits,
)
from train.classify.predictions import ROWS_SHOWN, write_predictions
from train.cli.exit_codes import show
from train.cli.log_slow_steps import working
from train.config.command import Flags
from train.config.run_config import length_key
from train.data.bucketing import Places, PlannedBatch
from train.devices.platform import attention_of
from train.loop.evaluation import make_eval_step
from train.loop.step import TotalLoss
from train.planning.parameter_table import summary
from train.task.check_tokens import longest_batch, require_tokens_fit
from train.task.protocol import EndedRun, Found, Opened, Results, TrainingTask

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledTexts(Opened):
    """The data of a classifier: labelled rows, and the classes found in them.

    Attributes:
      source: the encoder.
      rows: {split: texts, tokens and encoded labels}.
      labels: the task and its classes.
    """

    source: PretrainedSource
    rows: dict[str, Prepared]
    labels: Labels


ClassifierRun = EndedRun[Config, LabelledTexts]


class ClassifyTask(TrainingTask[Config, LabelledTexts]):
    """`jlora classify`."""

    def describe(self, config: Config, flags: Flags) -> None:
        """Prints the parameter table of an encoder whose head has the classes that the config names."""
        adapted = abstract_model(config, PretrainedSource(config.model))
        show(summary(adapted.base, adapted.adapter, verbose=flags.verbose, steps=config.train.max_steps))
        logger.info("dry run: only the model's config.json was read, and nothing was written")

    def open(self, config: Config, mesh: Mesh | None, *, resume: bool) -> LabelledTexts:
        """Reads the rows, finds the classes in them, and tokenizes them."""
        source = PretrainedSource(config.model)
        model = build_model(config, source)
        attention = attention_of(config, model, list(example_batch(model.config)), mesh)
        tokenizer = source.tokenizer
        data = load_data(config.data, config.seed, config.task)
        for note in data.notes:
            logger.info(note)
        rows = ", ".join(f"{len(split):,} {name}" for name, split in data.splits.items())
        with working(f"tokenizing {rows} rows"):
            labels, splits = prepare_splits(config, data, tokenizer)
        metric = config.train.metric or metrics.primary(labels.problem_type)
        metrics.require_metric(metric, labels.problem_type, len(labels))
        model = build_model(config, source, **labels.config_entries())
        ids = {name: split.tokens.ids for name, split in splits.items()}
        require_tokens_fit(
            model, ids, longest_batch((split.lengths for split in splits.values()), config.data.max_length)
        )
        return LabelledTexts(
            model=model,
            tokenizer=tokenizer,
            source=source,
            rows=splits,
            labels=labels,
            metric=metric,
            attention=attention,
            contents={name: {**vars(split.tokens), "labels": split.labels} for name, split in splits.items()},
            label_entries=labels.config_entries(),
        )

    def build(self, config: Config, opened: LabelledTexts, mesh: Mesh | None) -> Adapted:
        """Loads the encoder; a head that it does not have is newly initialised."""
        return prepare_model(config, opened.source, opened.labels, mesh)

    def loss(self, config: Config, opened: LabelledTexts, model: Any) -> TotalLoss:
        """Returns the loss: cross-entropy, or the squared error of a regression."""
        return classification_loss(model.apply, opened.labels.problem_type, model_dropout=config.train.dropout)

    def batch(self, opened: LabelledTexts, split: str, planned: PlannedBatch, size: int, places: Places) -> Batch:
        """Makes a batch of padded token ids with their labels."""
        rows = opened.rows[split]
        return make_batch(rows.tokens, rows.labels, planned, size, rows.pad_id, places)

    def forward(self, model: Any) -> Callable[[Any, Any, Any], Any]:
        """Returns the function that computes logits, float32 (B, L)."""
        return logits_forward(model.apply)

    def metrics(self, opened: LabelledTexts, split: str, found: Found) -> dict[str, float]:
        """Computes metrics and mean loss of the labelled rows; only a loss of NaN if the model diverged."""
        logits = in_order(found)
        if not np.isfinite(logits).all():
            return {"loss": math.nan}
        return scores(opened.labels.problem_type, logits, opened.rows[split].labels)

    def predict(self, run: ClassifierRun) -> np.ndarray:
        """Computes the logits of the first validation rows."""
        with working("predicting the first validation rows"):
            return _first_logits(run, run.eval_step, run.adapter, run.adapted.base)

    def card(self, run: ClassifierRun) -> dict[str, Any]:
        """Returns the model card's facts: problem type and classes."""
        labels = run.opened.labels
        names = () if labels.problem_type == "regression" else labels.names
        data = run.config.data
        pair = None if data.text_pair is None else (data.text, data.text_pair)
        return {"problem_type": labels.problem_type, "labels": names, "pair": pair}

    def write_files(self, run: ClassifierRun, adapter: dict[str, Any], predicted: np.ndarray) -> None:
        """Writes predictions.csv."""
        write_predictions(run.folder / "predictions.csv", run.opened.rows["validation"], predicted, run.opened.labels)

    def compare(self, run: ClassifierRun, results: Results, predicted: np.ndarray) -> float:
        """Returns the largest difference of logits of merged/ and the model in memory, on the first validation rows."""
        folder, dtype = run.folder / "merged", run.config.train.dtype
        with working("reading merged/ back and comparing the first validation rows"):
            model, base = merge_for_export.read_back(folder, jnp.dtype(dtype), run.mesh)
            eval_step = make_eval_step(run.task.forward(model), run.mesh)
            found = _first_logits(run, eval_step, None, base)
        difference = merge_for_export.largest_difference(predicted, found)
        if run.config.export.dtype == dtype == "float32":
            merge_for_export.require_equal(difference, folder)
        return difference

    def report(self, run: ClassifierRun, results: Results, compared: float | None) -> dict[str, Any]:
        """Returns the report's entries: rows, rows that were cut, a note if the model is no better than a constant."""
        splits = run.opened.rows
        return {
            "rows": {name: len(split) for name, split in splits.items()},
            "rows_cut": {name: split.tokens.cut for name, split in splits.items()},
            "batch_lengths": list(run.lengths),
            "note": no_better(
                run.opened.labels, splits["validation"].labels, results["validation"], length_key(run.config)
            ),
            "merged_largest_logit_difference": compared,
        }

    def next_steps(self, config: Config, opened: LabelledTexts) -> list[str]:
        """Returns log lines that say what opens the files and how to label new text."""
        lines = ["  adapter/     opens with PEFT"] * (config.method == "lora")
        if config.export.merged:
            lines.append("  merged/      opens with transformers: AutoModelForSequenceClassification.from_pretrained")
        pair = config.data.text_pair
        columns = f"columns {config.data.text} and {pair}" if pair else f"column {config.data.text}"
        command = f"jlora predict --model {shlex.quote(config.output_dir)} --input texts.csv --output labelled.csv"
        return [
            *lines,
            "  report.json  curves.png  predictions.csv  metrics.jsonl  tensorboard/",
            f"Label new text (a file with the {columns}): {command}",
        ]


TASK: TrainingTask[Config, LabelledTexts] = ClassifyTask()


def _first_logits(run: ClassifierRun, eval_step: Callable, adapter: Any, base: Any) -> np.ndarray:
    """Computes logits (at most ROWS_SHOWN, L) of the first validation rows, in batches of one shape (one program)."""
    size, longest = run.config.train.eval_batch_size, run.lengths[-1:]
    step = partial(eval_step, adapter, base)
    return logits_of(step, run.opened.rows["validation"], longest, size, run.mesh, first=ROWS_SHOWN)
