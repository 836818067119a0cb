"""The points of a sweep: the values that each run has for the sweep's keys."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jlora.errors import JloraError
from train.config.run_config import AnyConfig, RunConfig
from train.config.validate import validate
from train.data.random_streams import Stream, permutation, random_words
from train.run.manifest import flat
from train.sweep.config import SweepConfig

_LONGEST_NAME = 100
_MOST_RUNS = 10_000
_OF_THE_SWEEP = ("output_dir", "tracker", "project", "train.max_hours", "export.merged", "hub.push")
"""Keys that mean the sweep as a whole: its runs cannot differ in them."""
_LISTED = 10**6
"""Up to this many combinations are put into a random order; of more, numbers are drawn until enough are different."""


class Point(NamedTuple):
    """One run of a sweep: its name, which is that of its folder, and {dotted key: value}, the same keys in all."""

    name: str
    values: dict[str, Any]


def list_points(sweep: SweepConfig, config: RunConfig) -> list[Point]:
    """Returns the points of a sweep: those of its list, or of its grid, the last key changing fastest.

    All points have values for the same keys. One that the list does not give is the config's.

    Raises:
      JloraError: a key of the grid has the same value twice, or two points of the list have the same values; a key
        that runs cannot differ in; more than 10,000 runs.
    """
    for key in sweep.parameters or itertools.chain.from_iterable((sweep.points or {}).values()):
        if key in _OF_THE_SWEEP:
            raise JloraError(f"--sweep: {key}: expected a key in which runs may differ; set this one for all of them")
    if sweep.points is not None:
        return _listed(sweep.points, flat(config))
    assert sweep.parameters is not None
    points = _combinations(sweep.parameters, sweep.runs, sweep.seed)
    return [Point(name, values) for name, values in zip(_names(points), points, strict=True)]


def _combinations(parameters: Mapping[str, Sequence[Any]], runs: int | None, seed: int) -> list[dict[str, Any]]:
    """Returns all combinations of the values, or `runs` of them."""
    for key, values in parameters.items():
        if len({repr(value) for value in values}) < len(values):
            raise JloraError(f"parameters.{key}: expected different values, found {values}")
    count = math.prod(map(len, parameters.values()))
    wanted = count if runs is None else min(runs, count)
    if wanted > _MOST_RUNS:
        raise JloraError(f"--sweep: expected at most {_MOST_RUNS:,} runs, found {wanted:,}; search: random draws some")
    chosen = range(count) if runs is None else _draw(count, wanted, seed)
    return [_combination(parameters, index) for index in chosen]


def _draw(count: int, wanted: int, seed: int) -> list[int]:
    """Returns `wanted` different numbers below `count`, ascending; there may be more combinations than memory."""
    if count <= _LISTED:
        return sorted(permutation(count, Stream.SWEEP_POINTS, seed)[:wanted].tolist())
    drawn: set[int] = set()
    parts = itertools.count()
    while len(drawn) < wanted:
        words = random_words(count.bit_length() // 64 + 2, Stream.SWEEP_POINTS, seed, next(parts))
        drawn.add(int.from_bytes(words.astype("<u8").tobytes(), "little") % count)
    return sorted(drawn)


def _combination(parameters: Mapping[str, Sequence[Any]], index: int) -> dict[str, Any]:
    """Returns a combination by its number; the last key changes fastest."""
    found = {}
    for key, values in reversed(list(parameters.items())):
        index, place = divmod(index, len(values))
        found[key] = values[place]
    return {key: found[key] for key in parameters}


def _listed(points: Mapping[str, dict[str, Any]], of_config: Mapping[str, Any]) -> list[Point]:
    keys = dict.fromkeys(key for given in points.values() for key in given)
    listed = [Point(name, {key: given.get(key, of_config.get(key)) for key in keys}) for name, given in points.items()]
    names: dict[str, str] = {}
    for point in listed:
        before = names.setdefault(repr(point.values), point.name)
        if before != point.name:
            raise JloraError(f"points: expected different values, found those of {before} again in {point.name}")
    return listed


def make_point_config(config: AnyConfig, point: Point) -> AnyConfig:
    """Returns the config of a point: the sweep's, with the point's values, in a folder of the sweep's `output_dir`.

    It exports no merged model where there is an adapter, and uploads nothing: that is for the best run.

    Raises:
      JloraError: a key that the config does not have, a value that it does not take.
    """
    values = flat(config) | point.values
    values |= {"output_dir": f"{config.output_dir}/{point.name}", "hub.push": False}
    values["export.merged"] = values["method"] != "lora"
    found, problems = validate(values, type(config))
    if found is None:
        lines = [f"  {key}: {text}" for key, text in problems.items()]
        raise JloraError("\n".join([f"--sweep: {point.name}: expected values that the config takes", *lines]))
    return found


def _names(points: Sequence[dict[str, Any]]) -> list[str]:
    """Returns a name for each point that says its values, or if that is too long or not unique, numbers."""
    names = [",".join(f"{key.rpartition('.')[2]}={_text(value)}" for key, value in one.items()) for one in points]
    if len(set(names)) < len(names) or max(map(len, names)) > _LONGEST_NAME:
        return [f"point-{number:03}" for number in range(1, len(points) + 1)]
    return names


def show_value(value: Any) -> str:
    """Returns a value of a key as text, with null, true and false as in YAML."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _text(value: Any) -> str:
    text = "+".join(map(str, value)) if isinstance(value, list) else show_value(value)
    return re.sub(r"[^A-Za-z0-9._+-]", "_", text)
