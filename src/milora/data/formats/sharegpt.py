"""ShareGPT: a conversation under `conversations`, with the keys `from` and `value`; becomes messages.

Source: the ShareGPT dumps as FastChat (Vicuna) and LLaVA use them. Names: system, human or user, gpt or
assistant, tool.

A row:

    {"conversations": [{"from": "human", "value": "What does this engraving show?"},
                       {"from": "gpt", "value": "Section of oval grave."}]}

Template: the tokeniser's own.
"""

from milora.data.form import Example, Format, Row
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
    return {"messages": conversation(row, "conversations", "from", "value", ROLES)}


FORMAT = Format("sharegpt", ("conversations",), read, conversations=True)
