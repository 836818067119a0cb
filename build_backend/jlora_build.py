"""Builds the wheel: setuptools does, from a copy of the sources in which `train` and `serve` have longer names.

They are called `jlora_train` and `jlora_serve`.

A top-level package `train` in site-packages would be taken for, or hidden by, a user's own `train.py`. An editable
install and the sdist are setuptools' own, of the sources as they are.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
]

PACKAGES = {"train": "jlora_train", "serve": "jlora_serve"}
"""What the packages of the commands are called in the wheel."""
_ROOT = Path(__file__).resolve().parents[1]
_COPIED = ("pyproject.toml", "README.md", "LICENSE")
_NO_SOURCES = shutil.ignore_patterns("__pycache__")


def build_wheel(
    wheel_directory: str, config_settings: Mapping[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    """Builds the wheel (PEP 517) and returns its file name.

    There is no `prepare_metadata_for_build_wheel`: installers then read the metadata from this wheel.
    """
    target = str(Path(wheel_directory).resolve())
    with tempfile.TemporaryDirectory() as folder:
        _stage(Path(folder))
        with contextlib.chdir(folder):
            return build_meta.build_wheel(target, config_settings)


def _stage(folder: Path) -> None:
    """Copies what the wheel is built from, with the trainers and the configs where the wheel has them."""
    for name in _COPIED:
        shutil.copy2(_ROOT / name, folder)
    shutil.copytree(_ROOT / "jlora", folder / "jlora", ignore=_NO_SOURCES)
    for package, wheel_name in PACKAGES.items():
        shutil.copytree(_ROOT / package, folder / wheel_name, ignore=_NO_SOURCES)
        modules = {path.stem for path in (_ROOT / package).iterdir()}
        for file in (folder / wheel_name).rglob("*.py"):
            file.write_text(renamed(file.read_text(encoding="utf-8"), package, modules), encoding="utf-8")
    shutil.copytree(_ROOT / "configs", folder / PACKAGES["train"] / "shipped_configs")


def renamed(source: str, package: str, modules: set[str]) -> str:
    """The source with `jlora_train` for `train` where it imports the package or names a module in it.

    Args:
      package: "train" or "serve".
      modules: names of the modules in it: `train.lm` is replaced everywhere, also in texts, while `train.epochs`, a key
        of the configs, stays.
    """
    name = PACKAGES[package]
    source = re.sub(rf"^(\s*(?:from|import) ){package}\b", rf"\1{name}", source, flags=re.MULTILINE)
    return re.sub(rf"(?<![\w.]){package}(?=\.(?:{'|'.join(sorted(modules))})\b)", name, source)
