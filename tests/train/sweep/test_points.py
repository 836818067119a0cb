import pytest

from jlora.errors import JloraError
from tests.support.training.config_cases import config
from train.sweep.config import SweepConfig
from train.sweep.points import Point, list_points, make_point_config

GRID = {"lora.r": [2, 4], "lora.target_modules": [["query", "value"], "all-linear"], "seed": [0, 1, 2]}


def _list(sweep):
    return list_points(sweep, config())


def test_a_grid_has_every_combination_under_a_name_of_its_own():
    points = _list(SweepConfig(parameters=GRID))
    assert len({point.name for point in points}) == len(points) == 12
    assert points[1] == Point(
        "r=2,target_modules=query+value,seed=1", {"lora.r": 2, "lora.target_modules": ["query", "value"], "seed": 1}
    )


def test_a_name_says_null_true_and_false_as_yaml_does():
    points = _list(SweepConfig(parameters={"train.data_seed": [None, 1], "lora.use_rslora": [True, False]}))
    assert [point.name for point in points][:3] == [
        "data_seed=null,use_rslora=true", "data_seed=null,use_rslora=false", "data_seed=1,use_rslora=true"
    ]  # fmt: skip


def test_a_draw_is_part_of_the_grid_and_the_same_each_time():
    drawn = _list(SweepConfig(search="random", runs=5, parameters=GRID))
    assert len(drawn) == 5
    assert drawn == _list(SweepConfig(search="random", runs=5, parameters=GRID))
    assert drawn != _list(SweepConfig(search="random", runs=5, seed=1, parameters=GRID))
    assert all(point in _list(SweepConfig(parameters=GRID)) for point in drawn)


def test_names_that_are_long_or_equal_are_numbers():
    for values in (["x" * 99, "y" * 99], ["a b", "a_b"]):
        points = _list(SweepConfig(parameters={"lora.target_modules": values}))
        assert [point.name for point in points] == ["point-001", "point-002"]


def test_a_value_twice_is_refused():
    with pytest.raises(JloraError, match=r"parameters.lora.r: expected different values, found \[1, 1\]"):
        _list(SweepConfig(parameters={"lora.r": [1, 1]}))


def test_a_list_has_its_own_names_and_the_configs_values_where_it_gives_none():
    listed = {"plain": {}, "wide": {"lora.r": 32, "seed": 1}}
    assert list_points(SweepConfig(search="points", points=listed), config(seed=7)) == [
        Point("plain", {"lora.r": 8, "seed": 7}),
        Point("wide", {"lora.r": 32, "seed": 1}),
    ]


def test_a_run_twice_is_refused():
    listed = {"one": {"lora.r": 2}, "two": {"seed": 0, "lora.r": 2}}
    with pytest.raises(JloraError, match=r"points: expected different values, found those of one again in two"):
        _list(SweepConfig(search="points", points=listed))


def test_a_point_has_its_values_and_a_folder_in_the_sweeps():
    found = make_point_config(config(output_dir="runs/s", export={"merged": True}), Point("r=3", {"lora.r": 3}))
    assert (found.lora.r, found.output_dir, found.export.merged) == (3, "runs/s/r=3", False)


def test_errors_name_point_and_key():
    for key, value in (("lora.rank", 3), ("lora.r", "three"), ("train.learning_rate", -1.0)):
        with pytest.raises(JloraError, match=rf"--sweep: p: .*\n  {key}: "):
            make_point_config(config(), Point("p", {key: value}))


def test_random_runs_of_a_grid_that_no_memory_holds():
    wide = {f"lora.{number}": list(range(100)) for number in range(40)}
    drawn = _list(SweepConfig(search="random", runs=5, parameters=wide))
    assert len({str(point.values) for point in drawn}) == 5
    assert drawn == _list(SweepConfig(search="random", runs=5, parameters=wide))
    assert len({value for point in drawn for value in point.values.values()}) > 50
    with pytest.raises(JloraError, match=r"expected at most 10,000 runs, found 1,000,000,000; search: random"):
        _list(SweepConfig(parameters=dict(list(wide.items())[:3]) | {"lora.r": list(range(1000))}))


@pytest.mark.parametrize("key", ["output_dir", "tracker", "train.max_hours", "export.merged", "hub.push"])
def test_keys_of_the_whole_sweep_are_refused(key):
    for sweep in (SweepConfig(parameters={key: ["a"]}), SweepConfig(search="points", points={"one": {key: "a"}})):
        with pytest.raises(JloraError, match=f"--sweep: {key}: expected a key in which runs may differ"):
            _list(sweep)
