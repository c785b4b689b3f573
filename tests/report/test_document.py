"""What a report says, without a picture being drawn: arms, tables, fronts, findings."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from milora.report.arms import arms_of, bases_of, mean_of
from milora.report.build import build, flat, tables
from milora.report.document import Document, interval, measured, number, rate, short
from milora.report.findings import section as findings
from milora.report.folders import read
from milora.report.lines import mean_line
from milora.report.metrics import direction, ordered, whole
from milora.report.pareto import fronts, on_front, section
from milora.report.results import differences
from report import synthetic, synthetic_comparison


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_comparison.make(tmp_path_factory.mktemp("document") / "c", seeds=(0, 1, 2), layers=2)


@pytest.fixture(scope="module")
def document(comparison: Path) -> Document:
    return build(read([comparison]))


def table(document: Document, id: str) -> Any:
    return next(t for _, t in tables(document) if t.id == id)


def said(document: Document) -> list[str]:
    return [text for b in document.sections[0].blocks if b.kind == "findings" for _, text in b.items]


def test_numbers_are_written_for_people():
    assert [number(v) for v in (0.0, 0.28512, -1.5, 12345.678, 1.23e-6)] == [
        "0",
        "0.2851",
        "−1.500",
        "12346",
        "1.23e-06",
    ]
    assert measured(0.28512, 0.0173) == "0.285 ± 0.017" and measured(0.28512, None) == "0.2851"
    assert measured(4.067e-07, 2.1e-08) == "4.07e-07 ± 2.1e-08"
    assert interval(-0.0421, -0.052, -0.031) == "−0.042 [−0.052, −0.031]" and interval(0.5, None, None) == "+0.5000"
    assert [rate(v) for v in (3e-4, 1e-3, 2.5e-5, None)] == ["3e-4", "1e-3", "2.5e-5", "–"]
    assert len(short("x" * 500)) == 34 and short("a  b\nc") == "a b c"


def test_means_and_errors_are_those_of_the_seeds():
    found = mean_of({"0": 1.0, "1": 2.0, "2": 6.0})
    assert found.mean == 3.0 and found.stderr == pytest.approx(math.sqrt((4 + 1 + 9) / 2 / 3))
    assert mean_of({"0": 5.0}).stderr is None
    mean, errors = mean_line([[(1, 1.0), (2, 2.0), (3, 3.0)], [(1, 3.0), (2, None)]])
    assert mean == [(1, 2.0), (2, None)] and errors == [1.0, None]


def test_runs_become_arms_by_everything_but_their_seed(tmp_path: Path):
    folders = [synthetic.run(tmp_path / f"{m}{s}", m, seed=s, layers=1) for m in ("lora", "milora") for s in (0, 1)]
    folders.append(synthetic.run(tmp_path / "milora16", "milora", r=16, layers=1))
    arms = arms_of(read(folders))
    assert [(a.name, a.seeds, a.trainable) for a in arms] == [
        ("lora", [0, 1], 6635520), ("milora r=8", [0, 1], 6635520), ("milora r=16", [0], 6635520),
    ]  # fmt: skip
    kl = arms[0].metrics["kl"]
    runs = [json.loads((folder / "forgetting.json").read_text())["kl"] for folder in folders[:2]]
    assert kl.by_seed == {"0": runs[0], "1": runs[1]} and kl.mean == pytest.approx(sum(runs) / 2)
    assert arms[2].metrics["kl"].stderr is None and arms[0].metrics["gsm8k:exact_match"].mean == pytest.approx(0.5)


def test_another_recipe_or_the_same_seed_again_is_no_seed_of_an_arm(tmp_path: Path):
    for name, seed, keys in (("a", 0, {}), ("b", 1, {}), ("c", 1, {}), ("d", 2, {"dataset": "other.jsonl"})):
        synthetic.run(tmp_path / name, "lora", seed=seed, layers=1)
        (tmp_path / name / "recipe.yaml").write_text(synthetic.recipe("lora", 8, 3e-4, seed, description=name, **keys))
    arms = arms_of(read([tmp_path / name for name in "abcd"]))
    assert [(arm.name, [run.name for run in arm.runs]) for arm in arms] == [
        ("lora (1)", ["a", "b"]), ("lora (2)", ["c"]), ("lora (3)", ["d"]),
    ]  # fmt: skip


def test_the_main_table_holds_the_numbers_of_the_comparison(comparison: Path, document: Document):
    record = json.loads((comparison / "comparison.json").read_text())
    shown = table(document, "results-table")
    titles = [title for title, _ in shown.header]
    assert titles[:6] == ["arm", "method", "r", "learning rate", "seeds", "trainable"]
    assert len(shown.rows) == len(record["arms"]) + 1 == 8
    at = titles.index("validation loss ↓")
    for row, arm in zip(shown.rows, record["arms"], strict=False):
        metric = arm["metrics"]["validation_loss"]
        assert row[at].value == metric["mean"] and row[at].data["stderr"] == metric["stderr"]
        assert row[at].text == measured(metric["mean"], metric["stderr"])
    best = [row[at].mark == "strong" for row in shown.rows]
    assert sum(best) == 1 and shown.rows[best.index(True)][0].text == "milora r=16"


def test_what_was_not_measured_is_never_a_number(document: Document):
    shown = table(document, "results-table")
    at = [title for title, _ in shown.header].index("gsm8k: exact_match ↑")
    row = next(row for row in shown.rows if row[0].text == "random_components")
    assert (row[at].text, row[at].value, row[at].data) == ("not measured", None, None)
    base = shown.rows[-1]
    assert base[0].text == "base" and base[at].value == 0.4 and base[at + 1].value is None
    check = table(document, "checks-table").rows[2]
    assert check[0].text == "not measured" == check[3].text and check[3].value is None
    rates = [row for row in table(document, "rates-table").rows if row[1].value == 3e-3]
    assert len(rates) == 5 and all(row[4].value is None for row in rates)


def test_a_check_without_a_value_has_not_passed(tmp_path: Path):
    synthetic.write_json(
        tmp_path / "c" / "comparison.json",
        {"checks": [{"name": "x", "value": None, "limit": 1.0, "sense": ">=", "passed": True, "gate": True}]},
    )
    document = build(read([tmp_path / "c"]))
    assert table(document, "checks-table").rows[0][0].text == "not measured"
    assert "0 of 1 gate passed; 1 not measured." in said(document)


def test_a_lost_loss_is_a_gap_and_is_told(document: Document):
    curves = next(s for s in document.sections if s.id == "loss-curves")
    assert any("pissa-r8-lr0.0003-s1 from step 32" in b.text for b in curves.blocks if b.kind == "text")
    ends = next(row for row in table(document, "loss-curves-ends").rows if row[0].text == "pissa")
    assert ends[-1].value == 28 and ends[5].value is not None


def test_failed_runs_are_told_and_in_no_mean(document: Document):
    rows = table(document, "failed-table").rows
    assert [[cell.text for cell in row] for row in rows] == [
        ["pissa-r8-lr0.0003-s3", "training, step 12", "RuntimeError: out of memory"]
    ]
    assert "1 run failed and is in no mean: pissa-r8-lr0.0003-s3." in said(document)
    assert said(document)[0].startswith("21 runs in 7 arms")


def test_a_run_that_failed_late_is_in_no_mean(tmp_path: Path):
    runs = [synthetic.run(tmp_path / f"lora{s}", "lora", seed=s, layers=1) for s in (0, 1)]
    synthetic.write_json(runs[1] / "failed.json", {"error": "disk full", "where": "saving"})
    (arm,) = arms_of(read(runs))
    assert (arm.seeds, arm.failed, [run.name for run in arm.runs]) == ([0], [1], ["lora0"])
    assert arm.metrics["kl"].by_seed.keys() == {"0"}
    made = synthetic_comparison.make(tmp_path / "c", ("lora",), (0, 1), layers=1)
    synthetic.write_json(made / "runs" / "lora-r8-lr0.0003-s1" / "failed.json", {"error": "e", "where": "w"})
    assert [run.name for run in arms_of(read([made]))[0].runs] == ["lora-r8-lr0.0003-s0"]


def test_an_arm_whose_run_is_missing_says_so(tmp_path: Path):
    arm = {"label": "lora", "method": "lora", "r": 8, "learning_rate": 1e-4, "seeds": [], "failed": [0], "metrics": {},
           "errors": {"0": "the run was not finished"}, "runs": {"0": "runs/lora-r8-lr0.0001-s0"}}  # fmt: skip
    synthetic.write_json(tmp_path / "c" / "comparison.json", {"arms": [arm]})
    rows = table(build(read([tmp_path / "c"])), "failed-table").rows
    assert [cell.text for cell in rows[0]] == ["lora-r8-lr0.0001-s0", "–", "the run was not finished"]


def test_findings_follow_the_intervals(document: Document):
    told = " ".join(said(document))
    assert "No clear difference to LoRA in validation loss: milora r=8 (" in told
    assert "pissa (+0.164 [+0.151, +0.177], n 3) forgot more than LoRA" in told
    assert "1 of 3 gates passed; failed: forgetting LoRA > MiLoRA; 1 not measured." in told
    assert (
        "At equal validation loss, along steps: lora r=8 forgot more than milora r=8 (ratio 1.11 [1.02, 1.2], n 3)."
        in told
    )
    assert "The change lies in the top subspace of W (φ left: top, bottom, random): pissa (0.65, 0.04, 0.09)." in told
    assert "On the front of validation loss against forgetting: lora, milora r=8, mica." in told


def test_the_interval_turns_the_sentence(comparison: Path):
    material = read([comparison])
    pissa = next(arm for arm in material.record["arms"] if arm["label"] == "pissa")
    pissa["against"]["lora"]["kl"]["interval"] = [-0.1, 0.4]
    arms = arms_of(material)
    told = [text for _, text in findings(material, arms, []).blocks[0].items]
    assert any(t.startswith("No clear difference to LoRA in forgetting") and "pissa" in t for t in told)
    assert not any("pissa" in t and "forgot more" in t for t in told)
    cells = {row[0].text: row for row in differences(arms).blocks[1].rows}
    assert (cells["pissa"][2].mark, cells["mica"][2].mark) == ("", "strong")


def test_one_seed_is_judged_by_its_rows_or_left_open(comparison: Path):
    material = read([comparison])
    rows = {"milora": [0.1, 0.3], "pissa": [-0.3, -0.1], "mica": [-0.1, 0.1]}
    for arm in material.record["arms"]:
        for metric, found in (arm["against"].get("lora") or {}).items():
            found |= {"interval": None, "n": 1}
            if metric == "validation_loss" and arm["label"] in rows:
                found["rows"] = {"difference": sum(rows[arm["label"]]) / 2, "interval": rows[arm["label"]], "n": 40}
    told = [text for _, text in findings(material, arms_of(material), []).blocks[0].items]
    assert any(t.endswith("learned less than LoRA, by validation loss.") and "milora r=8 (+0.20 [" in t for t in told)
    assert "pissa (−0.20 [−0.30, −0.10], n 40 rows) learned more than LoRA, by validation loss." in told
    assert any(
        t.startswith("No clear difference to LoRA in validation loss: mica (") and "n 40 rows" in t for t in told
    )
    matched = next(row for row in material.record["matched"] if row["comparable"])
    matched |= {"interval": None, "seeds": 1}
    said = [text for _, text in findings(material, arms_of(material), []).blocks[0].items]
    named = "forgetting of lora r=8 beside milora r=8, one pair of runs and no interval (ratio 1.11, n 1)."
    assert f"At equal validation loss, along steps: {named}" in said
    (alone,) = [t for t in told if "forgetting (KL to base), one pair of runs and no interval: " in t]
    assert "pissa (+0.1642, n 1)" in alone and not any("forgot more than LoRA" in t for t in told)
    assert "An interval over rows says how other rows would do, not other seeds." in told


def test_without_lora_nothing_is_said_of_it(tmp_path: Path):
    document = build(read([synthetic_comparison.make(tmp_path / "c", ("milora", "pissa"), (0,), layers=1)]))
    told = said(document)
    assert not [t for t in told if "LoRA, by" in t or "difference to LoRA" in t]
    assert "There is one seed for each arm: how far another seed would land is not known." in told
    assert not [t for _, t in tables(document) if t.id == "against-lora"]
    shown = table(document, "results-table")
    assert all("±" not in cell.text for row in shown.rows for cell in row)


def test_the_front_is_what_no_point_beats():
    assert on_front([(0.1, 1.0), (0.2, 0.9), (0.3, 0.95), (0.1, 1.1)], -1) == [True, True, False, False]
    assert on_front([(0.1, 1.0), (0.2, 0.9), (0.3, 2.0)], 1) == [True, False, True]


def test_points_find_their_arm_and_its_errors(comparison: Path):
    material = read([comparison])
    front = fronts(material, arms_of(material))[0]
    assert {p.name for p in front.points} == {"lora", "milora r=8", "pissa", "random_components", "mica"}
    at_end = {p.name: p for p in front.points if p.step == 48}
    assert at_end["milora r=8"].kl_error is not None and front.direction == -1
    assert all(p.kl_error is None for p in front.points if p.step == 16)


def test_a_base_that_is_far_does_not_hide_the_arms(tmp_path: Path):
    rows = [
        {"label": label, "score_name": "validation_loss", "score": score, "kl": kl, "on_front": True, "step": 8}
        for label, kl, score in (("base", 0.0, 3.0), ("lora", 0.2, 0.60), ("milora", 0.1, 0.65))
    ]
    synthetic.write_json(tmp_path / "c" / "comparison.json", {"pareto": rows})
    material = read([tmp_path / "c"])
    (front,) = fronts(material, [])
    picture = section([front]).blocks[1]  # pyright: ignore
    assert front.best == ["lora", "milora"] and "beyond the edge: KL 0, 3.000" in picture.draw()
    rows[0]["score"] = 0.7
    synthetic.write_json(tmp_path / "c" / "comparison.json", {"pareto": rows})
    drawn = section(fronts(read([tmp_path / "c"]), [])).blocks[1].draw()  # pyright: ignore
    assert "beyond" not in drawn and ">base<" in drawn


def test_variants_and_rates_are_kept_apart(tmp_path: Path):
    def arm(variant: str, lr: float, chosen: bool) -> dict[str, Any]:
        metrics = {
            "kl": {"mean": 0.1},
            "kl@4": {"mean": 0.1},
            "kl@2": {"mean": 0.05},
            "phi_left_top:q_proj": {"mean": 0.3},
        }
        return {"label": "lora", "variant": variant, "method": "lora", "r": 8, "learning_rate": lr, "chosen": chosen,
                "seeds": [0], "failed": [], "metrics": metrics}  # fmt: skip

    record = {
        "arms": [arm("base", 1e-4, True), arm("base", 1e-3, False), arm("scaled", 1e-4, True)],
        "base": {"base": {"metrics": {"kl": {"mean": 0.0}}}, "scaled": {"metrics": {"kl": {"mean": 0.0}}}},
    }
    synthetic.write_json(tmp_path / "c" / "comparison.json", record)
    material = read([tmp_path / "c"])
    document = build(material)
    assert [a.name for a in arms_of(material)] == ["lora lr=1e-4", "lora lr=1e-3", "lora@scaled"]
    assert set(bases_of(material)) == {"base", "scaled"}
    shown = table(document, "results-table")
    assert [row[0].text for row in shown.rows] == ["lora lr=1e-4", "lora@scaled", "base", "base@scaled"]
    assert [title for title, _ in shown.header][6:] == ["forgetting (KL to base) ↓"]
    assert [row[0].text for row in table(document, "other-rates").rows] == ["lora lr=1e-3"]
    retention = next(s for s in document.sections if s.id == "retention-section").blocks[0].draw()
    assert "@base" in retention and "@scaled" in retention and ">lora@scaled<" not in retention
    steps = [(row[0].text, row[2].value, row[3].value) for row in table(document, "retention-table").rows]
    assert steps[:3] == [("lora lr=1e-4", 0, 0.0), ("lora lr=1e-4", 2, 0.05), ("lora lr=1e-4", 4, 0.1)]


def test_metrics_are_ordered_and_directed():
    names = ["phi_left_top", "gsm8k:exact_match", "kl", "wikitext:word_perplexity,none", "validation_loss"]
    assert ordered(names)[:2] == ["validation_loss", "kl"] and ordered(names)[-1] == "phi_left_top"
    assert [direction(n) for n in names] == [0, 1, -1, -1, -1]
    assert [whole(n) for n in ("kl", "kl@4", "relative:q_proj", "gsm8k:acc", "matrices")] == [
        True,
        False,
        False,
        True,
        False,
    ]


def test_heat_maps_of_forty_layers_know_each_cell(tmp_path: Path):
    run = synthetic.run(tmp_path / "run", "milora", layers=40)
    document = build(read([run]))
    rows = table(document, "phi-table").rows
    assert [row[1].text for row in rows] == [*synthetic.TYPES, "all"]
    modules = json.loads((run / "analysis.json").read_text())["modules"]
    own = [m["phi"]["left"]["bottom"] for m in modules if m["type"] == "k_proj"]
    assert len(own) == 40 and rows[1][3].value == pytest.approx(sum(own) / 40)
    picture = next(b for s in document.sections for b in flat(s.blocks) if b.kind == "picture" and b.id == "phi-0")
    drawn = picture.draw()
    assert (
        drawn.count("<image") == 6 + 1 and "left bottom 0.6" in drawn
    )  # one of cells for each panel, one of the scale


def test_samples_show_what_got_better_and_what_got_worse(document: Document):
    samples = [b for s in document.sections for b in s.blocks if b.kind == "sample"]
    assert len(samples) == 6 and all(s.outputs[0].name == "base" and len(s.outputs) == 8 for s in samples)
    turns = [(s.outputs[0].verdict, s.outputs[1].verdict) for s in samples]
    assert turns.count(("wrong", "right")) == 2 == turns.count(("right", "wrong")) and all(
        s.target == "12" for s in samples
    )


def test_choices_are_shown_as_the_likeliest_one(tmp_path: Path):
    run = synthetic.run(tmp_path / "run", "lora", layers=1)
    row = {
        "doc_id": 0,
        "prompt": "Q",
        "completion": None,
        "target": 1,
        "scores": {"acc,none": 1.0},
        "continuations": [" a", " b"],
    }
    synthetic.write_lines(run / "eval" / "mcq.tuned.jsonl", [row | {"loglikelihoods": [-3.0, -1.0]}])
    synthetic.write_lines(
        run / "eval" / "mcq.base.jsonl", [row | {"loglikelihoods": [-1.0, -3.0], "scores": {"acc,none": 0.0}}]
    )
    free = {"prompt": "Say", "target": "yes", "base": "no", "tuned": "yes" * 2000}
    synthetic.write_lines(run / "samples.jsonl", [free])
    samples = {b.title: b for s in build(read([run])).sections for b in s.blocks if b.kind == "sample"}
    assert [(o.text, o.verdict) for o in samples["mcq, row 0"].outputs] == [("a", "wrong"), ("b", "right")]
    assert samples["mcq, row 0"].target == "b"
    said = samples["prompt 1"]
    assert said.target == "yes" and [o.name for o in said.outputs] == ["base", "lora"]
    assert said.outputs[1].text.endswith("(4,500 more characters)")


def test_the_answers_of_all_arms_to_one_prompt_stand_together(tmp_path: Path):
    for method in ("lora", "milora"):
        (tmp_path / method).mkdir()
        (tmp_path / method / "recipe.yaml").write_text(synthetic.recipe(method, 8, 1e-4, 0))
        rows = [{"prompt": p, "target": "t", "base": "b", "tuned": method + p} for p in "xy"]
        synthetic.write_lines(tmp_path / method / "samples.jsonl", rows)
    document = build(read([tmp_path / "lora", tmp_path / "milora"]))
    samples = [b for s in document.sections for b in s.blocks if b.kind == "sample"]
    assert [s.prompt for s in samples] == ["x", "y"]
    assert [[o.text for o in s.outputs] for s in samples] == [["b", "lorax", "milorax"], ["b", "loray", "miloray"]]


def test_a_run_whose_checkpoints_were_measured_has_its_end_in_the_table(tmp_path: Path):
    for method, kl in (("lora", 0.5), ("mica", 0.2)):
        (tmp_path / method).mkdir()
        (tmp_path / method / "recipe.yaml").write_text(synthetic.recipe(method, 8, 1e-4, 0))
        score = {"task": "mcq", "metric": "acc", "filter": "none", "value": 0.5, "stderr": 0.125, "runs": 8}
        rows = [
            {"step": s, "forgetting": {"kl": kl * s}, "losses": {"book": 4.0 - s}, "scores": [score]} for s in (0, 1, 2)
        ]
        synthetic.write_json(tmp_path / method / "retention.json", {"rows": rows})
    document = build(read([tmp_path / "lora", tmp_path / "mica"]))
    shown = table(document, "results-table")
    kl, loss = ([title for title, _ in shown.header].index(n) for n in ("forgetting (KL to base) ↓", "loss, book ↓"))
    assert [(r[0].text, r[kl].value, r[loss].value) for r in shown.rows] == [
        ("lora", 1.0, 2.0), ("mica", 0.4, 2.0), ("base", None, 4.0),
    ]  # fmt: skip
    assert "pareto" in {s.id for s in document.sections}
    scores = [row[3] for row in table(document, "retention-table").rows if row[1].text == "mcq: acc"]
    assert len(scores) == 6 and all(cell.data["stderr"] == 0.125 for cell in scores)  # over 8 evaluation runs


def test_a_seed_that_measured_less_is_in_no_line_of_what_it_lacks(tmp_path: Path):
    for seed in (0, 1):
        synthetic.run(tmp_path / f"lora{seed}", "lora", seed=seed, layers=1)
        score = {"task": "mcq", "metric": "acc", "filter": "none", "value": 0.5, "stderr": 0.125, "runs": 8}
        moved = {"kl": 0.5} if seed == 0 else None
        rows = [{"step": s, "forgetting": moved, "losses": {}, "scores": [score]} for s in (0, 1, 2)]
        synthetic.write_json(tmp_path / f"lora{seed}" / "retention.json", {"rows": rows})
    rows = table(build(read([tmp_path / "lora0", tmp_path / "lora1"])), "retention-table").rows
    assert [row[3].value for row in rows if row[1].text == "forgetting (KL to base)"] == [0.5] * 3
    assert [row[3].data["stderr"] for row in rows if row[1].text == "mcq: acc"] == [0.0] * 3  # between the seeds


def test_projections_are_means_over_layers_and_seeds(tmp_path: Path):
    for seed, norms in enumerate(((4.0, 1.0), (2.0, 1.0))):
        run = tmp_path / f"run-{seed}"
        run.mkdir()
        (run / "recipe.yaml").write_text(synthetic.recipe("milora", 8, 1e-4, seed))
        own = {"dW": {"W": norms[0], "dW": norms[1], "amplification": norms[1] / norms[0]}, "W": {"W": 9.0, "dW": 0.5}}
        modules = [{"module": "a.q_proj", "type": "q_proj", "projection": own | {"random": {"W": 0.25, "dW": None}}}]
        synthetic.write_json(run / "analysis.json", {"r": 8, "modules": modules, "summary": {}})
    shown = table(build(read([tmp_path / "run-0", tmp_path / "run-1"])), "projections-table")
    assert [[cell.value for cell in row] for row in shown.rows] == [
        ["milora", "q_proj", 3.0, 9.0, 0.25, 1.0, 0.375], ["milora", "all", 3.0, 9.0, 0.25, 1.0, 0.375],
    ]  # fmt: skip


def test_a_bare_run_still_makes_a_report(tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(synthetic.recipe("milora", 8, 1e-4, 0))
    document = build(read([run]))
    assert [s.id for s in document.sections] == ["summary", "results", "origins"]
    assert (
        said(document)[0] == "1 run in 1 arm; base model SmolLM2-135M-Instruct, trained on math/gsm8k_train.jsonl.gz."
    )


def test_the_model_that_is_asked_is_named(comparison, document):
    assert not [text for text in said(document) if "change added" in text]
    material = read([comparison])
    material.record["settings"]["measure"] = {"onto": "a/chat-model"}
    assert "All is measured on a/chat-model with each run's change added" in " ".join(said(build(material)))


def test_ratios_beside_lora(comparison, document):
    shown = table(document, "beside-lora")
    assert [name for name, _ in shown.header] == ["arm", "trained numbers", "gsm8k: exact_match"]
    rows = {row[0].text: [cell.value for cell in row[1:]] for row in shown.rows}
    assert rows["milora r=16"] == [0.25, 4.0] and "lora" not in rows
    arm = next(arm for arm in document.arms if arm["arm"] == "milora r=4")
    assert arm["beside"]["lora"]["gain_ratio"] == {"gsm8k:exact_match": 1.0}
