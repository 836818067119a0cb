"""Models of others in Flax, linen and NNX, for `benchmarks.other_models`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.other_models.one_model import Built, Model

EINOPS = "einops==0.8.2"
GRIFFIN = (EINOPS, "typeguard==2.13.3")
NANODL = (EINOPS, "sentencepiece==0.2.3")


def normal(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(2), shape)


def ids(*shape: int, below: int = 32) -> jax.Array:
    return jax.random.randint(jax.random.key(3), shape, 0, below)


def linen(module: Any, *args: Any, **options: Any) -> Built:
    """The module's parameters are the weights; its other variables (statistics, positions) stay as they are."""
    variables = jax.jit(lambda *args: module.init(*args, **options))(jax.random.key(0), *args)
    others = {name: tree for name, tree in variables.items() if name != "params"}

    def call(weights: Any, *args: Any) -> Any:
        return module.apply({"params": weights, **others}, *args, **options)

    return Built(call, variables["params"], args)


def of_nnx(module: Any, *args: Any, **options: Any) -> Built:
    """The module's parameters are the weights."""
    from flax import nnx

    graph, weights, others = nnx.split(module, nnx.Param, ...)
    return Built(lambda weights, *args: nnx.merge(graph, weights, others)(*args, **options), weights, args)


def t5() -> Built:
    from nanodl import T5

    model = T5(
        num_layers=2, hidden_dim=32, num_heads=4, feedforward_dim=64, dropout=0.0, vocab_size=48, embed_dim=32,
        max_length=16, start_token=0, end_token=1,
    )  # fmt: skip
    return linen(model, ids(2, 16), ids(2, 16))


def diffusion() -> Built:
    from nanodl import UNet

    model = UNet((16, 16), widths=[16, 32], block_depth=1, embed_dims=16, embed_min_freq=1.0, embed_max_freq=100.0)
    return linen(model, normal(2, 16, 16, 3), normal(2, 1, 1, 1))


def griffin() -> Built:
    from recurrentgemma import common
    from recurrentgemma.jax import Griffin

    kinds = (common.TemporalBlockType.RECURRENT, common.TemporalBlockType.ATTENTION)
    config = common.GriffinConfig(
        vocab_size=48, width=32, mlp_expanded_width=64, num_heads=2, block_types=kinds, lru_width=32,
        embeddings_scale_by_sqrt_dim=True, attention_window_size=8, logits_soft_cap=30.0,
        scan_type=common.ScanType.LINEAR_NATIVE,
    )  # fmt: skip
    positions = jnp.broadcast_to(jnp.arange(16), (2, 16))
    return linen(Griffin(config), ids(2, 16), positions, return_cache=False)


def experts() -> Built:
    from nano_moe.config import NanoMoEConfig
    from nano_moe.model import NanoMoE

    config = NanoMoEConfig(vocab_size=48, n_layers=2, d_model=32, d_ff=64, block_size=16)
    return linen(NanoMoE(config), ids(2, 16))


def gat() -> Built:
    from flax import nnx
    from jraphx.nn.models import GAT

    model = GAT(in_features=8, hidden_features=16, num_layers=2, out_features=4, heads=2, rngs=nnx.Rngs(0))
    return of_nnx(model, normal(10, 8), ids(2, 24, below=10))


def split_attention() -> Built:
    from jax_resnet import ResNeSt50Fast

    model = ResNeSt50Fast(stage_sizes=[1, 1], hidden_sizes=(16, 32), n_classes=10)
    return linen(model, normal(2, 32, 32, 3))


def mamba2() -> Built:
    from flax import nnx
    from mamba2_jax.modeling import Mamba2Config, Mamba2ForCausalLM

    config = Mamba2Config(vocab_size=48, hidden_size=32, state_size=8, head_dim=8, chunk_size=8, num_hidden_layers=2)
    model = of_nnx(Mamba2ForCausalLM(config, rngs=nnx.Rngs(0)), ids(2, 16))
    return model._replace(fn=lambda weights, tokens: model.fn(weights, tokens)["logits"])


MODELS = {
    "t5": Model("nanodl==0.0.0", "T5, encoder and decoder", "linen", t5, NANODL),
    "diffusion": Model("nanodl==0.0.0", "U-Net of a diffusion model", "linen", diffusion, NANODL),
    "griffin": Model("recurrentgemma==1.0.1", "Griffin, recurrence and local attention", "linen", griffin, GRIFFIN),
    "experts": Model("nano-moe-jax==0.1.0", "NanoMoE, mixture of experts", "linen", experts),
    "split-attention": Model("jax-resnet==0.0.4", "ResNeSt", "linen", split_attention),
    "mamba2": Model("mamba2-jax==1.1.2", "Mamba-2, tied head", "NNX", mamba2),
    "gat": Model("jraphx==0.1.0", "GAT, graph attention", "NNX", gat),
}
