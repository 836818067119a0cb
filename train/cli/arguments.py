"""The command lines of all commands but those that train, parsed without importing JAX."""

from __future__ import annotations

import argparse
import math
import reprlib
import sys
from collections.abc import Callable
from pathlib import Path

from train.config.shipped import shipped_configs

SHELLS = ("bash", "zsh", "fish")
"""For which `jlora completion` writes a script."""
_RANK = 8
_MOST_DIGITS = 19
_EPILOG = """\
Without --prompt, text is read from stdin; on a terminal a chat begins. An empty line or Ctrl-D ends it.

  jlora generate --model runs/smollm2 --chat --prompt "What is the capital of France?"
  jlora generate --model HuggingFaceTB/SmolLM2-135M-Instruct --adapter runs/smollm2/adapter
  jlora generate --model model.gguf --greedy --stop "." --prompt "Once upon a time"
"""


def make_predict_parser() -> argparse.ArgumentParser:
    """Makes the parser of `jlora predict`.

    Its namespace has model, input and output (a Path), which are required; base, text, text_pair, label, encoding,
    separator and max_length, None by default; batch_size, 64; overwrite and evaluate, False. A flag is an attribute's
    name with dashes: `--max-length 64`.
    """
    parser = argparse.ArgumentParser(
        prog="jlora predict",
        description="Labels new text: jlora predict --model RUN_OR_FOLDER --input texts.csv --output labelled.csv",
    )
    parser.add_argument("--model", required=True, help="run folder, merged/ or adapter/ folder (PEFT's too)")
    parser.add_argument("--base", help="base model of an adapter; default: the one that the adapter names")
    parser.add_argument("--input", required=True, help="texts: .csv .tsv .json .jsonl .parquet")
    parser.add_argument(
        "--output", required=True, type=Path, help="CSV to write: the input's columns, predicted, probabilities"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace --output where it exists")
    parser.add_argument("--evaluate", action="store_true", help="also report metrics; needs the label column")
    for name, meaning in (
        ("text", "column of the text"),
        ("text-pair", "column of the second text"),
        ("label", "column of the label, for --evaluate"),
    ):
        key = name.replace("-", "_")
        parser.add_argument(f"--{name}", help=f"{meaning}; default: as the run had it, or data.{key}'s default")
    parser.add_argument("--encoding", help="encoding of the input file (utf-8)")
    parser.add_argument("--separator", choices=(",", ";", "|"), help="what separates the fields of a .csv input")
    parser.add_argument("--max-length", type=whole_number(4), help="tokens a row; default: as the run had it, or 128")
    parser.add_argument("--batch-size", type=whole_number(1), default=64, help="rows a batch (64)")
    return parser


def make_generate_parser() -> argparse.ArgumentParser:
    """Makes the parser of `jlora generate`.

    Its namespace has model, which is required; adapter, base, prompt, system, dtype and quantize, None by default;
    max_new_tokens, 256; temperature, 0.7 (more than 0); top_p, 0.95 (more than 0, at most 1); top_k, 0; seed, 0; stop,
    the list of all --stop; no_adapter, chat and greedy, False. A flag is an attribute's name with dashes: `--top-p
    0.9`.
    """
    parser = argparse.ArgumentParser(
        prog="jlora generate",
        description="Completes a prompt or holds a chat: jlora generate --model RUN_OR_MODEL [--prompt TEXT] [--chat]",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="run folder, model or adapter folder, GGUF file or hub name")
    parser.add_argument("--adapter", help="folder of an adapter (PEFT's too) to put on --model")
    parser.add_argument("--base", help="base model, if --model is an adapter; default: the one that it names")
    parser.add_argument("--no-adapter", action="store_true", help="use the base alone, to compare")
    parser.add_argument("--prompt", help="text to complete; with --chat, the user's message")
    parser.add_argument("--chat", action="store_true", help="apply the tokenizer's chat template")
    parser.add_argument("--system", help="system prompt of the chat; implies --chat")
    parser.add_argument("--max-new-tokens", type=whole_number(1), default=256, help="most tokens to generate (256)")
    parser.add_argument("--temperature", type=_temperature, default=0.7, help="sampling temperature (0.7)")
    parser.add_argument(
        "--top-p", type=_share, default=0.95, help="sample from the likeliest tokens of this total probability (0.95)"
    )
    parser.add_argument(
        "--top-k", type=whole_number(0), default=0, help="sample from this many of the likeliest tokens; 0: all (0)"
    )
    parser.add_argument("--greedy", action="store_true", help="always take the likeliest token")
    parser.add_argument("--stop", action="append", default=[], type=_text, help="end before this text; repeatable")
    parser.add_argument("--seed", type=whole_number(0, 2**32), default=0, help="seed of the sampling (0)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of weights and computation (float32 on a CPU, else bfloat16)"
    )
    parser.add_argument("--quantize", choices=("int8", "nf4"), help="keep the base's weights in 8 or 4 bits")
    return parser


def make_export_parser() -> argparse.ArgumentParser:
    """Makes the parser of `jlora export`.

    Its namespace has adapter (a Path), which is required; base, out and gguf_lora (Paths) and quantize, None by
    default; dtype, "float32"; vllm and overwrite, False. A flag is an attribute's name with dashes; --dtype and --vllm
    exclude each other.
    """
    purpose = "Merges an adapter, made here or by PEFT, or writes it for vLLM or llama.cpp."
    parser = argparse.ArgumentParser(prog="jlora export", description=purpose)
    parser.add_argument("--adapter", required=True, type=Path, help="folder of the adapter, in PEFT's format")
    parser.add_argument("--base", help="its base model: folder or hub name; default: the one the adapter names")
    parser.add_argument("--out", type=Path, help="folder to write to")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="(float32)")
    form.add_argument("--vllm", action="store_true", help="write an adapter that vLLM serves, not a merged model")
    parser.add_argument(
        "--gguf-lora", type=Path, metavar="FILE", help="write the adapter as llama.cpp loads it, float32 or float16"
    )
    parser.add_argument(
        "--quantize", choices=("int8", "nf4"), help="quantize the base first (adapters made with LoftQ need it)"
    )
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that holds something")
    return parser


