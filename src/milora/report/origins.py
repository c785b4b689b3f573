"""What was run: inputs by their hashes, versions, hardware, recipes; and what failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from milora.report.arms import Arm
from milora.report.document import Cell, Code, Folded, Section, Table, Text, count_cell, missing, rate, text_cell
from milora.report.folders import Material, Run

SHOWN = 12  # hexadecimal digits of a hash in a table
OWN = {"output_dir", "name", "description", "sources"}  # keys that differ for no reason of the experiment


def section(material: Material) -> Section | None:
    """Inputs, software and machine once for all runs that share them, then each run, then the recipes."""
    runs = material.runs
    blocks: list[Any] = []
    facts = _facts(material)
    if facts:
        header = [("what", False), ("value", False), ("runs", True)]
        blocks.append(Table("facts", "Inputs, software and machine", header, facts))
    header = [("run", False), ("state", False), ("method", False), ("r", True), ("learning rate", True), ("seed", True)]
    header += [("steps", True), ("started", False)]
    rows = [_row(run) for run in runs]
    if rows:
        blocks.append(Folded(f"All runs ({len(rows)})", [Table("runs-table", "Runs", header, rows)]))
    if differing := _differing(runs):
        blocks.append(Folded("Recipe keys in which the runs differ", [differing]))
    if material.grid:
        blocks.append(Code("The grid (comparison.yaml)", material.grid))
    recipes: list[Any] = [Code(f"Recipe of {run.name}", run.recipe_text) for run in runs if run.recipe_text]
    blocks += recipes if len(recipes) < 2 else [Folded(f"All recipes ({len(recipes)})", recipes)]
    if settings := material.record.get("settings"):
        blocks.append(Code("Settings of the comparison", _yaml(settings)))
    return Section("origins", "What was run", blocks) if blocks else None


def _facts(material: Material) -> list[list[Cell]]:
    """Each fact with the number of runs that it is true of."""
    counted: dict[tuple[str, str], int] = {}
    records = [(run.recipe, run.provenance) for run in material.runs if run.recipe or run.provenance]
    if not records:
        records = [({}, material.record.get("provenance") or {})]
    for recipe, provenance in records:
        for name, value in _facts_of(recipe, provenance):
            counted[name, value] = counted.get((name, value), 0) + 1
    order = list(dict.fromkeys(name for name, _ in counted))
    return [
        [text_cell(name), text_cell(value), count_cell(n)]
        for (name, value), n in sorted(counted.items(), key=lambda item: (order.index(item[0][0]), -item[1]))
    ]


def _facts_of(recipe: Mapping[str, Any], provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    hardware = provenance.get("hardware") or {}
    memory = hardware.get("memory")
    facts = {
        "base model": recipe.get("model_name_or_path"),
        "base weights (SHA-256)": (provenance.get("base_fingerprint") or "")[:SHOWN],
        "data set": recipe.get("dataset"),
        "training rows (SHA-256)": (provenance.get("data_hash") or "")[:SHOWN],
        "processor": hardware.get("cpu") and f"{hardware['cpu']}, {hardware.get('cores')} cores",
        "memory": memory and f"{memory / 2**30:.1f} GiB",
        "accelerators": ", ".join(hardware.get("gpus") or []) or ("none" if hardware else None),
        "commit": provenance.get("commit") and str(provenance["commit"]).replace("-dirty", " (with changes)"),
        "versions": ", ".join(f"{k} {v}" for k, v in (provenance.get("versions") or {}).items()),
    }
    return [(name, str(value)) for name, value in facts.items() if value]


def _row(run: Run) -> list[Cell]:
    steps = max((int(r["step"]) for r in run.metrics if isinstance(r.get("step"), int | float)), default=None)
    state = "failed" if run.failed is not None else "done" if run.provenance else "not finished"
    return [
        text_cell(run.name),
        Cell(state, state, mark="bad" if run.failed is not None else ""),
        text_cell(run.method),
        count_cell(run.r),
        Cell(rate(run.learning_rate), run.learning_rate) if run.learning_rate is not None else missing(),
        count_cell(run.seed),
        count_cell(steps),
        text_cell(run.provenance.get("time")),
    ]


def _differing(runs: Sequence[Run]) -> Table | None:
    with_recipe = [run for run in runs if run.recipe]
    keys = dict.fromkeys(k for run in with_recipe for k in run.recipe if k not in OWN)
    differ = [k for k in keys if len({repr(run.recipe.get(k)) for run in with_recipe}) > 1]
    if not differ or len(with_recipe) < 2:
        return None
    rows = [[text_cell(run.name), *(text_cell(_plain(run.recipe.get(k))) for k in differ)] for run in with_recipe]
    return Table(
        "differing", "Recipe keys in which the runs differ", [("run", False), *((k, False) for k in differ)], rows
    )


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}: {_plain(v)}" for k, v in value.items()) or "{}"
    return ", ".join(map(_plain, value)) or "[]" if isinstance(value, list) else "null" if value is None else str(value)


def _yaml(value: Any) -> str:
    import yaml

    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)


def failures(material: Material, arms: Sequence[Arm]) -> dict[str, tuple[str, str]]:
    """Run -> (where, why) of those that ended with an error, and of those that a comparison misses."""
    found = {
        r.name: (str(r.failed.get("where") or ""), str(r.failed.get("error") or "")) for r in material.runs if r.failed
    }
    for arm in arms:
        for seed, error in arm.errors.items():
            name = Path(str(arm.places.get(seed) or f"{arm.name}, seed {seed}")).name
            found.setdefault(name, ("", str(error)))
    return found


def failed(material: Material, arms: Sequence[Arm]) -> Section | None:
    """The runs that ended with an error, and files that could not be read."""
    rows = [
        [text_cell(name), text_cell(where), text_cell(why)] for name, (where, why) in failures(material, arms).items()
    ]
    blocks: list[Any] = []
    if rows:
        header = [("run", False), ("where", False), ("error", False)]
        blocks += [Text("These runs are in no mean."), Table("failed-table", "Failed runs", header, rows)]
    if material.problems:
        unreadable = [[text_cell(problem)] for problem in dict.fromkeys(material.problems)]
        blocks.append(Table("problems", "Files that could not be read", [("file and reason", False)], unreadable))
    return Section("failed", "Failed runs" if rows else "Unreadable files", blocks) if blocks else None
