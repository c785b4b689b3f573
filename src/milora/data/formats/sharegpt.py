"""ShareGPT: a conversation under `conversations`, with the keys `from` and `value`; becomes messages.

Source: the ShareGPT dumps as FastChat (Vicuna) and LLaVA use them. Names: system, human or user, gpt or
assistant, tool. A `system` beside the conversation, as LLaMA-Factory writes it, is its first message.

A row:

    {"conversations": [{"from": "human", "value": "What does this engraving show?"},
                       {"from": "gpt", "value": "Section of oval grave."}]}

Template: the tokeniser's own.
"""

from milora.data.form import Example, Format, Row, RowError
from milora.data.formats.messages import conversation

ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
}


def read(row: Row) -> Example:
    """One conversation."""
    if row.get("tools"):
        raise RowError("field 'tools': got tools, which no prompt would show; allowed conversations in words alone")
    messages = conversation(row, "conversations", "from", "value", ROLES)
    if not (system := row.get("system")):
        return {"messages": messages}
    if not isinstance(system, str):
        raise RowError(f"field 'system': got {type(system).__name__}, allowed str")
    if messages[0]["role"] == "system":
        raise RowError("field 'system': the conversation has a system message of its own, allowed one")
    return {"messages": [{"role": "system", "content": system}, *messages]}


FORMAT = Format("sharegpt", ("conversations",), read, conversations=True)
