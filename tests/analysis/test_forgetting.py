"""Forgetting against numpy in float64, at its exact zero, and on the real 260K Llama."""

import gzip
import json
import math

import numpy as np
import pytest
import torch

from milora.analysis import forgetting, read_text
from milora.analysis.forgetting import cut_into_blocks, sums_of_block
from milora.errors import MiloraError

TEXT = "".join(f"The {i}th line of the text, which is {i * i}.\n" for i in range(40))


@pytest.fixture
def tokenizer(tiny_llama):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_llama)


def _model(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def _lora(model, size):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_dropout=0.5, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * size)
    return model


def _numpy_reference(base, tuned, tokenizer, block):
    ids = tokenizer(TEXT)["input_ids"]
    means = []
    for start in range(0, len(ids) - block + 1, block):
        chunk = ids[start : start + block]
        p_log, q_log = (_log_softmax(m, chunk)[:-1] for m in (base, tuned))  # (block - 1, vocab)
        p, gold = np.exp(p_log), chunk[1:]
        rows = np.arange(block - 1)
        means.append(
            [
                -(p * q_log).sum(1).mean(),
                -(p * p_log).sum(1).mean(),
                (p * (p_log - q_log)).sum(1).mean(),
                -p_log[rows, gold].mean(),
                -q_log[rows, gold].mean(),
            ]
        )
    return np.array(means)  # (blocks, 5)


def _log_softmax(model, ids):
    with torch.no_grad():
        logits = model.eval()(torch.tensor([ids])).logits[0].double().numpy()
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_equals_numpy(tiny_llama, tokenizer, batch_size):
    tuned, block = _lora(_model(tiny_llama), 0.3), 150
    means = _numpy_reference(_model(tiny_llama), tuned, tokenizer, block)
    result = forgetting(tuned, tokenizer, TEXT, block=block, batch_size=batch_size)
    n = len(means)
    assert n == len(tokenizer(TEXT)["input_ids"]) // block > 5
    assert (result.blocks, result.tokens, result.block) == (n, n * (block - 1), block)
    got = [result.cross_entropy, result.floor, result.kl, result.base_loss, result.tuned_loss]
    assert got == pytest.approx(means.mean(0), rel=1e-5)
    stderr = means.std(0, ddof=1) / math.sqrt(n)
    assert result.cross_entropy_stderr == pytest.approx(stderr[0], rel=1e-3)
    assert result.kl_stderr == pytest.approx(stderr[2], rel=1e-3)
    increase = (means[:, 4] - means[:, 3]).std(ddof=1) / math.sqrt(n)
    assert result.loss_increase_stderr == pytest.approx(increase, rel=1e-3)
    assert result.base_perplexity == pytest.approx(math.exp(means[:, 3].mean()), rel=1e-5)
    assert result.tuned_perplexity == pytest.approx(math.exp(means[:, 4].mean()), rel=1e-5)
    assert result.kl > 1e-3
    assert result.cross_entropy == pytest.approx(result.floor + result.kl, abs=1e-5)
    json.dumps(result.as_dict(), allow_nan=False)


def test_untrained_adapter_is_exactly_zero_away(tiny_llama, tokenizer):
    model = _lora(_model(tiny_llama), 0.0)
    model.train()  # dropout is on in the adapter until forgetting turns it off
    result = forgetting(model, tokenizer, TEXT, block=100)
    assert model.training
    assert result.kl == 0.0
    assert result.cross_entropy == result.floor
    assert result.base_loss == result.tuned_loss


def test_a_second_model_is_the_base_of_a_full_fine_tune(tiny_llama, tokenizer):
    base, tuned = _model(tiny_llama), _lora(_model(tiny_llama), 0.3)
    expected = forgetting(tuned, tokenizer, TEXT, block=100)
    merged = tuned.merge_and_unload()
    with pytest.raises(MiloraError, match="pass its base as base_model"):
        forgetting(merged, tokenizer, TEXT, block=100)
    result = forgetting(merged, tokenizer, TEXT, block=100, base_model=base)
    assert result.kl == pytest.approx(expected.kl, rel=1e-3)
    assert result.floor == pytest.approx(expected.floor, rel=1e-6)


def test_long_blocks_are_measured_in_chunks():
    generator = torch.Generator().manual_seed(1)
    base, tuned = (torch.randn(300, 50, generator=generator) for _ in range(2))
    targets = torch.randint(50, (300,), generator=generator)
    p, q = base.double().log_softmax(-1), tuned.double().log_softmax(-1)
    got = sums_of_block(base, tuned, targets)
    assert got[0].item() == pytest.approx(-(p.exp() * q).sum().item(), rel=1e-6)
    assert got[3].item() == pytest.approx(-p[torch.arange(300), targets].sum().item(), rel=1e-6)


def test_kl_of_a_token_is_never_negative():
    """Logits a rounding apart: the plain float32 sum is below zero for about half of these tokens."""
    generator = torch.Generator().manual_seed(2)
    base = torch.randn(200, 300, generator=generator)
    near = base + 1e-7 * torch.randn(200, 300, generator=generator)
    gold = torch.zeros(1, dtype=torch.long)
    kls = [sums_of_block(b[None], n[None], gold)[2].item() for b, n in zip(base, near, strict=True)]
    assert len(kls) == 200 and min(kls) >= 0


