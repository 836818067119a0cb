"""Chooses what depends on the platform: the dtype of the computation and the attention kernel."""

from __future__ import annotations

import logging
import platform
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jlora.errors import ContextLengthError, JloraError
from jlora.models.attention.attention import FUSED, record_obstacles
from jlora.pretrained.load import abstract_base
from jlora.sharding.mesh import set_mesh
from train.config.run_config import AnyConfig, RunConfig

logger = logging.getLogger(__name__)

_CPU_INFO = Path("/proc/cpuinfo")
_BFLOAT16_UNITS = ("amx_bf16", "avx512_bf16")
_BACKENDS = {"cuda": "gpu", "tpu": "tpu"}
"""{platform of a kernel: JAX's name for its backend}."""


def settle_dtype(config: AnyConfig) -> AnyConfig:
    """Replaces `train.dtype: auto` in the config by the dtype that this machine multiplies fast.

    That is bfloat16 on GPUs, TPUs and CPUs with units for it (`bfloat16_units`), and float32 elsewhere. A config with
    another dtype is returned unchanged.

    Raises:
      JloraError: `train.attention` names a kernel of another platform (cudnn without a GPU, splash without a TPU).
    """
    backend = jax.default_backend()
    kernel = FUSED.get(config.train.attention)
    if kernel is not None and _BACKENDS[kernel.platform] != backend:
        raise JloraError(
            f"train.attention: expected a kernel for this machine's {backend}, found {config.train.attention}, which"
            f" runs on {'an NVIDIA GPU' if kernel.platform == 'cuda' else 'a TPU'}. auto takes the fastest that can."
        )
    if config.train.dtype != "auto":
        return config
    dtype = "bfloat16" if backend != "cpu" or bfloat16_units() else "float32"
    units = f" with {bfloat16_units() or 'no bfloat16 units'}" if backend == "cpu" else ""
    logger.info("train.dtype: auto is %s on this %s%s", dtype, backend, units)
    return with_dtype(config, dtype)


def with_dtype(config: AnyConfig, dtype: str) -> AnyConfig:
    """Returns the config with `train.dtype` set to `dtype`."""
    return config.model_copy(update={"train": config.train.model_copy(update={"dtype": dtype})})


def bfloat16_units() -> str:
    """Returns the name of this CPU's units for bfloat16 matrices, from /proc/cpuinfo; "" if it has none.

    The name is the CPU's flag: "amx_bf16", or else "avx512_bf16".
    """
    if platform.machine() not in ("x86_64", "AMD64") or not _CPU_INFO.exists():
        return ""
    flags = _CPU_INFO.read_text().partition("flags")[2].partition("\n")[0].split()
    return next((name for name in _BFLOAT16_UNITS if name in flags), "")


def attention_of(config: RunConfig, model: Any, names: list[str], mesh: Mesh | None) -> dict[str, str]:
    """Finds the kernel of the run's attention before any weights are loaded.

    Args:
      config: `train.attention`, `train.batch_size`, `train.dropout` and `data.max_length` are read.
      model: the linen module, without weights.
      names: of the arrays in its batches, all int32 (rows, tokens).
      mesh: of the run; None if there is none.

    Returns:
      {"kernel": the kernel that computes the attention, "reason": why it is not a faster one}. The reason is
      "train.attention" if that is not auto, else "the fastest", "there is no other for this platform" (on a CPU), or
      "cudnn: ..." with what cuDNN cannot do.

    Raises:
      ContextLengthError: the model has no positions for rows of `data.max_length` tokens.
      JloraError: `train.attention` names a kernel that cannot compute the model's attention.
    """
    base, rows = abstract_base(model), config.train.batch_size
    batch = dict.fromkeys(names, jax.ShapeDtypeStruct((rows, config.data.max_length), np.int32))
    key = jax.eval_shape(lambda: jax.random.key(0))
    rngs = {"dropout": key} if config.train.dropout else None
    with record_obstacles() as obstacles, set_mesh(mesh):
        try:
            jax.eval_shape(lambda base, batch, rngs: model.apply(base, batch, rngs=rngs), base, batch, rngs)
        except ContextLengthError as error:
            text = f"data.max_length={config.data.max_length}{str(error).removeprefix('batch')}"
            raise ContextLengthError(text) from error
    found = _kernel_and_reason(config.train.attention, obstacles)
    logger.info("attention: %s (%s)", *found)
    return dict(zip(("kernel", "reason"), found, strict=True))


def _kernel_and_reason(asked: str, obstacles: dict[str, str | None]) -> tuple[str, str]:
    if asked != "auto":
        return asked, "train.attention"
    fused = {_BACKENDS[kernel.platform]: name for name, kernel in FUSED.items()}.get(jax.default_backend())
    if fused is None:
        return "blockwise", "there is no other for this platform"
    reason = obstacles.get(fused)
    return ("blockwise", f"{fused}: {reason}") if reason else (fused, "the fastest")
