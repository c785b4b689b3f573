"""WikiText: nothing of the text is lost, and its own count of words."""

import gzip
import math

import pytest

from milora.analysis.texts import read_text
from milora.tasks import wikitext

TEXT = " = One = \n a b \n = = Part = = \n c . \n = Two = \n d \n"


def test_articles_are_cut_at_their_titles():
    parts = wikitext.cut(TEXT)
    assert parts == [" = One = \n a b \n = = Part = = \n c . \n", " = Two = \n d \n"]
    assert wikitext.cut("no title\n") == ["no title\n"]
    assert "".join(wikitext.cut("\n" + TEXT)) == "\n" + TEXT


def test_words_are_wikitexts():
    assert wikitext.words(" a b \n = Two = \n") == 2 + 1 + 3 + 1


def test_the_shared_text_is_the_one_that_forgetting_is_measured_on(shared_data):
    file = shared_data / "wikitext" / "wikitext103_test.txt.gz"
    parts = wikitext.articles(data_dir=str(shared_data))["test"]["text"]
    assert "".join(parts) == read_text(file)
    # 241,211 words as published; the file has no blank lines, which are 1,467 <eos> of the published 245,569.
    assert sum(map(wikitext.words, parts)) == 241_211 + 2_891
    assert len(parts) == 62


def test_perplexities_over_all_articles(tmp_path):
    file = tmp_path / "wiki.test.tokens"
    file.write_text(TEXT)
    docs = wikitext.articles(data_dir=str(tmp_path))["test"].to_list()
    scores = [wikitext.score(doc, (-10.0,)) for doc in docs]
    units = wikitext.words(TEXT)
    assert wikitext.perplexity([s["word_perplexity"] for s in scores]) == pytest.approx(math.exp(20 / units))
    assert wikitext.bits([s["bits_per_byte"] for s in scores]) == pytest.approx(20 / len(TEXT) / math.log(2))
    assert "token_perplexity" not in scores[0]
    assert wikitext.perplexity([(-1e6, 1)]) == math.inf


def test_gzip(tmp_path):
    file = tmp_path / "any.txt.gz"
    file.write_bytes(gzip.compress(TEXT.encode()))
    assert len(wikitext.articles(data_dir=str(file))["test"]) == 2
