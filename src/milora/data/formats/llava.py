"""LLaVA: a conversation about one picture, or about none; LLaVA-1.5's training data (llava_v1_5_mix665k) has this form.

Source: haotian-liu/LLaVA, docs/Finetune_Custom_Data.md and llava/train/train.py. `image` is a path in the image folder;
a row without it is text alone. `<image>` stands once, in the first question, and is moved to its beginning, as there;
an answer before the first question is left out, as there.

A row:

    {"id": "chiriqui-fig-001", "image": "images/fig001.png",
     "conversations": [{"from": "human", "value": "<image>\\nWhat does this engraving show?"},
                       {"from": "gpt", "value": "Section of oval grave."}]}

Template: vicuna_v1 of llava/conversation.py, in which the end-of-sequence token closes each answer:

    SYSTEM USER: <image>
    question ASSISTANT: answer</s>USER: question ASSISTANT: answer</s>
"""

from milora.data.form import Example, Format, Row, RowError
from milora.data.formats.messages import conversation
from milora.data.pictures import check_placeholders
from milora.models.pictures import PLACEHOLDER

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
ROLES = {"human": "user", "gpt": "assistant"}


def read(row: Row) -> Example:
    """One conversation, as prompts and their completions."""
    image = row.get("image")
    if image is not None and (not isinstance(image, str) or not image):
        raise RowError(f"field 'image': got {type(image).__name__ if image != '' else 'an empty text'}, allowed a path")
    turns = conversation(row, "conversations", "from", "value", ROLES)
    if turns[0]["role"] == "assistant":
        turns = turns[1:]
    questions, answers = turns[::2], turns[1::2]
    right = {q["role"] for q in questions} == {"user"} and {a["role"] for a in answers} == {"assistant"}
    if not right or len(questions) != len(answers):
        raise RowError("field 'conversations': got turns out of order, allowed human and gpt by turns, gpt last")
    texts = [turn["content"] for turn in turns]
    check_placeholders(texts, image is not None)
    asked = [vicuna_v1(texts[0], first=True), *(vicuna_v1(text) for text in texts[2::2])]
    return {"prompts": asked, "completions": [f" {answer}" for answer in texts[1::2]], "image": image}


def vicuna_v1(question: str, first: bool = False) -> str:
    """The prompt of one question, up to where the answer begins; the answer follows after a space.

    Args:
        question: may hold a picture's placeholder, which comes to the front of it.
        first: it is the conversation's first, with the system's words before it.
    """
    if PLACEHOLDER in question:
        question = f"{PLACEHOLDER}\n{question.replace(PLACEHOLDER, '').strip()}"
    return f"{SYSTEM} USER: {question} ASSISTANT:" if first else f"USER: {question} ASSISTANT:"


FORMAT = Format("llava", ("conversations", "image"), read)
