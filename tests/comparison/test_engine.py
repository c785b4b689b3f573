"""A grid from end to end on a tiny model: runs, stop and go, failures, the choice of a rate, processes."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from milora.adapters.build import peft_config
from milora.cli.app import main
from milora.comparison.engine import compare, processes_that_fit
from milora.comparison.grid import Grid
from milora.comparison.load import check_grid
from milora.comparison.work import Worker
from milora.errors import MiloraError
from milora.runs import RunFolder


def stamps(folder: Path) -> dict[str, float]:
    return {p.parent.name: p.stat().st_mtime for p in folder.glob("runs/*/adapter_model.safetensors")}


@pytest.fixture
def grid(small) -> Grid:
    return check_grid(small)


def test_a_grid_leaves_runs_and_a_comparison(grid):
    found = compare(grid)
    folder = Path(grid.output_dir)
    assert found == json.loads((folder / "comparison.json").read_text())
    assert sorted(p.name for p in (folder / "runs").iterdir()) == [
        "lora-r4-lr0.001-s0", "lora-r4-lr0.001-s1", "milora-r4-lr0.001-s0", "milora-r4-lr0.001-s1",
    ]  # fmt: skip
    lora, milora = found["arms"]
    assert (milora["label"], milora["method"], milora["r"], milora["seeds"], milora["failed"]) == (
        "milora", "milora", 4, [0, 1], [],
    )  # fmt: skip
    assert milora["trainable_parameters"] == lora["trainable_parameters"] > 0
    for name in ("validation_loss", "kl", "forgetting", "amplification", "phi_left_bottom", "kl@2", "norm_dW:q_proj"):
        metric = milora["metrics"][name]
        assert metric["mean"] == pytest.approx(sum(metric["by_seed"].values()) / 2) and metric["stderr"] is not None
    floor = found["base"]["base"]["metrics"]["forgetting"]["mean"]
    assert milora["metrics"]["forgetting"]["mean"] == pytest.approx(floor + milora["metrics"]["kl"]["mean"], rel=1e-5)
    against = milora["against"]["lora"]["validation_loss"]
    assert against["difference"] == pytest.approx(
        milora["metrics"]["validation_loss"]["mean"] - lora["metrics"]["validation_loss"]["mean"]
    )
    assert against["n"] == 2 and against["rows"]["n"] == 8
    assert milora["against"]["base"]["kl"]["difference"] == milora["metrics"]["kl"]["mean"]
    assert "lora" not in lora["against"]
    steps = {(p["label"], p["step"]) for p in found["pareto"]}
    assert steps == {("base", 0), ("lora", 2), ("lora", 4), ("milora", 2), ("milora", 4)}
    assert next(p for p in found["pareto"] if p["label"] == "base")["on_front"]
    (pair,) = found["matched"]
    assert (pair["a"], pair["b"], pair["path"]) == ("lora", "milora", "steps") and pair["comparable"] in (True, False)
    run = RunFolder(folder / "runs" / "milora-r4-lr0.001-s0")
    samples = [json.loads(line) for line in (run.path / "samples.jsonl").read_text().splitlines()]
    assert [set(row) for row in samples] == [{"prompt", "target", "base", "tuned"}] * 2
    assert run.provenance()["base_fingerprint"] and run.card_file.is_file() and not run.checkpoints()


@pytest.mark.slow
def test_base_and_measurements_are_those_of_the_single_commands(grid, tiny_llama, sums):
    from milora.analysis import forgetting, read_text
    from milora.runs.tuned import load_tuned

    compare(grid)
    run = RunFolder(Path(grid.output_dir) / "runs" / "milora-r4-lr0.001-s1")
    tuned = load_tuned(run.path, dtype="float32")
    found = forgetting(
        tuned.model, tuned.tokenizer, read_text(sums / "text.txt"), block=32, max_tokens=128, batch_size=4
    )
    assert json.loads(run.forgetting_file.read_text())["kl"] == pytest.approx(found.kl, rel=1e-6)
    rows = json.loads((run.path / "measured.json").read_text())["validation_rows"]
    assert len(rows) == 8 and all(row["loss"] > 0 and row["tokens"] > 5 for row in rows)
    base = json.loads((Path(grid.output_dir) / "base" / "measured.json").read_text())["by_seed"]
    # A split of the training rows is drawn with the seed, so the base has a loss for each.
    assert base["0"]["validation_loss"] != base["1"]["validation_loss"]
    assert base["0"]["validation_loss"] == pytest.approx(math.log(259), rel=0.1)  # a random model knows nothing


@pytest.mark.slow
def test_a_second_call_does_what_is_missing_and_nothing_else(grid):
    compare(grid)
    before = stamps(Path(grid.output_dir))
    shutil.rmtree(Path(grid.output_dir) / "runs" / "lora-r4-lr0.001-s1")
    again = compare(grid.model_copy(update={"seeds": [0, 1, 2]}))
    after = stamps(Path(grid.output_dir))
    assert len(before) == 4 and len(after) == 6
    assert {name for name in before if after[name] == before[name]} == set(before) - {"lora-r4-lr0.001-s1"}
    assert [arm["seeds"] for arm in again["arms"]] == [[0, 1, 2], [0, 1, 2]]


@pytest.mark.slow
def test_a_stopped_run_goes_on_from_its_checkpoint(grid, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("milora.training.train.save_result", stop)
        with pytest.raises(KeyboardInterrupt):
            compare(grid)
    run = RunFolder(Path(grid.output_dir) / "runs" / "lora-r4-lr0.001-s0")
    assert [p.name for p in run.checkpoints()] == ["checkpoint-2", "checkpoint-4"]
    shutil.rmtree(run.path / "checkpoint-4")
    compare(grid)
    alone = compare(grid.model_copy(update={"output_dir": f"{grid.output_dir}-2"}))
    own = load_file(run.path / "adapter_model.safetensors")
    other = load_file(Path(f"{grid.output_dir}-2") / "runs" / run.path.name / "adapter_model.safetensors")
    assert alone["arms"] and all(torch.equal(own[name], other[name]) for name in own)
    lines = [json.loads(line)["step"] for line in run.metrics_file.read_text().splitlines()]
    assert lines == sorted(lines)


def test_a_failed_run_is_shown_as_failed_and_the_rest_goes_on(small, tmp_path, capsys):
    small["arms"] = [small["arms"][0], {"label": "broken", "method": "milora", "keys": {"target_modules": ["nowhere"]}}]
    small["measure"] = {"at": []}
    small["checks"] = [{"name": "c", "value": "kl(broken) / kl(lora)", "limit": 0.0}]
    found = compare(check_grid(small))
    broken = found["arms"][1]
    assert (broken["seeds"], broken["failed"], broken["metrics"]) == ([], [0, 1], {})
    assert "nowhere" in broken["errors"]["0"]
    run = Path(small["output_dir"]) / "runs" / "broken-r4-lr0.001-s0"
    failure = json.loads((run / "failed.json").read_text())
    assert failure["where"].startswith("training") and not list(run.glob("adapter*"))
    assert found["arms"][0]["failed"] == []
    assert (found["checks"][0]["value"], found["checks"][0]["passed"]) == (None, None)
    del small["checks"]
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(small))
    assert main(["compare", str(tmp_path / "grid.yaml")]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "runs failed: broken seed 0, broken seed 1; the same command tries them again" in said


@pytest.mark.slow
def test_a_failed_run_is_tried_again(grid, monkeypatch):
    def fail(*_, **__):
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr("milora.comparison.work.measure_run", fail)
        found = compare(grid)
    assert found["arms"][0]["errors"] == {"0": "OSError: the disk is gone", "1": "OSError: the disk is gone"}
    before = stamps(Path(grid.output_dir))
    assert [arm["failed"] for arm in compare(grid)["arms"]] == [[], []]
    assert stamps(Path(grid.output_dir)) == before  # they were trained


@pytest.mark.slow
def test_a_rate_is_chosen_by_validation_loss_before_anything_else_is_measured(small, sums, monkeypatch):
    small["arms"][0]["learning_rate"] = [1e-6, 1e-2]
    small["selection"] = {"seeds": [0], "max_steps": 3}
    measured = []
    real = Worker._take
    monkeypatch.setattr(
        Worker, "_take", lambda self, job, timeout: measured.append(job.place) or real(self, job, timeout)
    )
    found = compare(check_grid(small))
    assert measured[:2] == ["selection/lora-r4-lr1e-06-s0", "selection/lora-r4-lr0.01-s0"]
    rates = found["selection"]["lora-r4"]["rates"]
    assert [row["chosen"] for row in rates] == [False, True]
    assert rates[1]["validation_loss"] < rates[0]["validation_loss"]
    assert found["selection"]["lora-r4"]["at_the_edge"]
    assert [(arm["label"], arm["learning_rate"], arm["chosen"]) for arm in found["arms"]] == [
        ("lora", 1e-2, True), ("milora", 1e-3, True),
    ]  # fmt: skip
    for folder in Path(small["output_dir"]).glob("selection/*"):
        names = {p.name for p in folder.iterdir()}
        assert "measured.json" in names and not names & {"forgetting.json", "analysis.json", "eval"}
    every = compare(check_grid(small), all_rates=True)
    assert [(a["learning_rate"], a["chosen"]) for a in every["arms"] if a["label"] == "lora"] == [
        (1e-2, True), (1e-6, False),
    ]  # fmt: skip
    assert {p["learning_rate"] for p in every["pareto"] if p["label"] == "lora"} == {1e-2, 1e-6}
    assert [row for row in every["matched"] if row["path"] == "rates"] == []  # milora has one rate


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"val_set_size": 0}, "got 2 rates and no validation, allowed one, or validation rows to choose by"),
        (
            {"val_set_size": 0, "eval_dataset": "ROWS", "eval_split": "test[:8]"},
            "eval_split 'test\\[:8\\]', allowed one, or",
        ),
    ],
)
def test_a_rate_is_not_chosen_without_validation_rows_or_by_test_rows(small, over, message):
    small["arms"][0]["learning_rate"] = [1e-4, 1e-3]
    small["base"] |= over | ({"eval_dataset": small["base"]["dataset"]} if "eval_dataset" in over else {})
    with pytest.raises(MiloraError, match="arms.lora.learning_rate: .*" + message):
        compare(check_grid(small))
    assert not Path(small["output_dir"]).exists()


def test_random_components_are_drawn_with_the_seed_of_their_run(small, tmp_path):
    from milora.comparison.plan import measured_jobs

    small["arms"] = [{"label": "random", "method": "random_components"}]
    jobs = measured_jobs(check_grid(small), tmp_path, {}, {})
    assert [peft_config(job.recipe.model_dump()).components_seed for job in jobs] == [0, 1]
    own = jobs[0].recipe.model_copy(update={"method_settings": {"components_seed": 7}})
    assert peft_config(own.model_dump()).components_seed == 7


@pytest.mark.slow
def test_tasks_are_compared_row_by_row(small, sums):
    small["measure"] |= {"tasks": ["milora_questions"], "data_dir": str(sums), "at": [], "analysis": None}
    small["measure"]["gen_kwargs"] = {"num_beams": 2}
    small["seeds"] = [0]
    found = compare(check_grid(small))
    milora = found["arms"][1]
    metric = next(name for name in milora["metrics"] if name.startswith("milora_questions:acc"))
    assert milora["against"]["base"][metric]["rows"]["n"] == 4
    assert {p["score_name"] for p in found["pareto"]} >= {"validation_loss", metric}
    run = RunFolder(Path(small["output_dir"]) / "runs" / "milora-r4-lr0.001-s0")
    assert run.results()["eval"]["comparison"][0]["n"] == 4
    settings = run.results()["eval"]["tuned"]["settings"]
    assert settings["milora_questions"]["gen_kwargs"] == {"num_beams": 2}


@pytest.mark.slow
def test_what_is_asked_for_later_is_measured_later(small, sums):
    small["seeds"] = [0]
    first = compare(check_grid(small))
    folder = Path(small["output_dir"])
    before = {p: p.stat().st_mtime_ns for p in folder.glob("runs/*/a[dn]*")}  # adapters and analyses
    small["measure"] |= {"tasks": ["milora_questions"], "data_dir": str(sums), "predicted": True}
    second = compare(check_grid(small))
    assert before == {p: p.stat().st_mtime_ns for p in folder.glob("runs/*/a[dn]*")} and len(before) >= 6
    for a, b in zip(first["arms"], second["arms"], strict=True):
        assert b["metrics"].items() >= a["metrics"].items()  # step 2 is kept, although its checkpoint is gone
        assert any(name.startswith("milora_questions:") for name in b["metrics"])
    assert first["arms"][1]["predicted"] is None and second["arms"][1]["predicted"]["all"] > 0
    small["measure"]["at"] = [1, 4]
    with pytest.raises(MiloraError, match="save_steps was 2, got 1"):
        compare(check_grid(small))


@pytest.mark.slow
def test_full_fine_tuning_has_a_base_of_its_own(small):
    small["arms"] += [{"label": "full", "method": "full"}]
    small["seeds"] = [0]
    found = compare(check_grid(small))
    full = found["arms"][2]
    assert full["seeds"] == [0] and full["r"] is None and full["metrics"]["kl"]["mean"] > 0
    assert full["trainable_parameters"] > found["arms"][0]["trainable_parameters"]
    assert set(full["against"]) == {"lora", "base"}
    lora, whole = (Path(small["output_dir"]) / arm["runs"]["0"] for arm in (found["arms"][0], full))
    names = [{m["module"] for m in json.loads((run / "analysis.json").read_text())["modules"]} for run in (lora, whole)]
    assert names[0] == names[1]  # the adapters' matrices, although all were trained
    assert full["metrics"]["phi_left_top"]["mean"] > 0
    by_run = [[json.loads(x) for x in (run / "samples.jsonl").read_text().splitlines()] for run in (lora, whole)]
    assert [row["base"] for row in by_run[0]] == [row["base"] for row in by_run[1]]


@pytest.mark.slow
def test_runs_of_another_grid_are_not_mixed_in(grid, small):
    compare(grid)
    before = (Path(grid.output_dir) / "comparison.yaml").read_text()
    small["base"]["per_device_train_batch_size"] = 2
    with pytest.raises(MiloraError, match=r"holds runs of another grid, --overwrite replaces them: .*per_device"):
        compare(check_grid(small))
    assert (Path(grid.output_dir) / "comparison.yaml").read_text() == before
    found = compare(check_grid(small), overwrite=True)
    assert [arm["failed"] for arm in found["arms"]] == [[], []]


def test_processes_are_as_many_as_fit(grid, tmp_path, monkeypatch):
    from rich.console import Console

    from milora.comparison.plan import measured_jobs

    jobs, quiet = measured_jobs(grid, tmp_path, {}, {}), Console(quiet=True)
    assert processes_that_fit(3, jobs, quiet) == 3
    assert processes_that_fit(9, jobs, quiet) == 4  # no more than runs
    size = sum(f.stat().st_size for f in Path(grid.base["model_name_or_path"]).glob("*.safetensors"))
    monkeypatch.setattr("milora.comparison.engine._free_memory", lambda: int(4.5 * size))
    assert processes_that_fit(4, jobs, quiet) == 2
    monkeypatch.setattr("milora.comparison.engine._free_memory", lambda: 1)
    assert processes_that_fit(4, jobs, quiet) == 1


@pytest.mark.slow
def test_two_processes_do_what_one_does(grid):
    one = compare(grid)
    two = compare(grid.model_copy(update={"procs": 2, "output_dir": f"{grid.output_dir}-2"}))
    for a, b in zip(one["arms"], two["arms"], strict=True):
        assert a["metrics"] == b["metrics"] and b["failed"] == []


@pytest.mark.slow
def test_sizes_of_changes_are_predicted_and_measured_beside_lora(small):
    """Against the closed form: each entry of L and R moves by the rate in a step of Adam's."""
    small["seeds"], small["measure"] = [0], {"analysis": {"r": 4}, "predicted": True, "at": [], "samples": 0}
    small["base"] |= {"max_steps": 1, "lr_scheduler_type": "constant"}
    small["arms"] = [
        {"label": "lora", "method": "lora"},
        {"label": "pissa", "method": "pissa"},
        {"label": "slow", "method": "pissa", "learning_rate": [5e-4]},
        {"label": "matched", "method": "pissa", "learning_rate": [{"match": "lora", "at": 1e-3}]},
    ]
    lora, pissa, half, matched = compare(check_grid(small))["arms"]
    assert lora["predicted"] is None and lora["measured"] is None
    for kind in ("q_proj", "down_proj"):
        assert pissa["measured"]["by_type"][kind] == pytest.approx(pissa["predicted"]["by_type"][kind], rel=0.3)
        assert half["predicted"]["by_type"][kind] == pytest.approx(pissa["predicted"]["by_type"][kind] / 2)
    assert half["measured"]["all"] == pytest.approx(pissa["measured"]["all"] / 2, rel=0.05)
    assert matched["learning_rate"] == pytest.approx(1e-3 / pissa["predicted"]["all"], rel=1e-3)
    assert matched["runs"]["0"] == "runs/matched-r4-lrmatch_lora_0.001-s0"
    assert matched["measured"]["all"] == pytest.approx(1.0, rel=0.3)


@pytest.mark.slow
def test_variants_have_bases_of_their_own_and_a_rescaled_one_the_same_function(small):
    small["variants"] = [{"label": "rescaled", "rescale": 2}, {"label": "as_is"}]
    small["seeds"], small["measure"]["analysis"] = [0], None
    found = compare(check_grid(small))
    assert [(arm["label"], arm["variant"]) for arm in found["arms"]] == [
        ("lora", "rescaled"), ("milora", "rescaled"), ("lora", "as_is"), ("milora", "as_is"),
    ]  # fmt: skip
    bases = [found["base"][name]["metrics"]["validation_loss"]["mean"] for name in ("rescaled", "as_is")]
    assert bases[0] == bases[1]
    losses = [arm["metrics"]["validation_loss"]["mean"] for arm in found["arms"]]
    assert len(set(losses)) == 4
    folder = Path(small["output_dir"])
    assert (folder / "models" / "rescaled" / "model.safetensors").is_file()
    assert {p.name for p in (folder / "base").iterdir()} == {"rescaled", "as_is"}
    own = found["arms"][1]["against"]["lora"]["validation_loss"]["difference"]
    assert own == pytest.approx(losses[1] - losses[0])  # of the same variant
