"""The verbs on a random two-layer model, from the command line to the files."""

import json
from pathlib import Path

import pytest
import yaml

from cli.calls import call, refused
from milora.cli.app import main
from milora.recipes import Recipe, recipes


def test_every_key_is_a_flag(capsys: pytest.CaptureFixture[str]):
    listed = {entry["flag"] for entry in call(capsys, "train", "--help")}
    assert listed == {f"--{name}" for name in Recipe.model_fields}
    assert all(entry["description"] for entry in call(capsys, "train", "-h"))


def test_flags_go_over_the_file_and_dry_run_prints_the_whole_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "r.yaml"
    file.write_text("model_name_or_path: m\ndataset: d\noutput_dir: o\nlora_r: 4\nseed: 1\n")
    flags = ["--lora-r", "8", "--learning_rate", "3e-4", "--target-modules", "q_proj,v_proj", "--packing",
             "--max_length=64", "--warmup_steps", "0.1", "--rank_pattern", "{q_proj: 2}"]  # fmt: skip
    assert main(["train", str(file), "--dry-run", *flags]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed.keys() == Recipe.model_fields.keys()
    assert (printed["lora_r"], printed["seed"], printed["packing"]) == (8, 1, True)
    assert printed["target_modules"] == ["q_proj", "v_proj"]
    assert printed["learning_rate"] == 3e-4 and printed["warmup_steps"] == 0.1
    assert printed["rank_pattern"] == {"q_proj": 2}
    assert not Path("o").exists()


def test_all_problems_of_a_recipe_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "r.yaml"
    file.write_text("model_name_or_path: m\ndataset: d\noutput_dir: o\nlora_rnk: 4\nseed: one\n")
    said = refused(capsys, "train", file, "--dry-run")
    assert "lora_rnk" in said and "lora_r" in said and "seed" in said
    assert "lora_rnk" in refused(capsys, "recipes", "validate", file)


def test_shipped_recipes_are_listed_printed_and_valid(capsys: pytest.CaptureFixture[str]):
    names = [entry["name"] for entry in call(capsys, "recipes", "ls")]
    assert names == list(recipes()) and len(names) >= 3
    assert call(capsys, "recipes", "validate", *names) == {"valid": names}
    for name in names:
        assert main(["recipes", "cat", name]) == 0
        assert capsys.readouterr().out.strip() == recipes()[name].read_text(encoding="utf-8").strip()


def test_methods_with_and_without_a_model(tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    listed = call(capsys, "methods")
    names = {entry["method"] for entry in listed}
    assert names >= {"milora", "pissa", "random_components", "mica", "lora_xs", "svf", "svft", "lora", "dora", "full"}
    assert all(entry["equation"] for entry in listed)

    counted = call(capsys, "methods", "--model_name_or_path", tiny_llama, "--lora_r", 4)
    trainable = {entry["method"]: entry["trainable"] for entry in counted}
    shapes = 2 * [(64, 64), (32, 64), (32, 64), (64, 64), (112, 64), (112, 64), (64, 112)]  # (out, in), two layers
    assert trainable["milora"] == trainable["lora"] == sum(4 * (out + in_) for out, in_ in shapes)
    assert trainable["mica"] == sum(4 * in_ for _, in_ in shapes)
    assert trainable["lora_xs"] == 14 * 4 * 4
    assert trainable["svf"] == trainable["svft"] == sum(min(shape) for shape in shapes)
    assert trainable["dora"] == trainable["lora"] + sum(out for out, _ in shapes)
    predicted = {entry["method"]: entry["predicted"] for entry in counted}
    assert predicted["lora"]["all"] == 1 and predicted["adalora"] is predicted["vera"] is None
    # mica: s sqrt(in r) with s = 1, lora: s sqrt(out r / 3) with s = 2
    assert predicted["mica"]["by_type"]["down_proj"] == pytest.approx((3 * 112 / (4 * 64)) ** 0.5)
    assert all(p is None or len(p["by_type"]) == 7 for p in predicted.values())
    without = call(capsys, "methods", "--model_name_or_path", tiny_llama, "--lora_r", 4, "--no-predict")
    assert [e["predicted"] for e in without] == [None] * len(names)
    wide = call(capsys, "methods", "--model_name_or_path", tiny_llama, "--lora_r", 40)  # over the 32 rows of k and v
    ranked = ["lora_xs", "mica", "milora", "pissa", "random_components"]
    assert [e["method"] for e in wide if e["trainable"] is None] == ranked
    assert [e["method"] for e in wide if e["share"] is None] == ranked
    assert main(["methods", "--model_name_or_path", str(tiny_llama), "--lora_r", "40"]) == 0
    printed = capsys.readouterr().out
    assert "predicted" in printed and "down_proj" in printed
    milora = next(line for line in printed.splitlines() if line.startswith("milora"))
    assert milora.split()[1:3] == ["-", "-"]
    for flags in ([], ["--predict"]):  # a configuration alone is enough to count, not to predict
        alone = tmp_path / "alone"
        alone.mkdir(exist_ok=True)
        (alone / "config.json").write_bytes((tiny_llama / "config.json").read_bytes())
        if flags:
            assert "no weights" in refused(capsys, "methods", "--model_name_or_path", alone, *flags)
        else:
            assert {e["predicted"] for e in call(capsys, "methods", "--model_name_or_path", alone)} == {None}
    absent = refused(capsys, "methods", "--model_name_or_path", "no/such/folder/here")
    assert "model_name_or_path: got 'no/such/folder/here'" in absent


@pytest.mark.slow
def test_from_training_to_a_merged_model(
    tiny_llama: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run, text = tmp_path / "run", tmp_path / "text.txt"
    text.write_text("The sea is wide and the sky is high. " * 20)
    flags = ["--model-name-or-path", tiny_llama, "--dataset", rows, "--output_dir", run, "--lora-r", 4,
             "--max_steps", 2, "--logging_steps", 1, "--save_strategy", "no", "--eval_strategy", "no"]  # fmt: skip
    trained = call(capsys, "train", *flags)
    assert trained["run"] == str(run)
    assert (run / "adapter_model.safetensors").is_file() and (run / "adapter" / "adapter_config.json").is_file()
    assert "--overwrite" in refused(capsys, "train", *flags)
    assert "lora_r was 4, got 5" in refused(capsys, "train", *flags, "--lora_r", 5, "--resume")

    measured = call(capsys, "forgetting", run, "--text", text, "--block", 32)
    assert measured["cross_entropy"] == pytest.approx(measured["floor"] + measured["kl"], abs=1e-5)
    assert json.loads((run / "forgetting.json").read_text())["kl"] == measured["kl"]
    assert "| cross-entropy to the base |" in (run / "README.md").read_text(encoding="utf-8")
    assert "--overwrite" in refused(capsys, "forgetting", run, "--text", text)

    base = ["--model_name_or_path", tiny_llama]
    assert call(capsys, "export", run, *base, "--output", tmp_path / "lora")["to"] == "lora"
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert "exists" in refused(capsys, "export", run, *base, "--output", tmp_path / "lora")
    call(capsys, "merge", run, *base, "--output", tmp_path / "merged")
    assert (tmp_path / "merged" / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_full_fine_tune_is_compared_with_its_base(
    tiny_llama: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run, text, questions = tmp_path / "run", tmp_path / "text.txt", tmp_path / "questions.jsonl"
    text.write_text("The sea is wide and the sky is high. " * 20)
    asked = [{"question": f"What is {i}?", "choices": ["a", "b", "c"], "answer": i % 3} for i in range(6)]
    questions.write_text("\n".join(json.dumps(row) for row in asked))
    flags = ["--model-name-or-path", tiny_llama, "--dataset", rows, "--output_dir", run, "--method", "full",
             "--max_steps", 4, "--learning_rate", 1e-2, "--save_strategy", "no", "--eval_strategy", "no"]  # fmt: skip
    call(capsys, "train", *flags)
    assert (run / "model" / "model.safetensors").is_file()
    assert call(capsys, "forgetting", run, "--text", text, "--block", 32)["kl"] > 1e-3
    assert "method full" in refused(capsys, "export", run, "--model_name_or_path", tiny_llama, "--output", run / "x")

    told = ["--tasks", "milora_questions", "--data_dir", questions]
    compared = call(capsys, "eval", run, *told)["comparison"]
    assert {row["n"] for row in compared} == {6}
    assert (run / "eval" / "milora_questions.base.jsonl").is_file()
    assert "milora_questions" in (run / "README.md").read_text(encoding="utf-8")
    assert "holds results of milora_questions" in refused(capsys, "eval", run, *told)
    assert "--tasks: got none" in refused(capsys, "eval", run)
    alone = call(capsys, "eval", run / "model", *told)["scores"]
    assert [row["value"] for row in alone] == [row["tuned"] for row in compared]
