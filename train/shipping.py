"""The end of every run: what its folders are called elsewhere, its report, and the upload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from train.card import Kind
from train.hub_names import model_hub_names
from train.prepare import model_folder
from train.push import push
from train.run_config import RunConfig
from train.run_folder import write_json


def base_name(config: RunConfig) -> str:
    """The base as adapter_config.json and the card name it: the hub's name, or the whole path of a local one."""
    return config.model if model_hub_names(config) else str(Path(model_folder(config.model)).resolve())


def shipped(config: RunConfig) -> Kind:
    """The folder that is uploaded."""
    return "merged" if config.export.merged else "adapter"


def place(config: RunConfig, folder: Path, kind: Kind) -> str:
    """What a reader loads a folder of the run by: the hub's name where it is uploaded, else its path."""
    pushed = config.hub.repo if config.hub.push and kind == shipped(config) else None
    return pushed or str(folder / kind)


def conclude(config: RunConfig, folder: Path, report: dict[str, Any]) -> dict[str, Any]:
    """Writes report.json and, where the config says so, uploads and notes where to; returns the report."""
    # Written before the upload too: a hub that fails must not cost the numbers.
    write_json(folder / "report.json", report)
    if config.hub.push and config.hub.repo:
        report = report | {"pushed_to": push(folder / shipped(config), config.hub.repo, config.hub.private)}
        write_json(folder / "report.json", report)
    return report
