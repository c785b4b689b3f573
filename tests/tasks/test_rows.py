"""Where rows come from, and what is said when they are wrong."""

import gzip
import json

import pytest

from milora.errors import MiloraError
from milora.tasks import rows


def _write(path, *objects):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(o) + "\n" for o in objects)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


BOOLQ = {"instruction": "Is it?", "answer": "true"}
QUESTION = {"question": "Where?", "choices": ["here", "there"], "answer": 1}


@pytest.mark.parametrize("name", ["boolq.jsonl", "boolq.jsonl.gz", "commonsense/dev/boolq.jsonl"])
def test_file_is_found(tmp_path, name):
    _write(tmp_path / name, BOOLQ)
    dataset = rows.commonsense("boolq", data_dir=str(tmp_path))["test"]
    assert dataset.to_list() == [BOOLQ | {"labels": ["true", "false"]}]


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    (tmp_path / "boolq.jsonl").write_text("\ufeff" + json.dumps(BOOLQ))
    assert rows.commonsense("boolq", data_dir=str(tmp_path))["test"][0]["answer"] == "true"


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "boolq.jsonl.gz").write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + b"\xff" * 40)
    with pytest.raises(MiloraError, match=r"boolq\.jsonl\.gz: cannot be read: Error -3"):
        rows.commonsense("boolq", data_dir=str(tmp_path))


def test_llm_adapters_own_layout(tmp_path):
    path = tmp_path / "dataset" / "ARC-Easy" / "test.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps([{"instruction": "Which?", "answer": "answer2"}]))
    assert rows.commonsense("arc_easy", data_dir=str(tmp_path))["test"][0]["answer"] == "answer2"


def test_environment_names_the_folder(tmp_path, monkeypatch):
    _write(tmp_path / "questions.jsonl", QUESTION)
    monkeypatch.setenv("MILORA_TASK_DATA", str(tmp_path))
    assert rows.questions()["test"].to_list() == [QUESTION]


def test_separators_inside_a_json_text_do_not_end_a_line(tmp_path):
    text = "one\u2028two\u0085three"
    line = json.dumps({"question": text, "answer": "#### 1"}, ensure_ascii=False)
    (tmp_path / "gsm8k.jsonl").write_text(line + "\n", encoding="utf-8")
    assert rows.gsm8k(data_dir=str(tmp_path))["test"]["question"][0] == text


def test_gold_is_the_text_after_the_last_mark(tmp_path):
    path = _write(tmp_path / "g.jsonl", {"question": "?", "answer": "#### 3 then\n#### 1,234 "})
    assert rows.gsm8k(data_dir=str(path))["test"][0]["gold"] == "1234"


def test_shared_gsm8k_has_a_number_in_every_gold(shared_data):
    from milora.tasks.extraction import number_value

    golds = rows.gsm8k(data_dir=str(shared_data))["test"]["gold"]
    assert len(golds) == 660
    assert all(number_value(gold) is not None for gold in golds)


def test_answer_of_a_question_may_be_its_text(tmp_path):
    path = _write(tmp_path / "q.jsonl", QUESTION | {"answer": "here"})
    assert rows.questions(data_dir=str(path))["test"][0]["answer"] == 0


BAD = [
    ("commonsense", "boolq.jsonl", [BOOLQ, {"instruction": "x"}], r"row 2 has no field 'answer'"),
    ("commonsense", "boolq.jsonl", [BOOLQ | {"answer": "yes"}], r"row 1: answer 'yes', allowed true, false"),
    ("commonsense", "boolq.jsonl", [], r"no rows"),
    ("commonsense", "piqa.jsonl", [BOOLQ], r"milora_boolq: no data in .*: looked for boolq.jsonl"),
    ("gsm8k", "gsm8k.jsonl", [{"question": "?", "answer": "18"}], r"row 1: the answer has no '#### number'"),
    ("gsm8k", "gsm8k.jsonl", [{"question": "?", "answer": 18}], r"row 1: the answer has no '#### number'"),
    (
        "gsm8k",
        "gsm8k.jsonl",
        [{"question": "?", "answer": "#### 1,800"}, {"question": "?", "answer": "so\n#### x"}],
        r"row 2: the answer ends in '#### x', allowed a number",
    ),
    ("questions", "questions.jsonl", [QUESTION | {"answer": 2}], r"row 1: answer 2, allowed 0 to 1"),
    ("questions", "questions.jsonl", [QUESTION | {"answer": True}], r"row 1: answer True"),
    ("questions", "questions.jsonl", [QUESTION | {"answer": "B"}], r"row 1: answer 'B'"),
    ("questions", "questions.jsonl", [QUESTION | {"choices": ["one"]}], r"row 1: choices must be"),
    ("questions", "questions.jsonl", [QUESTION, 3], r"line 2 is not a JSON object"),
]


@pytest.mark.parametrize(("task", "name", "objects", "message"), BAD)
def test_bad_rows_are_named(tmp_path, task, name, objects, message):
    _write(tmp_path / name, *objects)
    with pytest.raises(MiloraError, match=message) as caught:
        arguments = ("boolq",) if task == "commonsense" else ()
        getattr(rows, task)(*arguments, data_dir=str(tmp_path))
    assert "\n" not in str(caught.value)


def test_line_that_is_not_json_is_named(tmp_path):
    (tmp_path / "questions.jsonl").write_text(json.dumps(QUESTION) + "\n{oops\n")
    with pytest.raises(MiloraError, match="line 2 is not JSON"):
        rows.questions(data_dir=str(tmp_path))


def test_two_files_are_not_guessed_between(tmp_path):
    _write(tmp_path / "a" / "boolq.jsonl", BOOLQ)
    _write(tmp_path / "b" / "boolq.jsonl", BOOLQ)
    with pytest.raises(MiloraError, match="several data files"):
        rows.commonsense("boolq", data_dir=str(tmp_path))


def test_missing_folder(tmp_path):
    with pytest.raises(MiloraError, match="data_dir: no such file or folder"):
        rows.gsm8k(data_dir=str(tmp_path / "nowhere"))


def test_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    monkeypatch.delenv("MILORA_TASK_DATA", raising=False)
    with pytest.raises(MiloraError, match="data set google/boolq: cannot be had from the hub") as caught:
        rows.commonsense("boolq")
    assert "\n" not in str(caught.value)
