"""Builds the wheel: setuptools does, from a copy of the sources in which the package `train` is called `jlora_train`.

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

TRAINERS = "jlora_train"
"""What `train` is called in the wheel."""
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
    shutil.copytree(_ROOT / "train", folder / TRAINERS, ignore=_NO_SOURCES)
    shutil.copytree(_ROOT / "configs", folder / TRAINERS / "shipped_configs")
    modules = {path.stem for path in (_ROOT / "train").iterdir()}
    for file in (folder / TRAINERS).rglob("*.py"):
        file.write_text(renamed(file.read_text(encoding="utf-8"), modules), encoding="utf-8")


def renamed(source: str, modules: set[str]) -> str:
    """The source with `jlora_train` for `train` where it imports the package or names a module in it.

    Args:
      modules: names of the modules in `train`: `train.lm` is replaced everywhere, also in texts, while
        `train.epochs`, a key of the configs, stays.
    """
    source = re.sub(r"^(\s*(?:from|import) )train\b", rf"\1{TRAINERS}", source, flags=re.MULTILINE)
    return re.sub(rf"(?<![\w.])train(?=\.(?:{'|'.join(sorted(modules))})\b)", TRAINERS, source)
