"""Answers to clients that may leave: server-sent events, and work that ends with its connection."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

ResultT = TypeVar("ResultT")


async def while_connected(receive: Receive, work: Callable[[], Awaitable[ResultT]]) -> ResultT | None:
    """Returns what `work` returns; cancels it and returns None when the client leaves.

    Raises:
      Exception: what `work` raises, as it is.
    """
    outcome: list[ResultT] = []
    failure: list[Exception] = []
    async with anyio.create_task_group() as tasks:

        async def cancel_when_gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            tasks.cancel_scope.cancel()

        tasks.start_soon(cancel_when_gone)
        try:
            outcome.append(await work())
        except Exception as error:  # a task group would wrap it
            failure.append(error)
        tasks.cancel_scope.cancel()
    if failure:
        raise failure[0]
    return outcome[0] if outcome else None


class EventStream(Response):
    """A response of server-sent events; `close` is called at its end, however it ends."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[dict[str, Any] | str], close: Callable[[], None]) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._close = events, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, lambda: self._send_all(send))
        finally:
            self._close()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for event in self._events:
            text = event if isinstance(event, str) else json.dumps(event, ensure_ascii=False, separators=(",", ":"))
            await send({"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
