"""Recognizes the folder of a training run where the folder of a model or an adapter is expected."""

from __future__ import annotations

from pathlib import Path

_MARKS = ("config.yaml", "manifest.json")
"""Files that every run writes, and that no folder of a model or an adapter has."""


def say_what_is_inside(folder: Path, *, name: str, file: str) -> str:
    """Returns the end of an error about a `folder` without a certain `file`; "" if it is not the folder of a run.

    Args:
      name: the folder in the run's folder that has the file when the run has exported.
    """
    if not all((folder / mark).is_file() for mark in _MARKS):
        return ""
    if (folder / name / file).is_file():
        return f". This is the folder of a run: give {folder / name}"
    return f". This is the folder of a run that has not written {name}/, which it does at its end if it exports it"
