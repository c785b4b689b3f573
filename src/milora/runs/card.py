"""The model card of a run: its recipe, its provenance and its results, and nothing that was not measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from milora.data.files import hub_name
from milora.models.checkpoint import is_local
from milora.recipes import Recipe
from milora.runs.folder import RunFolder


def refresh_card(run: RunFolder) -> None:
    """Write the README.md of a run again from what lies in the folder now."""
    run.write_card(model_card(run.recipe(), run.provenance(), run.results()))


def model_card(recipe: Recipe, provenance: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """Build the README.md of a run.

    Args:
        recipe: the resolved recipe.
        provenance: what ``milora.runs.provenance`` returned.
        results: what ``RunFolder.results`` returns; a missing measurement has no table.

    Returns:
        Markdown with the hub's YAML front matter. The license depends on the base model and the data, which
        this package does not know: it is for the owner to state.
    """
    settings = recipe.model_dump(mode="json", exclude_defaults=True)
    parts = [
        _front_matter(recipe),
        f"# {recipe.name or Path(recipe.output_dir).name}\n",
        f"{recipe.description}\n" if recipe.description else "",
        f"`{recipe.model_name_or_path}` fine-tuned with `{recipe.method}` on `{recipe.dataset}`.\n",
        _results(results),
        _provenance(provenance),
        _details("Recipe (keys that differ from the defaults)", _yaml(settings)),
    ]
    return "\n".join(part for part in parts if part)


def measured(value: float | None, stderr: float | None) -> str:
    """A number with its standard error, as a table shows it; ``-`` for what was not measured."""
    if value is None:
        return "-"
    return f"{value:.4f}" if stderr is None else f"{value:.4f} ± {stderr:.4f}"


def _front_matter(recipe: Recipe) -> str:
    front: dict[str, Any] = {"library_name": "transformers" if recipe.method == "full" else "peft"}
    # The hub resolves base_model to a repository; the name of a folder on somebody's disk resolves to nothing.
    if not is_local(recipe.model_name_or_path):
        front["base_model"] = recipe.model_name_or_path
    if name := hub_name(recipe.dataset):
        front["datasets"] = [name]
    front["tags"] = list(dict.fromkeys(["milora", recipe.method]))
    return f"---\n{_yaml(front)}---\n"


def _eval_table(results: Mapping[str, Any]) -> str:
    header = ["task", "metric", "rows", "base", "tuned", "difference"]
    rows = [
        [
            row["task"],
            row["metric"] + ("" if row["filter"] == "none" else f" ({row['filter']})"),
            str(row["n"]),
            *(measured(row[side], row[f"{side}_stderr"]) for side in ("base", "tuned", "difference")),
        ]
        for row in results.get("comparison", [])
    ]
    return _table(header, rows) if rows else ""


def _forgetting_table(results: Mapping[str, Any]) -> str:
    names = {"cross_entropy": "cross-entropy to the base", "floor": "floor (base's entropy)", "kl": "KL"}
    measured = {title: results[name] for name, title in names.items() if results.get(name) is not None}
    if not measured:
        return ""
    row = [f"{value:.4f}" for value in measured.values()] + [str(results.get("tokens", "-"))]
    return "Forgetting, nats per token:\n\n" + _table([*measured, "tokens"], [row])


def _analysis_table(results: Mapping[str, Any]) -> str:
    summary = results.get("summary")
    if not summary:
        return ""
    r = results["r"]
    header = ["module type", "matrices", "relative change", "amplification", f"phi top {r}", f"phi bottom {r}"]
    rows = [
        [name, str(m["matrices"]), *(_short(v) for v in (m["relative"], m["amplification"], *_phi_left(m)))]
        for name, m in {**summary["by_type"], "all": summary}.items()
    ]
    said = "Change of the weights, means over matrices (phi: of the change's left directions with W's):"
    return f"{said}\n\n" + _table(header, rows)


def _phi_left(means: Mapping[str, Any]) -> list[float | None]:
    return [means["phi"]["left"][part] for part in ("top", "bottom")]


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _results(results: Mapping[str, Any]) -> str:
    named = (("eval", _eval_table), ("forgetting", _forgetting_table), ("analysis", _analysis_table))
    written = [table for name, build in named if (table := build(results.get(name, {})))]
    return "## Results\n\n" + "\n".join(written) if written else ""


def _provenance(provenance: Mapping[str, Any]) -> str:
    if not provenance:
        return ""
    return "## Provenance\n\n" + _details("Versions, machine, seeds and hashes", _yaml(dict(provenance)))


def _details(summary: str, text: str) -> str:
    return f"<details>\n<summary>{summary}</summary>\n\n```yaml\n{text}```\n\n</details>\n"


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
