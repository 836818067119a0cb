"""jlora: LoRA as a JAX transformation."""

from jlora.adapt import adapt
from jlora.adapter import Adapter, Full, LowRank, combine, count_parameters, labels, split
from jlora.base import load_base, save_base
from jlora.config import LoraConfig
from jlora.errors import JloraError
from jlora.init import init
from jlora.merge import merge, unmerge
from jlora.peft import load_adapter, save_adapter

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "Full",
    "JloraError",
    "LoraConfig",
    "LowRank",
    "adapt",
    "combine",
    "count_parameters",
    "init",
    "labels",
    "load_adapter",
    "load_base",
    "merge",
    "save_adapter",
    "save_base",
    "split",
    "unmerge",
]
