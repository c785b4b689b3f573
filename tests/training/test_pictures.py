"""A model of LLaVA's kind trained on pictures: the language tower adapted, the projector trained, no more."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import TrainerCallback

from milora.adapters import attach, export_lora, load_adapter, peft_config
from milora.adapters.merge import merge
from milora.data import load_examples
from milora.errors import MiloraError
from milora.models.load import load_model, load_processor
from milora.models.pictures import Pictures
from milora.recipes import load_recipe
from milora.recipes.schema import Recipe
from milora.runs.tuned import load_tuned
from milora.training import train as training
from milora.training.masking import IGNORED, tokenise
from milora.training.pictures import ByModality, PictureCollator, located
from milora.training.train import train

TOWER = load_recipe("llava-1.5-visual").target_modules


@pytest.fixture
def pictures(tiny_llava):
    return Pictures(load_processor(tiny_llava))


@pytest.fixture
def mixed(picture_rows, tmp_path):
    """The rows with pictures and four without, of two rounds each."""
    rows = [json.loads(line) for line in picture_rows.read_text().splitlines()]
    said = ["Say hi.", "hi", "And bye?", "bye"]
    rows += [
        {"id": f"text-{i}", "conversations": [{"from": ("human", "gpt")[n % 2], "value": said[n]} for n in range(4)]}
        for i in range(4)
    ]
    path = tmp_path / "mixed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def settings(tiny_llava, mixed, picture_rows, tmp_path):
    """Keys of a recipe that trains 6 steps of 2 rows in about a second."""
    return {
        "model_name_or_path": str(tiny_llava), "dataset": str(mixed), "image_folder": str(picture_rows.parent),
        "output_dir": str(tmp_path / "run"), "method": "milora", "lora_r": 4, "lora_dropout": 0.1,
        "target_modules": TOWER, "modules_to_save": ["multi_modal_projector"], "modules_to_save_learning_rate": 2e-4,
        "dtype": "float32", "device": "cpu", "max_steps": 6, "per_device_train_batch_size": 2, "learning_rate": 1e-3,
        "warmup_steps": 0, "logging_steps": 1, "save_strategy": "no", "eval_strategy": "no", "seed": 7,
    }  # fmt: skip


@pytest.fixture
def batch(pictures, mixed, picture_rows):
    """Two rows with pictures and one without, of different lengths."""
    examples = load_examples(mixed, image_folder=picture_rows.parent)
    rows, _ = tokenise(examples, pictures.tokenizer, loss_on="completion", max_length=None, pictures=pictures)
    rows = located(rows, picture_rows.parent)
    return PictureCollator(pictures)([rows[0], rows[7], rows[9]])


def logits(model, batch):
    with torch.no_grad():
        shown = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
        return model(**shown).logits[batch["attention_mask"].bool()]


def adapted(model, **changes):
    recipe = {"method": "milora", "lora_r": 4, "target_modules": TOWER, "modules_to_save": ["multi_modal_projector"]}
    return attach(model, peft_config(recipe | {"lora_dropout": 0.3} | changes))


def test_only_answers_and_their_ends_have_a_loss(pictures, mixed, picture_rows):
    examples = load_examples(mixed, image_folder=picture_rows.parent)
    rows, lengths = tokenise(examples, pictures.tokenizer, loss_on="completion", max_length=None, pictures=pictures)
    end = pictures.tokenizer.eos_token

    def trained(row):
        return pictures.tokenizer.decode([label for label in row["labels"] if label != IGNORED])

    assert trained(rows[1]) == f" It is blue.{end}"
    assert trained(rows[9]) == f" hi{end} bye{end}"
    whole = pictures.tokenizer.decode(rows[9]["input_ids"])
    assert whole.endswith(f"questions. USER: Say hi. ASSISTANT: hi{end}USER: And bye? ASSISTANT: bye{end}")
    assert rows[1]["input_ids"].count(pictures.token_id) == 1
    # a token a byte, but for the marks, and 16 tokens for a picture
    longest = max(len(row["input_ids"]) + 15 * (row["image"] is not None) for row in rows)
    assert lengths.longest == longest and lengths.rows == 12


def test_a_picture_is_counted_where_rows_are_cut(pictures, mixed, picture_rows):
    examples = load_examples(mixed, image_folder=picture_rows.parent).select([0])
    arguments = {"loss_on": "completion", "pictures": pictures}
    (row,), lengths = tokenise(examples, pictures.tokenizer, max_length=None, **arguments)
    for short in (0, 3):
        (cut,), said = tokenise(examples, pictures.tokenizer, max_length=lengths.longest - short, **arguments)
        assert cut["input_ids"] == row["input_ids"][: len(row["input_ids"]) - short]
        assert pictures.length(cut["input_ids"]) == said.tokens == lengths.longest - short
        assert said.overlong == bool(short)
    with pytest.raises(MiloraError, match="no token to train on within 100 tokens"):
        tokenise(examples, pictures.tokenizer, max_length=100, **arguments)
    everything, _ = tokenise(examples, pictures.tokenizer, max_length=None, loss_on="all", pictures=pictures)
    assert everything[0]["labels"] == everything[0]["input_ids"]


def test_a_batch_holds_rows_with_and_without_pictures(pictures, batch, tiny_llava):
    assert batch["pixel_values"].shape == (2, 3, 32, 32)
    assert (batch["input_ids"] == pictures.token_id).sum(1).tolist() == [16, 16, 0]
    assert (batch["labels"][batch["input_ids"] == pictures.token_id] == IGNORED).all()
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()
    model = load_model(tiny_llava, dtype="float32").eval()
    together = logits(model, batch)
    at = 0
    for row, shown in ((0, 0), (1, 1), (2, None)):
        size = int(batch["attention_mask"][row].sum())
        alone = {"input_ids": batch["input_ids"][row : row + 1, :size]}
        if shown is not None:
            alone["pixel_values"] = batch["pixel_values"][shown : shown + 1]
        with torch.no_grad():
            torch.testing.assert_close(together[at : at + size], model(**alone).logits[0], rtol=0, atol=1e-5)
        at += size


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("method", ["milora", "pissa", "mica"])
def test_the_start_is_the_base_to_the_last_bit(tiny_llava, batch, dtype, mode, method):
    base = getattr(load_model(tiny_llava, dtype=dtype), mode)()
    batch["pixel_values"] = batch["pixel_values"].to(base.dtype)
    before = logits(base, batch)
    model = getattr(adapted(base, method=method), mode)()
    assert torch.equal(logits(model, batch), before)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    assert not torch.equal(logits(model, batch), before)
    with model.disable_adapter():
        assert torch.equal(logits(model, batch), before)


def test_only_the_language_tower_and_the_projector_train(tiny_llava):
    model = adapted(load_model(tiny_llava, dtype="float32"))
    training_ones = {n.removeprefix("base_model.model.model.") for n, p in model.named_parameters() if p.requires_grad}
    projector = {n for n in training_ones if n.startswith("multi_modal_projector.modules_to_save.default.linear_")}
    factors = {n for n in training_ones if n.startswith("language_model.layers.") and ".spectral_d" in n}
    assert training_ones == projector | factors
    assert len(projector) == 4 and len(factors) == 2 * 7 * 2  # two factors of seven matrices in two layers


def test_the_projector_has_a_learning_rate_of_its_own(settings):
    run = train(Recipe(**settings | {"save_strategy": "steps", "save_steps": 3}))
    groups = torch.load(run.path / "checkpoint-3" / "optimizer.pt", weights_only=True)["param_groups"]
    # dL and dR of 14 matrices; two weights, and two biases that do not decay
    assert [(len(g["params"]), g["initial_lr"]) for g in groups] == [(28, 1e-3), (2, 2e-4), (2, 2e-4)]
    assert [g["lr"] / g["initial_lr"] for g in groups] == pytest.approx([0.5] * 3)


def test_a_rate_without_modules_is_refused(tmp_path):
    flags = {"output_dir": str(tmp_path), "modules_to_save": "null", "modules_to_save_learning_rate": 1e-4}
    with pytest.raises(MiloraError, match=r"modules_to_save_learning_rate: got 0\.0001 without modules_to_save"):
        load_recipe("llava-1.5-visual", flags)


@pytest.mark.parametrize("method", ["milora", pytest.param("lora", marks=pytest.mark.slow)])
def test_what_was_trained_is_what_is_loaded_exported_and_merged(settings, batch, tmp_path, method, monkeypatch):
    from peft import PeftModel

    held = {}
    save = training.save_result
    monkeypatch.setattr(training, "save_result", lambda model, *rest: (held.update(model=model), save(model, *rest)))
    run = train(Recipe(**settings | {"method": method, "learning_rate": 1e-2}))
    base = settings["model_name_or_path"]
    before = logits(load_model(base).eval(), batch)
    tuned = logits(held["model"].eval(), batch)
    assert float((tuned - before).abs().max()) > 0.01
    again = load_tuned(run.path)
    assert again.processor is not None
    assert torch.equal(logits(again.model.eval(), batch), tuned)
    with again.model.disable_adapter():
        assert torch.equal(logits(again.model, batch), before)
    plain = PeftModel.from_pretrained(load_model(base), run.path)
    assert type(plain.peft_config["default"]).__name__ == "LoraConfig"
    torch.testing.assert_close(logits(plain.eval(), batch), tuned, rtol=0, atol=2e-5)
    _, why = merge(run.own_adapter(), base, tmp_path / "merged")
    assert why == ""
    torch.testing.assert_close(logits(load_model(tmp_path / "merged").eval(), batch), tuned, rtol=0, atol=2e-5)
    assert Pictures(load_processor(tmp_path / "merged")).count == 16
    if method == "milora":
        export_lora(run.adapter, base, tmp_path / "lora")
        exported = load_adapter(load_model(base), tmp_path / "lora")
        torch.testing.assert_close(logits(exported.eval(), batch), tuned, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_bits(settings):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    settings |= {"max_steps": 10, "save_strategy": "steps", "save_steps": 4, "save_total_limit": None}
    recipe = Recipe(**settings | {"group_by_modality_length": True})
    run = train(recipe)
    whole = load_file(run.own_adapter() / "adapter_model.safetensors")
    # 6 steps an epoch: it goes on within the first one, and into the second
    for folder in (run.path / "checkpoint-8", run.path / "checkpoint-10", run.adapter):
        shutil.rmtree(folder)
    (run.path / "adapter_config.json").unlink()
    console = Console(record=True)
    train(recipe, resume=True, console=console)
    assert "from step 4" in console.export_text()
    again = load_file(run.own_adapter() / "adapter_model.safetensors")
    torch.set_num_threads(threads)
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)


def test_the_rows_of_a_step_have_pictures_or_have_none():
    from datasets import Dataset

    files = ["x.png" if i % 3 else None for i in range(40)]
    rows = Dataset.from_dict({"input_ids": [[0] * (i + 1) for i in range(40)], "image": files})
    sampler = ByModality(rows, batch_size=2, batches=3, seed=0)
    order = list(sampler)
    assert sorted(order) == list(range(40)) and list(sampler) == order
    steps = [order[at : at + 6] for at in range(0, 40, 6)]
    kinds = [{bool(files[i]) for i in step} for step in steps]
    whole = 26 // 6 + 14 // 6  # steps full of pictures, and full of texts
    assert all(len(kind) == 1 for kind in kinds[:whole])
    assert kinds[:whole] != sorted(kinds[:whole], key=str)
    for step in steps[:whole]:
        by_length = sorted(step, reverse=True)
        assert [step[:2], step[2:4], step[4:]] == [by_length[0::3], by_length[1::3], by_length[2::3]]
    sampler.set_epoch(1)
    assert list(sampler) != order


@pytest.mark.slow
def test_a_run_orders_its_rows_so_when_it_is_asked_to(settings, monkeypatch):
    seen = []

    class Watch(TrainerCallback):
        def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
            seen.append(type(train_dataloader.batch_sampler.sampler).__name__)

    made = training._trainer
    monkeypatch.setattr(training, "_trainer", lambda *a: (t := made(*a), t.add_callback(Watch()))[0])
    for grouped in (True, False):
        train(Recipe(**settings | {"group_by_modality_length": grouped, "max_steps": 1}), overwrite=True)
    assert seen[0] == "ByModality" and seen[1] != "ByModality"


@pytest.mark.slow
def test_full_fine_tuning_leaves_the_vision_tower_alone(settings):
    keys = {
        "method": "full",
        "lora_r": 32,
        "lora_dropout": 0.05,
        "target_modules": "all-linear",
        "modules_to_save": None,
    }
    run = train(Recipe(**settings | keys | {"modules_to_save_learning_rate": None}))
    tuned = load_tuned(run.path)
    before, after = tuned.base_model.state_dict(), tuned.model.state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    tower = {name for name in before if "vision_tower" in name}
    assert tower and same == tower
    assert load_processor(run.model) is not None


@pytest.mark.slow
def test_a_bfloat16_base_keeps_its_start_and_a_precise_projector(settings, batch, monkeypatch):
    started = {}
    made = training._attach

    def attached(*arguments):
        model = made(*arguments)
        with torch.autocast("cpu", torch.bfloat16):
            shown = batch | {"pixel_values": batch["pixel_values"].bfloat16()}
            started["tuned"] = logits(model.eval(), shown)
            with model.disable_adapter():
                started["base"] = logits(model, shown)
        return model.train()

    monkeypatch.setattr(training, "_attach", attached)
    run = train(Recipe(**settings | {"dtype": "bfloat16", "bf16": True, "max_steps": 2}))
    assert torch.equal(started["tuned"], started["base"])
    saved = load_file(run.path / "adapter_model.safetensors")
    assert saved["base_model.model.model.multi_modal_projector.linear_1.weight"].dtype == torch.float32


def test_rows_of_text_alone_train_it_too(settings, tmp_path):
    (tmp_path / "texts.jsonl").write_text(json.dumps({"prompt": "Hi", "completion": " ho"}) + "\n")
    run = train(Recipe(**settings | {"dataset": str(tmp_path / "texts.jsonl"), "max_steps": 1}))
    assert run.provenance()["data"]["dataset"]["rows"] == 1


@pytest.mark.slow
def test_pictures_for_validation_are_shown(settings, picture_rows):
    keys = {"image_folder": None, "dataset": str(picture_rows), "eval_dataset": str(picture_rows), "max_steps": 1}
    run = train(Recipe(**settings | keys | {"per_device_eval_batch_size": 3}))
    assert any("eval_loss" in line for line in run.metrics_file.read_text().splitlines())


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model_name_or_path": "tiny_llama"}, "row 1 of the rows drawn has an image, and the model takes none"),
        ({"packing": True, "max_length": 500}, "Packing is not supported for vision datasets"),
        ({"modules_to_save": ["projector"]}, "modules_to_save: 'projector' matches no module"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(settings, tiny_llama, changes, problem):
    if "model_name_or_path" in changes:
        changes = {"model_name_or_path": str(tiny_llama)}
    with pytest.raises(MiloraError, match=problem):
        train(Recipe(**settings | changes))
    assert not Path(settings["output_dir"]).exists()


@pytest.mark.slow
def test_a_picture_that_breaks_off_is_named(settings, picture_rows, tmp_path):
    shutil.copytree(picture_rows.parent, tmp_path / "copy")
    for file in sorted((tmp_path / "copy" / "images").iterdir()):
        file.write_bytes(file.read_bytes()[:-20])
    keys = {"dataset": str(tmp_path / "copy" / "pictures.jsonl"), "image_folder": None}
    with pytest.raises(MiloraError, match=r"image .*\.png: cannot be read"):
        train(Recipe(**settings | keys))
