"""Complete a prompt or hold a chat: jlora generate --model RUN_OR_MODEL [--prompt TEXT] [--chat]."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax

from jlora.closed_pipe import end_quietly
from jlora.errors import JloraError
from jlora.generation.chat import chat_ids
from jlora.generation.detokenize import decode_stream, until
from jlora.generation.generator import context_length
from jlora.generation.open_model import LanguageModel, load_language_model
from jlora.generation.sampling import Sampling
from jlora.printable import counted, printable
from train.cli import arguments
from train.cli.exit_codes import exit_code
from train.cli.log_slow_steps import working
from train.cli.without_torch import keep_torch_from_transformers
from train.devices.compilation import use_compilation_cache


def main(argv: Sequence[str]) -> int:
    """Runs `jlora generate`; returns 0, 130 after an interruption, or 2 after an error that the user can fix.

    Args:
      argv: the flags of `arguments.make_generate_parser`: ["--model", "M", "--prompt", "Once"] writes the completion to
        stdout, without the prompt, and the speed to stderr. Without --prompt, text is read from stdin; on a terminal a
        chat begins.
    """
    use_compilation_cache()
    return exit_code(lambda: _run(arguments.make_generate_parser().parse_args(argv)))


@dataclass(frozen=True)
class _Writer:
    """A model and the options with which it generates text."""

    language: LanguageModel
    options: argparse.Namespace

    def write(self, ids: Sequence[int], turn: int = 0, before: Sequence[int] = ()) -> str:
        """Writes the completion of the prompt `ids` to stdout as it is generated, then the speed to stderr.

        Returns:
          The completion.
        """
        options, adapted = self.options, self.language.adapted
        count = self._room(len(ids))
        key = None if options.greedy else jax.random.fold_in(jax.random.key(options.seed), turn)
        tokens = _Timed(
            self.language.generator.stream(
                ids,
                max_new_tokens=count,
                key=key,
                sampling=Sampling(options.temperature, options.top_k, options.top_p),
                stop_ids=self.language.stop_ids,
            )
        )
        text = ""
        for piece in until(decode_stream(self.language.tokenizer, tokens, before), options.stop):
            # Escaped on a terminal, which would act on control characters; a pipe gets the text unchanged.
            print(printable(piece) if sys.stdout.isatty() else piece, end="", flush=True)
            text += piece
        print(flush=True)
        full = count < options.max_new_tokens and tokens.count == count
        cut = f"; context full ({context_length(adapted.model)} tokens): cut here" if full else ""
        print(f"[{tokens.speed()}{cut}]", file=sys.stderr)
        return text

    def _room(self, prompt: int) -> int:
        """Returns max_new_tokens, or less if the model's context has less room."""
        limit = context_length(self.language.adapted.model)
        count = self.options.max_new_tokens
        if limit is None:
            return count
        if prompt >= limit:
            raise JloraError(f"context full: the prompt has {prompt} tokens, the model takes {limit}; shorten it")
        return min(count, limit - prompt)


class _Timed:
    """An iterator over token ids that counts and times them."""

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
        """Describes the speed; the first token's time includes compilation and the prompt."""
        seconds = self._last - self._first
        rate = f", {(self.count - 1) / seconds:.1f} tokens/s" if self.count > 1 else ""
        return f"{counted(self.count, 'token')}{rate}, the first after {self._first - self._begin:.2f} s"


def _run(options: argparse.Namespace) -> None:
    default = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    with working(f"reading {options.model}"):
        language = load_language_model(
            options.model,
            adapter=options.adapter,
            base=options.base,
            use_adapter=not options.no_adapter,
            dtype=options.dtype or default,
            quantize=options.quantize,
        )
    writer = _Writer(language, options)
    text = options.prompt if options.prompt is not None else None if sys.stdin.isatty() else _read_stdin()
    if text is None:
        _hold_chat(writer)
    elif options.chat or options.system is not None:
        writer.write(_chat_ids(writer.language, [*_opening(options), {"role": "user", "content": text}]))
    else:
        ids = writer.language.tokenizer(text)["input_ids"]
        if not ids:
            raise JloraError(
                "--prompt: expected a text, found an empty one, and this model's tokenizer puts no token before a text,"
                " from which the model could begin; give the first word or more"
            )
        writer.write(ids, before=ids)


def _read_stdin() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        byte = f"the byte {error.object[error.start]:#04x} at {error.start}"
        raise JloraError(
            f"stdin: expected text in {sys.stdin.encoding}; found {byte}. Convert it, or set LC_ALL to its encoding"
        ) from None


def _hold_chat(writer: _Writer) -> None:
    """Alternates turns of user and model until an empty line or the end of the input."""
    messages = _opening(writer.options)
    _chat_ids(writer.language, [*messages, {"role": "user", "content": ""}])  # fails now if the model cannot chat
    print("An empty line or Ctrl-D ends the chat.", file=sys.stderr)
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
    """Returns the chat's tokens, up to the beginning of the model's turn."""
    tokenizer = language.tokenizer
    if not tokenizer.chat_template:
        raise JloraError(
            f"--chat: expected a tokenizer with a chat template, found none in {tokenizer.name_or_path or 'the model'};"
            " take a model that was trained on chats, or complete text: --prompt TEXT without --chat"
        )
    return chat_ids(tokenizer, messages, where="--chat")


if __name__ == "__main__":
    keep_torch_from_transformers()
    sys.exit(end_quietly(lambda: main(sys.argv[1:])))
