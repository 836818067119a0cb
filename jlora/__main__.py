"""The program `jlora` (also `python -m jlora`). Its commands are in the packages `train` and `serve`.

In a wheel these are called `jlora_train` and `jlora_serve`.
"""

from __future__ import annotations

import importlib
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from jlora.closed_pipe import end_quietly


def main() -> int:
    """Runs `jlora COMMAND ...` with the arguments in `sys.argv` and returns its exit code."""
    return end_quietly(_run)


def _run() -> int:
    if sys.argv[1:2] == ["serve"]:
        return importlib.import_module(f"{load_package('serve')}.__main__").main(sys.argv[2:])
    return importlib.import_module(f"{load_package('train')}.console").main(sys.argv[1:])


def load_package(name: str) -> str:
    """Loads the package `name` from the folder that contains `jlora`, and returns its name for imports.

    In a wheel that is jlora_train or jlora_serve, in a checkout `name` itself.

    A normal import would search the current folder and PYTHONPATH first, and might find a user's own train.py.

    Args:
      name: "train" or "serve".
    """
    folder = Path(__file__).resolve().parents[1]
    found = f"jlora_{name}" if (folder / f"jlora_{name}").is_dir() else name
    package = folder / found
    spec = spec_from_file_location(found, package / "__init__.py", submodule_search_locations=[str(package)])
    assert spec is not None
    assert spec.loader is not None
    sys.modules[found] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[found])
    return found


if __name__ == "__main__":
    sys.exit(main())
