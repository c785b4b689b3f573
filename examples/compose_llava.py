"""The base of a visual run: a language model, a vision tower and a projector put together as transformers' LLaVA model.

    python examples/compose_llava.py tiny-llava --language SMOLLM2
    python examples/compose_llava.py llava-1.5-7b-start --language lmsys/vicuna-7b-v1.5 \\
        --vision openai/clip-vit-large-patch14-336 --projector mm_projector.bin --dtype float16

The first line makes a small model: a CLIP vision tower and a projector of random weights, drawn with a seed, on a
pretrained language model. A random tower passes on the colours and the layout of a picture, and knows no objects. It is
the base of the recipe `llava-1.5-visual-smollm2`. The second makes what LLaVA-1.5 begins its visual instruction tuning
with, the base of `llava-1.5-visual`; mm_projector.bin is from
liuhaotian/llava-v1.5-mlp2x-336px-pretrain-vicuna-7b-v1.5.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

IMAGE = "<image>"
# The projector's layers in LLaVA's own file, and in transformers.
LAYERS = {"model.mm_projector.0.": "linear_1.", "model.mm_projector.2.": "linear_2."}


def compose(language: str | Path, output: str | Path, *, vision: str | Path | None = None,
            projector: str | Path | None = None, dtype: str = "float32", size: int = 64, patch: int = 16,
            width: int = 192, layers: int = 3, seed: int = 0) -> Path:  # fmt: skip
    """Write a LlavaForConditionalGeneration and its processor.

    Args:
        language: the language tower: a folder, or a hub name.
        output: the folder to write.
        vision: a CLIP vision tower; None draws a random one.
        projector: the file of a pretrained projector, as LLaVA writes it; None draws a random one.
        dtype: of the weights that are written.
        size, patch: pixels of a picture's side and of a patch's, for a random tower: (size / patch)^2 tokens a picture.
        width, layers: of a random tower; LLaVA takes the features before the last layer.
        seed: of all random weights.
    """
    text: Any = AutoModelForCausalLM.from_pretrained(language, dtype=getattr(torch, dtype))
    tokenizer = _tokenizer(language)
    if len(tokenizer) > text.config.vocab_size:
        text.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tower: Any = CLIPVisionModel.from_pretrained(vision, dtype=getattr(torch, dtype)) if vision else None
    config = LlavaConfig(
        vision_config=tower.config if tower else _random_tower(size, patch, width, layers),
        text_config=text.config,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        tie_word_embeddings=text.config.tie_word_embeddings,
    )
    side, patch = config.vision_config.image_size, config.vision_config.patch_size
    config.image_seq_length = (side // patch) ** 2
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = LlavaForConditionalGeneration(config).to(getattr(torch, dtype))
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.lm_head.load_state_dict(text.lm_head.state_dict())
    model.tie_weights()
    if tower:
        model.model.vision_tower.load_state_dict(tower.state_dict())
    if projector:
        _load_projector(model.model.multi_modal_projector, projector)
    images = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    processor = LlavaProcessor(
        images, tokenizer, patch_size=patch, vision_feature_select_strategy="default", image_token=IMAGE,
        num_additional_image_tokens=1,
    )  # fmt: skip
    model.save_pretrained(output)
    processor.save_pretrained(output)
    return Path(output)


def _tokenizer(language: str | Path) -> Any:
    tokenizer: Any = AutoTokenizer.from_pretrained(language)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]}, replace_extra_special_tokens=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token  # LLaVA pads Vicuna with its unknown token
    return tokenizer


def _random_tower(size: int, patch: int, width: int, layers: int) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 32),
        image_size=size,
        patch_size=patch,
    )


def _load_projector(module: torch.nn.Module, file: str | Path) -> None:
    saved = torch.load(file, map_location="cpu", weights_only=True)
    named = {new + name.removeprefix(old): t for old, new in LAYERS.items() for name, t in saved.items() if old in name}
    module.load_state_dict(named)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--language", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--vision", help="a CLIP vision tower; random if unset")
    parser.add_argument("--projector", help="LLaVA's mm_projector.bin; random if unset")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    for name, default in (("size", 64), ("patch", 16), ("width", 192), ("layers", 3), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = vars(parser.parse_args())
    print(compose(given.pop("language"), given.pop("output"), **given))


if __name__ == "__main__":
    main()
