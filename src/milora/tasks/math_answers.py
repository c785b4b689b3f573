"""Finding the final answer of a MATH solution. An empty string means that there is none.

compat: the text after the last "The answer is: ", up to the first full stop at a line's end (MetaMath,
        arXiv:2309.12284, ``eval_math.py``).
clean:  the same up to the sentence's end, or else what the last ``\\boxed`` holds; one pair of dollar signs or one
        ``\\boxed`` around the whole of it is taken off, and so are words behind a formula and the end of bold type.
"""

import re

from milora.tasks.extraction import ANSWER_PHRASE

_WRAPPED = ((r"\(", r"\)"), (r"\[", r"\]"), ("$$", "$$"), ("$", "$"), ("**", "**"))


_WITH_UNIT = re.compile(r"(\$[^$]+\$)\s+[A-Za-z][A-Za-z .,]*")  # "$5$ dollars"
_SENTENCE = re.compile(r"\.\s+(?=[A-Z])")


def last_boxed(text: str) -> str:
    """What the last ``\\boxed`` or ``\\fbox`` holds, braces inside it included.

    >>> last_boxed(r"so $\\boxed{\\frac{1}{2}}$.")
    '\\\\frac{1}{2}'
    """
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return ""
    rest = re.sub(r"^\\(boxed|fbox)\s*", "", text[start:])
    if not rest.startswith("{"):
        return re.split(r"[$\n]", rest, maxsplit=1)[0].strip()  # "\boxed 5"
    depth = 0
    for i, letter in enumerate(rest):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return rest[1:i].strip()
    return ""


def compat_answer(completion: str) -> str:
    """The answer as the published scorers take it out."""
    _, phrase, rest = completion.rpartition(ANSWER_PHRASE)
    if not phrase:
        return ""
    return rest.split(".\n")[0].strip().removesuffix(".").strip()


def _first_sentence(text: str) -> str:
    """Up to a full stop before a capital letter, outside braces."""
    for stop in _SENTENCE.finditer(text):
        before = text[: stop.start()]
        if before.count("{") == before.count("}"):
            return before
    return text


def clean_answer(completion: str) -> str:
    """The answer, without what stands around it."""
    phrase, boxed = compat_answer(completion).split("\n")[0], last_boxed(completion)
    answer = phrase or boxed
    if "\\boxed" in answer or "\\fbox" in answer:
        answer = last_boxed(answer) or answer
    answer = _first_sentence(answer).strip()
    if answer.endswith("**") and answer.count("**") == 1:  # of a whole sentence in bold type
        answer = answer.removesuffix("**").strip().removesuffix(".").strip()
    if named := _WITH_UNIT.fullmatch(answer):
        answer = named[1]
    for opening, closing in _WRAPPED:
        inner = answer[len(opening) : len(answer) - len(closing)]
        if (
            len(answer) > len(opening) + len(closing)
            and answer == f"{opening}{inner}{closing}"
            and opening not in inner
        ):
            answer = inner.strip().rstrip(".").strip()
    return answer
