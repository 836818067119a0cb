"""Chooses between the hub, its cache and the config's `offline:` block, once, before anything is read."""

from __future__ import annotations

import logging

from jlora.pretrained.locate import forbid_network, hub_answers
from train.cli.parse import Request
from train.cli.resolve import resolve
from train.config.run_config import AnyConfig
from train.config.validate import flatten
from train.sources.hub_cache import is_cached
from train.sources.hub_names import data_hub_names, model_hub_names, needs_hub

logger = logging.getLogger(__name__)


def choose(request: Request[AnyConfig]) -> tuple[AnyConfig, bool]:
    """Returns (the run's config, whether the `offline:` block is in it).

    The hub is asked once, and only if something is needed from it (in a dry run: the model). If it does not answer, the
    local cache is used, or else the `offline:` block; nothing asks the hub again. With the flag `offline` the block is
    used without asking. The second result is False if the block changes nothing, or if there is none because nothing is
    needed from the hub.

    Raises:
      JloraError: wrong keys or values, all at once; there is no hub, no cache and no `offline:` block.
    """
    online = resolve(request, use_offline=False)
    if request.flags.offline:
        return _offline(request, online, "--offline is given")
    dry = request.flags.dry_run
    if not (model_hub_names(online) if dry else needs_hub(online)) or hub_answers():
        return online, False
    forbid_network()
    has_models = all(is_cached(name, "model") for name in model_hub_names(online))
    if has_models and (dry or all(is_cached(name, "dataset", online.data.config) for name in data_hub_names(online))):
        logger.warning("the hub does not answer: using its local cache")
        return online, False
    return _offline(request, online, "the hub does not answer and its cache does not hold what is needed")


def _offline(request: Request[AnyConfig], online: AnyConfig, reason: str) -> tuple[AnyConfig, bool]:
    forbid_network()
    config = resolve(request, use_offline=True)
    if config == online:
        return config, False
    line = "!" * 100
    logger.warning(line)
    logger.warning("! OFFLINE: %s.", reason)
    for name, now, else_ in (("model", config.model, online.model), ("data ", config.data.train, online.data.train)):
        if now != else_:
            logger.warning("! %s %s instead of %s", name, now, else_)
    if others := _others(config, online):
        logger.warning("! also  %s", ", ".join(others))
    logger.warning(line)
    return config, True


def _others(config: AnyConfig, online: AnyConfig) -> list[str]:
    """Returns `key=value` for each other key that the block replaces, but for those of the data's form."""
    now, before = (flatten(one.model_dump(), type(one)) for one in (config, online))
    return [
        f"{key}={value}"
        for key, value in now.items()
        if value != before[key] and key not in ("model", "data.train") and not key.startswith("data.")
    ]
