"""Folders are read as they lie there: what is absent is absent, what is broken is named."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from milora.errors import MiloraError
from milora.report.arms import FREE
from milora.report.folders import RUN_MARK, read
from milora.runs.folder import MARK, OUTPUT_ONLY, WRITTEN
from report import synthetic, synthetic_comparison


def test_reading_needs_no_torch(tmp_path: Path):
    run = synthetic.run(tmp_path / "run", "milora", layers=1)
    (run / "analysis.json").unlink()  # whose pictures take longest
    code = (
        "import sys; from milora.report import write_report; write_report([sys.argv[1]]); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'peft')))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], timeout=120)
    assert done.returncode == 0 and (tmp_path / "run" / "report.html").stat().st_size > 30_000


def test_the_mark_and_the_files_are_those_of_runs():
    assert MARK == RUN_MARK + "\n"
    assert {"seed", *OUTPUT_ONLY} == FREE
    assert {f"report.{form}" for form in ("html", "md", "json", "csv")} <= set(WRITTEN)


def test_a_run_is_read_whole(tmp_path: Path):
    material = read([synthetic.run(tmp_path / "run", "pissa", r=4, lr=1e-3, seed=7, layers=2)])
    (run,) = material.runs
    assert (run.name, run.label, run.method, run.r, run.learning_rate, run.seed) == (
        "run",
        "pissa",
        "pissa",
        4,
        1e-3,
        7,
    )
    assert len(run.metrics) > 10 and len(run.analysis["modules"]) == 14 and run.retention["rows"]
    assert run.failed is None and material.problems == [] and material.record == {}


def test_a_comparison_names_its_runs(tmp_path: Path):
    material = read([synthetic_comparison.make(tmp_path / "c", ("lora", "milora"), (0, 1), layers=1)])
    assert len(material.runs) == 2 + 3 * 2 + 1 and material.record["arms"] and material.selection["lora"]
    failed = [run for run in material.runs if run.failed is not None]
    assert [(run.name, run.label, run.r, run.learning_rate, run.seed) for run in failed] == [
        ("pissa-r8-lr0.0003-s3", "pissa", 8, 0.0003, 3)
    ]
    assert material.bases["base"].results["scores"]


@pytest.mark.parametrize(
    ("name", "label", "variant", "r", "lr", "seed"),
    [
        ("lora-r32-lr3e-05-s0", "lora", "base", 32, 3e-5, 0),
        ("mica-random@scaled-r8-lr0.001-s12", "mica-random", "scaled", 8, 1e-3, 12),
        ("full-lr1e-05-s1", "full", "base", None, 1e-5, 1),
        ("milora-r8-lrmatch_lora_0.0003-s1", "milora", "base", 8, None, 1),
    ],
)
def test_names_of_failed_runs_say_what_they_were(tmp_path: Path, name, label, variant, r, lr, seed):
    synthetic.write_json(tmp_path / "c" / "comparison.json", {})
    synthetic.write_json(tmp_path / "c" / "runs" / name / "failed.json", {"error": "e", "where": "w"})
    (run,) = read([tmp_path / "c"]).runs
    assert (run.label, run.variant, run.r, run.learning_rate, run.seed) == (label, variant, r, lr, seed)


def test_numbers_that_are_not_finite_are_absent_and_characters_clean(tmp_path: Path):
    run = synthetic.run(tmp_path / "run", "lora", layers=1)
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\n{"step": 2, "loss": 1e999}\n{"step": 3, "lo')
    (run / "forgetting.json").write_text(json.dumps({"text": "a\x00b\ud800", "kl": 0.5}))
    material = read([run])
    assert material.runs[0].metrics == [{"step": 1, "loss": None}, {"step": 2, "loss": None}]
    assert material.runs[0].forgetting == {"text": "a\ufffdb?", "kl": 0.5}
    assert material.problems == []  # a torn last line is what a kill leaves


def test_what_cannot_be_read_is_named(tmp_path: Path):
    run = synthetic.run(tmp_path / "run", "lora", layers=1)
    (run / "forgetting.json").write_text("{")
    (run / "analysis.json").write_text("[1]")
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\nnonsense\n{"step": 2, "loss": 1.0}\n')
    (run / "recipe.yaml").write_text(RUN_MARK + "\nmethod: [\n")
    material = read([run])
    assert [p.split(":")[0] for p in material.problems] == [
        "run/recipe.yaml", "run/metrics.jsonl, line 2", "run/forgetting.json", "run/analysis.json",
    ]  # fmt: skip
    assert len(material.runs[0].metrics) == 2 and material.runs[0].forgetting == {}


def test_other_folders_are_refused(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    run = synthetic.run(tmp_path / "run", "lora", layers=1)
    comparison = synthetic_comparison.make(tmp_path / "c", ("lora",), (0,), layers=1)
    for folders, words in (
        ([], "got no folder"),
        ([tmp_path / "empty"], "no folder of a run"),
        ([tmp_path / "nowhere"], "no folder of a run"),
        ([run, comparison], "allowed one comparison folder"),
    ):
        with pytest.raises(MiloraError, match=words):
            read(folders)


def test_runs_of_one_name_are_told_apart(tmp_path: Path):
    first, second = (synthetic.run(tmp_path / d / "run", "lora", layers=1) for d in "ab")
    names = [run.name for run in read([first, second, first]).runs]
    assert len(names) == 2 == len(set(names)) and all(name.endswith("run") for name in names)
