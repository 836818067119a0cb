"""Files for the loaders that are nearly good: what `benchmarks.fuzz` gives them."""

from __future__ import annotations

import copy
import json
import struct
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import yaml
from hypothesis import strategies as st
from safetensors.numpy import save
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CONFIG_MAPPING

from jlora.models.registry import FAMILIES

X = jnp.ones((2, 4))
BASE = {"encoder": {"layers": {"query": {"kernel": jnp.ones((2, 4, 4))}}}, "head": {"kernel": jnp.ones((4, 3))}}


def apply(base: Any, x: jax.Array) -> jax.Array:
    """What `adapters` adapt: logits (2, 3) of x (2, 4)."""
    x, _ = jax.lax.scan(lambda x, w: (x @ w, None), x, base["encoder"]["layers"]["query"]["kernel"])
    return x @ base["head"]["kernel"]


_NUMBERS = st.sampled_from([0, 1, -1, 2, 3, 7, 255, 2**15, 2**31 - 1, 2**31, 2**32, 2**53, 2**63, 2**64 - 1, 10**30])
_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    _NUMBERS,
    st.integers(-10, 10),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["a", "\ud800", "../a", "/etc/passwd", "x" * 5000, "(a+)+", "F32", "F16", "I64", "linear", "\x1b[2J"]
    ),
)
_JUNK = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)


