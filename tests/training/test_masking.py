"""Which tokens are trained: against TRL's own preparation, and by reading the labels back as text."""

from pathlib import Path

import pytest
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from milora.errors import MiloraError
from milora.training.masking import IGNORED, tokenise

PAIRS = [
    {"prompt": "Name a colour.\nAnswer: ", "completion": "red"},
    {"prompt": "Two and two?\nAnswer:", "completion": " four, and that is all"},
    {"prompt": "", "completion": "only an answer"},
    {"prompt": "Closed. ", "completion": "already<|im_end|>"},
]
CHAT = [
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello?"},
            {"role": "assistant", "content": "Hi."},
            {"role": "user", "content": "And now?"},
            {"role": "assistant", "content": "Bye."},
        ]
    }
]


@pytest.fixture(scope="module")
def tokenizer(tiny_llama):
    return AutoTokenizer.from_pretrained(tiny_llama)


def labelled_text(row, tokenizer) -> str:
    return tokenizer.decode([token for token in row["labels"] if token != IGNORED])


@pytest.mark.parametrize("loss_on", ["completion", "all"])
@pytest.mark.parametrize("max_length", [None, 20])
def test_ids_and_labels_are_those_of_trl(tiny_llama, tokenizer, tmp_path, loss_on, max_length):
    from trl import SFTConfig, SFTTrainer

    rows = PAIRS[2:] if max_length else PAIRS
    ours, _ = tokenise(Dataset.from_list(rows), tokenizer, loss_on=loss_on, max_length=max_length)
    settings = SFTConfig(
        output_dir=str(tmp_path), completion_only_loss=loss_on == "completion", max_length=max_length, use_cpu=True,
        bf16=False, report_to="none",
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    theirs = SFTTrainer(
        model, args=settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    ).train_dataset
    assert len(ours) == len(theirs) == len(rows)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["input_ids"] == other["input_ids"]
        assert mine["labels"] == other["labels"]


def test_only_the_answer_and_its_end_are_trained(tokenizer):
    dataset, lengths = tokenise(Dataset.from_list(PAIRS), tokenizer, loss_on="completion", max_length=None)
    assert [labelled_text(row, tokenizer) for row in dataset] == [
        "red<|im_end|>",
        " four, and that is all<|im_end|>",
        "only an answer<|im_end|>",
        "already<|im_end|>",
    ]
    # The third row has no prompt: its first token is labelled, but nothing precedes it to predict it from.
    assert lengths.trained_tokens == sum(map(len, ["red", " four, and that is all", "nly an answer", "already"])) + 4


def test_every_assistant_turn_is_trained_and_nothing_else(tokenizer):
    dataset, _ = tokenise(Dataset.from_list(CHAT), tokenizer, loss_on="completion", max_length=None)
    assert labelled_text(dataset[0], tokenizer) == "Hi.<|im_end|>\nBye.<|im_end|>\n"
    dataset, _ = tokenise(Dataset.from_list(CHAT), tokenizer, loss_on="all", max_length=None)
    assert dataset[0]["labels"] == dataset[0]["input_ids"]


def conversation(*turns: str) -> list[dict[str, str]]:
    """Turns of user and assistant by turns, the first one the user's."""
    return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]


def spans(messages, tokenizer) -> list[str]:
    """The labelled stretches as text."""
    (row,), _ = tokenise(Dataset.from_list([{"messages": messages}]), tokenizer, loss_on="completion", max_length=None)
    found, last = [], IGNORED
    for token in row["labels"]:
        if token != IGNORED:
            found += [] if last != IGNORED and found else [""]
            found[-1] += tokenizer.decode([token])
        last = token
    return found


@pytest.fixture
def in_template(tokenizer):
    """A tokenizer with another chat template, out of TRL's collection or given."""

    def with_template(template: str):
        other = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
        file = Path(trl.__file__).parent / "chat_templates" / f"{template}.jinja"
        other.chat_template = file.read_text() if file.is_file() else template
        return other

    return with_template


