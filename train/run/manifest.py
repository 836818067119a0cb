"""manifest.json: fingerprints of a run's inputs. A run is resumed only with the same configuration, base and data.

{"config": {"fixed": hash}, "base": {path: type, shape, checksum}, "adapter": {path: type, shape, checksum},
"data": {split/array: type, shape, hash}, "batches": {"lengths": "16 24 64"}, "code": {package: version},
"random": {"streams": "2"}, "started": {"day": "2026-11-29"}}; chat templates see this day as today, also when the run
is resumed later.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jlora.errors import FileError, RunFolderError
from jlora.files import yaml12
from jlora.files.bounded_json import read_json
from train.config import dotted_keys as keys
from train.config.run_config import RunConfig, to_yaml
from train.config.validate import flatten
from train.data import random_streams
from train.run import environment
from train.run.checksum import checksums

logger = logging.getLogger(__name__)

NAME = "manifest.json"

MAY_CHANGE = (
    "output_dir", "model", "data.train", "data.validation", "data.test", "data.config", "data.revision",
    "train.epochs", "train.max_steps", "train.early_stopping_patience", "train.eval_every", "train.eval_batch_size",
    "train.checkpoint_every", "train.keep_checkpoints", "train.log_every", "train.eval_on_start", "train.max_hours",
    "train.remat", "tracker", "project",
    "mesh", "export", "hub", "samples",
)  # fmt: skip
"""Keys and sections that may change when a run is resumed. Model and data may only have other names: their contents
are compared."""

OF_NO_EFFECT = (
    "train.checkpoint_every", "train.keep_checkpoints", "train.log_every", "train.max_hours", "tracker", "project",
)  # fmt: skip
"""Those of MAY_CHANGE that change nothing of what a run learns and writes at its end."""

_SHOWN = 5

_REPAIR = "Put it back from a copy, or remove it: base and data are then not compared with those of the checkpoints"


def may_change(key: str) -> bool:
    """Returns whether a dotted key may have another value when the run is resumed.

    These are output_dir, model, tracker, project; train, validation, test, config and revision of `data`; epochs,
    max_steps, early_stopping_patience, eval_every, eval_batch_size, checkpoint_every, keep_checkpoints, log_every,
    eval_on_start, max_hours and remat of `train`; and everything in mesh, export, hub and samples.
    """
    return key in MAY_CHANGE or key.partition(".")[0] in MAY_CHANGE


def flat(config: RunConfig) -> dict[str, Any]:
    """Returns {dotted key: value} with the values of config.yaml: {"model": "m", "lora.r": 8, ...}, defaults too."""
    return flatten(yaml12.parse(to_yaml(config), "the configuration"), type(config))


def manifest(
    config: RunConfig,
    base: Any,
    frozen: Any,
    data: Mapping[str, Mapping[str, Any]],
    lengths: Sequence[int],
    day: datetime.date | None = None,
) -> dict[str, dict[str, str]]:
    """Returns the content of manifest.json: {part: {name: text}}.

    The parts are config, base, adapter, data, batches, random, code and, if there is a `day`, started:

        {"config": {"fixed": hash}, "base": {path: "float32 (2, 3) checksum"}, "adapter": {path: the same},
         "data": {"train/ids": "int32 (5,) hash"}, "batches": {"lengths": "16 64"}, "random": {"streams": "2"},
         "code": {package: version, "commit": ...}, "started": {"day": "2026-11-29"}}

    Args:
      config: only keys that must not change and have no default value count for its hash.
      base: the base's tree of arrays; their checksums are computed on their devices.
      frozen: the adapter's arrays that are not trained. Only scales count: norms are sums, which a mesh rounds
        differently.
      data: {split: {name: part of its content}}; only numpy arrays count.
      lengths: the padded lengths of batches.
      day: from `run_day`; None if nothing depends on it.
    """
    # Defaults are left out, so that keys of later versions do not change the hash. train.dtype once defaulted to
    # float32.
    defaults = keys.defaults(type(config)) | {"train.dtype": "float32"}
    fixed = {k: value for k, value in flat(config).items() if not may_change(k) and defaults.get(k, ...) != value}
    found = environment.collect()
    git = found["git"] or {}
    commit = {"commit": git["commit"] + " and changes" * git["dirty"]} if git else {}
    return {
        "config": {"fixed": _digest(json.dumps(fixed, sort_keys=True).encode())},
        "base": _of_tree(base),
        "adapter": {path: text for path, text in _of_tree(frozen).items() if path.endswith("scale")},
        "data": describe_data(data),
        "batches": {"lengths": " ".join(map(str, lengths))},
        "random": {"streams": str(random_streams.VERSION)},
        "code": found["versions"] | commit,
    } | ({} if day is None else {"started": {"day": day.isoformat()}})


def describe_data(data: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Returns {"split/name": dtype, shape and checksum} of the numpy arrays in {split: {name: part of its content}}."""
    return {
        f"{split}/{name}": _describe_array(array, _digest(np.ascontiguousarray(array)))
        for split, parts in data.items()
        for name, array in parts.items()
        if isinstance(array, np.ndarray)
    }


