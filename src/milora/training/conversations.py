"""Which tokens of a conversation are answers: every turn of the assistant, found without marks in the chat template.

    start    where the conversation up to the turn, rendered with the generation prompt, and the whole one part
    stop     where the conversation up to the turn's end and the whole one part

Both by token ids. Some templates write a turn otherwise once others follow it: Qwen3 leaves out an empty thought,
GLM-4.5 closes a turn with what comes next. There the answer is looked for in the whole text, with whatever the template
closes it with, and what the template leaves of it is trained (of an earlier answer with a thought, what comes after
it).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from milora.errors import MiloraError

Message = Mapping[str, Any]
THOUGHT = "</think>"


class NoAnswer(Exception):
    """What the chat template shows of a conversation has no answer to train on; the words say which."""


def encode_conversations(
    rows: Iterable[list[Message]],
    tokenizer: Any,
    numbers: Iterator[int],
    *,
    name: str,
    everything: bool,
    ignored: int,
) -> Iterator[tuple[list[int], list[int], bool]]:
    """Ids, labels and no merged token of each conversation.

    Args:
        rows: conversations, each a list of {"role", "content"}.
        tokenizer: one with a chat template.
        numbers: of the rows, for errors.
        name: how errors call the data set.
        everything: label all tokens.
        ignored: the label of a token that is not trained.

    Raises:
        MiloraError: the chat template refuses a conversation, or shows no answer of it.
    """
    for messages, number in zip(rows, numbers, strict=False):
        try:
            ids = _rendered(messages, tokenizer)
            labels = ids if everything else [ignored] * len(ids)
            for start, stop in () if everything else answers(messages, ids, tokenizer):
                labels[start:stop] = ids[start:stop]
        except (TemplateError, NoAnswer) as error:
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise MiloraError(
                f"{name}: row {number} of the rows drawn: the tokenizer's chat template refuses it: {said}"
            ) from error
        yield ids, labels, False


def answers(messages: Sequence[Message], ids: Sequence[int], tokenizer: Any) -> Iterator[tuple[int, int]]:
    """The spans of the assistant's turns in a conversation's ids.

    Raises:
        NoAnswer: the text that the template makes has a turn nowhere.
    """
    turns = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    if not any(part in text for turn in turns for part in _parts(messages[turn])):
        raise NoAnswer("it shows nothing of what the assistant says")
    for turn in turns:
        until = _rendered(messages[: turn + 1], tokenizer)
        start, stop = _start(messages, turn, ids, tokenizer), common_prefix(until, ids)
        if stop < len(until) or stop <= start:
            start, stop = _in_text(messages, turn, text, ids, tokenizer)
        yield start, stop


def _start(messages: Sequence[Message], turn: int, ids: Sequence[int], tokenizer: Any) -> int:
    if turn:
        return common_prefix(_rendered(messages[:turn], tokenizer, add_generation_prompt=True), ids)
    # No conversation comes before it, and a template may write much: all that another answer does not change.
    return common_prefix(_rendered([_otherwise(messages[0]), *messages[1:]], tokenizer), ids)


def _in_text(messages: Sequence[Message], turn: int, text: str, ids: Sequence[int], tokenizer: Any) -> tuple[int, int]:
    """The span of one turn by its characters in the whole text, with what the template closes it with."""
    before = tokenizer.apply_chat_template(messages[:turn], tokenize=False, add_generation_prompt=True) if turn else ""
    begin = common_prefix(before, text)
    found = ((text.find(part, begin), part) for part in _parts(messages[turn]))
    at, part = next(((at, part) for at, part in found if at >= 0), (-1, ""))
    if at < 0:
        raise NoAnswer(f"it shows nothing of turn {turn + 1}, which is the assistant's")
    own, other = (
        tokenizer.apply_chat_template([*messages[:turn], last], tokenize=False)
        for last in (messages[turn], _otherwise(messages[turn]))
    )
    closing = own[len(own) - common_prefix(own[::-1], other[::-1]) :]
    end = at + len(part)
    while closing and not text.startswith(closing, end):
        closing = closing[:-1]  # what is written after the last turn alone
    end += len(closing)
    try:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    except NotImplementedError as error:  # a tokenizer in Python alone
        raise NoAnswer(f"turn {turn + 1} is written otherwise once others follow it") from error
    if encoded["input_ids"] != list(ids):
        raise NoAnswer(f"turn {turn + 1} cannot be found in it by its characters")
    inside = [i for i, (left, right) in enumerate(encoded["offset_mapping"]) if left < end and right > at]
    return inside[0], inside[-1] + 1


def _parts(message: Message) -> list[str]:
    """What a template may show of a turn: all of it, or what comes after a thought, if anything does."""
    content = str(message["content"])
    return [part for part in (content.strip(), content.rpartition(THOUGHT)[2].strip()) if part]


def _otherwise(message: Message) -> dict[str, Any]:
    """The turn with other words, which neither begin nor end as its own do."""
    content = str(message["content"]).strip()
    words = next(w for w in ("§", "¶", "†") if not content.startswith(w) and not content.endswith(w))
    return {**message, "content": words}


def _rendered(messages: Sequence[Message], tokenizer: Any, **options: Any) -> list[int]:
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **options)["input_ids"]


def common_prefix(left: Sequence[Any], right: Sequence[Any]) -> int:
    """How many items two sequences have in common from their start on."""
    for i, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return i
    return min(len(left), len(right))
