"""Files in, examples out; every wrong row is named."""

import gzip
import json

import pytest

from milora.data import data_hash, load_examples, split_validation
from milora.errors import MiloraError

ROWS = [{"prompt": f"{i} plus {i} is", "completion": f" {2 * i}"} for i in range(20)]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def rows_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(lines(ROWS))
    return path


def written(folder, name):
    path = folder / name
    if name.endswith(".parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(ROWS), path)
        return path
    content = json.dumps(ROWS, indent=1) if ".json" in name and ".jsonl" not in name else lines(ROWS)
    path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    return path


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz", "a.jsonl.gz", "a.parquet"])
def test_every_file_form_gives_the_same_examples(tmp_path, rows_file, name):
    examples = load_examples(written(tmp_path, name))
    assert list(examples) == ROWS
    assert data_hash(examples) == data_hash(load_examples(rows_file))


def test_json_lines_under_the_name_json_blank_lines_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + lines(ROWS).replace("\n", "\n\n").encode())
    assert list(load_examples(path)) == ROWS


def test_text_paragraphs_or_lines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("One\nstill one.\n\n \nTwo.\n")
    assert load_examples(path)["text"] == ["One\nstill one.", "Two."]
    path.write_text("One.\nTwo.\n")
    assert load_examples(path)["text"] == ["One.", "Two."]


def test_text_gzip(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"One.\n\nTwo.\n"))
    assert load_examples(path)["text"] == ["One.", "Two."]


BAD = [
    ({"prompt": "a"}, "field 'completion' is missing"),
    ({"prompt": "a", "completion": 3}, "field 'completion': got int, allowed str"),
    ({"prompt": "a", "completion": None}, "field 'completion': got NoneType, allowed str"),
    ({"prompt": "a", "completion": " \n"}, "field 'completion' is empty"),
    ({"prompt": "", "completion": "b"}, "field 'prompt' is empty"),
    ("words", "got str, allowed an object with the fields prompt, completion"),
]


@pytest.mark.parametrize("bad, problem", BAD)
def test_a_wrong_row_is_named(tmp_path, bad, problem):
    path = tmp_path / "rows.jsonl"
    path.write_text(lines([*ROWS[:6], bad, *ROWS[6:]]))
    with pytest.raises(MiloraError) as error:
        load_examples(path, limit=1)
    assert f"{path}, row 7: {problem} (format prompt_completion)" in str(error.value)


BAD_TALK = [
    ("hello", "field 'messages': got str, allowed a list of messages"),
    ([], "field 'messages': got an empty list, allowed a list of messages"),
    (["hello"], "field 'messages[0]': got str, allowed an object with 'role' and 'content'"),
    ([{"role": "user"}], "field 'messages[0].content': got nothing, allowed str"),
    ([{"role": "user", "content": 1}], "field 'messages[0].content': got int, allowed str"),
    ([{"role": "robot", "content": "a"}], "field 'messages[0].role': got 'robot', allowed system, user, assistant"),
    ([{"role": "user", "content": "a"}], "field 'messages' holds no answer"),
    (
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}],
        "field 'messages[1].tool_calls': got a call, which would not be trained; allowed words alone",
    ),
    (
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}],
        "field 'messages[1].content' is empty",
    ),
]


@pytest.mark.parametrize("messages, problem", BAD_TALK)
def test_a_wrong_message_is_named(tmp_path, messages, problem):
    path = tmp_path / "rows.jsonl"
    path.write_text(lines([{"messages": messages}]))
    with pytest.raises(MiloraError) as error:
        load_examples(path)
    assert f"row 1: {problem}" in str(error.value)


def test_gsm8k_row_without_closing_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(lines([{"question": "q", "answer": "#### 1"}, {"question": "q", "answer": "just 1"}]))
    with pytest.raises(MiloraError, match="row 2: field 'answer' has no last line '#### n'"):
        load_examples(path)


