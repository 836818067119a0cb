import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jlora
from jlora.models.registry import FAMILIES
from jlora.pretrained.load import abstract_base, build, example_batch, hf_keys
from jlora.tree.leaf_paths import leaves_by_path
from jlora.tree.module_names import is_stacked
from tests.support.models.decoder_cases import tiny_decoder, torch_decoder
from tests.support.models.encoder_cases import tiny_config, torch_classifier
from train.config.sections import TrainSection
from train.loop.optimizer import decay_mask, loraplus_mask, optimizer, schedule

_SCHEDULES = [
    ({"schedule": "linear", "warmup_ratio": 0.0}, 20, 0),
    ({"schedule": "linear", "warmup_ratio": 0.06}, 50, 3),
    ({"schedule": "linear", "warmup_ratio": 0.06}, 51, 4),
    ({"schedule": "linear", "warmup_steps": 5}, 20, 5),
    ({"schedule": "linear", "warmup_steps": 30}, 20, 30),
    ({"schedule": "cosine", "warmup_ratio": 0.0}, 20, 0),
    ({"schedule": "cosine", "warmup_steps": 7}, 23, 7),
    ({"schedule": "constant", "warmup_steps": 4}, 12, 4),
    ({"schedule": "constant", "warmup_ratio": 0.0}, 3, 0),
]


@pytest.mark.parametrize(("settings", "steps", "warmup"), _SCHEDULES)
def test_the_schedule_is_transformers(settings, steps, warmup):
    torch = pytest.importorskip("torch", reason="the oracle is transformers' schedules")
    import transformers

    parameter = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    if settings["schedule"] == "constant":
        theirs = transformers.get_constant_schedule_with_warmup(parameter, warmup)
    else:
        make = getattr(transformers, f"get_{settings['schedule']}_schedule_with_warmup")
        theirs = make(parameter, warmup, steps)
    ours = schedule(TrainSection(**settings), 3e-4, steps)
    for step in range(steps):
        assert float(ours(jnp.int32(step))) == pytest.approx(theirs.get_last_lr()[0], rel=1e-5, abs=1e-10), step
        parameter.step()
        theirs.step()


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_weight_decay_spares_what_the_hf_trainer_spares(family):
    is_decoder = FAMILIES[family].task == "CAUSAL_LM"
    config = tiny_decoder(family) if is_decoder else tiny_config(family)
    oracle = torch_decoder(config) if is_decoder else torch_classifier(config)
    from transformers import Trainer

    expected = set(Trainer.get_decay_parameter_names(None, oracle))
    if config.tie_word_embeddings:
        expected.discard("lm_head.weight")  # the embedding's second name
    base = abstract_base(build(config))
    marks = decay_mask({path: jlora.Full(leaf) for path, leaf in leaves_by_path(base).items()})
    found = {
        key
        for path, leaf in leaves_by_path(base).items()
        for key in hf_keys(path, leaf.shape[0] if is_stacked(path) else None)
        if marks[path].value
    }
    assert found == expected


def test_weight_decay_holds_for_both_factors_and_the_head_kernel():
    model = build(tiny_config("bert"))
    config = jlora.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
    base = jax.jit(model.init)(jax.random.key(0), {n: jnp.zeros(s.shape, s.dtype) for n, s in _specs(model)})
    trainable, _ = jlora.split(jlora.init(jax.random.key(0), config, base, model.apply, dict(_specs(model))))
    marks = decay_mask(trainable)
    assert jax.tree.structure(marks) == jax.tree.structure(trainable)
    query = marks["params/bert/encoder/layer/attention/self/query/kernel"]
    assert (query.a, query.b, query.scale) == (True, True, None)
    assert marks["params/classifier/kernel"].value is True
    assert marks["params/classifier/bias"].value is False


def test_weight_decay_leaves_biases_norms_and_magnitudes_alone():
    model = build(tiny_config("bert"))
    fields = {"modules_to_save": ["LayerNorm"], "trainable_token_indices": [3]}
    config = jlora.LoraConfig(r=2, target_modules=["query"], use_dora=True, bias="lora_only", **fields)
    base = jax.jit(model.init)(jax.random.key(0), {n: jnp.zeros(s.shape, s.dtype) for n, s in _specs(model)})
    trainable, _ = jlora.split(jlora.init(jax.random.key(0), config, base, model.apply, dict(_specs(model))))
    marks = decay_mask(trainable)
    assert jax.tree.structure(marks) == jax.tree.structure(trainable)
    query = "params/bert/encoder/layer/attention/self/query"
    assert (marks[f"{query}/kernel"].a, marks[f"{query}/kernel"].magnitude) == (True, False)
    assert marks[f"{query}/bias"].value is False
    assert marks["params/bert/embeddings/LayerNorm/scale"].value is False
    assert marks["params/bert/embeddings/word_embeddings/embedding"].value is True


def _specs(model):
    return example_batch(model.config).items()


