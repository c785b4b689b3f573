"""Recipe keys and shipped recipes, from the schema and the files."""

import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from markdown_tables import anchor, code, fence, plain, table
from pydantic import BaseModel

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "milora"


def keys() -> str:
    """Every key with its type, default and description, in the groups in which they are declared."""
    from milora.recipes import Recipe
    from milora.recipes import keys as declared

    parts: list[str] = []
    groups = [group for group in vars(declared).values() if isinstance(group, type) and group in Recipe.__mro__]
    seen: set[str] = set()
    for group in groups:
        own = {n: f for n, f in Recipe.model_fields.items() if n in group.__annotations__ and n not in seen}
        seen |= set(own)
        if own:
            parts += [_heading(group), _keys_table(own)]
    missing = set(Recipe.model_fields) - seen
    if missing:
        raise RuntimeError(f"recipe keys in no group: {', '.join(sorted(missing))}")
    return "\n".join(parts)


def grid_keys() -> str:
    """Every key of a grid, the part of it that holds it above."""
    from milora.comparison import grid

    parts: list[str] = []
    for part in (grid.Grid, grid.Arm, grid.Variant, grid.Selection, grid.Measure, grid.ForgettingOn, grid.AnalysisOf,
                 grid.Check):  # fmt: skip
        parts += [_heading(part), _keys_table(part.model_fields)]
    return "\n".join(parts)


def _heading(group: type) -> str:
    return f"## {plain((group.__doc__ or group.__name__).strip().splitlines()[0].rstrip('.'))}\n"


def _keys_table(fields: dict[str, Any]) -> str:
    rows = [[code(n), type_name(f.annotation), _default(f), plain(f.description or "")] for n, f in fields.items()]
    return table(["key", "type", "default", "meaning"], rows)


def type_name(annotation: Any) -> str:
    """A type as people write it: allowed values, or names joined by "or"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return "null"
    if origin is Literal:
        return ", ".join(code(a) for a in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(type_name(a) for a in arguments)
    if origin in (list, tuple, set):
        return f"list of {type_name(arguments[0])}"
    if origin is dict:
        return f"mapping of {type_name(arguments[0])} to {type_name(arguments[1])}"
    return {"Any": "any value"}.get(
        getattr(annotation, "__name__", ""), getattr(annotation, "__name__", str(annotation))
    )


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        return "its defaults"
    return (
        ""
        if default is None
        else code({True: "true", False: "false"}.get(default, default) if isinstance(default, bool) else default)
    )


def other_names() -> str:
    """What other tools call a key: refused, with the name it has here."""
    from milora.recipes.load import OTHER_NAMES

    return table(["elsewhere", "here"], [[code(theirs), code(ours)] for theirs, ours in OTHER_NAMES.items()])


def grids() -> dict[str, Path]:
    """The grids of `milora compare` that come with the package, if there are any."""
    return {path.stem: path for path in sorted((PACKAGE / "comparison" / "grids").glob("*.yaml"))}


def grids_page() -> dict[str, str]:
    """A page of them, by its path."""
    found = {name: path.read_text(encoding="utf-8") for name, path in grids().items()}
    parts = ["# Grids\n", "Comparisons that come with the package. `milora compare NAME` runs one.\n"]
    parts += [f"## {name}\n\n{fence(text, 'yaml')}" for name, text in found.items()]
    return {"reference/grids.md": "\n".join(parts)} if found else {}


def shipped() -> str:
    """The recipes of the package: what each is, and the file as it stands."""
    from milora.recipes import load_recipe, recipes

    found = {name: (path, load_recipe(name)) for name, path in recipes().items()}
    parts = [table(["recipe", "what it is"], [[anchor(n), plain(r.description or "")] for n, (_, r) in found.items()])]
    for name, (path, _) in found.items():
        parts += [f"## {name}\n", fence(path.read_text(encoding="utf-8"), "yaml")]
    return "\n".join(parts)
