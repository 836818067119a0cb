"""PiSSA, OLoRA and LoRA-GA: residual base and adapter are the base's function; the numbers are PEFT's."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jlora
from jlora.initialization.residual import init_lora_ga, init_residual, of_plain_base, subtract_initial
from jlora.lora.matrices import leaf_to_matrices, to_matrices
from jlora.tree.leaf_paths import leaves_by_path
from tests.support.adapters.lora_cases import normal
from tests.support.models.encoder_cases import difference

KEY = jax.random.key(0)


def _spread(seed, *shape, inputs):
    """Random numbers whose inputs count less and less: singular values that are well apart, as SVDs like them."""
    size = np.geomspace(1, 0.05, np.prod([shape[axis] for axis in inputs])).astype(np.float32)
    wide = [shape[axis] if axis in inputs else 1 for axis in range(len(shape))]
    return normal(seed, *shape) * size.reshape(wide)


BASE = {
    "embed": {"embedding": normal(1, 9, 20)},
    "layers": {"dense": {"kernel": 0.5 * _spread(2, 3, 20, 20, inputs=[1]), "bias": normal(3, 3, 20)}},
    "heads": {"kernel": _spread(5, 20, 4, 5, inputs=[0])},
    "out": {"kernel": _spread(6, 4, 5, 20, inputs=[0, 1])},
}
IDS = jnp.array([[1, 2, 3], [0, 8, 4]])
FIELDS = {"r": 4, "lora_alpha": 6, "target_modules": ["dense", "heads", "out"]}
NAMES = ["pissa", "pissa_niter_3", "olora", "lora_ga"]


def _layer(x, w):
    return jnp.tanh(x @ w["kernel"] + w["bias"][None, None]), None


def _model(base, ids):
    x, _ = lax.scan(_layer, base["embed"]["embedding"][ids], base["layers"]["dense"])
    heads = jnp.einsum("btd,dhk->bthk", x, base["heads"]["kernel"])
    return jnp.einsum("bthk,hko->bto", heads, base["out"]["kernel"])


_run = jax.jit(_model)
_run_adapted = jax.jit(jlora.adapt(_model))


@functools.cache
def _gradients():
    return jax.jit(jax.grad(lambda base: jnp.sum(jnp.sin(_model(base, IDS)))))(BASE)


def _start(name, base=BASE, fn=_model, gradients=None, **fields):
    """(residual base, adapter) by the function that is for the name."""
    config = jlora.LoraConfig(**{**FIELDS, **fields}, init_lora_weights=name)
    if name == "lora_ga":
        return init_lora_ga(config, base, _gradients() if gradients is None else gradients, fn, IDS)
    return init_residual(KEY, config, base, fn, IDS)


def _moved(adapter):
    """The adapter as if trained: A, B and the magnitude a little off."""

    def off(x, seed):
        return None if x is None else x * (1 + 0.2 * normal(seed, *x.shape))

    return {
        path: dataclasses.replace(e, a=off(e.a, 1), b=off(e.b, 2), magnitude=off(e.magnitude, 3))
        for path, e in adapter.items()
    }


PATTERNS = {
    "rank_pattern": {"1.dense": 6, "out": 2},
    "target_modules": ["0.dense", "1.dense", "out"],
    "use_rslora": True,
}


@pytest.mark.parametrize("fields", [{}, PATTERNS], ids=["plain", "patterns"])
@pytest.mark.parametrize("name", NAMES)
def test_residual_and_adapter_are_the_base(name, fields):
    residual, adapter = _start(name, **fields)
    expected = _run(BASE, IDS)
    assert difference(_run_adapted(residual, adapter, IDS), expected) < 1e-5
    assert difference(_run(jlora.merge(residual, adapter), IDS), expected) < 1e-5
    assert difference(_run(residual, IDS), expected) > 1e-3, "nothing was taken out of the base"


@pytest.mark.parametrize("name", ["olora", "lora_ga"])
def test_with_dora_the_magnitudes_are_the_norms_of_the_base(name):
    residual, adapter = _start(name, use_dora=True)
    assert difference(_run_adapted(residual, adapter, IDS), _run(BASE, IDS)) < 1e-5
    entry = adapter["heads/kernel"]
    np.testing.assert_allclose(entry.magnitude, jnp.linalg.norm(BASE["heads"]["kernel"], axis=0), rtol=1e-5)
    norms = jnp.sum(residual["heads"]["kernel"] ** 2, 0)
    np.testing.assert_allclose(entry.squared_norm, norms, rtol=1e-5)


@pytest.mark.parametrize("name", ["olora", "lora_ga"])
def test_the_given_base_is_left_alone_and_shared(name):
    before = jax.tree.map(np.array, BASE)
    residual, _ = _start(name)
    assert all((x == y).all() for x, y in zip(jax.tree.leaves(BASE), jax.tree.leaves(before), strict=True))
    found, given = leaves_by_path(residual), leaves_by_path(BASE)
    assert {path for path in given if found[path] is given[path]} == {"embed/embedding", "layers/dense/bias"}
    assert {path: leaf.dtype for path, leaf in found.items()} == {path: leaf.dtype for path, leaf in given.items()}


def test_leaves_of_lower_precision_are_rounded_once():
    base = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), BASE)
    residual, adapter = _start("pissa", base)
    assert {leaf.dtype for leaf in jax.tree.leaves(residual)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(adapter)} == {jnp.dtype("float32")}
    merged = jlora.merge(residual, adapter)
    assert difference(merged["heads"]["kernel"], base["heads"]["kernel"]) < 2**-8


@pytest.mark.parametrize("name", ["pissa", "olora", "lora_ga"])
def test_a_stack_is_its_layers(name):
    """Each layer of a scanned leaf starts as the same weight would by itself."""
    residual, adapter = _start(name)
    entry = adapter["layers/dense/kernel"]
    for layer in range(3):
        base, gradients, rest = (
            {"dense": {"kernel": tree["layers"]["dense"]["kernel"][layer]}} for tree in (BASE, _gradients(), residual)
        )
        left, alone = _start(name, base, _product, gradients, target_modules=["dense"])
        np.testing.assert_allclose(entry.a[layer], alone["dense/kernel"].a, atol=1e-5)
        np.testing.assert_allclose(entry.b[layer], alone["dense/kernel"].b, atol=1e-5)
        assert difference(rest["dense"]["kernel"], left["dense"]["kernel"]) < 1e-6


def _product(base, ids):
    return jnp.ones((2, 20)) @ base["dense"]["kernel"]


def _torch_layer(weight, **fields):
    """PEFT's adapted Linear of `weight` (out, in), by its own initialization."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    model = torch.nn.Sequential(torch.nn.Linear(weight.shape[1], weight.shape[0]))
    model[0].weight.data = torch.tensor(np.array(weight))
    if "gradient" in fields:
        model[0]._peft_loraga_grad = torch.tensor(np.array(fields.pop("gradient")))
        fields["lora_ga_config"] = peft.LoraGAConfig()
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": ["0"], **fields})
    layer = peft.get_peft_model(model, config).base_model.model[0]
    a, b = (factor.default.weight.detach().numpy() for factor in (layer.lora_A, layer.lora_B))
    magnitude = layer.lora_magnitude_vector.default.weight.detach().numpy() if fields.get("use_dora") else None
    return a, b, layer.base_layer.weight.detach().numpy(), magnitude


