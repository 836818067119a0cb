"""Which collectives a program has: their axes, how often they run, and the bytes that reach a device."""

import pytest

from jlora.errors import JloraError
from train.planning.collectives import Collective, collectives

MESH = {"data": 2, "fsdp": 4, "tensor": 2}
TENSOR, FSDP, DATA = "[8,2]<=[16]", "[4,4]<=[2,4,2]T(0,2,1)", "[8,2]<=[2,8]T(1,0)"
"""Replica groups of devices that differ along one axis of MESH."""


def _program(line):
    body = f"%x = bf16[4,256]{{1,0}} parameter(0)\n  ROOT %found = {line}"
    return f"ENTRY %main (x: bf16[4,256]) -> bf16[4,256] {{\n  {body}\n}}\n"


def _only(line):
    [found] = collectives(_program(line), MESH)
    return found


@pytest.mark.parametrize(
    ("line", "kind", "axes", "received"),
    [
        (
            f"bf16[16,256]{{1,0}} all-gather(%x), replica_groups={FSDP}, dimensions={{0}}",
            "all-gather",
            "fsdp",
            3 * 2048,
        ),
        (f"bf16[4,256]{{1,0}} all-reduce(%x), replica_groups={DATA}, to_apply=%add", "all-reduce", "data", 2048),
        (f"bf16[1,256]{{1,0}} reduce-scatter(%x), replica_groups={FSDP}", "reduce-scatter", "fsdp", 0.75 * 2048),
        (f"bf16[4,256]{{1,0}} all-to-all(%x), replica_groups={TENSOR}", "all-to-all", "tensor", 1024),
        (
            f"(bf16[4,256]{{1,0}}, bf16[16,256]{{1,0}}) all-gather-start(%x), replica_groups={FSDP}",
            "all-gather",
            "fsdp",
            3 * 2048,
        ),
        ("bf16[4,256]{1,0} all-reduce-start(%x), replica_groups={{0,1},{2,3}}", "all-reduce", "tensor", 2048),
        (
            "bf16[4,256]{1,0} collective-permute(%x), source_target_pairs={{0,0},{2,4},{4,2}}",
            "collective-permute",
            "fsdp",
            2048,
        ),
    ],
)
def test_kinds(line, kind, axes, received):
    found = _only(line)
    assert (found.kind, found.axes, found.times) == (kind, (axes,), 1)
    assert found.payload == 4 * 256 * 2
    assert found.bytes_received == received


def test_a_group_may_span_several_axes():
    everyone = _only("bf16[4,256]{1,0} all-reduce(%x), replica_groups={}")
    assert everyone.axes == ("data", "fsdp", "tensor")
    assert everyone.groups == (tuple(range(16)),)
    assert _only("bf16[4,256]{1,0} all-reduce(%x), replica_groups=[2,8]<=[2,4,2]T(2,0,1)").axes == ("data", "fsdp")


def test_what_is_not_known_is_refused_and_not_left_out():
    for kind in ("collective-broadcast", "ragged-all-to-all"):
        with pytest.raises(JloraError, match=f"expected collectives out of .*; found {kind}"):
            _only(f"bf16[4,256]{{1,0}} {kind}(%x), replica_groups={{}}")


def test_what_nobody_sends_is_left_out():
    for line in (
        "bf16[4,256]{1,0} all-reduce(%x), replica_groups=[16,1]<=[16]",
        "bf16[4,256]{1,0} collective-permute(%x), source_target_pairs={{0,0},{1,1}}",
        "bf16[4,256]{1,0} all-gather-done(%x)",
    ):
        assert collectives(_program(line), MESH) == []


def test_an_all_reduce_sends_what_a_reduce_scatter_and_an_all_gather_of_its_parts_send():
    group = (tuple(range(8)),)
    whole = Collective("all-reduce", group, ("data",), 800.0, 1)
    parts = [
        Collective("reduce-scatter", group, ("data",), 800.0, 1),
        Collective("all-gather", group, ("data",), 100.0, 1),
    ]
    assert whole.bytes_received == sum(part.bytes_received for part in parts)
