"""The harness's Hugging Face model around one that is already built. Importing this imports the harness."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lm_eval.models.huggingface import HFLM

from milora.evaluation.spans import TextScore, span_scores

Progress = Callable[[str, int, int], None]  # (kind of request, done, all)


class BuiltModel(HFLM):
    """HFLM without bars on stderr, which reports its progress and counts what does not fit.

    Log-probabilities are taken in float32, also for a bf16 model: in bf16 the choices of a question tie.

    Args:
        model: a PreTrainedModel or a PeftModel.
        tokenizer: its tokenizer.
        batch_size: requests a forward pass.
        max_length: the context in tokens; None for the model's own.
        progress: called after each request.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        batch_size: int,
        max_length: int | None = None,
        progress: Progress | None = None,
    ):
        with _as_it_is(model):
            super().__init__(
                pretrained=model,
                tokenizer=tokenizer,
                batch_size=batch_size,
                max_length=max_length,
                softmax_dtype="float32",
            )
        self._progress = progress
        # Rows whose prompt loses its beginning, because prompt and answer exceed the model's context.
        self.truncated: dict[str, set[int]] = defaultdict(set)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        for request in requests:
            self._note_length(request, "".join(request.args[:2]), room=0)
        self._report("loglikelihood", len(requests))
        counted = [i for i, request in enumerate(requests) if request.doc.get("count_tokens")]
        others = [request for request in requests if not request.doc.get("count_tokens")]
        answers = iter(super().loglikelihood(others, disable_tqdm=True) if others else [])
        pairs = [requests[i].args[:2] for i in counted]
        scores = dict(zip(counted, span_scores(self, pairs, self._finished), strict=True))
        return [scores[i] if i in scores else next(answers) for i in range(len(requests))]

    def _finished(self) -> None:
        self.cache_hook.add_partial("loglikelihood", None, None)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
        self._report("loglikelihood_rolling", len(requests))
        sums = super().loglikelihood_rolling(requests, disable_tqdm=True)
        return [TextScore(s, len(self.tok_encode(r.args[0]))) for s, r in zip(sums, requests, strict=True)]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        for request in requests:
            room = new_tokens(request.args[1], self.max_gen_toks)
            self._note_length(request, request.args[0], room=room)
        self._report("generate_until", len(requests))
        return super().generate_until(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, override_bs: int | None = None) -> Any:
        # A rolling perplexity draws a bar for each of its batches, whatever it is told.
        return super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)

    def _note_length(self, request: Any, text: str, room: int) -> None:
        if len(self.tok_encode(text)) > self.max_length - room:
            self.truncated[request.task_name].add(request.doc_id)

    def _report(self, kind: str, count: int) -> None:
        if self._progress is not None:
            self._progress(kind, 0, count)
            self.set_cache_hook(_CountingHook(self._progress, kind, count))


class _CountingHook:
    """Stands where the harness hands each finished request to its cache."""

    def __init__(self, progress: Progress, kind: str, count: int):
        self._progress, self._kind, self._count, self._done = progress, kind, count, 0

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        self._done = min(self._done + 1, self._count)
        self._progress(self._kind, self._done, self._count)


def new_tokens(generation_kwargs: dict[str, Any], default: int) -> int:
    """The number of tokens a request may generate, under any of the names that the harness takes."""
    names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
    return next((int(v) for n in names if (v := generation_kwargs.get(n)) is not None), default)


@contextmanager
def _as_it_is(model: Any) -> Iterator[None]:
    """Keep the harness from tying weights again: an embedding that trained in full is the head's no more."""
    model.tie_weights = lambda *_args, **_kwargs: None
    try:
        yield
    finally:
        del model.tie_weights
