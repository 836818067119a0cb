import json

from tests.support.training.config_cases import config
from train.sweep.points import Point
from train.sweep.results.compare_runs import Result, are_comparable, compare_at, read_results, sort_results


def _run(folder, name, *lines):
    (folder / name).mkdir()
    text = "".join(json.dumps({"time": 0.0, **line}) + "\n" for line in lines)
    (folder / name / "metrics.jsonl").write_text(text, encoding="utf-8")
    return config(output_dir=str(folder / name))


def test_runs_are_compared_at_one_step(tmp_path):
    def line(step, accuracy, loss):
        return {"step": step, "validation/accuracy": accuracy, "validation/loss": loss}

    runs = [
        _run(tmp_path, "worse", line(2, 0.9, 0.1), line(4, 0.5, 0.7)),
        _run(tmp_path, "none", line(2, 0.9, 0.1)),
        _run(tmp_path, "equal", line(4, 0.8, 0.4)),
        _run(tmp_path, "best", line(4, 0.8, 0.3)),
    ]
    assert compare_at(runs, 4, "accuracy") == [3, 2, 0, 1]
    assert compare_at(runs, 4, "loss") == [3, 2, 0, 1]


def test_a_run_that_diverged_comes_last():
    def result(name, metric, value):
        return Result(Point(name, {}), metric, value, 0.5, 1, 10, "")

    for metric, values in (("accuracy", (0.9, 0.8)), ("perplexity", (5.0, 6.0))):
        results = [result("none", "", None), result("second", metric, values[1]), result("first", metric, values[0])]
        assert [one.point.name for one in sort_results(results)] == ["first", "second", "none"]


def test_runs_are_comparable_if_they_have_the_same_validation_rows(tmp_path):
    def run(name, train, validation):
        (tmp_path / name).mkdir()
        manifest = {"data": {"train/ids": train, "validation/ids": validation}}
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        return config(output_dir=str(tmp_path / name))

    def result(metric):
        return Result(Point("p", {}), metric, 0.5, 0.5, 1, 10, "")

    one, other, third = run("one", "few", "v"), run("other", "many", "v"), run("third", "few", "w")
    assert are_comparable([one, other], [result("f1"), result("")])
    assert not are_comparable([one, other, third], [result("f1")] * 3)
    assert not are_comparable([one, other], [result("f1"), result("loss")])


def test_a_method_that_reads_no_rank_lacks_it(tmp_path):
    report = {"best": {"metric": "loss", "value": 0.5, "step": 4}, "metrics": {"validation": {"loss": 0.5}}}
    report |= {"parameters": {"trainable": 10}, "sweep": {"ended": "at its last step, 4"}}
    points, configs = [], []
    for method in ("lora", "full"):
        (tmp_path / method).mkdir()
        (tmp_path / method / "report.json").write_text(json.dumps(report), encoding="utf-8")
        points.append(Point(method, {"method": method, "lora.r": 8}))
        configs.append(config(method=method, output_dir=str(tmp_path / method)))
    assert [one.point.values for one in read_results(points, configs)] == [
        {"method": "lora", "lora.r": 8},
        {"method": "full"},
    ]
