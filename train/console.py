"""Chooses the command of `jlora`. Nothing large is imported before its command line has been parsed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from contextlib import suppress

import jlora
from jlora.errors import nearest
from train.cli.commands import COMMANDS, LIGHT, TRAINING


def main(argv: Sequence[str]) -> int:
    """Runs `jlora` with these arguments and returns its exit code.

    Args:
      argv: a command's name and its arguments: ["lm", "--config", "run.yaml"]. [], --help, -h and help print the list
        of commands, and --version prints `jlora VERSION`; both return 0. For an unknown command the error, with the
        nearest name and the list, is printed on stderr and 2 is returned.
    """
    name = argv[0] if argv else "--help"
    if name in ("--help", "-h", "help"):
        print(_help())
        return 0
    if name == "--version":
        print(f"jlora {jlora.__version__}")
        return 0
    if name not in COMMANDS:
        with suppress(BrokenPipeError):
            print(f"error: jlora {name}: no such command{nearest(name, COMMANDS)}\n{_help()}", file=sys.stderr)
        return 2
    if name in TRAINING:
        return importlib.import_module(f"{__package__}.{name}.__main__").main(argv[1:], alone=True)
    from train.cli.arguments import PARSERS
    from train.cli.exit_codes import replace_unencodable
    from train.cli.without_torch import keep_torch_from_transformers

    replace_unencodable()
    PARSERS[name]().parse_args(argv[1:])  # --help and mistakes end the program here

    if name not in LIGHT:
        keep_torch_from_transformers()
    return importlib.import_module(f"{__package__}.{name}").main(argv[1:])


def _help() -> str:
    lines = [f"  {name:<10} {meaning}" for name, meaning in COMMANDS.items()]
    return "\n".join(["usage: jlora COMMAND ...   (jlora COMMAND --help)   jlora --version", "", "commands:", *lines])
