"""GSM8K as the `gsm8k` task of lm-evaluation-harness words it: question, answer, calculator annotations and all.

Source: lm-evaluation-harness, lm_eval/tasks/gsm8k/gsm8k.yaml (`doc_to_text`, `doc_to_target`, `target_delimiter`).
A row of gsm8k.py becomes

    Question: Natalia sold clips to 48 of her friends ... altogether in April and May?
    Answer: Natalia sold 48/2 = <<48/2=24>>24 clips in May.\\n ... \\n#### 72

where the prompt ends with the last colon. The columns are GSM8K's, so this format is taken only where it is named.
"""

from milora.data.form import Example, Format, Row, text


def read(row: Row) -> Example:
    """One GSM8K row."""
    return {"prompt": f"Question: {text(row, 'question')}\nAnswer:", "completion": f" {text(row, 'answer')}"}


FORMAT = Format("gsm8k_harness", ("question", "answer"), read, by_name=True)
