"""Base and tuned side by side: the right models, the paired error, the files."""

import json
import math

import pytest
import torch

from milora.errors import MiloraError
from milora.evaluation import compare as compare_module
from milora.evaluation import evaluate, evaluate_base_and_tuned
from milora.evaluation.compare import compare


def _records(scores):
    return [{"doc_id": i, "prompt_hash": f"h{i}", "scores": {"acc,none": float(s)}} for i, s in enumerate(scores)]


def _result(**scores):
    rows = [
        {
            "task": task, "metric": "acc", "filter": "none", "value": sum(s) / len(s), "stderr": 0.1,
            "n": len(s), "version": 1.0, "higher_is_better": True,
        }
        for task, s in scores.items()
    ]  # fmt: skip
    return {"scores": rows, "completions": {task: _records(s) for task, s in scores.items()}}


def test_paired_difference_by_hand():
    (row,) = compare(_result(t=[1, 0, 0, 1]), _result(t=[1, 1, 0, 1]))
    assert (row["base"], row["tuned"], row["difference"]) == (0.5, 0.75, 0.25)
    # d = 0, 1, 0, 0: mean 1/4, variance (3/16 + 9/16) / 3 = 1/4
    assert row["difference_stderr"] == pytest.approx(math.sqrt(0.25 / 4))


def test_group_difference_by_hand():
    base, tuned = _result(a=[0, 0], b=[1, 0, 1]), _result(a=[0, 1], b=[1, 1, 1])
    group = {"task": "g", "metric": "acc", "filter": "none", "stderr": 0.1, "n": 5, "version": 1.0}
    group |= {"higher_is_better": True, "weights": {"a": 0.5, "b": 0.5}}
    base["scores"].append(group | {"value": (0 + 2 / 3) / 2})
    tuned["scores"].append(group | {"value": (1 / 2 + 1) / 2})
    a, b, g = compare(base, tuned)
    assert g["difference"] == pytest.approx((a["difference"] + b["difference"]) / 2)
    expected = math.hypot(a["difference_stderr"] / 2, b["difference_stderr"] / 2)
    assert g["difference_stderr"] == pytest.approx(expected)


def test_one_row_or_no_score_per_row_has_no_error():
    assert compare(_result(t=[1]), _result(t=[0]))[0]["difference_stderr"] is None
    base, tuned = _result(t=[1, 0]), _result(t=[1, 1])
    for result in (base, tuned):
        for record in result["completions"]["t"]:
            record["scores"] = {"acc,none": [1.0, 2]}
    assert compare(base, tuned)[0]["difference_stderr"] is None


def test_different_prompts_are_not_compared():
    base, tuned = _result(t=[1, 0]), _result(t=[1, 1])
    tuned["completions"]["t"][1]["prompt_hash"] = "other"
    with pytest.raises(MiloraError, match="not run on the same rows"):
        compare(base, tuned)
    with pytest.raises(MiloraError, match="differ in task t"):
        compare(_result(u=[1, 0]), tuned)


