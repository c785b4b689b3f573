"""The tables of the book experiment, from the retention.json of its runs: benchmarks/book.py --write."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from milora.comparison.grid import Grid
from milora.comparison.plan import Job
from milora.comparison.retention import FILE
from milora.comparison.statistics import Point, matched, mean_and_stderr, paired_difference
from milora.models.atomic import write_text
from milora.runs import RunFolder, provenance
from milora.runs.folder import read_json, write_json

# Name of a metric in the tables: how it is found in a row.
SCORES = {"cloze": ("milora_book_cloze", "acc"), "questions": ("milora_questions", "acc_norm"),
          "letters": ("milora_book_mcq_letters", "acc")}  # fmt: skip
ASKED = ("cloze", "questions")
ARM = ("arm", "rate", "seeds", "parameters", "wording NLL", "accuracy", "KL")
PAIR = ("arms", "seeds", "wording NLL", "KL", "KL", "ratio", "95 %")
LOSS = "wording_nll"  # what recall is matched by
AGREED = {True: ", every seed agrees.", False: ", the seeds do not agree."}
PAIRS = (("mica", "lora"), ("milora", "lora"), ("full", "lora"), ("mica_random", "lora"), ("mica_top", "lora"),
         ("mica_random", "mica"), ("mica_top", "mica"))  # fmt: skip


def write(output: Path, grid: Grid, jobs: Sequence[Job], about: Mapping[str, Any]) -> str:
    """Write OUTPUT.json and OUTPUT.md from the runs that are done; returns the Markdown."""
    arms = gather(jobs)
    record = {
        "about": dict(about),
        "grid": grid.model_dump(mode="json", exclude={"output_dir", "base", "measure", "local_files"}),
        "base": next((arm["base"] for arm in arms if arm["method"] != "full"), None),
        "arms": arms,
        "matched": _pairs(arms, chosen=True),
        "matched_at_other_rates": _pairs(arms, chosen=False),
        "provenance": provenance(seeds={"seeds": sorted({seed for arm in arms for seed in arm["seeds"]})}),
    }
    record["verdict"] = verdict(record["matched"])
    text = markdown(record)
    write_json(output.with_suffix(".json"), record)
    write_text(output.with_suffix(".md"), text)
    return text


def gather(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """One record for each arm and rate: its metrics by step, over the seeds that are done."""
    found: dict[tuple[str, Any], list[Job]] = {}
    for job in jobs:
        if (Path(job.recipe.output_dir) / "done.json").is_file():
            found.setdefault((job.cell.arm.label, job.learning_rate), []).append(job)
    arms = [_arm(done) for done in found.values()]
    for arm in arms:
        own = [a for a in arms if a["label"] == arm["label"]]
        arm["chosen"] = arm is min(own, key=lambda a: a["metrics"][LOSS]["mean"])
    return arms


def _arm(done: Sequence[Job]) -> dict[str, Any]:
    by_seed = {job.seed: read_json(Path(job.recipe.output_dir) / FILE) for job in done}
    job = done[0]
    steps: dict[int, dict[str, Any]] = {}
    for seed, record in sorted(by_seed.items()):
        for row in record["rows"]:
            step = steps.setdefault(row["step"], {"step": row["step"], "epoch": row["epoch"], "metrics": {}})
            for name, value in metrics(row).items():
                step["metrics"].setdefault(name, {"by_seed": {}})["by_seed"][str(seed)] = value
    for step in steps.values():
        for values in step["metrics"].values():
            values["mean"], values["stderr"] = mean_and_stderr(list(values["by_seed"].values()))
    ordered = [steps[step] for step in sorted(steps)]
    run = RunFolder(job.recipe.output_dir).provenance()
    return {
        "label": job.cell.arm.label, "method": job.recipe.method, "settings": job.recipe.method_settings,
        "learning_rate": job.learning_rate,
        "r": job.cell.r, "trainable_parameters": run.get("trainable_parameters"), "seeds": sorted(by_seed),
        "base": ordered[0]["metrics"], "steps": ordered[1:], "metrics": ordered[-1]["metrics"],
    }  # fmt: skip


def metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row by name; what was not measured at this step is absent."""
    found = {
        "wording_nll": row["losses"]["wording"],
        "wording_accuracy": row["accuracies"]["wording"],
        "kl": row["forgetting"]["kl"],
    }
    scores = {(score["task"], score["metric"]): score["value"] for score in row["scores"]}
    return found | {name: scores[key] for name, key in SCORES.items() if key in scores}


