"""Run by test_explicit_axes.py in a process of its own: 8 devices under `jax.make_mesh`'s own axis types.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/support/programs/explicit.py

prints {case: {lora, dora: [error of the value, of the gradients, whether the result is split as the base's]}}.
"""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, reshard, set_mesh

import jlora
from tests.support.adapters.lora_cases import normal
from tests.support.models.encoder_cases import difference

P = PartitionSpec


def _kernel(base: Any, x: Any) -> Any:
    return jnp.tanh(x) @ base["w"]


def _inputs_split(base: Any, x: Any) -> Any:
    return jnp.einsum("btd,df->btf", reshard(x, P("x", None, "y")), base["w"], out_sharding=P("x", None, None))


def _heads(base: Any, x: Any) -> Any:
    return jnp.einsum("btd,dhk->bthk", x, base["w"])


def _attention_out(base: Any, x: Any) -> Any:
    heads = jnp.einsum("btd,dhk->bthk", x, base["w"])
    return jnp.einsum("bthk,hkd->btd", jnp.tanh(heads), base["o"], out_sharding=P("x", None, None))


def _layers(base: Any, x: Any) -> Any:
    def layer(x: Any, w: Any) -> Any:
        h = jnp.tanh(jnp.einsum("btd,df->btf", x, w))
        return reshard(h, P("x", None, None)), None

    return jax.lax.scan(layer, x, base["w"])[0]


def _resharded(base: Any, x: Any) -> Any:
    return jnp.einsum("btd,dhk->bthk", x, reshard(base["w"], P(None, None, None)))


def _lookup(base: Any, ids: Any) -> Any:
    return base["w"].at[ids].get(out_sharding=P("x", None, None))


def _mapped(base: Any, x: Any) -> Any:
    joined = jnp.concatenate([base["w"] * 2, -base["v"]], axis=1)
    return jnp.einsum("btd,df->btf", x, joined)


def _masked(base: Any, x: Any) -> Any:
    rows = (jnp.arange(8) % 3 > 0)[:, None]
    joined = jnp.concatenate([jnp.where(rows, base["w"], 0.5), base["v"]], axis=1)
    return jnp.einsum("btd,df->btf", x, joined)


def _convolution(base: Any, x: Any) -> Any:
    return jax.lax.conv_general_dilated(x, base["w"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))


FUNCTIONS = {
    "kernel whole": _kernel,
    "kernel put whole": _kernel,
    "outputs split": _kernel,
    "inputs split": _inputs_split,
    "heads split": _heads,
    "rows of a batch": _kernel,
    "attention": _attention_out,
    "layers": _layers,
    "reshard of the weight": _resharded,
    "lookup with out_sharding": _lookup,
    "linear maps": _mapped,
    "linear maps of what is split": _masked,
    "convolution": _convolution,
}


def arguments(mesh: Any) -> dict[str, tuple[dict[str, Any], Any]]:
    """{name of a case: (base, x)}."""

    def put(array: Any, *names: Any) -> jax.Array:
        return jax.device_put(array, NamedSharding(mesh, P(*names)))

    x, ids = put(normal(0, 4, 6, 8), "x"), put(jnp.arange(24).reshape(4, 6) % 16, "x")
    kernel, heads, table, layers = normal(1, 8, 16), normal(2, 8, 4, 4), normal(3, 16, 8), 0.3 * normal(4, 3, 8, 8)
    return {
        "kernel whole": ({"w": kernel}, x),
        "kernel put whole": ({"w": put(kernel)}, x),
        "outputs split": ({"w": put(kernel, None, "y")}, x),
        "inputs split": ({"w": put(kernel, "y", None)}, x),
        "heads split": ({"w": put(heads, None, "y", None)}, x),
        "rows of a batch": ({"w": put(kernel, None, "y")}, x[:, 0]),
        "attention": ({"w": put(heads, None, "y", None), "o": put(normal(5, 4, 4, 8), "y", None, None)}, x),
        "layers": ({"w": put(layers, None, None, "y")}, x),
        "reshard of the weight": ({"w": put(heads, None, "y", None)}, x),
        "lookup with out_sharding": ({"w": put(table, None, "y")}, ids),
        "linear maps": ({"w": put(kernel), "v": put(kernel + 1)}, x),
        "linear maps of what is split": ({"w": put(kernel, None, "y"), "v": put(kernel + 1, None, "y")}, x),
        "convolution": ({"w": put(normal(6, 3, 8, 4))}, x),
    }


def compared(fn: Any, base: Any, x: Any, *, dora: bool) -> list:
    """[error of the value, of the gradients, whether the shardings are the same] against the merged weights."""
    config = jlora.LoraConfig(r=2, target_modules=list(base), init_lora_weights=False, use_dora=dora, lora_dropout=0.5)
    adapter = jlora.init(jax.random.key(0), config, base, fn, x)
    adapted = jlora.adapt(fn)
    weights = normal(9, *jax.eval_shape(fn, base, x).shape)

    def value(adapter: Any, run: Any) -> Any:
        result = run(adapter)
        return jnp.sum(reshard(result, P()) * weights), result

    def gradient(run: Any) -> Any:
        return jax.jit(jax.grad(lambda adapter: value(adapter, run), has_aux=True))(adapter)

    found = gradient(lambda adapter: adapted(base, adapter, x))
    expected = gradient(lambda adapter: fn(jlora.merge(base, adapter), x))
    jax.block_until_ready(jax.jit(adapted)(base, adapter, x, dropout_key=jax.random.key(1)))
    errors = [
        difference(getattr(found[0][path], field), getattr(expected[0][path], field))
        for path in adapter
        for field in ("a", "b", *(["magnitude"] if dora else []))
    ]
    same = jax.typeof(adapted(base, adapter, x)).sharding == jax.typeof(fn(base, x)).sharding
    return [float(difference(found[1], expected[1])), float(max(errors)), same]


def attempted(fn: Any, base: Any, x: Any, *, dora: bool) -> Any:
    """What `compared` gives, or its error."""
    try:
        return compared(fn, base, x, dora=dora)
    except Exception as error:  # one case that fails is no reason to lose the others
        return f"{type(error).__name__}: {error}"[:500]


def main() -> None:
    """Prints one line of JSON, the last."""
    mesh = jax.make_mesh((2, 4), ("x", "y"))
    with set_mesh(mesh):
        found = {
            name: {kind: attempted(FUNCTIONS[name], *given, dora=kind == "dora") for kind in ("lora", "dora")}
            for name, given in arguments(mesh).items()
        }
        print(json.dumps(found))


if __name__ == "__main__":
    main()
