"""The tasks on pictures: what the scores are, that the picture matters, and what is refused."""

import json
import sys
from types import ModuleType

import pytest
import torch

from milora.data import load_examples
from milora.data.formats.llava import SYSTEM
from milora.data.pictures import open_picture
from milora.errors import MiloraError
from milora.evaluation import evaluate, evaluate_base_and_tuned
from milora.models.load import load_model, load_processor, load_tokenizer
from milora.models.pictures import Pictures
from milora.tasks.picture_rows import pictures as task_rows
from milora.tasks.picture_rows import shared_words

ASKED = f"{SYSTEM} USER: <image>\nWhich colour? ASSISTANT:"


@pytest.fixture(scope="module")
def processor(tiny_llava):
    return load_processor(tiny_llava)


@pytest.fixture(scope="module")
def model(tiny_llava):
    """The tiny model with a louder projector, so that a picture is heard."""
    model = load_model(tiny_llava, dtype="float32")
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.weight.mul_(30)
        model.lm_head.weight.mul_(10)
    return model.eval()


def by_hand(model, processor, picture, text, answer) -> float:
    """log p(answer | picture, text) from one forward pass, token by token."""
    pictures = Pictures(processor)
    before, ids = (processor.tokenizer(t)["input_ids"] for t in (text, text + answer))
    wide, _ = pictures.expand(ids, ids)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([wide]), pixel_values=pictures.pixels([open_picture(picture)])).logits[0]
    size = len(ids) - len(before)
    likelihoods = logits.log_softmax(-1)[-size - 1 : -1]
    return sum(float(likelihoods[i, token]) for i, token in enumerate(wide[-size:]))


def test_the_likeliest_choice_after_picture_and_question_counts(model, processor, picture_rows):
    result = evaluate(model, processor, "milora_pictures", data_dir=picture_rows, batch_size=3)
    rows = [json.loads(line) for line in picture_rows.read_text().splitlines()]
    right, right_norm = [], []
    for row, said in zip(rows, result["completions"]["milora_pictures"], strict=True):
        assert said["prompt"] == ASKED and said["continuations"] == [" blue", " red as it is"]
        file = picture_rows.parent / row["image"]
        wanted = [by_hand(model, processor, file, ASKED, f" {choice}") for choice in row["mc_choices"]]
        assert said["loglikelihoods"] == pytest.approx(wanted, abs=1e-3)
        per_character = [w / len(choice) for w, choice in zip(wanted, row["mc_choices"], strict=True)]
        right.append(wanted.index(max(wanted)) == row["mc_answer"])
        right_norm.append(per_character.index(max(per_character)) == row["mc_answer"])
    scores = {row["metric"]: row["value"] for row in result["scores"]}
    assert scores == {"acc": sum(right) / 8, "acc_norm": sum(right_norm) / 8}
    assert {row["version"] for row in result["scores"]} == {"1.0"}
    assert result["truncated"] == {"milora_pictures": 0}


def test_the_picture_is_seen_but_not_blind(model, processor, picture_rows):
    tasks = ["milora_pictures", "milora_pictures_blind"]
    said = evaluate(model, processor, tasks, data_dir=picture_rows)["completions"]
    seen, blind = ([tuple(row["loglikelihoods"]) for row in said[task]] for task in tasks)
    assert len(set(seen)) == 8
    assert all(row == pytest.approx(blind[0], abs=1e-4) for row in blind)
    assert abs(seen[0][0] - blind[0][0]) > 1e-2


def test_captions_in_nats_and_in_words(model, processor, picture_rows):
    tasks = ["milora_captions", "milora_captions_blind", "milora_captions_written"]
    result = evaluate(model, processor, tasks, data_dir=picture_rows, limit=3, max_gen_toks=6)
    asked = f"{SYSTEM} USER: <image>\nWhat colour is it? ASSISTANT:"
    captions = [" It is red", " It is blue.", " It is red.."]
    nats = [
        -by_hand(model, processor, picture_rows.parent / f"images/{i}.png", asked, caption)
        for i, caption in enumerate(captions)
    ]
    values = {(row["task"], row["metric"]): row["value"] for row in result["scores"]}
    assert values["milora_captions", "nll"] == pytest.approx(sum(nats) / 3, abs=1e-3)
    each = [n / len(caption) for n, caption in zip(nats, captions, strict=True)]
    assert values["milora_captions", "nll_per_byte"] == pytest.approx(sum(each) / 3, abs=1e-3)
    assert values["milora_captions_blind", "nll"] != values["milora_captions", "nll"]
    pictures = Pictures(processor)
    for i, said in enumerate(result["completions"]["milora_captions_written"]):
        assert said["prompt"] == asked and said["target"] == captions[i]
        ids = processor.tokenizer(asked)["input_ids"]
        wide, _ = pictures.expand(ids, ids)
        pixels = pictures.pixels([open_picture(picture_rows.parent / f"images/{i}.png")])
        for _ in range(6):
            with torch.no_grad():
                wide.append(int(model(input_ids=torch.tensor([wide]), pixel_values=pixels).logits[0, -1].argmax()))
            if wide[-1] == processor.tokenizer.eos_token_id:
                break
        written = processor.tokenizer.decode(wide[len(ids) + 15 :], skip_special_tokens=True)
        assert said["completion"] == written


