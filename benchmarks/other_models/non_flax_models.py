"""Models of others in Equinox, Haiku, Keras and Penzai, for `benchmarks.other_models`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.other_models.flax_models import EINOPS, ids, normal
from benchmarks.other_models.one_model import Built, Model

LOGURU = "loguru==0.7.3"
E1 = (EINOPS, LOGURU, "beartype==0.23.1")
EQUIMO = (EINOPS, LOGURU, "lz4==4.4.5", "semver==3.1.2")


def haiku(call: Callable, *args: Any, **at_init: Any) -> Built:
    """The function of modules; its state (statistics of batches) stays as it is. Options `at_init` make that state."""
    import haiku as hk

    transformed = hk.transform_with_state(call)
    init = jax.jit(lambda *args: transformed.init(*args, **at_init))
    weights, state = init(jax.random.key(0), *args)
    return Built(lambda weights, *args: transformed.apply(weights, state, jax.random.key(1), *args)[0], weights, args)


def keras(model: Any, *args: Any) -> Built:
    """The weights are {path of a trainable variable: its value}."""
    paths = [variable.path for variable in model.trainable_variables]
    weights = {path: variable.value for path, variable in zip(paths, model.trainable_variables, strict=True)}
    others = [variable.value for variable in model.non_trainable_variables]
    call = model.stateless_call
    return Built(lambda weights, *args: call([weights[path] for path in paths], others, *args)[0], weights, args)


def proteins() -> Built:
    from e1jax import E1

    model = E1(dim=32, num_heads=4, ff_dim=64, num_layers=3, key=jax.random.key(0))
    places, sequence = jnp.arange(16), jnp.arange(16) // 8
    args = (ids(16), places % 8, places, sequence, jnp.ones(16, bool))
    return Built(lambda model, *args: model(*args), model, args)


def esm2() -> Built:
    from esm2quinox import ESM2

    model = ESM2(num_layers=2, embed_size=32, num_heads=4, token_dropout=True, key=jax.random.key(0))
    return Built(lambda model, tokens: jax.vmap(model)(tokens), model, (ids(2, 16),))


def mlla() -> Built:
    from equimo.models import Mlla

    key = jax.random.key(0)
    model = Mlla(img_size=32, in_channels=3, dim=16, depths=[1, 1], num_heads=[2, 4], num_classes=10, key=key)
    return Built(lambda model, x: model(x, inference=True), model, (normal(3, 32, 32),))


def fourier() -> Built:
    from pdequinox.arch import ClassicFNO

    model = ClassicFNO(1, 2, 2, hidden_channels=8, num_modes=4, num_blocks=2, key=jax.random.key(0))
    return Built(lambda model, x: model(x), model, (normal(2, 32),))


def gmlp() -> Built:
    from mlp_gpt_jax import TransformedMLPGpt

    model = TransformedMLPGpt(num_tokens=48, dim=32, seq_len=16, depth=2, attn_dim=16)
    weights = model.init(jax.random.key(0), ids(16))
    return Built(lambda weights, x: model.apply(weights, jax.random.key(1), x), weights, (ids(16),))


def haiku_resnet() -> Built:
    import haiku as hk

    def call(images: jax.Array, is_training: bool = False) -> jax.Array:
        net = hk.nets.ResNet((1, 1, 1, 1), 10, channels_per_group=(8, 16, 16, 16), bottleneck=True)
        return net(images, is_training)

    return haiku(call, normal(2, 32, 32, 3), is_training=True)


def graph_network() -> Built:
    import haiku as hk
    import jraph

    def call(graph: Any) -> Any:
        updates = [jraph.concatenated_args(hk.nets.MLP([16, 8])) for _ in range(3)]
        return jraph.GraphNetwork(*updates)(graph)

    graph = jraph.GraphsTuple(
        nodes=normal(10, 4), edges=normal(24, 3), senders=ids(24, below=10), receivers=ids(24, below=10)[::-1],
        n_node=jnp.array([6, 4]), n_edge=jnp.array([14, 10]), globals=normal(2, 5),
    )  # fmt: skip
    return haiku(call, graph)


def compact_transformer() -> Built:
    from k3im.cct import CCT

    model = CCT(
        input_shape=(32, 32, 3), num_heads=2, projection_dim=32, kernel_size=3, stride=2, padding=1,
        transformer_units=[64, 32], stochastic_depth_rate=0.0, transformer_layers=2, num_classes=10,
        positional_emb=True,
    )  # fmt: skip
    return keras(model, normal(2, 32, 32, 3))


def llama() -> Built:
    from penzai import pz
    from penzai.models.transformer.variants import llamalike_common as common

    config = common.LlamalikeTransformerConfig(
        num_kv_heads=2, query_head_multiplier=2, embedding_dim=32, projection_dim=8, mlp_hidden_dim=64,
        num_decoder_blocks=2, vocab_size=48, mlp_variant="swiglu", tie_embedder_and_logits=False, use_layer_stack=True,
    )  # fmt: skip
    model = common.build_llamalike_transformer(config, jax.random.key(0))
    bare, variables = pz.unbind_params(model, freeze=True)
    weights = {variable.label: variable for variable in variables}

    def call(weights: Any, tokens: jax.Array) -> jax.Array:
        bound = pz.bind_variables(bare, weights.values(), unfreeze_as_copy=True)
        places = pz.nx.arange("seq", tokens.shape[1])
        return bound(pz.nx.wrap(tokens, "batch", "seq"), token_positions=places)

    return Built(call, weights, (ids(2, 16),))


MODELS = {
    "proteins": Model("e1jax==0.3.0", "E1, protein language model", "Equinox", proteins, E1),
    "esm2": Model("esm2quinox==0.2.0", "ESM-2, layers in a scan, tied head", "Equinox", esm2),
    "mlla": Model("equimo==1.1.0", "MLLA, linear attention", "Equinox", mlla, EQUIMO),
    "fourier": Model("pdequinox==0.1.2", "Fourier neural operator", "Equinox", fourier),
    "gmlp": Model("mlp-gpt-jax==0.0.20", "gMLP language model", "Haiku", gmlp, (EINOPS,)),
    "haiku-resnet": Model("dm-haiku==0.0.17", "ResNet", "Haiku", haiku_resnet),
    "graph-network": Model("jraph==0.0.6.dev0", "GraphNetwork of MLPs", "Haiku", graph_network),
    "compact-transformer": Model("k3im==0.1.1", "CCT, compact vision transformer", "Keras", compact_transformer),
    "llama": Model("penzai==0.2.5", "Llama, layers in a scan", "Penzai", llama, ("ordered-set==4.1.0",)),
}
