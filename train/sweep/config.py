"""The schema of a sweep file, and the command line of `jlora sweep`."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from jlora.errors import JloraError
from train.classify.config import COMMAND as CLASSIFY
from train.config import dotted_keys
from train.config.command import SWITCHES, Command, Flag, describe_flags
from train.config.key_problem import KeyProblem
from train.config.sections import Count, Section, Seed, Share, Text
from train.config.shipped import read_config_file
from train.config.validate import flatten
from train.lm.config import COMMAND as LM

BEST = "best"
"""The folder of the best run, so no run's own name."""


def _require_run_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,99}", name):
        raise ValueError(
            f"expected a name of at most 100 letters, digits and . _ + = -, a letter or digit first; found {name!r}"
        )
    return name


RunName = Annotated[str, AfterValidator(_require_run_name)]
"""The name of a run, which is that of its folder."""

_TRAINERS: dict[str, Command[Any]] = {"classify": CLASSIFY, "lm": LM}


class HalvingSection(Section):
    """Successive halving: all runs train to the first step, the best of them go on to the next."""

    at: Annotated[list[Count], Field(min_length=1)] = Field(description="steps after which runs are compared")
    keep: Share = Field(default=0.5, description="share of the runs that goes on, at least one")


class SweepConfig(Section):
    """A sweep file: which runs of a config are trained."""

    search: Literal["grid", "random", "halving", "points"] = Field(
        default="grid",
        description="grid: every combination; random: some of them; halving: the worse ones end early; points: a list",
    )
    parameters: Annotated[dict[Text, Annotated[list[Any], Field(min_length=1)]], Field(min_length=1)] | None = Field(
        default=None, description="{key of the config: its values}, which are combined"
    )
    points: Annotated[dict[RunName, dict[Text, Any]], Field(min_length=1)] | None = Field(
        default=None, description="{name of a run: {key of the config: its value}}, with search: points"
    )
    runs: Count | None = Field(default=None, description="combinations to draw, seeded; null: all")
    seed: Seed = Field(default=0, description="seed of the draw of combinations")
    halving: HalvingSection | None = Field(default=None, description="when runs end, with search: halving")
    at_once: Count | None = Field(default=None, description="runs that train together; null: as many as memory allows")

    @field_validator("points")
    @classmethod
    def _no_run_is_called_best(cls, points: dict[str, Any] | None) -> dict[str, Any] | None:
        if points is not None and BEST in points:
            raise ValueError(f"expected other names than {BEST!r}, which is the folder of the best run")
        return points

    @model_validator(mode="after")
    def _runs_are_given_once(self) -> Self:
        needed, other = ("points", "parameters") if self.search == "points" else ("parameters", "points")
        if getattr(self, needed) is None:
            raise KeyProblem(needed, f"missing; search: {self.search} needs them")
        if getattr(self, other) is not None:
            raise KeyProblem(other, f"expected null with search: {self.search}, which takes {needed}")
        return self

    @model_validator(mode="after")
    def _parts_fit_the_search(self) -> Self:
        if self.search == "random" and self.runs is None:
            raise KeyProblem("runs", "missing; search: random needs the number of combinations to draw")
        if self.search in ("grid", "points") and self.runs is not None:
            found = f"found {self.runs}; search: random draws some of a grid"
            raise KeyProblem("runs", f"expected null with search: {self.search}, {found}")
        if (self.search == "halving") != (self.halving is not None):
            raise KeyProblem("halving", "expected with search: halving, and only there")
        if self.halving is not None and sorted(set(self.halving.at)) != self.halving.at:
            raise KeyProblem("halving.at", f"expected ascending steps, found {self.halving.at}")
        return self


def read_sweep(file: Path) -> SweepConfig:
    """Reads a sweep file.

    Raises:
      JloraError: it cannot be read, or has unknown keys or wrong values; all of them are named.
    """
    try:
        return SweepConfig.model_validate(read_config_file(file))
    except ValidationError as error:
        lines = [_line(detail) for detail in error.errors()]
        keys = ", ".join(SweepConfig.model_fields)
        raise JloraError("\n".join([f"{file}: expected a sweep file with the keys {keys}", *lines])) from None


def _line(detail: Any) -> str:
    where = ".".join(str(part) for part in detail["loc"] if part != "[key]")
    said = f"{detail['msg']}, found {detail['input']!r:.100}"
    if detail["type"] == "value_error":
        said = str(detail["ctx"]["error"])
    return f"  {where}: {said}" if where else f"  {said}"


def command_for(argv: Sequence[str]) -> tuple[str, Command]:
    """Returns (the trainer, `classify` or `lm`, whose keys the config file and the arguments have; its command)."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", type=Path)
    keys = {argument.partition("=")[0] for argument in argv if "=" in argument}
    values: dict[str, Any] = {}
    with suppress(JloraError, OSError, argparse.ArgumentError):  # the command line is read again, and its errors said
        file = parser.parse_known_args(argv)[0].config
        values = {} if file is None else read_config_file(file)

    def count_unknown(trainer: str) -> int:
        schema = _TRAINERS[trainer].schema
        known = dotted_keys.fields(schema)
        return sum(key not in known for key in {*flatten(values, schema), *keys})

    trainer = min(_TRAINERS, key=count_unknown)
    return trainer, _sweep_command(_TRAINERS[trainer])


def _sweep_command(of_one_run: Command) -> Command:
    return dataclasses.replace(
        of_one_run,
        program="jlora sweep",
        purpose="Trains many runs of one config together; --sweep names a YAML file with the values of some keys.",
        examples=("--sweep configs/sweeps/rank_lr.yaml", "--sweep configs/sweeps/rank_lr.yaml --dry-run"),
        flags=describe_flags(*SWITCHES, "sweep")
        | {"dry_run": Flag("print the runs, and which train together in how much memory, and stop")},
    )


COMMAND = _sweep_command(CLASSIFY)