@pytest.mark.parametrize("shape", [(20, 24), (24, 20)], ids=["wide", "tall"])
@pytest.mark.parametrize("fields", [{"use_rslora": True}, {"use_dora": True}], ids=["rslora", "dora"])
@pytest.mark.parametrize("name", ["pissa", "olora", "lora_ga"])
def test_the_numbers_are_pefts(name, fields, shape):
    """A and B up to the signs of the components; the residual weight and DoRA's magnitude."""
    weight, gradient = _spread(8, *shape, inputs=[1]), _spread(9, *shape, inputs=[1])
    config = jlora.LoraConfig(**{**FIELDS, "target_modules": ["w"]}, init_lora_weights=name, **fields)
    use = {"w": weight}, lambda base, x: x @ base["w"].T, normal(1, 2, shape[1])
    if name == "lora_ga":  # PEFT's randomized SVD finds all components: 4 r covers nearly all of them
        residual, adapter = init_lora_ga(config, use[0], {"w": gradient}, *use[1:])
        a, b, left, magnitude = _torch_layer(weight, gradient=gradient, init_lora_weights=name, **fields)
    else:
        residual, adapter = init_residual(KEY, config, *use)
        a, b, left, magnitude = _torch_layer(weight, init_lora_weights=name, **fields)
    found = to_matrices(adapter["w"])[0]
    signs_a, signs_b = np.sign(np.sum(found.a * a, 1)), np.sign(np.sum(found.b * b, 0))
    assert difference(found.a * signs_a[:, None], a) < 1e-5
    assert difference(found.b * signs_b[None], b) < 1e-5
    product = (np.asarray(found.b) * signs_b * np.asarray(found.scale)) @ (np.asarray(found.a) * signs_a[:, None])
    assert difference(residual["w"] + found.update - product, left) < 1e-5  # LoRA-GA's signs come in pairs of their own
    if name != "lora_ga":
        assert (signs_a == signs_b).all()
        assert difference(residual["w"], left) < 1e-5
    if magnitude is not None:
        assert difference(adapter["w"].magnitude, magnitude) < 1e-5


