"""Runs of both trainers that nothing disturbed, for all tests here to compare with."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runs.faults import runs


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, float]]:
    """undisturbed(trainer) is (run folder, seconds that the run took when all was compiled)."""

    @functools.cache
    def run(trainer: str) -> tuple[Path, float]:
        folder = tmp_path_factory.mktemp(trainer) / "run"
        arguments, log = runs.TRAINERS[trainer](folder, "--overwrite"), folder.with_name("log")
        for _ in range(2):
            begin = time.monotonic()
            assert runs.run(trainer, arguments, log) == 0, log.read_text()
        return folder, time.monotonic() - begin

    return run
