"""The tasks as plain ``lm_eval --include_path`` sees them."""

import json
import os
import subprocess
import sys

import pytest

from milora.tasks import folder

NAMES = {
    "milora_boolq", "milora_piqa", "milora_social_i_qa", "milora_hellaswag", "milora_winogrande",
    "milora_arc_easy", "milora_arc_challenge", "milora_openbookqa", "milora_commonsense", "milora_gsm8k",
    "milora_questions", "milora_book_mcq", "milora_book_mcq_letters", "milora_book_cloze", "milora_book_wording",
    "milora_math", "milora_math500",
    "milora_pictures", "milora_pictures_blind", "milora_captions", "milora_captions_blind",
    "milora_captions_written",
    "milora_alpaca_eval", "milora_wikitext",
}  # fmt: skip


def test_every_task_is_indexed_and_has_a_version():
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    assert set(TaskManager(include_path=str(folder()), include_defaults=False).all_tasks) == NAMES
    files = sorted(folder().rglob("*.yaml"))
    assert len(files) == len(NAMES)
    for file in files:
        assert float(load_yaml(file)["metadata"]["version"]) >= 1.0, file


STOP = ["Instruction:", "Instruction", "Response:", "Response"]
GREEDY = {"do_sample": False}
GENERATION = {
    "commonsense/boolq.yaml": GREEDY | {"until": [], "max_gen_toks": 32},
    "hendrycks_math.yaml": GREEDY | {"until": STOP, "max_gen_toks": 2048},
    "alpaca_eval.yaml": GREEDY
    | {"until": [], "max_gen_toks": 2048, "repetition_penalty": 1.1, "no_repeat_ngram_size": 5},
    "gsm8k.yaml": GREEDY | {"until": STOP, "max_gen_toks": 1024},
}


@pytest.mark.parametrize("file", GENERATION)
def test_generation_is_the_published_one_but_for_the_beams(file):
    from lm_eval.tasks._yaml_loader import load_yaml

    assert load_yaml(folder() / file)["generation_kwargs"] == GENERATION[file]


@pytest.mark.slow
def test_command_line(tiny_llama, tmp_path):
    (tmp_path / "boolq.jsonl").write_text((json.dumps({"instruction": "Is it?", "answer": "true"}) + "\n") * 3)
    question = {"question": "Where is it?", "choices": ["here", "there"], "answer": 1, "evidence": "over there"}
    (tmp_path / "tale_mcq.jsonl").write_text(json.dumps(question) + "\n")
    (tmp_path / "tale.txt").write_text("It lies over there.")
    (tmp_path / "wiki.test.tokens").write_text(" = One = \n a b \n")
    where = subprocess.run([sys.executable, "-m", "milora.tasks"], capture_output=True, text=True, check=True)
    assert where.stdout.strip() == str(folder())
    command = [
        sys.executable, "-m", "lm_eval", "--model", "hf", "--device", "cpu", "--batch_size", "2",
        "--model_args", f"pretrained={tiny_llama}", "--include_path", where.stdout.strip(),
        "--tasks", "milora_boolq,milora_questions,milora_book_mcq,milora_book_wording,milora_wikitext",
        "--metadata", json.dumps({"data_dir": str(tmp_path), "task_seed": 1}),
        "--output_path", str(tmp_path / "out"), "--log_samples",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    (results,) = (tmp_path / "out").rglob("results_*.json")
    scores = json.loads(results.read_text())["results"]
    assert {"exact_match,strict", "exact_match,flexible"} <= set(scores["milora_boolq"])
    assert {"acc,none", "acc_norm,none"} <= set(scores["milora_questions"])
    assert "acc,none" in scores["milora_book_mcq"]
    # How many tokens there are is known to this package's model alone.
    assert {"exact,none", "nll_per_byte,none"} <= set(scores["milora_book_wording"])
    assert {"word_perplexity,none", "byte_perplexity,none"} <= set(scores["milora_wikitext"])
    (samples,) = (tmp_path / "out").rglob("samples_milora_boolq_*.jsonl")
    assert json.loads(samples.read_text().splitlines()[0])["arguments"]["gen_args_0"]["arg_0"].endswith(" " * 16)