def run_day(folder: Path, *, resume: bool) -> datetime.date:
    """Returns the day on which the run in the folder was started; today (UTC) if none is resumed or it has no day.

    Raises:
      FileError: the manifest is not JSON, or its day is not a date.
    """
    file = folder / NAME
    part = read_json(file).get("started") if resume and file.exists() else None
    if part is None:
        return datetime.datetime.now(datetime.UTC).date()
    try:
        return datetime.date.fromisoformat(part["day"])
    except (TypeError, KeyError, ValueError):
        raise FileError(
            f"{file}: started: expected a day, such as 2026-11-29; found {repr(part)[:80]}. {_REPAIR}"
        ) from None


def batch_lengths(folder: Path) -> tuple[int, ...]:
    """Returns the padded lengths of the batches of the run in a folder, from its manifest.json; () if it has none.

    Raises:
      FileError: the manifest is not JSON, or its lengths are not positive and ascending.
    """
    file = folder / NAME
    part = read_json(file).get("batches") if file.exists() else None
    if part is None:
        return ()
    text = part.get("lengths") if isinstance(part, dict) else None
    is_list = isinstance(text, str) and re.fullmatch(r"[1-9]\d{0,8}( [1-9]\d{0,8})*", text)
    lengths = [int(word) for word in str(text).split()] if is_list else []
    if not lengths or lengths != sorted(set(lengths)):
        found = repr(part)[:80]
        raise FileError(f"{file}: batches: expected ascending lengths, such as '16 64'; found {found}. {_REPAIR}")
    return tuple(lengths)


def require_same_inputs(file: Path, now: dict[str, dict[str, str]]) -> None:
    """Raises RunFolderError with the differences from the manifest in `file`; about other code it only warns.

    The parts config, base, adapter, data, batches and random are compared. A part that the file does not have, because
    an older version wrote it, is not, and a warning names it. Only a file without `random` is refused: its run has the
    streams of version 1.

    Args:
      now: a result of `manifest`.

    Raises:
      RunFolderError: a part differs; the message begins `--resume: ` and has the names in it that differ.
      FileError: the file is not JSON, a part is not a mapping, or it has a part that `now` does not have.
    """
    before = read_json(file)
    before.setdefault("random", {"streams": "1"})  # as it was before the manifest had it
    if missing := [part for part in now if part not in before and part != "started"]:
        logger.warning("%s: an older version wrote it; not compared: %s", file, ", ".join(missing))
    wrong = [part for part in now if not isinstance(before.setdefault(part, now[part]), dict)]
    if wrong or not before.keys() <= now.keys():
        raise FileError(f"{file}: expected mappings {', '.join(now)}; found another file. {_REPAIR}")
    if lines := _differences(before["code"], now["code"]):
        logger.warning("the run was started by other code; results may differ from those of one run\n%s", lines)
    what = {
        "random": "the random streams that the run was started with (continue it with that version, or --overwrite)",
        "config": "config.yaml as the run wrote it (was it edited? Put it back, or --overwrite)",
        "base": "the base that the run was started with",
        "adapter": "the scales of the adapter that the run was started with",
        "data": "the data that the run was started with",
        "batches": "the batch lengths that the run was started with",
    }
    for part, expected in what.items():
        if lines := _differences(before[part], now[part]):
            raise RunFolderError(f"--resume: {file}: expected {expected}, found another\n{lines}")


def _of_tree(tree: Any) -> dict[str, str]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    named = {jax.tree_util.keystr(keys, simple=True, separator="/"): leaf for keys, leaf in leaves}
    sums = checksums(named)
    return {name: _describe_array(leaf, sums[name]) for name, leaf in named.items()}


def _describe_array(array: Any, contents: str) -> str:
    return f"{array.dtype} {tuple(array.shape)} {contents}"


def _digest(contents: Any) -> str:
    return hashlib.sha256(contents).hexdigest()[:16]


def _differences(before: dict[str, str], now: dict[str, str]) -> str:
    differ = [key for key in dict.fromkeys([*before, *now]) if before.get(key) != now.get(key)]
    lines = [f"  {key}: the run has {before.get(key, 'none')}, now {now.get(key, 'none')}" for key in differ[:_SHOWN]]
    return "\n".join(lines + [f"  and {len(differ) - _SHOWN} more"] * (len(differ) > _SHOWN))
