"""What a compiled program runs, and how often, read from its text."""

import jax
import jax.numpy as jnp
import pytest

from jlora.errors import JloraError
from train.planning.hlo import Shape, walk_executed

NESTED = """\
HloModule nested

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%fused (p: bf16[4,8]) -> bf16[4,8] {
  %p = bf16[4,8]{1,0} parameter(0)
  ROOT %d = bf16[4,4]{1,0} dot(%p, %p), lhs_contracting_dims={1}, rhs_contracting_dims={1}
}

%inner_body (t: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %t = (s32[], bf16[4,8]{1,0}) parameter(0)
  %x = bf16[4,8]{1,0} get-tuple-element(%t), index=1
  %f = bf16[4,4]{1,0} fusion(%x), kind=kOutput, calls=%fused
  ROOT %r = (s32[], bf16[4,8]{1,0}) tuple(%f, %x)
}

%inner_condition (t: (s32[], bf16[4,8])) -> pred[] {
  %t = (s32[], bf16[4,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %n = s32[] constant(5)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%outer_body (t: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %t = (s32[], bf16[4,8]{1,0}) parameter(0)
  ROOT %w = (s32[], bf16[4,8]{1,0}) while(%t), condition=%inner_condition, body=%inner_body
}

%outer_condition (t: (s32[], bf16[4,8])) -> pred[] {
  %t = (s32[], bf16[4,8]{1,0}) parameter(0)
  ROOT %unknown = pred[] custom-call(%t), custom_call_target="ask"
}

ENTRY %main (a: bf16[4,8]) -> bf16[4,8] {
  %a = bf16[4,8]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], /*index=1*/bf16[4,8]{1,0}) tuple(%zero, %a)
  %loop = (s32[], bf16[4,8]{1,0}) while(%start), condition=%outer_condition, body=%outer_body, \
backend_config={"known_trip_count":{"n":"3"}}
  ROOT %all = f32[4,8]{1,0} all-reduce(%start), replica_groups={}, to_apply=%add
}
"""


def _found(text, opcode):
    return [(instruction, times) for instruction, times in walk_executed(text) if instruction.opcode == opcode]


def test_loops_inside_of_loops_multiply():
    """Three turns by XLA's note, five by the condition; a fusion is run, what a reduction adds with is not."""
    [(dot, times)] = _found(NESTED, "dot")
    assert times == 3 * 5
    assert dot.operands == (Shape("bf16", (4, 8)), Shape("bf16", (4, 8)))
    assert dot.result == (Shape("bf16", (4, 4)),)
    assert not _found(NESTED, "add")


def test_operands_that_are_tuples_count_by_their_parts():
    [(reduction, times)] = _found(NESTED, "all-reduce")
    assert times == 1
    assert reduction.operands == (Shape("s32", ()), Shape("bf16", (4, 8)))
    assert "replica_groups={}" in reduction.text


def test_a_loop_of_unknown_length_is_refused():
    with pytest.raises(JloraError, match="expected loops that turn a known number of times, found %loop = "):
        list(walk_executed(NESTED.replace('"known_trip_count":{"n":"3"}', "")))


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        (Shape("f32", (2, 3)), 24),
        (Shape("bf16", ()), 2),
        (Shape("u4", (5,)), 2.5),
        (Shape("pred", (7,)), 7),
        (Shape("f8e4m3fn", (4, 2)), 8),
        (Shape("s32", (0, 9)), 0),
    ],
)
def test_bytes(shape, size):
    assert shape.bytes == size


def test_a_branch_counts_once():
    def either(x):
        return jax.lax.cond(x.sum() > 0, lambda x: jnp.sin(x) @ x, lambda x: x @ jnp.cos(x), x)

    text = jax.jit(either).lower(jax.ShapeDtypeStruct((32, 32), jnp.float32)).compile().as_text()
    assert [times for _, times in _found(text, "dot")] == [1, 1]
