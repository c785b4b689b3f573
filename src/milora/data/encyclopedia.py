"""An invented encyclopedia: facts that no model can know, made from a seed alone.

Every entry (a town, a person or a relic with a made-up name) has four facts. Training rows tell each fact in
four statements and two questions. The evaluation asks for it in a wording that no training row has, among
four choices of the same kind, so what rises is recall and not the echo of a sentence; a model that was not
trained on it stands at chance, 1/4.

    train        {"prompt": "The main export of Velmor is", "completion": " copper."}
                 {"prompt": "Question: What does Velmor export?\\nAnswer:", "completion": " copper."}
    questions    {"question": "Which goods do merchants bring home from Velmor?",
                  "choices": ["salt", "copper", "tea", "wool"], "answer": 1, "fact_id": "velmor/export"}

The questions are meant to be put as `Question: {question}\\nAnswer:` and a choice as " " + choice.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from milora.data.encyclopedia_facts import ATTRIBUTES, Attribute
from milora.errors import MiloraError
from milora.models.atomic import replacing

KINDS = ("town", "person", "relic")
CHOICES = 4
QUESTION = "Question: {question}\nAnswer:"

_ONSETS = tuple("bdfghjklmnprstvwz") + ("br", "dr", "gr", "kl", "pr", "sk", "tr")
_VOWELS = tuple("aeiou")
_CODAS = tuple("lmnrsx") + ("th", "nd", "rk", "ll")


@dataclass(frozen=True)
class Fact:
    """One attribute of one entry, with its value."""

    entry: str
    attribute: Attribute
    value: str

    @property
    def fact_id(self) -> str:
        """`entry/attribute` in lower case, the same for every row about this fact."""
        return f"{self.entry.lower().replace(' ', '-')}/{self.attribute.name}"

    def say(self, wording: str) -> str:
        """A wording with the entry's name in it, its first letter a capital."""
        said = wording.format(name=self.entry)
        return said[0].upper() + said[1:]


@dataclass(frozen=True)
class Encyclopedia:
    """The facts of an encyclopedia, as training rows, as questions and as articles."""

    facts: tuple[Fact, ...]
    seed: int

    def train_rows(self, form: str = "prompt_completion") -> list[dict[str, str]]:
        """Six rows a fact, shuffled with the seed.

        Args:
            form: "prompt_completion" (the completion holds the value) or "text" (one string).
        """
        if form not in ("prompt_completion", "text"):
            raise MiloraError(f"form: got {form!r}, allowed prompt_completion, text")
        rows = [row for fact in self.facts for row in _rows(fact)]
        random.Random(f"rows {self.seed}").shuffle(rows)
        if form == "text":
            return [{"text": row["prompt"] + row["completion"]} for row in rows]
        return rows

    def questions(self) -> list[dict[str, Any]]:
        """One four-choice question a fact: question, choices, answer (index of the right choice), fact_id."""
        rng = random.Random(f"questions {self.seed}")
        told: dict[Attribute, set[str]] = {}
        for fact in self.facts:
            told.setdefault(fact.attribute, set()).add(fact.value)
        return [_question(fact, told[fact.attribute], rng) for fact in self.facts]

    def articles(self) -> str:
        """The encyclopedia as text: one paragraph an entry, every fact told once."""
        paragraphs: dict[str, list[str]] = {}
        for fact in self.facts:
            told = f"{fact.say(fact.attribute.statements[0])} {fact.value}."
            paragraphs.setdefault(fact.entry, []).append(told)
        return "\n\n".join(" ".join(sentences) for sentences in paragraphs.values()) + "\n"

    def write(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write train.jsonl, questions.jsonl and articles.txt into a folder that appears whole or not at all.

        Raises:
            MiloraError: the folder exists already and `overwrite` is false.
        """
        folder = Path(folder)
        if folder.exists() and not overwrite:
            raise MiloraError(f"{folder}: exists already; choose another folder or overwrite")
        with replacing(folder) as temporary:
            temporary.mkdir()
            _write_lines(temporary / "train.jsonl", self.train_rows())
            _write_lines(temporary / "questions.jsonl", self.questions())
            (temporary / "articles.txt").write_text(self.articles(), encoding="utf-8")
        return folder


def make_encyclopedia(entries: int, seed: int) -> Encyclopedia:
    """An encyclopedia of that many entries, four facts each; the same numbers give the same one on every
    machine.

    The values of an attribute are dealt out evenly over the entries, so that a preference for one of them
    cannot pay.

    Raises:
        MiloraError: entries is below 1 or above 3,000.
    """
    if not 1 <= entries <= 3000:
        raise MiloraError(f"entries: got {entries}, allowed 1 to 3000")
    rng = random.Random(f"encyclopedia {seed}")
    kinds = [KINDS[i % len(KINDS)] for i in range(entries)]
    names = _names(kinds, rng)
    dealt = {(a.kind, a.name): _deal(a, kinds.count(a.kind), rng) for a in ATTRIBUTES}
    facts = [
        Fact(name, attribute, dealt[kind, attribute.name].pop())
        for kind, name in zip(kinds, names, strict=True)
        for attribute in ATTRIBUTES
        if attribute.kind == kind
    ]
    return Encyclopedia(tuple(facts), seed)


def _deal(attribute: Attribute, count: int, rng: random.Random) -> list[str]:
    pool = rng.sample(attribute.values, len(attribute.values))
    dealt = [pool[i % len(pool)] for i in range(count)]
    rng.shuffle(dealt)
    return dealt


def _names(kinds: list[str], rng: random.Random) -> list[str]:
    taken: set[str] = set()
    return [_name(kind, taken, rng) for kind in kinds]


def _name(kind: str, taken: set[str], rng: random.Random) -> str:
    first = _word(taken, rng)
    if kind == "person":
        return f"{first} {_word(taken, rng)}"
    return f"the {first} Relic" if kind == "relic" else first


def _word(taken: set[str], rng: random.Random) -> str:
    while True:
        syllables = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(2)]
        word = ("".join(syllables) + rng.choice(_CODAS)).capitalize()
        if word not in taken:
            taken.add(word)
            return word


def _rows(fact: Fact) -> list[dict[str, str]]:
    statements = [fact.say(wording) for wording in fact.attribute.statements]
    questions = [QUESTION.format(question=fact.say(wording)) for wording in fact.attribute.questions]
    return [{"prompt": prompt, "completion": f" {fact.value}."} for prompt in statements + questions]


def _question(fact: Fact, told: set[str], rng: random.Random) -> dict[str, Any]:
    # Wrong choices are right for other entries wherever there are enough of them: a value that no row ever
    # tells would be ruled out without knowing the fact.
    pool = told if len(told) >= CHOICES else fact.attribute.values
    others = [value for value in fact.attribute.values if value in pool and value != fact.value]
    choices = [*rng.sample(others, CHOICES - 1), fact.value]
    rng.shuffle(choices)
    return {
        "question": fact.say(fact.attribute.held_out),
        "choices": choices,
        "answer": choices.index(fact.value),
        "fact_id": fact.fact_id,
    }


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
