from types import SimpleNamespace
from unittest import mock

import pytest

from train.planning.memory import Memory
from train.sweep import choose_slots


def _planned(group, slots):
    return Memory(base=100, adapter=0, optimizer=0, activations=0, logits=None, in_all=100 + 50 * slots)


@pytest.mark.parametrize(
    ("members", "at_once", "free", "expected"),
    [
        (4, None, None, 4),
        (10, None, 10_000, 5),  # a CPU trains at most 8 at once: two rounds of 5
        (24, 6, 10_000, 6),
        (8, None, 260, 3),
        (8, None, 1, 1),
    ],
)
def test_as_many_train_at_once_as_there_is_memory_for(members, at_once, free, expected):
    with (
        mock.patch.object(choose_slots, "plan_memory", _planned),
        mock.patch.object(choose_slots, "free_bytes", return_value=free),
    ):
        slots, found = choose_slots.choose_slots(SimpleNamespace(), members, at_once)
    assert (slots, found.in_all) == (expected, 100 + 50 * expected)
