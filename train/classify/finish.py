"""After the last step: the best step is exported, checked, described and, where asked, pushed."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import jlora
from train.artifacts import adapter_and_merged, model_card
from train.classify import metrics
from train.classify.baseline import no_better
from train.classify.config import Config
from train.classify.data.labels import Labels
from train.classify.evaluate import Task, evaluated, logits_of, make_eval_step
from train.classify.model import Prepared
from train.cli.signs_of_life import working
from train.config.run_config import length_key
from train.devices import placement
from train.devices.processes import is_first
from train.planning.memory_advice import explain_out_of_memory, how_to_end
from train.run import curves
from train.run.recorder import Recorder
from train.task import report
from train.task.report import Results, base_name, conclude, drop_older, write_card

logger = logging.getLogger(__name__)

ROWS_SHOWN = 50
"""How many rows of the validation split are in predictions.csv, and are predicted again by merged/."""


Run = report.Run[Config, Task]


def finish(run: Run, recorder: Recorder) -> dict[str, Any]:
    """Writes adapter/, merged/, predictions.csv, curves.png and, last, report.json, which it returns.

    Of several processes all take part, and the first one writes.
    """
    task = run.task
    logger.info("exporting the best step, %d", run.best.step)
    adapter = placement.put_adapter(task.mesh, jlora.combine(run.best.trainable, run.loop.frozen), run.config)
    with working(f"evaluating the best step on {len(task.splits['validation'].rows):,} validation rows"):
        results = {"validation": run.best.metrics or evaluated(task, adapter, run.adapted.base, "validation")}
    if "test" in task.splits:
        with working(f"evaluating the best step on {len(task.splits['test'].rows):,} test rows"):
            found = evaluated(task, adapter, run.adapted.base, "test")
        if found:
            results["test"] = found
            recorder.log(run.best.step, found, "test")
    with working("predicting the first validation rows"):
        logits = _first_logits(run, adapter, run.adapted.base, task.eval_step)
    facts = _facts(run, results)
    small = placement.to_host(adapter) if run.config.method == "lora" else {}
    if is_first():
        drop_older(run.folder, {"merged": run.config.export.merged})
        _write_small(run, small, logits, facts)
    difference = None
    if run.config.export.merged:
        with explain_out_of_memory(lambda: how_to_end(run.config, run.folder), " after the last step"):
            difference = _export_merged(run, adapter, logits, facts)
    return conclude(run.config, run.folder, _report(run, results, difference))


def _write_small(run: Run, adapter: dict[str, Any], logits: np.ndarray, facts: model_card.Facts) -> None:
    """predictions.csv, curves.png and adapter/."""
    labels = run.task.labels
    write_predictions(run.folder / "predictions.csv", run.task.splits["validation"], logits, labels)
    rows = len(run.task.splits["validation"].rows)
    curves.plot(run.folder / "metrics.jsonl", run.folder / "curves.png", run.loop.metric, run.folder.name, rows)
    if run.config.method == "lora":
        folder, base_model = run.folder / "adapter", base_name(run.config)
        adapter_and_merged.write_adapter(
            folder, run.adapted, adapter, run.tokenizer, labels.config_entries(), base_model
        )
        write_card(run, facts, "adapter")


def write_predictions(path: Path, split: Prepared, logits: np.ndarray, labels: Labels) -> None:
    """The first rows of a split as CSV, one for each row of `logits`: text, label, prediction, probabilities."""
    shown = metrics.probabilities(labels.problem_type, logits)
    pair = ["text_pair"] if split.rows.text_pair is not None else []
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", *pair, "label", "predicted", *labels.names])
        for row in range(len(logits)):
            texts = [split.rows.text[row]] + ([split.rows.text_pair[row]] if split.rows.text_pair else [])
            numbers = [f"{value:.4f}" for value in shown[row]]
            writer.writerow([*texts, split.rows.label[row], predicted(labels, shown[row]), *numbers])


def predicted(labels: Labels, probabilities: np.ndarray) -> str:
    """The predicted class of one row, the classes (`a;b`) of a multi-label one, or the number of a regression."""
    if labels.problem_type == "regression":
        return f"{float(probabilities[0]):.4f}"
    if labels.problem_type == "multi_label_classification":
        return ";".join(name for name, value in zip(labels.names, probabilities, strict=True) if value > 0.5)
    return labels.names[int(np.argmax(probabilities))]


def _first_logits(run: Run, adapter: Any, base: Any, eval_step: Any) -> np.ndarray:
    """Logits (ROWS_SHOWN or fewer, L) of the validation split's first rows, in batches of one shape: one program."""
    task = run.task
    rows, longest = task.splits["validation"], task.buckets[-1:]
    return logits_of(eval_step, adapter, base, rows, longest, task.batch_size, task.mesh, first=ROWS_SHOWN)


def _export_merged(run: Run, adapter: Any, in_memory: np.ndarray, facts: model_card.Facts) -> float:
    """Writes merged/, reads it back, and returns how far its logits of the first rows are from those in memory."""
    folder, dtype = run.folder / "merged", run.config.export.dtype
    with working("writing merged/"):
        adapter_and_merged.write_merged(folder, run.adapted, adapter, run.tokenizer, dtype)
    write_card(run, facts, "merged")
    mesh = run.task.mesh
    with working("reading merged/ back and comparing the first validation rows"):
        model, base = adapter_and_merged.read_back(folder, jnp.dtype(run.config.train.dtype), mesh)
        found = _first_logits(run, None, base, make_eval_step(model.apply, mesh))
    difference = adapter_and_merged.largest_difference(in_memory, found)
    if dtype == run.config.train.dtype == "float32":
        adapter_and_merged.require_equal(difference, folder)
    return difference


def _facts(run: Run, results: Results) -> model_card.Facts:
    labels = run.task.labels
    names = () if labels.problem_type == "regression" else labels.names
    data = run.config.data
    pair = None if data.text_pair is None else (data.text, data.text_pair)
    return report.facts(run, results, problem_type=labels.problem_type, labels=names, pair=pair)


def _report(run: Run, results: Results, difference: float | None) -> dict[str, Any]:
    splits = run.task.splits
    return report.report(
        run,
        results,
        rows={name: len(split.tokens) for name, split in splits.items()},
        rows_cut={name: split.tokens.cut for name, split in splits.items()},
        batch_lengths=list(run.task.buckets),
        note=no_better(run.task.labels, splits["validation"].labels, results["validation"], length_key(run.config)),
        merged_largest_logit_difference=difference,
    )
