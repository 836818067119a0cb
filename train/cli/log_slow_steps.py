"""Logs what a run is doing if it takes longer than a moment."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

AFTER_SECONDS = 1.0


@contextmanager
def working(what: str) -> Iterator[None]:
    """Logs `what` at level INFO once the block has taken one second; nothing if it is faster."""
    timer = threading.Timer(AFTER_SECONDS, logger.info, [what])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
