"""Plans on eight devices that are not there: python tests/support/programs/plan_cases.py MODEL_FOLDER LLAMA_8B_FOLDER.

Prints what the command says of one of them, then all as JSON, a single line. In a process of its own, as JAX must not
have started before the devices are set.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from train.cli.parse import parse_command_line
from train.cli.resolve import resolve
from train.lm import __main__ as lm
from train.lm.config import COMMAND, LMConfig
from train.lm.step_plan import abstract_step, plan_step
from train.planning.flops import matrix_flops
from train.planning.memory import count_bytes
from train.planning.virtual_mesh import mesh_sizes

LLAMA = {"model_type": "llama", "tie_word_embeddings": False}
TINY = LLAMA | {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 512,
}
"""What a config.json says of a model that is planned."""
MESHES = {
    "one": "data=1",
    "data": "data=4",
    "fsdp": "fsdp=4",
    "tensor": "tensor=4",
}


def main(tiny: str, large: str) -> None:
    arguments = [f"model={tiny}", "data.train=unread.txt", "output_dir=unwritten", "train.batch_size=8"]
    if lm.main([*arguments, "--dry-run", "--mesh", "data=2,fsdp=2,tensor=2", "--chip", "h100"]):
        sys.exit(1)
    cases = {name: case(tiny, sizes, "train.dtype=bfloat16") for name, sizes in MESHES.items()}
    cases["accumulated"] = case(tiny, "fsdp=4", "train.dtype=bfloat16", "train.gradient_accumulation_steps=2")
    cases["long rows"] = case(tiny, "fsdp=4", "train.dtype=bfloat16", "data.max_length=1024")
    cases["full"] = case(tiny, "data=1", "method=full")
    cases["undivided"] = case(tiny, "tensor=3")
    held = {sizes: held_on(large, sizes) for sizes in ("data=1", "fsdp=8", "fsdp=2,tensor=4")}
    held["nf4"] = held_on(large, "fsdp=8", "quantize=nf4")
    held["inherit"] = held_on(large, "fsdp=8", "mesh.adapters=inherit")
    print(json.dumps({"cases": cases, "held": held}))


def case(folder: str, sizes: str, *more: str) -> dict[str, Any]:
    """The plan of a tiny model, and the FLOPs of its step on all devices together."""
    config = config_of(folder, "train.batch_size=8", "data.max_length=16", *more)
    step, _, inputs = abstract_step(config, mesh_sizes("data=1"))
    plan = dict(plan_step(config, mesh_sizes(sizes))._asdict())
    plan["memory"] = plan["memory"]._asdict()
    plan["products"] = sum(product.flops * product.times for product in plan["products"])
    plan["collectives"] = [
        {"kind": one.kind, "axes": one.axes, "times": one.times, "received": one.bytes_received * one.times}
        for one in plan["collectives"]
    ]
    return plan | {"flops": matrix_flops(step.trace(*inputs).jaxpr)}


def held_on(folder: str, sizes: str, *more: str) -> list[int]:
    """Bytes of base, adapter and optimizer on each chip."""
    _, _, inputs = abstract_step(config_of(folder, "train.batch_size=8", *more), mesh_sizes(sizes))
    state = inputs.state
    return [count_bytes(tree) for tree in (inputs.base, (state.trainable, inputs.frozen), state.optimizer)]


def config_of(folder: str, *more: str) -> LMConfig:
    common = [
        "train.dtype=bfloat16",
        "data.train=unread.txt",
        "output_dir=unwritten",
        "lora.r=16",
        "lora.target_modules=all-linear",
    ]
    return resolve(parse_command_line([f"model={folder}", *common, *more], COMMAND), use_offline=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
