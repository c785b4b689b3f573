"""Each format against the text its source would have made, and detection by columns."""

import json

import pytest

from milora.data import FORMATS, TEMPLATES, load_examples
from milora.errors import MiloraError

SENTENCE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
S16 = "                "

ROWS = {
    "alpaca": {"instruction": "Add.", "input": "", "output": "Done."},
    "commonsense": {"instruction": "Pick\n\none.", "input": "", "output": "the correct answer is b", "answer": "b"},
    "metamath": {"query": "1+1?", "response": "2\nThe answer is: 2"},
    "gsm8k": {"question": "1+1?", "answer": "1+1 = <<1+1=2>>2 in all.\n#### 2"},
    "gsm8k_harness": {"question": "1+1?", "answer": "1+1 = <<1+1=2>>2 in all.\n#### 2"},
    "prompt_completion": {"prompt": "The sky is", "completion": " blue."},
    "messages": {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
    "llava": {"image": None, "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
    "text": {"text": "A line."},
}
ALPACA_PROMPT = f"{SENTENCE}\n\n### Instruction:\nAdd.\n\n### Response:"
MATH_PROMPT = f"{SENTENCE}\n\n### Instruction:\n1+1?\n\n### Response:"
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
TALK = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}
EXAMPLES = {
    "alpaca": {"prompt": ALPACA_PROMPT, "completion": "Done."},
    "commonsense": {
        "prompt": f"{SENTENCE}  \n\n{S16}### Instruction:\n{S16}Pick\n\none.\n{S16}\n{S16}### Response:\n{S16}",
        "completion": "the correct answer is b",
    },
    "metamath": {"prompt": MATH_PROMPT, "completion": "2\nThe answer is: 2"},
    "gsm8k": {"prompt": MATH_PROMPT, "completion": "1+1 = 2 in all.\n#### 2\nThe answer is: 2"},
    "gsm8k_harness": {"prompt": "Question: 1+1?\nAnswer:", "completion": " 1+1 = <<1+1=2>>2 in all.\n#### 2"},
    "prompt_completion": {"prompt": "The sky is", "completion": " blue."},
    "messages": TALK,
    "sharegpt": TALK,
    "llava": {"prompts": [f"{VICUNA} USER: Hi ASSISTANT:"], "completions": [" Ho"], "image": None},
    "text": {"text": "A line."},
}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_format_has_a_case_here():
    assert set(FORMATS) == set(ROWS) == set(EXAMPLES)
    assert len(FORMATS) == 10
    assert set(TEMPLATES) == {"alpaca", "commonsense", "metamath", "gsm8k", "chat", "open-instruct"}


@pytest.mark.parametrize("name", sorted(ROWS))
@pytest.mark.parametrize("asked", ["named", "auto"])
def test_format_gives_the_exact_text(tmp_path, name, asked):
    if asked == "auto" and FORMATS[name].by_name:
        pytest.skip("its columns are another format's, so it is taken only by name")
    path = write(tmp_path / "rows.jsonl", [ROWS[name]])
    examples = load_examples(path, format="auto" if asked == "auto" else name)
    assert list(examples) == [EXAMPLES[name]]


def test_alpaca_with_input(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"instruction": "Add.", "input": "1 2", "output": "3"}])
    (example,) = load_examples(path)
    assert example["prompt"] == f"{WITH_INPUT}\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:"


def test_commonsense_with_input_ends_line_one_with_one_space(tmp_path):
    row = {"instruction": "Pick.", "input": "a b", "output": "the correct answer is b", "answer": "b"}
    (example,) = load_examples(write(tmp_path / "rows.jsonl", [row]))
    body = f"{S16}### Instruction:\n{S16}Pick.\n{S16}\n{S16}### Input:\n{S16}a b\n{S16}\n{S16}### Response:\n{S16}"
    assert example["prompt"] == f"{WITH_INPUT} \n\n{body}"


@pytest.mark.parametrize("missing", [{}, {"input": None}])
def test_alpaca_input_may_be_missing(tmp_path, missing):
    path = write(tmp_path / "rows.jsonl", [{"instruction": "Add.", "output": "Done.", **missing}])
    assert list(load_examples(path)) == [EXAMPLES["alpaca"]]


