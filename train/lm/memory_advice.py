"""Says how much memory a language model's run needs, and which settings lower it, if it does not fit."""

from __future__ import annotations

import contextlib

import jax
from jax.sharding import Mesh

from jlora.lora.adapted_model import Adapted
from train.lm.config import LMConfig
from train.lm.step_arguments import arguments
from train.loop.assemble import Training
from train.planning.memory import memory_table, step_memory
from train.planning.memory_advice import advice


def training_help(config: LMConfig, adapted: Adapted, training: Training, mesh: Mesh | None) -> str:
    """Returns the memory of a step, as far as it can be computed, and command line arguments that lower it.

    On a mesh the memory is replaced by the --dry-run command that prints it.

    Args:
      adapted: the model and its arrays, or ShapeDtypeStructs in their places.
      training: whose step is compiled for the longest batch.
      mesh: None means one device.
    """
    lines = []
    if mesh is None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # XLA may refuse to compile what cannot fit
            inputs = arguments(config, adapted, training.tx)
            table = memory_table(step_memory(training.step, inputs, adapted.model.config.vocab_size))
            lines.append(f"A training step takes:\n{table}")
    else:
        sizes = ",".join(f"{axis}={size}" for axis, size in mesh.shape.items())
        lines.append(f"What a step takes of each device: --dry-run --mesh {sizes}")
    return "\n".join([*lines, offers(config, mesh)])


def offers(config: LMConfig, mesh: Mesh | None) -> str:
    """Returns only the command line arguments that lower the memory, each in a line with what it saves.

    Among them are half of `train.batch_size`, `train.remat=true`, `quantize=nf4` (with `method: lora`, if the base is
    not in nf4 and not residual) and half of `data.max_length`; none that the config already has. `mesh` is None for one
    device.
    """
    may_quantize = config.method == "lora" and config.quantize != "nf4" and not config.lora.is_residual
    return advice(config, None if mesh is None else mesh.shape, may_quantize=may_quantize)
