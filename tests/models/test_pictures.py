"""How a model of LLaVA-1.5's kind takes pictures, and the base that the example composes."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel, LlamaForCausalLM

from milora.errors import MiloraError
from milora.models.load import empty_model, load_model, load_processor
from milora.models.pictures import Pictures, takes_pictures


@pytest.fixture
def pictures(tiny_llava):
    return Pictures(load_processor(tiny_llava))


def test_which_models_take_pictures(tiny_llama, tiny_llava):
    assert takes_pictures(AutoConfig.from_pretrained(tiny_llava))
    assert not takes_pictures(AutoConfig.from_pretrained(tiny_llama))
    assert load_processor(tiny_llama) is None
    assert type(load_model(tiny_llama)) is LlamaForCausalLM
    for model in (load_model(tiny_llava), empty_model(tiny_llava)):
        assert type(model).__name__ == "LlavaForConditionalGeneration"


@pytest.mark.parametrize("kind", ["gemma3", "llama4", "qwen3_5"])
def test_what_was_loaded_as_a_language_model_still_is(kind):
    config = AutoConfig.for_model(kind)
    assert config.vision_config is not None and not takes_pictures(config)
    assert takes_pictures({"model_type": "llava", "vision_config": {}})
    assert not takes_pictures({})


def test_a_picture_is_as_many_tokens_as_patches(pictures, tiny_llava):
    assert pictures.count == (32 // 8) ** 2
    assert pictures.token_id == AutoConfig.from_pretrained(tiny_llava).image_token_id
    ids, labels = pictures.expand([5, pictures.token_id, 7], [-100, -100, 7])
    assert ids == [5] + [pictures.token_id] * 16 + [7]
    assert labels == [-100] * 17 + [7]
    assert pictures.length([5, pictures.token_id, 7]) == len(ids)


@pytest.mark.parametrize(("size", "inside"), [((40, 10), (slice(15, 25), slice(0, 40))), ((10, 40), None)])
def test_a_picture_is_padded_to_a_square_of_the_mean_colour(pictures, size, inside):
    import numpy as np
    from PIL import Image

    square = np.asarray(pictures.square(Image.new("RGB", size, (255, 0, 0))))
    assert square.shape == (40, 40, 3)
    rows, columns = inside or (slice(0, 40), slice(15, 25))
    assert (square[rows, columns] == (255, 0, 0)).all()
    assert (square == (255, 0, 0)).all(-1).sum() == 400
    assert tuple(square[0, 0]) == (122, 116, 104)
    pixels = pictures.pixels([Image.new("L", size, 3), Image.new("RGB", (7, 7))])
    assert pixels.shape == (2, 3, 32, 32) and pixels.dtype == torch.float32


def test_a_processor_without_one_number_of_tokens_is_refused(tiny_llava):
    processor = load_processor(tiny_llava)
    processor.image_token = None
    with pytest.raises(MiloraError, match="has no image token"):
        Pictures(processor)
    processor.image_token = "<image>"
    processor.image_processor.do_resize = processor.image_processor.do_center_crop = False
    with pytest.raises(MiloraError, match=r"gives pictures .* tokens by their size, allowed one number"):
        Pictures(processor)


def test_a_base_is_composed_of_the_parts_that_are_given(tiny_llama, tmp_path, example):
    tower = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
        )
    )
    tower.save_pretrained(tmp_path / "tower")
    shapes = {"0.weight": (64, 32), "0.bias": (64,), "2.weight": (64, 64), "2.bias": (64,)}
    projector = {f"model.mm_projector.{name}": torch.randn(shape) for name, shape in shapes.items()}
    torch.save(projector, tmp_path / "mm_projector.bin")
    folder = example("compose_llava").compose(
        tiny_llama, tmp_path / "whole", vision=tmp_path / "tower", projector=tmp_path / "mm_projector.bin"
    )
    model = load_model(folder).model
    language = AutoModelForCausalLM.from_pretrained(tiny_llama).model
    for part, whole in ((tower, model.vision_tower), (language, model.language_model)):
        held = whole.state_dict()
        assert all(
            torch.equal(tensor, held[name][: len(tensor)] if tensor.ndim else held[name])
            for name, tensor in part.state_dict().items()
        )
    assert torch.equal(model.multi_modal_projector.linear_2.weight, projector["model.mm_projector.2.weight"])
    assert torch.equal(model.multi_modal_projector.linear_1.bias, projector["model.mm_projector.0.bias"])
    assert Pictures(load_processor(folder)).count == 4
