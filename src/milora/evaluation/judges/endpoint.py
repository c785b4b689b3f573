"""A judge behind an endpoint of OpenAI's form, asked as AlpacaEval's ``alpaca_eval_gpt4`` asks ``gpt-4-0613``.

The words, temperature 0, at most 100 tokens, and the answer's form, a list of ranks, are that annotator's
(tatsu-lab/alpaca_eval, Apache-2.0). Which output comes first is drawn from the outputs and a seed, as there, but
by another hash. An answer in another form, none after several tries, or a refusal of the pair itself (too long for the
judge, filtered), is a null.
"""

import ast
import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from typing import Any

from milora.errors import MiloraError
from milora.evaluation.judging import Judgement, Pair

API_KEY = "OPENAI_API_KEY"
MAX_TOKENS = 100
OF_THE_PAIR = (400, 413, 422)
IN_A_ROW = 5  # pairs that fail one after the other before the judging stops

SYSTEM = "You are a helpful assistant, that ranks models by the quality of their answers."
USER = '''I want you to create a leaderboard of different of large-language models. To do so, I will give you the \
instructions (prompts) given to the models, and the responses of two models. Please rank the models based on which \
responses would be preferred by humans. All inputs and outputs should be python dictionaries.

Here is the prompt:
{
    "instruction": """{instruction}""",
}

Here are the outputs of the models:
[
    {
        "model": "model_1",
        "answer": """{output_1}"""
    },
    {
        "model": "model_2",
        "answer": """{output_2}"""
    }
]

Now please rank the models by the quality of their answers, so that the model with rank 1 has the best output. Then \
return a list of the model names and ranks, i.e., produce the following output:
[
    {'model': <model-name>, 'rank': <model-rank>},
    {'model': <model-name>, 'rank': <model-rank>}
]

Your response must be a valid Python dictionary and should contain nothing else because we will directly execute it \
in Python. Please provide the ranking that the majority of humans would give.'''


class EndpointJudge:
    """An endpoint ``url`` + ``/chat/completions``. The key is read from the environment (OPENAI_API_KEY), if any.

    Args:
        url: for example ``https://api.openai.com/v1``.
        model: the name that it knows its model by.
        seed: of the order.
        tries: how often one pair is asked about before it is a null.
        pause: seconds before the second try; they double with each further one.
        timeout: seconds for one answer.
    """

    def __init__(
        self, url: str, model: str, *, seed: int = 0, tries: int = 5, pause: float = 1.0, timeout: float = 120.0
    ):
        self._url = url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self._model, self._seed = model, seed
        self._tries, self._pause, self._timeout = tries, pause, timeout
        self._failed_in_a_row = 0
        self.name = f"{model} (alpaca_eval_gpt4's words, seed {seed})"

    def judge(self, pair: Pair) -> Judgement:
        """Ask about one pair.

        Raises:
            MiloraError: the endpoint refuses (key, model), or several pairs in a row failed.
        """
        switched = self.switches(pair)
        outputs = (pair.output_2, pair.output_1) if switched else (pair.output_1, pair.output_2)
        try:
            text = self._ask(prompt(pair.instruction, *outputs))
            self._failed_in_a_row = 0
        except MiloraError:
            raise
        except (OSError, http.client.HTTPException, ValueError, KeyError, IndexError, TypeError) as error:
            self._failed_in_a_row += 1
            if self._failed_in_a_row >= IN_A_ROW:
                stop = f"{IN_A_ROW} pairs in a row failed; the same command goes on"
                raise MiloraError(f"judge: {self._url}: {stop} ({_line(error)})") from error
            return Judgement(None, f"no answer: {_line(error)}")
        rank = rank_of_first(text)
        if rank is None:
            return Judgement(None, text)
        return Judgement(float(3 - rank if switched else rank), text)

    def switches(self, pair: Pair) -> bool:
        """Whether the model's output is shown first."""
        words = json.dumps([self._seed, pair.instruction, pair.output_1, pair.output_2])
        return hashlib.sha256(words.encode("utf-8")).digest()[0] % 2 == 1

    def _ask(self, user: str) -> str:
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}]
        body = {"model": self._model, "messages": messages, "temperature": 0, "max_tokens": MAX_TOKENS}
        for left in reversed(range(self._tries)):
            try:
                return str(self._post(body)["choices"][0]["message"]["content"] or "")
            except urllib.error.HTTPError as error:
                if error.code in OF_THE_PAIR:
                    raise ValueError(_refusal(error)) from error
                if error.code < 500 and error.code not in (408, 409, 425, 429):
                    raise MiloraError(f"judge: {self._url} refuses: {_refusal(error)}") from error
                if not left:
                    raise
            except (OSError, http.client.HTTPException):
                if not left:
                    raise
            time.sleep(self._pause * 2 ** (self._tries - 1 - left))
        raise MiloraError(f"tries: got {self._tries}, allowed: 1 or more")

    def _post(self, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(self._url, json.dumps(body).encode("utf-8"))
        request.add_header("Content-Type", "application/json")
        if key := os.environ.get(API_KEY):
            # Not sent on to where the endpoint may redirect.
            request.add_unredirected_header("Authorization", f"Bearer {key}")
        with urllib.request.urlopen(request, timeout=self._timeout) as answer:
            return json.loads(answer.read())


def prompt(instruction: str, output_1: str, output_2: str) -> str:
    """The question about two outputs."""
    # One pass over the template: an output may itself hold "{output_2}".
    parts = {"instruction": instruction, "output_1": output_1, "output_2": output_2}
    made, rest = "", USER
    for name, text in parts.items():
        before, _, rest = rest.partition(f"{{{name}}}")
        made += before + text
    return made + rest


def rank_of_first(completion: str) -> int | None:
    """The rank that an answer gives to model_1, 1 or 2; None where it is in another form."""
    try:
        rank = next(entry["rank"] for entry in ast.literal_eval(completion.strip()) if entry["model"] == "model_1")
    except (ValueError, SyntaxError, TypeError, KeyError, StopIteration, MemoryError, RecursionError):
        return None
    return rank if rank in (1, 2) and not isinstance(rank, bool) else None


def _refusal(error: urllib.error.HTTPError) -> str:
    """The status and what the endpoint says of it."""
    try:
        said = " ".join(error.read(2000).decode("utf-8", "replace").split())
    except (OSError, http.client.HTTPException):
        said = ""
    return f"{error.code} {_line(error.reason)}" + (f": {said[:200]}" if said else "")


def _line(error: object) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