def _pairs(arms: Sequence[Mapping[str, Any]], *, chosen: bool) -> list[dict[str, Any]]:
    """The pairs along the epochs of each arm's chosen rate, or of its best rate but that one."""
    best: dict[str, Mapping[str, Any]] = {}
    for arm in sorted(arms, key=lambda arm: arm["metrics"][LOSS]["mean"]):
        if arm["chosen"] == chosen:
            best.setdefault(arm["label"], arm)
    return [_pair(best, a, b) for a, b in PAIRS if a in best and b in best]


def _pair(arms: Mapping[str, Mapping[str, Any]], a: str, b: str) -> dict[str, Any]:
    """KL of two arms at equal recall, along the epochs of one rate of each, and their differences at the end."""
    ends = [arms[label]["metrics"] for label in (a, b)]
    names = [name for name in ("wording_nll", "kl", *SCORES) if name in ends[0] and name in ends[1]]
    differences = {name: paired_difference(ends[0][name]["by_seed"], ends[1][name]["by_seed"]) for name in names}
    found = matched(*(_paths(arms[label]) for label in (a, b)))
    rates = [arms[label]["learning_rate"] for label in (a, b)]
    return {"a": a, "b": b, "learning_rates": rates, "at_the_end": differences, "path": "epochs", "loss": LOSS, **found}


def _paths(arm: Mapping[str, Any]) -> dict[int, list[Point]]:
    paths: dict[int, list[Point]] = {}
    for values in [arm["base"], *(step["metrics"] for step in arm["steps"])]:
        for seed, loss in values["wording_nll"]["by_seed"].items():
            paths.setdefault(int(seed), []).append(Point(loss, values["kl"]["by_seed"][seed]))
    return paths


