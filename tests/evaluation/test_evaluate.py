"""evaluate: scores that a hand count confirms, every completion kept, errors in one line."""

import json
import math
import random

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from milora.errors import MiloraError
from milora.evaluation import evaluate

SHORT = {"max_gen_toks": 4}


def _score(result, task, metric, filter_name):
    (row,) = [r for r in result["scores"] if (r["task"], r["metric"], r["filter"]) == (task, metric, filter_name)]
    return row


def test_questions_equal_a_hand_count(tiny_model, tokenizer, local_rows, no_network):
    result = evaluate(tiny_model, tokenizer, "milora_questions", data_dir=local_rows, batch_size=3)
    rows = [json.loads(line) for line in (local_rows / "questions.jsonl").read_text().splitlines()]
    records = result["completions"]["milora_questions"]
    assert len(records) == len(rows) == 8
    hits, hits_norm = [], []
    for row, record in zip(rows, records, strict=True):
        prompt = f"Question: {row['question']}\nAnswer:"
        assert record["prompt"] == prompt
        logs = [_log_probability(tiny_model, tokenizer, prompt, f" {c}") for c in row["choices"]]
        assert record["loglikelihoods"] == pytest.approx(logs, abs=1e-3)
        norm = [value / len(c) for value, c in zip(logs, row["choices"], strict=True)]
        hits.append(logs.index(max(logs)) == row["answer"])
        hits_norm.append(norm.index(max(norm)) == row["answer"])
        assert record["scores"] == {"acc,none": float(hits[-1]), "acc_norm,none": float(hits_norm[-1])}
    acc = _score(result, "milora_questions", "acc", "none")
    assert acc["value"] == pytest.approx(sum(hits) / 8)
    p = sum(hits) / 8
    assert acc["stderr"] == pytest.approx(math.sqrt(p * (1 - p) / 7))
    assert (acc["n"], acc["version"], acc["higher_is_better"]) == (8, "1.0", True)
    assert _score(result, "milora_questions", "acc_norm", "none")["value"] == pytest.approx(sum(hits_norm) / 8)


def _log_probability(model, tokenizer, prompt, continuation):
    before = tokenizer(prompt)["input_ids"]
    ids = torch.tensor([before + tokenizer(continuation)["input_ids"]])  # (1, tokens)
    with torch.no_grad():
        log_p = torch.log_softmax(model(ids).logits[0].float(), dim=-1)  # (tokens, vocab)
    return sum(log_p[t - 1, ids[0, t]].item() for t in range(len(before), ids.shape[1]))


def test_completions_are_greedy_and_both_extractors_are_reported(tiny_model, tokenizer, local_rows, no_network):
    result = evaluate(tiny_model, tokenizer, ["milora_boolq", "milora_gsm8k"], data_dir=local_rows, gen_kwargs=SHORT)
    keys = {(r["task"], r["filter"]) for r in result["scores"]}
    filters = {"milora_boolq": ["strict", "flexible"], "milora_gsm8k": ["strict", "flexible", "compat"]}
    assert keys == {(task, name) for task, names in filters.items() for name in names}
    records = result["completions"]["milora_boolq"]
    assert [r["doc_id"] for r in records] == list(range(6))
    for record in records:
        assert record["prompt"].endswith("### Response:\n" + " " * 16)
        assert set(record["scores"]) == {"exact_match,strict", "exact_match,flexible"}
        assert record["target"] in ("true", "false")
        ids = tokenizer(record["prompt"], return_tensors="pt")
        out = tiny_model.generate(**ids, max_new_tokens=4, do_sample=False)
        text = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert record["completion"] == text
    json.dumps(result)


def test_a_model_that_answers_right_scores_one(tiny_model, tokenizer, local_rows, monkeypatch):
    from milora.evaluation.language_model import BuiltModel

    def answer(self, requests, disable_tqdm=True):
        def one(doc):
            return f"the correct answer is {doc['answer']}" if "labels" in doc else f"The answer is: {doc['gold']}.0"

        return [one(request.doc) for request in requests]

    monkeypatch.setattr(BuiltModel, "generate_until", answer)
    result = evaluate(tiny_model, tokenizer, ["milora_boolq", "milora_gsm8k"], data_dir=local_rows, gen_kwargs=SHORT)
    assert [row["value"] for row in result["scores"]] == [1.0] * 5
    extracted = {"strict": "1.0", "flexible": "1.0", "compat": "1"}
    assert result["completions"]["milora_gsm8k"][0]["extracted"] == extracted


