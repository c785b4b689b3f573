"""Commonsense170K in the form of LLM-Adapters: instruction, input (empty), output, answer.

Source: LLM-Adapters, `generate_prompt` of its finetune.py (the same text stands in DoRA's
commonsense_reasoning/finetune.py); the LLaMA commonsense results of DoRA and MiLoRA were trained with it.

A row:

    {"instruction": "Please choose the correct answer to the question: Addison always wanted to take the boat
    out on the lake. How would Addison feel afterwards?\\n\\nAnswer1: daring Answer2: like she followed her
    dreams Answer3: embarassed\\n\\nAnswer format: answer1/answer2/answer3", "input": "", "output": "the
    correct answer is answer1", "answer": "answer1"}

Training template without input, `~` a space: TWO at the end of line 1, 16 before each part; the line between
instruction and response is not empty but 16 spaces; newlines inside the instruction are not indented:

  Below is an instruction that describes a task. Write a response that appropriately completes the request.~~

  ~~~~~~~~~~~~~~~~### Instruction:
  ~~~~~~~~~~~~~~~~{instruction}
  ~~~~~~~~~~~~~~~~
  ~~~~~~~~~~~~~~~~### Response:
  ~~~~~~~~~~~~~~~~{output}

With input, line 1 is Alpaca's with-input sentence and ends with ONE space, and the lines `### Input:`,
{input} and one of 16 spaces stand before the response.

The prompt here ends with the 16 spaces, the completion is `output`. The evaluation prompt of the protocol
has other whitespace (one space at the end of line 1, an empty line before the response); it belongs to the
evaluation task. The protocol's loss is on prompt AND answer (`loss_on: all`); with the loss on the answer
only, a tokeniser that joins the last space to the answer's first word puts that word's boundary where prompt
and whole text stop agreeing.
"""

from milora.data.form import Format, Row, Turn, optional_text, text
from milora.data.formats.alpaca import CONTEXT, REQUEST, TASK

INDENT = " " * 16


def prompt(instruction: str, input: str) -> str:
    """The LLM-Adapters training prompt, ending with the indent of the answer's line."""
    opening = f"{TASK}{CONTEXT}{REQUEST} " if input else f"{TASK}{REQUEST}  "
    context = ["### Input:", input, ""] if input else []
    lines = ["### Instruction:", instruction, "", *context, "### Response:", ""]
    return opening + "\n\n" + "\n".join(INDENT + line for line in lines)


def read(row: Row) -> Turn:
    """One row in LLM-Adapters form; `answer`, the option alone, is checked and not trained on."""
    text(row, "answer")
    return Turn(text(row, "instruction"), optional_text(row, "input"), text(row, "output"))


FORMAT = Format("commonsense", ("instruction", "output", "answer"), read, prompt)
