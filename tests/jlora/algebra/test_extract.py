"""Laws of extraction: what has a low rank comes back whole, and no other adapter of the rank is nearer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jlora
from jlora.algebra.extract import extract, outside
from jlora.algebra.reduce_rank import rank_for
from jlora.lora.matrices import leaf_to_matrices, to_matrices
from jlora.tree.leaf_paths import leaves_by_path, replace_leaves
from tests.support.adapters.lora_cases import normal, random_adapter, random_encoder
from tests.support.models.encoder_cases import difference

_TARGETS = ["query", "output.dense", "word_embeddings"]


def _config(**fields):
    return jlora.LoraConfig(**{"r": 2, "lora_alpha": 7, "target_modules": _TARGETS, **fields})


def _assert_trees_are_near(found, expected, tolerance=1e-5):
    found, expected = leaves_by_path(found), leaves_by_path(expected)
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        assert difference(found[path], leaf) < tolerance, path


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_a_change_of_low_rank_comes_back_whole(family):
    model, base, batch = random_encoder(family)
    targets = "all-linear" if family == "distilbert" else _TARGETS
    given = random_adapter(model.apply, base, batch, targets=targets, task_type="SEQ_CLS")
    tuned = jlora.merge(base, given)
    config = _config(target_modules=targets, task_type="SEQ_CLS")
    adapter, spectra = extract(tuned, base, config, model.apply, batch)
    assert adapter.keys() == given.keys()
    _assert_trees_are_near(jlora.merge(base, adapter), tuned)
    assert difference(jlora.adapt(model.apply)(base, adapter, batch), model.apply(tuned, batch)) < 1e-5
    for entry in adapter.values():
        if isinstance(entry, jlora.LowRank):
            assert np.array_equal(entry.scale, np.ones_like(entry.scale))
    assert all(values.dtype == np.float32 and (np.diff(values) <= 0).all() for values in spectra.values())
    assert all(values[2] < 1e-3 * values[0] for values in spectra.values())


def test_ranks_of_patterns_and_layers_that_are_left_out():
    model, base, batch = random_encoder("bert")
    config = _config(
        target_modules=["query", "output.dense"],
        exclude_modules=r".*layer\.1\.output\.dense",
        rank_pattern={"0.attention.self.query": 3},
    )
    given = random_adapter(model.apply, base, batch, targets=["query"], r=3)
    tuned = jlora.merge(base, given)
    adapter, spectra = extract(tuned, base, config, model.apply, batch)
    layers = "params/bert/encoder/layer"
    assert adapter[f"{layers}/attention/self/query/kernel"].ranks == (3, 2)
    assert adapter[f"{layers}/output/dense/kernel"].ranks == (2, 0)
    assert "bert.encoder.layer.1.output.dense" not in spectra
    merged = jlora.merge(base, adapter)
    query = f"{layers}/attention/self/query/kernel"
    found, expected = leaves_by_path(merged)[query], leaves_by_path(tuned)[query]
    assert difference(found[0], expected[0]) < 1e-5
    assert difference(found[1], expected[1]) > 1e-3


def test_no_other_update_of_the_rank_is_nearer():
    """Eckart and Young: what is lost is the norm of the singular values that are cut."""
    base, tuned = ({"dense": {"kernel": normal(seed, 12, 9)}} for seed in (1, 2))
    config = _config(target_modules=["dense"], r=4)
    adapter, spectra = extract(tuned, base, config, _dense, jnp.ones((2, 12)))
    lost = np.linalg.norm(tuned["dense"]["kernel"] - jlora.merge(base, adapter)["dense"]["kernel"])
    assert lost == pytest.approx(np.linalg.norm(spectra["dense"][4:]), rel=1e-4)
    expected = np.linalg.svd(np.asarray(tuned["dense"]["kernel"] - base["dense"]["kernel"]), compute_uv=False)
    assert difference(spectra["dense"], expected) < 1e-5
    (matrices,) = to_matrices(adapter["dense/kernel"])
    assert difference(matrices.a @ matrices.a.T, jnp.eye(4)) < 1e-5  # orthonormal rows
    assert difference(jnp.linalg.norm(matrices.b, axis=0), spectra["dense"][:4]) < 1e-5


def _dense(tree, x):
    return x @ tree["dense"]["kernel"]


@pytest.mark.parametrize("energy", [0.3, 0.8, 0.999, 1.0])
def test_energy_keeps_the_smallest_rank_that_holds_it_in_each_layer(energy):
    model, base, batch = random_encoder("bert")
    tuned = jax.tree.map(lambda leaf: leaf + 0.1 * normal(3, *leaf.shape), base)
    adapter, spectra = extract(tuned, base, _config(r=1), model.apply, batch, energy=energy)
    path = "params/bert/encoder/layer/output/dense/kernel"
    matrices = leaf_to_matrices(adapter[path], leaves_by_path(tuned)[path] - leaves_by_path(base)[path])
    for layer, rank in enumerate(adapter[path].ranks):
        values = np.float64(spectra[f"bert.encoder.layer.{layer}.output.dense"])
        share = np.cumsum(values**2) / np.sum(values**2)
        assert share[rank - 1] >= energy - 1e-12
        assert rank == 1 or share[rank - 2] < energy
        lost = np.sum(np.square(matrices[layer] - to_matrices(adapter[path])[layer].update)) / np.sum(values**2)
        assert lost == pytest.approx(1 - share[rank - 1], abs=1e-5)
    assert adapter[path].a.shape[1] == max(adapter[path].ranks)


@pytest.mark.parametrize(("energy", "rank"), [(0.1, 1), (0.5, 1), (0.64, 1), (0.65, 2), (1.0, 2)])
def test_the_rank_for_a_share(energy, rank):
    assert rank_for(np.float32([4, 3, 0, 0]), energy) == rank
    assert rank_for(np.zeros(3, np.float32), energy) == 1


def test_a_rank_above_the_smaller_side_is_cut_there():
    base, tuned = ({"dense": {"kernel": normal(seed, 3, 5)}} for seed in (1, 2))
    with pytest.warns(UserWarning, match="rank 8 is above"):
        adapter, _ = extract(tuned, base, _config(target_modules=["dense"], r=8), _dense, jnp.ones((2, 3)))
    assert adapter["dense/kernel"].ranks == (3,)
    _assert_trees_are_near(jlora.merge(base, adapter), tuned)


def test_modules_to_save_are_taken_whole_and_own_their_arrays():
    model, base, batch = random_encoder("bert")
    tuned = jax.tree.map(lambda leaf: leaf + 0.1 * normal(3, *leaf.shape), base)
    adapter, spectra = extract(tuned, base, _config(modules_to_save=["LayerNorm", "pooler"]), model.apply, batch)
    whole = {path for path, entry in adapter.items() if isinstance(entry, jlora.Full)}
    assert {path.rsplit("/", 1)[0].split("/")[-1] for path in whole} == {"LayerNorm", "dense"}
    for path in whole:
        assert np.array_equal(adapter[path].value, leaves_by_path(tuned)[path])
        adapter[path].value.delete()
        assert jnp.isfinite(leaves_by_path(tuned)[path]).all()
    assert not any("LayerNorm" in name for name in spectra)


def test_matrices_that_one_product_batches_share_a_rank():
    """Experts, say: a stack inside one module."""

    def experts(tree, x):
        return jnp.einsum("eti,eio->eto", x, tree["experts"]["kernel"])

    base = {"experts": {"kernel": normal(1, 3, 8, 6)}}
    change = jnp.stack([normal(2, 8, rank) @ normal(3, rank, 6) for rank in (1, 2, 3)])
    tuned = {"experts": {"kernel": base["experts"]["kernel"] + change}}
    config = _config(target_modules=["experts"], r=3)
    for energy in (None, 0.99999):
        adapter, spectra = extract(tuned, base, config, experts, jnp.ones((3, 2, 8)), energy=energy)
        _assert_trees_are_near(jlora.merge(base, adapter), tuned, 1e-2 if energy else 1e-5)
        assert list(spectra) == ["experts[0]", "experts[1]", "experts[2]"]
        assert adapter["experts/kernel"].ranks == (3,)


def test_what_changed_outside_is_listed_with_its_share():
    model, base, batch = random_encoder("bert")
    given = random_adapter(model.apply, base, batch, targets=["query"])
    norm, bias = "params/bert/embeddings/LayerNorm/scale", "params/bert/pooler/dense/bias"
    leaves = leaves_by_path(base)
    tuned = replace_leaves(jlora.merge(base, given), {norm: leaves[norm] + 0.1, bias: leaves[bias] - 0.3})
    adapter, _ = extract(tuned, base, _config(target_modules=["query"]), model.apply, batch)
    found = outside(tuned, base, adapter)
    total = sum(float(jnp.sum((x - y) ** 2)) for x, y in zip(*map(jax.tree.leaves, (tuned, base)), strict=True))
    assert list(found) == [bias, norm]
    assert found[bias] == pytest.approx(32 * 0.09 / total, rel=1e-3)
    # The layers of a stack that the adapter leaves out count.
    first = _config(target_modules=["query"], layers_to_transform=[0])
    adapter, _ = extract(tuned, base, first, model.apply, batch)
    query = "params/bert/encoder/layer/attention/self/query/kernel"
    left = leaves_by_path(tuned)[query][1] - leaves_by_path(base)[query][1]
    assert outside(tuned, base, adapter)[query] == pytest.approx(float(jnp.sum(left**2)) / total, rel=1e-3)
    assert outside(base, base, {}) == {}


def test_bad_trees_and_settings_are_refused():
    base, tuned = ({"dense": {"kernel": normal(s, 4, 5), "bias": normal(s, 5)}} for s in (1, 2))
    config, x = _config(target_modules=["dense"]), jnp.ones((2, 4))

    def refused(match, tuned, base=base, config=config, **options):
        with pytest.raises(jlora.JloraError, match=match):
            extract(tuned, base, config, _dense, x, **options)

    kernel, bias = tuned["dense"]["kernel"], tuned["dense"]["bias"]
    refused(r"dense/kernel: expected the base's shape \(4, 5\) in the tuned tree, found \(5, 4\)",
            {"dense": {"kernel": kernel.T, "bias": bias}})  # fmt: skip
    refused("dense/bias: expected the base's shape .* found no such leaf", {"dense": {"kernel": kernel}})
    refused("dense/more: expected the base's shape no such leaf", {"dense": {**tuned["dense"], "more": bias}})
    refused("dense/bias: expected finite values in the tuned tree", {"dense": {"kernel": kernel, "bias": bias / 0}})
    refused("dense/kernel: expected finite values in the base tree", tuned,
            {"dense": {"kernel": kernel.at[0, 0].set(jnp.nan), "bias": bias}})  # fmt: skip
    refused("found equal ones: give the fine-tuned model", base)
    refused("no change in any of them; dense/bias changed", {"dense": {**base["dense"], "bias": bias}})
    refused(r"energy: expected a share in \(0, 1\], found 90", tuned, energy=90)
    refused("use_dora: expected false", tuned, config=dataclasses.replace(config, use_dora=True))


@pytest.mark.parametrize("fields", [{"target_modules": ["q", "embed"]}, {"modules_to_save": ["embed"]}])
def test_a_tied_table_changes_for_both_of_its_uses(fields):
    def fn(base, ids):
        table = base["embed"]["embedding"]
        return jnp.tanh(table[ids]) @ base["q"]["kernel"] @ table.T

    base = {"embed": {"embedding": normal(1, 9, 6)}, "q": {"kernel": normal(2, 6, 6)}}
    tuned = jax.tree.map(lambda leaf: leaf + normal(3, len(leaf), 2) @ normal(4, 2, 6), base)
    config, ids = _config(**{"target_modules": ["q"], **fields}), jnp.arange(5)
    with pytest.raises(
        jlora.JloraError, match=r"^embed/embedding: .*found one for the lookup alone.*ensure_weight_tying=True"
    ):
        extract(tuned, base, config, fn, ids)
    adapter, _ = extract(tuned, base, dataclasses.replace(config, ensure_weight_tying=True), fn, ids)
    _assert_trees_are_near(jlora.merge(base, adapter), tuned)
    assert difference(jlora.adapt(fn)(base, adapter, ids), fn(tuned, ids)) < 1e-5


def test_half_precision_trees():
    base = {"dense": {"kernel": normal(1, 8, 8).astype(jnp.bfloat16)}}
    tuned = {"dense": {"kernel": (base["dense"]["kernel"].astype("f") + 0.5).astype(jnp.bfloat16)}}
    adapter, _ = extract(tuned, base, _config(target_modules=["dense"], r=8), _dense, jnp.ones((2, 8), jnp.bfloat16))
    assert adapter["dense/kernel"].a.dtype == jnp.float32
    merged = jlora.merge(base, adapter)["dense"]["kernel"]
    assert merged.dtype == jnp.bfloat16
    assert np.array_equal(merged, tuned["dense"]["kernel"])
