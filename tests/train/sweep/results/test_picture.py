import pytest

from train.sweep.points import Point
from train.sweep.results.compare_runs import Result
from train.sweep.results.picture import draw_sweep

BOTH = [(rank, rate) for rank in (2, 8) for rate in (1e-3, 1e-2)]
CASES = {
    "numbers": [{"lora.r": rank, "train.learning_rate": rate} for rank, rate in BOTH],
    "lists": [{"lora.target_modules": targets} for targets in (["query"], "all-linear")],
    "one run": [{"lora.r": 2}],
    "a method without a rank": [
        {"method": method, **rank, "seed": seed}
        for method, rank in (("lora", {"lora.r": 2}), ("lora", {"lora.r": 8}), ("full", {}))
        for seed in (0, 1)
    ],
    "null": [
        {"train.loraplus_lr_ratio": ratio, "train.learning_rate": rate} for ratio in (16, None, 4) for rate in (0.1, 1)
    ],
    "three keys": [
        {"seed": seed, "lora.r": rank, "train.learning_rate": rate} for rank, rate in BOTH for seed in (0, 1)
    ],
}


def _results(points, metric):
    values = [0.5 + 0.1 * number for number in range(len(points))]
    return [
        Result(Point(f"p{number}", point), metric, value, 0.5, 4, 100 * (point.get("lora.r", 1) or 9), "")
        for number, (point, value) in enumerate(zip(points, values, strict=True))
    ]


@pytest.mark.parametrize("points", CASES.values(), ids=CASES)
@pytest.mark.parametrize("metric", ["accuracy", "perplexity"])
def test_it_draws_whatever_varies(tmp_path, points, metric):
    draw_sweep(tmp_path / "sweep.png", _results(points, metric), "runs/sweep")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_runs_without_a_result_are_left_out(tmp_path):
    diverged = Result(Point("p", {"lora.r": 2}), "", None, None, None, None, "diverged at step 3")
    draw_sweep(tmp_path / "none.png", [diverged], "runs/sweep")
    assert not (tmp_path / "none.png").exists()
    draw_sweep(tmp_path / "some.png", [*_results(CASES["numbers"], "accuracy"), diverged], "runs/sweep")
    assert (tmp_path / "some.png").exists()
