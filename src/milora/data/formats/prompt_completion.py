"""Prompt and completion: two strings, used as they are.

Source: TRL, "Dataset formats and types", the standard prompt-completion type. The completion is appended to
the prompt directly, so whatever space belongs between them is in one of the two.

A row:

    {"prompt": "The sky is", "completion": " blue."}

Template: {prompt}{completion}
"""

from milora.data.form import Example, Format, Row, text


def read(row: Row) -> Example:
    """One prompt-completion row."""
    return {"prompt": text(row, "prompt"), "completion": text(row, "completion")}


FORMAT = Format("prompt_completion", ("prompt", "completion"), read)
