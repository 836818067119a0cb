"""The schema of `train.lm`: every key of a config, its type, default and meaning; and its help."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from train.config.command import PROCESSES, SWITCHES, Command, describe_flags
from train.config.key_problem import KeyProblem
from train.config.run_config import RunConfig
from train.config.sections import (
    BelowOne,
    Count,
    DataSource,
    ExportSection,
    LoraSection,
    NotNegative,
    Positive,
    Section,
    Text,
    TrainSection,
    Whole,
)

Method = Literal["lora", "full"]


class DataSection(DataSource):
    """Where the rows come from and how they become tokens."""

    train: Text | list[Text] = Field(
        description="rows to train on: a hub data set (owner/name or owner/name:split), a file (.txt .csv .tsv "
        ".json .jsonl .parquet), a list of files, or package:PACKAGE/FILE in an installed Python package; "
        "on the command line it drops the splits and source settings that were not given with it"
    )
    max_rows: Count | None = Field(default=None, description="use a seeded sample of this many rows of a split")
    format: Literal["text", "prompt_completion", "alpaca", "sharegpt", "messages"] | None = Field(
        default=None, description="how the rows are written; null: seen from the columns, and said"
    )
    text: Text = Field(default="text", description="column of the text")
    prompt: Text = Field(default="prompt", description="column of the prompt")
    completion: Text = Field(default="completion", description="column of its completion")
    messages: Text | None = Field(
        default=None, description="column of the chats; null: messages, or conversations (sharegpt)"
    )
    sample_by: Literal["document", "paragraph", "line"] = Field(
        default="document", description="what a document of a .txt file is: the file, a paragraph or a line"
    )
    chat_template: Text | None = Field(
        default=None, description="a Jinja file to write chats by, instead of the tokenizer's own template"
    )
    completion_only_loss: bool | None = Field(
        default=None,
        description="learn the completions or the assistant's turns alone; null: true for prompt_completion and "
        "alpaca, false for text and chats",
    )
    add_tokens: list[Text] = Field(
        default=[],
        description="texts to add to the tokenizer as tokens, whose rows are trained; texts that are tokens already "
        "are left as they are and logged",
    )
    max_length: Annotated[int, Field(ge=4)] = Field(default=512, description="tokens a row at most")
    too_long: Literal["split", "cut", "drop", "error"] | None = Field(
        default=None,
        description="what becomes of longer rows, counted and said; null: split for text, cut for the rest",
    )
    packing: bool = Field(
        default=False, description="put several documents into a row of data.max_length; none sees another"
    )

    @model_validator(mode="after")
    def _the_format_has_what_is_asked_of_it(self) -> Self:
        if self.format == "text" and self.completion_only_loss:
            raise KeyProblem("data.completion_only_loss", "expected false or null with data.format: text; found true")
        if self.chat_template is not None and self.format in ("text", "alpaca"):
            raise KeyProblem(
                "data.chat_template",
                f"expected null with data.format: {self.format}, which is no chat; found {self.chat_template!r}",
            )
        return self


class AdapterSection(LoraSection):
    """The adapter, in the words of PEFT's LoraConfig."""

    initializations: ClassVar[tuple[str, ...]] = ("loftq",)

    target_modules: Text | list[Text] | None = Field(
        default=None,
        description="modules to adapt: all-linear, a regular expression for the whole dotted name, or a list "
        "of last components of names; null: the attention of Llama, Mistral, GPT-2, GPT-Neo, Bloom and Falcon, "
        "all-linear for the rest",
    )
    modules_to_save: list[Text] | None = Field(
        default=None, description="modules trained whole, such as lm_head; null: none"
    )
    init_lora_weights: bool | Text = Field(
        default=True,
        description="true: A Kaiming uniform, B zero; false: B random too; gaussian; orthogonal; out of the base's "
        "weights: pissa, pissa_niter_N (N steps, faster), olora; adapter/ has rank 2 r then; or loftq, what "
        "quantize took from the weights",
    )


class Optimization(TrainSection):
    """Optimization, evaluation, checkpoints; the lowest loss is best."""

    batch_size: Count = Field(default=8, description="rows a batch")
    eval_batch_size: Count = Field(default=8, description="rows a batch in evaluation")
    learning_rate: Positive | dict[Method, Positive] | None = Field(
        default=None, description="peak learning rate, or one for each method; null: lora 2e-4, full 2e-5"
    )
    schedule: Literal["linear", "cosine", "constant"] = Field(default="cosine", description="decay after the warmup")
    warmup_ratio: BelowOne = Field(default=0.03, description="share of the steps that warm up")
    weight_decay: NotNegative = Field(default=0.0, description="decoupled decay of matrices, not of biases and norms")
    early_stopping_patience: Count | None = Field(
        default=None, description="stop after this many evaluations without a lower loss; null: never"
    )


