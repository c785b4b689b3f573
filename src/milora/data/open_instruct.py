"""open-instruct's template, in which MiLoRA's instruction following is trained and asked.

Source: allenai/open-instruct, finetune.py as of June 2024, `encode_with_messages_format`:

    <|user|>
    {content}
    <|assistant|>
    {content}{eos}

Contents are stripped; the loss is on an answer and its end-of-sequence token. There the line break after an answer that
is not the last one is trained as well; here it belongs to what comes next.
"""

from collections.abc import Sequence

from milora.data.form import Example

NAME = "open-instruct"


def turn(role: str, content: str) -> str:
    """One message that is not an answer."""
    return f"<|{role}|>\n{content.strip()}\n"


def prompt(instruction: str) -> str:
    """The text before the answer to an instruction."""
    return turn("user", instruction) + "<|assistant|>\n"


def rounds(messages: Sequence[dict[str, str]]) -> Example:
    """A conversation of {role, content} as rounds; what follows its last answer is left out."""
    prompts: list[str] = []
    completions: list[str] = []
    before = ""
    for message in messages:
        if message["role"] != "assistant":
            before += turn(message["role"], message["content"])
            continue
        prompts.append(("\n" if prompts else "") + before + "<|assistant|>\n")
        completions.append(message["content"].strip())
        before = ""
    return {"prompts": prompts, "completions": completions}
