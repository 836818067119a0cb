"""What --dry-run --mesh prints."""

import pytest

from train.planning.chip_plan import ChipPlan
from train.planning.chips import CHIPS, MATRIX_SHARE
from train.planning.collectives import Collective
from train.planning.flops import Product
from train.planning.memory import Memory, memory_table
from train.planning.plan_report import plan_text
from train.planning.step_time import step_time

GIB = 2**30
MEMORY = Memory(base=15 * GIB, adapter=GIB, optimizer=2 * GIB, activations=9 * GIB, logits=None, in_all=27 * GIB)
PLAN = ChipPlan(
    {"data": 2, "fsdp": 4, "tensor": 2},
    4096,
    2,
    MEMORY,
    [Product(2 * 10**12, 10**6, 3)],
    [
        Collective("all-reduce", ((0, 1),), ("tensor",), GIB, 4),
        Collective("all-gather", ((0, 2, 4, 6),), ("fsdp",), GIB, 2),
        Collective("all-gather", ((0, 2, 4, 6),), ("fsdp",), 2 * GIB, 1),
    ],
    {},
)


def _facts(text):
    return {line.split()[0]: line[11:] for line in text.split("\n\n")[-1].splitlines()}


def test_bytes_collectives_and_work():
    text = plan_text(PLAN, None)
    held, sent, _ = text.split("\n\n")
    assert held.partition("\n")[2] == memory_table(MEMORY)
    assert "logits" not in held
    lines = [line.split()[:6] for line in sent.splitlines()[2:]]
    assert lines[0] == ["fsdp", "all-gather", "3", "12.000", "GiB", "weights,"]
    assert lines[1] == ["tensor", "all-reduce", "4", "4.000", "GiB"]
    facts = _facts(text)
    assert facts["mesh"] == "data 2 x fsdp 4 x tensor 2: 16 chips"
    assert facts["tokens"] == "4,096 a step at most"
    assert facts["work"].startswith("6 TFLOP a step on each chip")
    assert facts.keys() == {"mesh", "tokens", "work"}


@pytest.mark.parametrize(("name", "fits"), [("h100", "yes: 29.0 of 72 GB"), ("tpu-v5e", "no: 29.0 of 14 GB")])
def test_a_chip_is_full_or_not_and_takes_its_time(name, fits):
    text, time = plan_text(PLAN, CHIPS[name]), step_time(PLAN, CHIPS[name])
    facts = _facts(text)
    assert facts["fits"] == f"{fits} that a program can use"
    assert facts["time"].startswith(f"about {time.step:.3g} s a step, {4096 / time.step:,.0f} tokens/s; predicted")
    assert f"products {time.products:.3g} s, weights {time.gathers:.3g} s" in text
    assert f"{time.unhidden:.3g} s without overlap" in text
    gathers = next(line for line in text.splitlines() if line.startswith("fsdp"))
    assert f"{time.gathers:,.3f}" in gathers


def test_what_a_mesh_does_not_split_is_said():
    facts = _facts(plan_text(PLAN._replace(undivided={"tensor": ["q_proj", "k_proj"]}), None))
    assert facts["whole"] == "tensor 2 does not divide q_proj, k_proj: each of its chips has all"


def test_one_chip_sends_nothing():
    assert "collectives of" not in plan_text(PLAN._replace(collectives=[]), None)


def test_long_steps_are_in_minutes():
    chip = CHIPS["h100"]
    slow = PLAN._replace(products=[Product(int(169.4 * chip.flops * MATRIX_SHARE), 10**6, 1)], collectives=[])
    assert _facts(plan_text(slow, chip))["time"].startswith("about 2:49 a step")
