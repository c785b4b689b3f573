"""The tasks of the package, from their YAML files."""

from pathlib import Path
from typing import Any

import yaml
from markdown_tables import anchor, code, fence, plain, table


class Loader(yaml.SafeLoader):
    """Reads `!function a.b` as the name it is: nothing is imported."""


Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def files() -> dict[str, Path]:
    """Task and group names to their files."""
    from milora.tasks import folder

    found: dict[str, Path] = {}
    for path in sorted(folder().rglob("*.yaml")):
        content = read(path)
        name = content.get("task") if isinstance(content.get("task"), str) else content.get("group")
        if name:
            found[str(name)] = path
    return found


def read(path: Path) -> dict[str, Any]:
    """A task's file, with what it includes."""
    content: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader) or {}
    included = content.get("include")
    return (read(path.parent / included) if included else {}) | content


def tasks() -> str:
    """A table of all, then each file's own words and settings."""
    from milora.tasks import folder

    found = files()
    rows = [[anchor(n), _kind(read(p)), (read(p).get("metadata") or {}).get("version"), _scores(read(p))]
            for n, p in found.items()]  # fmt: skip
    parts = [table(["task", "kind", "version", "scores"], rows)]
    for name, path in found.items():
        text = path.read_text(encoding="utf-8")
        comment = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
        parts += [
            f"## {name}\n",
            plain(comment) + "\n",
            f"File: {code(path.relative_to(folder()))}\n",
            fence(text, "yaml"),
        ]
    return "\n".join(parts)


def _kind(content: dict[str, Any]) -> str:
    return "group" if "group" in content else str(content.get("output_type", ""))


def _scores(content: dict[str, Any]) -> str:
    metrics = content.get("metric_list") or content.get("aggregate_metric_list") or []
    filters = [f["name"] for f in content.get("filter_list") or [] if isinstance(f, dict)]
    return ", ".join(m["metric"] for m in metrics) + (f" ({', '.join(filters)})" if filters else "")