class SamplesSection(Section):
    """Completions of validation prompts, by base and tuned model."""

    count: Whole = Field(default=0, description="prompts to complete when the run is done, into samples.jsonl; 0: none")
    prompt_tokens: Count = Field(default=50, description="tokens of a plain text that are its prompt")
    max_length: Count = Field(
        default=100, description="tokens of prompt and completion together; longer prompts are left out, and said"
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.95, description="draw from the likeliest tokens that have this share together; 1: from all"
    )
    temperature: NotNegative = Field(default=0.7, description="of the draw; 0: always the likeliest token")
    show: Whole = Field(default=3, description="completions to print")

    @model_validator(mode="after")
    def _prompts_leave_room(self) -> Self:
        if self.prompt_tokens >= self.max_length:
            raise KeyProblem(
                "samples.max_length",
                f"expected more than samples.prompt_tokens={self.prompt_tokens}, found {self.max_length}",
            )
        return self


class Export(ExportSection):
    """What is written in addition to the adapter."""

    gguf_lora: bool = Field(default=False, description="write the adapter as llama.cpp loads it, too")


class LMConfig(RunConfig):
    """The resolved configuration of a run of `jlora lm`, as its run folder records it.

    Required are model, output_dir and data: LMConfig(model="org/model", output_dir="out",
    data=DataSection(train="t.txt")). Then `train.dtype` and others are still "auto", which
    `train.cli.resolve.resolve` replaces for this machine.
    """

    learning_rates: ClassVar[dict[str, float]] = {"lora": 2e-4, "full": 2e-5}

    model: Text = Field(
        description="causal language model to start from: a hub name, a folder in Hugging Face's format, a .gguf "
        "file, or package:PACKAGE/PATH in an installed Python package"
    )
    method: Method = Field(default="lora", description="lora: an adapter; full: every weight")
    quantize: Literal["int8", "nf4"] | None = Field(
        default=None, description="store the frozen base in 8 or 4 bits (QLoRA); null: in its own type"
    )
    data: DataSection
    lora: AdapterSection = AdapterSection()
    train: Optimization = Optimization()
    samples: SamplesSection = SamplesSection()
    export: Export = Export()

    @model_validator(mode="after")
    def _the_base_can_be_quantized(self) -> Self:
        if self.quantize is not None and self.method != "lora":
            raise KeyProblem("quantize", f"expected null with method: {self.method}, found {self.quantize}")
        if self.quantize is None and self.lora.init_lora_weights == "loftq":
            raise KeyProblem("lora.init_lora_weights", "loftq needs quantize: nf4 or int8, found null")
        if self.quantize is not None and self.lora.is_residual:
            raise KeyProblem(
                "lora.init_lora_weights",
                "expected loftq or one that leaves the base alone with quantize: "
                f"{self.quantize}, found {self.lora.init_lora_weights}",
            )
        return self

    @model_validator(mode="after")
    def _llama_cpp_takes_the_adapter(self) -> Self:
        if not self.export.gguf_lora:
            return self
        if self.method != "lora":
            raise KeyProblem("export.gguf_lora", f"expected false with method: {self.method}, which trains no adapter")
        lora = self.lora
        others = {
            "use_dora": lora.use_dora,
            "bias": lora.bias != "none",
            "modules_to_save": lora.modules_to_save,
            "trainable_token_indices": lora.trainable_token_indices,
        }
        found = [f"lora.{name}" for name, given in others.items() if given]
        if found := found + ["data.add_tokens"] * bool(self.data.add_tokens):
            raise KeyProblem("export.gguf_lora", f"llama.cpp's file holds A and B alone, found {', '.join(found)}")
        return self


COMMAND = Command(
    program="jlora lm",
    purpose="Fine-tunes a causal language model as one YAML file says.",
    schema=LMConfig,
    config="configs/smollm2.yaml",
    examples=(
        "",
        "data.train=my_chats.jsonl output_dir=runs/mine",
        "model=meta-llama/Llama-3.2-1B quantize=nf4 lora.r=16",
        "--preview",
    ),
    flags=describe_flags(*SWITCHES, "preview", "mesh", "chip", *PROCESSES),
)
