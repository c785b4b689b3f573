"""What is made of measurements that lie there: rates chosen, means, differences, fronts, checks. Nothing is trained."""

import json
from pathlib import Path

import pytest

from milora.comparison.beside import beside
from milora.comparison.checks import failed_gates
from milora.comparison.differences import counterpart
from milora.comparison.folder import ComparisonFolder
from milora.comparison.gather import ArmResult, BaseResult
from milora.comparison.grid import settings_of
from milora.comparison.load import check_grid
from milora.comparison.plan import measured_jobs, selection_jobs
from milora.comparison.results import results
from milora.comparison.selection import choose, chosen_rates

GRID = {
    "base": {"model_name_or_path": "m", "dataset": "d.jsonl", "lora_r": 8, "max_steps": 8, "val_set_size": 2},
    "arms": [{"label": "lora", "method": "lora"}, {"label": "milora", "method": "milora"}],
    "seeds": [0, 1],
    "measure": {"at": [4, 8], "forgetting": {"text": "t.txt"}},
    "checks": [
        {"name": "ratio", "value": "kl(lora) / kl(milora)", "limit": 1.5},
        {"name": "every", "value": "kl(lora) / kl(milora)", "limit": 1.5, "over": "every"},
        {"name": "step", "value": "kl(lora, step=4)", "sense": "<=", "limit": 0.2, "gate": False},
        {"name": "absent", "value": "amplification(lora)", "limit": 0.0},
        {"name": "base", "value": "validation_loss(base) - validation_loss(lora)", "limit": 0.5},
        {"name": "size", "value": "measured(milora, q_proj) / predicted(milora, q_proj)", "limit": 1.0},
    ],
}


def measured(folder: Path, losses: tuple[float, ...], kls: tuple[float, ...], **more):
    """A run that measured these at steps 4, 8, ...; its row losses lie around its mean."""
    folder.mkdir(parents=True)
    steps = [
        {
            "step": 4 * (i + 1),
            "validation_loss": loss,
            "forgetting": {"kl": kl, "cross_entropy": 3.0 + kl, "floor": 3.0},
        }
        for i, (loss, kl) in enumerate(zip(losses, kls, strict=True))
    ]
    rows = [{"loss": (losses[-1] + d) * 10, "tokens": 10} for d in (-0.1, 0.0, 0.1)]
    settings = settings_of(check_grid(GRID).measure, whole=True)
    record = {"settings": settings, "steps": steps, "validation_rows": rows}
    (folder / "measured.json").write_text(json.dumps(record | more))


def failed(folder: Path, error: str):
    folder.mkdir(parents=True)
    (folder / "failed.json").write_text(json.dumps({"error": error, "where": "training"}))


@pytest.fixture
def folder(tmp_path: Path) -> ComparisonFolder:
    """Two arms with two seeds each."""
    runs = tmp_path / "runs"
    measured(runs / "lora-r8-lr0.0003-s0", (1.2, 1.0), (0.1, 0.4))
    measured(runs / "lora-r8-lr0.0003-s1", (1.3, 1.2), (0.2, 0.6))
    measured(runs / "milora-r8-lr0.0003-s0", (1.1, 0.9), (0.1, 0.3), predicted={"by_type": {"q_proj": 0.5}, "all": 0.5})
    measured(runs / "milora-r8-lr0.0003-s1", (1.2, 1.0), (0.1, 0.3))
    (tmp_path / "base").mkdir()
    base = {str(seed): {"validation_loss": 2.0, "rows": [{"loss": 20.0, "tokens": 10}] * 3} for seed in (0, 1)}
    (tmp_path / "base" / "measured.json").write_text(json.dumps({"by_seed": base}))
    return ComparisonFolder(tmp_path)


def record(folder: ComparisonFolder, grid=None, chosen=None):
    grid = check_grid(grid or GRID)
    return results(grid, folder, measured_jobs(grid, folder.path, {}, chosen or {}), chosen or {})


def test_means_differences_and_base(folder):
    lora, milora = record(folder)["arms"]
    kl = lora["metrics"]["kl"]
    assert kl == {"mean": pytest.approx(0.5), "stderr": pytest.approx(0.1), "by_seed": {"0": 0.4, "1": 0.6}}
    assert lora["metrics"]["kl@4"]["by_seed"] == {"0": 0.1, "1": 0.2} and lora["metrics"]["kl@8"] == kl
    loss = milora["against"]["lora"]["validation_loss"]
    assert (loss["difference"], loss["n"]) == (pytest.approx(-0.15), 2)
    assert (loss["rows"]["difference"], loss["rows"]["n"]) == (pytest.approx(-0.15), 3)
    assert milora["against"]["base"]["validation_loss"]["difference"] == pytest.approx(0.95 - 2.0)
    assert milora["against"]["base"]["forgetting"]["difference"] == pytest.approx(0.3)
    assert lora["against"].keys() == {"base"}