@st.composite
def bent(draw: st.DrawFn, value: Any) -> Any:
    """A copy of a JSON value in which up to three places say something else, or nothing."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(value))
        if not places:
            break
        holder, key = draw(st.sampled_from(places))
        if isinstance(holder, dict) and draw(st.integers(0, 4)) == 0:
            holder.pop(key, None)
        elif isinstance(holder, dict) and draw(st.integers(0, 4)) == 0:
            holder[draw(st.text(max_size=4))] = draw(_JUNK)
        else:
            other, name = draw(st.sampled_from(places))
            holder[key] = draw(_JUNK | st.just(copy.deepcopy(other[name])))
    return value


def _places(value: Any) -> Any:
    """(the object or list, the key or index) of all that is in a JSON value."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield value, key
            yield from _places(inner)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """The bytes with up to three runs of them lost, repeated, or written over."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from([0, 1, 4, 8, 100, 10**6])))
        number = _NUMBERS.map(lambda n: (n % 2**64).to_bytes(8, "little"))
        nan = st.just(np.full(4, np.nan, np.float32).tobytes())
        data[start:end] = draw(
            nan | st.just(b"") | st.binary(max_size=8) | number | st.just(bytes(data[start:end] * 2))
        )
    return bytes(data)


def _changed(value: Any, encode: Any) -> st.SearchStrategy[bytes]:
    """A file that says something else, or that is damaged."""
    return bent(value).map(encode) | damaged(encode(value))


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _safetensors(header: Any) -> bytes:
    text = _json(header)
    return len(text).to_bytes(8, "little") + text + np.linspace(-1, 1, 16, dtype=np.float32).tobytes()


_HEADER = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]},
    "b": {"dtype": "F16", "shape": [8], "data_offsets": [32, 48]},
    "c": {"dtype": "BF16", "shape": [2, 2, 2], "data_offsets": [48, 64]},
}


def safetensors() -> st.SearchStrategy[dict[str, bytes]]:
    """A file of three tensors."""
    return _changed(_HEADER, _safetensors).map(lambda data: {"model.safetensors": data})


def shards() -> st.SearchStrategy[dict[str, bytes]]:
    """Two files and their index."""
    names = {"a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-1.safetensors"}
    index = {"metadata": {"total_size": 64}, "weight_map": names | {"d": "model-2.safetensors"}}
    second = save({"d": np.ones((2, 2), np.float32)})
    whole = {"model-1.safetensors": _safetensors(_HEADER), "model-2.safetensors": second}
    return _changed(index, _json).map(lambda data: {"model.safetensors.index.json": data, **whole})


def _gguf(content: dict[str, Any]) -> bytes:
    """A GGUF file of the fields, and of tensors of ones: {name: [shape, type]}."""
    out, data, infos = b"", b"", b""
    for key, value in content["fields"].items():
        out += _text(key) + _typed(value)
    for name, (shape, kind, size) in content["tensors"].items():
        infos += _text(name) + struct.pack("<I", len(shape)) + b"".join(_number("<Q", n) for n in shape)
        infos += _number("<I", kind) + struct.pack("<Q", len(data))
        data += b"\0\x3c" * (min(_int(size), 10**4) // 2)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(content["tensors"]), len(content["fields"])) + out + infos
    return head + bytes(-len(head) % 32) + data


def _typed(value: Any) -> bytes:
    if isinstance(value, list):
        first = _typed(value[0] if value else 0)
        return struct.pack("<I", 9) + first[:4] + struct.pack("<Q", len(value)) + b"".join(_typed(v)[4:] for v in value)
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<I", 11) + (value % 2**64).to_bytes(8, "little")
    if isinstance(value, float):
        return struct.pack("<Id", 12, value)
    return struct.pack("<I", 8) + _text(str(value))


def _text(value: Any) -> bytes:
    data = str(value).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(data)) + data


def _number(kind: str, value: Any) -> bytes:
    return struct.pack(kind, _int(value) % 2 ** (8 * struct.calcsize(kind)))


def _int(value: Any) -> int:
    return value if isinstance(value, int) else 1


def gguf_models() -> st.SearchStrategy[dict[str, bytes]]:
    """A Llama of one layer with a tokenizer of either kind."""
    tokens = ["<unk>", "<s>", "</s>", "a", "b", "ab", "▁", "▁a"]
    tokenizer = {
        "tokens": tokens, "token_type": [2, 3, 3, 1, 1, 1, 1, 4], "bos_token_id": 1, "eos_token_id": 2,
        "unknown_token_id": 0, "add_bos_token": True, "merges": ["a b"], "scores": [0.0] * 8,
    }  # fmt: skip
    sizes = {
        "block_count": 1, "context_length": 16, "embedding_length": 8, "feed_forward_length": 4,
        "attention.head_count": 2, "attention.head_count_kv": 1, "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 1e4, "rope.dimension_count": 4,
    }  # fmt: skip
    tensors = {"token_embd.weight": [[8, 8], 1, 128], "output_norm.weight": [[8], 1, 16]}
    tensors |= {f"blk.0.attn_{name}.weight": [[8, rows], 1, 16 * rows] for name, rows in {"q": 8, "k": 4}.items()}
    tensors |= {"rope_freqs.weight": [[2], 1, 4], "blk.0.ffn_up.weight": [[32, 2], 2, 36]}
    fields = {"general.architecture": "llama"} | {f"llama.{key}": value for key, value in sizes.items()}
    fields |= {"tokenizer.chat_template": "{{ messages }}", "general.alignment": 32}
    kinds = [{"model": "llama"}, {"model": "gpt2", "pre": "smollm"}]
    models = []
    for kind in kinds:
        said = {f"tokenizer.ggml.{key}": value for key, value in (kind | tokenizer).items()}
        models.append(_changed({"fields": fields | said, "tensors": tensors}, _gguf_or_nothing))
    return st.one_of(models).map(lambda data: {"model.gguf": data})


def _gguf_or_nothing(content: Any) -> bytes:
    try:
        return _gguf(content)
    except (AttributeError, TypeError, ValueError, KeyError, struct.error):  # bent beyond what the format can say
        return b""


def configs() -> st.SearchStrategy[dict[str, bytes]]:
    """A config of any family."""
    known = [CONFIG_MAPPING[name]().to_dict() for name in sorted(FAMILIES)]
    return st.sampled_from(known).flatmap(lambda config: _changed(config, _json)).map(lambda d: {"config.json": d})


def adapters() -> st.SearchStrategy[dict[str, bytes]]:
    """A folder as PEFT leaves one."""
    layer = "base_model.model.encoder.layers.{}.query.lora_{}.weight"
    tensors = {
        layer.format(i, name): np.ones((2, 4) if name == "A" else (4, 2), np.float32) for i in (0, 1) for name in "AB"
    }
    tensors["base_model.model.head.weight"] = np.ones((3, 4), np.float32)
    config = {
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "lora_dropout": 0.0, "target_modules": ["query"], "bias": "none",
        "modules_to_save": ["head"], "rank_pattern": {}, "alpha_pattern": {"query": 8}, "task_type": None,
        "use_dora": False, "use_rslora": False, "init_lora_weights": True, "layers_to_transform": None,
        "exclude_modules": None, "base_model_name_or_path": "org/model", "trainable_token_indices": None,
    }  # fmt: skip
    good = {"adapter_config.json": _json(config), "adapter_model.safetensors": save(tensors)}
    texts = _changed(config, _json).map(lambda data: good | {"adapter_config.json": data})
    return texts | damaged(good["adapter_model.safetensors"]).map(
        lambda data: good | {"adapter_model.safetensors": data}
    )


def tokenizers() -> st.SearchStrategy[dict[str, bytes]]:
    """A tokenizer of three words, and its config."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["[CLS]"])
    whole = json.loads(tokenizer.to_str())
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]", "model_max_length": 16}
    config |= {"added_tokens_decoder": {"3": {"content": "[CLS]", "special": True}}, "chat_template": "{{ messages }}"}
    config |= {"padding_side": "left", "extra_special_tokens": ["<x>"], "clean_up_tokenization_spaces": False}
    content = {
        "tokenizer.json": whole,
        "tokenizer_config.json": config,
        "special_tokens_map.json": {"unk_token": {"content": "[UNK]", "lstrip": False}, "cls_token": "[CLS]"},
        "added_tokens.json": {"new": 4},
        "config.json": {"model_type": "llama", "tokenizer_class": None, "num_hidden_layers": 2},
    }
    good = {name: _json(value) for name, value in content.items()}
    return _one_changed(content, good)


