"""The stated model of a chip: products, memory and links."""

import pytest

from jlora.errors import JloraError
from train.planning import chips
from train.planning.chips import CHIPS, Chip, chip_named, collective_seconds, product_seconds
from train.planning.collectives import Collective

CHIP = Chip(memory=1e9, flops=1e12, bandwidth=1e10, link=8e9, domain=4, network=1e9)


def test_a_product_takes_its_flops_or_its_bytes_whichever_are_more():
    reached = CHIP.flops * chips.MATRIX_SHARE
    assert product_seconds(CHIP, flops=reached, moved=10, width=2) == pytest.approx(1.0)
    assert product_seconds(CHIP, flops=reached, moved=10, width=4) == pytest.approx(2.0)
    assert product_seconds(CHIP, flops=10, moved=4e9, width=2) == pytest.approx(1.0)
    assert product_seconds(CHIP, flops=10, moved=4e9, width=4) == pytest.approx(2.0)


def _seconds_of_a_byte(group):
    """Of an all-to-all, less its latency."""
    found = Collective("all-to-all", ((0, 1, 2, 3)[: len(group)], group), ("data",), 1e9, 3)
    return (collective_seconds(CHIP, found) / 3 - chips.LATENCY) / found.bytes_received


@pytest.mark.parametrize(
    ("group", "rate"),
    [
        ((0, 1, 2, 3), 8e9),
        ((4, 6), 8e9),
        ((0, 4), 1e9),  # one port
        ((0, 1, 4, 5), 2e9),  # two
        (tuple(range(16)), 4e9),
        ((0, 1, 2, 4), 1e9),  # the node with fewest
    ],
)
def test_groups_are_as_fast_as_the_slowest_link_that_one_spans(group, rate):
    assert _seconds_of_a_byte(group) == pytest.approx(1 / (rate * chips.LINK_SHARE))


def test_groups_that_fit_no_node_are_as_slow_as_the_one_that_spans_two():
    """Of six, on nodes of four."""
    found = Collective("all-gather", ((0, 1, 2), (3, 4, 5)), ("fsdp",), 1e9, 1)
    slow = Collective("all-gather", ((3, 4, 5),), ("fsdp",), 1e9, 1)
    assert collective_seconds(CHIP, found) == collective_seconds(CHIP, slow)
    assert found.bytes_received / collective_seconds(CHIP, found) < CHIP.network


def test_many_ports_are_no_faster_than_the_links_behind_them():
    wide = CHIP._replace(network=4e9)
    found = Collective("all-reduce", (tuple(range(8)),), ("data",), 1e9, 1)
    within = Collective("all-reduce", (tuple(range(8)),), ("data",), 1e9, 1)
    assert collective_seconds(wide, found) == collective_seconds(wide._replace(domain=8), within)


def test_sending_nothing_takes_time():
    assert collective_seconds(CHIP, Collective("all-reduce", ((0, 1),), ("data",), 0.0, 50)) == 50 * chips.LATENCY


def test_chips_have_names():
    assert chip_named("h200").memory == 141e9
    with pytest.raises(JloraError, match=r"--chip: expected one of a100, h100, .*; found 'h20'.*h200"):
        chip_named("h20")


@pytest.mark.parametrize("name", CHIPS)
def test_links_are_slower_than_memory_and_faster_than_the_network(name):
    chip = CHIPS[name]
    assert chip.bandwidth > chip.link > chip.network
