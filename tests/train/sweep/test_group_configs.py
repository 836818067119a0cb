from types import SimpleNamespace

import pytest

from tests.support.training.config_cases import config
from train.sweep.group_configs import data_of, group_configs, program_of, split_by_model


def _lora(**values):
    return config(lora={"lora_alpha": 8, **values})


def _groups(*configs):
    return group_configs(configs)


def test_rank_scale_targets_start_and_rate_share_a_program():
    rates = [config(train={"learning_rate": rate}) for rate in (1e-3, 1e-2)]
    ratios = [config(train={"loraplus_lr_ratio": ratio}) for ratio in (None, 16.0)]
    starts = [_lora(init_lora_weights=start) for start in ("gaussian", "orthogonal")]
    adapters = [_lora(r=4), _lora(lora_alpha=2), _lora(use_rslora=True), _lora(target_modules=["query"])]
    assert _groups(*rates, *ratios, *starts, *adapters) == [list(range(10))]


def test_other_keys_do_not():
    batches = [config(train={"batch_size": size}) for size in (8, 16)]
    methods = [config(method=method) for method in ("full", "head")]
    dropout = [_lora(lora_dropout=0.1), _lora(use_dora=True, target_modules=["query"]), _lora(use_dora=True)]
    assert len(_groups(*batches, *methods, *dropout)) == 7


def test_runs_with_a_base_of_their_own_share_only_the_rate():
    configs = [config(lora={"r": r, "init_lora_weights": "pissa"}, train={"learning_rate": lr})
               for r in (2, 4) for lr in (1e-3, 1e-2)]  # fmt: skip
    assert _groups(*configs) == [[0, 1], [2, 3]]


@pytest.mark.parametrize("values", [{"seed": 1}, {"train": {"data_seed": 1}}])
def test_seeds_are_groups_with_one_program(values):
    one, other = config(seed=0), config(**values)
    assert _groups(one, other) == [[0], [1]]
    assert program_of([one]) == program_of([other, other])
    assert data_of(one) != data_of(other)
    assert data_of(one) == data_of(config(lora={"r": 2}, method="full"))


def test_runs_with_rows_of_their_own_share_a_program():
    files = [config(data={"train": name, "validation": f"{name}-held-out", "text": "line"}) for name in ("a", "b")]
    assert _groups(*files, config(data={"train": "a", "max_length": 64})) == [[0, 1], [2]]
    assert data_of(files[0]) != data_of(files[1])
    assert program_of(files) != program_of(files[:1])


def test_rows_that_make_other_models_do_not():
    opened = [SimpleNamespace(model=labels, width=width) for labels, width in ((2, None), (3, None), (2, None), (2, 8))]
    assert split_by_model([4, 5, 6, 7], opened) == [[4, 6], [5], [7]]
