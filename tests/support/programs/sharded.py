"""Run by test_base.py in a process of its own, which has 8 devices: a loss and its gradients on several meshes.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/support/programs/sharded.py

prints {name of a mesh: what `compared` gives, "loaded": what `loaded` gives}, of one base and adapter that hold all
there is: LoRA and DoRA on dense weights, on nf4 and on int8.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from jax.sharding import NamedSharding

import jlora
from jlora.files.safetensors_reader import StoredTensor
from jlora.models.registry import build, example_batch
from jlora.pretrained.source import PretrainedSource
from jlora.pretrained.weights import load_weights
from jlora.sharding.mesh import BATCH
from tests.support.adapters.lora_cases import normal
from tests.support.models.decoder_cases import random_base, tiny_decoder
from train.lm.data.batches import Batch
from train.lm.objective import causal_loss

ROWS, LENGTH, RANK, WIDEST = 8, 24, 4, 256
SIZES = {"hidden_size": 128, "intermediate_size": WIDEST, "num_hidden_layers": 3, "num_attention_heads": 8}
HEADS = {"num_key_value_heads": 4, "head_dim": 16, "vocab_size": 64}
MESHES: dict[str, tuple[tuple[int, int, int], Any]] = {
    "data": ((8, 1, 1), "replicated"),
    "fsdp": ((1, 8, 1), "replicated"),
    "tensor": ((2, 1, 4), "replicated"),
    "mixed": ((2, 2, 2), "inherit"),
}
"""{name: (sizes, how the adapter lies)}."""
REMATERIALIZED: dict[str, tuple[tuple[int, int, int], bool]] = {
    "lora, fsdp": ((1, 8, 1), False),
    "dora, tensor": ((2, 1, 4), True),
    "dora, mixed": ((2, 2, 2), True),
}
"""{name: (sizes, whether with DoRA)} of a dense base whose layers are rematerialized; the adapter lies whole."""


def lora(dora: bool, base: Any, model: Any) -> dict[str, Any]:
    """An adapter of all linear layers whose update is not zero."""
    config = jlora.LoraConfig(r=RANK, target_modules="all-linear", use_dora=dora)
    adapter = jlora.init(jax.random.key(0), config, base, model.apply, example_batch(model.config))
    trainable, frozen = jlora.split(adapter)
    leaves, structure = jax.tree.flatten(trainable)
    moved = [leaf + 0.05 * normal(seed, *leaf.shape) for seed, leaf in enumerate(leaves)]
    return jlora.combine(jax.tree.unflatten(structure, moved), frozen)


def of_all_kinds(base: Any, model: Any) -> tuple[Any, dict[str, Any]]:
    """A base of which a part is nf4, a part int8 and a part dense, with LoRA on the one half and DoRA on the other."""
    for kind, targets in {"nf4": ["q_proj", "o_proj", "gate_proj", "down_proj"], "int8": ["k_proj", "up_proj"]}.items():
        base = jlora.quantize(base, kind, model.apply, example_batch(model.config), target_modules=targets)
    plain, dora = (lora(dora, base, model) for dora in (False, True))
    return base, {path: dora[path] if number % 2 else entry for number, (path, entry) in enumerate(plain.items())}


def batch_of(model: Any) -> Batch:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, model.config.vocab_size, (ROWS, LENGTH)).astype(np.int32)
    weights = (rng.random(ids.shape) < 0.7).astype(np.float32)
    return Batch({"input_ids": ids, "attention_mask": np.ones_like(ids)}, np.roll(ids, -1, 1), weights)


def compiled(model: Any, base: Any, adapter: Any, batch: Any) -> tuple[Any, tuple]:
    """The loss with its gradients, compiled, and its arguments."""
    trainable, frozen = jlora.split(adapter)
    arguments = (trainable, frozen, base, batch, jax.random.key(0))
    function = jax.jit(jax.value_and_grad(causal_loss(model, model_dropout=False)))
    return function.lower(*arguments).compile(), arguments


def placed(mesh: Any, mode: Any, base: Any, adapter: Any, batch: Any) -> tuple:
    shardings = jlora.base_shardings(base, mesh), jlora.adapter_shardings(adapter, mesh, mode)
    base, adapter = jax.tree.map(jax.device_put, (base, adapter), shardings)
    return base, adapter, jax.device_put(batch, NamedSharding(mesh, BATCH))


def compared(program: Any, arguments: tuple, expected: tuple) -> dict[str, Any]:
    """How far loss and gradients are from those of one device, the collectives, the bytes that a device holds, the
    weights of all layers that it copies.
    """
    loss, gradients = program(*arguments)
    far = jax.tree.map(lambda x, y: float(np.linalg.norm(x - y) / np.linalg.norm(y)), gradients, expected[1])
    return {
        "loss": abs(float(loss / expected[0]) - 1),
        "gradients": max(jax.tree.leaves(far)),
        "collectives": collectives(program.as_text()),
        "copied": copied(program.as_text(), arguments[2]),
        "held": program.memory_analysis().argument_size_in_bytes,
        "shards": sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(arguments[:4])),
    }


def collectives(text: str) -> list[tuple[str, bool, list[int]]]:
    """(its kind, whether it is in a loop, the shape) of each result: ("all-gather", True, [1, 128, 64])."""
    found, inside = [], False
    for line in text.splitlines():
        if line and not line.startswith((" ", "}")):
            inside = not line.startswith("ENTRY")
        match = re.search(
            r"= (.+?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?\(", line
        )
        for shape in re.findall(r"\[([\d,]*)\]", match[1]) if match else ():
            found.append((match[2], inside, [int(size) for size in shape.split(",") if size]))
    return found


def copied(text: str, base: Any) -> list[str]:
    """The lines of copies that have the type and shape of a device's part of a stack of the base's matrices."""
    kinds = {"float32": "f32", "int8": "s8", "uint8": "u8"}
    parts = [leaf.addressable_shards[0].data for leaf in jax.tree.leaves(base) if leaf.ndim > 2]
    shapes = {f"{kinds.get(part.dtype.name)}[{','.join(map(str, part.shape))}]" for part in parts}
    copies = (re.match(r"\s*(?:ROOT )?%\S*copy\S* = (\S+?\])", line) for line in text.splitlines())
    return [copy.string.strip() for copy in copies if copy and copy[1] in shapes]


def loaded(model: Any, base: Any, folder: Path) -> dict[str, Any]:
    """Of weights that are read onto a mesh: whether they are those that are read without and lie as they should.

    And the largest part of a matrix that was read at a time for a leaf that is not quantized.
    """
    jlora.save_base(folder, model, base)
    source, mesh = PretrainedSource(folder), jlora.make_mesh(1, 4, 2)
    with mock.patch.object(StoredTensor, "read", autospec=True, side_effect=StoredTensor.read) as read:
        dense = load_weights(model, source, mesh=mesh)
    shards = [(call.args[0].shape, call.args[2]) for call in read.call_args_list]
    parts = [np.empty(shape)[index].size / math.prod(shape) for shape, index in shards if len(shape) == 2]
    report: dict[str, Any] = {"largest part": max(parts)}
    for kind, found in {None: dense, "nf4": load_weights(model, source, quantize="nf4", mesh=mesh)}.items():
        alone = load_weights(model, source, quantize=kind)
        same = jax.tree.map(_is_same, found, alone, jlora.base_shardings(alone, mesh))
        report[str(kind)] = jax.tree.all(same)
    return report


def _is_same(found: jax.Array, alone: jax.Array, sharding: Any) -> bool:
    return bool((found == alone).all()) and found.sharding.is_equivalent_to(sharding, found.ndim)


def rematerialized(base: Any, batch: Batch) -> dict[str, Any]:
    """{name: what `compared` gives} of the meshes in REMATERIALIZED."""
    model = build(tiny_decoder("llama", **SIZES, **HEADS), remat=True)
    adapters = {dora: lora(dora, base, model) for dora in (False, True)}
    programs = {dora: compiled(model, base, adapter, batch) for dora, adapter in adapters.items()}
    expected = {dora: program(*arguments) for dora, (program, arguments) in programs.items()}
    report = {}
    for name, (sizes, dora) in REMATERIALIZED.items():
        mesh = jlora.make_mesh(*sizes)
        with jax.set_mesh(mesh):
            arguments = placed(mesh, "replicated", base, adapters[dora], batch)
            report[name] = compared(*compiled(model, *arguments), expected[dora])
    return report


def main() -> None:
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    model = build(tiny_decoder("llama", **SIZES, **HEADS))
    dense, batch = random_base(model), batch_of(model)
    with tempfile.TemporaryDirectory() as folder:
        report: dict[str, Any] = {"loaded": loaded(model, dense, Path(folder))}
    base, adapter = of_all_kinds(dense, model)
    program, arguments = compiled(model, base, adapter, batch)
    expected = program(*arguments)
    report["one"] = {"held": program.memory_analysis().argument_size_in_bytes}
    for name, (sizes, mode) in MESHES.items():
        mesh = jlora.make_mesh(*sizes)
        with jax.set_mesh(mesh):
            report[name] = compared(*compiled(model, *placed(mesh, mode, base, adapter, batch)), expected)
    report |= rematerialized(dense, batch)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
