"""Files made to harm: each is refused with its name, in bounded time and memory, and no code in it runs.

What `benchmarks.fuzz` finds by chance is in test_fuzz.py; here is what somebody would write on purpose.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import CONFIG_MAPPING

import jlora
from jlora.errors import JloraError
from jlora.files.limits import LARGEST_JSON
from jlora.files.safetensors_reader import open_safetensors
from jlora.gguf.model import gguf_tensors
from jlora.gguf.reader import read_gguf
from jlora.models.registry import FAMILIES
from jlora.pretrained.folder import INDEX_FILE, SINGLE_FILE, open_tensors
from jlora.pretrained.load import load_base
from jlora.pretrained.source import PretrainedSource
from jlora.pretrained.tokenizer import read_tokenizer
from tests.support.adapters import small_adapter
from tests.support.training import tiny

ZEROS = bytes(16)


def _entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def _write(file: Path, header, data: bytes = ZEROS, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return file


A = _entry([4], 0, 16)
_APART = "data_offsets: expected a start and an end, 16 bytes apart"
HEADERS = {
    "overlapping": ({"a": A, "b": _entry([4], 8, 24)}, "b: data_offsets: expected a start at 16, .*found 8"),
    "the same bytes twice": ({"a": A, "b": A}, "b: data_offsets: expected a start at 16, .*found 0"),
    "a hole": ({"a": _entry([2], 8, 16)}, "a: data_offsets: expected a start at 0, .*found 8"),
    "behind the end": ({"a": A, "b": _entry([4], 16, 32)}, "expected a whole safetensors file of .* bytes; found"),
    "before the start": ({"a": _entry([4], -16, 0)}, f"a: {_APART}.*found"),
    "backwards": ({"a": _entry([4], 16, 0)}, f"a: {_APART}"),
    "another size": ({"a": _entry([4], 0, 8)}, f"a: {_APART}.*found"),
    "bytes that nobody has": ({"a": _entry([2], 0, 8)}, "expected a whole safetensors file of .* bytes; found"),
    "too many numbers": ({"a": _entry([2**62, 4], 0, 16)}, r"a: shape: expected the sizes of .* found \[4611"),
    "a negative size": ({"a": _entry([-4], 0, 16)}, r"a: shape: expected the sizes .* found \[-4\]"),
    "no sizes": ({"a": _entry("4", 0, 16)}, "a: shape: expected the sizes"),
    "a thousand axes": ({"a": _entry([1] * 1000 + [4], 0, 16)}, "a: shape: expected the sizes of at most 32 axes"),
    "an unknown dtype": ({"a": _entry([4], 0, 16, "F33")}, "a: dtype: expected one of .*; found 'F33'"),
    "a dtype that is none": ({"a": _entry([4], 0, 16, ["F32"])}, "a: dtype: expected one of"),
    "half a byte": ({"a": _entry([31], 0, 16, "F4")}, "a: data_offsets: expected"),
    "no entry": ({"a": 3}, "a: expected dtype, shape and data_offsets; found 3"),
    "more in an entry": ({"a": A | {"x": 1}}, "a: expected dtype, shape and data_offsets"),
    "metadata that is none": (
        {"a": A, "__metadata__": {"format": ["pt"]}},
        "__metadata__: expected an object of texts",
    ),
    "a list": (b"[]", "expected a JSON object, .*; found a list"),
    "a key twice": (b'{"a":%b,"a":%b}' % (2 * (json.dumps(A).encode(),)), "expected JSON; found: the key 'a' twice"),
    "a dtype twice": (b'{"a":{"dtype":"F32","dtype":"F16"}}', "expected JSON; found: the key 'dtype' twice"),
    "deep": (b'{"a":' + b"[" * 10**6, "expected JSON; found: maximum recursion depth"),
    "a long number": (b'{"a":' + b"9" * 10**4 + b"}", "expected JSON; found: Exceeds the limit"),
    "no text": (b'{"\xff"', "expected JSON; found"),
    "a key that moves the cursor": ({"\x1b[2J": A}, r"expected keys that can be printed; found '\\x1b\[2J'"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_cannot_be_true(name, tmp_path):
    header, message = HEADERS[name]
    file = _write(tmp_path / SINGLE_FILE, header)
    with pytest.raises(JloraError, match=f"{file}: {message}"):
        open_tensors(tmp_path)


def test_what_the_package_refuses_is_refused_here(tmp_path):
    """Of the above it takes a key said twice, foreign fields, many axes and keys that cannot be printed."""
    taken = set()
    for name, (header, _) in HEADERS.items():
        try:
            safe_open(_write(tmp_path / "x", header), framework="numpy")
        except SafetensorError:
            continue
        taken.add(name)
    assert taken <= {"a key twice", "more in an entry", "a thousand axes", "a key that moves the cursor"}


@pytest.mark.parametrize("length", [2**64 - 1, 2**31, 17])
def test_a_header_longer_than_the_file(length, tmp_path):
    _write(tmp_path / SINGLE_FILE, b"{}", b"", length)
    with pytest.raises(JloraError, match="expected a whole safetensors file; found 10 bytes"):
        open_tensors(tmp_path)


def _hollow(file: Path, size: int, start: bytes = b"") -> Path:
    """A file of many bytes that takes no place on the disk."""
    with file.open("wb") as stream:
        stream.write(start)
        stream.truncate(size)
    return file


def test_files_larger_than_memory_are_refused_by_their_size(tmp_path):
    size = 2**42
    _hollow(tmp_path / SINGLE_FILE, size, (size // 2).to_bytes(8, "little"))
    with pytest.raises(JloraError, match=rf"{SINGLE_FILE}: expected a header of at most {LARGEST_JSON} bytes"):
        open_tensors(tmp_path)
    _hollow(tmp_path / "config.json", size)
    with pytest.raises(JloraError, match=rf"config\.json: expected JSON of at most {LARGEST_JSON} bytes; found {size}"):
        PretrainedSource(tmp_path).config_with()
    (tmp_path / "config.json").unlink()
    _hollow(tmp_path / "tokenizer.json", size)
    with pytest.raises(JloraError, match=rf"tokenizer\.json: expected at most .* bytes; found {size}"):
        read_tokenizer(tmp_path, str(tmp_path))


def test_a_tensor_larger_than_memory_is_refused_before_it_is_read(tmp_path):
    small_adapter.save(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    header = json.dumps({"base_model.model.head.weight": _entry([2**40], 0, 2**42)}).encode()
    _hollow(file, 8 + len(header) + 2**42, len(header).to_bytes(8, "little") + header)
    with pytest.raises(JloraError, match=r"expected a tensor of shape .*, found no such key"):
        small_adapter.load(tmp_path)


BOMBS = {
    "many tensors": lambda: b",".join(
        b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(10**5)
    ),
    "many lists": lambda: b'"a":[' + b"[]," * (LARGEST_JSON // 3 - 20) + b"[]]",
    "a key twice among many": lambda: b",".join(b'"%x":1' % (i % 299_999) for i in range(300_000)),
}


def test_files_that_unfold_stay_within_a_gigabyte(tmp_path):
    """In a process of its own, with room for no more beside what it needs to start."""
    for name, make in BOMBS.items():
        _write(tmp_path / f"{name}.safetensors", b"{" + make() + b"}", b"")
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + _text("k")
    (tmp_path / "numbers.gguf").write_bytes(head + struct.pack("<IIQ", 9, 2, 2**23) + b"\x01\x01" * 2**23)
    program = """
