"""Folders of adapters for the admin routes: whole ones, and what is no adapter of the tiny engines' base."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

import jlora
from tests.support.serve.engines import adapter_folder, load

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def _change_tensors(change: Callable[[str, Any], tuple[str, Any]]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        save_file(dict(change(*item) for item in load_file(folder / _WEIGHTS).items()), folder / _WEIGHTS)

    return write


def _write(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(content)


BROKEN: dict[str, Callable[[Path], Any]] = {
    "wider-base": _change_tensors(lambda key, x: (key, np.repeat(x, 2, axis=1 if "lora_A" in key else 0))),
    "other-family": _change_tensors(lambda key, x: (key.replace("self_attn", "attention"), x)),
    "nan": _change_tensors(lambda key, x: (key, x * np.nan)),
    "no-weights": lambda folder: (folder / _WEIGHTS).unlink(),
    "cut": _write(_WEIGHTS, b"\xff" * 100),
    "no-json": _write(_CONFIG, b"{"),
    "another-method": _write(_CONFIG, b'{"peft_type": "IA3"}'),
}
"""{name: what makes a copy of an adapter one that is refused}."""


def write_adapters(root: Path) -> Path:
    """Writes the adapters a0 to a4, small ones, one that overflows, all of BROKEN, and what is none; returns `root`."""
    for index in range(5):
        shutil.copytree(adapter_folder(index), root / f"a{index}")
        shutil.copytree(adapter_folder(index, target_modules=".*q_proj"), root / f"small{index}")
    for name, change in BROKEN.items():
        shutil.copytree(adapter_folder(0), root / name)
        change(root / name)
    (root / "nothing").mkdir()
    (root / "link-out").symlink_to("/etc")
    huge = {path: jlora.LowRank(e.a * 1e30, e.b * 1e30, e.scale, e.spec, e.ranks) for path, e in load(0).items()}
    jlora.save_adapter(root / "huge", huge, jlora.LoraConfig(r=1, lora_alpha=16, target_modules="all-linear"))
    return root
