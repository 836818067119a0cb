"""The families, and what PEFT's adapters on them may say: fields of a LoraConfig, and files that are not as PEFT's."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


@dataclasses.dataclass(frozen=True)
class Family:
    """The names of a family's modules, whether its attention has biases, and keys of its config beyond the sizes."""

    attention: list[str]
    mlp: list[str]
    block: str
    norm: str
    embedding: str
    head: str
    layers: str
    task: str = "CAUSAL_LM"
    biases: bool = False
    conv1d: bool = False
    switches: dict[str, Any] = dataclasses.field(default_factory=dict)


_QV = ["q_proj", "v_proj"]


def _llama(**changes: Any) -> Family:
    family = Family(_QV, ["down_proj"], "mlp", "input_layernorm", "embed_tokens", "lm_head", "layers")
    return dataclasses.replace(family, **changes)


def _gpt(attention: list[str], mlp: list[str], norm: str, embedding: str, layers: str = "h", **more: Any) -> Family:
    more = {"biases": True} | more
    return Family(attention, mlp, more.pop("block", "mlp"), norm, embedding, "lm_head", layers, **more)


def _bert(head: str) -> Family:
    names = ["query", "value"], ["intermediate.dense"], "intermediate", "attention.output.LayerNorm", "word_embeddings"
    return Family(*names, head, "layer", task="SEQ_CLS", biases=True)


_UNTIED = {"tie_word_embeddings": False}
FAMILIES = {
    "bert": _bert("classifier"),
    "bloom": _gpt(["query_key_value"], ["dense_h_to_4h"], "input_layernorm", "word_embeddings", switches=_UNTIED),
    "distilbert": Family(
        *(["q_lin", "v_lin"], ["ffn.lin1"], "ffn", "sa_layer_norm", "word_embeddings", "pre_classifier", "layer"),
        task="SEQ_CLS",
        biases=True,
    ),
    "falcon": _gpt(
        ["query_key_value"], ["dense_h_to_4h"], "input_layernorm", "word_embeddings", switches=_UNTIED | {"bias": True}
    ),
    "gemma": _llama(switches=_UNTIED | {"num_key_value_heads": 1}),
    "gemma2": _llama(switches=_UNTIED | {"sliding_window": 5}),
    "gemma3_text": _llama(
        switches=_UNTIED | {"num_hidden_layers": 5, "sliding_window": 4, "sliding_window_pattern": 2}
    ),
    "gpt2": _gpt(["c_attn"], ["c_fc", "mlp.c_proj"], "ln_1", "wte", conv1d=True, switches=_UNTIED),
    "gpt_neo": _gpt(_QV, ["c_fc"], "ln_1", "wte", biases=False, switches=_UNTIED),
    "gpt_neox": _gpt(["query_key_value"], ["dense_h_to_4h"], "input_layernorm", "embed_in", "layers"),
    "gptj": _gpt(_QV, ["fc_in"], "ln_1", "wte", biases=False),
    "llama": _llama(),
    "mistral": _llama(switches={"sliding_window": 5}),
    "opt": _gpt(_QV, ["fc1"], "self_attn_layer_norm", "embed_tokens", "layers", block="fc2", switches=_UNTIED),
    "phi3": _llama(attention=["qkv_proj"], mlp=["gate_up_proj"], switches={"eos_token_id": 2}),
    "qwen2": _llama(biases=True),
    "qwen3": _llama(switches={"attention_bias": True}, biases=True),
    "roberta": _bert("classifier.out_proj"),
}


def configurations(family: Family) -> dict[str, dict[str, Any]]:
    """{what it is: fields of PEFT's LoraConfig beyond r = 4, lora_alpha = 6 and the task}.

    No name has two patterns: PEFT sorts them when it saves, and the first that matches counts.
    """
    attention, mlp = family.attention, family.mlp
    first, both, layers = attention[0], [*attention, *mlp], family.layers
    return {
        "plain": {"target_modules": attention},
        "a regular expression": {"target_modules": rf".*\.({'|'.join(attention)})"},
        "all linear": {"target_modules": "all-linear"},
        "other numbers": {"target_modules": both, "r": 3, "lora_alpha": 5},
        "drawn": {"target_modules": both, "init_lora_weights": "gaussian", "lora_dropout": 0.1},
        "rsLoRA": {"target_modules": both, "use_rslora": True},
        "DoRA": {"target_modules": both, "use_dora": True},
        "DoRA and rsLoRA, all linear": {"target_modules": "all-linear", "use_dora": True, "use_rslora": True},
        "all biases": {"target_modules": attention, "bias": "all"},
        "biases of adapted modules": {"target_modules": both, "bias": "lora_only"},
        "DoRA and biases of one layer": {
            "target_modules": both, "use_dora": True, "bias": "lora_only", "layers_to_transform": [1],
        },
        "ranks by pattern": {"target_modules": both, "rank_pattern": {first: 2, rf"{layers}\.1\..*{mlp[0]}": 5}},
        "alphas by pattern": {"target_modules": both, "alpha_pattern": {rf"{layers}\.0\..*": 9, rf"1\..*{mlp[0]}": 3}},
        "both, and rsLoRA": {
            "target_modules": both, "rank_pattern": {mlp[0]: 2}, "alpha_pattern": {mlp[0]: 8}, "use_rslora": True,
        },
        "one layer": {"target_modules": both, "layers_to_transform": [1]},
        "the layer 0": {"target_modules": attention, "layers_to_transform": 0},
        "layers of a list by name": {
            "target_modules": attention, "layers_to_transform": [1], "layers_pattern": layers,
        },
        "modules left out": {"target_modules": both, "exclude_modules": mlp},
        "a layer left out": {"target_modules": both, "exclude_modules": rf".*\.{layers}\.0\..*"},
        "norms whole": {"target_modules": attention, "modules_to_save": [family.norm]},
        "blocks whole": {"target_modules": attention, "modules_to_save": [family.block]},
        "a norm of one layer": {"target_modules": attention, "modules_to_save": [f"{layers}.1.{family.norm}"]},
        "embedding": {"target_modules": [*attention, family.embedding]},
        "embedding with DoRA": {"target_modules": [family.embedding], "use_dora": True},
        "embedding whole": {"target_modules": attention, "modules_to_save": [family.embedding]},
        "token rows": {"target_modules": attention, "trainable_token_indices": [7, 1, 30]},
        "token rows by name": {"target_modules": attention, "trainable_token_indices": {family.embedding: [4]}},
        "head adapted": {"target_modules": [*attention, family.head], "task_type": None},
        "head whole": {"target_modules": attention, "modules_to_save": [family.head], "task_type": None},
        "names of other models": {"target_modules": [*attention, "no_proj"], "rank_pattern": {"no_proj": 2}},
        "parameters": {"target_modules": [], "target_parameters": [f"{name}.weight" for name in both]},
        "biases of the update": {"target_modules": attention, "lora_bias": True},
        "PiSSA": {"target_modules": both, "init_lora_weights": "pissa"},
        "OLoRA": {"target_modules": both, "init_lora_weights": "olora"},
    }  # fmt: skip


