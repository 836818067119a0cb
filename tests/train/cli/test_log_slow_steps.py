import logging
import time

import pytest

from train.cli import log_slow_steps
from train.cli.log_slow_steps import working


def test_only_what_takes_a_while_is_said(caplog, monkeypatch):
    monkeypatch.setattr(log_slow_steps, "AFTER_SECONDS", 0.2)
    with caplog.at_level(logging.INFO):
        with working("quick"):
            pass
        with working("slow"):
            time.sleep(0.6)
            assert caplog.messages == ["slow"]  # while it goes on
        with pytest.raises(ZeroDivisionError), working("failed"):
            raise ZeroDivisionError
        time.sleep(0.4)
    assert caplog.messages == ["slow"]
