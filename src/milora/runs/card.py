"""The model card of a run: its recipe, its provenance and its results, and nothing that was not measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from milora.recipes.schema import Recipe


def model_card(recipe: Recipe, provenance: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """Build the README.md of a run.

    Args:
        recipe: the resolved recipe.
        provenance: what ``milora.runs.provenance`` returned.
        results: what ``RunFolder.results`` returns; a missing measurement has no table.

    Returns:
        Markdown with the hub's YAML front matter. The license is the base model's and the data's, which
        this package does not know: it is left for the owner to state.
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


def _front_matter(recipe: Recipe) -> str:
    front: dict[str, Any] = {"library_name": "transformers" if recipe.method == "full" else "peft"}
    # The hub resolves base_model to a repository; the name of a folder on somebody's disk resolves to nothing.
    if not Path(recipe.model_name_or_path).exists():
        front["base_model"] = recipe.model_name_or_path
    if not Path(recipe.dataset).exists():
        front["datasets"] = [recipe.dataset]
    front["tags"] = ["milora", recipe.method]
    return f"---\n{_yaml(front)}---\n"


def _results(results: Mapping[str, Any]) -> str:
    tables = [_eval_table(results.get("eval", {})), _forgetting_table(results.get("forgetting", {}))]
    written = [table for table in tables if table]
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