def test_a_turn_that_is_written_otherwise_when_it_is_the_last_is_trained_too(in_template):
    asked = conversation("2 + 2?", "Four.", "3 + 3?", "<think>hm</think>Six", "4 + 4?", "Eight.")
    shown = spans(asked, in_template("qwen3"))
    assert shown == ["Four.<|im_end|>\n", "Six<|im_end|>\n", "<think>\n\n</think>\n\nEight.<|im_end|>\n"]
    shown = spans(asked, in_template("glm4moe"))
    assert [span.rpartition(">")[2].strip() for span in shown] == ["Four.", "Six", "Eight."]


def test_what_comes_before_a_first_answer_is_not_trained(tokenizer):
    messages = [{"role": "assistant", "content": "Welcome"}, *conversation("hi", "hello")]
    assert spans(messages, tokenizer) == ["Welcome<|im_end|>\n", "hello<|im_end|>\n"]
    assert spans([{"role": "system", "content": "Be kind."}, *messages], tokenizer) == spans(messages, tokenizer)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("gemma3", "Conversation roles must alternate"),
        ("qwen3", "it shows nothing of turn 2, which is the assistant's"),  # a thought and no answer
        ("idefics3", "it shows nothing of what the assistant says"),
        (
            "{% for m in messages %}{% if loop.last or m.role == 'user' %}{{ m.content }}|{% endif %}{% endfor %}",
            "it shows nothing of turn 2, which is the assistant's",
        ),
    ],
)
def test_a_conversation_that_the_template_refuses_or_hides_is_named(in_template, template, said):
    fits = conversation("hi", "hello")
    odd = [*conversation("a", "first", "b", "second"), {"role": "assistant", "content": "third"}]
    odd = conversation("a", "<think>hm</think>", "b", "second") if template == "qwen3" else odd
    rows = Dataset.from_list([{"messages": m} for m in ([odd] if "shows" in said else [fits, fits, odd])])
    number = 1 if "shows" in said else 3
    with pytest.raises(MiloraError, match=f"dataset: row {number} of the rows drawn: the tokenizer's chat.*{said}"):
        tokenise(rows, in_template(template), loss_on="completion", max_length=None)


def test_text_is_trained_whole_and_closed(tokenizer):
    dataset, _ = tokenise(Dataset.from_list([{"text": "a story"}]), tokenizer, loss_on="completion", max_length=None)
    assert labelled_text(dataset[0], tokenizer) == "a story<|im_end|>"


def test_a_token_across_the_boundary_is_trained_and_counted():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocab = {"<e>": 0, "a": 1, "b": 2, "c": 3, "bc": 4}
    merging = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab=vocab, merges=[("b", "c")])), eos_token="<e>"
    )
    dataset, lengths = tokenise(
        Dataset.from_list([{"prompt": "ab", "completion": "c"}]), merging, loss_on="completion", max_length=None
    )
    assert dataset[0] == {"input_ids": [1, 4, 0], "labels": [IGNORED, 4, 0]}
    assert lengths.merged == 1
    assert "spans the end of the prompt" in lengths.remarks("truncate", None)[0]


def long_rows() -> Dataset:
    fits = {"prompt": "p" * 5, "completion": "c" * 5}
    cut = {"prompt": "p" * 10, "completion": "c" * 50}
    masked = {"prompt": "p" * 100, "completion": "c"}
    return Dataset.from_list([fits, cut, fits, masked, masked])


def test_rows_cut_to_nothing_are_left_out_and_said(tokenizer):
    dataset, lengths = tokenise(long_rows(), tokenizer, loss_on="completion", max_length=30)
    assert [len(row["input_ids"]) for row in dataset] == [11, 30, 11]
    assert (lengths.rows, lengths.kept, lengths.overlong, lengths.dropped) == (5, 3, 3, 2)
    cut, empty = lengths.remarks("truncate", None)
    assert cut.startswith("3 of 5 rows are longer than 30 tokens")
    assert empty == "2 of 5 rows have no token to train on within 30 and were dropped"


