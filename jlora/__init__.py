"""jlora: LoRA as a JAX transformation.

`import jlora` imports none of the submodules: each public name is imported from its file when it is first used. So a
command can read its command line, and a program its configuration, before JAX is imported.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jlora.algebra.extract import extract
    from jlora.algebra.merge import merge, unmerge
    from jlora.algebra.reduce_rank import reduce_rank, singular_values
    from jlora.algebra.stack import stack, unstack
    from jlora.algebra.weighted_sum import add_weighted_adapter, scale
    from jlora.bank.adapt_many import adapt_many
    from jlora.bank.bank import Bank, make_bank
    from jlora.bank.selection import Selection, replace_selected, select
    from jlora.bank.slots import drop, put, take
    from jlora.bank.training import OptimizerStates, forward_backward, init_optimizers, optim_step
    from jlora.errors import (
        AdapterMismatchError,
        ContextLengthError,
        FileError,
        HubError,
        JloraError,
        NoRuleError,
        RunFolderError,
        TargetNotFoundError,
        UnsupportedModelError,
    )
    from jlora.generation.generate import generate, stream
    from jlora.gguf.adapter import save_gguf_lora
    from jlora.initialization.eva import init_eva
    from jlora.initialization.init_adapter import init
    from jlora.initialization.loftq import init_loftq
    from jlora.initialization.residual import init_lora_ga, init_residual, subtract_initial
    from jlora.lora.config import LoraConfig
    from jlora.lora.entries import Adapter, Entry, Full, LowRank, Rows, combine, count_parameters, labels, split
    from jlora.lora.shardings import adapter_shardings
    from jlora.models.registry import default_targets
    from jlora.peft.fitted_config import fitted_config, fold_scale
    from jlora.peft.folder import load_adapter, save_adapter
    from jlora.pretrained.load import load_base, save_base
    from jlora.quantization.encode import quantize_leaf
    from jlora.quantization.quantize_base import dequantize, quantize
    from jlora.sharding.base_shardings import base_shardings
    from jlora.sharding.mesh import make_mesh
    from jlora.transform.adapt import adapt, find_materialized
    from jlora.tree.quantized import Quantized

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "AdapterMismatchError",
    "Bank",
    "ContextLengthError",
    "Entry",
    "FileError",
    "Full",
    "HubError",
    "JloraError",
    "LoraConfig",
    "LowRank",
    "NoRuleError",
    "OptimizerStates",
    "Quantized",
    "Rows",
    "RunFolderError",
    "Selection",
    "TargetNotFoundError",
    "UnsupportedModelError",
    "adapt",
    "adapt_many",
    "adapter_shardings",
    "add_weighted_adapter",
    "base_shardings",
    "combine",
    "count_parameters",
    "default_targets",
    "dequantize",
    "drop",
    "extract",
    "find_materialized",
    "fitted_config",
    "fold_scale",
    "forward_backward",
    "generate",
    "init",
    "init_eva",
    "init_loftq",
    "init_lora_ga",
    "init_optimizers",
    "init_residual",
    "labels",
    "load_adapter",
    "load_base",
    "make_bank",
    "make_mesh",
    "merge",
    "optim_step",
    "put",
    "quantize",
    "quantize_leaf",
    "reduce_rank",
    "replace_selected",
    "save_adapter",
    "save_base",
    "save_gguf_lora",
    "scale",
    "select",
    "singular_values",
    "split",
    "stack",
    "stream",
    "subtract_initial",
    "take",
    "unmerge",
    "unstack",
]

_FILES: dict[str, tuple[str, ...]] = {
    "algebra.extract": ("extract",),
    "algebra.merge": ("merge", "unmerge"),
    "algebra.reduce_rank": ("reduce_rank", "singular_values"),
    "algebra.stack": ("stack", "unstack"),
    "algebra.weighted_sum": ("add_weighted_adapter", "scale"),
    "bank.adapt_many": ("adapt_many",),
    "bank.bank": ("Bank", "make_bank"),
    "bank.selection": ("Selection", "replace_selected", "select"),
    "bank.slots": ("drop", "put", "take"),
    "bank.training": ("OptimizerStates", "forward_backward", "init_optimizers", "optim_step"),
    "errors": (
        "AdapterMismatchError",
        "ContextLengthError",
        "FileError",
        "HubError",
        "JloraError",
        "NoRuleError",
        "RunFolderError",
        "TargetNotFoundError",
        "UnsupportedModelError",
    ),
    "generation.generate": ("generate", "stream"),
    "gguf.adapter": ("save_gguf_lora",),
    "initialization.eva": ("init_eva",),
    "initialization.init_adapter": ("init",),
    "initialization.loftq": ("init_loftq",),
    "initialization.residual": ("init_lora_ga", "init_residual", "subtract_initial"),
    "lora.config": ("LoraConfig",),
    "lora.entries": ("Adapter", "Entry", "Full", "LowRank", "Rows", "combine", "count_parameters", "labels", "split"),
    "lora.shardings": ("adapter_shardings",),
    "models.registry": ("default_targets",),
    "peft.fitted_config": ("fitted_config", "fold_scale"),
    "peft.folder": ("load_adapter", "save_adapter"),
    "pretrained.load": ("load_base", "save_base"),
    "quantization.encode": ("quantize_leaf",),
    "quantization.quantize_base": ("dequantize", "quantize"),
    "sharding.base_shardings": ("base_shardings",),
    "sharding.mesh": ("make_mesh",),
    "transform.adapt": ("adapt", "find_materialized"),
    "tree.quantized": ("Quantized",),
}
"""{file: the public names in it}: the same names as in the imports above, which only type checkers read."""

_FILE_OF = {name: file for file, names in _FILES.items() for name in names}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if not TYPE_CHECKING:  # a type checker would conclude from `__getattr__` that every name exists

    def __getattr__(name: str) -> Any:
        """Imports a public name, or a submodule such as `jlora.models`, when it is first used."""
        if name in _FILE_OF:
            globals()[name] = found = getattr(importlib.import_module(f"{__name__}.{_FILE_OF[name]}"), name)
            return found
        if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}") is not None:
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
