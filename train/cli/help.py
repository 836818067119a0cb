"""Makes the text that `--help` prints: usage, flags, and every key of the schema."""

from __future__ import annotations

import shutil
import textwrap

from pydantic.fields import FieldInfo

from jlora.files import yaml12
from train.config import dotted_keys
from train.config.command import Command

_INDENT = 31


def help_text(command: Command) -> str:
    """Returns the help of a command: its flags and every key, wrapped to the terminal's width (70 to 110 columns).

    In order: a usage line with the program, the purpose, flags with their meanings, each section's keys
    with meaning, type and default, and the examples.
    """
    width = max(70, min(110, shutil.get_terminal_size().columns))
    lines = [
        f"usage: {command.program} --config FILE [key=value ...] [flags]\n",
        *textwrap.wrap(f"{command.purpose} Each key=value overrides a value of the file.", 70),
        "",
        "flags:",
        _entry("--config FILE", "the config", width),
        _entry("--help", "this text", width),
    ]
    for name, flag in command.flags.items():
        lines.append(_entry(f"--{name.replace('_', '-')} {flag.metavar or ''}".rstrip(), flag.meaning, width))
    lines += ["", "keys: meaning (type; default)"]
    sections, section = dotted_keys.sections(command.schema), ""
    for key, field in dotted_keys.fields(command.schema).items():
        if key.rpartition(".")[0] != section:
            section = key.rpartition(".")[0]
            lines += ["", f"{section}: {sections[section].__doc__}"]
        lines.append(_entry(key, _meaning(field), width))
    start = f"  {command.program} --config {command.config}"
    examples = [f"{start} \\\n      {arguments}" if arguments else start for arguments in command.examples]
    return "\n".join([*lines, "", "examples:", *examples, ""])


def _meaning(field: FieldInfo) -> str:
    default = "required"
    if not field.is_required():
        written = yaml12.dump({"": field.get_default(call_default_factory=True)})
        default = f"default {written.partition(': ')[2].strip()}"
    return f"{field.description} ({dotted_keys.describe_field(field)}; {default})"


def _entry(name: str, meaning: str, width: int) -> str:
    lines = textwrap.wrap(meaning, width - _INDENT, break_on_hyphens=False)
    if len(name) > _INDENT - 4:
        return "\n".join([f"  {name}", *(" " * _INDENT + line for line in lines)])
    return textwrap.indent("\n".join(lines), " " * _INDENT).replace(" " * _INDENT, f"  {name}".ljust(_INDENT), 1)
