"""Examples to token ids and labels, before any training starts, so that nothing is lost in silence.

The rules are those of TRL's SFTTrainer, done here because TRL drops rows that end up without a label and
cuts rows that are too long without saying so:

- prompt and completion are tokenised together; the completion begins where the ids of the prompt alone and
  of the joint text diverge. MetaMath's and PiSSA's code masks the first ``len(tokenise(prompt))`` labels of
  the joint text instead. Both agree unless a token merges across the boundary; then the merged token is
  trained here (it holds a part of the answer) and masked there. ``Lengths.merged`` counts those rows.
- the end-of-sequence token closes a completion or a text, unless it is there already. A chat template closes
  its own turns, so messages get nothing added.
- in rounds of prompts and completions every completion is an answer, closed like one that is alone.
- in messages every assistant turn is an answer (`milora.training.conversations`).
- of rows that are cut, those that are left without a token to train on are left out, as TRL does, and counted.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import Any

from datasets import Dataset, Features, Value
from datasets import List as ListOf

from milora.errors import MiloraError
from milora.models.pictures import Pictures
from milora.training.conversations import common_prefix, encode_conversations
from milora.training.lengths import Lengths

IGNORED = -100  # the label that torch's cross-entropy leaves out
IMAGE = "image"  # the column of picture files

FEATURES = Features(
    {
        "input_ids": ListOf(Value("int32")),  # cut to the limit
        "labels": ListOf(Value("int32")),  # cut to the limit
        "length": Value("int32"),  # before the cut, a picture counted with all its tokens
        "trained": Value("int32"),  # tokens that count in the loss
        "merged": Value("bool"),
    }
)


def tokenise(
    examples: Dataset,
    tokenizer: Any,
    *,
    loss_on: str,
    max_length: int | None,
    min_length: int | None = None,
    overlong: str = "truncate",
    context: int | None = None,
    name: str = "dataset",
    pictures: Pictures | None = None,
) -> tuple[Dataset, Lengths]:
    """Turn examples into a data set of ``input_ids`` and ``labels`` that SFTTrainer takes as it is.

    Args:
        examples: rows of prompt and completion, of messages, of text, or of rounds, which may have a picture.
        loss_on: ``completion`` labels answers only; ``all`` labels every token. Text has no prompt: all of it is
            labelled either way.
        max_length: longest row in tokens; the model's ``context`` bounds it further.
        min_length: shorter rows are left out.
        overlong: ``truncate`` cuts the end of longer rows, and leaves out those of which nothing to train on is left;
            ``drop`` leaves longer rows out, ``error`` refuses them.
        context: the model's ``max_position_embeddings``, if it has one.
        name: how errors call the data set.
        pictures: how the model takes pictures; None where it takes none. A row's picture is one token in what is
            returned, and is counted and cut as the many that the model sees.

    Raises:
        MiloraError: no rows; a row is longer than allowed under ``error``; a row without a token to train on that
            was not cut (unless ``drop``); no row is left. Rows are numbered from 1 among the rows drawn, without the
            empty ones that were dropped.
    """
    if len(examples) == 0:
        raise MiloraError(f"{name}: got no rows, allowed at least 1")
    limit = min((bound for bound in (max_length, context) if bound), default=None)
    encode = _encoder(examples.column_names, tokenizer, loss_on, name, pictures)
    has_pictures = _has_pictures(examples, pictures, name)
    # Not from the cache: hashing a tokenizer costs as much as using it, and a stale hit would train on wrong ids.
    encoded = examples.map(
        lambda batch: _collect(encode(batch), limit, pictures) | ({IMAGE: batch[IMAGE]} if has_pictures else {}),
        batched=True,
        remove_columns=examples.column_names,
        features=Features({**FEATURES, IMAGE: Value("string")}) if has_pictures else FEATURES,
        load_from_cache_file=False,
    )
    lengths: list[int] = list(encoded["length"])
    too_long = [i for i, length in enumerate(lengths) if limit and length > limit]
    if too_long and overlong == "error":
        raise MiloraError(
            f"{name}: {len(too_long)} of {len(lengths)} rows are too long, first row {too_long[0] + 1} "
            f"of the rows drawn: got {lengths[too_long[0]]} tokens, allowed {limit}"
        )
    short = {i for i, length in enumerate(lengths) if length < (min_length or 0)}
    kept = [i for i in _kept_rows(list(encoded["trained"]), set(too_long), overlong, name, limit) if i not in short]
    if not kept:
        raise MiloraError(f"{name}: got 0 rows of {len(lengths)} of {min_length} tokens or more, allowed at least 1")
    dataset = encoded.select_columns(["input_ids", "labels", *([IMAGE] if has_pictures else [])])
    report = _report(encoded, kept, limit=limit, context=context, overlong=len(too_long), short=len(short))
    return (dataset if len(kept) == len(dataset) else dataset.select(kept)), report


def _report(
    encoded: Dataset, kept: Sequence[int], *, limit: int | None, context: int | None, overlong: int, short: int
) -> Lengths:
    lengths: list[int] = list(encoded["length"])
    trained: list[int] = list(encoded["trained"])
    return Lengths(
        rows=len(lengths),
        kept=len(kept),
        longest=max(lengths),
        limit=limit,
        overlong=overlong,
        over_context=sum(bool(context) and length > context for length in lengths),
        short=short,
        dropped=len(lengths) - len(kept),
        merged=sum(encoded["merged"]),
        tokens=sum(min(lengths[i], limit or lengths[i]) for i in kept),
        trained_tokens=sum(trained[i] for i in kept),
    )


def _kept_rows(counts: Sequence[int], too_long: set[int], overlong: str, name: str, limit: int | None) -> list[int]:
    if overlong == "drop":
        kept = [i for i, count in enumerate(counts) if count and i not in too_long]
    else:
        masked = [i for i, count in enumerate(counts) if not count]
        whole = [i for i in masked if i not in too_long]
        if whole or len(masked) == len(counts):
            masked = whole or masked
            which = "all" if len(masked) == len(counts) else f"{len(masked)} of {len(counts)}"
            raise MiloraError(
                f"{name}: {which} rows have no token to train on within {limit or 'their'} tokens, first row "
                f"{masked[0] + 1} of the rows drawn; got loss on none of its tokens, allowed a larger max_length or "
                "overlong: drop"
            )
        kept = [i for i, count in enumerate(counts) if count]
    if not kept:
        raise MiloraError(f"{name}: got 0 rows after dropping {len(counts)} overlong or empty ones, allowed at least 1")
    return kept


Row = tuple[list[int], list[int], bool]  # ids, labels, whether a token spans the end of the prompt


def _has_pictures(examples: Dataset, pictures: Pictures | None, name: str) -> bool:
    """Whether the rows may have pictures, which all data sets of a run then say row by row."""
    files = examples[IMAGE] if IMAGE in examples.column_names else []
    first = next((i for i, file in enumerate(files) if file), None)
    if first is not None and pictures is None:
        raise MiloraError(
            f"{name}: row {first + 1} of the rows drawn has an image, and the model takes none; allowed an image-text"
            " model (LLaVA-1.5's kind), or dataset_format sharegpt for the text alone"
        )
    return pictures is not None and IMAGE in examples.column_names


def _encoder(
    columns: Sequence[str], tokenizer: Any, loss_on: str, name: str, pictures: Pictures | None
) -> Callable[[Any], Iterable[Row]]:
    if loss_on not in ("completion", "all"):
        raise MiloraError(f"loss_on: got {loss_on!r}, allowed completion or all")
    everything = loss_on == "all"
    if "messages" in columns:
        if not getattr(tokenizer, "chat_template", None):
            raise MiloraError(
                f"{name}: got messages and a tokenizer without a chat template, allowed prompt/completion or text"
            )
        settings: dict[str, Any] = {"name": name, "everything": everything, "ignored": IGNORED}
        numbers = count(1)
        return lambda batch: encode_conversations(batch["messages"], tokenizer, numbers, **settings)
    if "prompt" in columns and "completion" in columns:
        return lambda batch: _encode_pairs(batch["prompt"], batch["completion"], tokenizer, everything)
    if "prompts" in columns and "completions" in columns:
        placed = pictures.in_text if pictures else str
        return lambda batch: (
            _encode_rounds([placed(p) for p in prompts], answers, tokenizer, everything)
            for prompts, answers in zip(batch["prompts"], batch["completions"], strict=True)
        )
    if "text" in columns:
        return lambda batch: _encode_texts(batch["text"], tokenizer)
    raise MiloraError(f"{name}: got columns {sorted(columns)}, allowed prompt and completion, messages, rounds or text")


def _collect(rows: Iterable[Row], limit: int | None, pictures: Pictures | None) -> dict[str, list]:
    batch: dict[str, list] = {key: [] for key in FEATURES}
    for ids, labels, merged in rows:
        length = pictures.length(ids) if pictures else len(ids)
        # A picture comes first and is never cut: a row with no room for it has no room for an answer either.
        room = max(0, limit - (length - len(ids))) if limit else None
        batch["input_ids"].append(ids[:room])
        batch["labels"].append(labels[:room])
        batch["length"].append(length)
        # The first token has nothing before it to be predicted from.
        batch["trained"].append(sum(label != IGNORED for label in labels[1:room]))
        batch["merged"].append(merged)
    return batch


def _encode_pairs(prompts: list[str], completions: list[str], tokenizer: Any, everything: bool) -> Iterator[Row]:
    texts = [p + _closed(c, tokenizer) for p, c in zip(prompts, completions, strict=True)]
    for before, ids in zip(_ids(prompts, tokenizer), _ids(texts, tokenizer), strict=True):
        start = common_prefix(before, ids)
        if everything:
            yield ids, ids, False
        else:
            yield ids, [IGNORED] * start + ids[start:], start < len(before)


def _encode_rounds(prompts: list[str], completions: list[str], tokenizer: Any, everything: bool) -> Row:
    text, ends = "", []
    for prompt, completion in zip(prompts, completions, strict=True):
        ends.append(text + prompt)
        text += prompt + _closed(completion, tokenizer)
        ends.append(text)
    *before, ids = _ids(ends, tokenizer)
    if everything:
        return ids, ids, False
    labels, merged = [IGNORED] * len(ids), False
    for turn, asked in enumerate(before[::2]):
        start = common_prefix(asked, ids)
        stop = common_prefix([*before, ids][2 * turn + 1], ids)
        labels[start:stop] = ids[start:stop]
        merged = merged or start < len(asked)
    return ids, labels, merged


def _encode_texts(texts: list[str], tokenizer: Any) -> Iterator[Row]:
    for ids in _ids([_closed(text, tokenizer) for text in texts], tokenizer):
        yield ids, ids, False


def _closed(text: str, tokenizer: Any) -> str:
    end = tokenizer.eos_token or ""
    return text if text.endswith(end) else text + end


def _ids(texts: list[str], tokenizer: Any) -> list[list[int]]:
    # `verbose` would warn about rows longer than the model's context, which are counted here instead.
    return tokenizer(texts, add_special_tokens=True, verbose=False)["input_ids"]
