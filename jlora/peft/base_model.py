"""The base model that an adapter names."""

from __future__ import annotations

from pathlib import Path

from jlora.errors import FileError
from jlora.files.path_checks import as_path
from jlora.peft.config_file import CONFIG, read_base_name


def base_of(folder: Path) -> str:
    """Returns the base model that the adapter's `adapter_config.json` names, as it is written there.

    Args:
      folder: of the adapter.

    Raises:
      FileError: there is no such file, or it names no base, a "package:..." or a path that does not exist (a name is a
        path if it has more than one slash, or begins with a slash, "." or "~"). Whether the hub has the name is not
        checked.
    """
    file = folder / CONFIG
    name = read_base_name(folder)
    if not name:
        raise FileError(f"{file}: base_model_name_or_path: expected the base's name; found none. Give it with --base")
    if name.startswith("package:"):  # an untrusted file must not choose what the user installs
        raise FileError(
            f"{file}: base_model_name_or_path: expected a folder or a name on the hub; found {name!r}. Give the base"
            " with --base"
        )
    if _is_path(name) and not _exists(name):
        raise FileError(
            f"{file}: base_model_name_or_path: expected a folder or a name on the hub; found {name!r}, which is not on"
            " this machine (it may be a path of the machine where the adapter was trained). Give the base with --base:"
            " its folder, or its name on the hub"
        )
    return name


def _is_path(name: str) -> bool:
    """Returns whether the name cannot be a hub name, which is NAME or OWNER/NAME."""
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or "\\" in name or ":" in name


def _exists(name: str) -> bool:
    try:
        return as_path(name).exists()
    except FileError:  # no path at all
        return False
