"""What tells one training command from another."""

from __future__ import annotations

import dataclasses
from typing import Generic

from train.run_config import AnyConfig

FLAGS = {
    "offline": "use the config's offline: block, ask no hub",
    "resume": "go on from the last checkpoint in output_dir",
    "overwrite": "replace the run that output_dir holds",
    "dry_run": "print the parameter table and stop; needs no weights and no data",
    "verbose": "print the parameter table in full",
}
"""{name: meaning} of what every training command takes."""


@dataclasses.dataclass(frozen=True)
class Command(Generic[AnyConfig]):
    """One training command.

    Attributes:
      program: as it is started, `python -m train.classify`.
      purpose: what it does, lines of the help.
      schema: the class of its configs.
      config: a config that it comes with, which help and errors name.
      examples: arguments behind program and config that the help shows.
      flags: {name: meaning} of its switches, each a field of Flags.
    """

    program: str
    purpose: str
    schema: type[AnyConfig]
    config: str
    examples: tuple[str, ...]
    flags: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Flags:
    """The switches of the command line, all off unless given."""

    offline: bool = False
    resume: bool = False
    overwrite: bool = False
    dry_run: bool = False
    verbose: bool = False
    preview: bool = False
