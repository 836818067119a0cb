"""Every name in the trainer's table of targets is a linear layer of that model; where there is none, all are."""

import pytest

from train.lm.default_targets import trainer_targets

_TINY = {
    "bloom": {"hidden_size": 8, "n_layer": 1, "n_head": 2},
    "falcon": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2},
    "gpt2": {"n_embd": 8, "n_layer": 1, "n_head": 2},
    "gpt_neo": {"hidden_size": 8, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]},
    "llama": {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2},
    "mistral": {
        "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2,
    },
}  # fmt: skip


@pytest.mark.parametrize("model_type", _TINY)
def test_the_targets_are_linear_layers_of_the_attention(model_type):
    torch = pytest.importorskip("torch", reason="the oracle is transformers' module names")
    import transformers

    config = transformers.CONFIG_MAPPING[model_type](vocab_size=11, **_TINY[model_type])
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    linear = (torch.nn.Linear, transformers.pytorch_utils.Conv1D)
    found = {name for name, module in model.named_modules() if isinstance(module, linear)}
    targets = trainer_targets(model_type)
    hit = {target: [name for name in found if name.rpartition(".")[2] == target] for target in targets}
    assert all(hit.values()), hit
    adapted = {name for names in hit.values() for name in names}
    assert all(name in adapted for name in found if "attn" in name or "attention" in name)
    if model_type != "gpt2":
        assert not any("mlp" in name or "lm_head" in name for name in adapted)


@pytest.mark.parametrize("model_type", ["qwen2", "gemma2", "phi3", "gpt_neox", "opt", "no_such"])
def test_the_rest_is_adapted_whole(model_type):
    assert trainer_targets(model_type) == "all-linear"
