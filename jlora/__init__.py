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
from jlora.init import init
from jlora.merge import merge, unmerge
from jlora.models import default_targets
from jlora.peft.fitted import fitted_config, fold_scale
from jlora.peft.folder import load_adapter, save_adapter
from jlora.residual import init_lora_ga, init_residual, subtract_initial

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "Entry",
    "Full",
    "JloraError",
    "LoraConfig",
    "LowRank",
    "Rows",
    "adapt",
    "add_weighted_adapter",
    "combine",
    "count_parameters",
    "default_targets",
    "extract",
    "find_materialized",
    "fitted_config",
    "fold_scale",
    "init",
    "init_eva",
    "init_lora_ga",
    "init_residual",
    "labels",
    "load_adapter",
    "load_base",
    "merge",
    "reduce_rank",
    "save_adapter",
    "save_base",
    "scale",
    "singular_values",
    "split",
    "stack",
    "subtract_initial",
    "unmerge",
    "unstack",
]
