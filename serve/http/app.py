"""The application: routes, and what every request passes on its way to one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.routing import Route

from jlora.errors import JloraError
from serve.engine.requests import Classifying, Engine
from serve.http.auth import Admission, NoSniffing
from serve.http.errors import answer_error
from serve.http.metrics import Metrics, RequestCounter
from serve.http.prompts import Prompts
from serve.http.routes import admin, chat, classify, completions, health_and_metrics, models, page
from serve.http.settings import HttpSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROUTES = [
    *(Route(path, page.show_page) for path in page.PATHS),
    Route("/health", health_and_metrics.report_health),
    Route("/metrics", health_and_metrics.report_metrics),
    Route("/v1/models", models.list_models),
    Route("/v1/models/{model:path}", models.retrieve_model),
    Route("/v1/chat/completions", chat.create_chat_completion, methods=["POST"]),
    Route("/v1/completions", completions.create_completion, methods=["POST"]),
    Route("/v1/classify", classify.classify_texts, methods=["POST"]),
    Route("/admin/adapters", admin.load_adapter, methods=["POST"]),
    Route("/admin/adapters/{name:path}", admin.unload_adapter, methods=["DELETE"]),
]


def make_app(engine: Engine | Classifying, tokenizer: PreTrainedTokenizerBase, settings: HttpSettings) -> Starlette:
    """Returns the application, which answers with the engine; it does not stop the engine.

    Its `state.ending` is False; set it once the server takes no more requests, which `/health` then says.

    Args:
      tokenizer: the base's, with its chat template.
    """
    common = cast(Engine, engine)  # an encoder's engine has all of Engine but `submit`
    metrics = Metrics(common.counts)
    paths = {route.endpoint: route.path for route in _ROUTES}
    app = Starlette(
        routes=_ROUTES,
        middleware=[
            Middleware(RequestCounter, metrics=metrics, paths=paths),
            Middleware(NoSniffing),
            Middleware(Admission, settings=settings),
        ],
        exception_handlers=dict.fromkeys((JloraError, HTTPException, ClientDisconnect, Exception), answer_error),
        lifespan=_close_at_end,
    )
    app.router.redirect_slashes = False
    app.state.engine, app.state.settings, app.state.metrics = engine, settings, metrics
    app.state.prompts = Prompts(tokenizer, common.context_length)
    app.state.created, app.state.ending = int(time.time()), False
    return app


@contextlib.asynccontextmanager
async def _close_at_end(app: Starlette) -> AsyncIterator[None]:
    yield
    app.state.prompts.close()