def test_a_masked_vocabulary_entry_adds_nothing():
    base, tuned = torch.randn(4, 6), torch.randn(4, 6)
    targets = torch.zeros(4, dtype=torch.long)
    without = sums_of_block(base[:, :5], tuned[:, :5], targets)
    base[:, 5] = tuned[:, 5] = -torch.inf
    assert torch.allclose(sums_of_block(base, tuned, targets), without)


def test_blocks_and_their_boundaries(tokenizer):
    ids = tokenizer("abcdefghij")["input_ids"]
    assert cut_into_blocks(tokenizer, "abcdefghij", 4).tolist() == [ids[:4], ids[4:8]]
    assert cut_into_blocks(tokenizer, "abcdefghij", 4, max_tokens=7).tolist() == [ids[:4]]
    assert cut_into_blocks(tokenizer, "abc", 4).tolist() == [ids[:3]]
    with pytest.raises(MiloraError, match="1 tokens, too few"):
        cut_into_blocks(tokenizer, "a", 4)


def test_bos_begins_each_block_where_the_tokenizer_adds_it(tokenizer):
    from tokenizers.processors import TemplateProcessing

    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", bos)]
    )
    ids = tokenizer("abcdef", add_special_tokens=False)["input_ids"]
    assert cut_into_blocks(tokenizer, "abcdef", 4).tolist() == [[bos] + ids[:3], [bos] + ids[3:]]


def test_one_block_has_no_standard_error(tiny_llama, tokenizer):
    result = forgetting(_lora(_model(tiny_llama), 0.3), tokenizer, "short text")
    assert (result.blocks, result.tokens) == (1, 9)
    assert result.cross_entropy_stderr is None and result.kl_stderr is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block": 513}, "block: got 513, allowed: 2 to 512"),
        ({"block": 1}, "block: got 1"),
        ({"max_tokens": 1}, "max_tokens: got 1"),
        ({"batch_size": 0}, "batch_size: got 0"),
    ],
)
def test_wrong_sizes(tiny_llama, tokenizer, arguments, message):
    with pytest.raises(MiloraError, match=message):
        forgetting(_lora(_model(tiny_llama), 0.0), tokenizer, TEXT, **arguments)


def test_a_model_that_diverged_is_named(tiny_llama, tokenizer):
    model = _lora(_model(tiny_llama), float("nan"))
    with pytest.raises(MiloraError, match="not finite in block 1 of"):
        forgetting(model, tokenizer, TEXT, block=100)


def test_progress_counts_blocks(tiny_llama, tokenizer):
    calls = []
    forgetting(
        _lora(_model(tiny_llama), 0.0), tokenizer, TEXT, block=300, batch_size=2, progress=lambda *c: calls.append(c)
    )
    assert calls == [(2, 5), (4, 5), (5, 5)]


def test_texts(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("héllo\n = Title = \n", encoding="utf-8")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("héllo".encode()))
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    assert read_text(tmp_path / "a.txt") == "héllo\n = Title = \n"
    assert read_text(tmp_path / "a.txt.gz") == "héllo"
    for name, message in [("no.txt", "no such file"), ("empty.txt", "no text"), ("bad.txt", "not UTF-8")]:
        with pytest.raises(MiloraError, match=message):
            read_text(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MiloraError, match="cannot be had from the hub") as caught:
        read_text("wikitext-103")
    assert "\n" not in str(caught.value)


def test_real_260k_llama_on_wikitext(shared_data):
    """A small change of a real trained model moves L_f a little above its floor, and never below."""
    from transformers import LlamaForCausalLM

    folder = shared_data / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip("the 260K Llama is not among the shared data")
    tokenizer = _Pieces(json.loads((folder / "vocab.json").read_text()))
    text = read_text(shared_data / "wikitext" / "wikitext_raw_test.txt.gz")[:6000]
    small, large = (
        forgetting(_lora(LlamaForCausalLM.from_pretrained(folder), size), tokenizer, text, block=256)
        for size in (0.01, 0.1)
    )
    assert small.blocks == large.blocks > 4
    assert small.floor == large.floor > 0.5
    assert 0 < small.kl < large.kl
    assert small.base_loss < math.log(512)


class _Pieces:
    """The model's 512 pieces, the longest that fits taken at each place; enough to feed it real text."""

    bos_token_id = 1

    def __init__(self, vocabulary):
        self._ids = {entry["piece"]: entry["id"] for entry in vocabulary if entry["id"] > 258}
        self._longest = max(map(len, self._ids))

    def __call__(self, text, add_special_tokens=True, verbose=True):
        ids, at = [1] if add_special_tokens else [], 0
        while at < len(text):
            sizes = range(self._longest, 0, -1)
            size = next((s for s in sizes if text[at : at + s] in self._ids), 0)
            ids += [self._ids[text[at : at + size]]] if size else [b + 3 for b in text[at].encode()]
            at += size or 1
        return {"input_ids": ids}
