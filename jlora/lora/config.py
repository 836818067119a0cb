"""LoraConfig: PEFT's field names with PEFT's meaning. `jlora.peft.config_file` reads and writes it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from jlora.errors import JloraError
from jlora.lora.name_patterns import find_mistake
from jlora.lora.named_initializations import INITIALIZATIONS, find_initialization
from jlora.tree.output_heads import TASK_HEADS

_STARTS = f"true, false, {', '.join(one.name for one in INITIALIZATIONS)} or a function"


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Describes how to adapt a model, with the fields of PEFT's `LoraConfig`.

    Attributes:
      r: rank of the update B A.
      lora_alpha: the update is scaled by lora_alpha / r (by lora_alpha / sqrt(r) with `use_rslora`).
      lora_dropout: probability with which the input of A is dropped while training.
      target_modules: "all-linear"; a string, which is a regular expression that must match a module's whole
        dotted name; or a list of names, each the whole name or its last components.
      exclude_modules: the same, for modules to leave out.
      modules_to_save: modules trained in full in addition to the adapter, by the end of their name. None means the
        head of the task_type: "classifier" and "score" for "SEQ_CLS" and "TOKEN_CLS", "qa_outputs" for
        "QUESTION_ANS"; an empty list freezes the head too.
      rank_pattern, alpha_pattern: {regular expression on the end of the name: r or lora_alpha}.
      layers_to_transform: numbers of the layers to adapt (with a list of target_modules); None means all.
      layers_pattern: name of the list of layers (`h`, `layers`) as one or more regular expressions, needed if the first
        number in a module's name is not that of the layer. Requires `layers_to_transform`.
      use_rslora: scale by lora_alpha / sqrt(r) (Kalajdzievski 2023).
      use_dora: train a magnitude for each output in addition to the direction (DoRA, Liu et al. 2024).
      init_lora_weights: True is PEFT's default (A Kaiming uniform, B zero); "gaussian" draws A with standard
        deviation 1 / r; "orthogonal" draws both so that B A is zero; False draws B too, so that the update does not
        start at zero; a function (key, shape, dtype) -> array, such as those of `jax.nn.initializers`, draws A as a
        matrix (in, r). "pissa", "pissa_niter_4", "olora", "loftq", "lora_ga" and "eva" depend on the weights, their
        gradients or their inputs: use `jlora.init_residual`, `init_loftq`, `init_lora_ga` and `init_eva` for these.
      bias: which biases are trained: "none", "all", or those of adapted modules ("lora_only").
      trainable_token_indices: trained rows of embeddings and of output heads that are not tied: {end of the module's
        name: ids}; a list of ids is for the token embedding.
      ensure_weight_tying: if an embedding is also the output head, whether the adapter applies to both uses. If false,
        it applies only to the lookup.
      task_type: PEFT's, "SEQ_CLS" for sequence classification, or None.

    Raises:
      JloraError: a field has an invalid value; the message names the field.
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
            mistake = find_mistake(pattern)
            _require(not mistake, key, "a regular expression", pattern, f": {mistake}; correct it there")
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
        """Ends of the names of the modules that are trained in full, including the defaults of the task type."""
        if self.modules_to_save is None:
            return TASK_HEADS.get(self.task_type or "", ())
        return tuple(self.modules_to_save)


def _entries(field: str, patterns: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{field}.{pattern}": value for pattern, value in patterns.items()}


def _require(holds: bool, key: str, expected: str, found: Any, hint: str = "") -> None:
    if not holds:
        raise JloraError(f"LoraConfig.{key}: expected {expected}, found {found!r}{hint}")
