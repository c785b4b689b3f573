"""AlpacaEval v1: the arithmetic against published numbers, rows, prompts, and the forms of outputs."""

import json
import math

import numpy as np
import pytest

from milora.errors import MiloraError
from milora.tasks.alpaca_eval import eval_set, model_outputs, read_outputs, win_rate
from milora.tasks.local_files import read_rows

COUNTS = ("n_wins", "n_wins_base", "n_draws", "n_total")


def test_published_win_rates_come_out_of_the_recorded_judgements(shared_data):
    folder = shared_data / "alpaca_eval"
    published = read_rows(folder / "published.json")
    assert len(published) == 4
    for row in published:
        judged = read_rows(folder / "annotations" / f"{row['generator']}.jsonl.gz")
        found = win_rate(r["preference"] for r in judged)
        assert found["win_rate"] == pytest.approx(row["win_rate"], abs=1e-6)
        assert found["standard_error"] == pytest.approx(row["standard_error"], abs=1e-6)
        assert {name: found[name] for name in COUNTS} == {name: row[name] for name in COUNTS}


@pytest.mark.parametrize(
    ("preferences", "rate", "counts"),
    [
        ([2, 2, 1, 0], 62.5, (2, 1, 1, 4)),
        ([2.0, 1.5], 75.0, (1, 0, 1, 2)),
        ([1.25, 1.75], 50.0, (1, 1, 0, 2)),
        ([2, None, math.nan], 100.0, (1, 0, 0, 1)),
        ([None], None, (0, 0, 0, 0)),
        ([], None, (0, 0, 0, 0)),
    ],
)
def test_draws_nulls_and_probabilities(preferences, rate, counts):
    found = win_rate(preferences)
    assert found["win_rate"] == rate
    assert tuple(found[name] for name in COUNTS) == counts


def test_standard_error_is_of_a_mean():
    assert win_rate([2, 1, 1, 1])["standard_error"] == pytest.approx(100 * math.sqrt(0.25 / 4))
    assert win_rate([2])["standard_error"] is None
    assert win_rate(np.array([2, 1, 1, 1])) == win_rate(np.float32([2, 1, 1, 1])) == win_rate([2, 1, 1, 1])


@pytest.mark.parametrize("wrong", [3, 0.5, -1, True, "2"])
def test_what_is_no_preference(wrong):
    with pytest.raises(MiloraError, match="win_rate: got the preference"):
        win_rate([2, wrong])


PROMPTS = {
    "open-instruct": "<|user|>\nName two.\n<|assistant|>\n",
    "alpaca": "Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n Name two.\n\n\n### Response:",
    "instruction": " Name two.\n",
}


@pytest.mark.parametrize("template", PROMPTS)
def test_prompts(tmp_path, template):
    (tmp_path / "eval_set.jsonl").write_text(json.dumps({"instruction": " Name two.\n", "dataset": "koala"}) + "\n")
    (row,) = eval_set(data_dir=str(tmp_path), prompt_template=template)["test"]
    assert row == {"instruction": " Name two.\n", "dataset": "koala", "prompt": PROMPTS[template]}


def test_unknown_template(tmp_path):
    with pytest.raises(MiloraError, match="prompt_template: got 'chat', allowed open-instruct, alpaca, instruction"):
        eval_set(data_dir=str(tmp_path), prompt_template="chat")


def test_the_shared_evaluation_set(shared_data):
    rows = eval_set(data_dir=str(shared_data))["test"]
    assert len(rows) == len(set(rows["instruction"])) == 805


def test_outputs_in_each_form(tmp_path):
    completions = [{"target": "Say hi.", "completion": " Hi. \n", "prompt": "..."}]
    made = model_outputs(completions, "mine")
    assert made == [{"instruction": "Say hi.", "output": "Hi.", "generator": "mine", "datasplit": "eval"}]
    files = {
        "milora_alpaca_eval.tuned.jsonl": completions,
        "model_outputs.json": made,
        "annotations.jsonl": [{"instruction": "Say hi.", "output": "Hi.", "preference": 2.0}],
        "eval_set.jsonl": [{"instruction": "Say hi.", "reference_output": "Hi.", "reference_generator": "davinci"}],
    }
    names = {}
    for name, rows in files.items():
        lines = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(r) + "\n" for r in rows)
        (tmp_path / name).write_text(lines)
        (row,) = read_outputs(tmp_path / name)
        assert (row["instruction"], row["output"]) == ("Say hi.", "Hi.")
        names[name] = row["generator"]
    assert list(names.values()) == ["milora_alpaca_eval", "mine", "annotations", "davinci"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"instruction": "a", "output": "b"}] * 2, "an instruction stands in it twice"),
        ([{"instruction": "a"}], "row 1: needs the texts instruction and output"),
        ([{"instruction": "a", "output": 3}], "row 1: needs the texts"),
    ],
)
def test_bad_outputs(tmp_path, rows, message):
    (tmp_path / "o.json").write_text(json.dumps(rows))
    with pytest.raises(MiloraError, match=message):
        read_outputs(tmp_path / "o.json")