@pytest.mark.parametrize("max_grad_norm", [1.0, 100.0, 0.0, None])
def test_adamw_and_clipping_are_torchs(max_grad_norm):
    torch = pytest.importorskip("torch", reason="the oracle is torch.optim.AdamW")
    draw = np.random.default_rng(0)
    start = {"x/kernel": draw.normal(size=(4, 3)), "x/bias": draw.normal(size=3)}
    train = TrainSection(
        weight_decay=0.1, max_grad_norm=max_grad_norm, adam_beta2=0.98, adam_epsilon=1e-6, warmup_ratio=0.0
    )
    rate = schedule(train, 0.05, 8)
    tx = optimizer(train, rate)

    theirs = {name: torch.nn.Parameter(torch.tensor(value, dtype=torch.float32)) for name, value in start.items()}
    groups = [
        {"params": [theirs["x/kernel"]], "weight_decay": 0.1},
        {"params": [theirs["x/bias"]], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=0.05, betas=(0.9, 0.98), eps=1e-6)

    with jax.numpy_dtype_promotion("standard"):
        ours = {name: jlora.Full(jnp.asarray(value, jnp.float32)) for name, value in start.items()}
        state = tx.init(ours)
        for step in range(8):
            gradient = {name: draw.normal(size=value.shape).astype("f") for name, value in start.items()}
            updates, state = tx.update({n: jlora.Full(jnp.asarray(g)) for n, g in gradient.items()}, state, ours)
            ours = jax.tree.map(jnp.add, ours, updates)
            for name, parameter in theirs.items():
                parameter.grad = torch.tensor(gradient[name])
            if max_grad_norm:
                torch.nn.utils.clip_grad_norm_(list(theirs.values()), max_grad_norm)
            for group in adamw.param_groups:
                group["lr"] = 0.05 * (8 - step) / 8
            adamw.step()
    for name, parameter in theirs.items():
        assert np.allclose(ours[name].value, parameter.detach().numpy(), rtol=1e-5, atol=1e-6), name


def test_loraplus_is_pefts():
    torch = pytest.importorskip("torch", reason="the oracle is PEFT's LoRA+ optimizer")
    peft = pytest.importorskip("peft", reason="the oracle is PEFT's LoRA+ optimizer")
    from peft.optimizers import create_loraplus_optimizer

    model = peft.get_peft_model(
        torch.nn.Sequential(torch.nn.Linear(4, 3, bias=False)), peft.LoraConfig(r=2, target_modules=["0"])
    )
    theirs = {name: model.get_parameter(f"base_model.model.0.lora_{name}.default.weight") for name in "AB"}
    adamw = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=0.05, loraplus_lr_ratio=16.0, loraplus_weight_decay=0.1
    )
    a, b = (jnp.array(theirs[name].detach().numpy()) for name in "AB")
    ours, _ = jlora.split({"0/weight": jlora.LowRank(a, b, jnp.ones(2), "ra,br->ba", (2,))})
    train = TrainSection(weight_decay=0.1, max_grad_norm=None, loraplus_lr_ratio=16.0)
    tx, draw = optimizer(train, lambda _: jnp.float32(0.05)), np.random.default_rng(0)
    with jax.numpy_dtype_promotion("standard"):
        state = tx.init(ours)
        for _ in range(4):
            gradient = jax.tree.map(lambda x: jnp.asarray(draw.normal(size=x.shape), x.dtype), ours)
            updates, state = tx.update(gradient, state, ours)
            ours = jax.tree.map(jnp.add, ours, updates)
            for name in "AB":
                theirs[name].grad = torch.tensor(np.asarray(getattr(gradient["0/weight"], name.lower())))
            adamw.step()
    for name in "AB":
        found = getattr(ours["0/weight"], name.lower())
        np.testing.assert_allclose(found, theirs[name].detach().numpy(), rtol=1e-5, atol=1e-5)


def test_loraplus_reaches_the_b_of_linear_layers_alone():
    model = build(tiny_config("bert"))
    fields = {"use_dora": True, "bias": "lora_only", "task_type": "SEQ_CLS"}
    config = jlora.LoraConfig(r=2, target_modules=["query", "word_embeddings"], **fields)
    base = jax.jit(model.init)(jax.random.key(0), {n: jnp.zeros(s.shape, s.dtype) for n, s in _specs(model)})
    trainable, _ = jlora.split(jlora.init(jax.random.key(0), config, base, model.apply, dict(_specs(model))))
    marks = loraplus_mask(trainable)
    assert jax.tree.structure(marks) == jax.tree.structure(trainable)
    marked = [jax.tree_util.keystr(path) for path, mark in jax.tree_util.tree_leaves_with_path(marks) if mark]
    assert marked == ["['params/bert/encoder/layer/attention/self/query/kernel'].b"]


def test_the_state_holds_trained_leaves_alone():
    adapter = {"x/kernel": jlora.LowRank(jnp.ones((2, 4)), jnp.ones((2, 3)), jnp.ones(2), "ra,rb->ab", (2,))}
    trainable, _ = jlora.split(adapter)
    train = TrainSection()
    state = optimizer(train, schedule(train, 1e-3, 10)).init(trainable)
    assert sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim) == 2 * (8 + 6)
