"""Parses the command line of a training command: a config file, `key=value` overrides and flags."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, NoReturn, get_args

from pydantic.fields import FieldInfo

from jlora.errors import JloraError, nearest
from jlora.files import yaml12
from train.cli.help import help_text
from train.config import dotted_keys
from train.config.command import Command, Flags
from train.config.run_config import AnyConfig
from train.config.shipped import read_config_file


@dataclasses.dataclass(frozen=True)
class Request(Generic[AnyConfig]):
    """A parsed command line, not yet checked against the schema.

    Attributes:
      command: the training command.
      file: the config file, or its name in errors; None if everything is given on the command line.
      values: the mapping in that file, unchanged.
      overrides: {dotted key: value} of the command line, in its order; the last of two equal keys counts.
      flags: the arguments with two dashes.
      given_by: where the overrides come from, for errors.
    """

    command: Command[AnyConfig]
    file: Path | str | None
    values: dict[str, Any]
    overrides: dict[str, Any]
    flags: Flags
    given_by: str = "command line"


def parse_command_line(argv: Sequence[str], command: Command[AnyConfig]) -> Request[AnyConfig]:
    """Reads a command line (without the program's name) and the config file that it names.

        ["--config", "run.yaml", "lora.r=4", "lora.target_modules=q,v", "--resume"]
        -> file Path("run.yaml"), overrides {"lora.r": 4, "lora.target_modules": ["q", "v"]}, Flags(resume=True)

    A value is YAML. But the value of a key of type text is used unchanged, unless it is empty, null, quoted or starts
    with a bracket. `a,b` is a list if the key takes one; commas inside brackets do not separate, so that a regular
    expression is not split.

    `--help` prints the help and ends the program. Without --config the Request's file values are {}; its overrides are
    {dotted key: value}, the last one of a key given twice.

    Raises:
      JloraError: an unknown flag or one that needs another, an argument that is not `key=value`, a value that is not
        YAML, or an error of `read_config_file`. `resolve` lists all unknown keys and wrong values later.
    """
    parser = _Parser(prog=command.program, add_help=False, allow_abbrev=False)
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--config", metavar="FILE", type=Path)
    for name, flag in command.flags.items():
        value: dict[str, Any] = (
            {"metavar": flag.metavar, "type": flag.takes} if flag.metavar else {"action": "store_true"}
        )
        parser.add_argument(_to_flag(name), **value)
    known, rest = parser.parse_known_args(argv)
    if known.help:
        print(help_text(command), end="")
        parser.exit()
    overrides = dict(_override(argument, command) for argument in rest)
    values = {} if known.config is None else read_config_file(known.config)
    flags = Flags(**{name: getattr(known, name) for name in command.flags})
    if flags.mesh and not flags.dry_run:
        raise JloraError("command line: --mesh: expected with --dry-run; a run takes mesh.data=N mesh.fsdp=N")
    if flags.chip and not flags.mesh:
        raise JloraError("command line: --chip: expected with --mesh, such as --dry-run --mesh data=8")
    return Request(command, known.config, values, overrides, flags)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise JloraError(f"command line: {message}; --help shows the usage")


def _to_flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _override(argument: str, command: Command) -> tuple[str, Any]:
    key, equals, text = argument.partition("=")
    if argument.startswith("-"):
        flags = ["--config", "--help", *map(_to_flag, command.flags)]
        hint = f"; did you mean {argument.lstrip('-')}, without dashes?" if equals else nearest(key, flags)
        raise JloraError(f"command line: unknown flag {argument}{hint}\n  flags: {', '.join(flags)}")
    if not equals or not key:
        raise JloraError(f"command line: expected key=value, such as lora.r=4, found {argument!r}")
    field = dotted_keys.fields(command.schema).get(key.removeprefix("offline."))
    return key, _value(field, text.strip(), f"command line, {argument}")


def _value(field: FieldInfo | None, text: str, source: str) -> Any:
    takes = dotted_keys.kinds(field.annotation) if field else set()
    if text[:1] in ("[", "{", "'", '"') or text in ("", "~", "null"):
        return yaml12.parse(text, source)
    if field and list in takes and (len(items := _split(text)) > 1 or takes <= {list, dict, type(None)}):
        return [item if _lists_text(field) else yaml12.parse(item, source) for item in items]
    if str in takes and bool not in takes:
        return text
    return yaml12.parse(text, source)


def _split(text: str) -> list[str]:
    """Splits the text at commas that are outside of (), [] and {}."""
    parts = re.findall(r"(?:\([^()]*\)|\[[^\[\]]*\]|\{[^{}]*\}|[^,])+", text)
    return [part.strip() for part in parts]


def _lists_text(field: FieldInfo) -> bool:
    lists = [part for part in (field.annotation, *get_args(field.annotation)) if dotted_keys.kinds(part) == {list}]
    return all(str in dotted_keys.kinds(get_args(part)[0]) for part in lists)
