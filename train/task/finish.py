"""Finishes a run: evaluates and exports the best step, reads it back, writes cards and report, and uploads it."""

from __future__ import annotations

from typing import Any

from jlora.sharding.to_host import to_host
from train.artifacts import merge_for_export, model_card
from train.cli.log_slow_steps import working
from train.devices.processes import first_alone
from train.planning.memory_advice import explain_out_of_memory, how_to_end
from train.run import curves
from train.run.recorder import Recorder
from train.task import report
from train.task.evaluate import evaluate_best
from train.task.protocol import EndedRun, Finished, Results
from train.task.report import base_name, conclude, drop_older, write_card


def finish(run: EndedRun, recorder: Recorder) -> Finished:
    """Writes the run's results into its folder: adapter/, merged/, the task's own files and, last, report.json.

    The best step is evaluated on validation and, if there are such rows, test; these metrics are recorded as
    `test/...`, and those of validation as `best/...` if the task's `records_best`. With several processes all take
    part, and the first one writes.
    """
    results = _evaluate(run, recorder)
    predicted = run.task.predict(run)
    card = run.task.card(run)
    facts = None if card is None else report.facts(run, results, **card)
    _write_small(run, predicted, facts)
    compared = _export_merged(run, results, predicted, facts) if run.config.export.merged else None
    run.task.write_samples(run)
    written = report.report(run, results, **run.task.report(run, results, compared))
    written = conclude(run.config, run.folder, written)
    return Finished(written, run.adapted.model, run.adapted.base, run.adapter, run.folder)


def _evaluate(run: EndedRun, recorder: Recorder) -> Results:
    """Returns {split: metrics of the best step}; a test split without labels is left out."""
    results = {}
    for split in ("validation", "test"):
        if split in run.opened.rows:
            with working(f"evaluating the best step on {len(run.opened.rows[split]):,} {split} rows"):
                found = evaluate_best(run, split)
            if found:
                results[split] = found
    if run.task.records_best:
        recorder.log(run.best.step, results["validation"], "best")
    if "test" in results:
        recorder.log(run.best.step, results["test"], "test")
    return results


def _write_small(run: EndedRun, predicted: Any, facts: model_card.Facts | None) -> None:
    """Writes curves.png, adapter/ and the task's own files, and deletes older exports that are not written again."""
    config, opened = run.config, run.opened
    small = to_host(run.adapter) if config.method == "lora" else {}
    with first_alone("adapter") as writes:
        if not writes:
            return
        drop_older(run.folder, {"merged": config.export.merged} | run.task.optional_files(config))
        metrics, rows = run.folder / "metrics.jsonl", len(opened.rows["validation"])
        curves.plot_metrics(metrics, run.folder / "curves.png", opened.curve or opened.metric, run.folder.name, rows)
        if config.method == "lora":
            folder, base = run.folder / "adapter", base_name(config)
            merge_for_export.write_adapter(folder, run.adapted, small, opened.tokenizer, opened.label_entries, base)
            write_card(run, facts, "adapter")
        run.task.write_files(run, small, predicted)


def _export_merged(run: EndedRun, results: Results, predicted: Any, facts: model_card.Facts | None) -> Any:
    """Writes merged/, reads it back, and returns the result of the task's comparison."""
    with explain_out_of_memory(lambda: how_to_end(run.config, run.folder), " after the last step"):
        with working("writing merged/"):
            run.task.write_merged(run)
        write_card(run, facts, "merged")
        return run.task.compare(run, results, predicted)