def test_empty_rows_can_be_left_out(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(lines([ROWS[0], {"prompt": "a", "completion": ""}, ROWS[1]]))
    with pytest.raises(MiloraError, match=r"row 2: .* is empty .*; empty_rows: drop leaves such rows out"):
        load_examples(path)
    assert list(load_examples(path, empty_rows="drop")) == ROWS[:2]
    with pytest.raises(MiloraError, match="empty_rows: got 'skip', allowed error, drop"):
        load_examples(path, empty_rows="skip")


def test_dropping_empty_rows_still_refuses_a_missing_field(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(lines([ROWS[0], {"prompt": "a"}]))
    with pytest.raises(MiloraError, match="row 2: field 'completion' is missing"):
        load_examples(path, empty_rows="drop")


@pytest.mark.parametrize("name, content", [("a.jsonl", ""), ("a.json", "[]"), ("a.txt", " \n")])
def test_an_empty_data_set(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(MiloraError, match="has no rows"):
        load_examples(path)


def test_a_data_set_of_empty_rows(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(lines([{"prompt": "a", "completion": ""}] * 3))
    with pytest.raises(MiloraError, match="all 3 rows are empty"):
        load_examples(path, empty_rows="drop")


def test_broken_json_names_the_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(lines(ROWS[:2]) + '{"prompt": "a", \n')
    with pytest.raises(MiloraError, match=r"a\.jsonl, line 3, column 17: broken JSON"):
        load_examples(path)
    path = tmp_path / "a.json"
    path.write_text('[{"prompt": "a"},\n {"prompt": }]')
    with pytest.raises(MiloraError, match=r"a\.json, line 2, column 13: broken JSON"):
        load_examples(path)


@pytest.mark.parametrize(
    "name, content, problem",
    [
        ("a.jsonl.gz", b"not gzip", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b"x" * 999, mtime=0)[:-9], "cannot be read"),
        ("a.jsonl.gz", b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + b"\xff" * 40, "a.jsonl.gz: cannot be read"),  # a bad block
        ("a.jsonl", b"\xff\xfe\x00", "cannot be read"),
        ("a.parquet", b"not parquet", "broken parquet"),
        ("a.csv", b"a,b", "allowed .json, .jsonl"),
    ],
)
def test_unreadable_files(tmp_path, name, content, problem):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(MiloraError, match=problem) as error:
        load_examples(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["no/such.jsonl", "./nothing", "/nowhere/at/all"])
def test_no_such_file(name):
    with pytest.raises(MiloraError, match="no such file or folder"):
        load_examples(name)


def test_limit_is_seeded_and_keeps_the_order(rows_file):
    first, again, other = (list(load_examples(rows_file, limit=8, seed=s)) for s in (1, 1, 2))
    assert first == again != other
    assert len(first) == 8
    assert [ROWS.index(r) for r in first] == sorted(ROWS.index(r) for r in first)
    assert len(load_examples(rows_file, limit=100)) == 20
    with pytest.raises(MiloraError, match="dataset_limit: got 0"):
        load_examples(rows_file, limit=0)


@pytest.mark.parametrize(
    "split, numbers", [("train", (0, 20)), ("train[:3]", (0, 3)), ("train[5:]", (5, 20)), ("test[10%:50%]", (2, 10))]
)
def test_slices_of_a_file(rows_file, split, numbers):
    assert list(load_examples(rows_file, split=split)) == ROWS[slice(*numbers)]


def test_wrong_slice_of_a_file(rows_file):
    with pytest.raises(MiloraError, match=r"got split 'train\[3\]', allowed a name or a slice"):
        load_examples(rows_file, split="train[3]")


def test_a_folder_is_read_by_datasets(tmp_path, monkeypatch, rows_file):
    import datasets

    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_text(lines(ROWS))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert list(load_examples(folder)) == ROWS
    assert list(load_examples(str(folder), split="train[:3]")) == ROWS[:3]
    with pytest.raises(MiloraError, match="split validation: "):
        load_examples(folder, split="validation")


def test_a_folder_saved_by_datasets(tmp_path):
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    assert list(load_examples(tmp_path / "saved")) == ROWS
    assert list(load_examples(tmp_path / "saved", split="train[:3]")) == ROWS[:3]


def test_a_folder_of_splits_saved_by_datasets(tmp_path):
    import datasets

    parts = {"train": datasets.Dataset.from_list(ROWS[:15]), "test": datasets.Dataset.from_list(ROWS[15:])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    assert list(load_examples(tmp_path / "saved")) == ROWS[:15]
    assert list(load_examples(tmp_path / "saved", split="test[1:]")) == ROWS[16:]
    with pytest.raises(MiloraError, match="got split 'dev', allowed train, test"):
        load_examples(tmp_path / "saved", split="dev")


def test_a_hub_name_goes_to_load_dataset(monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, configuration=None, split=None):
        asked.append((name, configuration, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(load_examples("some/sums", split="train[:20]")) == ROWS
    assert list(load_examples("some/sums:main")) == ROWS
    assert asked == [("some/sums", None, "train[:20]"), ("some/sums", "main", "train")]


def test_an_unknown_hub_name_is_one_line():
    with pytest.raises(MiloraError, match="data set nobody/nothing, split train: ") as error:
        load_examples("nobody/nothing")
    assert "\n" not in str(error.value)


def test_data_hash_sees_content_and_order(rows_file):
    examples = load_examples(rows_file)
    assert data_hash(examples) == data_hash(examples.select(range(20)))
    assert data_hash(examples) != data_hash(examples.select(range(19, -1, -1)))
    assert data_hash(examples) != data_hash(examples.select(range(19)))


def test_data_hash_is_the_sum_of_the_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"completion": "é", "prompt": "a"}\n')
    # printf '{"completion": "é", "prompt": "a"}\n' | sha256sum
    assert data_hash(load_examples(path)) == "b474c0e83d142a3076724cd44401b53d9fecc7ccb1716e5eb5469e412e863b35"


@pytest.mark.parametrize("size, rows", [(5, 5), (0.25, 5), (0.01, 1)])
def test_validation_split(rows_file, size, rows):
    examples = load_examples(rows_file)
    train, val = split_validation(examples, size, seed=42)
    assert (len(train), len(val)) == (20 - rows, rows)
    prompts = sorted([*train["prompt"], *val["prompt"]])
    assert prompts == sorted(examples["prompt"])
    again = split_validation(examples, size, seed=42)
    assert (list(again[0]), list(again[1])) == (list(train), list(val))


def test_validation_split_follows_the_seed(rows_file):
    examples = load_examples(rows_file)
    assert list(split_validation(examples, 5, 1)[1]) != list(split_validation(examples, 5, 2)[1])
    assert split_validation(examples, 0, 1) == (examples, None)


@pytest.mark.parametrize("size", [20, 21, -1, 1.0, 1.5, -0.1, 0.99])
def test_validation_split_too_large(rows_file, size):
    with pytest.raises(MiloraError, match=f"val_set_size: got {size}"):
        split_validation(load_examples(rows_file), size, 0)


def test_open_instructs_template_goes_around_instructions_and_conversations(tmp_path):
    path = tmp_path / "a.jsonl"
    said = [("system", "Be brief."), ("user", " One? "), ("assistant", "1 "), ("user", "Two?"), ("assistant", "2"),
            ("user", "Bye.")]  # fmt: skip
    path.write_text(lines([{"messages": [{"role": r, "content": c} for r, c in said]}]))
    (example,) = load_examples(path, template="open-instruct")
    assert example == {
        "prompts": ["<|system|>\nBe brief.\n<|user|>\nOne?\n<|assistant|>\n", "\n<|user|>\nTwo?\n<|assistant|>\n"],
        "completions": ["1", "2"],
    }
    path.write_text(lines([{"instruction": "Add.", "input": "1 1", "output": "2"}]))
    (example,) = load_examples(path, template="open-instruct")
    assert example == {"prompts": ["<|user|>\nAdd.\n\n1 1\n<|assistant|>\n"], "completions": ["2"]}
    path.write_text(lines([{"messages": [{"role": "assistant", "content": "Hi."}]}]))
    with pytest.raises(MiloraError, match=r"got 'alpaca', allowed auto, open-instruct .the format messages has no"):
        load_examples(path, template="alpaca")