import resource, sys
from pathlib import Path
from jlora.errors import JloraError
from jlora.gguf.reader import read_gguf
from jlora.files.safetensors_reader import open_safetensors
status = dict(line.split(":") for line in open("/proc/self/status"))
limit = int(status["VmSize"].split()[0]) * 1024 + 2**30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for file in sorted(Path(sys.argv[1]).iterdir()):
    try:
        (read_gguf if file.suffix == ".gguf" else open_safetensors)(file)
        print(file.stem, "read")
    except JloraError:
        print(file.stem, "refused")
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=300)
    found = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    expected = dict.fromkeys(BOMBS, "refused") | {"many tensors": "read", "numbers": "read"}
    assert found == expected, done.stderr


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(JloraError, match=r"none\.safetensors: expected a safetensors file; found no such file; check"):
        open_safetensors(tmp_path / "none.safetensors")
    with pytest.raises(JloraError, match="found a folder; name a file in it"):
        open_safetensors(tmp_path)


INDEXES = {
    "another folder": "../model-1.safetensors",
    "an absolute path": "/etc/passwd",
    "a folder inside": "sub/model-1.safetensors",
    "no text": 3,
    "a list": ["model-1.safetensors"],
    "a zero byte": "model-1\0.safetensors",
    "too long": "x" * 5000,
    "the folder": ".",
}


