"""A step planned for chips that are not there: what each holds, computes and receives."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import scaling
from tests.support.programs.plan_cases import LLAMA, TINY

ROOT = Path(__file__).parents[3]
LLAMA_8B = LLAMA | scaling.MODELS["8b"]
"""What docs/scaling.md adds up by hand."""
GRADIENTS = 2 * 3 * 16 * (4 * (64 + 64) + 3 * (64 + 256))
"""Bytes of the gradients of TINY's adapter, r 16 on all linear layers, in the 16 bits of the products behind them."""


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What plan_cases prints."""
    folders = []
    for name, config in (("tiny", TINY), ("8b", LLAMA_8B)):
        folders.append(tmp_path_factory.mktemp(name))
        (folders[-1] / "config.json").write_text(json.dumps(config))
    command = [sys.executable, str(ROOT / "tests/support/programs/plan_cases.py"), *map(str, folders)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def found(printed):
    return json.loads(printed.splitlines()[-1])


@pytest.fixture(scope="module")
def cases(found):
    return found["cases"]


def _received(case, *axes):
    """{kind: bytes that a chip receives over these axes in a step}."""
    received = {}
    for one in case["collectives"]:
        if tuple(one["axes"]) == axes:
            received[one["kind"]] = received.get(one["kind"], 0) + one["received"]
    return received


def test_the_command_says_it(printed):
    said = dict(line.split(maxsplit=1) for line in printed.splitlines()[:-1] if line)
    assert said["mesh"] == "data 2 x fsdp 2 x tensor 2: 8 chips"
    assert said["fits"].startswith("yes: 0.0 of 72 GB")
    assert said["time"].startswith("about ")


def test_one_chip_does_all_of_the_work(cases):
    assert cases["one"]["products"] == cases["one"]["flops"]
    assert cases["one"]["collectives"] == []
    assert cases["one"]["tokens"] == 8 * 16
    assert cases["one"]["width"] == 2


@pytest.mark.parametrize("name", ["data", "fsdp", "tensor"])
def test_chips_share_the_work(cases, name):
    """All of it is done, and what several do, such as the products of A with whole inputs, is little."""
    share = cases[name]["flops"] / 4
    assert share <= cases[name]["products"] < 1.5 * share


def test_chips_of_data_send_the_adapters_gradients_alone(cases):
    """Once each, and single numbers beside them: an all-reduce passes on three quarters of them twice."""
    assert {tuple(one["axes"]) for one in cases["data"]["collectives"]} == {("data",)}
    received = _received(cases["data"], "data")
    assert received.keys() == {"all-reduce"}
    assert received["all-reduce"] == pytest.approx(2 * 3 / 4 * GRADIENTS, rel=0.1)


def test_fsdp_gathers_weights_and_not_activations(cases):
    """Each weight at most twice, for its product and for its derivative, in 16 bits, three quarters from others."""
    base = cases["one"]["memory"]["base"]
    received = _received(cases["fsdp"], "fsdp")
    assert received.keys() == {"all-gather", "all-reduce"}
    assert 3 / 4 * base < received["all-gather"] <= 2 * 3 / 4 * base
    assert received["all-reduce"] == pytest.approx(2 * 3 / 4 * GRADIENTS, rel=0.1)


def test_a_method_that_trains_all_holds_the_base_beside_it(cases):
    """As a run does, though the step does not look at it."""
    memory = dict(cases["full"]["memory"])
    in_all = memory.pop("in_all")
    assert memory["base"] == memory["adapter"] == pytest.approx(memory["optimizer"] / 2, rel=0.01)
    assert in_all == pytest.approx(sum(filter(None, memory.values())), rel=0.05)


def test_what_an_axis_does_not_divide_is_named(cases):
    assert set(cases["undivided"]["undivided"]["tensor"]) == {
        "embed_tokens", "down_proj", "gate_proj", "up_proj", "k_proj", "o_proj", "q_proj", "v_proj", "lm_head"
    }  # fmt: skip
    assert not any(case["undivided"] for name, case in cases.items() if name != "undivided")


def test_chips_that_share_rows_of_many_blocks_of_attention_do_not_meet_at_each(cases):
    """They ask each other once a call what can be seen, in each of three layers; the loss has 8 chunks of tokens."""
    pairs = 3 * 10
    assert max(one["times"] for one in cases["long rows"]["collectives"]) == 8 < pairs


def test_each_batch_gathers_the_layers_again(cases):
    twice, once = (_received(cases[name], "fsdp")["all-gather"] for name in ("accumulated", "fsdp"))
    assert twice == pytest.approx(2 * once, rel=0.1)


@pytest.mark.parametrize(("name", "parts"), [("data", 1), ("fsdp", 4), ("tensor", 4)])
def test_the_base_is_split_over_fsdp_and_tensor(cases, name, parts):
    assert cases[name]["memory"]["base"] == pytest.approx(cases["one"]["memory"]["base"] / parts, rel=0.05)
    assert cases[name]["memory"]["adapter"] == cases["one"]["memory"]["adapter"]


PARAMETERS = 2 * 128256 * 4096 + 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096) + 4096
ADAPTER = 32 * 16 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))


@pytest.mark.parametrize(("sizes", "parts"), [("data=1", 1), ("fsdp=8", 8), ("fsdp=2,tensor=4", 8)])
def test_llama_8b_on_one_chip_and_on_eight(found, sizes, parts):
    """Base in 16 bits, r 16 on all linear layers in 32, and AdamW's two moments: the sums of docs/scaling.md."""
    base, adapter, optimizer = found["held"][sizes]
    assert base == pytest.approx(2 * PARAMETERS / parts, rel=0.01)
    assert adapter == pytest.approx(4 * ADAPTER, rel=0.01)
    assert optimizer == pytest.approx(8 * ADAPTER, rel=0.01)


def test_llama_8b_in_four_bits_and_with_a_split_adapter(found):
    tables = 2 * 128256 * 4096
    assert found["held"]["nf4"][0] == pytest.approx((0.516 * (PARAMETERS - tables) + 2 * tables) / 8, rel=0.05)
    _, adapter, optimizer = found["held"]["inherit"]
    assert optimizer == pytest.approx(2 * adapter, rel=0.01)
    assert adapter < 0.8 * 4 * ADAPTER
