"""The published evaluation prompts, to the last space.

Both differ from the prompts of training by whitespace or a sentence; the difference belongs to the protocols.
"""

from collections.abc import Mapping
from typing import Any

_PREAMBLE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
_INDENT = " " * 16


def commonsense(doc: Mapping[str, Any]) -> str:
    """LLM-Adapters' ``generate_prompt`` in ``commonsense_evaluate.py`` (arXiv:2304.01933).

    The first line ends with one space (training: two); the line before the response mark is empty (training:
    16 spaces); the prompt ends with a newline and 16 spaces. Newlines inside the instruction get no indent.
    """
    return (
        f"{_PREAMBLE} \n\n{_INDENT}### Instruction:\n{_INDENT}{doc['instruction']}\n\n{_INDENT}### Response:\n{_INDENT}"
    )


def gsm8k(doc: Mapping[str, Any]) -> str:
    """MetaMath's prompt in ``eval_gsm8k.py`` (arXiv:2309.12284): the training prompt and one sentence more."""
    return f"{alpaca(doc['question'])} Let's think step by step."


def math(doc: Mapping[str, Any]) -> str:
    """The same in ``eval_math.py``."""
    return f"{alpaca(doc['problem'])} Let's think step by step."


def alpaca(instruction: str) -> str:
    """Stanford Alpaca's prompt without input, in which MetaMath trains too."""
    return f"{_PREAMBLE}\n\n### Instruction:\n{instruction}\n\n### Response:"