@pytest.mark.parametrize(
    ("written", "f1", "exact"),
    [
        ("It is red", 1.0, 1.0), ("it is RED.", 1.0, 1.0), ("red", 2 / 4, 0.0), ("red red", 2 / 5, 0.0),
        ("blue", 0.0, 0.0), ("", 0.0, 0.0), ("is it red", 1.0, 0.0),
    ],
)  # fmt: skip
def test_words_shared_with_a_caption(written, f1, exact):
    assert shared_words({"caption": " It is red"}, [written]) == {"word_f1": pytest.approx(f1), "exact_match": exact}


@pytest.mark.slow
def test_base_and_tuned_are_compared_row_by_row(tiny_llava, processor, picture_rows, tmp_path):
    from peft import LoraConfig, get_peft_model

    tuned = get_peft_model(
        load_model(tiny_llava), LoraConfig(target_modules=r".*\.language_model\..*_proj", init_lora_weights=False)
    )
    result = evaluate_base_and_tuned(
        tuned, processor, ["milora_pictures", "milora_captions"], data_dir=picture_rows, run_folder=tmp_path
    )
    assert {row["task"] for row in result["comparison"]} == {"milora_pictures", "milora_captions"}
    nll = next(row for row in result["comparison"] if row["metric"] == "nll")
    assert nll["difference"] != 0 and nll["difference_stderr"] > 0
    assert (tmp_path / "eval" / "milora_captions.tuned.jsonl").is_file()


def test_an_image_text_model_answers_in_words_alone(model, processor, tmp_path):
    (tmp_path / "questions.jsonl").write_text(json.dumps({"question": "q", "choices": ["a", "b"], "answer": 0}))
    assert evaluate(model, processor, "milora_questions", data_dir=tmp_path)["scores"][0]["n"] == 1


def test_a_model_without_pictures_is_refused(tiny_llama, model, tiny_llava, picture_rows):
    for blind_model, folder in ((load_model(tiny_llama), tiny_llama), (model, tiny_llava)):
        with pytest.raises(MiloraError, match="milora_pictures shows pictures, the model takes none"):
            evaluate(blind_model, load_tokenizer(folder), "milora_pictures", data_dir=picture_rows)


def test_a_prompt_that_does_not_fit_is_refused(model, processor, picture_rows, tmp_path):
    row = json.loads(picture_rows.read_text().splitlines()[0])
    row |= {"image": str(picture_rows.parent / row["image"]), "mc_question": "long " * 90}
    (tmp_path / "pictures.jsonl").write_text(json.dumps(row))
    with pytest.raises(MiloraError, match=r"is \d+ tokens long, the model's context 512"):
        evaluate(model, processor, "milora_pictures", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"mc_answer": 2}, "mc_answer 2, allowed 0 to 1"),
        ({"mc_answer": True}, "mc_answer True, allowed 0 to 1"),
        ({"mc_choices": ["one"]}, "mc_choices must be at least two texts"),
        ({"image": "images/none.png"}, "image 'images/none.png': no such file"),
        ({"mc_question": None}, "row 2 has no field 'mc_question'"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "got 0 <image>"),
    ],
)
def test_a_wrong_row_is_named(picture_rows, tmp_path, change, problem):
    rows = [json.loads(line) for line in picture_rows.read_text().splitlines()[:2]]
    rows[0]["image"] = str(picture_rows.parent / rows[0]["image"])
    rows[1] = rows[1] | {"image": str(picture_rows.parent / rows[1]["image"])} | change
    (tmp_path / "pictures.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(MiloraError) as error:
        task_rows(data_dir=str(tmp_path))
    assert problem in str(error.value) and "row 2" in str(error.value)


def test_no_data_and_the_real_figures(shared_data, monkeypatch):
    monkeypatch.delenv("MILORA_TASK_DATA", raising=False)
    with pytest.raises(MiloraError, match="milora_pictures: no data: name a file or folder as data_dir"):
        task_rows()
    rows = task_rows(data_dir=str(shared_data / "visual"))["test"]
    assert len(rows) == 183
    assert rows[0]["question"] == "Which caption belongs to this engraving?" and rows[0]["caption"].startswith(
        " Section"
    )
    assert all(len(choices) == 4 for choices in rows["choices"])


def test_easy_vqa_becomes_rows_of_both(example, tmp_path, monkeypatch, picture_rows):
    fake = ModuleType("easy_vqa")
    files = {i: str(picture_rows.parent / "images" / f"{i}.png") for i in range(3)}
    asked = [["what color?", "red", 0], ["is it?", "no", 0], ["what shape?", "circle", 1], ["is it red?", "yes", 2]]
    for split in ("train", "test"):
        setattr(fake, f"get_{split}_questions", lambda: [list(column) for column in zip(*asked, strict=True)])
        setattr(fake, f"get_{split}_image_paths", lambda: files)
    monkeypatch.setitem(sys.modules, "easy_vqa", fake)
    monkeypatch.setattr(sys, "argv", ["easy_vqa_rows.py", str(tmp_path), "--train", "3", "--test", "4"])
    example("easy_vqa_rows").main()
    examples = load_examples(tmp_path / "train.jsonl")
    assert sorted(len(row["prompts"]) for row in examples) == [1, 1, 2]
    assert {text for row in examples for text in row["completions"]} == {" red", " no", " circle", " yes"}
    rows = task_rows(data_dir=str(tmp_path))["test"]
    answers = {row["question"]: row["choices"][row["answer"]] for row in rows}
    assert answers == {question: answer for question, answer, _ in asked}
    assert sorted(len(row["choices"]) for row in rows) == [2, 2, 3, 8]
