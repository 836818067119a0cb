"""Describes a training command: its name, its schema and its flags."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, Generic, NamedTuple, get_type_hints

from train.config.run_config import AnyConfig


class Flag(NamedTuple):
    """What the help says of a flag.

    Attributes:
      meaning: in a few words.
      metavar: the name of its value; None for a switch, which has none.
      takes: converts the text of the value.
    """

    meaning: str
    metavar: str | None = None
    takes: Callable[[str], Any] = str


@dataclasses.dataclass(frozen=True)
class Flags:
    """The flags of the command line, each with what the help says of it; all are off by default.

    docs/devices.md describes runs of several processes: `coordinator`, `process`, `processes`.
    """

    offline: Annotated[bool, Flag("use the config's offline: block, ask no hub")] = False
    resume: Annotated[bool, Flag("go on from the last checkpoint in output_dir")] = False
    overwrite: Annotated[bool, Flag("replace the run that output_dir holds")] = False
    dry_run: Annotated[bool, Flag("print what a run needs, then stop; needs no weights")] = False
    verbose: Annotated[bool, Flag("print the parameter table in full, and log DEBUG messages")] = False
    preview: Annotated[bool, Flag("print rows as the model will see them, then stop; needs no weights")] = False
    mesh: Annotated[
        str | None,
        Flag("with --dry-run: plan a step on data=N,fsdp=N,tensor=N chips, which need not be here", "SIZES"),
    ] = None
    chip: Annotated[
        str | None, Flag("with --mesh: predict the time of a step on such chips, such as h100 or tpu-v5p", "NAME")
    ] = None
    sweep: Annotated[
        str | None, Flag("the runs: lists of values of keys of the config, or the values of each run", "FILE")
    ] = None
    coordinator: Annotated[
        str | None, Flag("where process 0 of several listens; a cluster says so itself", "HOST:PORT")
    ] = None
    process: Annotated[int | None, Flag("number of this process, from 0", "I", int)] = None
    processes: Annotated[int | None, Flag("number of processes of the run", "N", int)] = None


def describe_flags(*names: str) -> dict[str, Flag]:
    """Returns {name: what the help says} of these fields of `Flags`."""
    hints = get_type_hints(Flags, include_extras=True)
    return {name: hints[name].__metadata__[0] for name in names}


SWITCHES = ("offline", "resume", "overwrite", "dry_run", "verbose")
"""Those of every training command."""
PROCESSES = ("coordinator", "process", "processes")
"""The flags of a run of several processes."""


@dataclasses.dataclass(frozen=True)
class Command(Generic[AnyConfig]):
    """One training command.

    Attributes:
      program: how it is called, `jlora classify`.
      purpose: what it does, for the help.
      schema: the class of its configs.
      config: an included config, which help and errors mention.
      examples: arguments that the help shows after program and config.
      flags: {name: what the help says} of its flags, each a field of Flags.
    """

    program: str
    purpose: str
    schema: type[AnyConfig]
    config: str
    examples: tuple[str, ...]
    flags: dict[str, Flag]
