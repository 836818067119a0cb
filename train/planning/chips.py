"""Chips, and a model of their time for products, memory and links, from published figures, not measured."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from jlora.errors import JloraError, nearest
from train.planning.collectives import Collective

MATRIX_SHARE = 0.5
"""The share of the peak rate that a step's matrix products reach, including the operations between them. With this
value, planned LoRA steps of 7B, 8B and 70B agree with NeMo's measured ones on H100s (docs/scaling.md;
`python -m benchmarks.published`)."""

MEMORY_SHARE = 0.8
"""The share of the memory's bandwidth that is reached."""

LINK_SHARE = 0.8
"""The share of a link's bandwidth that collectives reach."""

USABLE_SHARE = 0.9
"""The share of a chip's memory that a program can use; the rest goes to runtime, libraries and fragmentation."""

LATENCY = 2e-5
"""Seconds that a collective takes at least, however little it sends."""


class Chip(NamedTuple):
    """A chip, with its maker's figures.

    Attributes:
      memory: bytes.
      flops: FLOP/s of dense bfloat16 products with float32 sums; float32 takes twice as long.
      bandwidth: of the memory, bytes per second.
      link: bytes per second that one chip receives from the chips of its domain in a collective.
      domain: how many chips are joined by these links.
      network: bytes per second that one chip receives from outside of its domain.
    """

    memory: float
    flops: float
    bandwidth: float
    link: float
    domain: int
    network: float


CHIPS = {
    "a100": Chip(80e9, 312e12, 2.039e12, 300e9, 8, 25e9),
    "h100": Chip(80e9, 989e12, 3.35e12, 450e9, 8, 50e9),
    "h200": Chip(141e9, 989e12, 4.8e12, 450e9, 8, 50e9),
    "b200": Chip(180e9, 2250e12, 8.0e12, 900e9, 8, 50e9),
    "tpu-v5e": Chip(16e9, 197e12, 0.81e12, 100e9, 256, 3.1e9),
    "tpu-v5p": Chip(95e9, 459e12, 2.76e12, 200e9, 8960, 6.2e9),
    "tpu-v6e": Chip(32e9, 918e12, 1.64e12, 200e9, 256, 12.5e9),
}
"""NVIDIA: data sheets of the SXM modules with NVLink (half of the two-way figure) and of the DGX systems, one network
port a chip. TPU: Google's pages of the versions; `link` is both directions of one axis of the torus. docs/scaling.md
names the sources."""


def chip_named(name: str) -> Chip:
    """Returns the chip of this name, a key of CHIPS: a100, h100, h200, b200, tpu-v5e, tpu-v5p or tpu-v6e.

    Raises:
      JloraError: there is no such chip.
    """
    if name not in CHIPS:
        raise JloraError(f"--chip: expected one of {', '.join(CHIPS)}; found {name!r}{nearest(name, CHIPS)}")
    return CHIPS[name]


def product_seconds(chip: Chip, flops: float, moved: float, width: int) -> float:
    """Predicts the time of a matrix product: that of its FLOPs or of its memory traffic, whichever is longer.

    These are flops / (chip.flops * MATRIX_SHARE), twice that for a width of 4, and moved * width / (chip.bandwidth *
    MEMORY_SHARE).

    Args:
      flops: of the product on this chip.
      moved: numbers that it reads and writes.
      width: bytes of each, 2 or 4.
    """
    rate = chip.flops * MATRIX_SHARE * 2 / width
    return max(flops / rate, moved * width / (chip.bandwidth * MEMORY_SHARE))


def collective_seconds(chip: Chip, collective: Collective) -> float:
    """Predicts the time of all runs of a collective in a step, over the slowest link that one of its groups uses.

    A run takes LATENCY + bytes_received / (rate * LINK_SHARE). The rate is `chip.link` for a group within one domain
    (devices with the same number // `chip.domain`). For one in several domains it is `chip.network` times the fewest
    members that the group has in a domain, if that is less: they share their ports.
    """
    rate = chip.link
    for group in collective.groups:
        members = Counter(device // chip.domain for device in group)
        if len(members) > 1:
            rate = min(rate, chip.network * min(members.values()))
    return collective.times * (LATENCY + collective.bytes_received / (rate * LINK_SHARE))
