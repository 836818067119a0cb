"""Complete a prompt or hold a chat: python -m train.generate --model RUN_OR_MODEL [--prompt TEXT] [--chat]."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax

from jlora.errors import JloraError
from jlora.generation import context_length, stream
from train.compilation import use_compilation_cache
from train.entry import exit_code, whole_number
from train.lm.conversations import Conversation
from train.lm.templates import chat_template
from train.lm.trained import LanguageModel, load_language_model
from train.text_stream import decoded, until
from train.without_torch import keep_torch_from_transformers

_EPILOG = """\
Without --prompt, text is read from stdin; on a terminal a chat begins, which an empty line or Ctrl-D ends.

  python -m train.generate --model runs/smollm2 --chat --prompt "What is the capital of France?"
  python -m train.generate --model HuggingFaceTB/SmolLM2-135M-Instruct --adapter runs/smollm2/adapter
  python -m train.generate --model model.gguf --greedy --stop "." --prompt "Once upon a time"
"""


def main(argv: Sequence[str]) -> int:
    """Runs the command; 0 is success, 2 something that the user can mend, 130 an interruption."""
    use_compilation_cache()
    return exit_code(lambda: _run(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train.generate",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="run folder, model or adapter folder, GGUF file or hub name")
    parser.add_argument("--adapter", help="folder of an adapter (PEFT's too) to put on --model")
    parser.add_argument("--base", help="base model of the adapter that --model is; default: the one that it names")
    parser.add_argument("--no-adapter", action="store_true", help="the base alone, to compare")
    parser.add_argument("--prompt", help="text to complete; with --chat, what the user says")
    parser.add_argument("--chat", action="store_true", help="write through the tokenizer's chat template")
    parser.add_argument("--system", help="what the chat begins with; implies --chat")
    parser.add_argument("--max-new-tokens", type=whole_number(1), default=256, help="tokens at most (256)")
    parser.add_argument("--temperature", type=_temperature, default=0.7, help="of the draw (0.7)")
    parser.add_argument("--top-p", type=_share, default=0.95, help="draw from the likeliest of this share (0.95)")
    parser.add_argument("--top-k", type=whole_number(0), default=0, help="draw from so many; 0: all (0)")
    parser.add_argument("--greedy", action="store_true", help="always the likeliest token")
    parser.add_argument("--stop", action="append", default=[], type=_text, help="end before this text; repeatable")
    parser.add_argument("--seed", type=whole_number(0), default=0, help="of the draw (0)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of weights and computation (float32 on a CPU, else bfloat16)"
    )
    parser.add_argument("--quantize", choices=("int8", "nf4"), help="keep the base's weights in 8 or 4 bits")
    return parser


@dataclass(frozen=True)
class _Writer:
    """A model with how it is to write."""

    language: LanguageModel
    options: argparse.Namespace

    def write(self, ids: Sequence[int], turn: int = 0, before: Sequence[int] = ()) -> str:
        """Writes what follows the prompt `ids` to stdout as it comes, then its speed to stderr; returns it."""
        options, adapted = self.options, self.language.adapted
        count = self._room(len(ids))
        key = None if options.greedy else jax.random.fold_in(jax.random.key(options.seed), turn)
        tokens = _Timed(
            stream(
                adapted.model,
                adapted.base,
                adapted.adapter or None,
                ids,
                max_new_tokens=count,
                key=key,
                temperature=options.temperature,
                top_k=options.top_k,
                top_p=options.top_p,
                stop_ids=self.language.stop_ids,
            )
        )
        text = ""
        for piece in until(decoded(self.language.tokenizer, tokens, before), options.stop):
            print(piece, end="", flush=True)
            text += piece
        print(flush=True)
        full = count < options.max_new_tokens and tokens.count == count
        cut = f"; context full ({context_length(adapted.model)} tokens): cut here" if full else ""
        print(f"[{tokens.speed()}{cut}]", file=sys.stderr)
        return text

    def _room(self, prompt: int) -> int:
        """max_new_tokens, or what the context has left for it."""
        limit = context_length(self.language.adapted.model)
        count = self.options.max_new_tokens
        if limit is None:
            return count
        if prompt >= limit:
            raise JloraError(f"context full: the prompt has {prompt} tokens, the model takes {limit}; shorten it")
        return min(count, limit - prompt)


class _Timed:
    """Token ids, counted and timed as they pass."""

    def __init__(self, ids: Iterator[int]) -> None:
        self._ids, self.count, self._begin = ids, 0, time.perf_counter()
        self._first = self._last = self._begin

    def __iter__(self) -> Iterator[int]:
        for token in self._ids:
            self._last = time.perf_counter()
            self._first = self._first if self.count else self._last
            self.count += 1
            yield token

    def speed(self) -> str:
        """The first token's time holds the compilation and the prompt."""
        seconds = self._last - self._first
        rate = f", {(self.count - 1) / seconds:.1f} tokens/s" if self.count > 1 else ""
        return f"{self.count} tokens{rate}, the first after {self._first - self._begin:.2f} s"


def _run(options: argparse.Namespace) -> None:
    default = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    writer = _Writer(
        load_language_model(
            options.model,
            adapter=options.adapter,
            base=options.base,
            use_adapter=not options.no_adapter,
            dtype=options.dtype or default,
            quantize=options.quantize,
        ),
        options,
    )
    text = options.prompt if options.prompt is not None else None if sys.stdin.isatty() else sys.stdin.read()
    if text is None:
        _hold_chat(writer)
    elif options.chat or options.system is not None:
        writer.write(_chat_ids(writer.language, [*_opening(options), {"role": "user", "content": text}]))
    else:
        ids = writer.language.tokenizer(text)["input_ids"]
        writer.write(ids, before=ids)


def _hold_chat(writer: _Writer) -> None:
    """Turns of user and model until an empty line or the end of the input."""
    messages = _opening(writer.options)
    _chat_ids(writer.language, [*messages, {"role": "user", "content": ""}])  # what cannot chat says so at once
    while said := _line():
        messages.append({"role": "user", "content": said})
        text = writer.write(_chat_ids(writer.language, messages), turn=len(messages))
        messages.append({"role": "assistant", "content": text})


def _line() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def _opening(options: argparse.Namespace) -> list[dict[str, str]]:
    return [] if options.system is None else [{"role": "system", "content": options.system}]


def _chat_ids(language: LanguageModel, messages: list[dict[str, str]]) -> list[int]:
    """The chat's tokens up to where the model's turn begins."""
    tokenizer = language.tokenizer
    if not tokenizer.chat_template:
        raise JloraError(
            f"--chat: expected a tokenizer with a chat template, found none in {tokenizer.name_or_path or 'the model'};"
            " take a model that was trained on chats, or complete text: --prompt TEXT without --chat"
        )
    chat = Conversation(messages, 0, frozenset(), None, {}, "--chat")
    text = chat_template(tokenizer).write(chat, messages, call=True).text
    return tokenizer(text, add_special_tokens=False)["input_ids"]


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


if __name__ == "__main__":
    keep_torch_from_transformers()
    sys.exit(main(sys.argv[1:]))
