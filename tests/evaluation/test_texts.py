"""Generation for AlpacaEval and perplexities of WikiText on a tiny model."""

import json
import math

import pytest
import torch

from milora.evaluation import evaluate

SHORT = {"max_gen_toks": 8}


def test_alpaca_eval_generates_as_the_paper_says(tiny_model, tokenizer, tmp_path, monkeypatch):
    rows = [{"instruction": f"Say {i}.", "dataset": "koala"} for i in range(3)]
    (tmp_path / "eval_set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen, generate = [], type(tiny_model).generate

    def spy(self, *args, **kwargs):
        seen.append(kwargs)
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(type(tiny_model), "generate", spy)
    result = evaluate(tiny_model, tokenizer, "milora_alpaca_eval", data_dir=tmp_path, gen_kwargs=SHORT)
    assert (seen[0]["do_sample"], seen[0]["repetition_penalty"], seen[0]["no_repeat_ngram_size"]) == (False, 1.1, 5)
    records = result["completions"]["milora_alpaca_eval"]
    assert [r["target"] for r in records] == [row["instruction"] for row in rows]
    assert records[0]["prompt"] == "<|user|>\nSay 0.\n<|assistant|>\n"
    (score,) = result["scores"]
    assert (score["metric"], score["higher_is_better"]) == ("length", None)
    assert score["value"] == pytest.approx(sum(len(r["completion"].strip()) for r in records) / 3)
    settings = {"task_settings": {"prompt_template": "instruction"}, "apply_chat_template": True}
    chat = evaluate(tiny_model, tokenizer, "milora_alpaca_eval", data_dir=tmp_path, gen_kwargs=SHORT, **settings)
    assert chat["completions"]["milora_alpaca_eval"][0]["prompt"].startswith("<|im_start|>user\nSay 0.<|im_end|>")
    assert chat["settings"]["task_settings"] == {"prompt_template": "instruction"}


def test_perplexities_equal_a_count_by_hand(tiny_model, tokenizer, tmp_path, capfd):
    articles = [" = One = \n a b c \n", " = Two = \n d e \n f \n"]
    (tmp_path / "wiki.test.tokens").write_text("".join(articles))
    window = 12
    result = evaluate(tiny_model, tokenizer, "milora_wikitext", data_dir=tmp_path, max_length=window, batch_size=2)
    assert "Running" not in capfd.readouterr().err  # the harness's bars
    values = {row["metric"]: row["value"] for row in result["scores"]}
    total = tokens = 0
    for article in articles:
        ids = tokenizer(article)["input_ids"]
        tokens += len(ids)
        total += sum(_window_losses(tiny_model, [tokenizer.bos_token_id, *ids], window))
    size = len("".join(articles))
    words = sum(len(a.split()) + a.count("\n") for a in articles)
    assert values["token_perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-4)
    assert values["word_perplexity"] == pytest.approx(math.exp(total / words), rel=1e-4)
    assert values["byte_perplexity"] == pytest.approx(math.exp(total / size), rel=1e-4)
    assert values["bits_per_byte"] == pytest.approx(total / size / math.log(2), rel=1e-4)
    json.dumps(result)


def _window_losses(model, ids, window):
    """-log p of each token after the first: windows that end where the next begins, none without a context."""
    for start in range(1, len(ids), window):
        targets = ids[start : start + window]
        first = max(0, start + len(targets) - 1 - window)  # the last window reaches back as far as there is room
        inputs = torch.tensor([ids[first : start + len(targets) - 1]])
        with torch.no_grad():
            log_p = torch.log_softmax(model(inputs).logits[0].float(), -1)[-len(targets) :]
        yield -sum(log_p[i, t].item() for i, t in enumerate(targets))
