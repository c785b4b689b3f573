"""The harness's model around an image-text model that is already built: requests may show a picture.

The harness's own class for such models generates only; here a text's log-likelihood after a picture is taken as well,
and prompts are tokenised as they are in training.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from milora.data.pictures import open_picture
from milora.errors import MiloraError
from milora.evaluation.language_model import BuiltModel, new_tokens
from milora.models.pictures import PLACEHOLDER, Pictures


class PictureModel(BuiltModel):
    """BuiltModel for requests with and without pictures.

    Args:
        model: an image-text model, or a PeftModel around one.
        processor: its processor.
        batch_size: requests a forward pass; pictures are described one by one.
        progress: called after each request.
    """

    MULTIMODAL = True

    def __init__(self, model: Any, processor: Any, **settings: Any):
        super().__init__(model, processor.tokenizer, **settings)
        self.pictures = Pictures(processor)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        if not _show_pictures(requests):
            return super().loglikelihood(requests, disable_tqdm)
        rows = [(*self._pair(*request.args[:2]), _shown(request), request) for request in requests]
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]))
        answers: dict[int, tuple[float, bool]] = {}
        self._report("loglikelihood", len(rows))
        for at in range(0, len(order), int(self.batch_size)):
            chosen = order[at : at + int(self.batch_size)]
            batch = [rows[i][:3] for i in chosen]
            for i, answer in zip(chosen, self._likelihoods(batch), strict=True):
                answers[i] = answer
                self.cache_hook.add_partial("loglikelihood", rows[i][3].args[:2], answer)
        return [answers[i] for i in range(len(rows))]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        if not _show_pictures(requests):
            return super().generate_until(requests, disable_tqdm)
        texts = []
        self._report("generate_until", len(requests))
        for request in requests:
            settings = dict(request.args[1])
            room = new_tokens(settings, self.max_gen_toks)
            ids = self._ids(request.args[0])
            ids, _ = self.pictures.expand(ids, ids)
            self._check_room(len(ids) + room)
            texts.append(self._written(ids, _shown(request), settings, room))
            self.cache_hook.add_partial("generate_until", request.args[:2], texts[-1])
        return texts

    def _ids(self, text: str) -> list[int]:
        if text.count(PLACEHOLDER) != 1:
            raise MiloraError(f"tasks: got a prompt with {text.count(PLACEHOLDER)} {PLACEHOLDER}, allowed 1")
        return self.tokenizer(self.pictures.in_text(text), verbose=False)["input_ids"]

    def _pair(self, prompt: str, continuation: str) -> tuple[list[int], int]:
        """The ids of both, a picture with all its tokens, and how many of them are the prompt's."""
        before, ids = self._ids(prompt), self._ids(prompt + continuation)
        shared = [a == b for a, b in zip(before, ids, strict=False)]
        start = shared.index(False) if False in shared else len(shared)
        wide, _ = self.pictures.expand(ids, ids)
        self._check_room(len(wide))
        return wide, start + len(wide) - len(ids)

    def _check_room(self, length: int) -> None:
        if length > self.max_length:
            raise MiloraError(
                f"tasks: a prompt with its picture and answer is {length} tokens long, the model's context"
                f" {self.max_length}"
            )

    @torch.no_grad()
    def _likelihoods(self, rows: list[tuple[list[int], int, Any]]) -> list[tuple[float, bool]]:
        longest = max(len(ids) for ids, _, _ in rows)
        padded = torch.tensor([ids + [ids[-1]] * (longest - len(ids)) for ids, _, _ in rows])  # (rows, longest)
        mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _, _ in rows])
        logits = self._model_call_with(padded, mask, [picture for _, _, picture in rows])  # (rows, longest, vocabulary)
        answers = []
        for row, (ids, start, _) in enumerate(rows):
            predicted = F.log_softmax(logits[row, start - 1 : len(ids) - 1].float(), dim=-1)  # (answer, vocabulary)
            target = padded[row, start : len(ids)].to(predicted.device)  # (answer,)
            chosen = predicted.gather(-1, target[:, None])
            answers.append((float(chosen.sum()), bool((predicted.argmax(-1) == target).all())))
        return answers

    def _model_call_with(self, ids: Tensor, mask: Tensor, pictures: list[Any]) -> Tensor:
        pixels = self._pixels(pictures)
        return self.model(
            input_ids=ids.to(self.device), attention_mask=mask.to(self.device), pixel_values=pixels, use_cache=False
        ).logits

    @torch.no_grad()
    def _written(self, ids: list[int], picture: Any, settings: dict[str, Any], room: int) -> str:
        until = settings.pop("until", None) or []
        stops = [until] if isinstance(until, str) else list(until)
        for name in ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"):
            settings.pop(name, None)
        sampled = bool(settings.setdefault("do_sample", bool(settings.get("temperature"))))
        if not sampled:
            settings.pop("temperature", None)
        given = torch.tensor([ids], device=self.device)
        out = self.model.generate(
            input_ids=given, attention_mask=torch.ones_like(given), pixel_values=self._pixels([picture]),
            max_new_tokens=room, pad_token_id=self.tokenizer.pad_token_id, eos_token_id=self.tokenizer.eos_token_id,
            **settings,
        )  # fmt: skip
        text = self.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)
        for stop in filter(None, stops):
            text = text.split(stop)[0]
        return text

    def _pixels(self, pictures: list[Any]) -> Tensor:  # (pictures, channels, height, width)
        opened = [open_picture(Path(p)) if isinstance(p, str) else p for p in pictures]
        return self.pictures.pixels(opened).to(self.device, self.model.dtype)


def _show_pictures(requests: Sequence[Any]) -> bool:
    return bool(requests) and len(requests[0].args) > 2


def _shown(request: Any) -> Any:
    """The one picture of a request: a file's name, or a picture.

    Raises:
        MiloraError: it shows none, several, or a sound.
    """
    shown = request.args[2].get("visual") or []
    if len(shown) != 1 or len(request.args[2]) > 1:
        raise MiloraError(f"{request.task_name}: got {len(shown)} pictures in a row, allowed 1 and nothing beside it")
    return shown[0]
