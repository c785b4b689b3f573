"""One API page for each room of the package that says what it offers (`__all__`)."""

import ast
from pathlib import Path

from markdown_tables import prose

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "milora"
# Rooms whose modules are asked for by name.
MODULES = {"training": ("training.train",), "models": ("models.load", "models.quantised"), "recipes": ("recipes.keys",)}


def offered(init: Path) -> list[str]:
    """The names in a package's `__all__`, read and not run."""
    for node in ast.parse(init.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return list(ast.literal_eval(node.value))
    return []


def rooms() -> dict[str, list[str]]:
    """Rooms with something to offer: name to names."""
    found = {path.parent.name: offered(path) for path in sorted(PACKAGE.glob("*/__init__.py"))}
    return {room: names for room, names in found.items() if names or room in MODULES}


def navigation() -> dict[str, str]:
    """Titles and pages, as the navigation takes them."""
    return {f"milora.{room}": f"api/{room}.md" for room in rooms()}


def pages() -> dict[str, str]:
    """A page a room, and one that lists them."""
    made = {f"api/{room}.md": _page(room, names) for room, names in rooms().items()}
    lines = [f"- [milora.{room}]({room}.md): {_summary(room)}" for room in rooms()]
    top = "`milora` itself offers `SpectralConfig`, `load_adapter`, `export_lora`, `merge_adapter` and `MiloraError`."
    return {**made, "api/index.md": "# API\n\n" + top + "\n\n" + "\n".join(lines) + "\n"}


def _summary(room: str) -> str:
    docstring = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))) or ""
    return prose(docstring.strip().splitlines()[0] if docstring else "")


def _page(room: str, names: list[str]) -> str:
    docstring = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))) or ""
    entries = [f"::: milora.{room}.{name}" for name in names if not name.startswith("_")]
    entries += [f"::: milora.{module}" for module in MODULES.get(room, ())]
    return f"# milora.{room}\n\n{prose(docstring)}\n\n" + "\n\n".join(entries) + "\n"
