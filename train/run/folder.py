"""The run folder: checks whether a run may use it, and writes the run's first files.

runs/sst2/  config.yaml  environment.json  manifest.json  metrics.jsonl  tensorboard/  checkpoints/  curves.png
            report.json  predictions.csv  samples.jsonl  adapter/  adapter.gguf  merged/  .lock
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from jlora.errors import FileError, JloraError, RunFolderError
from jlora.files import yaml12
from jlora.files.bounded_json import read_json
from jlora.files.replace_file import replace_file
from jlora.files.run_folder import MARKS
from jlora.printable import counted
from train.config import dotted_keys
from train.config.command import Flags
from train.config.run_config import RunConfig, to_yaml
from train.config.validate import flatten
from train.run import environment, lock, manifest
from train.run.recorder import last_step
from train.sources.refuse_overwrite import require_kept

logger = logging.getLogger(__name__)

OURS = (
    "checkpoints", "environment.json", manifest.NAME, "metrics.jsonl", "tensorboard", "curves.png", "report.json",
    "predictions.csv", "samples.jsonl", "adapter", "adapter.gguf", "merged", "wandb", "trackio", "config.yaml",
)  # fmt: skip
"""Everything that a run writes, which --overwrite deletes.

config.yaml marks the folder as a run's. It is written first and deleted last, so that this also holds if the run is
killed."""

_SOURCES = ("model", "lora.from", "data.train", "data.validation", "data.test", "data.chat_template")
"""Keys that name the inputs of a run."""

EXPORTED = ("adapter", "adapter.gguf", "merged", "predictions.csv", "samples.jsonl", "curves.png")
"""The files and folders that the end of a run writes before its report."""

"""If a folder with a config.yaml has any of these, a run wrote the config.yaml, not a user."""

_UNFINISHED = ".unfinished"
"""The suffix of files that are being written."""


def choose_action(config: RunConfig, flags: Flags) -> Literal["new", "resumed", "finished"]:
    """Decides what a run does in the folder `config.output_dir`; writes nothing.

    Returns:
      "new": the folder is missing or empty, or --overwrite replaces the run in it.
      "finished": with --resume, if this run is complete, with all its exports.
      "resumed": with --resume, if this run is not finished, a key that may change has another value, or an export is
        missing.

    Raises:
      RunFolderError: the folder holds a run and neither flag is given, it holds something other than a run, or the run
        to resume was started with another configuration (the differences are named).
      JloraError: both flags are given, or the run to replace holds something that this one reads.
    """
    if flags.resume and flags.overwrite:
        raise JloraError("command line: expected --resume or --overwrite, found both")
    folder = Path(config.output_dir)
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"output_dir: {folder}: expected a folder, found a file")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    found = sorted(name for name in names - {lock.NAME} if not name.endswith(_UNFINISHED))
    if not found:
        return "new"
    if "config.yaml" not in found and {manifest.NAME, "environment.json"} & names:
        raise RunFolderError(
            f"output_dir: {folder}: holds a run whose config.yaml is missing, so it can be neither resumed nor"
            " replaced. Put the file back, move the folder away, or name another one: output_dir=FOLDER"
        )
    if "config.yaml" not in found or names.isdisjoint(MARKS):
        raise RunFolderError(f"output_dir: {folder}: expected a new folder or one that holds a run; found {found[:5]}")
    if flags.overwrite:
        sources = {key: value for key, value in manifest.flat(config).items() if key in _SOURCES}
        advice = "name another folder: output_dir=FOLDER"
        require_kept(sources, [folder / name for name in OURS], advice, inside=True)
        return "new"
    if not flags.resume:
        raise RunFolderError(
            f"output_dir: {folder}: holds a run. Go on with --resume, replace it with --overwrite (from Python:"
            " resume=True, overwrite=True), or name another folder: output_dir=FOLDER"
        )
    if _list_allowed_changes(folder / "config.yaml", config) or "report.json" not in found:
        return "resumed"
    if reason := _incomplete(folder, config):
        logger.warning("%s: %s; exporting again", folder, reason)
        return "resumed"
    return "finished"


def list_exported_files(folder: Path) -> list[str]:
    """Returns the files that the end of a run wrote, as paths in its folder, sorted: ["adapter/...", "curves.png"].

    These are curves.png, predictions.csv, samples.jsonl, adapter.gguf and all files in adapter/ and merged/ that are
    there, without cards (README.md), which users may edit.
    """
    found = [file for name in EXPORTED for file in (folder / name, *(folder / name).rglob("*")) if file.is_file()]
    return sorted(file.relative_to(folder).as_posix() for file in found if file.name != "README.md")


def _incomplete(folder: Path, config: RunConfig) -> str:
    """Describes what a finished run lacks: files that its report lists, or its upload; "" if nothing is missing."""
    try:
        report = read_json(folder / "report.json")
    except FileError:
        return "report.json cannot be read"
    listed = report.get("files")
    if not isinstance(listed, list):
        return "report.json does not list what was exported"
    missing = [name for name in listed if not (folder / str(name)).exists()]
    if missing:
        return f"{', '.join(map(str, missing[:3]))}{' and more' * (len(missing) > 3)} missing"
    return "not uploaded yet" if config.hub.push and "pushed_to" not in report else ""


def claim(config: RunConfig, flags: Flags, attention: dict[str, str]) -> None:
    """Prepares the locked folder for the run.

    Deletes the run in `output_dir` if `flags.overwrite`, and writes config.yaml and environment.json if there is no
    config.yaml, that is, no run to resume.

    Args:
      attention: {"kernel": the kernel that computes attention, "reason": why}, an entry of environment.json.
    """
    folder = Path(config.output_dir)
    if flags.overwrite:
        delete(folder, OURS)
    if not (folder / "config.yaml").exists():
        _write_whole(folder / "config.yaml", to_yaml(config))
        write_json(folder / "environment.json", environment.collect() | {"attention": attention})


def require_checkpoints(folder: Path, per_epoch: int) -> None:
    """Raises JloraError if the run to resume must have had checkpoints, but none are there.

    It must have had one if its report.json is there, or if the last step of its metrics.jsonl is more than two
    intervals of checkpoints: `train.checkpoint_every` of its config.yaml, else `train.eval_every`, else an epoch.

    Args:
      folder: the run folder; checkpoints are folders in its checkpoints/ whose names are numbers.
      per_epoch: steps of an epoch.
    """
    if any(path.name.isdecimal() for path in (folder / "checkpoints").glob("*")):
        return
    before = yaml12.read_file(folder / "config.yaml").get("train", {})
    period = before.get("checkpoint_every") or before.get("eval_every") or per_epoch
    step = last_step(folder / "metrics.jsonl")
    # The second save waits until the first checkpoint is complete.
    if step > 2 * period or (folder / "report.json").exists():
        raise JloraError(
            f"--resume: {folder / 'checkpoints'}: expected the checkpoints of this run, which has come to step {step};"
            " found none. Put them back, or start anew with --overwrite"
        )


def take_over(config: RunConfig) -> None:
    """Rewrites the run's config.yaml with this configuration, in which only keys that may change differ.

    If any differs, report.json is deleted too: a finished run becomes unfinished. Its exports remain until the next
    export. A run that was started on another number of cores is logged as a warning.

    Raises:
      RunFolderError: a key differs that must not.
    """
    folder = Path(config.output_dir)
    _warn_of_other_cores(folder / "environment.json")
    changed = _list_allowed_changes(folder / "config.yaml", config)
    if changed:
        if any(key not in manifest.OF_NO_EFFECT for key in changed):
            logger.info("resumed with another configuration\n%s", "\n".join(changed.values()))
        else:
            logger.info("resumed; changed, without an effect on the result\n%s", "\n".join(changed.values()))
        (folder / "report.json").unlink(missing_ok=True)
        _write_whole(folder / "config.yaml", to_yaml(config))


def delete(folder: Path, names: Iterable[str]) -> None:
    """Deletes these files and folders of the run folder, if they exist; of a link only the link itself."""
    for path in (folder / name for name in names):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes the value as indented JSON (two spaces) with a last line end, atomically.

    Raises:
      ValueError: it has NaN or an infinity, which JSON lacks.
      OSError: the file cannot be written; it names `path`.
    """
    _write_whole(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def _write_whole(path: Path, text: str) -> None:
    unfinished = path.with_name(path.name + _UNFINISHED)
    try:
        unfinished.write_text(text, encoding="utf-8")
        replace_file(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def _list_allowed_changes(file: Path, config: RunConfig) -> dict[str, str]:
    """Returns {key: a line about it} of those that differ from the run's; raises RunFolderError if one must not."""
    # Keys that are newer than the file are treated as if they had their defaults.
    before = dotted_keys.defaults(type(config)) | flatten(yaml12.read_file(file), type(config))
    now = manifest.flat(config)
    differ = [key for key in sorted({*before, *now} - {"output_dir"}) if before.get(key) != now.get(key)]
    lines = {key: f"  {key}: {_describe_change(before.get(key), now.get(key))}" for key in differ}
    refused = [line for key, line in lines.items() if not manifest.may_change(key)]
    if refused:
        raise RunFolderError(
            f"--resume: expected the configuration of {file}, found {counted(len(refused), 'difference')}\n"
            + "\n".join(refused)
        )
    return lines


def _describe_change(before: Any, now: Any) -> str:
    had = "was not set" if before is None else f"the run has {before!r}"
    return f"{had}, {'now not set' if now is None else f'now given {now!r}'}"


def _warn_of_other_cores(file: Path) -> None:
    try:
        cores = read_json(file).get("cpu_count") if file.is_file() else None
    except FileError as error:  # used only for the number of cores, which affects nothing but rounding
        logger.warning("%s. It is not needed: the run goes on", error)
        return
    now = environment.collect()["cpu_count"]
    if cores != now:
        logger.warning("the run was started on %s cores, this is %s: results are equal to rounding only", cores, now)
