import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jlora
from jlora.errors import JloraError
from jlora.sharding.to_host import to_host
from train.run import checkpoints
from train.run.best import Best
from train.run.checkpoints import Checkpoint, Rest, open_checkpoints, restore, save, wait
from train.run.state import State


def _state(step, seed=0):
    draw = np.random.default_rng(seed)
    adapter = {
        "params/x/kernel": jlora.LowRank(
            jnp.asarray(draw.normal(size=(2, 4)), jnp.float32),
            jnp.asarray(draw.normal(size=(2, 3)), jnp.float32),
            jnp.ones(2),
            "ra,rb->ab",
            (2,),
        ),
        "params/classifier/bias": jlora.Full(jnp.asarray(draw.normal(size=3), jnp.float32)),
    }
    trainable, _ = jlora.split(adapter)
    return State(trainable, optax.adam(1e-3).init(trainable), jnp.int32(step))


def _save(manager, state):
    save(manager, Checkpoint(state, Best(to_host(state.trainable))))


def _assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        assert np.array_equal(a, b)


def test_what_is_saved_comes_back_bit_for_bit(tmp_path):
    state, best = _state(7), Best(to_host(_state(3, seed=1).trainable), 0.875, 3, 2, {"f1": 0.875, "loss": 0.1})
    rest = Rest((0.1, 1 / 3), unevaluated=True, lines=5)
    with open_checkpoints(tmp_path, 2) as manager:
        save(manager, Checkpoint(state, best, rest))
    with open_checkpoints(tmp_path, 2) as manager:
        found = restore(manager, _state(0, seed=2))
    _assert_same(found.state, state)
    _assert_same(found.best.trainable, best.trainable)
    assert dataclasses.replace(found.best, trainable=None) == dataclasses.replace(best, trainable=None)
    assert found.rest == rest


def test_without_a_checkpoint_there_is_the_start(tmp_path):
    with open_checkpoints(tmp_path / "checkpoints", 2) as manager:
        found, best, rest = restore(manager, state := _state(0))
    _assert_same(found, state)
    _assert_same(best.trainable, to_host(state.trainable))
    assert (best.value, best.step, best.stale) == (None, 0, 0)
    assert rest == Rest()


def test_a_best_that_was_not_evaluated_yet_is_kept_as_such(tmp_path):
    with open_checkpoints(tmp_path, 1) as manager:
        _save(manager, _state(1))
        wait(manager)
        assert restore(manager, _state(0)).best.value is None


