"""Pictures for image-text models of LLaVA-1.5's kind: a picture is one placeholder in the text, and a fixed number
of vision features in its place.

A picture is padded to a square with the processor's mean colour before it is resized (LLaVA's `image_aspect_ratio pad`;
Liu et al., arXiv 2310.03744), whatever the processor would do with its longer side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from milora.errors import MiloraError

if TYPE_CHECKING:
    from PIL.Image import Image

PLACEHOLDER = "<image>"  # what stands for a picture in a data set, whatever a tokenizer calls it
VISION_TOWER = "vision_tower"
_TOWER = "vision_config"


def takes_pictures(config: Any) -> bool:
    """Whether a model is loaded as an image-text model: it has a vision tower, and is no causal language model.

    Args:
        config: a configuration, or what its file holds. A kind that transformers also builds as a language model is
            built so.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    known = config if isinstance(config, Mapping) else {n: getattr(config, n, None) for n in ("model_type", _TOWER)}
    kind = known.get("model_type")
    pictures, text = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return known.get(_TOWER) is not None and kind in pictures and kind not in text


def freeze_vision_tower(model: nn.Module) -> None:
    """Keep the vision tower out of training, as LLaVA does when the whole language model trains."""
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] == VISION_TOWER:
            module.requires_grad_(False)


class Pictures:
    """How a model takes pictures.

    Args:
        processor: transformers' processor of the model.

    Attributes:
        processor, tokenizer: the same, and its tokenizer.
        token, token_id: the placeholder, as this tokenizer has it.
        count: the number of vision features, and so of tokens, of every picture.

    Raises:
        MiloraError: the processor has no image placeholder, or gives pictures differing numbers of tokens.
    """

    def __init__(self, processor: Any):
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.token: str = getattr(processor, "image_token", None) or ""
        if not self.token:
            raise MiloraError(
                f"processor: {type(processor).__name__} has no image token, allowed those of LLaVA's kind"
            )
        self.token_id = int(self.tokenizer.convert_tokens_to_ids(self.token))
        counts = {self._tokens(width) for width in (32, 700)}
        if len(counts) > 1:
            raise MiloraError(
                f"processor: {type(processor).__name__} gives pictures {min(counts)} to {max(counts)} tokens by their"
                " size, allowed one number for all (LLaVA-1.5's kind)"
            )
        self.count = counts.pop()

    def _tokens(self, width: int) -> int:
        from PIL import Image

        ids = self.processor(text=self.token, images=[Image.new("RGB", (width, width))])["input_ids"][0]
        return list(ids).count(self.token_id)

    def in_text(self, text: str) -> str:
        """The text with the tokenizer's own placeholder in place of the data set's."""
        return text.replace(PLACEHOLDER, self.token)

    def length(self, ids: Sequence[int]) -> int:
        """The number of tokens that the model sees."""
        return len(ids) + (self.count - 1) * ids.count(self.token_id)

    def expand(self, ids: Sequence[int], labels: Sequence[int]) -> tuple[list[int], list[int]]:
        """Ids and labels with a placeholder for each vision feature in the place of one for each picture."""
        wide = [[i] * (self.count if i == self.token_id else 1) for i in ids]
        kept = [[label] * len(many) for many, label in zip(wide, labels, strict=True)]
        return [i for many in wide for i in many], [label for many in kept for label in many]

    def square(self, picture: Image) -> Image:
        """The picture in the middle of a square of the mean colour."""
        from PIL import Image

        picture = picture.convert("RGB")
        width, height = picture.size
        if width == height:
            return picture
        side = max(width, height)
        mean = getattr(self.processor.image_processor, "image_mean", None) or (0.0, 0.0, 0.0)
        square = Image.new("RGB", (side, side), tuple(int(part * 255) for part in mean))
        square.paste(picture, ((side - width) // 2, (side - height) // 2))
        return square

    def pixels(self, pictures: Sequence[Image]) -> Tensor:  # (pictures, channels, height, width)
        """What the vision tower is given."""
        squares = [self.square(picture) for picture in pictures]
        return self.processor.image_processor(squares, return_tensors="pt")["pixel_values"].to(torch.float32)
