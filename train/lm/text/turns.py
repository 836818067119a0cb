"""Converts the turns of a chat to one form: known roles in order, content as text, tool calls as objects."""

from __future__ import annotations

import json
from typing import Any

from jlora.errors import JloraError
from jlora.files.bounded_json import refuse_duplicates
from jlora.files.unicode_text import require_text
from jlora.generation.chat_template import Turn

"""A turn: `role` and `content`, the input of chat templates, and other keys of the row (tool_calls, name)."""

_NEXT = {
    "": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
"""{role: the roles that may follow it}; "" means the beginning of the chat."""
_SAME_ROLES = {"developer": "system", "function": "tool"}
"""OpenAI's other names for roles."""
_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
}
_NAMES_OF_CONTENT = ("text", "value", "message", "body")
"""Keys that other programs have in place of `content`; they are not read."""
_TEXT_PARTS = ("text", "input_text", "output_text")


def turns_of_messages(chat: Any, where: str) -> list[Turn]:
    """Reads the turns of a row such as [{"role": "user", "content": "..."}, ...]. Errors begin with `where`.

    Content that is a list of parts becomes their joined text; JSON text in a call's `arguments` becomes the object;
    `developer` becomes `system`, OpenAI's older `function_call` and `function` become `tool_calls` and `tool`. Keys
    that are None are left out; a turn with tool_calls needs no content.

    Raises:
      JloraError: the chat is not a list of turns or is empty; a role is unknown or out of order (system or user first,
        user after system, assistant after user, user or tool after assistant, tool or assistant after tool); content is
        not text, or arguments are not an object.
    """
    turns: list[Turn] = []
    previous = ""
    for found, place in _places(chat, where):
        turn = _in_one_form(_without_nothings(found, "role", place), place)
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
            _require_content(turn, place)
        turns.append(turn)
        previous = role
    return turns


def _require_content(turn: Turn, place: str) -> None:
    if "content" not in turn and (other := next((key for key in _NAMES_OF_CONTENT if key in turn), None)):
        raise JloraError(f"{place}: expected the turn's text in 'content'; found it in {other!r}. Rename the key")
    content = turn.get("content")
    if isinstance(content, dict):
        raise JloraError(
            f"{place}, 'content': expected text, or a list of text parts; found one part alone, {ascii(content)[:60]}."
            " Put it into a list"
        )
    require_text(content, f"{place}, 'content'")


def turns_of_sharegpt(chat: Any, where: str) -> list[Turn]:
    """Reads the turns of a row such as [{"from": "human", "value": "..."}, ...] into {"role", "content"}.

    human is the role user, gpt assistant, observation tool; system, user, assistant and tool keep their names. The
    value of `function_call`, an assistant's turn, is the JSON text of a call, {"name": ..., "arguments": {...}}, or of
    a list of them; it becomes `tool_calls`: [{"type": "function", "function": the call}].

    Raises:
      JloraError: an error of `turns_of_messages`, `from` is another name, or a call is not such JSON. It begins with
        `where`.
    """
    turns = []
    for found, place in _places(chat, where):
        turn = _without_nothings(found, "from", place)
        named, value = turn.pop("from"), turn.pop("value", None)
        if named not in _SHAREGPT_ROLES:
            raise JloraError(f"{place}: expected one of {_or(*_SHAREGPT_ROLES)} in 'from'; found {named!r}")
        if not isinstance(value, list):  # of parts
            require_text(value, f"{place}, 'value'")
        said = {"tool_calls": _calls_in_text(value, place)} if named == "function_call" else {"content": value}
        turns.append({**turn, "role": _SHAREGPT_ROLES[named], **said})
    return turns_of_messages(turns, where)


def take_weights(turns: list[Turn], where: str) -> tuple[list[Turn], frozenset[int]]:
    """Returns (the turns without their keys `weight` and `train`, the indices of those that are not learnt).

    `turns` is not changed. A turn is left out if either key is 0 or false; without both it is learnt. Errors begin with
    `where`.

    `weight` is 0 or 1, as in OpenAI's and Mistral's data, `train` true or false, as in Axolotl's.

    Raises:
      JloraError: a weight has another value.
    """
    unlearnt = set()
    for index, turn in enumerate(turns):
        for key in ("weight", "train"):
            if key in turn and turn[key] not in (0, 1):
                place = f"{where}, turn {index + 1}, {key!r}"
                raise JloraError(f"{place}: expected 0 (not learnt) or 1 (learnt); found {ascii(turn[key])[:60]}")
            if not turn.get(key, 1):
                unlearnt.add(index)
    rest = [{key: value for key, value in turn.items() if key not in ("weight", "train")} for turn in turns]
    return rest, frozenset(unlearnt)