@pytest.mark.parametrize("name", INDEXES)
def test_an_index_names_files_beside_it_alone(name, tmp_path):
    save_file({"a": np.ones(4, np.float32)}, tmp_path / "model-1.safetensors")
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": INDEXES[name]}}))
    with pytest.raises(JloraError, match=rf"{INDEX_FILE}: weight_map: b: expected the name of a file in its folder"):
        open_tensors(tmp_path)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"a": "1", "b": "2"}, r"model-2\.safetensors: a: .* found that it names model-1\.safetensors"),
        ({"b": "2"}, r"model-2\.safetensors: a: .* found no such key in it"),
    ],
)
def test_readers_that_go_by_the_index_and_by_the_shards_see_one_model(where, message, tmp_path):
    save_file({"a": np.ones(4, np.float32)}, tmp_path / "model-1.safetensors")
    save_file({"a": np.full(4, 10, np.float32), "b": np.ones(4, np.float32)}, tmp_path / "model-2.safetensors")
    names = {key: f"model-{shard}.safetensors" for key, shard in where.items()}
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": names}))
    with pytest.raises(JloraError, match=message):
        open_tensors(tmp_path)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused_where_they_are_read(dtype, value, tmp_path):
    numbers = np.ones((300, 400)).astype("f4")
    for place in (0, 77_777, -1):
        wrong = numbers.copy()
        wrong.flat[place] = value
        wrong = wrong.astype(jlora.pretrained.folder.DTYPES.get(dtype, dtype))
        save_file({"a": wrong, "b": numbers}, tmp_path / SINGLE_FILE)
        tensors = open_tensors(tmp_path)
        np.testing.assert_array_equal(tensors["b"].read(np.float32), numbers)
        for asked in (np.float32, wrong.dtype):
            with pytest.raises(JloraError, match=f"{SINGLE_FILE}: a: expected finite numbers, found 1 of 120000"):
                tensors["a"].read(asked)
    right = numbers.astype(wrong.dtype)
    save_file({"a": right * 0 - right}, tmp_path / SINGLE_FILE)
    np.testing.assert_array_equal(open_tensors(tmp_path)["a"].read(wrong.dtype), -right)
    save_file({"a": np.array([1e300])}, tmp_path / SINGLE_FILE)
    with pytest.raises(JloraError, match="a: expected finite numbers, found 1 of 1"):
        open_tensors(tmp_path)["a"].read(np.float32)


def test_only_what_is_asked_for_is_read(tmp_path):
    numbers = np.arange(12, dtype=np.float32).reshape(3, 4)
    numbers[2, 3] = np.nan
    save_file({"a": numbers}, tmp_path / SINGLE_FILE)
    tensor = open_safetensors(tmp_path / SINGLE_FILE)["a"]
    index = (slice(0, 3), slice(1, 3))
    np.testing.assert_array_equal(tensor.read(np.float32, index), numbers[index])
    with pytest.raises(JloraError, match="found 1 of 4 NaN"):
        tensor.read(np.float32, (slice(2, 3), slice(0, 4)))


