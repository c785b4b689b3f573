"""Run folders and comparison folders, read as files: no torch, no model, no recipe schema.

What is absent is None or empty. What is there and cannot be read is named in ``problems``, so that a report says so
instead of failing. Numbers that are not finite are None.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from milora.errors import MiloraError

RUN_MARK = "# The resolved recipe of a milora run."  # the first line of a run's recipe.yaml
# LABEL[@VARIANT][-rRANK]-lrRATE-sSEED, as a comparison names its runs; a rate may be matched to another method's.
NAMED = re.compile(
    r"(?P<label>.+?)(?:@(?P<variant>.+?))?(?:-r(?P<r>\d+))?-lr(?:(?P<lr>\d[\d.]*(?:e[-+]?\d+)?)|match_.+)-s(?P<seed>\d+)"
)
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff\ufdd0-\ufdef]")


@dataclass
class Run:
    """One run folder; ``failed`` is what a comparison wrote of a run that ended with an error."""

    name: str
    path: Path
    label: str = ""
    method: str = ""
    r: int | None = None
    learning_rate: float | None = None
    seed: int | None = None
    variant: str = "base"  # of the base model
    recipe: dict[str, Any] = field(default_factory=dict)
    recipe_text: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    forgetting: dict[str, Any] = field(default_factory=dict)
    analysis: dict[str, Any] = field(default_factory=dict)
    retention: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, Any] | None = None


@dataclass
class Material:
    """All that a report is made of.

    Attributes:
        title: the folder's name, or how many runs there are.
        runs: the runs in the order of their names, failed ones among them.
        record: comparison.json, empty without one.
        selection: selection.json.
        bases: what was measured of each variant of the base model, in the files of a run folder.
        grid: the text of comparison.yaml.
        problems: files that are there and could not be read.
    """

    title: str
    runs: list[Run]
    record: dict[str, Any] = field(default_factory=dict)
    selection: dict[str, Any] = field(default_factory=dict)
    bases: dict[str, Run] = field(default_factory=dict)
    grid: str = ""
    problems: list[str] = field(default_factory=list)


def read(folders: Sequence[str | Path]) -> Material:
    """Read one comparison folder, or one or several run folders.

    Raises:
        MiloraError: no folder, none of the two kinds, or a comparison among others.
    """
    paths = list(dict.fromkeys(Path(folder) for folder in folders))
    if not paths:
        raise MiloraError("report: got no folder, allowed a comparison folder, or one or several run folders")
    kinds = {path: _kind(path) for path in paths}
    for path, kind in kinds.items():
        if kind is None:
            raise MiloraError(f"report: {path} is no folder of a run or of a comparison (no recipe.yaml of one)")
    if "comparison" in kinds.values():
        if len(paths) > 1:
            raise MiloraError(f"report: got {len(paths)} folders, allowed one comparison folder, or run folders alone")
        return _read_comparison(paths[0])
    problems: list[str] = []
    names = [path.resolve().name for path in paths]
    # Two runs of one name are told apart by their folders.
    unique = [name if names.count(name) == 1 else str(path).strip("/") for path, name in zip(paths, names, strict=True)]
    runs = [_read_run(path, name, problems) for path, name in zip(paths, unique, strict=True)]
    return Material(runs[0].name if len(runs) == 1 else f"{len(runs)} runs", runs, problems=problems)


def _kind(path: Path) -> str | None:
    if (path / "comparison.yaml").is_file() or (path / "comparison.json").is_file():
        return "comparison"
    recipe = path / "recipe.yaml"
    if recipe.is_file() and _read_text(recipe, []).splitlines()[:1] == [RUN_MARK]:
        return "run"
    return "run" if (path / "failed.json").is_file() else None


def _read_comparison(path: Path) -> Material:
    problems: list[str] = []
    inside = sorted(p for p in (path / "runs").glob("*") if p.is_dir() and not p.name.startswith("."))
    return Material(
        title=path.resolve().name,
        runs=[_read_run(p, p.name, problems) for p in inside],
        record=read_json(path / "comparison.json", problems),
        selection=read_json(path / "selection.json", problems),
        bases=_bases(path / "base", problems),
        grid=_read_text(path / "comparison.yaml", problems),
        problems=problems,
    )


def _bases(path: Path, problems: list[str]) -> dict[str, Run]:
    """One variant's measurements lie in ``base/`` itself, those of several below it."""
    inside = sorted(p for p in path.glob("*") if p.is_dir() and p.name != "eval")
    folders = {p.name: p for p in inside} if inside and not (path / "eval").is_dir() else {"base": path}
    return {name: _read_run(folder, name, problems) for name, folder in folders.items() if folder.is_dir()}


