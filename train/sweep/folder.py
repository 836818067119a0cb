"""The folder of a sweep: sweep.yaml, a run folder for each point, best/, table.md, table.csv and sweep.png."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

from jlora.errors import JloraError, RunFolderError
from jlora.files import yaml12
from jlora.files.run_folder import is_run
from train.config.command import Flags
from train.config.run_config import RunConfig
from train.run import folder as run_folder
from train.run import lock
from train.run.manifest import flat
from train.sweep.config import SweepConfig

NAME = "sweep.yaml"
_RESULTS = ("table.md", "table.csv", "sweep.png", NAME)


def claim_sweep(folder: Path, config: RunConfig, sweep: SweepConfig, flags: Flags) -> Literal["new", "resumed"]:
    """Prepares the locked folder for a sweep, and writes sweep.yaml into it.

    Raises:
      RunFolderError: the folder holds a sweep and neither --resume nor --overwrite is given, it holds something else,
        or the sweep to resume has other values.
      JloraError: both flags are given.
    """
    if flags.resume and flags.overwrite:
        raise JloraError("command line: expected --resume or --overwrite, found both")
    found = sorted(path.name for path in folder.iterdir() if path.name != lock.NAME)
    ours = {"sweep": sweep.model_dump(), "config": {k: v for k, v in flat(config).items() if k != "output_dir"}}
    if found and NAME not in found:
        raise RunFolderError(f"output_dir: {folder}: expected a new folder or one with a sweep; found {found[:5]}")
    if found and flags.overwrite:
        _delete(folder)
    elif found and not flags.resume:
        raise RunFolderError(
            f"output_dir: {folder}: holds a sweep. Go on with --resume, replace it with --overwrite, or name another"
            " folder: output_dir=FOLDER"
        )
    elif found:
        _require_same(folder / NAME, ours)
        return "resumed"
    (folder / NAME).write_text(yaml12.dump(ours), encoding="utf-8")
    return "new"


def _delete(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and is_run(path):
            shutil.rmtree(path)
    run_folder.delete(folder, _RESULTS)


def _require_same(file: Path, ours: dict[str, Any]) -> None:
    before, now = yaml12.read_file(file), yaml12.parse(yaml12.dump(ours), "the sweep")
    differ = [
        f"  {part}.{key}: the sweep has {before[part].get(key)!r}, now given {now[part].get(key)!r}"
        for part in now
        for key in sorted({*before[part], *now[part]})
        if before[part].get(key) != now[part].get(key)
    ]
    if differ:
        raise RunFolderError("\n".join([f"--resume: expected the sweep of {file}, found another one", *differ]))
