"""Whether two answers to a MATH problem are the same: the clean scorer.

In this order, the first that can tell deciding:

1. the same text, once what only lays it out is taken off (after Hendrycks et al., arXiv:2103.03874): spacing,
   \\left and \\right, dfrac for frac, dollar and degree signs, units, a final full stop, "x =" in front;
2. two numbers by their exact values: decimals, fractions, mixed numbers, thousands; "50\\%" is 50 and 0.5;
3. two words letter by letter, two tuples, intervals, lists, sets or matrices part by part;
4. math-verify and sympy, in a process that is stopped when it takes too long (:mod:`milora.tasks.sympy_worker`).

What cannot be read, raises or takes too long is not the same. Units are not converted: with different units two
answers differ, and a unit that only one of them has is let pass.
"""

import re
from collections.abc import Sequence
from fractions import Fraction

from milora.tasks import sympy_worker

_LAYOUT = re.compile(r"\\left(?![a-z])|\\right(?![a-z])|(?<!\\)\\[,;: ]|\\q?quad|~|(?<!\\)\$|\\displaystyle|\\limits")
_FRACTION = re.compile(r"\\[tdc]frac")
_DEGREES = re.compile(r"\^\{?\\circ\}?|\\degree|°")
_NAME = re.compile(r"^\s*([A-Za-z]|\\[a-z]+)\s*(?:\([a-z]\))?\s*(?:=|\\in(?![a-z]))\s*(?=\S)")
_UNIT = re.compile(r"(?<=[\d}).%])\s*\\(?:text|mathrm|textrm|mbox|hbox)\s*\{\s*([A-Za-z][^{}]*)\}(?:\^\{?\d\}?)?\s*$")
_BARE_UNIT = re.compile(r"^([-+]?[\d.,/]+) ([a-zA-Z]{2,}(?: [a-zA-Z]+)*)$")
_WORDS = re.compile(r"\\(?:text|mathrm|textrm|textbf|mathbf|mbox)\s*\{([^{}]*)\}")
_MATRIX = re.compile(r"^\\begin\{([pb]?)matrix\}(.*)\\end\{\1matrix\}$", re.DOTALL)
_VALUE = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)"
_NUMBER = re.compile(rf"^([-+]?)({_VALUE})$")
_RATIO = re.compile(rf"^([-+]?)(?:\\frac\{{([-+]?{_VALUE})\}}\{{([-+]?{_VALUE})\}}|({_VALUE})/({_VALUE}))$")
_MIXED = re.compile(r"^([-+]?)(\d+)\\frac\{(\d+)\}\{(\d+)\}$")
_BASE = re.compile(r"^([0-9A-Z]+)_\{?(\d+)\}?$")
_APART = re.compile(r"\d \d")  # two numbers side by side, which sympy would read as one
_JOINING = {"or", "and"}
_ORDERED = {"(": ")", "[": "]"}


def equivalent(prediction: str, gold: str) -> bool:
    """Whether a predicted answer is the gold answer.

    >>> equivalent(r"\\frac12", "0.5"), equivalent("x/2", "7"), equivalent("(1,2)", "(1,2]")
    (True, False, False)
    """
    if not prediction.strip() or not gold.strip():
        return False
    (a, units_a, name_a), (b, units_b, name_b) = _taken_apart(prediction), _taken_apart(gold)
    if not a or not b or (units_a and units_b and units_a != units_b) or (name_a and name_b and name_a != name_b):
        return False
    if a == b:
        return True
    if _APART.search(a) or _APART.search(b):
        return False
    decided = [rule(a, b) for rule in (_as_numbers, _in_bases, _as_words, _as_matrices, _as_parts)]
    known = next((answer for answer in decided if answer is not None), None)
    return sympy_worker.ask("equal", a, b) if known is None else known


def _taken_apart(answer: str) -> tuple[str, str, str]:
    """The plain form of an answer, its unit and the name in front of it ("x" of "x = 5"); empty where absent."""
    text = _DEGREES.sub("", _LAYOUT.sub(" ", answer.replace(r"\$", " ").replace(r"\!", ""))).strip()
    text = text.removesuffix(".").strip().replace("−", "-")
    unit = ""
    if match := _UNIT.search(text) or _BARE_UNIT.match(text):
        unit = match.group(match.lastindex or 1).strip(" .").lower().removesuffix("s")
        text = text[: match.start()] if match.re is _UNIT else match.group(1)
    name = ""
    if text.count("=") + text.count(r"\in ") == 1 and (match := _NAME.match(text)):
        name, text = match.group(1), text[match.end() :]
    return _plain(text), "" if unit in _JOINING else unit, name


def _plain(text: str) -> str:
    text = _FRACTION.sub(r"\\frac", text.strip().replace("{,}", ","))
    text = re.sub(r"\\(?:text|mbox)\s*\{\s*(?:or|and)\s*\}|\s(?:or|and)\s", ",", text)
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"\\frac\s*([0-9A-Za-z])\s*([0-9A-Za-z])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\s*([0-9A-Za-z])\s*\{", r"\\frac{\1}{", text)
    text = re.sub(r"(\\frac\s*\{[^{}]*\})\s*([0-9A-Za-z])", r"\1{\2}", text)
    text = re.sub(r"\\sqrt\s*([0-9A-Za-z])", r"\\sqrt{\1}", text)
    # A space ends a command ("\pi r") and separates words; nothing else needs it.
    text = re.sub(r"(\\[A-Za-z]+) (?=[A-Za-z])", "\\1\0", text)
    if not _WORDS.search(text) and not re.search(r"[A-Za-z]{3,} [A-Za-z]{3,}", text.replace("\0", "")):
        text = re.sub(r"(?<=\d) (?=\d{3}(?!\d))", "", text)
        text = re.sub(r"(?<!\d) | (?!\d)", "", text)
    text = re.sub(r"(?<![\d.])\.(?=\d)", "0.", text.replace("\0", " "))
    return text.replace(r"+\infty", r"\infty").strip()


