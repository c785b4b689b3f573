"""A comparison of models that take pictures: validation rows, samples and tasks show them."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from milora.comparison.bench import Bench
from milora.comparison.engine import compare, planned
from milora.comparison.load import check_grid, load_grid
from milora.comparison.samples import write_samples
from milora.comparison.validation import row_losses
from milora.data import load_examples
from milora.errors import MiloraError
from milora.models.load import load_model, load_processor
from milora.models.pictures import Pictures
from milora.recipes import load_recipe
from milora.training.masking import tokenise
from milora.training.pictures import PictureCollator, located


@pytest.fixture(scope="module")
def pictures(tiny_llava):
    return Pictures(load_processor(tiny_llava))


@pytest.fixture(scope="module")
def model(tiny_llava):
    return load_model(tiny_llava, dtype="float32").eval()


@pytest.fixture(scope="module")
def rows(pictures, picture_rows) -> Dataset:
    examples = load_examples(picture_rows)
    encoded, _ = tokenise(examples, pictures.tokenizer, loss_on="completion", max_length=None, pictures=pictures)
    return located(encoded, picture_rows.parent)


def test_a_row_with_a_picture_has_transformers_own_loss(model, pictures, rows):
    collator = PictureCollator(pictures)
    found = row_losses(model, rows, pad_token_id=0, batch_size=3, collator=collator)
    for row, losses in zip(rows, found, strict=True):
        with torch.no_grad():
            alone = model(**collator([row]))
        assert losses["loss"] / losses["tokens"] == pytest.approx(float(alone.loss), rel=1e-5)
    # Red and blue: with the pictures' places changed the same answers have other losses.
    swapped = rows.to_list()
    for a, b in zip(swapped[::2], swapped[1::2], strict=True):
        a["image"], b["image"] = b["image"], a["image"]
    other = row_losses(model, Dataset.from_list(swapped), pad_token_id=0, batch_size=3, collator=collator)
    assert all(abs(a["loss"] - b["loss"]) > 1e-7 for a, b in zip(found, other, strict=True))


def test_samples_show_the_picture(model, tiny_llava, pictures, rows, tmp_path):
    tuned = load_model(tiny_llava, dtype="float32").eval()
    with torch.no_grad():
        tuned.model.multi_modal_projector.linear_2.weight.mul_(-20)
    write_samples(tmp_path, tuned, model, pictures.tokenizer, rows, 3, 6, pictures)
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [line["picture"] for line in lines] == ["0.png", "1.png", "2.png"]
    assert lines[1]["target"].strip() == "It is blue."
    assert any(line["base"] != line["tuned"] for line in lines)  # the projector alone differs, so pictures are seen


@pytest.fixture
def visual(tiny_llava, picture_rows, tmp_path):
    """The shipped small grid on a tiny model and eight rows."""
    given = {
        "base.model_name_or_path": str(tiny_llava), "base.dataset": str(picture_rows), "base.lora_r": 4,
        "base.max_steps": 2, "base.per_device_train_batch_size": 2, "base.bf16": False, "base.val_set_size": 2,
        "base.dtype": "float32", "base.device": "cpu", "measure.tasks": ["milora_pictures", "milora_pictures_blind"],
        "measure.data_dir": str(picture_rows), "measure.limit": 4, "measure.sample_tokens": 4,
        "output_dir": str(tmp_path / "out"),
    }  # fmt: skip
    text = tmp_path / "text.txt"
    text.write_text("some words to forget, and some more of them. " * 20)
    given |= {"measure.forgetting": {"text": str(text), "block": 64, "max_tokens": 128}}
    return load_grid("milora-visual-smollm2", given)


def test_the_visual_grids_are_the_recipes_experiment():
    for name, recipe in (("milora-visual", "llava-1.5-visual"), ("milora-visual-smollm2", "llava-1.5-visual-smollm2")):
        grid = load_grid(name)
        assert grid.recipe == recipe and [arm.label for arm in grid.arms][-3:] == ["lora", "pissa", "milora"]
        assert load_recipe(recipe).modules_to_save == ["multi_modal_projector"]
    for job in planned(load_grid("milora-visual"))["runs"]:  # LLaVA-1.5's batch, in the one process of a run
        assert job.recipe.per_device_train_batch_size * job.recipe.gradient_accumulation_steps == 128


@pytest.mark.slow
def test_a_comparison_of_models_that_take_pictures(visual, model, pictures):
    found = compare(visual)
    shown = Bench(visual, {}).rows(planned(visual)["runs"][0].recipe)
    losses = row_losses(model, shown, pad_token_id=0, collator=PictureCollator(pictures))
    base = json.loads((Path(visual.output_dir) / "base" / "measured.json").read_text())["by_seed"]["42"]["rows"]
    assert [row["loss"] for row in base] == pytest.approx([row["loss"] for row in losses], rel=1e-6)
    assert [(arm["label"], arm["failed"]) for arm in found["arms"]] == [("lora", []), ("pissa", []), ("milora", [])]
    for arm in found["arms"]:
        assert arm["metrics"]["kl"]["mean"] > 0 and arm["metrics"]["validation_loss"]["mean"] > 0
        assert {f"{task}:acc" for task in ("milora_pictures", "milora_pictures_blind")} <= set(arm["metrics"])
    run = Path(visual.output_dir) / "runs" / "milora-r4-lr0.0002-s42"
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert samples and all(line["picture"].endswith(".png") for line in samples)


def test_validation_rows_that_show_pictures_need_a_model_that_takes_them(visual, tiny_llama):
    grid = visual.model_dump(mode="json")
    grid["base"] |= {"model_name_or_path": str(tiny_llama), "target_modules": ["q_proj"]}
    grid["base"] |= {"modules_to_save": [], "modules_to_save_learning_rate": None, "group_by_modality_length": False}
    grid["arms"] = grid["arms"][:1]
    grid["measure"]["tasks"] = []
    with pytest.raises(MiloraError, match="has an image, and the model takes none"):
        compare(check_grid(grid))
