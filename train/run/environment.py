"""Describes where a run was made: versions, source, machine, command line."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

_PACKAGES = (
    "jlora",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "transformers",
    "tokenizers",
    "datasets",
    "huggingface_hub",
    "safetensors",
    "numpy",
    "scikit-learn",
)


def collect() -> dict[str, Any]:
    """Returns the content of `environment.json`; every value is plain JSON.

    The keys are command, python, platform, cpu_count, versions, git, and jax: {backend, devices: the kind of each}.
    `cpu_count` is the number of cores that this process may use: runs repeat bit for bit only on the same number.
    `git` is {commit, dirty} of the checkout that contains this file, or None if it is not in one.
    """
    devices = jax.devices()
    return {
        "command": command(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "versions": versions(),
        "git": _git(Path(__file__).parent),
        "jax": {"backend": jax.default_backend(), "devices": [device.device_kind for device in devices]},
    }


def command() -> str:
    """Returns the command line of this process, quoted for a shell; programs without their folder.

    It is `jlora ARGUMENTS` for the program jlora, else the interpreter's name and arguments: `python -m train.lm ...`.
    """
    program, *rest = sys.orig_argv[1:] or [""]
    if Path(program).stem == "jlora":
        return shlex.join(["jlora", *rest])
    return shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]])


def versions() -> dict[str, str]:
    """Returns {package: version} of jlora and its main dependencies, without packages that are not installed."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git(folder: Path) -> dict[str, Any] | None:
    try:
        commit = _run_git(folder, "rev-parse", "HEAD")
        dirty = bool(_run_git(folder, "status", "--porcelain", "--untracked-files=no"))
        tracked = bool(_run_git(folder, "ls-files"))
    except (OSError, subprocess.SubprocessError):  # no git, no checkout, or no commit in it
        return None
    return {"commit": commit, "dirty": dirty} if tracked else None


def _run_git(folder: Path, *arguments: str) -> str:
    command_line = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command_line, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
