"""Reads from XLA's text which devices take part in a collective together."""

from __future__ import annotations

import re
from itertools import pairwise
from math import prod

import numpy as np

from jlora.errors import JloraError

_IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
_LISTED = re.compile(r"\{(?:\{[\d, ]*\},? ?)*\}")
_FOLDED = re.compile(rf"\[([\d,]+)\]<={_IOTA}")
_ALONG_AXES = re.compile(rf"mesh\[([^\]]*)\](?:, device_ids=\((?:{_IOTA}|([\d,]+))\))? ?\{{([^}}]*)\}}")
_AXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")


def replica_groups(text: str, devices: int) -> np.ndarray:
    """Parses the text after `replica_groups=`, in any of its three notations, to int (groups, devices of a group).

    `{{0,1},{2,3}}` lists the groups, and `{}` is a single group of all devices. `[2,4]<=[4,2]T(1,0)` is 0, 1, ... in
    the second shape, transposed, and cut into rows of the first. `mesh['a'=2,'b'=4] {'b'}` groups devices that differ
    only along b, in an order that `device_ids=` may give; `'b':(2)2` is the second half of an axis of size four.

    Args:
      text: may continue after the groups.
      devices: the number of the program's devices.

    Raises:
      JloraError: another notation, or numbers that do not fit the number of devices.
    """
    try:
        if listed := _LISTED.match(text):
            groups = [_numbers(group) for group in re.findall(r"\{([\d, ]+)\}", listed[0])]
            return np.array(groups or [list(range(devices))])
        if folded := _FOLDED.match(text):
            return _iota(devices, *folded.group(2, 3)).reshape(_numbers(folded[1]))
        if along := _ALONG_AXES.match(text):
            sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", along[1])}
            listed_ids = np.array(_numbers(along[4]) or range(devices))
            order = _iota(devices, *along.group(2, 3)) if along[2] else listed_ids
            return _along(order, sizes, _AXIS.findall(along[5]))
    except ValueError as error:
        raise JloraError(f"compiled step: replica groups of {devices} devices: {text[:100]}: {error}") from error
    raise JloraError(f"compiled step: expected replica groups as XLA writes them, found {text[:100]}")


def _numbers(text: str | None) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text or "")]


def _iota(devices: int, shape: str, order: str | None) -> np.ndarray:
    return np.arange(devices).reshape(_numbers(shape)).transpose(_numbers(order) or None).reshape(-1)


def _along(order: np.ndarray, sizes: dict[str, int], axes: list[tuple[str, str, str]]) -> np.ndarray:
    """Groups the devices in `order` on a mesh of these sizes along axes, or parts of axes (name, before, size)."""
    wanted = {(name, int(before or 1), int(before or 1) * int(size or sizes[name])) for name, before, size in axes}
    shape: list[int] = []
    together: list[int] = []
    for name, size in sizes.items():
        cuts = {1, size, *(cut for axis, *ends in wanted if axis == name for cut in ends)}
        for low, high in pairwise(sorted(cuts)):
            together += [len(shape)] * any(axis == name and a <= low < b for axis, a, b in wanted)
            shape.append(high // low)
    last = np.moveaxis(order.reshape(shape), together, range(-len(together), 0))
    return last.reshape(-1, prod(shape[place] for place in together))
