"""Adapters in llama.cpp itself: python -m benchmarks.llama_cpp --python PYTHON

SmolLM2 in float32 with random adapters on all linear layers. `jlora export --gguf-lora` writes each one; llama.cpp and
`jlora.generate` then complete the same prompts greedily. The exit status is 1 where logits differ by more than 1e-3,
where a token differs whose logit is not as near to the other one's, or where an adapter changes nothing.

PYTHON is that of an environment of its own, for which llama.cpp is compiled (some minutes):

    python -m venv llama-cpp && llama-cpp/bin/pip install llama-cpp-python
    python -m benchmarks.llama_cpp --python llama-cpp/bin/python
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import jax
import numpy as np

import jlora
from benchmarks.common.work import FOLDER, PACKAGES
from jlora.pretrained.load import example_batch
from jlora.pretrained.locate import model_folder
from jlora.pretrained.source import PretrainedSource

BASE = FOLDER / "models" / "smollm2-float32.gguf"
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n    ",
    "Water boils at 100 °C because",
    "Dear Sir or Madam, I am writing to",
)
_RANDOM: dict[str, Any] = {"r": 8, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": False}
_PATTERNS: dict[str, Any] = {
    "rank_pattern": {"k_proj": 3, r"layers\.1\d\.mlp\.down_proj": 16},
    "alpha_pattern": {"q_proj": 12, r"layers\.2\.mlp\.up_proj": 2},
}
ADAPTERS = {
    "none": None,
    "plain": jlora.LoraConfig(**_RANDOM),
    "rsLoRA": jlora.LoraConfig(**_RANDOM, use_rslora=True),
    "patterns": jlora.LoraConfig(**_RANDOM, **_PATTERNS),
    "DoRA": jlora.LoraConfig(**_RANDOM, use_dora=True),
}
_NEAR = 1e-3
"""Logits of the two sides may differ by this; the likeliest tokens have 8 to 34."""


class Side(NamedTuple):
    """What one side makes of a prompt: its token ids (P,), the greedy tokens (N,) and their logits (N, vocab)."""

    prompt: np.ndarray
    tokens: np.ndarray
    logits: np.ndarray


class Compared(NamedTuple):
    """All prompts of both sides.

    Attributes:
      equal: how many tokens.
      first, all: largest difference of the logits of first tokens, and of all up to the first that differs.
      gap: largest distance of our logits of two tokens, where they differ first.
    """

    equal: int
    first: float
    all: float
    gap: float


def main(argv: Sequence[str]) -> int:
    """Runs the command; 0 is success."""
    flags = _parser().parse_args(argv)
    if not BASE.exists():
        write_base(BASE)
    model, base = jlora.load_base(str(BASE))
    print(f"{'':10}{'equal tokens':>14}{'logits: first':>16}{'all':>10}{'unlike the base':>18}")
    failed, alone = False, None
    for name, config in ADAPTERS.items():
        with tempfile.TemporaryDirectory() as folder:
            adapter, lora, refused = _exported(Path(folder), config, model, base)
            failed |= bool(refused) != (name == "DoRA")
            if refused:
                print(f"{name:10}{refused}")
                continue
            theirs = run_llama_cpp(flags.python, Path(folder), lora, flags.new)
        ours = complete(model, base, adapter, theirs)
        alone = alone or ours
        found, total = compare(ours, theirs), len(ours) * flags.new
        changed = total - sum(_equal(*pair) for pair in zip(ours, alone, strict=True))
        of = f"of {total}"
        print(f"{name:10}{found.equal:7} {of}{found.first:16.1e}{found.all:10.1e}{changed:11} {of}", flush=True)
        failed |= max(found.all, found.gap) > _NEAR or (adapter is not None and not changed)
    return int(failed)


def write_base(file: Path) -> None:
    """SmolLM2's file with its blocks dequantized; metadata, tokenizer and the order of rows stay llama.cpp's own."""
    reader = gguf.GGUFReader(model_folder(PACKAGES["smollm2"]))
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    with closing(gguf.GGUFWriter(partial, "llama")) as writer:
        for name, field in reader.fields.items():
            if not name.startswith(("GGUF.", "general.architecture", "general.file_type", "general.quantization")):
                writer.add_key_value(name, field.contents(), field.types[0], field.types[-1])
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        for tensor in reader.tensors:
            writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    partial.rename(file)


def _exported(folder: Path, config: jlora.LoraConfig | None, model: Any, base: Any) -> tuple[Any, Path | None, str]:
    """(a random adapter of the base, its file for llama.cpp, what the command refuses it with)."""
    if config is None:
        return None, None, ""
    adapter = jlora.init(jax.random.key(0), config, base, model.apply, example_batch(model.config))
    jlora.save_adapter(folder / "adapter", adapter, config, base_model=str(BASE))
    file = folder / "lora.gguf"
    command = [sys.executable, "-m", "jlora", "export", "--adapter", str(folder / "adapter"), "--gguf-lora", str(file)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    return adapter, file, done.stderr.strip().splitlines()[-1] if done.returncode else ""


def run_llama_cpp(python: str, folder: Path, lora: Path | None, new: int) -> list[Side]:
    """llama.cpp's side, in a process of the other environment."""
    (folder / "prompts.json").write_text(json.dumps(PROMPTS))
    given = ["--base", str(BASE), "--prompts", str(folder / "prompts.json"), "--new", str(new), "--out", str(folder)]
    given += [] if lora is None else ["--lora", str(lora)]
    subprocess.run([python, "-m", "benchmarks.llama_cpp.side", *given], check=True)
    return [Side(**np.load(folder / f"{number}.npz")) for number in range(len(PROMPTS))]


