"""Recognizes what a folder is that is not the model or the adapter that was expected, such as a run."""

from __future__ import annotations

from pathlib import Path

from jlora.errors import FileError
from jlora.files.bounded_json import read_json

MARKS = (".lock", "manifest.json", "environment.json")
"""Files that a run writes, and no user, into the folder that has its config.yaml."""
_MODEL, _ADAPTER = "config.json", "adapter_config.json"


def is_run(folder: Path) -> bool:
    """Returns whether a run, and not a user, wrote the folder's config.yaml.

    So it is if there is one, and any of .lock, manifest.json and environment.json too.
    """
    return (folder / "config.yaml").is_file() and any((folder / name).exists() for name in MARKS)


def find_adapter(folder: Path) -> Path | None:
    """Returns the folder of the adapter: `folder` itself, or adapter/ in a run folder; None if neither has one."""
    return next((place for place in (folder, folder / "adapter") if (place / _ADAPTER).is_file()), None)


def say_what_is_inside(folder: Path, *, name: str, file: str) -> str:
    """Returns the end of an error about an existing `folder` without a certain `file`; "" if nothing is known of it.

    Args:
      name: the folder in the run's folder that has the file when the run has exported.
      file: "config.json", where a model is expected, or "adapter_config.json".
    """
    if run := say_what_run_has(folder, name=name, file=file):
        return run
    if file == _ADAPTER and (folder / _MODEL).is_file():
        return f". It has {_MODEL}: this is a model; give it as the base (--base)"
    if file == _MODEL and (folder / _ADAPTER).is_file():
        return f". It has {_ADAPTER}: this is an adapter; give the model that it was made for{_base_in(folder)}"
    if file == _ADAPTER and (folder / "adapter_model.safetensors").is_file():
        return f". It has adapter_model.safetensors: copy {file} to it from where the adapter comes"
    if nested := sorted(found.parent.name for found in folder.glob(f"*/{file}"))[:3]:
        return f". There is one in {', '.join(nested)}: give {folder / nested[0]}"
    return "" if any(folder.iterdir()) else ". It is empty"


def say_what_run_has(folder: Path, *, name: str, file: str) -> str:
    """Returns what `say_what_is_inside` does for the folder of a run; "" for any other."""
    if not is_run(folder):
        return ""
    if (folder / name / file).is_file():
        return f". This is the folder of a run: give {folder / name}"
    unfinished = f". This is the folder of a run without {name}/"
    if name == "merged" and (folder / "adapter" / _ADAPTER).is_file():
        return (
            f"{unfinished}: it is not finished, or export.merged was false. It has adapter/: give {folder / 'adapter'}"
            " as the adapter, with its base"
        )
    return f"{unfinished}, which it writes at its end: finish it with --resume"


def _base_in(folder: Path) -> str:
    try:
        named = read_json(folder / _ADAPTER).get("base_model_name_or_path")
    except FileError:
        return ""
    return f", {named}" if named and isinstance(named, str) else ""