def test_front_and_matched_learning(folder):
    found = record(folder)
    points = {(p["label"], p["step"]): (p["score"], p["kl"], p["on_front"]) for p in found["pareto"]}
    assert points[("lora", 8)] == (pytest.approx(1.1), pytest.approx(0.5), False)
    assert points[("milora", 8)] == (pytest.approx(0.95), pytest.approx(0.3), True)
    assert points[("base", 0)] == (2.0, 0.0, True)
    (pair,) = found["matched"]
    # Seed 0: at loss 1.0 LoRA has 0.4, MiLoRA half way from 0.1 to 0.3. Seed 1: at 1.2 it has 0.6, MiLoRA 0.1.
    assert pair["by_seed"]["0"] == {"validation_loss": 1.0, "kl_a": 0.4, "kl_b": pytest.approx(0.2)}
    assert pair["ratio"] == pytest.approx((2.0 * 6.0) ** 0.5)


def test_checks_are_judged_by_what_was_measured(folder):
    checks = {check["name"]: check for check in record(folder)["checks"]}
    assert checks["ratio"]["value"] == pytest.approx(0.5 / 0.3) and checks["ratio"]["passed"]
    assert checks["ratio"]["by_seed"] == {"0": pytest.approx(4 / 3), "1": pytest.approx(2.0)}
    assert checks["every"]["value"] == pytest.approx(4 / 3) and checks["every"]["passed"] is False
    assert checks["step"]["value"] == pytest.approx(0.15) and checks["step"]["passed"]
    assert checks["absent"]["value"] is None and checks["absent"]["passed"] is None
    assert checks["base"]["value"] == pytest.approx(0.9)
    assert failed_gates(list(checks.values())) == ["every", "absent", "size"]


def test_sizes_beside_lora(folder):
    for arm, norm in (("lora", 2.0), ("milora", 1.1)):
        for seed in (0, 1):
            modules = [{"module": "l.0.q_proj", "norm_dW": norm}, {"module": "l.0.v_proj", "norm_dW": norm * 2}]
            file = folder.runs / f"{arm}-r8-lr0.0003-s{seed}" / "analysis.json"
            file.write_text(
                json.dumps({"modules": modules, "summary": {"norm_dW": norm, "phi": {"left": {"top": 0.1}}}})
            )
    found = record(folder)
    milora = found["arms"][1]
    assert milora["measured"]["all"] == pytest.approx(0.55)
    assert milora["measured"]["by_type"] == {"q_proj": pytest.approx(0.55), "v_proj": pytest.approx(0.55)}
    assert milora["predicted"] == {"by_type": {"q_proj": 0.5}, "all": 0.5}
    assert milora["metrics"]["phi_left_top"]["mean"] == 0.1
    assert found["checks"][-1]["value"] == pytest.approx(1.1) and found["checks"][-1]["passed"]


def test_a_mean_over_other_seeds_is_no_value_of_a_check(folder):
    (folder.runs / "milora-r8-lr0.0003-s1" / "measured.json").unlink()
    (folder.runs / "milora-r8-lr0.0003-s1" / "failed.json").write_text('{"error": "no", "where": "x"}')
    found = record(folder)
    milora = found["arms"][1]
    assert (milora["seeds"], milora["failed"], milora["errors"]) == ([0], [1], {"1": "no"})
    assert milora["against"]["lora"]["kl"]["n"] == 1 and milora["against"]["lora"]["kl"]["interval"] is None
    check = found["checks"][0]
    assert check["value"] is None and check["by_seed"] == {"0": pytest.approx(4 / 3), "1": None}


def test_a_run_that_was_not_measured_as_the_grid_asks_is_in_no_mean(folder):
    file = folder.runs / "milora-r8-lr0.0003-s1" / "measured.json"
    found = json.loads(file.read_text())
    file.write_text(json.dumps(found | {"settings": found["settings"] | {"forgetting": None}}))
    milora = record(folder)["arms"][1]
    assert (milora["seeds"], milora["failed"]) == ([0], [1])
    assert milora["errors"] == {"1": "the run was not measured as the grid asks"}


def test_an_arm_without_a_rank_has_no_counterpart_among_several():
    def arm(label, r):
        return ArmResult(f"{label}-{r}", label, "base", label, r, 1e-3, True)

    full, small, large = arm("full", None), arm("lora", 8), arm("lora", 64)
    assert counterpart(full, [full, small, large], "lora") is None
    assert counterpart(full, [full, small], "lora") is small
    assert counterpart(arm("milora", 64), [small, large], "lora") is large
    assert counterpart(arm("milora", 16), [small, large], "lora") is None