def test_both_scorers_of_math_are_reported(tiny_model, tokenizer, tmp_path, monkeypatch):
    """One right answer, one that only the published code calls right, one wrong, one boxed only."""
    from milora.evaluation.language_model import BuiltModel

    answers = ["The answer is: \\dfrac72.", "The answer is: x/2", "The answer is: 8", "so \\boxed{3.5}"]
    rows = [{"problem": f"p{i}", "solution": "Thus $\\boxed{3.5}$."} for i in range(4)]
    (tmp_path / "math.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(
        BuiltModel, "generate_until", lambda self, requests, disable_tqdm=True: answers[: len(requests)]
    )
    result = evaluate(tiny_model, tokenizer, "milora_math", data_dir=tmp_path, max_gen_toks=8)
    scores = [record["scores"] for record in result["completions"]["milora_math"]]
    assert [s["exact_match,clean"] for s in scores] == [1, 0, 0, 1]
    assert [s["exact_match,compat"] for s in scores] == [1, 1, 0, 0]
    assert _score(result, "milora_math", "exact_match", "clean")["value"] == 0.5


def test_group_is_the_unweighted_mean(tiny_model, tokenizer, tmp_path, monkeypatch):
    from milora.evaluation.language_model import BuiltModel
    from milora.tasks.commonsense_forms import SETS

    for size, of in enumerate(SETS.values(), start=2):
        rows = [{"instruction": str(i), "answer": of.labels[min(i, 1)]} for i in range(size)]
        (tmp_path / of.files[0]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(
        BuiltModel,
        "generate_until",
        lambda self, requests, disable_tqdm=True: [r.doc["labels"][1] for r in requests],
    )
    result = evaluate(tiny_model, tokenizer, "milora_commonsense", data_dir=tmp_path)
    group = _score(result, "milora_commonsense", "exact_match", "flexible")
    expected = [(size - 1) / size for size in range(2, 10)]  # every row but the first is right
    assert group["value"] == pytest.approx(sum(expected) / 8)
    assert group["n"] == sum(range(2, 10))
    assert group["version"] == "1.0"
    assert group["weights"] == {f"milora_{name}": 1 / 8 for name in SETS}
    assert _score(result, "milora_commonsense", "exact_match", "strict")["value"] == 0.0


def test_limit_mode_seed_and_progress(tiny_model, tokenizer, local_rows):
    calls = []
    tiny_model.train()
    random.seed(3)
    torch.manual_seed(3)
    before, python = torch.get_rng_state(), random.getstate()
    result = evaluate(
        tiny_model,
        tokenizer,
        "milora_questions",
        data_dir=local_rows,
        limit=2,
        progress=lambda *call: calls.append(call),
    )
    assert tiny_model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == python
    assert result["scores"][0]["n"] == 2
    assert calls[0] == ("loglikelihood", 0, 6)
    assert calls[-1] == ("loglikelihood", 6, 6)
    assert result["settings"]["lm_eval_version"]


def test_prompts_that_lose_their_beginning_are_counted(tiny_model, tokenizer, tmp_path):
    rows = [{"question": "x" * length, "choices": ["a", "b"], "answer": 0} for length in (10, 600, 700)]
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = evaluate(tiny_model, tokenizer, "milora_questions", data_dir=path)
    assert result["truncated"] == {"milora_questions": 2}


def test_chat_template_wraps_the_prompt(tiny_model, tokenizer, local_rows):
    result = evaluate(tiny_model, tokenizer, "milora_questions", data_dir=local_rows, limit=1, apply_chat_template=True)
    assert result["completions"]["milora_questions"][0]["prompt"].startswith("<|im_start|>user\nQuestion:")
    tokenizer.chat_template = None
    with pytest.raises(MiloraError, match="the tokenizer has no chat template"):
        evaluate(tiny_model, tokenizer, "milora_questions", data_dir=local_rows, apply_chat_template=True)


def test_settings_reach_generation(tiny_model, tokenizer, local_rows, monkeypatch):
    seen = []
    generate = type(tiny_model).generate

    def spy(self, *args, **kwargs):
        seen.append(kwargs)
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(type(tiny_model), "generate", spy)
    evaluate(
        tiny_model,
        tokenizer,
        "milora_boolq",
        data_dir=local_rows,
        gen_kwargs={"num_beams": 2},
        max_gen_toks=3,
        limit=2,
    )
    assert seen[0]["num_beams"] == 2
    assert seen[0]["do_sample"] is False
    assert seen[0]["max_length"] - seen[0]["input_ids"].shape[1] == 3


BAD = [
    ({"tasks": "milora_bolq"}, r"unknown task 'milora_bolq'; nearest: milora_boolq"),
    ({"tasks": []}, "tasks: got none"),
    ({"tasks": "milora_boolq", "limit": 0}, "limit: got 0"),
    ({"tasks": "milora_boolq", "batch_size": 0}, "batch_size: got 0"),
    ({"tasks": "milora_gsm8k"}, "milora_gsm8k: max_gen_toks 1024 leaves no room .* of 512 tokens"),
    ({"tasks": "milora_piqa"}, "milora_piqa: no data in"),
    ({"tasks": "milora_questions", "num_fewshot": 5}, "num_fewshot: got 5, allowed 0 for milora_questions"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_wrong_calls_are_one_line(tiny_model, tokenizer, local_rows, arguments, message):
    with pytest.raises(MiloraError, match=message) as caught:
        evaluate(tiny_model, tokenizer, **{"data_dir": local_rows} | arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("raised", [ConnectionError("no route\nto the hub"), ValueError("no cached copy")])
def test_a_task_whose_data_cannot_be_had_is_one_line(tiny_model, tokenizer, tmp_path, monkeypatch, raised):
    import datasets

    (tmp_path / "far.yaml").write_text(
        "task: milora_far\ndataset_path: nobody/nothing\noutput_type: loglikelihood\ntest_split: test\n"
        "doc_to_text: '{{q}}'\ndoc_to_target: '{{t}}'\nmetric_list: [{metric: acc}]\n"
    )

    def refuse(*_, **__):
        raise raised

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(MiloraError, match=r"tasks: milora_far cannot be loaded \(no (route|cached copy)\)"):
        evaluate(tiny_model, tokenizer, "milora_far", include_path=tmp_path)


@pytest.mark.slow
def test_any_other_task_of_the_harness_is_known(tiny_model, tokenizer, tmp_path):
    """The harness's arc_easy by name, its rows taken from a further folder of tasks."""
    (tmp_path / "rows.jsonl").write_text(json.dumps({"q": "2 + 2 =", "t": "4"}) + "\n")
    (tmp_path / "mine.yaml").write_text(
        "task: my_sum\ndataset_path: json\ndataset_kwargs:\n  data_files: "
        f"{{test: {tmp_path / 'rows.jsonl'}}}\noutput_type: loglikelihood\ntest_split: test\n"
        "doc_to_text: '{{q}}'\ndoc_to_target: ' {{t}}'\nmetric_list: [{metric: perplexity}, {metric: acc}]\n"
    )
    result = evaluate(tiny_model, tokenizer, "my_sum", include_path=tmp_path)
    assert {r["metric"] for r in result["scores"]} == {"perplexity", "acc"}
    with pytest.raises(MiloraError, match=r"unknown task 'arc_eazy'; nearest: .*arc_easy"):
        evaluate(tiny_model, tokenizer, "arc_eazy")


def test_weights_that_are_tied_no_more_stay_so(tiny_llama, local_rows, no_network, tmp_path):
    """An embedding that trained in full is the head's no more, whatever the configuration says."""
    config = AutoConfig.from_pretrained(tiny_llama, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "tied")
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    for whole in ("embed_tokens", "lm_head"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "tied")
        lora = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=[whole], task_type="CAUSAL_LM")
        tuned = get_peft_model(model, lora)
        with torch.no_grad():
            for name, weight in tuned.named_parameters():
                if "modules_to_save" in name:
                    weight += 0.1
        ids = torch.tensor([[5, 6, 7]])
        before = tuned.eval()(ids).logits
        evaluate(tuned, tokenizer, "milora_questions", data_dir=local_rows)
        assert torch.equal(tuned(ids).logits, before)
        assert "tie_weights" not in vars(tuned)
