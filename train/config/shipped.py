"""The configs that come with jlora: `configs/` of a checkout, which a wheel carries inside its package."""

from __future__ import annotations

from pathlib import Path

_IN_WHEEL = Path(__file__).parents[1] / "shipped_configs"
_IN_CHECKOUT = Path(__file__).parents[2] / "configs"


def shipped_configs() -> dict[str, Path]:
    """Returns {name: YAML file} of the shipped configs, sorted by name; the name is the file's, without .yaml."""
    folder = _IN_WHEEL if _IN_WHEEL.is_dir() else _IN_CHECKOUT
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def copy_advice(missing: Path) -> str:
    """Returns the end of an error about a missing config file: how to get the shipped config of its name.

        Path("configs/sst2.yaml") -> ". jlora comes with one of this name: jlora configs sst2 --copy configs"

    "" if none has its name (the file's, without .yaml).
    """
    if missing.stem not in shipped_configs():
        return ""
    folder = "" if missing.parent == Path() else f" {missing.parent}"
    return f". jlora comes with one of this name: jlora configs {missing.stem} --copy{folder}"