def require_answer(turns: list[Turn], where: str) -> None:
    """Raises JloraError if the last turn is not the assistant's, because the chat then ends without an answer.

    `turns` has at least one; the error begins with `where`.
    """
    if (role := turns[-1]["role"]) != "assistant":
        raise JloraError(
            f"{where}: expected the assistant's turn last, as only such turns are learnt "
            f"(data.completion_only_loss=true); found {role}"
        )


def from_json(text: str, where: str) -> Any:
    """Decodes JSON text, and NaN and Infinity as Python does.

    Raises JloraError that begins with `where` if it is not JSON, nested too deeply, or has a key twice.
    """
    try:
        return json.loads(text, object_pairs_hook=refuse_duplicates)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", error)
        raise JloraError(f"{where}: expected JSON; found {text[:60]!a} ({reason}). Correct it") from error


def _in_one_form(turn: Turn, place: str) -> Turn:
    turn["role"] = _SAME_ROLES.get(turn["role"], turn["role"])
    found, older = turn.pop("tool_calls", []), turn.pop("function_call", None)
    if older and not found:
        found = [{"type": "function", "function": older}]
    if calls := _calls(found or [], f"{place}, 'tool_calls'"):
        turn["tool_calls"] = calls
    if isinstance(turn.get("content"), list):
        turn["content"] = _join_text(turn["content"], f"{place}, 'content'")
    return turn


def _join_text(parts: list[Any], where: str) -> str:
    """Joins the text of content that is a list of parts."""
    texts = []
    for part in parts:
        kind = part.get("type", "text") if isinstance(part, dict) else None
        if kind not in _TEXT_PARTS:
            raise JloraError(
                f'{where}: expected parts of text alone, {{"type": "text", "text": "..."}}; found {ascii(part)[:60]}'
            )
        texts.append(require_text(part.get("text"), f"{where}, a part's 'text'"))
    return "".join(texts)


def _calls(found: Any, where: str) -> list[Any]:
    """Returns the tool calls with their arguments as objects, which templates write as JSON themselves."""
    calls = from_json(found, where) if isinstance(found, str) else found
    if not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
        raise JloraError(f"{where}: expected a list of calls; found {ascii(found)[:60]}")
    return [_with_object(call, where) for call in calls]


def _with_object(call: dict[str, Any], where: str) -> dict[str, Any]:
    if isinstance(function := call.get("function"), dict):
        return {**call, "function": _with_object(function, where)}
    arguments = call.get("arguments")
    if isinstance(arguments, str):
        arguments = from_json(arguments, f"{where}, 'arguments'") if arguments.strip() else {}
    if not isinstance(arguments, dict | None):
        raise JloraError(f"{where}: expected arguments that are a JSON object; found {ascii(arguments)[:60]}")
    return call if arguments is None else {**call, "arguments": arguments}


def _calls_in_text(text: str, place: str) -> list[Any]:
    found = from_json(text, f"{place}, 'value' of function_call")
    calls = found if isinstance(found, list) else [found]
    for call in calls:
        if not (isinstance(call, dict) and isinstance(call.get("name"), str)):
            expected = 'expected a call such as {"name": "...", "arguments": {...}}'
            raise JloraError(f"{place}, 'value' of function_call: {expected}; found {ascii(call)[:60]}")
    return [{"type": "function", "function": call} for call in calls]


def _places(chat: Any, where: str) -> list[tuple[Any, str]]:
    """Returns each turn with its name for errors."""
    if not isinstance(chat, list) or not chat:
        found = "nothing" if chat is None else "an empty list" if chat == [] else f"{ascii(chat)[:60]}"
        if isinstance(chat, str) and chat.lstrip().startswith("["):
            found = (
                f"text, the JSON of a list: {ascii(chat)[:60]}. Decode it before saving (json.loads), and save as"
                " .jsonl or .parquet: a CSV file cannot hold chats"
            )
        raise JloraError(f"{where}: expected a chat, a list of turns; found {found}")
    return [(turn, f"{where}, turn {number}") for number, turn in enumerate(chat, 1)]


def _without_nothings(turn: Any, role: str, place: str) -> Turn:
    """Removes entries that are None: tables give every turn all keys that any of them has."""
    if not isinstance(turn, dict) or not isinstance(turn.get(role), str):
        raise JloraError(f"{place}: expected an object with {role!r}; found {ascii(turn)[:60]}")
    return {key: value for key, value in turn.items() if value is not None}


def _or(*words: str) -> str:
    return " or ".join(words)