@pytest.mark.parametrize("shape", [(20, 24), (24, 20)], ids=["wide", "tall"])
def test_randomized_pissa_is_torchs_svd_lowrank(shape):
    """From the same test vectors, PEFT's update; with many iterations, the exact one."""
    torch = pytest.importorskip("torch")
    weight = normal(9, *shape)

    def start(name):
        config = jlora.LoraConfig(r=4, lora_alpha=6, target_modules=["w"], init_lora_weights=name)
        _, adapter = init_residual(KEY, config, {"w": weight}, lambda base, x: x @ base["w"].T, normal(1, 2, shape[1]))
        return to_matrices(adapter["w"])[0]

    exact, draws = start("pissa").update, []
    real = jax.random.normal

    def record(*args):
        draws.append(real(*args))
        return draws[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.random, "normal", record)
        found = start("pissa_niter_2").update
        patch.undo()
        test_vectors = torch.tensor(np.array(draws[-1]))
        patch.setattr(torch, "randn", lambda *size, **_: test_vectors)
        a, b, *_ = _torch_layer(weight, init_lora_weights="pissa_niter_2")
    assert difference(found, 1.5 * b @ a) < 1e-5
    assert difference(found, exact) > 1e-4
    assert difference(start("pissa_niter_60").update, exact) < 1e-3


def test_pissa_is_the_best_update_of_its_rank():
    """Eckart and Young: what is left has the singular values that the adapter has not."""
    residual, adapter = _start("pissa")
    for path, entry in adapter.items():
        trees = (leaf_to_matrices(entry, leaves_by_path(tree)[path]) for tree in (BASE, residual))
        for weight, rest in zip(*trees, strict=True):
            expected, found = (np.linalg.svd(matrix, compute_uv=False) for matrix in (weight, rest))
            np.testing.assert_allclose(found[:16], expected[4:], rtol=1e-4, atol=1e-5)


def test_a_rank_above_the_weight_leaves_nothing():
    base = {"w": normal(1, 5, 6)}
    for name in ("pissa", "pissa_niter_2", "olora"):
        config = jlora.LoraConfig(r=8, target_modules=["w"], init_lora_weights=name)
        with pytest.warns(UserWarning, match="rank 8 is above the smaller side"):
            residual, adapter = init_residual(KEY, config, base, lambda base, x: x @ base["w"], normal(2, 3, 5))
        assert adapter["w"].ranks == (8,)
        assert float(jnp.abs(residual["w"]).max()) < 1e-5


