"""Plans a training step for chips that this machine need not have: compiles it for their mesh on the CPU.

It needs no weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jlora
from jlora.lora.adapted_model import Adapted
from jlora.lora.shardings import adapter_shardings
from jlora.pretrained.source import PretrainedSource
from jlora.sharding.base_shardings import base_shardings
from jlora.sharding.mesh import BATCH
from jlora.sharding.rules import leaf_names
from jlora.tree.leaf_paths import leaves_by_path
from train.config.run_config import rows_of_a_step
from train.config.sections import MeshSection
from train.devices.placement import mesh_of
from train.lm.config import LMConfig
from train.lm.model import abstract_model
from train.lm.objective import causal_loss
from train.lm.step_arguments import arguments
from train.loop.assemble import training_of
from train.loop.step import StepArguments
from train.planning.chip_plan import ChipPlan
from train.planning.collectives import collectives
from train.planning.flops import list_products
from train.planning.memory import measure_compiled
from train.run.state import State

_COMPILER_OPTIONS: dict[str, str | bool] = {
    "xla_backend_optimization_level": "0",  # the program will not run
    # These passes copy weights to float32 outside of loops, because a CPU has no 16-bit products.
    "xla_disable_hlo_passes": "while-loop-invariant-code-motion,dot-library-rewriter",
}


def plan_step(config: LMConfig, sizes: dict[str, int], added: Sequence[int] = ()) -> ChipPlan:
    """Plans the step of a config on a mesh of these sizes; JAX must have that many devices, see `force_devices`.

    If the config says bfloat16, the step is compiled in float16, which has the same size: the CPU's compiler would
    convert bfloat16 to float32.

    Args:
      sizes: {"data": n, "fsdp": n, "tensor": n}, which is the result's `mesh`.
      added: the ids of the tokens that were added to the tokenizer.

    Raises:
      JloraError: there is no such model, or it is not a causal language model; or the mesh cannot split a batch evenly.
    """
    step, mesh, inputs = abstract_step(config, sizes, added)
    compiled = _lower(step, mesh, inputs).compile(_COMPILER_OPTIONS)
    text = compiled.as_text()
    return ChipPlan(
        mesh=sizes,
        tokens=rows_of_a_step(config) * config.data.max_length,
        width=jnp.dtype(config.train.dtype).itemsize,
        memory=measure_compiled(compiled, inputs),
        products=list_products(text),
        collectives=collectives(text, sizes),
        undivided=_find_undivided(inputs.base, sizes),
    )


def _find_undivided(base: Any, sizes: dict[str, int]) -> dict[str, list[str]]:
    """Returns {axis: last names of modules with a matrix that the axis should split but does not divide evenly}."""
    found: dict[str, list[str]] = {}
    for path, leaf in leaves_by_path(base).items():
        for named, size in zip(leaf_names(path, leaf.ndim), leaf.shape, strict=True):
            axes = [axis for axis in (named if isinstance(named, tuple) else (named,)) if axis is not None]
            if leaf.ndim > 1 and size % math.prod(sizes[axis] for axis in axes):
                for axis in axes:
                    found.setdefault(axis, []).append(path.split("/")[-2])
    return {axis: list(dict.fromkeys(names)) for axis, names in found.items() if sizes[axis] > 1}


def abstract_step(
    config: LMConfig, sizes: dict[str, int], added: Sequence[int] = ()
) -> tuple[Any, Mesh | None, StepArguments]:
    """Returns (the jitted step, its mesh, its arguments as ShapeDtypeStructs with a run's shardings), not compiled.

    Args:
      sizes: {"data": n, "fsdp": n, "tensor": n}. If their product is 1, the mesh is None and there are no shardings.
      added: the ids of the tokens that were added to the tokenizer.
    """
    planned = _for_a_cpus_compiler(config, sizes)
    mesh = mesh_of(planned, jax.devices()[: math.prod(sizes.values())])
    adapted = abstract_model(planned, PretrainedSource(config.model), added)
    loss = causal_loss(adapted.model, model_dropout=planned.train.dropout)
    training = training_of(planned, loss, config.train.max_steps or 1)
    inputs = arguments(planned, adapted, training.tx)
    if mesh is not None:
        inputs = _on_mesh(planned, mesh, adapted, training.tx, inputs)
    return training.step, mesh, inputs


def _for_a_cpus_compiler(config: LMConfig, sizes: dict[str, int]) -> LMConfig:
    """Changes the config to this mesh, to a dtype that the CPU's compiler keeps in 16 bits, and to its attention."""
    mesh = MeshSection(**sizes, adapters=config.mesh.adapters)
    dtype = {"bfloat16": "float16"}.get(config.train.dtype, config.train.dtype)
    train = config.train.model_copy(update={"dtype": dtype, "attention": "auto"})
    return config.model_copy(update={"mesh": mesh, "train": train})


def _lower(step: Any, mesh: Mesh | None, inputs: StepArguments) -> Any:
    """Lowers the step as `placement.train_step_on` does: the state keeps its shardings, values are replicated."""
    if mesh is None:
        return step.lower(*inputs)
    kept = jax.tree.map(lambda leaf: leaf.sharding, inputs.state)
    with jax.set_mesh(mesh):
        shardings = (kept, NamedSharding(mesh, PartitionSpec()))
        return jax.jit(step.__wrapped__, donate_argnums=0, out_shardings=shardings).lower(*inputs)


def _on_mesh(
    config: LMConfig, mesh: Mesh, adapted: Adapted, tx: optax.GradientTransformation, inputs: StepArguments
) -> StepArguments:
    """Adds to the step's arguments the shardings that a run gives them."""
    state, base = inputs.state, inputs.base
    mode = config.mesh.adapters if config.method == "lora" else "inherit"
    adapter = _add_shardings(adapted.adapter, adapter_shardings(adapted.adapter, mesh, mode))
    trainable, frozen = jlora.split(adapter)
    whole = NamedSharding(mesh, PartitionSpec())
    moments = optax.tree.map_params(
        tx,
        lambda leaf, like: _struct(leaf, like.sharding),
        state.optimizer,
        trainable,
        transform_non_params=lambda leaf: _struct(leaf, whole),
    )
    rows = jax.tree.map(lambda leaf: _struct(leaf, NamedSharding(mesh, BATCH)), inputs.batch)
    placed_base = _add_shardings(base, base_shardings(base, mesh))
    state = State(trainable, moments, _struct(state.step, whole))
    return StepArguments(state, frozen, placed_base, rows, _struct(inputs.key, whole))


def _add_shardings(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(_struct, tree, shardings)


def _struct(leaf: Any, sharding: NamedSharding) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
