"""What the machine decides of a run: bfloat16 where it has units for it, and kernels of its own platform alone."""

from __future__ import annotations

import typing

import jax
import pytest

from jlora.errors import JloraError
from jlora.models.attention.visibility import KERNELS
from jlora.pretrained.source import PretrainedSource
from tests.support.training import config_cases, tiny, tiny_lm
from train.config.sections import TrainSection
from train.devices import platform
from train.devices.platform import attention_of, bfloat16_units, settle_dtype
from train.lm.config import LMConfig
from train.lm.model import build_model

NAMES = ["input_ids", "attention_mask"]


@pytest.fixture
def cpu_info(tmp_path, monkeypatch):
    """Writes what Linux tells of a CPU with these flags."""
    monkeypatch.setattr(platform, "_CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(platform.platform, "machine", lambda: "x86_64")

    def write(flags: str) -> None:
        (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t\t: fpu {flags} sse\nbugs : none\nflags : other\n")

    return write


@pytest.mark.parametrize(
    ("flags", "units", "dtype"),
    [
        ("avx2", "", "float32"),
        ("avx512_bf16", "avx512_bf16", "bfloat16"),
        ("avx512_bf16 amx_bf16", "amx_bf16", "bfloat16"),
        ("avx512_bf16_not", "", "float32"),
    ],
)
def test_auto_is_what_the_cpu_multiplies_fast(flags, units, dtype, cpu_info):
    cpu_info(flags)
    assert bfloat16_units() == units
    assert settle_dtype(config_cases.config()).train.dtype == dtype


def test_a_machine_that_does_not_tell_computes_in_float32(tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "_CPU_INFO", tmp_path / "none")
    assert settle_dtype(config_cases.config()).train.dtype == "float32"


@pytest.mark.parametrize("backend", ["gpu", "tpu"])
def test_auto_is_bfloat16_on_accelerators(backend, monkeypatch, cpu_info):
    cpu_info("avx2")
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert settle_dtype(config_cases.config()).train.dtype == "bfloat16"


def test_a_dtype_that_is_given_stays():
    config = config_cases.config(train={"dtype": "float32"})
    assert settle_dtype(config) is config


@pytest.mark.parametrize(("kernel", "machine"), [("cudnn", "an NVIDIA GPU"), ("splash", "a TPU")])
def test_a_kernel_of_another_platform_is_refused(kernel, machine, tmp_path, capsys):
    with pytest.raises(JloraError, match=rf"train.attention: .*this machine's cpu, found {kernel}, .* {machine}"):
        settle_dtype(config_cases.config(train={"attention": kernel}))
    assert tiny.call(tiny.classify.main, tiny.arguments(tmp_path / "run", f"train.attention={kernel}")) == 2
    assert "train.attention" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def _config(length=16):
    sections = {"data": {"train": "t", "max_length": length}, "train": {"dtype": "float32"}}
    return config_cases.config(LMConfig, model=str(tiny_lm.model_folder()), **sections)


def test_rows_that_are_longer_than_the_positions_are_refused():
    config = _config(4096)
    with pytest.raises(JloraError, match=r"data.max_length=4096: expected at most \d+ tokens a row.*found 4096"):
        attention_of(config, build_model(config, PretrainedSource(config.model)), NAMES, None)


def test_a_cpu_computes_by_blocks_and_says_why():
    config = _config()
    found = attention_of(config, build_model(config, PretrainedSource(config.model)), NAMES, None)
    assert found == {"kernel": "blockwise", "reason": "there is no other for this platform"}


def test_a_gpu_that_cannot_says_why(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    config = _config()
    found = attention_of(config, build_model(config, PretrainedSource(config.model)), NAMES, None)
    assert found["kernel"] == "blockwise"
    assert found["reason"].startswith("cudnn: it needs bfloat16")


def test_every_kernel_is_a_choice_of_the_config():
    assert typing.get_args(TrainSection.model_fields["attention"].annotation) == KERNELS


def test_a_kernel_that_the_mesh_cannot_use_is_known_before_anything_is_loaded(monkeypatch):
    """Splash takes equal parts of the heads alone: of two heads of keys no four devices."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(platform, "set_mesh", lambda mesh: jax.sharding.use_abstract_mesh(mesh))
    kinds = (jax.sharding.AxisType.Auto,) * 3
    config = _config()
    for tensor, kernel in ((1, "splash"), (64, "blockwise")):
        mesh = jax.sharding.AbstractMesh((1, 1, tensor), ("data", "fsdp", "tensor"), axis_types=kinds)
        found = attention_of(config, build_model(config, PretrainedSource(config.model)), NAMES, mesh)
        assert found["kernel"] == kernel, found
    assert "a mesh does not split" in found["reason"]
