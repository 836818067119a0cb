import jax
import pytest
import transformers

import jlora
from jlora.initialization.abstract_adapter import abstract_adapter
from jlora.models.registry import abstract_base, build, example_batch
from train.planning.parameter_table import rows, summary, table, training_bytes, weight_bytes

TINY = {
    "vocab_size": 11,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
}


def _model(hf_config):
    """Model, abstract base and batch: shapes only."""
    model = build(hf_config)
    return model, abstract_base(model), example_batch(hf_config)


def _adapted(hf_config, **settings):
    model, base, batch = _model(hf_config)
    config = jlora.LoraConfig(task_type="SEQ_CLS", **settings)
    return base, abstract_adapter(config, base, model.apply, batch)


def _ranks():
    return {"r": 3, "target_modules": ["query", "output.dense"], "rank_pattern": {"layer.1.output.dense": 2}}


def test_names_shapes_and_trainable_are_those_of_peft():
    pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    hf_config = transformers.BertConfig(**TINY, num_labels=3)
    torch_model = peft.LoraModel(
        transformers.BertForSequenceClassification(hf_config), peft.LoraConfig(**_ranks()), "default"
    )
    expected = {}
    for name, parameter in torch_model.model.named_parameters():
        name = name.replace(".base_layer.", ".").replace(".default.", ".")
        expected[name] = (tuple(parameter.shape), parameter.requires_grad)
    found = rows(*_adapted(hf_config, modules_to_save=[], **_ranks()))
    assert {row.name: (row.shape, row.trainable) for row in found} == expected
    targets = {row.name.removesuffix(".weight") for row in found if row.target}
    adapted = {name.split(".lora_A")[0] for name in expected if ".lora_A" in name}
    assert targets == adapted
    assert len(targets) == 6


def test_embedding_factors_are_named_as_in_peft():
    base, adapter = _adapted(transformers.BertConfig(**TINY), r=2, target_modules=["word_embeddings"])
    factors = {row.name: row.shape for row in rows(base, adapter) if "lora" in row.name}
    module = "bert.embeddings.word_embeddings"
    assert factors == {f"{module}.lora_embedding_A": (2, 11), f"{module}.lora_embedding_B": (8, 2)}


@pytest.mark.parametrize("config_class", ["BertConfig", "RobertaConfig"])
def test_counts_add_up_to_count_parameters(config_class):
    base, adapter = _adapted(getattr(transformers, config_class)(**TINY), **_ranks())
    for given in (adapter, None):
        found = rows(base, given)
        counted = (sum(row.count for row in found), sum(row.count for row in found if row.trainable))
        assert counted == jlora.count_parameters(base, given)
    assert len({row.name for row in rows(base, adapter)}) == len(rows(base, adapter))


def test_roberta_base_from_its_config_alone():
    hf_config = transformers.RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)
    base, adapter = _adapted(hf_config, r=4, lora_alpha=4, target_modules=["query", "output.dense"])
    text = summary(base, adapter, steps=6315)
    assert _fact(text, "total") == "124,978,946"
    assert _fact(text, "trainable") == "923,906"
    assert _fact(text, "percent") == "0.7392 %"
    assert _fact(text, "steps") == "6,315"
    head = {path: entry for path, entry in adapter.items() if isinstance(entry, jlora.Full)}
    text = summary(base, head)
    assert _fact(text, "trainable") == "592,130"
    assert _fact(text, "percent") == "0.4750 %"
    assert "unknown" in _fact(text, "steps")
    assert "activations apart" in _fact(text, "memory")


def _fact(text, name):
    facts = text.split("\n\n")[1]
    return next(line[11:] for line in facts.splitlines() if line.split()[0] == name)


def test_the_verbose_table_holds_every_row_and_the_short_one_every_trained_number():
    base, adapter = _adapted(transformers.BertConfig(**TINY), **_ranks())
    found = rows(base, adapter)
    verbose = table(found, verbose=True).splitlines()
    assert verbose[0].split() == ["name", "trainable", "count", "shape", "target"]
    assert [line.split()[0] for line in verbose[1:]] == [row.name for row in found]
    short = table(found).splitlines()
    assert len(short) < len(verbose) / 2
    counts = {line.split()[0]: int(line.split()[-1].replace(",", "")) for line in short[1:-1]}
    assert sum(counts.values()) == sum(row.count for row in found if row.trainable)
    factor = "bert.encoder.layer.*.output.dense.lora_A.weight"
    assert counts[factor] == (3 + 2) * TINY["intermediate_size"]  # the two layers' ranks
    assert short[-1].startswith("(")
    assert " no " in short[-1]


def test_memory_is_what_the_arrays_and_adamw_take():
    base, adapter = _adapted(transformers.BertConfig(**TINY), **_ranks())
    zeros = jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape, leaf.dtype), (base, adapter))
    assert weight_bytes(base, adapter) == sum(leaf.nbytes for leaf in jax.tree.leaves(zeros))
    assert weight_bytes(base) == 4 * jlora.count_parameters(base)[0]
    assert training_bytes(1000) == 12_000


def test_magnitudes_biases_rows_and_single_layers_are_listed_and_counted():
    base, adapter = _adapted(
        transformers.BertConfig(**TINY),
        r=2,
        target_modules=["query"],
        use_dora=True,
        bias="lora_only",
        modules_to_save=["layer.1.output.dense"],
        trainable_token_indices=[3, 5, 7],
    )
    found = {row.name: row for row in rows(base, adapter)}
    counted = (sum(row.count for row in found.values()), sum(row.count for row in found.values() if row.trainable))
    assert counted == jlora.count_parameters(base, adapter)
    layer, embedding = "bert.encoder.layer", "bert.embeddings.word_embeddings"
    assert found[f"{layer}.0.attention.self.query.lora_magnitude_vector"].shape == (8,)
    assert found[f"{layer}.0.attention.self.query.bias"].trainable
    assert not found[f"{layer}.0.attention.self.key.bias"].trainable
    assert [found[f"{layer}.{number}.output.dense.weight"].trainable for number in (0, 1)] == [False, True]
    assert (found[f"{embedding}.weight"].shape, found[f"{embedding}.weight"].count) == ((11, 8), 8 * 8)
    added = found[f"{embedding}.token_adapter.trainable_tokens_delta"]
    assert (added.shape, added.trainable, added.target) == ((3, 8), True, False)
    assert "lora_magnitude_vector" in table(list(found.values()))


def test_a_quantized_base_has_the_same_rows_in_fewer_bytes():
    base, adapter = _adapted(transformers.BertConfig(**TINY), **_ranks())
    zeros = jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape, leaf.dtype), base)
    model, _, batch = _model(transformers.BertConfig(**TINY))
    quantized = jlora.quantize(zeros, "int8", model.apply, batch)
    assert rows(quantized, adapter) == rows(base, adapter)
    assert weight_bytes(quantized) < weight_bytes(base)
