"""metrics.jsonl."""

import json
from pathlib import Path

from milora.runs import append_metric, keep_metrics_up_to, kept_step, read_metrics


def test_each_record_is_one_line_that_can_be_read_at_once(tmp_path: Path):
    file = tmp_path / "metrics.jsonl"
    append_metric(file, {"step": 1, "loss": 2.5})
    assert read_metrics(file) == [{"step": 1, "loss": 2.5}]
    append_metric(file, {"step": 2, "loss": float("nan"), "eval": float("inf"), "note": "ü"})
    lines = file.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2
    assert json.loads(lines[1]) == {"step": 2, "loss": None, "eval": None, "note": "ü"}


def test_no_file_has_no_records(tmp_path: Path):
    assert read_metrics(tmp_path / "absent.jsonl") == []


def test_torn_last_line_is_left_out(tmp_path: Path):
    file = tmp_path / "metrics.jsonl"
    append_metric(file, {"step": 1})
    with file.open("a", encoding="utf-8") as stream:
        stream.write('{"step": 2, "lo')
    assert read_metrics(file) == [{"step": 1}]


def test_resuming_drops_what_came_after_the_checkpoint(tmp_path: Path):
    file = tmp_path / "metrics.jsonl"
    for step in range(1, 6):
        append_metric(file, {"step": step})
    with file.open("a", encoding="utf-8") as stream:
        stream.write('{"step": 6, "lo')
    keep_metrics_up_to(file, 3)
    append_metric(file, {"step": 4, "again": True})
    assert read_metrics(file) == [{"step": 1}, {"step": 2}, {"step": 3}, {"step": 4, "again": True}]


def test_the_step_of_the_weights_that_were_kept():
    losses = [{"step": 1, "loss": 3.0}, *({"step": s, "eval_loss": x} for s, x in ((2, 2.0), (4, 1.0), (6, 1.5)))]
    assert kept_step([]) is None and kept_step(losses) == 6
    assert kept_step(losses, best=True) == 4
    assert kept_step(losses, best=True, save_steps=4) == 4
    # Step 2 was best when the first checkpoint was written, and had none of its own.
    rising = [{"step": s, "eval_loss": x} for s, x in ((2, 1.0), (4, 1.5), (6, 1.2), (8, 0.5))]
    assert kept_step(rising[:3] + [{"step": 7, "loss": 1.0}], best=True, save_steps=4) == 7
    assert kept_step(rising, best=True, save_steps=4) == 8