def verdict(pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Whether a gain of MiCA over LoRA comes from the frozen orthonormal factor rather than from the minor directions.

    The gain is less KL at equal recall. It comes from the frozen factor if random left vectors have it as well, and not
    less of it; from the minor directions if MiCA's KL is below that of random vectors. By the mean over seeds, with
    whether every seed agrees. How much of the gain random vectors keep is log(KL_random / KL_lora) / log(KL_mica /
    KL_lora).
    """
    found = {(pair["a"], pair["b"]): pair for pair in pairs if pair["comparable"] and pair["ratio"] is not None}
    needed = [("mica", "lora"), ("mica_random", "lora"), ("mica_random", "mica")]
    if not all(key in found for key in needed):
        return {"claim": None, "why": "not measured"}
    ratios = {f"{a}/{b}": found[a, b]["ratio"] for a, b in needed}
    gain, random_gain = ratios["mica/lora"] < 1, ratios["mica_random/lora"] < 1
    no_worse = ratios["mica_random/mica"] <= 1
    signs = {row["kl_a"] <= row["kl_b"] for row in found["mica_random", "mica"]["by_seed"].values()}
    claim = "no gain" if not gain and not random_gain else "confirmed" if random_gain and no_worse else "refuted"
    kept = math.log(ratios["mica_random/lora"]) / math.log(ratios["mica/lora"]) if gain else None
    return {
        "claim": claim,
        "kl_ratios_at_equal_recall": ratios,
        "random_keeps_of_the_gain": kept,
        "every_seed_agrees": len(signs) == 1,
    }


def markdown(record: Mapping[str, Any]) -> str:
    """The tables for people."""
    about, base = record["about"], record["base"] or {}
    lines = [
        f"Excerpt: {about['paragraphs']} paragraphs, {about['tokens']} tokens; {about['mcq']} questions, "
        f"{about['cloze']} sentences with a blank. Means and standard errors over seeds. Base: "
        + ", ".join(f"{name} {values['mean']:.3f}" for name, values in base.items())
        + ".",
        "",
        "At the end (letters: mean of 8 orders of the choices). * the compared rate, of least wording NLL.",
        "",
        *_table([*ARM, *SCORES], map(_end, record["arms"])),
        "",
        "By epoch at that rate: wording accuracy / KL.",
        "",
        *_epochs(chosen := [arm for arm in record["arms"] if arm["chosen"]], "wording_accuracy", "kl"),
        "",
        "By epoch at that rate, over the seeds whose epochs were asked: questions / sentences with a blank.",
        "",
        *_epochs(chosen, "questions", "cloze"),
        "",
        "KL at equal recall of the wording (the least wording NLL that both reach), and differences at the end.",
        "",
        *_table([*PAIR, *ASKED], map(_matched, record["matched"])),
        "",
        *_other(record["matched_at_other_rates"]),
        *_concluded(record["verdict"]),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _concluded(found: Mapping[str, Any]) -> list[str]:
    said = (
        "The gain comes from the frozen orthonormal factor alone, by the rule set beforehand (random vectors have all"
        f" of it): {found['claim'] or found['why']}" + AGREED.get(found.get("every_seed_agrees"), ".")
    )
    kept = found.get("random_keeps_of_the_gain")
    return [said] if kept is None else [said, f"Random vectors keep {kept:.0%} of MiCA's gain over LoRA, in log KL."]


def _other(pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    if not pairs:
        return []
    return ["The same at the other rate of each arm.", "", *_table([*PAIR, *ASKED], map(_matched, pairs)), ""]


def _end(arm: Mapping[str, Any]) -> list[str]:
    end = arm["metrics"]
    values = [_said(end.get(name)) for name in ("wording_nll", "wording_accuracy", "kl", *SCORES)]
    star = " *" if arm["chosen"] else ""
    count = arm["trainable_parameters"]
    rate, size = f"{arm['learning_rate']:g}{star}", f"{count:,}" if count else "-"
    return [arm["label"], rate, str(len(arm["seeds"])), size, *values]


def _epochs(arms: Sequence[Mapping[str, Any]], *names: str) -> list[str]:
    epochs = sorted({step["epoch"] for arm in arms for step in arm["steps"]})
    assert all(a < b for a, b in pairwise(epochs))
    rows = []
    for arm in arms:
        found = {step["epoch"]: step["metrics"] for step in arm["steps"]}
        measured = [[found[e][name]["mean"] for name in names if name in found.get(e, {})] for e in epochs]
        rows.append([arm["label"], *(" / ".join(f"{mean:.2f}" for mean in means) or "-" for means in measured)])
    return _table(["arm", *(f"{e:g}" for e in epochs)], rows)


def _matched(pair: Mapping[str, Any]) -> list[str]:
    arms = f"{pair['a']} / {pair['b']}"
    ends = [pair["at_the_end"].get(name) for name in ASKED]
    tail = ["-" if end is None else f"{end['difference']:+.3f}" for end in ends]
    if not pair["comparable"]:
        return [arms, "0", *["-"] * 5, *tail]
    bounds = pair["interval"]
    ratio = "-" if pair["ratio"] is None or not math.isfinite(pair["ratio"]) else f"{pair['ratio']:.2f}"
    interval = f"{bounds[0]:.2f}-{bounds[1]:.2f}" if bounds else "-"
    numbers = [f"{pair[name]:.3f}" for name in ("validation_loss", "kl_a", "kl_b")]
    return [arms, str(pair["seeds"]), *numbers, ratio, interval, *tail]


def _said(values: Mapping[str, Any] | None) -> str:
    if values is None:
        return "-"
    return f"{values['mean']:.3f}" + ("" if values["stderr"] is None else f" ± {values['stderr']:.3f}")


def _table(header: Sequence[str], rows: Any) -> list[str]:
    return ["| " + " | ".join(line) + " |" for line in [list(header), ["---"] * len(header), *rows]]