def test_base_is_the_model_with_adapters_disabled(lora, tokenizer, tiny_llama, local_rows, tmp_path, no_network):
    from transformers import AutoModelForCausalLM

    settings = {"data_dir": local_rows, "gen_kwargs": {"max_gen_toks": 4}}
    tasks = ["milora_questions", "milora_boolq"]
    result = evaluate_base_and_tuned(lora, tokenizer, tasks, run_folder=tmp_path, **settings)
    fresh = evaluate(AutoModelForCausalLM.from_pretrained(tiny_llama), tokenizer, tasks, **settings)
    tuned = evaluate(lora, tokenizer, tasks, **settings)
    assert result["base"]["completions"] == fresh["completions"]
    assert result["tuned"]["completions"] == tuned["completions"]
    assert result["base"]["completions"] != result["tuned"]["completions"]
    assert len(result["comparison"]) == 4

    folder = tmp_path / "eval"
    names = {f"{task}.{side}.jsonl" for task in tasks for side in ("base", "tuned")} | {"results.json"}
    assert {p.name for p in folder.iterdir()} == names
    lines = (folder / "milora_boolq.tuned.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result["tuned"]["completions"]["milora_boolq"]
    written = json.loads((folder / "results.json").read_text())
    assert written["comparison"] == result["comparison"]
    assert "completions" not in written["base"]

    with pytest.raises(MiloraError, match=r"holds results of milora_boolq.*; set overwrite"):
        evaluate_base_and_tuned(lora, tokenizer, tasks, run_folder=tmp_path, **settings)


def test_full_fine_tune_takes_a_second_model(tiny_model, tokenizer, tiny_llama, local_rows):
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    with torch.no_grad():
        tiny_model.lm_head.weight.mul_(-1)
    with pytest.raises(MiloraError, match="pass its base as base_model"):
        evaluate_base_and_tuned(tiny_model, tokenizer, "milora_questions", data_dir=local_rows)
    arguments = (tiny_model, tokenizer, "milora_questions")
    result = evaluate_base_and_tuned(*arguments, base_model=base, data_dir=local_rows)
    logs = [r["completions"]["milora_questions"][0]["loglikelihoods"] for r in (result["base"], result["tuned"])]
    assert logs[0] != logs[1]
    again = evaluate_base_and_tuned(*arguments, base_results=result["base"], data_dir=local_rows)
    assert again["comparison"] == result["comparison"]


def _grouped(value, **scores):
    result = _result(**scores)
    parts = {task: 1 / len(scores) for task in scores}
    group = {"task": "g", "metric": "acc", "filter": "none", "value": value, "stderr": None, "n": 4, "version": 1.0}
    result["scores"].append(group | {"higher_is_better": True, "weights": parts})
    return result


def test_a_group_goes_when_one_of_its_tasks_is_measured_again(tmp_path):
    base, tuned = _grouped(0.5, a=[1, 0], b=[1, 0]), _grouped(1.0, a=[1, 1], b=[1, 1])
    folder = tmp_path / "eval"
    compare_module.write_results(folder, {"comparison": compare(base, tuned), "base": base, "tuned": tuned})
    assert compare_module.measured_tasks(tmp_path) == {"a", "b", "g"}
    base, tuned = _result(b=[0, 0]), _result(b=[0, 1])
    compare_module.write_results(folder, {"comparison": compare(base, tuned), "base": base, "tuned": tuned})
    written = json.loads((folder / "results.json").read_text())
    assert [(row["task"], row["tuned"]) for row in written["comparison"]] == [("a", 1.0), ("b", 0.5)]
    assert [row["task"] for row in written["tuned"]["scores"]] == ["a", "b"]


def test_a_group_whose_task_has_results_is_refused(lora, tokenizer, local_rows, tmp_path, monkeypatch):
    from milora.tasks.commonsense_forms import SETS

    for of in SETS.values():
        (local_rows / of.files[0]).write_text(json.dumps({"instruction": "?", "answer": of.labels[0]}) + "\n")
    settings = {"data_dir": local_rows, "run_folder": tmp_path}
    evaluate_base_and_tuned(lora, tokenizer, "milora_piqa", max_gen_toks=1, **settings)
    monkeypatch.setattr(compare_module, "evaluate", lambda *_, **__: pytest.fail("a model is run"))
    with pytest.raises(MiloraError, match="holds results of milora_piqa; set overwrite"):
        evaluate_base_and_tuned(lora, tokenizer, "milora_commonsense", **settings)


def test_a_failed_write_leaves_the_old_results(tmp_path, monkeypatch):
    result = {"comparison": [], "base": _result(t=[1, 0]), "tuned": _result(t=[1, 1])}
    path = compare_module.write_results(tmp_path, result)
    before = path.read_text()
    monkeypatch.setattr(compare_module.json, "dumps", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError):
        compare_module.write_results(tmp_path, result)
    assert path.read_text() == before
    assert sorted(p.name for p in path.parent.iterdir()) == ["results.json", "t.base.jsonl", "t.tuned.jsonl"]