def test_a_model_with_a_number_that_is_none_is_not_loaded(tmp_path):
    folder = shutil.copytree(tiny.model_folder("bert"), tmp_path / "model")
    tensors = tiny.tensors(folder)
    key = next(key for key in tensors if key.endswith("1.output.dense.weight"))
    tensors[key][3, 5] = np.nan
    save_file(tensors, folder / SINGLE_FILE)
    with pytest.raises(JloraError, match=f"{SINGLE_FILE}: {key}: expected finite numbers, found 1 of"):
        load_base(str(folder), key=jax.random.key(0))


class _Bomb:
    def __reduce__(self):
        return os.abort, ()


def _pickle(file: Path) -> None:
    file.write_bytes(pickle.dumps(_Bomb()))


def _zip(file: Path) -> None:
    """As torch.save writes it."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(_Bomb()))


@pytest.mark.parametrize("write", [_pickle, _zip])
def test_pickles_and_archives_are_never_opened_whatever_they_are_called(write, tmp_path):
    write(tmp_path / "pytorch_model.bin")
    with pytest.raises(JloraError, match=r"found pytorch_model\.bin, which may run code and is never opened"):
        open_tensors(tmp_path)
    write(tmp_path / SINGLE_FILE)
    with pytest.raises(JloraError, match=f"{SINGLE_FILE}: expected a whole safetensors file"):
        open_tensors(tmp_path)
    write(tmp_path / "model.gguf")
    with pytest.raises(JloraError, match=r"model\.gguf: expected a whole GGUF file; found a (pickle|ZIP archive)"):
        open_tensors(tmp_path / "model.gguf")
    adapter = small_adapter.save(tmp_path / "adapter")
    write(adapter / "adapter_model.safetensors")
    with pytest.raises(JloraError, match=r"adapter_model\.safetensors: expected a whole safetensors file"):
        small_adapter.load(adapter)
    for name in ("tokenizer.json", "tokenizer.model", "vocab.txt"):
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        write(folder / name)
        with pytest.raises(JloraError, match=r"expected (a tokenizer with the model|text in UTF-8|JSON)"):
            read_tokenizer(folder, str(folder))


@pytest.fixture
def evil(tmp_path):
    """A model's folder with Python files that end the process; `.say(file, **entries)` adds to its JSON."""

    class Folder:
        path = shutil.copytree(tiny.model_folder("bert"), tmp_path / "evil")

        def say(self, file, **entries):
            stored = json.loads((self.path / file).read_text())
            (self.path / file).write_text(json.dumps(stored | entries))

    for name in ("evil", "configuration_evil", "tokenization_evil"):
        (Folder.path / f"{name}.py").write_text("import os\nos.abort()\n")
    return Folder()


