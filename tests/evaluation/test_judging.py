"""Judging: recorded judgements, an endpoint on this machine, a local model; stopping and going on."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from milora.errors import MiloraError
from milora.evaluation.judges import open_judge
from milora.evaluation.judges.endpoint import EndpointJudge, prompt, rank_of_first
from milora.evaluation.judges.local_model import LocalJudge
from milora.evaluation.judging import Judgement, Pair, judge_outputs
from milora.tasks.alpaca_eval import read_outputs
from milora.tasks.local_files import read_rows

OUTPUTS = [{"instruction": f"i{n}", "output": f"mine {n}", "generator": "mine"} for n in range(6)]
REFERENCES = [{"instruction": f"i{n}", "output": f"theirs {n}", "generator": "theirs"} for n in range(8)]


class Longer:
    """Prefers what is longer, counts what it is asked, and stops or fails where it is told to."""

    name = "longer"

    def __init__(self, stop_at=None, fail_at=()):
        self.asked, self._stop_at, self._fail_at = [], stop_at, fail_at

    def judge(self, pair):
        if pair.instruction == self._stop_at:
            raise KeyboardInterrupt
        self.asked.append(pair.instruction)
        if pair.instruction in self._fail_at:
            return Judgement(None, "no answer")
        return Judgement(2.0 if len(pair.output_2) > len(pair.output_1) else 1.0)


def test_published_win_rate_through_recorded_judgements(shared_data, tmp_path):
    folder = shared_data / "alpaca_eval"
    published = {row["generator"]: row for row in read_rows(folder / "published.json")}
    references = read_outputs(folder / "eval_set.jsonl.gz")
    for name in ("phi-2", "alpaca-7b"):
        file = folder / "annotations" / f"{name}.jsonl.gz"
        record = judge_outputs(read_outputs(file), references, open_judge(f"recorded:{file}"), tmp_path / name)
        assert record["win_rate"] == pytest.approx(published[name]["win_rate"], abs=1e-6)
        assert record["standard_error"] == pytest.approx(published[name]["standard_error"], abs=1e-6)
        assert record["n_draws"] == published[name]["n_draws"]
        assert record["avg_length"] == published[name]["avg_length"]
        assert record["n_failed"] == 805 - published[name]["n_total"]
        assert (record["generator"], record["reference"]) == (name, "text_davinci_003")
        assert record["judge"] == "recorded (alpaca_eval_gpt4)"
        assert len(read_rows(tmp_path / name / "judgements.jsonl")) == 805
        assert json.loads((tmp_path / name / "win_rate.json").read_text()) == record


def test_recorded_judgements_of_another_output_are_refused(tmp_path):
    file = tmp_path / "r.jsonl"
    file.write_text(json.dumps({"instruction": "i0", "output": "other", "preference": 2}) + "\n")
    with pytest.raises(MiloraError, match="judges another output to 'i0'"):
        judge_outputs(OUTPUTS[:1], REFERENCES, open_judge(f"recorded:{file}"), tmp_path / "a")
    with pytest.raises(MiloraError, match="has no judgement of 'i1'"):
        judge_outputs(OUTPUTS[1:2], REFERENCES, open_judge(f"recorded:{file}"), tmp_path / "b")


def test_equal_outputs_are_a_draw_that_nobody_is_asked_about(tmp_path):
    judge = Longer()
    outputs = [OUTPUTS[0] | {"output": "theirs 0"}, OUTPUTS[1]]
    record = judge_outputs(outputs, REFERENCES, judge, tmp_path / "out")
    assert judge.asked == ["i1"]
    assert (record["win_rate"], record["n_draws"], record["n_wins_base"]) == (25.0, 1, 1)


def test_a_stopped_judging_goes_on_and_asks_failures_again(tmp_path):
    first = Longer(stop_at="i4", fail_at=("i1",))
    with pytest.raises(KeyboardInterrupt):
        judge_outputs(OUTPUTS, REFERENCES, first, tmp_path)
    assert first.asked == ["i0", "i1", "i2", "i3"]
    partial = tmp_path / "judgements.partial.jsonl"
    with partial.open("a") as file:
        file.write('{"key": "torn')  # killed while it wrote
    second, calls = Longer(), []
    record = judge_outputs(OUTPUTS, REFERENCES, second, tmp_path, progress=lambda *call: calls.append(call))
    assert second.asked == ["i1", "i4", "i5"]
    assert record["n_total"] == 6 and record["n_failed"] == 0 and record["references"] == 8
    assert calls[-1] == ("judgements", 6, 6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["judgements.jsonl", "win_rate.json"]
    rows = read_rows(tmp_path / "judgements.jsonl")
    assert rows[0] == {
        "instruction": "i0", "output_1": "theirs 0", "generator_1": "theirs", "output_2": "mine 0",
        "generator_2": "mine", "annotator": "longer", "preference": 1.0, "raw_completion": "",
    }  # fmt: skip


def test_another_judge_does_not_take_over_judgements(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        judge_outputs(OUTPUTS, REFERENCES, Longer(stop_at="i4"), tmp_path)
    other = Longer()
    other.name = "other"
    judge_outputs(OUTPUTS, REFERENCES, other, tmp_path)
    assert len(other.asked) == 6


def test_nothing_is_overwritten(tmp_path):
    judge_outputs(OUTPUTS, REFERENCES, Longer(), tmp_path / "out")
    with pytest.raises(MiloraError, match="holds a win rate"):
        judge_outputs(OUTPUTS, REFERENCES, Longer(), tmp_path / "out")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("x")
    with pytest.raises(MiloraError, match="holds something else"):
        judge_outputs(OUTPUTS, REFERENCES, Longer(), tmp_path / "notes")
    with pytest.raises(MiloraError, match="output 1 has no reference"):
        judge_outputs(OUTPUTS, REFERENCES[1:], Longer(), tmp_path / "third")


RANKS = "[{{'model': 'model_1', 'rank': {}}}, {{'model': 'model_2', 'rank': {}}}]"


@contextmanager
def endpoint(answers) -> Iterator[tuple[str, list]]:
    """A server on this machine that gives each answer once: a text, or a status code. Ends with the block."""
    asked, left = [], list(answers)

    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
            answer = left.pop(0) if left else 500
            content = json.dumps({"choices": [{"message": {"content": answer}}]}).encode()
            if isinstance(answer, int):
                content = b'{"error": "it says why"}'
            self.send_response(answer if isinstance(answer, int) else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


@pytest.fixture(autouse=True)
def direct(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def _pair(n):
    return Pair(f"i{n}", f"theirs {n}", f"mine {n}")


def test_endpoint_is_asked_in_alpaca_evals_way(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with endpoint([RANKS.format(1, 2)] * 20) as (url, asked):
        judge = EndpointJudge(url, "gpt-4-0613", timeout=10)
        found = [judge.judge(_pair(n)).preference for n in range(20)]
    assert "secret" not in judge.name
    for n, request in enumerate(asked):
        assert (request["path"], request["key"]) == ("/v1/chat/completions", "Bearer secret")
        assert (request["model"], request["temperature"], request["max_tokens"]) == ("gpt-4-0613", 0, 100)
        system, user = request["messages"]
        assert system["content"].startswith("You are a helpful assistant, that ranks models")
        first = "mine" if judge.switches(_pair(n)) else "theirs"
        assert f'"model": "model_1",\n        "answer": """{first} {n}"""' in user["content"]
        # The first was ranked best, whosever it is.
        assert found[n] == (2.0 if first == "mine" else 1.0)
    assert 4 < sum(judge.switches(_pair(n)) for n in range(20)) < 16
    other = EndpointJudge(url, "gpt-4-0613", seed=1)
    assert [other.switches(_pair(n)) for n in range(20)] != [judge.switches(_pair(n)) for n in range(20)]


def test_endpoint_that_stumbles_is_asked_again(tmp_path):
    answers = [503, 429, RANKS.format(2, 1), "I like the first.", RANKS.format(3, 1)]
    with endpoint(answers) as (url, asked):
        judge = EndpointJudge(url, "m", pause=0.001, timeout=10)
        record = judge_outputs(OUTPUTS[:3], REFERENCES, judge, tmp_path / "out")
    assert len(asked) == 5
    assert (record["n_total"], record["n_failed"]) == (1, 2)
    rows = read_rows(tmp_path / "out" / "judgements.jsonl")
    assert [row["preference"] is None for row in rows] == [False, True, True]
    assert rows[1]["raw_completion"] == "I like the first."


def test_endpoint_that_refuses_or_stays_away_ends_the_judging(tmp_path):
    with endpoint([401]) as (url, asked):
        with pytest.raises(MiloraError, match=r"refuses: 401 Unauthorized: .*it says why"):
            judge_outputs(OUTPUTS, REFERENCES, EndpointJudge(url, "m", pause=0.001), tmp_path / "a")
        assert len(asked) == 1
    with endpoint([]) as (url, asked):
        judge = EndpointJudge(url, "m", tries=2, pause=0.001)
        with pytest.raises(MiloraError, match="5 pairs in a row failed; the same command goes on"):
            judge_outputs(OUTPUTS, REFERENCES, judge, tmp_path / "b")
        assert len(asked) == 10
    with endpoint([RANKS.format(1, 2)] * 6) as (url, asked):
        judge = EndpointJudge(url, "m", timeout=10)
        assert judge_outputs(OUTPUTS, REFERENCES, judge, tmp_path / "b")["n_total"] == 6
        assert len(asked) == 6


def test_a_pair_that_the_endpoint_refuses_is_a_null(tmp_path):
    rank = RANKS.format(1, 2)
    with endpoint([rank, 400, rank, 422]) as (url, asked):
        record = judge_outputs(OUTPUTS[:4], REFERENCES, EndpointJudge(url, "m", pause=0.001), tmp_path / "a")
        assert (record["n_total"], record["n_failed"], len(asked)) == (2, 2, 4)
    rows = read_rows(tmp_path / "a" / "judgements.jsonl")
    assert rows[1]["preference"] is None
    assert (
        rows[1]["raw_completion"].startswith("no answer: 400 Bad Request: ") and "says why" in rows[1]["raw_completion"]
    )
    with endpoint([400] * 9) as (url, asked):
        with pytest.raises(MiloraError, match="5 pairs in a row failed"):
            judge_outputs(OUTPUTS, REFERENCES, EndpointJudge(url, "m", pause=0.001), tmp_path / "b")
        assert len(asked) == 5


ANSWERS = [
    (RANKS.format(1, 2), 1),
    (RANKS.format(2, 1), 2),
    (f"\n{RANKS.format(2, 1)}\n", 2),
    ("[{'model': 'model_2', 'rank': 2}, {'model': 'model_1', 'rank': 1}]", 1),
    ('[{"model": "model_1", "rank": 2}]', 2),
    (RANKS.format(3, 1), None),
    (RANKS.format("'1'", 2), None),
    (RANKS.format(True, 2), None),
    ("[{'model': 'model_2', 'rank': 1}]", None),
    ("__import__('os').getcwd()", None),
    ("model_1", None),
    ("", None),
    ("[" * 5000, None),
]


@pytest.mark.parametrize(("completion", "rank"), ANSWERS)
def test_ranks_are_read(completion, rank):
    assert rank_of_first(completion) == rank


def test_an_output_that_looks_like_the_template_stays_what_it_is():
    text = prompt("{output_1}", "{output_2} {instruction}", "last")
    assert '"instruction": """{output_1}"""' in text
    assert '"answer": """{output_2} {instruction}"""' in text
    assert '"answer": """last"""' in text
    assert text.endswith("the ranking that the majority of humans would give.")


def test_local_model_sees_both_orders(tiny_model, tokenizer):
    judge = LocalJudge(tiny_model, tokenizer, name="tiny")
    assert "not AlpacaEval's judge" in judge.name
    there, back = judge.judge(Pair("i", "one", "two")), judge.judge(Pair("i", "two", "one"))
    assert 1 < there.preference < 2 and there.preference != pytest.approx(1.5, abs=1e-9)
    # What one order takes the other gives back: the two sides of a pair always sum to three.
    assert there.preference + back.preference == pytest.approx(3, abs=1e-5)
    assert judge.judge(Pair("i", "x" * 600, "y")).preference is None


def test_local_model_prefers_what_its_first_choice_names(tiny_model, tokenizer, monkeypatch):
    judge = LocalJudge(tiny_model, tokenizer, name="tiny")

    def likes_mine(requests, disable_tqdm=True):
        mine_is_a = ["Output (a):\nmine" in request.args[0] for request in requests]
        named_a = [request.args[1] == "Output (a)" for request in requests]
        return [(0.0 if a == n else -3.0, False) for a, n in zip(mine_is_a, named_a, strict=True)]

    monkeypatch.setattr(judge._lm, "loglikelihood", likes_mine)
    assert judge.judge(Pair("i", "theirs", "mine")).preference == pytest.approx(1 + 1 / (1 + 2.718281828**-3))


def test_endpoint_needs_its_models_name():
    with pytest.raises(MiloraError, match="judge_model: got none"):
        open_judge("http://127.0.0.1:1/v1")
