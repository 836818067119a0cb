"""List, print or copy the configs that come with jlora: jlora configs [NAME [--copy [FOLDER]]]."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from jlora.closed_pipe import end_quietly
from jlora.errors import JloraError
from train.cli import arguments
from train.cli.exit_codes import exit_code, show
from train.config.shipped import shipped_configs


def main(argv: Sequence[str]) -> int:
    """Lists, prints or copies shipped configs; returns 0, or 2 after an error that the user can fix (on stderr).

    Args:
      argv: [] lists names; ["sst2"] prints configs/sst2.yaml; ["sst2", "--copy", "folder"] writes folder/sst2.yaml, and
        makes the folder (without it: the current one); ["sweeps/modules", "--copy", "folder"] writes
        folder/modules.yaml. It is an error if that file exists, or if --copy has no name before it. argparse ends the
        program with exit code 2 for an unknown name.
    """
    return exit_code(lambda: _run(arguments.make_configs_parser().parse_args(argv)))


def _run(options: argparse.Namespace) -> None:
    found = shipped_configs()
    if options.name is None:
        if options.copy is not None:
            raise JloraError(f"command line: --copy: expected a config's name before it: {', '.join(found)}")
        show(_table(found))
    elif options.copy is None:
        show(found[options.name].read_text(encoding="utf-8").rstrip("\n"))
    else:
        _copy(found[options.name], options.copy)


def _table(found: dict[str, Path]) -> str:
    """Lists each config: its name, and its first line, a comment that says what it is."""
    width = max(map(len, found), default=0)
    lines = []
    for name, file in found.items():
        first = file.read_text(encoding="utf-8").partition("\n")[0]
        lines.append(f"{name:<{width}}  {first.removeprefix('# ')}")
    return "\n".join([*lines, "", "jlora configs NAME prints one; jlora configs NAME --copy writes a copy of it"])


def _copy(file: Path, folder: Path) -> None:
    text, target = file.read_text(encoding="utf-8"), folder / file.name
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with target.open("x", encoding="utf-8") as written:
            written.write(text)
    except FileExistsError:
        raise JloraError(f"--copy: {target}: expected no such file yet, found one; name another folder") from None
    command = re.search(rf"(jlora \w+ --config (?:\S+ --sweep )?)configs/(?:sweeps/)?{file.name}\b(.*)", text)
    assert command, f"{file}: its head says no command"
    show(f"wrote {target}\nnow: {command[1]}{target}{command[2]}")


if __name__ == "__main__":
    sys.exit(end_quietly(lambda: main(sys.argv[1:])))
