import pytest

from jlora.pretrained.foreign_keys import say_whose_key


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("_orig_mod.lm_head.weight", "torch.compile adds. Save model._orig_mod with"),
        ("module.lm_head.weight", "DataParallel adds. Save model.module with"),
        ("base_model.model.lm_head.weight", "a PEFT model that is not merged. Save model.merge_and_unload()"),
        ("model.layers.0.q_proj.weight.absmax", "quantized weights"),
        ("model.layers.0.q_proj.weight", ""),
    ],
)
def test_who_wrote_a_key(key, found):
    said = say_whose_key(key)
    assert found in said
    assert bool(found) == bool(said)
