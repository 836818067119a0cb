"""After the last step: the best step is evaluated, exported, checked, described and, where asked, pushed."""

from __future__ import annotations

import csv
import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from transformers import PreTrainedTokenizerBase

import jlora
from train import artifacts, card, curves, environment, metrics
from train.adapted import Adapted
from train.checkpoint import Best
from train.config import Config
from train.evaluate import Task, logits_of, make_eval_step, scores
from train.hub_names import data_hub_names, model_hub_names
from train.labels import Labels
from train.loop import Loop
from train.prepare import Prepared
from train.record import Recorder
from train.shipping import base_name, conclude, place

logger = logging.getLogger(__name__)

PREDICTIONS_SHOWN = 50


@dataclasses.dataclass(frozen=True)
class Run:
    """A run after its last step: all that the folder's files are made of."""

    config: Config
    folder: Path
    loop: Loop
    adapted: Adapted
    task: Task
    tokenizer: PreTrainedTokenizerBase
    best: Best
    times: dict[str, float]
    offline: bool


def finish(run: Run, recorder: Recorder) -> dict[str, Any]:
    """Writes adapter/, merged/, predictions.csv, curves.png and, last, report.json, which it returns."""
    adapter, task = jlora.combine(run.best.trainable, run.loop.frozen), run.task
    logits = {name: _logits(run, adapter, run.adapted.base, task.eval_step, name) for name in _evaluated(run)}
    results = {name: scores(task.labels.problem_type, logits[name], task.splits[name].labels) for name in logits}
    results = {name: found for name, found in results.items() if found}
    if "test" in results:
        recorder.log(run.best.step, results["test"], "test")
    write_predictions(run.folder / "predictions.csv", task.splits["validation"], logits["validation"], task.labels)
    facts = _facts(run, results)
    if run.config.method == "lora":
        base_model = base_name(run.config)
        artifacts.write_adapter(run.folder / "adapter", run.adapted, adapter, run.tokenizer, task.labels, base_model)
        _write_card(run, facts, "adapter")
    difference = _export_merged(run, adapter, logits["validation"], facts) if run.config.export.merged else None
    curves.plot(run.folder / "metrics.jsonl", run.folder / "curves.png", run.loop.metric, run.folder.name)
    return conclude(run.config, run.folder, _report(run, results, difference))


def write_predictions(path: Path, split: Prepared, logits: np.ndarray, labels: Labels) -> None:
    """The first rows of a split as CSV: text, the label given, the one predicted, and the probabilities."""
    shown = metrics.probabilities(labels.problem_type, logits)
    pair = ["text_pair"] if split.rows.text_pair is not None else []
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", *pair, "label", "predicted", *labels.names])
        for row in range(min(PREDICTIONS_SHOWN, len(split.rows))):
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


def _evaluated(run: Run) -> list[str]:
    return [name for name in ("validation", "test") if name in run.task.splits]


def _logits(run: Run, adapter: Any, base: Any, eval_step: Any, split: str) -> np.ndarray:
    size = run.config.train.eval_batch_size
    return logits_of(eval_step, adapter, base, run.task.splits[split], run.task.buckets, size)


def _export_merged(run: Run, adapter: Any, in_memory: np.ndarray, facts: card.Facts) -> float:
    """Writes merged/, reads it back, and returns the largest difference of its logits on the validation split."""
    folder, dtype = run.folder / "merged", run.config.export.dtype
    artifacts.write_merged(folder, run.adapted, adapter, run.tokenizer, dtype)
    _write_card(run, facts, "merged")
    model, base = artifacts.read_back(folder, jnp.dtype(run.config.train.dtype))
    found = _logits(run, None, base, make_eval_step(model.apply), "validation")
    difference = artifacts.largest_difference(in_memory, found)
    if dtype == run.config.train.dtype == "float32":
        artifacts.require_equal(difference, folder)
    return difference


def _write_card(run: Run, facts: card.Facts, kind: card.Kind) -> None:
    text = card.model_card(dataclasses.replace(facts, where=place(run.config, run.folder, kind)), kind)
    (run.folder / kind / "README.md").write_text(text, encoding="utf-8")


def _facts(run: Run, results: dict[str, dict[str, float]]) -> card.Facts:
    config, lora = run.config, run.adapted.lora
    models, data = model_hub_names(config), data_hub_names(config)
    return card.Facts(
        name=run.folder.name,
        where=str(run.folder),
        method=config.method,
        problem_type=run.task.labels.problem_type,
        base_model=base_name(config),
        dataset=", ".join([config.data.train] if isinstance(config.data.train, str) else config.data.train),
        labels=() if run.task.labels.problem_type == "regression" else run.task.labels.names,
        results=results,
        command=environment.command(),
        base_model_id=models[0] if models else None,
        dataset_id=data[0] if data else None,
        lora={} if lora is None else {k: v for k, v in dataclasses.asdict(lora).items() if v not in (None, {}, ())},
        versions=environment.versions(),
    )


def _report(run: Run, results: dict[str, dict[str, float]], difference: float | None) -> dict[str, Any]:
    total, trainable = jlora.count_parameters(run.adapted.base, run.adapted.adapter)
    splits = run.task.splits
    return {
        "metrics": results,
        "best": {"step": run.best.step, "metric": run.loop.metric, "value": run.best.value},
        "parameters": {"total": total, "trainable": trainable, "percent": round(100 * trainable / total, 4)},
        "sources": {"model": run.config.model, "data": run.config.data.train, "offline": run.offline},
        "rows": {name: len(split.tokens) for name, split in splits.items()},
        "rows_cut": {name: split.tokens.cut for name, split in splits.items()},
        "batch_lengths": list(run.task.buckets),
        "times": {name: round(seconds, 3) for name, seconds in run.times.items()},
        "merged_largest_logit_difference": difference,
        "seed": run.config.seed,
        "method": run.config.method,
    }
