"""The configs that come with jlora: `configs/` of a checkout, which a wheel carries inside its package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jlora.files import yaml12

_IN_WHEEL = Path(__file__).parents[1] / "shipped_configs"
_IN_CHECKOUT = Path(__file__).parents[2] / "configs"


def shipped_configs() -> dict[str, Path]:
    """Returns {name: YAML file} of the shipped configs, then of the sweep files, each sorted by name.

    The name is the file's path in the folder, without .yaml: sst2, sweeps/rank_lr.
    """
    folder = _IN_WHEEL if _IN_WHEEL.is_dir() else _IN_CHECKOUT
    files = [file for pattern in ("*.yaml", "sweeps/*.yaml") for file in sorted(folder.glob(pattern))]
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}


def read_config_file(path: Path) -> dict[str, Any]:
    """Reads the mapping in a config or sweep file, as `jlora.files.yaml12.read_file` does.

    Raises:
      JloraError: as there; a missing file's error names the shipped config of its name.
    """
    return yaml12.read_file(path, copy_advice(path))


def copy_advice(missing: Path) -> str:
    """Returns the end of an error about a missing config file: how to get the shipped config of its name.

        Path("configs/sst2.yaml") -> ". jlora comes with one of this name: jlora configs sst2 --copy configs"

    "" if none has its name (the file's, without folder and .yaml).
    """
    name = next((name for name, file in shipped_configs().items() if file.stem == missing.stem), None)
    if name is None:
        return ""
    folder = "" if missing.parent == Path() else f" {missing.parent}"
    return f". jlora comes with one of this name: jlora configs {name} --copy{folder}"