def make_extract_parser() -> argparse.ArgumentParser:
    """Makes the parser of `jlora extract`.

    Its namespace has tuned, base and out (a Path), which are required; rank, 8; energy (a share) and targets, None by
    default; modules_to_save, []; bias, "none"; overwrite, False. A flag is an attribute's name with dashes; names are
    given as `a,b`; --rank and --energy exclude each other.
    """
    purpose = "Makes an adapter of a fully fine-tuned model."
    parser = argparse.ArgumentParser(prog="jlora extract", description=purpose)
    parser.add_argument("--tuned", required=True, help="the fine-tuned model: folder or hub name")
    parser.add_argument("--base", required=True, help="the model it was tuned from: folder or hub name")
    parser.add_argument("--out", required=True, type=Path, help="folder for adapter/, spectrum.csv, spectrum.png")
    cut = parser.add_mutually_exclusive_group()
    cut.add_argument("--rank", type=whole_number(1), default=_RANK, help=f"rank of every module ({_RANK})")
    cut.add_argument("--energy", type=_share, help="or the share of each module's squared change to keep, such as 0.9")
    parser.add_argument("--targets", type=split_names, help="modules to adapt: a,b or all-linear (all-linear)")
    parser.add_argument(
        "--modules-to-save", type=split_names, default=[], help="modules to copy whole, as the head is: a,b"
    )
    parser.add_argument("--bias", choices=("none", "all", "lora_only"), default="none", help="biases to copy (none)")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that holds something")
    return parser


def make_configs_parser() -> argparse.ArgumentParser:
    """Makes the parser of `jlora configs`: its namespace has name, None or a shipped config's, and copy.

    copy is None, or the Path after --copy; without a folder after it, the current one.
    """
    parser = argparse.ArgumentParser(
        prog="jlora configs", description="Lists the configs that come with jlora, prints one, or copies it."
    )
    parser.add_argument(
        "name", nargs="?", metavar="NAME", choices=list(shipped_configs()), help="config to print; default: list all"
    )
    parser.add_argument(
        "--copy", nargs="?", const=Path(), type=Path, metavar="FOLDER", help="write it into FOLDER (the current one)"
    )
    return parser


def make_completion_parser() -> argparse.ArgumentParser:
    """Makes the parser of `jlora completion`: its namespace has shell, which is bash, zsh or fish."""
    purpose = "Prints a script from which a shell knows the commands, their flags and the keys of the configs."
    parser = argparse.ArgumentParser(
        prog="jlora completion", description=purpose, epilog='In ~/.bashrc: eval "$(jlora completion bash)"'
    )
    parser.add_argument("shell", choices=SHELLS, help="whose script")
    return parser


PARSERS = {
    "predict": make_predict_parser,
    "generate": make_generate_parser,
    "export": make_export_parser,
    "extract": make_extract_parser,
    "configs": make_configs_parser,
    "completion": make_completion_parser,
}
"""{command: the function that makes its parser}."""


def whole_number(least: int, below: float = math.inf) -> Callable[[str], int]:
    """Makes an argument type for whole numbers of at least `least` and less than `below`.

    `whole_number(1)("12")` is 12. It takes text of digits only, without a sign or blanks, and raises
    `argparse.ArgumentTypeError` for anything else, and for numbers out of the range.
    """

    def read(text: str) -> int:
        if not text.isdecimal() or len(text) > _MOST_DIGITS or not least <= int(text) < below:
            upper = "" if below == math.inf else f" and < {below}"
            raise argparse.ArgumentTypeError(f"expected a whole number >= {least}{upper}, found {reprlib.repr(text)}")
        return int(text)

    return read


def split_names(text: str) -> list[str]:
    """Parses an argument of comma-separated names, without blanks around them and empty ones.

        "a, b,,c" -> ["a", "b", "c"]

    Raises:
      argparse.ArgumentTypeError: there is no name.
    """
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise argparse.ArgumentTypeError("expected names between commas, found none")
    return found


def _temperature(text: str) -> float:
    return _number(text, sys.float_info.max, "more than 0 (--greedy takes the likeliest token)")


def _share(text: str) -> float:
    return _number(text, 1.0, "more than 0 and at most 1")


def _number(text: str, most: float, expected: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= most:
        raise argparse.ArgumentTypeError(f"expected {expected}, found {text!r}")
    return value


def _text(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("expected a text, found an empty one")
    return text
