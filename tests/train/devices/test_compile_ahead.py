"""Programs compiled ahead: in their order, once each, with their errors, and without a thread that is left behind."""

import contextlib
import threading
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jlora.errors import JloraError
from tests.support.training import tiny
from train.devices.compile_ahead import CompiledAhead, Compiler
from train.planning.memory_advice import explain_out_of_memory


@pytest.fixture
def compiled():
    """Names of the functions that were compiled since, as often as they were."""
    found, main = Counter(), threading.get_ident()

    def note(event, seconds, fun_name=None, **rest):
        if event == "/jax/core/compile/backend_compile_duration":
            found[fun_name, "here" if threading.get_ident() == main else "ahead"] += 1

    jax.monitoring.register_event_duration_secs_listener(note)
    yield found
    jax.monitoring.unregister_event_duration_listener(note)


def _step():
    def train_step(state, batch):
        return {"w": state["w"] + batch["x"].sum()}, batch["x"].mean()

    return jax.jit(train_step, donate_argnums=0)


def _batch(length):
    return {"x": np.ones((2, length), np.float32)}


def test_a_program_compiled_ahead_is_the_one_that_is_called(compiled):
    state = {"w": jnp.zeros(3)}
    with Compiler() as compiler:
        step = CompiledAhead(_step(), compiler, batch=1)
        for length in (4, 8, 4):
            step.prepare(f"{length}", state, _batch(length))
        before = state
        for length in (8, 4, 8):
            state, _ = step(state, _batch(length))
    assert state["w"].tolist() == [40, 40, 40]
    assert before["w"].is_deleted()  # donated, as it would be
    assert {name: count for name, count in compiled.items() if "train_step" in name[0]} == {
        ("jit(train_step)", "ahead"): 2
    }


def test_a_shape_that_was_not_prepared_is_compiled_when_it_comes(compiled):
    with Compiler() as compiler:
        state, _ = CompiledAhead(_step(), compiler, batch=1)({"w": jnp.zeros(3)}, _batch(4))
    assert state["w"].tolist() == [8, 8, 8]
    assert compiled["jit(train_step)", "here"] == 1


def test_what_is_waited_for_comes_first_and_is_said_once():
    order, said, begun, go = [], [], threading.Event(), threading.Event()

    @contextlib.contextmanager
    def say(name):
        said.append(name)
        go.set()
        yield

    def first():
        begun.set()
        go.wait()
        order.append("first")

    with Compiler() as compiler, compiler.saying(say):
        compiler.add("first", first)
        begun.wait()
        compiler.add("second", lambda: order.append("second"))
        third = compiler.add("third", lambda: order.append("third"))
        assert compiler.is_busy
        compiler.wait(third)
        compiler.wait(third)
        compiler.wait(compiler.add("last", lambda: None))
        assert not compiler.is_busy
    assert order == ["first", "third", "second"]
    assert said[0] == "third"
    assert said.count("third") == 1


def test_the_error_of_a_compilation_is_that_of_the_step_that_needs_it():
    def fails():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 4 GiB")

    with (
        pytest.raises(JloraError, match=r"out of memory: RESOURCE_EXHAUSTED: 4 GiB\nturn it down"),
        explain_out_of_memory(lambda: "turn it down"),
        Compiler() as compiler,
    ):
        compiler.wait(compiler.add("large", fails))


def test_at_the_end_what_was_not_begun_is_dropped_and_no_thread_is_left():
    begun, go = threading.Event(), threading.Event()

    def first():
        begun.set()
        go.wait()

    with Compiler() as compiler:
        compiler.add("first", first)
        begun.wait()
        dropped = compiler.add("second", lambda: pytest.fail("it was compiled"))
        threading.Timer(0.05, go.set).start()  # after the block has begun to end
    compiler.wait(dropped)
    compiler.wait(compiler.add("too late", lambda: pytest.fail("it was compiled")))
    assert not [thread for thread in threading.enumerate() if thread.name == "compiler"]


_TWO_LENGTHS = ["train.bucket_count=2", "train.batch_size=4", "train.eval_batch_size=4", "train.eval_every=2"]
_ONCE_EACH = {("jit(train_step)", "ahead"): 2, ("jit(eval_step)", "ahead"): 2, ("jit(eval_step)", "here"): 1}
"""A program for each length to train and to evaluate, and one to prove merged/."""


def _of_steps(compiled):
    return {name: count for name, count in compiled.items() if name[0] in ("jit(train_step)", "jit(eval_step)")}


def test_a_run_compiles_nothing_twice(compiled, tmp_path):
    tiny.train(tmp_path / "run", *_TWO_LENGTHS, "train.max_steps=6")
    assert _of_steps(compiled) == _ONCE_EACH


def test_a_resumed_run_compiles_nothing_twice(compiled, tmp_path):
    tiny.train(tmp_path / "run", *_TWO_LENGTHS, "train.max_steps=3")
    compiled.clear()
    tiny.train(tmp_path / "run", *_TWO_LENGTHS, "train.max_steps=8", "--resume")
    assert _of_steps(compiled) == _ONCE_EACH
