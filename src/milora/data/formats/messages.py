"""Messages: a conversation under `messages`, the tokeniser's chat template is laid around it by the trainer.

Source: the OpenAI chat form, TRL's conversational language-modeling type. Roles: system, user, assistant,
tool.

A row:

    {"messages": [{"role": "user", "content": "What does this engraving show?"},
                  {"role": "assistant", "content": "Section of oval grave."}]}

Template: the tokeniser's own.
"""

from collections.abc import Mapping
from typing import Any

from milora.data.form import EmptyError, Example, Format, Row, RowError

ROLES = {role: role for role in ("system", "user", "assistant", "tool")}


def read(row: Row) -> Example:
    """One conversation."""
    if row.get("tools"):
        raise RowError("field 'tools': got tools, which no prompt would show; allowed conversations in words alone")
    return {"messages": conversation(row, "messages", "role", "content", ROLES)}


def conversation(row: Row, field: str, role: str, content: str, roles: Mapping[str, str]) -> list[dict[str, str]]:
    """The list of messages in a field, in {role, content} form.

    Args:
        role, content: the keys of one message there.
        roles: the names of the roles there, mapped to ours.

    Raises:
        RowError: names the message (`messages[2].content`) that is missing, of a wrong type or an empty
            answer.
    """
    if field not in row:
        raise RowError(f"field {field!r} is missing")
    turns = row[field]
    if not isinstance(turns, list) or not turns:
        got = "an empty list" if isinstance(turns, list) else type(turns).__name__
        raise RowError(f"field {field!r}: got {got}, allowed a list of messages")
    messages = [_message(turn, f"{field}[{i}]", role, content, roles) for i, turn in enumerate(turns)]
    if not any(m["role"] == "assistant" for m in messages):
        raise RowError(f"field {field!r} holds no answer (no message of the assistant)")
    return messages


def _message(turn: Any, where: str, role: str, content: str, roles: Mapping[str, str]) -> dict[str, str]:
    if not isinstance(turn, Mapping):
        got = type(turn).__name__
        raise RowError(f"field '{where}': got {got}, allowed an object with {role!r} and {content!r}")
    for key in ("tool_calls", "function_call"):
        if turn.get(key):
            raise RowError(f"field '{where}.{key}': got a call, which would not be trained; allowed words alone")
    for key in (role, content):
        if not isinstance(turn.get(key), str):
            got = type(turn[key]).__name__ if key in turn else "nothing"
            raise RowError(f"field '{where}.{key}': got {got}, allowed str")
    if turn[role] not in roles:
        raise RowError(f"field '{where}.{role}': got {turn[role]!r}, allowed {', '.join(roles)}")
    if roles[turn[role]] == "assistant" and not turn[content].strip():
        raise EmptyError(f"field '{where}.{content}' is empty")
    return {"role": roles[turn[role]], "content": turn[content]}


FORMAT = Format("messages", ("messages",), read, conversations=True)
