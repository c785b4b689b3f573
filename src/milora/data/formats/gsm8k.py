"""GSM8K: question, answer; rendered in the MetaMath form.

Source: openai/grade-school-math, grade_school_math/data/train.jsonl. `<<48/2=24>>` marks are calculator
annotations, the last line `#### n` is the answer.

A row:

    {"question": "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in
    May. How many clips did Natalia sell altogether in April and May?", "answer": "Natalia sold 48/2 =
    <<48/2=24>>24 clips in May.\\n Natalia sold 48+24 = <<48+24=72>>72 clips altogether in April and
    May.\\n#### 72"}

becomes the MetaMath template (metamath.py) with the question as query and, as response, the solution without
annotations and, as in MetaMathQA, one line more: after `#### 72` comes `The answer is: 72`, the phrase that the
MetaMath extraction reads.
"""

import re

from milora.data.form import Format, Row, RowError, Turn, text
from milora.data.formats.alpaca import prompt

ANNOTATION = re.compile(r"<<[^<>]*>>")
CLOSING = re.compile(r"(?:^|\n)#### *([^\n]+?)\s*\Z")


def read(row: Row) -> Turn:
    """One GSM8K row."""
    answer = ANNOTATION.sub("", text(row, "answer"))
    closing = CLOSING.search(answer)
    if closing is None:
        raise RowError("field 'answer' has no last line '#### n'")
    return Turn(text(row, "question"), "", f"{answer.rstrip()}\nThe answer is: {closing[1]}")


FORMAT = Format("gsm8k", ("question", "answer"), read, prompt)