def test_rows_left_without_a_label_are_refused_by_number(tokenizer):
    plain = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    plain.eos_token = None
    one = Dataset.from_list([{"text": "abc"}, {"text": "a"}])  # a first token has nothing to be predicted from
    with pytest.raises(MiloraError, match="1 of 2 rows have no token to train on within their tokens, first row 2"):
        tokenise(one, plain, loss_on="all", max_length=None)
    with pytest.raises(MiloraError, match=r"all rows have no token to train on .* first row 1"):
        tokenise(long_rows(), tokenizer, loss_on="completion", max_length=5)


def test_overlong_rows_are_counted_and_cut(tokenizer):
    dataset, lengths = tokenise(long_rows().select([0, 1, 2]), tokenizer, loss_on="completion", max_length=30)
    assert [len(row["input_ids"]) for row in dataset] == [11, 30, 11]
    assert (lengths.rows, lengths.kept, lengths.overlong, lengths.longest, lengths.tokens) == (3, 3, 1, 61, 52)
    said = "1 of 3 rows are longer than 30 tokens (longest 61) and were cut to 30 tokens"
    assert lengths.remarks("truncate", None) == [said]


def test_overlong_rows_are_dropped_when_asked(tokenizer):
    dataset, lengths = tokenise(long_rows(), tokenizer, loss_on="completion", max_length=30, overlong="drop")
    assert [len(row["input_ids"]) for row in dataset] == [11, 11]
    assert (lengths.kept, lengths.dropped) == (2, 3)
    with pytest.raises(MiloraError, match="got 0 rows after dropping 5"):
        tokenise(long_rows(), tokenizer, loss_on="completion", max_length=5, overlong="drop")


def test_overlong_rows_are_refused_when_asked(tokenizer):
    with pytest.raises(
        MiloraError, match=r"3 of 5 rows are too long, first row 2 of the rows drawn: got 61 tokens, allowed 30"
    ):
        tokenise(long_rows(), tokenizer, loss_on="completion", max_length=30, overlong="error")


def test_rows_beyond_the_context_are_counted_and_said(tokenizer):
    rows = long_rows().select([0, 1, 2])
    dataset, lengths = tokenise(rows, tokenizer, loss_on="completion", max_length=4096, context=40)
    assert max(len(row["input_ids"]) for row in dataset) == 40
    assert lengths.over_context == 1
    assert lengths.remarks("truncate", 40)[0] == "1 of 3 rows are longer than the model's context of 40 tokens"


@pytest.mark.parametrize(
    ("rows", "loss_on", "message"),
    [
        ([], "completion", "got no rows"),
        ([{"question": "?"}], "completion", "got columns"),
        ([{"text": "a"}], "answers", "loss_on: got 'answers'"),
    ],
)
def test_wrong_calls_are_told_apart(tokenizer, rows, loss_on, message):
    with pytest.raises(MiloraError, match=message):
        tokenise(Dataset.from_list(rows), tokenizer, loss_on=loss_on, max_length=None)


def test_messages_need_a_chat_template(tiny_llama):
    bare = AutoTokenizer.from_pretrained(tiny_llama)
    bare.chat_template = None
    with pytest.raises(MiloraError, match="without a chat template"):
        tokenise(Dataset.from_list(CHAT), bare, loss_on="completion", max_length=None)


def test_shorter_rows_are_left_out(tiny_llama):
    from transformers import AutoTokenizer

    examples = Dataset.from_list([{"prompt": "ab", "completion": "c" * n} for n in (1, 5, 9)])
    settings = {"loss_on": "completion", "max_length": None}
    rows, lengths = tokenise(examples, AutoTokenizer.from_pretrained(tiny_llama), min_length=8, **settings)
    assert [len(ids) for ids in rows["input_ids"]] == [8, 12]
    assert (lengths.rows, lengths.kept, lengths.short, lengths.dropped) == (3, 2, 1, 1)
    assert lengths.remarks("truncate", None) == ["1 of 3 rows are shorter than the least length and were dropped"]
    with pytest.raises(MiloraError, match="got 0 rows of 3 of 99 tokens or more"):
        tokenise(examples, AutoTokenizer.from_pretrained(tiny_llama), min_length=99, **settings)