def test_a_gain_needs_no_difference_from_the_base_in_the_tables(folder):
    lora, milora = record(folder, GRID | {"against": ["lora"]})["arms"]
    assert milora["against"].keys() == {"lora"} and lora["against"] == {}
    assert milora["beside"]["lora"]["gain_ratio"] == {"validation_loss": pytest.approx(1.05 / 0.9)}


def test_the_rate_of_least_loss_is_chosen_and_failures_count(tmp_path):
    arms = [{"label": "lora", "method": "lora", "learning_rate": [1e-4, 1e-3, 1e-2]},
            {"label": "dead", "method": "milora", "learning_rate": [1.0, 2.0]}]  # fmt: skip
    grid = check_grid(GRID | {"arms": arms, "checks": [], "selection": {"seeds": [0, 1], "max_steps": 3}})
    jobs = selection_jobs(grid, tmp_path, {})
    for rate, losses in (("0.0001", (1.5, 1.7)), ("0.001", (1.2, 1.4)), ("0.01", (0.1, None))):
        for seed, loss in enumerate(losses):
            place = tmp_path / "selection" / f"lora-r8-lr{rate}-s{seed}"
            failed(place, "nan") if loss is None else measured(place, (loss,), (0.1,))
    for rate in (1, 2):
        for seed in (0, 1):
            failed(tmp_path / "selection" / f"dead-r8-lr{rate}-s{seed}", "boom")
    found = choose(jobs)
    rates = found["lora-r8"]["rates"]
    assert [row["chosen"] for row in rates] == [False, True, False]
    assert (rates[1]["validation_loss"], rates[1]["seeds"]) == (pytest.approx(1.3), 2)
    assert (rates[2]["validation_loss"], rates[2]["failed"]) == (0.1, [1])  # its good seed alone does not win
    assert not found["lora-r8"]["at_the_edge"]
    assert chosen_rates(found) == {"lora-r8": "0.001", "dead-r8": None}
    lost = [job for job in jobs if job.cell.arm.label == "dead"]
    arms = results(grid, ComparisonFolder(tmp_path), lost, chosen_rates(found))["arms"]
    assert [(arm["learning_rate"], arm["failed"], arm["chosen"]) for arm in arms] == [
        (1.0, [0, 1], False), (2.0, [0, 1], False),
    ]  # fmt: skip
    assert arms[0]["errors"]["0"] == "boom"


def test_footprint_and_gain_beside_another(folder):
    for arm, count in (("lora", 1000), ("milora", 60)):
        for seed in (0, 1):
            file = folder.runs / f"{arm}-r8-lr0.0003-s{seed}" / "provenance.json"
            file.write_text(json.dumps({"trainable_parameters": count}))
    lora, milora = record(folder)["arms"]
    assert lora["beside"] == {}
    # 2.0 to 0.95 beside 2.0 to 1.1
    assert milora["beside"]["lora"] == {"footprint": 0.06, "gain_ratio": {"validation_loss": pytest.approx(1.05 / 0.9)}}
    # MiCA's own: 27.4 to 39.2 beside 27.4 to 29.4
    assert ratio(27.4, 39.2, 29.4, [1.0, 3.0]) == {"t:acc": pytest.approx(5.9)}
    assert ratio(27.4, 39.2, 27.5, [-1.0, 1.2]) == {}  # LoRA's gain is not clear of zero
    assert ratio(57.8, 56.8, 57.3, [-0.9, -0.1]) == {}  # a loss is no gain
    assert ratio(57.8, 56.8, 57.3, [-0.9, -0.1], higher=False) == {"t:acc": pytest.approx(2.0)}
    assert ratio(27.4, 39.2, 29.4, None) == {}


def ratio(base, arm, other, interval, higher=True):
    made = [ArmResult(label, label, "base", "mica", 8, 1e-3, True) for label in ("mica", "lora")]
    for own, score in zip(made, (arm, other), strict=True):
        own.by_seed, own.higher_is_better = (
            {"t:acc": {0: score, 1: score + 1}, "amplification:q": {0: 1.0}},
            {"t:acc": higher},
        )
    made[1].by_seed["t:acc"][2] = 100.0  # a seed that the other has not
    against = {id(made[1]): {"base": {"t:acc": {"interval": interval}, "amplification:q": {"interval": [1.0, 2.0]}}}}
    bases = {"base": BaseResult({"t:acc": {0: base, 1: base + 1, 2: base}})}
    found = beside(made[0], made, bases, against, ["lora", "base"])
    assert found.keys() == {"lora"} and found["lora"]["footprint"] is None
    return found["lora"]["gain_ratio"]
