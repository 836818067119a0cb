"""LoraConfig: PEFT's field names with PEFT's meaning. `jlora.peft.config_file` reads and writes it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from jlora.errors import JloraError
from jlora.lora.initializations import INITIALIZATIONS, find_initialization
from jlora.lora.name_patterns import is_expression
from jlora.tree.output_heads import TASK_HEADS

_STARTS = f"true, false, {', '.join(one.name for one in INITIALIZATIONS)} or a function"


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """How to adapt a model, in the words of PEFT's `LoraConfig`.

    Attributes:
      r: rank of the update B A.
      lora_alpha: the update is scaled by lora_alpha / r (by lora_alpha / sqrt(r) with `use_rslora`).
      lora_dropout: probability with which the input of A is dropped while training.
      target_modules: "all-linear"; a string, which is a regular expression that must match a module's whole
        dotted name; or a list of names, each the whole name or its last components.
      exclude_modules: the same, for modules to leave out.
      modules_to_save: modules trained whole beside the adapter, by the end of their name. None is the head of
        the task_type ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"); an empty list freezes that too.
      rank_pattern, alpha_pattern: {regular expression on the end of the name: r or lora_alpha}.
      layers_to_transform: numbers of the layers to adapt (with a list of target_modules); None is all.
      layers_pattern: name of the list of layers (`h`, `layers`), needed if the first number in a module's name is not
        that of the layer; one or more regular expressions. Needs `layers_to_transform`.
      use_rslora: scale by lora_alpha / sqrt(r) (Kalajdzievski 2023).
      use_dora: train a magnitude beside the direction (DoRA, Liu et al. 2024).
      init_lora_weights: True is PEFT's default (A Kaiming uniform, B zero); "gaussian" draws A with standard
        deviation 1 / r; "orthogonal" draws both so that B A is zero; False draws B too, so that the adapter starts
        away from the base; a function (key, shape, dtype) -> array, one of `jax.nn.initializers` say, draws A as a
        matrix (in, r). "pissa", "pissa_niter_4", "olora", "loftq", "lora_ga" and "eva" look at the weights, their
        gradients or their inputs: `jlora.init_residual`, `init_loftq`, `init_lora_ga` and `init_eva` are for these.
      bias: "none", "all" biases are trained, or those of adapted modules ("lora_only").
      trainable_token_indices: trained rows of embeddings and of output heads that are not tied: {end of the module's
        name: ids}; a list of ids is for the token embedding.
      ensure_weight_tying: if an embedding is also the output head, whether both uses see its adapter; false: only the
        lookup does.
      task_type: PEFT's, "SEQ_CLS" for sequence classification, or None.

    Raises:
      JloraError: an impossible value, naming the field.
    """

    r: int = 8
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    target_modules: str | Sequence[str] | None = None
    exclude_modules: str | Sequence[str] | None = None
    modules_to_save: Sequence[str] | None = None
    rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = dataclasses.field(default_factory=dict)
    layers_to_transform: int | Sequence[int] | None = None
    layers_pattern: str | Sequence[str] | None = None
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | str | Callable[..., Any] = True
    bias: Literal["none", "all", "lora_only"] = "none"
    trainable_token_indices: Sequence[int] | Mapping[str, Sequence[int]] | None = None
    ensure_weight_tying: bool = False
    task_type: str | None = None

    def __post_init__(self) -> None:
        for key, rank in {"r": self.r, **_entries("rank_pattern", self.rank_pattern)}.items():
            _require(isinstance(rank, int) and rank >= 1, key, "an integer of at least 1", rank)
        for key, alpha in {"lora_alpha": self.lora_alpha, **_entries("alpha_pattern", self.alpha_pattern)}.items():
            _require(isinstance(alpha, (int, float)) and math.isfinite(alpha), key, "a finite number", alpha)
        probability = isinstance(self.lora_dropout, (int, float)) and 0 <= self.lora_dropout < 1
        _require(probability, "lora_dropout", "a number in [0, 1)", self.lora_dropout)
        start = self.init_lora_weights
        known = isinstance(start, bool) or callable(start) or find_initialization(start) is not None
        _require(known, "init_lora_weights", _STARTS, start)
        _require(self.bias in ("none", "all", "lora_only"), "bias", "none, all or lora_only", self.bias)
        tasks = f"one of {', '.join(TASK_HEADS)} or null"
        _require(self.task_type is None or self.task_type in TASK_HEADS, "task_type", tasks, self.task_type)
        _require(not isinstance(self.modules_to_save, str), "modules_to_save", "a list of names", self.modules_to_save)
        for key, pattern in self._regular_expressions():
            _require(is_expression(pattern), key, "a regular expression", pattern)
        layered = self.layers_to_transform is None or not isinstance(self.target_modules, str)
        expected = "null where target_modules is a string (PEFT's rule): a list of names, or the layers in the regex"
        _require(layered, "layers_to_transform", expected, self.layers_to_transform)
        numbered = not self.layers_pattern or self.layers_to_transform is not None
        _require(numbered, "layers_pattern", "null where layers_to_transform is (PEFT's rule)", self.layers_pattern)

    def _regular_expressions(self) -> Iterator[tuple[str, str]]:
        for field in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, field), str):
                yield field, getattr(self, field)
        for field in ("rank_pattern", "alpha_pattern"):
            yield from ((field, pattern) for pattern in getattr(self, field))
        yield from (("layers_pattern", pattern) for pattern in self.layer_lists)

    @property
    def layer_lists(self) -> tuple[str, ...]:
        """The expressions of `layers_pattern`."""
        found = self.layers_pattern or ()
        return (found,) if isinstance(found, str) else tuple(found)

    @property
    def trained_whole(self) -> tuple[str, ...]:
        """Ends of the names of the modules that are trained whole, defaults of the task included."""
        if self.modules_to_save is None:
            return TASK_HEADS.get(self.task_type or "", ())
        return tuple(self.modules_to_save)


def _entries(field: str, patterns: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{field}.{pattern}": value for pattern, value in patterns.items()}


def _require(holds: bool, key: str, expected: str, found: Any) -> None:
    if not holds:
        raise JloraError(f"LoraConfig.{key}: expected {expected}, found {found!r}")
