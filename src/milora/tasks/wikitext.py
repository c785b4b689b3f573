"""WikiText-103 (Merity et al., arXiv:1609.07843): perplexities of its test set.

    perplexity = exp(-sum of log p over the articles / units),    units: words, bytes or tokens

The text is the one that forgetting is measured on: a ``.txt`` or ``.txt.gz`` file as it stands, or
``wikitext-103-v1`` of the hub. It is cut before each title of an article (`` = Title = ``), nothing is left out.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from milora.tasks.local_files import data_location, find_file, read_text
from milora.tasks.rows import hub_rows, test_split

FILES = ("wikitext103_test.txt", "wikitext103_test.txt.gz", "wiki.test.tokens", "wiki.test.raw", "wikitext.txt*")
_TITLE = re.compile(r"^(?= = [^=].*[^=] = ?$)", re.MULTILINE)
Part = tuple[float, int]  # log p and the number of units


def articles(data_dir: str | None = None, **_metadata: Any) -> dict[str, Any]:
    """Rows {text}, one an article, which joined are the text.

    Args:
        data_dir: a folder with ``wikitext103_test.txt.gz`` or the like, or any text file; else the hub's.

    Raises:
        MiloraError: no such file, or no text in it.
    """
    if (location := data_location(data_dir)) is None:
        text = "".join(row["text"] for row in hub_rows("Salesforce/wikitext", "wikitext-103-v1", "test"))
    else:
        text = read_text(find_file(location, FILES, "milora_wikitext"))
    return test_split([{"text": part} for part in cut(text)])


def cut(text: str) -> list[str]:
    """The articles of a text; what is blank goes to the one before."""
    parts: list[str] = []
    for part in _TITLE.split(text):
        if parts and (not part.strip() or not parts[-1].strip()):
            parts[-1] += part
        elif part:
            parts.append(part)
    return parts


def words(text: str) -> int:
    """WikiText's count: what stands between spaces, and one <eos> at the end of each line."""
    return len(text.split()) + text.count("\n")


def score(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Part]:
    """log p of one article and its number of words, bytes and, where they are known, tokens."""
    (total,) = results
    text = doc["text"]
    in_bytes = (float(total), len(text.encode("utf-8")))
    parts = {"word_perplexity": (float(total), words(text)), "byte_perplexity": in_bytes, "bits_per_byte": in_bytes}
    if tokens := getattr(total, "tokens", 0):
        parts["token_perplexity"] = (float(total), tokens)
    return parts


def perplexity(parts: Sequence[Part]) -> float:
    """exp of the mean negative log p of a unit."""
    loss = -sum(total for total, _ in parts) / sum(units for _, units in parts)
    return math.exp(loss) if loss < 700 else math.inf  # exp overflows a float at 709


def bits(parts: Sequence[Part]) -> float:
    """The mean negative log p of a unit, in bits."""
    return -sum(total for total, _ in parts) / sum(units for _, units in parts) / math.log(2)
