import pytest

from jlora.errors import JloraError
from tests.support.training import tiny
from train.sweep.config import command_for, read_sweep


def _file(tmp_path, text):
    file = tmp_path / "sweep.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_the_shipped_sweep_is_read():
    assert set(read_sweep(tiny.ROOT / "configs/sweeps/rank_lr.yaml").parameters) >= {"lora.r", "train.learning_rate"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("parameters: {}", "parameters: "),
        ("search: grid", "parameters: "),
        ("parameters: {lora.r: []}", "parameters.lora.r: "),
        ("parameters: {lora.r: [1]}\nfoo: 1", "foo: "),
        ("parameters: {lora.r: [1]}\nsearch: random", "runs: missing"),
        ("parameters: {lora.r: [1]}\nruns: 2", "runs: expected null"),
        ("search: points", "points: missing; search: points needs them"),
        ("search: points\nparameters: {lora.r: [1]}\npoints: {a: {}}", "parameters: expected null with search: points"),
        ("parameters: {lora.r: [1]}\npoints: {a: {}}", "points: expected null with search: grid"),
        ("search: points\npoints: {a: {}}\nruns: 2", "runs: expected null with search: points"),
        ("search: points\npoints: {best: {}}", "points: "),
        ("search: points\npoints: {../up: {}}", "points.../up: expected a name of at most 100 letters"),
        (
            "search: points\npoints: {'r=1,seed=0': {}}",
            "points.r=1,seed=0: expected a name .* first; found 'r=1,seed=0'",
        ),
        ("parameters: {lora.r: [1]}\nsearch: halving", "halving: expected with"),
        ("parameters: {lora.r: [1]}\nsearch: halving\nhalving: {at: [4, 2]}", "halving.at: expected ascending"),
    ],
)
def test_errors_name_file_and_key(tmp_path, text, expected):
    file = _file(tmp_path, text)
    with pytest.raises(JloraError, match=f"(?s){file}: .*\n  {expected}"):
        read_sweep(file)


def test_the_trainer_is_the_one_that_has_the_configs_keys():
    assert command_for(["--config", str(tiny.ROOT / "configs/sst2.yaml")])[0] == "classify"
    trainer, command = command_for(["--config", str(tiny.ROOT / "configs/smollm2.yaml")])
    assert trainer == "lm"
    assert command.program == "jlora sweep"
    assert command_for(["--config", "not/there.yaml", "data.format=text"])[0] == "lm"