def test_the_newest_stay_and_the_newest_is_read(tmp_path):
    with open_checkpoints(tmp_path, 2) as manager:
        for step in (2, 4, 6):
            _save(manager, _state(step, seed=step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4", "6"]
    with open_checkpoints(tmp_path, 2) as manager:
        _assert_same(restore(manager, _state(0))[0], _state(6, seed=6))


def test_steps_that_follow_do_not_change_a_checkpoint_being_written(tmp_path):
    state = _state(1)
    expected = to_host(state)
    move = jax.jit(lambda state: jax.tree.map(lambda x: x + jnp.ones((), x.dtype), state), donate_argnums=0)
    with open_checkpoints(tmp_path, 1) as manager:
        _save(manager, state)
        for _ in range(5):
            state = move(state)
    with open_checkpoints(tmp_path, 1) as manager:
        _assert_same(to_host(restore(manager, _state(0))[0]), expected)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with checkpoints of the steps 2 and 4."""
    folder = tmp_path_factory.mktemp("two")
    with open_checkpoints(folder, 2) as manager:
        for step in (2, 4):
            _save(manager, _state(step, seed=step))
    return folder


def _contents(folder):
    """The files of the arrays' contents; some are copies that nothing reads."""
    return list(folder.glob("arrays/**/d/*"))


def _flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 16
    file.write_bytes(data)


def _halve(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _change_a_number(file):
    file.write_text(file.read_text().replace('"stale": 0', '"stale": 1'))


@pytest.mark.parametrize(
    ("damage", "files"),
    [
        (_flip, _contents),
        (_halve, _contents),
        (lambda file: file.unlink(), _contents),
        (_halve, lambda folder: [folder / "arrays" / "manifest.ocdbt"]),
        (_halve, lambda folder: [folder / "notes" / "metadata"]),
        (_change_a_number, lambda folder: [folder / "notes" / "metadata"]),
        (shutil.rmtree, lambda folder: [folder / "arrays"]),
    ],
)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(damage, files, two, tmp_path, caplog):
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    for file in files(tmp_path / "4"):
        damage(file)
    with open_checkpoints(tmp_path, 2) as manager:
        _assert_same(restore(manager, _state(0)).state, _state(2, seed=2))
        assert "4: damaged, set aside as " in caplog.text
        assert "step 2 is used" in caplog.text
        _save(manager, _state(4, seed=5))
    with open_checkpoints(tmp_path, 2) as manager:
        _assert_same(restore(manager, _state(0)).state, _state(4, seed=5))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "4", "4.damaged"]


def test_every_file_that_is_flipped_is_noticed_or_does_not_matter(two, tmp_path):
    """Whatever byte in the middle of whatever file is wrong: what is restored is what some step wrote."""
    for number, file in enumerate(path for path in (two / "4").rglob("*") if path.is_file() and path.stat().st_size):
        folder = tmp_path / str(number)
        shutil.copytree(two, folder)
        _flip(folder / file.relative_to(two))
        with open_checkpoints(folder, 2) as manager:
            state = restore(manager, _state(0)).state
        _assert_same(state, _state(int(state.step), seed=int(state.step)))
        assert int(state.step) in (2, 4)


def test_where_none_is_whole_nothing_is_touched(two, tmp_path):
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    for file in [*_contents(tmp_path / "2"), *_contents(tmp_path / "4")]:
        _halve(file)
    with (
        open_checkpoints(tmp_path, 2) as manager,
        pytest.raises(
            JloraError, match=r"whole checkpoint, found 2 damaged\n  step 4: .*\n  step 2: .*\n.*--overwrite"
        ),
    ):
        restore(manager, _state(0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "4"]


@pytest.mark.parametrize(
    "error", [MemoryError(), PermissionError("no"), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED")]
)
def test_what_says_nothing_of_a_checkpoint_sets_none_aside(error, two, tmp_path, monkeypatch):
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    with open_checkpoints(tmp_path, 2) as manager:

        def restored(*arguments, **options):
            raise error

        monkeypatch.setattr(manager, "restore", restored)
        with pytest.raises(type(error)):
            restore(manager, _state(0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "4"]


def test_a_checkpoint_of_other_arrays_is_refused_and_left(two, tmp_path):
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    other = _state(0)._replace(optimizer=optax.sgd(1e-3, momentum=0.9).init(_state(0).trainable))
    with (
        open_checkpoints(tmp_path, 2) as manager,
        pytest.raises(JloraError, match=r"4: expected the arrays of this run, found others or not all: state/optim"),
    ):
        restore(manager, other)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "4"]


def test_what_a_killed_run_had_begun_is_deleted(two, tmp_path):
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    (tmp_path / "4").rename(tmp_path / "4.orbax-checkpoint-tmp")
    with open_checkpoints(tmp_path, 2) as manager:
        assert int(restore(manager, _state(0)).state.step) == 2
        _save(manager, _state(4, seed=4))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "4"]


def test_a_checkpoint_that_cannot_be_written_is_an_error_that_says_what_to_do(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(JloraError, match=r"could not be written: .*\n.*Free disk space .*--resume"),
        open_checkpoints(tmp_path / "file" / "checkpoints", 2),
    ):
        pass


def test_the_cause_at_the_end_of_a_long_message_is_shown(tmp_path):
    (tmp_path / "config.yaml").touch()
    with (
        pytest.raises(JloraError, match="No space left on device"),
        checkpoints._explain_errors(tmp_path / "checkpoints"),
    ):
        raise ValueError(f"{'/a long path' * 200}: No space left on device")


def test_a_run_folder_that_was_moved_is_not_made_again(tmp_path):
    folder = tmp_path / "run"
    with open_checkpoints(folder / "checkpoints", 2) as manager:
        folder.rename(tmp_path / "moved")
        with pytest.raises(JloraError, match=r"run: expected the run folder, found none.*--resume"):
            _save(manager, _state(3))
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]


def test_arrays_come_back_to_where_they_were(tmp_path):
    mesh = jax.make_mesh((1,), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    placed = jax.tree.map(lambda leaf: jax.device_put(leaf, sharding), _state(3))
    with open_checkpoints(tmp_path, 1) as manager:
        _save(manager, placed)
        wait(manager)
        found = restore(manager, placed).state
    assert {leaf.sharding for leaf in jax.tree.leaves(found)} == {sharding}
    _assert_same(found, _state(3))
