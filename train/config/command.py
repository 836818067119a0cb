"""What tells one training command from another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Generic, NamedTuple

from train.config.run_config import AnyConfig

FLAGS = {
    "offline": "use the config's offline: block, ask no hub",
    "resume": "go on from the last checkpoint in output_dir",
    "overwrite": "replace the run that output_dir holds",
    "dry_run": "print the parameter table and stop; needs no weights and no data",
    "verbose": "print the parameter table in full",
}
"""{name: meaning} of what every training command takes."""


class Option(NamedTuple):
    """What stands behind a flag: its name in the help, what it means, and its type."""

    metavar: str
    meaning: str
    takes: Callable[[str], Any] = str


OPTIONS = {
    "coordinator": Option("HOST:PORT", "where process 0 of several listens; a cluster says so itself"),
    "process": Option("I", "number of this process, from 0", int),
    "processes": Option("N", "number of processes of the run", int),
}
"""{name: option} of what every training command takes."""


@dataclasses.dataclass(frozen=True)
class Command(Generic[AnyConfig]):
    """One training command.

    Attributes:
      program: as it is started, `jlora classify`.
      purpose: what it does, lines of the help.
      schema: the class of its configs.
      config: a config that it comes with, which help and errors name.
      examples: arguments behind program and config that the help shows.
      flags: {name: meaning} of its switches, each a field of Flags.
      options: {name: option} of its flags with a value, each a field of Flags.
    """

    program: str
    purpose: str
    schema: type[AnyConfig]
    config: str
    examples: tuple[str, ...]
    flags: dict[str, str]
    options: dict[str, Option]


@dataclasses.dataclass(frozen=True)
class Flags:
    """The flags of the command line, all off unless given."""

    offline: bool = False
    resume: bool = False
    overwrite: bool = False
    dry_run: bool = False
    verbose: bool = False
    preview: bool = False
    mesh: str | None = None
    chip: str | None = None
    coordinator: str | None = None
    process: int | None = None
    processes: int | None = None
