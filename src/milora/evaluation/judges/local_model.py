"""A model here as the judge: the log-probability of "Output (a)" against "Output (b)".

It is no substitute for AlpacaEval's judge, and its win rates compare with nothing but its own. Each pair is shown
in both orders, so that a liking for what stands first cancels:

    p = (p(model's output is better | shown first) + p(... | shown second)) / 2,    preference = 1 + p
"""

import math
from typing import Any

from milora.evaluation.judging import Judgement, Pair

QUESTION = """Which of two answers to an instruction is better?

Instruction:
{instruction}

Output (a):
{a}

Output (b):
{b}

Which output would most people prefer? Answer with "Output (a)" or "Output (b)" and nothing else."""
ANSWERS = ("Output (a)", "Output (b)")


class LocalJudge:
    """A causal language model.

    Args:
        model: built, on its device.
        tokenizer: its tokenizer; where it has a chat template, the question is put in it.
        name: of the model.
        batch_size: of the four log-likelihoods that a pair needs.
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str, batch_size: int = 4):
        from milora.evaluation.language_model import BuiltModel

        self.name = f"local model {name} (not AlpacaEval's judge)"
        self._lm = BuiltModel(model, tokenizer, batch_size=batch_size)
        self._tokenizer = tokenizer

    def judge(self, pair: Pair) -> Judgement:
        """Compare a pair in both orders; a null where it does not fit the model's context."""
        from lm_eval.api.instance import Instance

        orders = ((pair.output_2, pair.output_1), (pair.output_1, pair.output_2))
        prompts = [self._prompt(pair.instruction, a, b) for a, b in orders]
        if any(len(self._lm.tok_encode(p + ANSWERS[0])) > self._lm.max_length for p in prompts):
            return Judgement(None, "does not fit the judge's context")
        requests = [
            Instance(request_type="loglikelihood", doc={}, arguments=(p, answer), idx=0)
            for p in prompts
            for answer in ANSWERS
        ]
        (first_a, _), (first_b, _), (second_a, _), (second_b, _) = self._lm.loglikelihood(requests)
        p = (_share(first_a, first_b) + _share(second_b, second_a)) / 2
        return Judgement(1 + p, f"p = {p:.6f}")

    def _prompt(self, instruction: str, a: str, b: str) -> str:
        # One pass: an output may itself hold "{b}".
        head, _, rest = QUESTION.partition("{instruction}")
        middle, _, rest = rest.partition("{a}")
        between, _, tail = rest.partition("{b}")
        text = f"{head}{instruction}{middle}{a}{between}{b}{tail}"
        if not getattr(self._tokenizer, "chat_template", None):
            return f"{text}\n\n"
        return self._tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )


def _share(wanted: float, other: float) -> float:
    """exp(wanted) / (exp(wanted) + exp(other))."""
    difference = min(max(other - wanted, -700.0), 700.0)
    return 1 / (1 + math.exp(difference))