def vocabularies() -> st.SearchStrategy[dict[str, bytes]]:
    """GPT-2's tokenizer as files of words and merges, which transformers puts together."""
    config = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True, "errors": "replace", "pad_token": None}
    words = {token: index for index, token in enumerate(["<|endoftext|>", "a", "b", "ab", "Ġ", "Ċ"])}
    content = {"tokenizer_config.json": config, "vocab.json": words}
    good = {name: _json(value) for name, value in content.items()} | {"merges.txt": b"#version: 0.2\na b\n"}
    return _one_changed(content, good) | damaged(good["merges.txt"]).map(lambda data: good | {"merges.txt": data})


def _one_changed(content: dict[str, Any], good: dict[str, bytes]) -> st.SearchStrategy[dict[str, bytes]]:
    """The good files of a folder, one of them changed."""
    return st.one_of(
        [_changed(value, _json).map(lambda data, name=name: good | {name: data}) for name, value in content.items()]
    )


def labels() -> st.SearchStrategy[dict[str, bytes]]:
    """The class names beside an adapter."""
    names = {"0": "bad", "1": "good"}
    stored = {"id2label": names, "label2id": {"bad": 0, "good": 1}, "problem_type": "single_label_classification"}
    return _changed(stored, _json).map(lambda data: {"labels.json": data})


def run_configs() -> st.SearchStrategy[dict[str, bytes]]:
    """A config of train.lm: its values changed, its bytes, or a tag and an alias put before a value."""
    config = {
        "model": "me/model", "output_dir": "out", "seed": 0, "data": {"train": "a.jsonl", "max_length": 16},
        "lora": {"r": 8, "target_modules": ["q_proj"], "rank_pattern": {"k_proj": 4}, "init_lora_weights": True},
        "train": {"learning_rate": 1e-3, "max_steps": 3}, "offline": {"model": "m", "data": {"train": "b.jsonl"}},
    }  # fmt: skip
    whole = _yaml(config)
    return (_changed(config, _yaml) | _marked(whole)).map(lambda data: {"config.yaml": data})


def _yaml(value: Any) -> bytes:
    return yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "surrogatepass")


_MARKS = (
    b"!!int ", b"!!float ", b"!!bool ", b"!!timestamp ", b"!!map ", b"!!set ", b"!!binary ", b"!!null ", b"&a ",
    b"*a #", b"&a [*a] #", b"!x ", b"? ", b"<<: ", b"- ", b"[", b"{", b"9" * 5000, b"[" * 2000,
)  # fmt: skip


@st.composite
def _marked(draw: st.DrawFn, whole: bytes) -> bytes:
    """The YAML with up to three of its values tagged, anchored or replaced by an alias."""
    parts = whole.split(b": ")
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(1, len(parts) - 1))
        parts[place] = draw(st.sampled_from(_MARKS)) + parts[place]
    return b": ".join(parts)
