"""Alpaca: instruction, input, output.

Source: Stanford Alpaca, `PROMPT_DICT` of its train.py; the target is `output` + eos, directly after the
prompt.

A row (of the 5,000-row subset in that repository's history; `input` may be missing or empty):

    {"instruction": "Compare the benefits and risks of eating house.", "input": "", "output": "Eating house
    provides a variety of benefits. It is a convenient and affordable way to obtain food, ..."}

Template without input. No line has a space at its end, and nothing stands after the last colon:

    Below is an instruction that describes a task. Write a response that appropriately completes the request.

    ### Instruction:
    {instruction}

    ### Response:

Template with input; the first sentence is one line, with one space where it is broken here:

    Below is an instruction that describes a task, paired with an input that provides further context.
    Write a response that appropriately completes the request.

    ### Instruction:
    {instruction}

    ### Input:
    {input}

    ### Response:
"""

from milora.data.form import Format, Row, Turn, optional_text, text

TASK = "Below is an instruction that describes a task"
CONTEXT = ", paired with an input that provides further context"
REQUEST = ". Write a response that appropriately completes the request."


def prompt(instruction: str, input: str) -> str:
    """The Alpaca prompt, with an input section where `input` is not empty."""
    opening = f"{TASK}{CONTEXT}{REQUEST}" if input else f"{TASK}{REQUEST}"
    context = f"### Input:\n{input}\n\n" if input else ""
    return f"{opening}\n\n### Instruction:\n{instruction}\n\n{context}### Response:"


def read(row: Row) -> Turn:
    """One Alpaca row."""
    return Turn(text(row, "instruction"), optional_text(row, "input"), text(row, "output"))


FORMAT = Format("alpaca", ("instruction", "output"), read, prompt)