def test_code_beside_a_model_is_refused(evil):
    evil.say("config.json", auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"})
    with pytest.raises(
        JloraError, match=r"config\.json: auto_map: AutoConfig: expected a class of transformers' \w+, because"
    ):
        load_base(str(evil.path))
    evil.say("config.json", model_type="evil")
    with pytest.raises(JloraError, match=r"model_type: expected one of .*; found 'evil'"):
        load_base(str(evil.path))
    with pytest.raises(JloraError, match=r"model_type: expected one of .*; found 'evil'"):
        read_tokenizer(evil.path, str(evil.path))


def test_code_beside_a_tokenizer_is_refused(evil):
    evil.say("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})
    with pytest.raises(JloraError, match=r"tokenizer_config\.json: auto_map: expected no value, .* run the code"):
        read_tokenizer(evil.path, str(evil.path))


@pytest.mark.parametrize(
    "part",
    [
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////wAA"}},
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    ],
)
def test_a_tokenizer_that_panics_is_refused(part, evil):
    """In Rust, with what Python does not take for an Exception; one of them when the file is read, one in its use."""
    evil.say("tokenizer.json", **part)
    with pytest.raises(JloraError, match="expected a tokenizer with the model"):
        read_tokenizer(evil.path, str(evil.path))


def test_a_message_is_short_whatever_a_file_says(evil):
    evil.say("config.json", model_type="x" * 10**6)
    with pytest.raises(JloraError, match=r"model_type: .*x…x") as caught:
        load_base(str(evil.path))
    assert len(str(caught.value)) < 10**4


@pytest.mark.parametrize(
    "name", ["AutoModel", "AutoTokenizer", "RagTokenizer", "pipeline", "Trainer", "a.b.Tokenizer", ["x"]]
)
def test_a_tokenizers_class_is_one_of_tokenizers(name, evil):
    """transformers would call the `from_pretrained` of whatever it has by that name."""
    evil.say("config.json", auto_map={"AutoModel": "evil.Model"})
    for file in ("config.json", "tokenizer_config.json"):
        evil.say(file, tokenizer_class=name)
        with pytest.raises(JloraError, match=r"tokenizer_class: expected a tokenizer of transformers; found"):
            read_tokenizer(evil.path, str(evil.path))


def test_classes_that_transformers_has_too_are_ours_here(evil):
    """Falcon's and Phi-3's published configs name the code that transformers has taken over since."""
    evil.say("config.json", auto_map={"AutoConfig": "configuration_evil.BertConfig", "AutoModel": "evil.BertModel"})
    assert type(PretrainedSource(evil.path).config).__module__.startswith("transformers.")


CONFIGS = {
    "layers": ("qwen2", {"num_hidden_layers": 10**10}, "num_hidden_layers: expected an integer from 1 to 1000"),
    "layers by another name": ("gpt2", {"n_layer": 10**10}, "n_layer: expected an integer from 1 to 1000"),
    "layers by kind": ("gpt_neo", {"attention_types": [[["global"], 10**10]]}, "attention_types: expected pairs"),
    "layers less layers": (
        "gpt_neo",
        {"attention_types": [[["global"], 10**9], [["local"], -(10**9)]]},
        "attention_types: expected pairs",
    ),
    "labels": ("bert", {"num_labels": 10**10}, "num_labels: expected an integer from 1 to 1000000"),
    "no heads": ("bert", {"num_attention_heads": 0}, "num_attention_heads: expected an integer from 1"),
    "half a head": ("bert", {"num_attention_heads": 0.5}, "num_attention_heads: expected an integer from 1"),
    "a size": ("llama", {"head_dim": 10**9}, "head_dim: expected an integer from 1 to 16777216"),
    "NaN": ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps: expected finite numbers"),
    "infinity inside": (
        "llama",
        {"rope_parameters": {"rope_theta": 1e999}},
        "rope_parameters: expected finite numbers",
    ),
    "a dropout": ("bert", {"hidden_dropout_prob": 5.0}, "hidden_dropout_prob: expected a number from 0 to below 1"),
    "a base of 0": ("llama", {"rope_theta": 0}, "rope_theta: expected a number above 0"),
    "a factor of 0": (
        "llama",
        {"rope_scaling": {"rope_type": "linear", "factor": 0}},
        r"rope_scaling\.factor: expected",
    ),
    "a factor below 0": ("llama", {"rope_parameters": {"factor": -2.0}}, r"rope_parameters\.factor: expected a number"),
    "a factor of one kind of layers": (
        "gemma3_text",
        {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 0}}},
        r"rope_parameters\.full_attention\.factor: expected a number above 0",
    ),
    "a length of 0": (
        "llama",
        {"rope_scaling": {"rope_type": "llama3", "original_max_position_embeddings": 0}},
        r"rope_scaling\.original_max_position_embeddings: expected a number above 0; found 0",
    ),
    "factors that turn round": (
        "llama",
        {"rope_scaling": {"rope_type": "llama3", "low_freq_factor": 4, "high_freq_factor": 4}},
        r"rope_scaling\.high_freq_factor: expected more than low_freq_factor, 4; found 4",
    ),
    "factors of pairs": (
        "phi3",
        {"rope_scaling": {"short_factor": [1, 0]}},
        r"short_factor: .* found \[1, 0\]",
    ),
    "an id beyond words": ("llama", {"pad_token_id": 10**12}, "pad_token_id: expected a token's id"),
    "an id that is a text": ("llama", {"eos_token_id": "x"}, "eos_token_id: expected a token's id.* found 'x'"),
    "ids of several kinds": ("llama", {"eos_token_id": [1, True]}, "eos_token_id: expected a token's id"),
    "a method": ("bert", {"save_pretrained": "x"}, "save_pretrained: expected a setting of a model; found a method"),
    "a class": ("bert", {"__class__": "x"}, "__class__: expected a setting of a model; found a method"),
    "names that are none": ("bert", {"id2label": ["a", "b"]}, r"config.json: id2label: expected an object"),
    "a type that is none": (["bert"], {}, r"model_type: expected one of .*; found \['bert'\]"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_that_no_model_has(name, tmp_path):
    model_type, entries, message = CONFIGS[name]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type} | entries))
    with pytest.raises(JloraError, match=message):
        PretrainedSource(tmp_path).config_with()


