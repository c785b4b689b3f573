"""lm-evaluation-harness tasks that ship with the package.

A task is a YAML file here with a version that rises when any of its numbers may change. The harness finds
the files by itself: in this package through :func:`milora.evaluation.evaluate`, elsewhere with
``lm_eval --include_path "$(python -m milora.tasks)" --tasks milora_gsm8k``.

| task | data | scores |
|---|---|---|
| ``milora_commonsense`` and its eight sets | LLM-Adapters form | exact_match, strict and flexible |
| ``milora_gsm8k`` | MetaMath form | exact_match, strict, flexible and compat |
| ``milora_math``, ``milora_math500`` | MATH in MetaMath form | exact_match, clean and compat |
| ``milora_alpaca_eval`` | AlpacaEval v1 | length; win rates by ``milora judge`` |
| ``milora_wikitext`` | WikiText-103's test set | perplexity by words, bytes and tokens |
| ``milora_book_mcq``, ``_mcq_letters``, ``_cloze`` | a book's questions | acc, acc_norm |
| ``milora_book_wording`` | a book's text | nll, token_accuracy, nll_per_byte, exact |
| ``milora_questions`` | any local file of multiple-choice questions | acc, acc_norm |
| ``milora_pictures``, ``milora_captions`` | any local file in LLaVA's form; ``_blind`` shows no picture | acc; nll |
| ``milora_captions_written`` | the same | word_f1 |

Where the rows come from: :mod:`milora.tasks.local_files`.
"""

from pathlib import Path


def folder() -> Path:
    """The folder that holds the task files, for ``lm_eval --include_path``."""
    return Path(__file__).parent
