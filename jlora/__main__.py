"""The program `jlora` (also `python -m jlora`). Its commands are in the package `train`, in a wheel `jlora_train`."""

from __future__ import annotations

import importlib
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path


def main() -> int:
    """Runs `jlora COMMAND ...` with the arguments in `sys.argv` and returns its exit code.

    Loads the commands from the folder that contains `jlora`. A normal import would search the current folder and
    PYTHONPATH first, and might find a user's own train.py.
    """
    folder = Path(__file__).resolve().parents[1]
    name = "jlora_train" if (folder / "jlora_train").is_dir() else "train"
    package = folder / name
    spec = spec_from_file_location(name, package / "__init__.py", submodule_search_locations=[str(package)])
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return importlib.import_module(f"{name}.console").main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