def _changed(**fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / CONFIG
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def _with_other_names(folder: Path) -> None:
    fields = json.loads((folder / CONFIG).read_text())
    _changed(exclude_modules=["vision"], modules_to_save=[*(fields["modules_to_save"] or []), "no_head"])(folder)


def renamed(rename: Callable[[str], str]) -> Callable[[Path], None]:
    """Other keys for the file's tensors."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        save_file({rename(key): value for key, value in tensors.items()}, folder / WEIGHTS)

    return change


def with_name(key: str) -> str:
    """The key as a state_dict has it, with the adapter's name."""
    for part in ("lora_A", "lora_B", "lora_magnitude_vector"):
        key = key.replace(f".{part}", f".{part}.default")
    return f"{key}.weight" if key.endswith("lora_magnitude_vector.default") else key


OTHER_FILES: dict[str, Callable[[Path], None]] = {
    "fields that PEFT has not": _changed(unsloth_fixed=True, from_the_future={"a": 1}),
    "names that the model has not": _with_other_names,
    "old fields": _changed(enable_lora=None, merge_weights=False, peft_version="0.99.0"),
    "keys with the adapter's name": renamed(with_name),
    "keys of a compiled model": renamed(lambda key: key.replace("base_model.model.", "base_model.model._orig_mod.")),
    "keys of the model inside": renamed(lambda key: key.removeprefix("base_model.model.")),
    "keys of a wrapped model": renamed(lambda key: f"module.{key}"),
}
"""What is done to a folder of PEFT's that makes no difference to what the adapter computes."""


def as_it_is(folder: Path) -> None:
    """Changes nothing."""


_UNKNOWN = r": expected it off or absent \(not supported\), found"
_ON = {
    "layer_replication": [[0, 2], [1, 2]],
    "use_qalora": True,
    "alora_invocation_tokens": [5],
    "kasa_config": {"beta": 1e-4},
    "velora_config": {"num_groups": 2},
    "arrow_config": {"top_k": 2},
    "use_bdlora": {"nblocks": 2},
    "monteclora_config": {"num_samples": 2},
    "megatron_config": {"sequence_parallel": True},
}
_STARTS = ("pissa_niter_4", "lora_ga", "corda", "loftq")


@dataclasses.dataclass(frozen=True)
class Refused:
    """A folder that is not read: PEFT's fields on a family, what is done to its files, and the message."""

    message: str
    change: Callable[[Path], None] = as_it_is
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    family: str = "llama"


REFUSED = {
    **{field: Refused(f"{field}{_UNKNOWN}", _changed(**{field: value})) for field, value in _ON.items()},
    **{
        name: Refused(
            f"init_lora_weights: .*found '{name}'. That initialization changed the base",
            _changed(init_lora_weights=name),
        )
        for name in _STARTS
    },
    "another method": Refused("peft_type: expected LORA, found 'IA3'", _changed(peft_type="IA3")),
    "a bias of the update where the module has none": Refused(
        r"lora_B\.bias: expected no such key, or zeros, because the base's module has no bias",
        fields={"lora_bias": True},
    ),
    "parameters of Conv1D": Refused(
        "target_parameters: expected weights of linear layers, found .*which is stored transposed",
        fields={"target_modules": [], "target_parameters": ["attn.c_proj.weight"], "fan_in_fan_out": False},
        family="gpt2",
    ),
    "parameters of experts": Refused(
        "target_parameters: expected weights of linear layers, .*stacked experts are not supported",
        _changed(target_parameters=["experts.gate_up_proj"]),
    ),
    "another base": Refused(
        r"transformer\.h.*: found, but the base has no such module .*model\.layers.*: the adapter is of another",
        renamed(lambda key: key.replace("model.layers", "transformer.h")),
    ),
    "another rank than the tensors'": Refused(
        r"expected the rank 3, which adapter_config\.json gives it \(r = 3\), found \d+\. Correct r", _changed(r=3)
    ),
    "tensors of a module that the configuration leaves out": Refused(
        r"target_modules \['v_proj'\] does not match q_proj, for which .* has tensors .*, or name them in",
        _changed(target_modules=["v_proj"]),
    ),
    "a regular expression that takes forever": Refused(
        "expected regular expressions that match within .* seconds; found",
        _changed(target_modules=r"(([a-z_.\d]|[a-z])+)+\s\s"),
    ),
}
"""What is refused; docs/adapters.md says why."""
