"""What `--help` prints: usage, flags, and every key of the schema."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping
from typing import Any

from pydantic.fields import FieldInfo

from train import keys, yaml_text

_USAGE = """\
usage: python -m train.classify --config FILE [key=value ...] [flags]

Fine-tunes an encoder as one YAML file says; each key=value overrides
a value of that file.
"""
_EXAMPLES = """\
examples:
  python -m train.classify --config configs/sst2.yaml
  python -m train.classify --config configs/sst2.yaml \\
      lora.r=4 lora.target_modules=query,value output_dir=runs/r4
  python -m train.classify --config configs/sst2.yaml \\
      data.train=my.tsv data.text=review output_dir=runs/mine
"""
_INDENT = 31


def help_text(flags: Mapping[str, str]) -> str:
    """The help for `flags`, {name: meaning}, and every key, wrapped to the terminal."""
    width = max(70, min(110, shutil.get_terminal_size().columns))
    lines = [
        _USAGE,
        "flags:",
        _entry("--config FILE", "the config", width),
        _entry("--help", "this text", width),
    ]
    lines += [_entry(f"--{name.replace('_', '-')}", meaning, width) for name, meaning in flags.items()]
    lines += ["", "keys: meaning (type; default)"]
    section = ""
    for key, field in keys.fields().items():
        if key.rpartition(".")[0] != section:
            section = key.rpartition(".")[0]
            lines += ["", f"{section}: {keys.sections()[section].__doc__}"]
        lines.append(_entry(key, _meaning(field), width))
    return "\n".join([*lines, "", _EXAMPLES])


def _meaning(field: FieldInfo) -> str:
    default = "required" if field.is_required() else f"default {_shown(field.get_default(call_default_factory=True))}"
    return f"{field.description} ({keys.describe(field)}; {default})"


def _shown(value: Any) -> str:
    return yaml_text.dump({"": value}).partition(": ")[2].strip()


def _entry(name: str, meaning: str, width: int) -> str:
    lines = textwrap.wrap(meaning, width - _INDENT, break_on_hyphens=False)
    if len(name) > _INDENT - 4:
        return "\n".join([f"  {name}", *(" " * _INDENT + line for line in lines)])
    return textwrap.indent("\n".join(lines), " " * _INDENT).replace(" " * _INDENT, f"  {name}".ljust(_INDENT), 1)
