"""Describes a training command: its name, schema, flags and options."""

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
"""{name: meaning} of the switches of every training command."""


class Option(NamedTuple):
    """A flag with a value.

    Attributes:
      metavar: the value's name in the help.
      meaning: for the help.
      takes: converts the text to the value.
    """

    metavar: str
    meaning: str
    takes: Callable[[str], Any] = str


OPTIONS = {
    "coordinator": Option("HOST:PORT", "where process 0 of several listens; a cluster says so itself"),
    "process": Option("I", "number of this process, from 0", int),
    "processes": Option("N", "number of processes of the run", int),
}
"""{name: option} of the flags with a value of every training command."""


@dataclasses.dataclass(frozen=True)
class Command(Generic[AnyConfig]):
    """One training command.

    Attributes:
      program: how it is called, `jlora classify`.
      purpose: what it does, for the help.
      schema: the class of its configs.
      config: an included config, which help and errors mention.
      examples: arguments that the help shows after program and config.
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
    """The flags of the command line; all are off by default.

    Attributes:
      offline: use the config's `offline:` block and ask no hub.
      resume: go on from the last checkpoint in output_dir.
      overwrite: replace the run in output_dir.
      dry_run: print what a run needs, then stop.
      verbose: print the parameter table in full, and log DEBUG messages.
      preview: print rows as the model will see them, then stop.
      mesh, chip: with dry_run: the mesh, such as `data=2,fsdp=4`, and the chip that a step is planned for.
      coordinator, process, processes: HOST:PORT of process 0, this process's number from 0, and how many there are.
    """

    offline: bool = False
    resume: bool = False
    overwrite: bool = False
    dry_run: bool = False
    verbose: bool = False
    preview: bool = False
    mesh: str | None = None
    chip: str | None = None
    sweep: str | None = None
    coordinator: str | None = None
    process: int | None = None
    processes: int | None = None
