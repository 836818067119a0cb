"""jlora: LoRA as a JAX transformation."""

from jlora.adapt import adapt, find_materialized
from jlora.adapter import Adapter, Entry, Full, LowRank, Rows, combine, count_parameters, labels, split
from jlora.algebra.extract import extract
from jlora.algebra.reduce import reduce_rank, singular_values
from jlora.algebra.stack import stack, unstack
from jlora.algebra.weighted import add_weighted_adapter, scale
from jlora.base import load_base, save_base
from jlora.config import LoraConfig
from jlora.errors import JloraError
from jlora.eva import init_eva
from jlora.generation import generate, stream
from jlora.gguf_lora import save_gguf_lora
from jlora.init import init
from jlora.loftq import init_loftq
from jlora.merge import merge, unmerge
from jlora.mesh import make_mesh
from jlora.models import default_targets
from jlora.peft.fitted import fitted_config, fold_scale
from jlora.peft.folder import load_adapter, save_adapter
from jlora.quantize.leaf import Quantized, quantize_leaf
from jlora.quantize.tree import dequantize, quantize
from jlora.residual import init_lora_ga, init_residual, subtract_initial
from jlora.sharding import adapter_shardings, base_shardings

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "Entry",
    "Full",
    "JloraError",
    "LoraConfig",
    "LowRank",
    "Quantized",
    "Rows",
    "adapt",
    "adapter_shardings",
    "add_weighted_adapter",
    "base_shardings",
    "combine",
    "count_parameters",
    "default_targets",
    "dequantize",
    "extract",
    "find_materialized",
    "fitted_config",
    "fold_scale",
    "generate",
    "init",
    "init_eva",
    "init_loftq",
    "init_lora_ga",
    "init_residual",
    "labels",
    "load_adapter",
    "load_base",
    "make_mesh",
    "merge",
    "quantize",
    "quantize_leaf",
    "reduce_rank",
    "save_adapter",
    "save_base",
    "save_gguf_lora",
    "scale",
    "singular_values",
    "split",
    "stack",
    "stream",
    "subtract_initial",
    "unmerge",
    "unstack",
]
