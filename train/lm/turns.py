"""The turns of a chat, checked: roles that are known and in order, content that is text."""

from __future__ import annotations

from typing import Any

from jlora.errors import JloraError
from train.tables import require_text

Turn = dict[str, Any]
"""`role` and `content`, as chat templates take them, and whatever else the row has (tool_calls, name)."""

_NEXT = {
    "": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
"""{role: the roles that may follow it}; the empty role stands before the first turn."""
_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
}


def turns_of_messages(chat: Any, where: str) -> list[Turn]:
    """The turns of a row such as [{"role": "user", "content": "..."}, ...]. `where` begins every error.

    Raises:
      JloraError: no list of turns, an empty one, a role that is unknown or out of order, content that is no text.
    """
    turns = [_without_nothings(turn, "role", place) for turn, place in _places(chat, where)]
    previous = ""
    for turn, (_, place) in zip(turns, _places(chat, where), strict=True):
        role = turn["role"]
        if role not in _NEXT:
            raise JloraError(f"{place}: expected one of the roles {_or(*filter(None, _NEXT))}; found {role!r}")
        if role not in _NEXT[previous]:
            before = f"after {previous}" if previous else "first"
            raise JloraError(
                f"{place}: roles out of order: expected {_or(*_NEXT[previous])} {before}; found {role}"
                + ("; join turns of one role into one" if role == previous else "")
            )
        if not ("tool_calls" in turn and "content" not in turn):
            require_text(turn.get("content"), f"{place}, 'content'")
        previous = role
    return turns


def turns_of_sharegpt(chat: Any, where: str) -> list[Turn]:
    """The turns of a row such as [{"from": "human", "value": "..."}, ...]; errors as `turns_of_messages`."""
    turns = []
    for turn, place in _places(chat, where):
        role = _without_nothings(turn, "from", place)["from"]
        if role not in _SHAREGPT_ROLES:
            raise JloraError(f"{place}: expected one of {_or(*_SHAREGPT_ROLES)} in 'from'; found {role!r}")
        turns.append({"role": _SHAREGPT_ROLES[role], "content": require_text(turn.get("value"), f"{place}, 'value'")})
    return turns_of_messages(turns, where)


def require_answer(turns: list[Turn], where: str) -> None:
    """Raises JloraError where the last turn is not the assistant's: of such a chat there is no answer to learn."""
    if (role := turns[-1]["role"]) != "assistant":
        raise JloraError(
            f"{where}: expected the assistant's turn last, as only such turns are learnt "
            f"(data.completion_only_loss=true); found {role}"
        )


def _places(chat: Any, where: str) -> list[tuple[Any, str]]:
    """Each turn, and how an error names it."""
    if not isinstance(chat, list) or not chat:
        found = "nothing" if chat is None else "an empty list" if chat == [] else f"{ascii(chat)[:60]}"
        raise JloraError(f"{where}: expected a chat, a list of turns; found {found}")
    return [(turn, f"{where}, turn {number}") for number, turn in enumerate(chat, 1)]


def _without_nothings(turn: Any, role: str, place: str) -> Turn:
    """The turn's entries that are not None: tables give every turn the keys that one of them has."""
    if not isinstance(turn, dict) or not isinstance(turn.get(role), str):
        raise JloraError(f"{place}: expected an object with {role!r}; found {ascii(turn)[:60]}")
    return {key: value for key, value in turn.items() if value is not None}


def _or(*words: str) -> str:
    return " or ".join(words)