def _read_run(path: Path, name: str, problems: list[str]) -> Run:
    text = _read_text(path / "recipe.yaml", problems)
    run = Run(name=name, path=path, recipe=_yaml(text, path / "recipe.yaml", problems), recipe_text=text)
    run.provenance = read_json(path / "provenance.json", problems)
    run.metrics = read_lines(path / "metrics.jsonl", problems)
    run.results = read_json(path / "eval" / "results.json", problems)
    run.forgetting = read_json(path / "forgetting.json", problems)
    run.analysis = read_json(path / "analysis.json", problems)
    run.retention = read_json(path / "retention.json", problems)
    if (path / "failed.json").is_file():
        run.failed = read_json(path / "failed.json", problems)
    _identify(run, NAMED.fullmatch(name))
    return run


def _identify(run: Run, named: re.Match[str] | None) -> None:
    """Method, rank, rate and seed, from the recipe or else from the name that a comparison gave."""
    recipe = run.recipe
    matched = run.provenance.get("learning_rate") or {}
    own = named.groupdict() if named else {}
    run.method = str(recipe.get("method") or own.get("label") or "unknown")
    run.label = own.get("label") or _label(run.method, recipe)
    run.variant = own.get("variant") or "base"
    run.r = _first_number(
        recipe.get("lora_r") if run.method != "full" else None, int(own["r"]) if own.get("r") else None
    )
    rate = float(own["lr"]) if own.get("lr") else None
    run.learning_rate = _first_number(recipe.get("learning_rate"), matched.get("resolved"), rate)
    run.seed = _first_number(recipe.get("seed"), int(own["seed"]) if own else None)


def _label(method: str, recipe: dict[str, Any]) -> str:
    settings = recipe.get("method_settings") or {}
    return method + (f" ({', '.join(f'{k}: {v}' for k, v in settings.items())})" if settings else "")


def _first_number(*values: Any) -> Any:
    return next((v for v in values if isinstance(v, int | float) and not isinstance(v, bool)), None)


def read_json(path: Path, problems: list[str]) -> dict[str, Any]:
    """A JSON object; empty when it is absent or, named in ``problems``, when it cannot be read."""
    text = _read_text(path, problems)
    if not text:
        return {}
    try:
        record = clean(json.loads(text))
    except (ValueError, RecursionError) as error:
        problems.append(f"{path.parent.name}/{path.name}: {error}")
        return {}
    if not isinstance(record, dict):
        problems.append(f"{path.parent.name}/{path.name}: holds no JSON object")
        return {}
    return record


def read_lines(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; a torn last line, as a kill leaves it, is no record."""
    records: list[dict[str, Any]] = []
    text = _read_text(path, problems)
    lines = text.split("\n")
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            record = clean(json.loads(line))
        except (ValueError, RecursionError) as error:
            if i < len(lines) - 1:
                problems.append(f"{path.parent.name}/{path.name}, line {i + 1}: {error}")
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def clean(value: Any) -> Any:
    """A JSON value without numbers that are not finite and without characters that a page must not hold."""
    if isinstance(value, str):
        return CONTROL.sub("\ufffd", value).encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [clean(v) for v in value]
    if isinstance(value, dict):
        return {clean(str(k)): clean(v) for k, v in value.items()}
    return value


def _read_text(path: Path, problems: list[str]) -> str:
    try:
        return clean(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else ""
    except OSError as error:
        problems.append(f"{path.parent.name}/{path.name}: {error.strerror}")
        return ""


def _yaml(text: str, path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        record = clean(yaml.safe_load(text)) if text else {}
    except yaml.YAMLError as error:
        problems.append(f"{path.parent.name}/{path.name}: {' '.join(str(error).split())}")
        return {}
    return record if isinstance(record, dict) else {}