@pytest.mark.parametrize(
    ("name", "fields"),
    [("pissa", PATTERNS), ("olora", {"use_dora": True}), ("lora_ga", {})],
    ids=["pissa", "dora", "ga"],
)
def test_subtracting_the_start_gives_an_adapter_of_the_original_base(name, fields):
    residual, initial = _start(name, **fields)
    trained = _moved(initial)
    plain = subtract_initial(trained, initial)
    assert {path: entry.ranks for path, entry in plain.items()} == {
        path: tuple(2 * rank for rank in entry.ranks) for path, entry in trained.items()
    }
    expected, found = jlora.merge(residual, trained), jlora.merge(BASE, plain)
    for path, leaf in leaves_by_path(expected).items():
        assert difference(leaves_by_path(found)[path], leaf) < 1e-5, path
    outputs = _run_adapted(residual, trained, IDS)
    assert difference(_run_adapted(BASE, plain, IDS), outputs) < 1e-5
    assert difference(_run(BASE, IDS), outputs) > 1e-3, "the training changes nothing: nothing is tested"


def test_an_untrained_adapter_subtracted_changes_nothing():
    _, initial = _start("olora")
    plain = subtract_initial(initial, initial)
    assert difference(_run(jlora.merge(BASE, plain), IDS), _run(BASE, IDS)) < 1e-5


def test_what_is_trained_whole_is_kept():
    residual, initial = _start("pissa", target_modules=["dense"], modules_to_save=["heads"])
    assert (initial["heads/kernel"].value == BASE["heads"]["kernel"]).all()
    assert residual["heads"]["kernel"] is BASE["heads"]["kernel"]
    assert subtract_initial(initial, initial)["heads/kernel"] is initial["heads/kernel"]


