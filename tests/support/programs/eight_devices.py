"""Run by test_placement.py in a process of its own, which has 8 devices: commands on meshes, and what lies where.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/support/programs/eight_devices.py FOLDER LLAMA BERT

trains on these models, leaves the run folders lm/, full/ and classify/ in FOLDER, and prints what `laid_out`,
`restored` and `messages` give.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import jlora
from jlora.errors import JloraError
from jlora.lora.adapted_model import Adapted
from jlora.sharding.to_host import to_host
from tests import conftest  # noqa: F401  what the suite runs under
from tests.support.training import tiny, tiny_lm
from train.devices import placement
from train.lm.config import LMConfig
from train.run import checkpoints
from train.run.state import State

LM = [
    "train.learning_rate=1e-2",
    "train.max_steps=4",
    "train.batch_size=8",
    "train.gradient_accumulation_steps=2",
    "train.eval_every=2",
    "lora.use_dora=true",
    "lora.lora_dropout=0.1",
    "samples.count=1",
    "samples.max_length=16",
    "samples.prompt_tokens=4",
]
FULL = [
    "method=full",
    "train.learning_rate=1e-3",
    "train.schedule=constant",
    "train.batch_size=8",
    "train.eval_every=2",
]
CLASSIFY = ["train.learning_rate=1e-2", "train.max_steps=4", "train.eval_batch_size=3", "train.dropout=true"]


def config(**mesh: Any) -> LMConfig:
    """A config with this mesh and batches of 8 rows."""
    section = {"adapters": mesh.pop("adapters", "replicated")} | mesh
    return LMConfig.model_validate({"model": "m", "output_dir": "o", "data": {"train": "t"}, "mesh": section})


def laid_out() -> dict[str, Any]:
    """The parts of some arrays on a mesh 2 x 2 x 2, and whether they come back as they were."""
    kernel = np.arange(64.0, dtype=np.float32).reshape(2, 4, 8)
    base = {"model": {"layers": {"q_proj": {"kernel": kernel}}, "norm": {"weight": np.ones(4, np.float32)}}}
    entry = jlora.Full(kernel[:, :, :4])
    found = {}
    for mode in ("replicated", "inherit"):
        asked = config(data=2, fsdp=2, tensor=2, adapters=mode)
        mesh = placement.mesh_of(asked)
        assert mesh is not None
        put = placement.put_adapted(mesh, Adapted(None, base, {"model/layers/q_proj/kernel": entry}, None), asked)
        leaves = [*jax.tree.leaves(put.base), *jax.tree.leaves(put.adapter)]
        found[mode] = [leaf.sharding.shard_shape(leaf.shape) for leaf in leaves]
        for back in (to_host((put.base, put.adapter)), placement.to_first((put.base, put.adapter))):
            assert jax.tree.all(jax.tree.map(np.array_equal, back, (base, {"model/layers/q_proj/kernel": entry})))
    rows = placement.put_batch(mesh, 8, lambda places: {"ids": np.stack([places, places + 8], 1)})["ids"]
    assert np.array_equal(rows, np.stack([np.arange(8), np.arange(8, 16)], 1))
    assert rows.sharding.spec == PartitionSpec(("data", "fsdp"))
    step = placement.put_rest(mesh, {"rows": rows, "step": np.int32(3)})
    return found | {"rows": rows.sharding.shard_shape(rows.shape), "kept": step["rows"] is rows}


def restored(folder: Path) -> dict[str, Any]:
    """What lies where after a checkpoint was read on another mesh, and whether it is what was written."""
    numbers = np.arange(64.0, dtype=np.float32).reshape(8, 8)

    def state(fsdp: int) -> State:
        mesh = placement.mesh_of(config(data=8 // fsdp, fsdp=fsdp))
        kernel = jax.device_put(numbers, NamedSharding(mesh, PartitionSpec("fsdp")))
        return placement.put_rest(mesh, State({"kernel": kernel}, (), jnp.int32(3)))

    with checkpoints.open_checkpoints(folder, 1) as manager:
        checkpoints.save(
            manager,
            checkpoints.Checkpoint(saved := state(4), checkpoints.Best(placement.copy_to_host(saved.trainable))),
        )
        checkpoints.wait(manager)
        like = state(8)
        wanted = jax.tree.map(lambda leaf: leaf.sharding, like)
        found = checkpoints.restore(manager, like)
    return {
        "equal": all(np.array_equal(tree["kernel"], numbers) for tree in (found.state.trainable, found.best.trainable)),
        "as_asked": jax.tree.map(lambda leaf: leaf.sharding, found.state) == wanted,
        "best": type(found.best.trainable["kernel"]).__name__,
        "given_up": all(leaf.is_deleted() for leaf in jax.tree.leaves(like)),
    }


def messages() -> list[str]:
    """What is said of meshes that do not fit."""
    said = []
    for mesh in ({"data": 3}, {"fsdp": -1}, {"data": 0}):
        try:
            placement.mesh_of(config(**mesh))
        except JloraError as error:
            said.append(str(error))
    try:
        placement.mesh_of(config().model_copy(update={"train": config().train.model_copy(update={"batch_size": 6})}))
    except JloraError as error:
        said.append(str(error))
    return said


def main(folder: Path, llama: Path, bert: Path) -> None:
    """Prints one line of JSON, the last."""
    mixed = ["mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2", "mesh.adapters=inherit"]
    tiny_lm.train(folder / "lm", *LM, *mixed, model=llama)
    split = ["mesh.data=2", "mesh.fsdp=4"]
    tiny_lm.train(folder / "full", *FULL, *split, "train.max_steps=2", model=llama)
    tiny_lm.train(folder / "full", *FULL, *split, "train.max_steps=4", "--resume", model=llama)
    tiny.train(folder / "classify", *CLASSIFY, model=bert)
    found = {"laid_out": laid_out(), "restored": restored(folder / "checkpoints"), "messages": messages()}
    print(json.dumps({"devices": jax.device_count(), **found}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