def test_stop_tokens_that_are_none_are_said_of_their_file(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ["x"]}))
    with pytest.raises(JloraError, match=r"generation_config\.json: eos_token_id: expected a token's id"):
        PretrainedSource(tmp_path).config_with()


def test_a_key_twice_in_a_config(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert", "hidden_size": 8, "hidden_size": 16}')
    with pytest.raises(JloraError, match=r"config\.json: expected JSON; found: the key 'hidden_size' twice"):
        PretrainedSource(tmp_path).config_with()


def test_configs_as_transformers_writes_them_are_none_of_these(tmp_path):
    for family in sorted(FAMILIES):
        CONFIG_MAPPING[family]().save_pretrained(tmp_path)
        assert PretrainedSource(tmp_path).config.model_type == family


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def _gguf(fields=(), tensors=(), data=b"") -> bytes:
    """A file of (key, type, bytes of the value) and (name, shape, type, offset)."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields))
    head += b"".join(_text(key) + struct.pack("<I", kind) + value for key, kind, value in fields)
    for name, shape, kind, offset in tensors:
        head += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    return head + bytes(-len(head) % 32) + data


_U32, _STRING, _ARRAY = 4, 8, 9
ONE = ("k", _U32, struct.pack("<I", 1))
T = ("token_embd.weight", (4,), 0, 0)
GGUFS = {
    "more fields than bytes": (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "fields and 0 tensors, where 65536 are"),
    "more tensors than bytes": (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "tensors, where 65536 are the most"),
    "a long text": (_gguf([("k", _STRING, struct.pack("<Q", 2**63))]), "its end after"),
    "a long list": (_gguf([("k", _ARRAY, struct.pack("<IQ", 0, 2**63))]), "its end after"),
    "lists in lists": (_gguf([("k", _ARRAY, struct.pack("<IQ", _ARRAY, 1) * 10**5)]), "an array of arrays"),
    "a field twice": (_gguf([ONE, ONE]), "the name 'k', twice"),
    "a tensor twice": (_gguf([], [T, T], ZEROS), "the name 'token_embd.weight', twice"),
    "the same bytes twice": (_gguf([], [T, ("b", (4,), 0, 8)], 2 * ZEROS), "token_embd.weight and b in the same bytes"),
    "no alignment": (_gguf([("general.alignment", _U32, bytes(4))]), "general.alignment 0, where"),
    "a text for alignment": (_gguf([("general.alignment", _STRING, _text("x"))]), "general.alignment 'x', where"),
    "no axes": (_gguf([], [("token_embd.weight", (), 0, 0)]), "of 0 axes"),
    "many axes": (_gguf([], [("token_embd.weight", (1,) * 999, 0, 0)]), "of 999 axes"),
    "no numbers": (_gguf([], [("token_embd.weight", (4, 0), 0, 0)]), r"of the shape \(4, 0\)"),
    "too many numbers": (_gguf([], [("token_embd.weight", (2**62, 4), 0, 0)]), "of the shape"),
    "parts by text": (_gguf([("split.count", _STRING, _text("2"))]), "one of '2' parts"),
    "no text": (_gguf([("k", _STRING, struct.pack("<Q", 1) + b"\xff")]), "'utf-8' codec"),
}


@pytest.mark.parametrize("name", GGUFS)
def test_gguf_files_that_cannot_be_true(name, tmp_path):
    content, message = GGUFS[name]
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(JloraError, match=rf"x\.gguf: expected a whole GGUF file; found: .*{message}"):
        read_gguf(tmp_path / "x.gguf")


LLAMA = ("general.architecture", _STRING, _text("llama"))
TENSORS = {
    "behind the end": ((4,), 0, 2**62, "expected a whole GGUF file, of .* bytes at least"),
    "larger than the file": ((2**40,), 0, 0, "expected a whole GGUF file, of .* bytes at least"),
    "half a block": ((16,), 2, 0, "expected rows of a multiple of 32 numbers, a block of Q4_0; found 16"),
    "no known type": ((4,), 99, 0, "expected a type that gguf dequantizes; found type 99"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_gguf_tensors_that_cannot_be_read(name, tmp_path):
    shape, kind, offset, message = TENSORS[name]
    (tmp_path / "x.gguf").write_bytes(_gguf([LLAMA], [("token_embd.weight", shape, kind, offset)], ZEROS))
    with pytest.raises(JloraError, match=rf"x\.gguf: token_embd\.weight: {message}"):
        gguf_tensors(tmp_path / "x.gguf")["model.embed_tokens.weight"].require_float()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_of_a_gguf_file_that_are_none(value, tmp_path):
    data = np.array([0, 1, value, 3], np.float32).tobytes()
    (tmp_path / "x.gguf").write_bytes(_gguf([LLAMA], [T], data))
    with pytest.raises(JloraError, match=r"x\.gguf: token_embd\.weight: expected finite numbers, found 1 of 4"):
        gguf_tensors(tmp_path / "x.gguf")["model.embed_tokens.weight"].read(np.float32)


ADAPTERS = {
    "a rank beyond memory": ({"r": 10**9}, "r: expected an integer of at most 65536, found 1000000000"),
    "ranks beyond memory": (
        {"rank_pattern": {"query": 10**9}},
        "rank_pattern: expected an object .module: integer of at",
    ),
    "names that are none": ({"modules_to_save": [2]}, r"modules_to_save: expected a list of texts, found \[2\]"),
    "no number": ({"lora_alpha": 10**400}, "lora_alpha: expected a number"),
    "a deep pattern": ({"target_modules": "(" * 5000 + ")" * 5000}, "maximum recursion depth exceeded"),
    "a long pattern": ({"rank_pattern": {"a{99999999999999999999}": 2}}, "the repetition number is too large"),
    "no base": ({"base_model_name_or_path": 3}, "base_model_name_or_path: expected a name, found 3"),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_that_nobody_trained(name, tmp_path):
    entries, message = ADAPTERS[name]
    path = small_adapter.save(tmp_path) / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    with pytest.raises(JloraError, match=rf"adapter_config\.json: {message}"):
        small_adapter.load(tmp_path)
