"""Judges of pairs of outputs, one file each.

recorded:FILE         judgements that were made before
http://... https://   an endpoint of OpenAI's form, asked in AlpacaEval's words
anything else         a model's folder or hub name: a model here, which is not AlpacaEval's judge
"""

from typing import Any

from milora.errors import MiloraError
from milora.evaluation.judging import Judge


def open_judge(
    spec: str, *, model: str | None = None, seed: int = 0, dtype: str = "auto", device: str | None = None
) -> Judge:
    """The judge that a specification names.

    Args:
        spec: as in the table above.
        model: the name that an endpoint knows its model by; ``gpt-4-0613`` is AlpacaEval's.
        seed: decides by the outputs which of the two an endpoint sees first.
        dtype: of a model here.
        device: of a model here.

    Raises:
        MiloraError: no such file or model, or an endpoint without a model's name.
    """
    kind, colon, rest = spec.partition(":")
    if kind == "recorded" and colon:
        from milora.evaluation.judges.recorded import RecordedJudge

        return RecordedJudge(rest)
    if kind in ("http", "https"):
        from milora.evaluation.judges.endpoint import EndpointJudge

        if not model:
            raise MiloraError("judge_model: got none, allowed the name of the endpoint's model, e.g. gpt-4-0613")
        return EndpointJudge(spec, model, seed=seed)
    return _local(spec, dtype, device)


def _local(spec: str, dtype: str, device: str | None) -> Any:
    from milora.evaluation.judges.local_model import LocalJudge
    from milora.models.load import load_model, load_tokenizer

    return LocalJudge(load_model(spec, dtype=dtype, device=device), load_tokenizer(spec), name=spec)