def test_the_subtracted_adapter_is_pefts(tmp_path):
    """PEFT's own conversion of a trained PiSSA layer has the same tensors."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    load_file = pytest.importorskip("safetensors.numpy").load_file
    weight = normal(9, 20, 24)
    model = torch.nn.Sequential(torch.nn.Linear(24, 20))
    model[0].weight.data = torch.tensor(np.array(weight))
    fields = {"r": 4, "lora_alpha": 6, "init_lora_weights": "pissa"}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**fields, target_modules=["0"]))
    adapted.peft_config["default"].init_lora_weights = True
    adapted.save_pretrained(tmp_path / "start")
    adapted.peft_config["default"].init_lora_weights = "pissa"
    first = load_file(tmp_path / "start/adapter_model.safetensors")
    layer = adapted.base_model.model[0]
    layer.lora_A.default.weight.data *= 1.1
    layer.lora_B.default.weight.data *= 0.8
    adapted.save_pretrained(tmp_path / "end", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    converted = load_file(tmp_path / "end/adapter_model.safetensors")

    config = jlora.LoraConfig(**fields, target_modules=["w"])
    _, ours = init_residual(KEY, config, {"w": weight}, lambda base, x: x @ base["w"].T, normal(1, 2, 24))
    keys = [f"base_model.model.0.lora_{x}.weight" for x in "AB"]
    initial = {"w": dataclasses.replace(ours["w"], a=jnp.asarray(first[keys[0]]), b=jnp.asarray(first[keys[1]].T))}
    trained = {"w": dataclasses.replace(initial["w"], a=1.1 * initial["w"].a, b=0.8 * initial["w"].b)}
    found = to_matrices(subtract_initial(trained, initial)["w"])[0]
    np.testing.assert_allclose(found.a, converted[keys[0]], rtol=1e-6)
    np.testing.assert_allclose(found.b, converted[keys[1]], rtol=1e-6)
    np.testing.assert_allclose(found.scale, 1.5)


def test_other_names_are_refused():
    match = r"^LoraConfig\.init_lora_weights: expected pissa, .*found 'lora_ga'"
    with pytest.raises(jlora.JloraError, match=match):
        init_residual(KEY, jlora.LoraConfig(**FIELDS, init_lora_weights="lora_ga"), BASE, _model, IDS)
    with pytest.raises(jlora.JloraError, match=r"expected lora_ga, found True"):
        init_lora_ga(jlora.LoraConfig(**FIELDS), BASE, BASE, _model, IDS)


@pytest.mark.parametrize("name", ["olora", "lora_ga"])
def test_tables_are_refused(name):
    with pytest.raises(jlora.JloraError, match=r"^embed/embedding: expected a weight of matrix products.*'lookup'"):
        _start(name, target_modules=["dense", "embed"])


@pytest.mark.parametrize("fields", [{"lora_alpha": 0}, {"alpha_pattern": {"dense": -1}}], ids=str)
def test_pissa_needs_a_scale_to_divide_by(fields):
    with pytest.raises(jlora.JloraError, match=r"^LoraConfig: .*expected an alpha above 0 for PiSSA"):
        _start("pissa", **fields)
    _start("olora", **fields)


def test_gradients_that_do_not_fit():
    with pytest.raises(jlora.JloraError, match=r"^(heads|out|layers/dense)/kernel: not in the tree of gradients"):
        _start("lora_ga", gradients={"embed": {"embedding": BASE["embed"]["embedding"]}})
    wrong = {**_gradients(), "heads": {"kernel": jnp.zeros((20, 20))}}
    with pytest.raises(jlora.JloraError, match=r"^heads/kernel: expected a gradient of shape \(20, 4, 5\), found"):
        _start("lora_ga", gradients=wrong)
    with pytest.raises(jlora.JloraError, match=r"^out/kernel: expected both sides .* 2 r = 22 for LoRA-GA"):
        _start("lora_ga", target_modules=["out"], r=11)


def test_gradients_of_other_leaves_may_be_missing():
    gradients = {"heads": _gradients()["heads"], "embed": None}
    _, adapter = _start("lora_ga", gradients=gradients, target_modules=["heads"])
    assert adapter["heads/kernel"].b.any()


def test_adapters_of_other_leaves_are_not_subtracted():
    _, both = _start("olora")
    _, one = _start("olora", target_modules=["heads"])
    with pytest.raises(jlora.JloraError, match=r"not in the initial adapter"):
        subtract_initial(both, one)
    with pytest.raises(jlora.JloraError, match=r"^heads/kernel: expected a start of shape \(20, 4, 5\) .*found Full"):
        subtract_initial(one, {"heads/kernel": jlora.Full(BASE["heads"]["kernel"])})


@pytest.mark.parametrize("name", ["pissa", "olora"])
@pytest.mark.parametrize("fields", [{}, {"use_dora": True}, {"rank_pattern": {"layers.1.dense": 2}}], ids=str)
def test_the_start_that_is_computed_again_is_the_one_that_was_taken(name, fields):
    """`test_peft_table` has PEFT's files."""
    residual, adapter = _start(name, **fields)
    trained = {path: dataclasses.replace(entry, b=1.1 * entry.b) for path, entry in adapter.items()}
    plain = of_plain_base(trained, jlora.LoraConfig(**FIELDS | fields, init_lora_weights=name), BASE)
    assert difference(_run_adapted(BASE, plain, IDS), _run_adapted(residual, trained, IDS)) < 1e-5


def test_a_start_needs_the_bases_numbers():
    _, adapter = _start("pissa")
    shapes = jax.eval_shape(lambda: BASE)
    with pytest.raises(
        jlora.JloraError, match=r"expected an array, because the adapter's start .*; found a shape alone"
    ):
        of_plain_base(adapter, jlora.LoraConfig(**FIELDS, init_lora_weights="pissa"), shapes)
