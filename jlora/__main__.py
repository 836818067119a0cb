"""The program `jlora` (also `python -m jlora`). Its commands are in the package `train`."""

from __future__ import annotations

import importlib
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path


def main() -> int:
    """Runs `jlora COMMAND ...` and returns its exit code.

    Loads the package `train` from the folder that contains `jlora`. A normal import would search the current folder
    and PYTHONPATH first, and might find a user's own train.py.
    """
    package = Path(__file__).resolve().parents[1] / "train"
    spec = spec_from_file_location("train", package / "__init__.py", submodule_search_locations=[str(package)])
    assert spec is not None
    assert spec.loader is not None
    sys.modules["train"] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules["train"])
    return importlib.import_module("train.console").main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