def test_a_system_beside_a_conversation_is_its_first_message(tmp_path):
    row = ROWS["sharegpt"] | {"system": "Answer in French."}
    (example,) = load_examples(write(tmp_path / "rows.jsonl", [row]), format="sharegpt")
    assert example["messages"] == [{"role": "system", "content": "Answer in French."}, *TALK["messages"]]
    (example,) = load_examples(write(tmp_path / "none.jsonl", [row | {"system": ""}]), format="sharegpt")
    assert example == TALK
    twice = row | {"conversations": [{"from": "system", "value": "Be brief."}, *row["conversations"]]}
    with pytest.raises(MiloraError, match="field 'system': the conversation has a system message of its own"):
        load_examples(write(tmp_path / "twice.jsonl", [twice]), format="sharegpt")


@pytest.mark.parametrize("name", ["messages", "sharegpt"])
def test_tools_are_not_lost_in_silence(tmp_path, name):
    path = write(tmp_path / "rows.jsonl", [ROWS[name] | {"tools": [{"name": "weather"}]}])
    with pytest.raises(MiloraError, match="row 1: field 'tools': got tools, which no prompt would show"):
        load_examples(path, format=name)


def test_template_of_another_format_and_chat(tmp_path):
    path = write(tmp_path / "rows.jsonl", [ROWS["commonsense"]])
    (example,) = load_examples(path, template="alpaca")
    assert example["prompt"] == f"{SENTENCE}\n\n### Instruction:\nPick\n\none.\n\n### Response:"
    (example,) = load_examples(path, template="chat")
    assert [m["role"] for m in example["messages"]] == ["user", "assistant"]
    assert example["messages"][1]["content"] == "the correct answer is b"


def test_template_on_a_format_without_one_is_refused(tmp_path):
    path = write(tmp_path / "rows.jsonl", [ROWS["text"]])
    with pytest.raises(MiloraError, match=r"prompt_template: got 'alpaca', allowed auto \(the format text"):
        load_examples(path, template="alpaca")
    with pytest.raises(MiloraError, match="prompt_template: got 'vicuna', allowed auto, alpaca"):
        load_examples(path, template="vicuna")


def test_unknown_columns_name_what_was_found_and_what_is_known(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"foo": 1, "bar": 2}])
    with pytest.raises(MiloraError) as error:
        load_examples(path)
    message = str(error.value)
    assert "got columns foo, bar" in message
    assert all(name in message for name in FORMATS)
    assert "\n" not in message


def test_columns_of_two_formats_are_not_guessed(tmp_path):
    path = write(tmp_path / "rows.jsonl", [ROWS["text"] | ROWS["messages"]])
    with pytest.raises(MiloraError, match="fit messages and text; choose one with dataset_format"):
        load_examples(path)
    assert load_examples(path, format="text").column_names == ["text"]


def test_unknown_format(tmp_path):
    with pytest.raises(MiloraError, match="dataset_format: got 'alpacca', allowed auto or alpaca"):
        load_examples(write(tmp_path / "rows.jsonl", [ROWS["text"]]), format="alpacca")


def test_gsm8k_annotations_and_negative_answers(tmp_path):
    rows = [{"question": "q", "answer": "a <<1-3=-2>>-2 b\n\n#### -2"}, {"question": "q", "answer": "#### 1,234 "}]
    first, second = load_examples(write(tmp_path / "rows.jsonl", rows))["completion"]
    assert first == "a -2 b\n\n#### -2\nThe answer is: -2"
    assert second == "#### 1,234\nThe answer is: 1,234"


def test_real_files(shared_data):
    expected = {
        "commonsense/train_15k.jsonl.gz": (14999, ["prompt", "completion"]),
        "math/gsm8k_train.jsonl.gz": (7473, ["prompt", "completion"]),
        "math/metamath_form_train.jsonl.gz": (11473, ["prompt", "completion"]),
        "instruct/ultrafeedback_800.jsonl.gz": (800, ["prompt", "completion"]),
        "visual/chiriqui_figures.jsonl": (183, ["prompts", "completions", "image"]),
        "book/chiriqui.txt": (134, ["text"]),
        "wikitext/wikitext103_test.txt.gz": (2891, ["text"]),
    }
    for name, (rows, columns) in expected.items():
        examples = load_examples(shared_data / name)
        assert (len(examples), examples.column_names) == (rows, columns), name


def test_gsm8k_closes_as_the_metamath_form_of_the_same_rows_does(shared_data):
    ours = load_examples(shared_data / "math/gsm8k_train.jsonl.gz")
    theirs = load_examples(shared_data / "math/metamath_form_train.jsonl.gz")
    closing = {e["prompt"]: e["completion"].split("\n")[-2:] for e in theirs}
    same = [e["completion"].split("\n")[-2:] == closing[e["prompt"]] for e in ours if e["prompt"] in closing]
    assert len(same) > 7000
    assert all(same)
    assert not any("<<" in e["completion"] for e in ours)
