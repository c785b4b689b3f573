"""The house rules, judged over the source itself."""

import ast
import re
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "milora"
MODULES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

# A room may import the rooms of the rows above its own, and itself.
ORDER = [
    ["linalg"], ["methods"], ["models"], ["decompositions"], ["adapters"], ["data"], ["tasks"],
    ["recipes"], ["runs"], ["training", "evaluation", "analysis"], ["comparison"], ["report"], ["demo"], ["cli"],
]  # fmt: skip
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
FORBIDDEN = {"utils", "util", "helpers", "helper", "common", "misc"}


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> set[str]:
    """The dotted names that a module imports, wherever in the file; relative ones resolved."""
    package = ["milora", *path.relative_to(PACKAGE).parent.parts]
    names: set[str] = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def test_every_module_is_read():
    folders = [p for p in PACKAGE.iterdir() if p.is_dir() and any(p.glob("*.py"))]
    assert len(MODULES) == sum(1 for _ in PACKAGE.glob("*.py")) + sum(
        1 for folder in folders for _ in folder.rglob("*.py")
    )
    assert len(MODULES) >= 60
    assert {folder.name for folder in folders} == set(RANK)


def test_rooms_import_only_rooms_before_them():
    read, edges, wrong = 0, 0, []
    for path in MODULES:
        read += 1
        room = path.relative_to(PACKAGE).parts[0]
        if room not in RANK:
            continue
        for name in imported(path):
            parts = name.split(".")
            if parts[0] != "milora" or len(parts) < 2 or parts[1] not in RANK or parts[1] == room:
                continue
            edges += 1
            if RANK[parts[1]] >= RANK[room]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert read == len(MODULES)
    assert edges >= 40
    assert not wrong, "\n".join(wrong)


def test_only_adapters_imports_peft():
    # A script that runs in a process of its own, to show that an export needs nothing but PEFT.
    alone = PACKAGE / "demo" / "stock_peft.py"
    importing = {path for path in MODULES if any(name.split(".")[0] == "peft" for name in imported(path))}
    assert alone in importing
    assert {path.relative_to(PACKAGE).parts[0] for path in importing - {alone}} == {"adapters"}


def test_no_file_has_a_name_that_says_nothing():
    named = [p for p in [*PACKAGE.rglob("*"), *(ROOT / "tests").rglob("*")] if "__pycache__" not in p.parts]
    assert len(named) > len(MODULES) + len(TESTS)
    assert not [p for p in named if p.stem.removeprefix("test_").lower() in FORBIDDEN]


def test_files_stay_under_300_lines():
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert len(sizes) == len(MODULES)
    assert not {str(path.relative_to(ROOT)): size for path, size in sizes.items() if size >= 300}


def test_functions_stay_under_40_lines_of_code():
    counted, long = 0, []
    for path in MODULES:
        lines = path.read_text(encoding="utf-8").splitlines()
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                counted += 1
                size = code_lines(node, lines)
                if size >= 40:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {size}")
    assert counted >= 200
    assert not long, "\n".join(long)


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> int:
    """The lines of a function's body that are neither docstring, comment nor blank."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    if not body:
        return 0
    span = lines[body[0].lineno - 1 : function.end_lineno]
    return sum(1 for line in span if line.strip() and not line.strip().startswith("#"))


def test_architecture_table_names_the_rooms():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rooms = re.findall(r"^\| `(\w+)/` \|", text, flags=re.MULTILINE)
    assert rooms == list(RANK)
    assert all((PACKAGE / room).is_dir() for room in rooms)


def tree(readme: str) -> set[str]:
    """The paths in the README's tree: two spaces of indent per level, a name, then what it is."""
    block = re.search(r"```text\n(src/milora/.*?)```", readme, flags=re.DOTALL)
    assert block, "README.md has no tree"
    paths, above = set(), []
    for line in block[1].splitlines():
        indent = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        above = [*above[:indent], name.rstrip("/")]
        assert "/".join(above) not in paths, f"{name}: stands twice"
        paths.add("/".join(above))
        assert len(line.split()) > 1 or indent == 0, f"{name}: a line without its description"
    return paths


def test_readme_tree_is_true():
    listed = tree((ROOT / "README.md").read_text(encoding="utf-8"))
    unlisted = {"__init__.py", "py.typed"}
    files = {p for p in PACKAGE.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    there = {p.relative_to(ROOT).as_posix() for p in files if p.name not in unlisted}
    there |= {p.parent.relative_to(ROOT).as_posix() for p in files}
    assert len(listed) >= 100
    assert not there - listed, "in the package and not in the tree"
    assert not listed - there, "in the tree and not in the package"


def test_licence_is_whole():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_wheel_holds_every_file_of_the_package(tmp_path: Path):
    builder = pytest.importorskip("hatchling.builders.wheel")
    wheel = next(iter(builder.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])))
    held = set(zipfile.ZipFile(wheel).namelist())
    source = [p for p in PACKAGE.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    for room in ("comparison", "recipes", "tasks"):
        assert [p for p in source if p.suffix == ".yaml" and p.relative_to(PACKAGE).parts[0] == room], room
    assert len(source) > len(MODULES)
    missing = {p.relative_to(PACKAGE.parent).as_posix() for p in source} - held
    assert not missing
