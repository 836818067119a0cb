"""The choice of batch lengths: a pure function of data, config and the model's size, which a resumed run keeps."""

import itertools
import json

import numpy as np
import pytest

from jlora.errors import JloraError
from train.classify.config import Config
from train.data.bucketing import plan_epoch
from train.run import padded_lengths as module
from train.run.padded_lengths import choose_lengths, lengths_of_run, program_tokens

ROWS = {"train": np.random.default_rng(0).integers(3, 65, 4000), "validation": np.arange(3, 67)[:62]}


def _config(**train):
    data = {"train": "t", "max_length": 64}
    return Config(**{"model": "m", "output_dir": "o", "data": data, "train": {"batch_size": 8, **train}})


def _base(width):
    """Of width x width weights, and an embedding and biases that cost nothing."""
    return {"kernel": np.zeros((width, width)), "bias": np.zeros(width), "words": {"embedding": np.zeros((999, 99))}}


def test_a_count_is_a_count():
    for count in (1, 2, 5):
        assert len(choose_lengths(_config(bucket_count=count), ROWS, _base(4))) == count


def test_the_larger_the_model_and_the_longer_the_run_the_more_lengths():
    small, large, longer = (
        choose_lengths(_config(epochs=epochs), ROWS, _base(width))
        for width, epochs in [(2000, 1.0), (8000, 1.0), (2000, 20.0)]
    )
    assert 1 <= len(small) < len(large) <= len(longer) <= module.MOST
    assert small[-1] == large[-1] == 64


def test_a_full_step_is_more_work_than_lora():
    lora, full = (program_tokens(_config().model_copy(update={"method": m}), _base(100)) for m in ("lora", "full"))
    assert lora == pytest.approx(1.5 * full)
    assert lora == pytest.approx(module.COMPILE_SECONDS["cpu"] * module.FLOPS["cpu"] / 4e4)


def test_no_other_lengths_take_less_time():
    """Of all sets, by the epoch's own plan, none is better by more than the rows that fill batches up."""
    config, base = _config(epochs=1.0), _base(8000)
    rows, price = {"train": ROWS["train"]}, program_tokens(config, base)

    def cost(chosen):
        return sum(8 * planned.length for planned in plan_epoch(rows["train"], chosen, 8, 0, 0)) + len(chosen) * price

    sets = [(*some, 64) for count in range(8) for some in itertools.combinations(range(8, 64, 8), count)]
    found = choose_lengths(config, rows, base)
    assert 1 < len(found) < 8
    assert cost(found) <= min(map(cost, sets)) + 8 * 64


def _manifest(folder, batches):
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"batches": batches}))
    return _config(epochs=9.0).model_copy(update={"output_dir": str(folder)})


def test_a_resumed_run_keeps_its_lengths_and_a_new_one_does_not(tmp_path):
    config = _manifest(tmp_path / "run", {"lengths": "24 64"})
    chosen = choose_lengths(config, ROWS, _base(8000))
    assert lengths_of_run(config, ROWS, _base(8000), resume=True) == (24, 64) != chosen
    assert lengths_of_run(config, ROWS, _base(8000)) == chosen


def test_lengths_of_other_data_are_left_to_the_manifest_to_refuse(tmp_path):
    config = _manifest(tmp_path / "run", {"lengths": "24 40"})
    assert lengths_of_run(config, ROWS, _base(8000), resume=True)[-1] == 64


def test_where_nothing_is_recorded_they_are_chosen(tmp_path):
    config = _config().model_copy(update={"output_dir": str(tmp_path)})
    assert lengths_of_run(config, ROWS, _base(99), resume=True) == choose_lengths(config, ROWS, _base(99))


@pytest.mark.parametrize(
    "batches", [{"lengths": "64 24"}, {"lengths": "8 x"}, {"lengths": 8}, {}, "8", {"lengths": ""}]
)
def test_damaged_lengths_are_refused(batches, tmp_path):
    config = _manifest(tmp_path / "run", batches)
    with pytest.raises(JloraError, match=r"manifest.json: batches: expected ascending lengths, such as '16 64'; found"):
        lengths_of_run(config, ROWS, _base(99), resume=True)
