"""Writes the cards and the report of a run, and uploads the result."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jlora
from jlora.pretrained.locate import model_folder
from train.artifacts.hub_upload import push
from train.artifacts.model_card import ExportKind, Facts, model_card
from train.cli.log_slow_steps import working
from train.config.run_config import RunConfig
from train.devices.processes import is_first
from train.run import environment
from train.run.folder import delete, list_exported_files, write_json
from train.sources.hub_names import data_hub_names, model_hub_names
from train.task.protocol import EndedRun, Results


def drop_older(folder: Path, exported: Mapping[str, bool]) -> None:
    """Deletes older exports that are not written again, so that nobody mistakes them for current ones.

    Args:
      exported: {name of a file or folder in `folder`: whether it is written this time}; those with False are deleted.
    """
    delete(folder, [name for name, is_written in exported.items() if not is_written])


def facts(run: EndedRun, results: Results, **of_the_task: Any) -> Facts:
    """Collects the facts for the model cards of a run, with the command line and versions of this process.

    The name is the folder's, `where` the folder, the data set the names in `data.train`, joined by ", "; the ids on the
    hub are None for local names; `lora` has the settings that are not empty, {} without `run.adapted.lora`.

    Args:
      run: its `config`, `folder` and `adapted.lora` are read.
      results: {what was evaluated: {metric: value}}, taken over as they are.
      of_the_task: more fields of Facts, from `TrainingTask.card`: problem_type and labels, and chat, pair or tokens.
    """
    config, lora = run.config, run.adapted.lora
    models, data = model_hub_names(config), data_hub_names(config)
    return Facts(
        name=run.folder.name,
        where=str(run.folder),
        method=config.method,
        base_model=base_name(config),
        dataset=", ".join([config.data.train] if isinstance(config.data.train, str) else config.data.train),
        results=results,
        command=environment.command(),
        base_model_id=models[0] if models else None,
        dataset_id=data[0] if data else None,
        lora={} if lora is None else {k: v for k, v in dataclasses.asdict(lora).items() if v not in (None, {}, ())},
        versions=environment.versions(),
        **of_the_task,
    )


def write_card(run: EndedRun, facts: Facts | None, kind: ExportKind) -> None:
    """Writes README.md in the run's adapter/ or merged/ (`kind`), which must exist; does nothing if `facts` is None.

    The text is that of `model_card`, with the name of `place` as `facts.where`. Of several processes the first one
    writes. `run.config` and `run.folder` are read.
    """
    if facts is None or not is_first():
        return
    text = model_card(dataclasses.replace(facts, where=place(run.config, run.folder, kind)), kind)
    (run.folder / kind / "README.md").write_text(text, encoding="utf-8")


def report(run: EndedRun, results: Results, **of_the_task: Any) -> dict[str, Any]:
    """Returns the content of report.json, with the entries of the task.

        {"metrics": results, "best": {"step", "metric", "value"}, "parameters": {"total", "trainable", "percent"},
         "sources": {"model", "data", "offline"}, "times": {name: seconds}, "seed", "method", ...}

    Percent has four decimals, seconds have three; `sources.data` is `data.train`.

    Args:
      run: read are `adapted` (its base and adapter are counted), `best` (step, value), `opened.metric`, `config`,
        `times` and `offline`.
      results: {what was evaluated: {metric: value}}.
      of_the_task: entries that depend on the command; they replace those of the same name.
    """
    total, trainable = jlora.count_parameters(run.adapted.base, run.adapted.adapter)
    return {
        "metrics": results,
        "best": {"step": run.best.step, "metric": run.opened.metric, "value": run.best.value},
        "parameters": {"total": total, "trainable": trainable, "percent": round(100 * trainable / total, 4)},
        "sources": {"model": run.config.model, "data": run.config.data.train, "offline": run.offline},
        "times": {name: round(seconds, 3) for name, seconds in run.times.items()},
        "seed": run.config.seed,
        "method": run.config.method,
        **of_the_task,
    }


def base_name(config: RunConfig) -> str:
    """Returns the base's name for adapter_config.json and the card: the hub's name, or the path of a local base.

    The path is absolute. But if the adapter is uploaded (`hub.push` without `export.merged`), it is only the last part:
    the path exists nowhere else and may show a user's name.
    """
    if model_hub_names(config):
        return config.model
    path = Path(model_folder(config.model)).resolve()
    return path.name if config.hub.push and kind_to_upload(config) == "adapter" else str(path)


def kind_to_upload(config: RunConfig) -> ExportKind:
    """Returns the folder that is uploaded: "merged" if `export.merged`, else "adapter"."""
    return "merged" if config.export.merged else "adapter"


def place(config: RunConfig, folder: Path, kind: ExportKind) -> str:
    """Returns the name to load the run's folder `kind` by: `hub.repo` if this folder is uploaded, else folder/kind.

    It is uploaded if `hub.push` and it is the one of `kind_to_upload`.
    """
    pushed = config.hub.repo if config.hub.push and kind == kind_to_upload(config) else None
    return pushed or str(folder / kind)


def conclude(config: RunConfig, folder: Path, report: dict[str, Any]) -> dict[str, Any]:
    """Writes report.json into `folder`, uploads the result if `hub.push`, and returns the report.

    Two entries are added to it: `files`, the result of `list_exported_files`, and after an upload `pushed_to`, its
    address. With several processes only the first one does so; the others get `report` back unchanged.
    """
    if not is_first():
        return report
    report = report | {"files": list_exported_files(folder)}
    # Also written before the upload: if the upload fails, the report must not be lost.
    write_json(folder / "report.json", report)
    if config.hub.push and config.hub.repo:
        with working(f"uploading {kind_to_upload(config)}/ to {config.hub.repo}"):
            report = report | {"pushed_to": push(folder / kind_to_upload(config), config.hub.repo, config.hub.private)}
        write_json(folder / "report.json", report)
    return report