def complete(model: Any, base: Any, adapter: Any, theirs: Sequence[Side]) -> list[Side]:
    """Our side: the tokens of `jlora.generate`, and the logits of one pass over llama.cpp's tokens."""
    prompts = [np.array(ids) for ids in PretrainedSource(BASE).tokenizer(list(PROMPTS))["input_ids"]]
    new = len(theirs[0].tokens)
    tokens = jlora.generate(model, base, adapter, *_padded(prompts, left=True), max_new_tokens=new, pad_id=0)
    ids, mask = _padded([np.append(ids, side.tokens) for ids, side in zip(prompts, theirs, strict=True)])
    logits = jax.jit(jlora.adapt(model.apply))(base, adapter, {"input_ids": ids, "attention_mask": mask})
    rows = [np.asarray(row)[len(ids) - 1 :][:new] for row, ids in zip(logits, prompts, strict=True)]
    return [Side(*parts) for parts in zip(prompts, np.asarray(tokens), rows, strict=True)]


def compare(ours: Sequence[Side], theirs: Sequence[Side]) -> Compared:
    """Both sides' completions, prompt by prompt.

    Raises:
      RuntimeError: a text has other tokens there.
    """
    found = []
    for our, their in zip(ours, theirs, strict=True):
        if our.prompt.tolist() != their.prompt.tolist():
            raise RuntimeError(f"expected the same tokens of a text; found {our.prompt} and {their.prompt}")
        differ = np.flatnonzero(our.tokens != their.tokens)
        last = int(differ[0]) if len(differ) else len(our.tokens) - 1
        differences = np.abs(our.logits[: last + 1] - their.logits[: last + 1]).max(-1)
        gap = abs(our.logits[last, our.tokens[last]] - our.logits[last, their.tokens[last]])
        found.append(Compared(_equal(our, their), differences[0], differences.max(), gap))
    equal, *largest = zip(*found, strict=True)
    return Compared(sum(equal), *map(max, largest))


def _equal(one: Side, other: Side) -> int:
    return int((one.tokens == other.tokens).sum())


def _padded(rows: Sequence[np.ndarray], *, left: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(ids, mask), int32 (rows, length of the longest)."""
    length = max(map(len, rows))
    ids, mask = np.zeros((2, len(rows), length), np.int32)
    for number, row in enumerate(rows):
        place = slice(length - len(row), length) if left else slice(len(row))
        ids[number, place], mask[number, place] = row, 1
    return ids, mask


def _parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks.llama_cpp", description=__doc__, formatter_class=form)
    parser.add_argument("--python", metavar="PYTHON", required=True, help="of an environment with llama-cpp-python")
    parser.add_argument("--new", metavar="N", type=int, default=32, help="new tokens of a prompt (default 32)")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