def number(text: str) -> Fraction | None:
    """The exact value of a plain number, without a percent sign; None when it is none."""
    if match := _NUMBER.match(text):
        value = Fraction(match.group(2).replace(",", "").rstrip("."))
    elif match := _RATIO.match(text):
        top, bottom = (Fraction(part.replace(",", "").rstrip(".")) for part in match.groups()[1:] if part)
        if bottom == 0:
            return None
        value = top / bottom
    elif (match := _MIXED.match(text)) and int(match.group(4)):
        value = int(match.group(2)) + Fraction(int(match.group(3)), int(match.group(4)))
    else:
        return None
    return -value if match.group(1) == "-" else value


def _as_numbers(a: str, b: str) -> bool | None:
    values = []
    for text in (a, b):
        bare = text.removesuffix("%").removesuffix("\\")
        if (value := number(bare)) is None:
            return None
        values.append((value, text.endswith("%")))
    (x, x_percent), (y, y_percent) = values
    if x_percent == y_percent:
        return x == y
    return x == y or (x / 100 == y if x_percent else x == y / 100)


def _in_bases(a: str, b: str) -> bool | None:
    """Digits with the base under them; a base that only one of them names is let pass."""
    bases = [_BASE.match(text) for text in (a, b)]
    if not any(bases):
        return None
    digits = [match.group(1) if match else text for match, text in zip(bases, (a, b), strict=True)]
    named = {match.group(2) for match in bases if match}
    return digits[0] == digits[1] and len(named) == 1


def _as_words(a: str, b: str) -> bool | None:
    """Words in \\text, letters of choices "(A)", and long words without \\text."""
    marked = any(_WORDS.search(text) for text in (a, b))
    bare = [re.sub(r"[\s.]+", " ", _WORDS.sub(r"\1", text)).strip() for text in (a, b)]
    words = [re.sub(r"^\(([A-Za-z ]+)\)$", r"\1", text) for text in bare]
    if not all(re.fullmatch(r"[A-Za-z][A-Za-z' -]*", text) for text in words):
        return None
    # Short letters without \text may be a product of variables, "ab" and "ba".
    if marked or all(len(text) > 3 for text in words) or any(len(text) == 1 for text in words):
        return words[0].lower() == words[1].lower() if marked or len(words[0]) > 1 else words[0] == words[1]
    return None


def _as_matrices(a: str, b: str) -> bool | None:
    found = [_MATRIX.match(text) for text in (a, b)]
    if not found[0] or not found[1]:
        return None
    tables = [[row.split("&") for row in re.split(r"\\\\", m.group(2).strip().removesuffix(r"\\"))] for m in found if m]
    if [len(row) for row in tables[0]] != [len(row) for row in tables[1]]:
        return False
    return all(_each_equal(x, y) for x, y in zip(*tables, strict=True))


def _as_parts(a: str, b: str) -> bool | None:
    """Tuples and intervals in their order with their brackets; lists, sets and unions in any order.

    A tuple is no list: what has lost its brackets is another answer.
    """
    unions = [_top_level(text, "\\cup") for text in (a, b)]
    if any(len(parts) > 1 for parts in unions):
        return (len(unions[0]) == len(unions[1]) and _same_collection(*unions)) or None
    inner_a, inner_b = _inside(a), _inside(b)
    if inner_a and inner_b:
        same_brackets = (a[0], a[-1]) == (b[0], b[-1])
        return same_brackets and len(inner_a) == len(inner_b) and _each_equal(inner_a, inner_b)
    listed = [_top_level(re.sub(r"^\\\{(.*)\\\}$", r"\1", text)) for text in (a, b)]
    if (inner_a and len(listed[1]) > 1) or (inner_b and len(listed[0]) > 1):
        return False
    if inner_a or inner_b or any(len(parts) < 2 for parts in listed):
        return None
    return len(listed[0]) == len(listed[1]) and _same_collection(*listed)


def _inside(text: str) -> list[str]:
    """The parts of one bracketed tuple or interval; none where the text is something else."""
    if len(text) < 2 or text[0] not in _ORDERED or text[-1] not in _ORDERED.values():
        return []
    parts = _top_level(text[1:-1])
    balanced = all(part.count("(") == part.count(")") and part.count("[") == part.count("]") for part in parts)
    return parts if len(parts) > 1 and balanced else []


def _top_level(text: str, mark: str = ",") -> list[str]:
    """The parts between marks that stand in no bracket."""
    parts, depth, start = [], 0, 0
    for i, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if depth == 0 and text.startswith(mark, i) and i >= start:
            parts.append(text[start:i].strip())
            start = i + len(mark)
    return [*parts, text[start:].strip()]


def _each_equal(found: Sequence[str], wanted: Sequence[str]) -> bool:
    return all(equivalent(x, y) for x, y in zip(found, wanted, strict=True))


def _same_collection(found: Sequence[str], wanted: Sequence[str]) -> bool:
    rest = list(wanted)
    for part in found:
        same = next((i for i, other in enumerate(rest) if equivalent(part, other)), None)
        if same is None:
            return False
        del rest[same]
    return True
