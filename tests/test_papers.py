"""PAPERS.md: what it names is there, what is shipped is named in it, its numbers stand in the files that it links."""

import json
import re
from pathlib import Path

from milora.adapters.build import method_names
from milora.cli.app import app
from milora.comparison.load import grids
from milora.recipes import recipes
from milora.tasks import folder

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "PAPERS.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`([^`]+)`", TEXT)
SECTIONS = {"Experiments": 22, "Systems and tools": 9, "Methods": 21, "Models": 6, "Data": 9, "Measurements": 13}


def rows(section: str) -> list[list[str]]:
    """The rows of a section's table, cell by cell."""
    part = TEXT.split(f"\n## {section}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def task_names() -> set[str]:
    files = [file.read_text(encoding="utf-8") for file in folder().rglob("*.yaml")]
    return {name for text in files for name in re.findall(r"^(?:task|group): (\w+)$", text, flags=re.MULTILINE)}


def test_every_section_has_its_rows():
    found = {section: len(rows(section)) for section in SECTIONS}
    assert found == SECTIONS
    assert all(all(row) for section in SECTIONS for row in rows(section))


def test_whatever_is_named_is_there():
    verbs = {command.name for command in app.registered_commands} | {group.name for group in app.registered_groups}
    names, tasks = {*recipes(), *grids(), *method_names()}, task_names()
    assert len(tasks) >= 15 and len(verbs) >= 15
    missing, seen = [], 0
    for word in NAMED:
        seen += 1
        if word.startswith("milora "):
            there = word.split()[1] in verbs
        elif word.startswith("milora_"):
            there = word in tasks
        elif "/" in word:
            there = (ROOT / word).exists() or (ROOT / "src" / "milora" / word).exists()
        else:
            there = word in names
        missing += [] if there else [word]
    assert seen >= 120
    assert not missing


def test_every_shipped_recipe_and_grid_and_task_is_named():
    words = set(re.findall(r"[\w.-]+\w", TEXT))
    assert not set(grids()) - words
    assert not set(recipes()) - {"demo"} - words
    assert not task_names() - words
    assert len(grids()) >= 25


def test_numbers_stand_in_the_files_that_are_linked():
    compared = 0
    for row in rows("Experiments"):
        links = re.findall(r"\]\((benchmarks/results/[^)]+)\)", row[3])
        for link in links:
            assert (ROOT / link).is_file(), link
        numbers = re.findall(r"\d+\.\d+", re.sub(r"\[.*?\]\(.*?\)", "", row[3]))
        written = "".join((ROOT / link).read_text(encoding="utf-8") for link in links)
        for number in numbers:
            compared += 1
            assert re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", written), f"{row[0]}: {number}"
    assert compared >= 10


# What a row calls an arm: the labels that it has in the result files.
ARMS = {
    "LoRA": {"lora"}, "PiSSA": {"pissa"}, "MiLoRA": {"milora"}, "MiCA": {"mica"}, "full": {"full"},
    "principal": {"pissa"}, "random": {"random", "mica_random"}, "top": {"mica_top"}, "minor": {"milora"},
}  # fmt: skip


def misplaced(result: str) -> tuple[list[str], int]:
    """Numbers behind an arm's name that no metric of that arm has in the linked comparison, and how many were seen."""
    links = re.findall(r"\]\((benchmarks/results/[^)]+)\.md\)", result)
    files = [ROOT / f"{link}.json" for link in links]
    arms = [arm for file in files for arm in json.loads(file.read_text(encoding="utf-8")).get("arms", [])]
    wrong, seen = [], 0
    for name, values in re.findall(rf"\b({'|'.join(ARMS)}) (\d\.\d+(?: / \d\.\d+)*)", result if arms else ""):
        means = [m["mean"] for arm in arms if arm["label"] in ARMS[name] for m in arm["metrics"].values()]
        for value in values.split(" / "):
            seen += 1
            near = 0.5 * 10.0 ** -len(value.partition(".")[2]) + 1e-9
            wrong += [] if any(abs(mean - float(value)) <= near for mean in means) else [f"{name} {value}"]
    return wrong, seen


def test_numbers_are_of_the_arms_that_they_stand_behind():
    found = [misplaced(row[3]) for row in rows("Experiments")]
    assert not [wrong for wrong, _ in found if wrong]
    assert sum(seen for _, seen in found) >= 25
    swapped = next(row[3] for row in rows("Experiments") if row[0].startswith("M-T6"))
    swapped = swapped.replace("LoRA", "XXX", 1).replace("PiSSA", "LoRA", 1).replace("XXX", "PiSSA", 1)
    assert len(misplaced(swapped)[0]) == 2


def test_every_link_leads_somewhere():
    links = re.findall(r"\]\(([^)]+)\)", TEXT)
    assert len(links) >= 6
    assert not [link for link in links if not (ROOT / link).exists()]


def test_the_rows_are_those_of_the_specification(shared_data):
    """Each row of its lists of tools, methods and experiments has one here."""
    text = (shared_data.parent / "methods.md").read_text(encoding="utf-8")

    def listed(number: str) -> list[str]:
        part = text.split(f"### 19.{number} ")[1].split("\n### ")[0]
        cells = [line.split("|")[1].strip().replace("`", "") for line in part.splitlines() if line.startswith("|")]
        return cells[2:]

    for number, section in (("1", "Systems and tools"), ("2", "Methods")):
        wanted = listed(number)
        assert len(wanted) >= 9
        assert [row[0] for row in rows(section)] == wanted
    ids = [name for cell in listed("6") for name in re.split(r", | / ", cell)]
    assert len(ids) >= 20
    assert not [
        name for name in ids if not re.search(rf"\b{re.escape(name)}", " ".join(r[0] for r in rows("Experiments")))
    ]
