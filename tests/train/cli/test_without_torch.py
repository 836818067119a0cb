from __future__ import annotations

import importlib.util
import sys

import pytest

from train.cli.without_torch import torch_hidden


def test_in_the_block_it_is_neither_found_nor_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    with torch_hidden():
        assert importlib.util.find_spec("torch") is None
        with pytest.raises(ImportError):
            import torch  # noqa: F401
    assert "torch" not in sys.modules


def test_it_is_there_again_after_an_error(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    with pytest.raises(ZeroDivisionError), torch_hidden():
        _ = 1 / 0
    assert "torch" not in sys.modules


def test_who_has_imported_it_keeps_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", sys)
    with torch_hidden():
        assert sys.modules["torch"] is sys
    assert sys.modules["torch"] is sys
