"""What the pages say is true of the code: commands, flags, examples, keys, methods, numbers."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from milora.adapters import method_names
from milora.comparison import grid
from milora.comparison.engine import planned
from milora.comparison.load import load_grid
from milora.errors import MiloraError

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md"))
WITH_EXAMPLES = [p for p in PAGES if "```python" in (ROOT / "docs" / p).read_text(encoding="utf-8")]


def fences(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    """The words after `milora` of each command in a page's shell blocks."""
    lines = [line for block in fences(text, "sh") for line in block.replace("\\\n", " ").splitlines()]
    called = [re.split(r"^milora |-m milora\.cli ", line, maxsplit=1) for line in lines]
    return [shlex.split(parts[1]) for parts in called if len(parts) == 2]


def fragments(text: str) -> list[list[str]]:
    """The same of what a page's lines say of a command: `milora export --to lora`."""
    lines = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [shlex.split(call) for call in re.findall(r"`milora ([a-z][^`]*)`", lines)]


def check_call(words: list[str], whole: bool = True) -> None:
    """Raise where the command line has no such verb, flag or value; of a fragment, verb and flags."""
    from milora.cli.app import GLOBAL_FLAGS, app
    from milora.cli.flags import parse
    from milora.cli.train import SWITCHES
    from milora.recipes import Recipe

    words = [word for word in words if word not in GLOBAL_FLAGS]
    command: Any = typer.main.get_command(app)
    path: list[str] = []
    while hasattr(command, "commands") and words:
        path.append(words.pop(0))
        command = command.commands[path[-1]]
    if path == ["train"]:
        parse(words, Recipe.model_fields, tuple(SWITCHES))
    elif whole:
        command.make_context(" ".join(path), words)
    else:
        known = {opt for p in command.params for opt in [*p.opts, *p.secondary_opts]}
        assert set(w for w in words if w.startswith("-")) <= known


def test_every_command_can_be_called(pages: dict[str, str]):
    found = [(path, words, True) for path, text in pages.items() for words in commands(text)]
    assert len(found) >= 40
    found += [(path, words, False) for path, text in pages.items() for words in fragments(text)]
    assert len(found) >= 60
    wrong = []
    for path, words, whole in found:
        try:
            check_call(words, whole)
        except Exception as error:
            wrong.append(f"{path}: milora {' '.join(words)}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "call",
    [
        "export x --model_name_or_path m --output o --rnak 3",
        "export x --model_name_or_path m --output o --to onnx",
        "trian r.yaml",
        "train --lora_rr 4",
        "recipes show",
    ],
)
def test_a_wrong_command_is_noticed(call: str):
    with pytest.raises((KeyError, MiloraError, typer.TyperException)):
        check_call(call.split())


def test_a_wrong_fragment_is_noticed():
    check_call(["export", "--to", "lora", "--rank", "q"], whole=False)
    with pytest.raises(AssertionError):
        check_call(["export", "--rnak", "q"], whole=False)


def test_every_mark_is_filled_and_every_piece_is_asked_for(hooks: Any, pages: dict[str, str]):
    raw = [(ROOT / "docs" / p).read_text(encoding="utf-8") for p in PAGES] + list(hooks.generated_pages().values())
    asked = {mark[1] for text in raw for mark in hooks.MARK.finditer(text)}
    assert asked == set(hooks.PIECES)
    assert not [path for path, text in pages.items() if "<!-- generated" in text]


def test_every_method_has_a_page_with_what_the_code_knows(hooks: Any, pages: dict[str, str], tmp_path: Path):
    from milora.recipes import load_recipe
    from milora.recipes.method_settings import known_methods

    pieces = hooks.method_pages
    names = method_names()
    assert len(names) >= 13
    for name in names:
        text = pages[f"methods/{name}.md"]
        assert pieces.equation(name) in text and "### A recipe" in text, name
        assert all(f"| `{setting}` |" in text for setting in known_methods()[name]), name
        assert all(f"{count:,}" in text for count in pieces.counts(name)), name
        (tmp_path / f"{name}.yaml").write_text(fences(text, "yaml")[0])
        assert load_recipe(str(tmp_path / f"{name}.yaml")).method == name
    assert f"({names[0]}.md)" in pages["methods/index.md"]


def test_counts_of_methods_are_those_of_the_papers(hooks: Any):
    counts, r = hooks.method_pages.counts, hooks.method_pages.RANK
    assert (
        counts("milora")
        == counts("pissa")
        == counts("lora")
        == [r * (out + in_) for out, in_ in hooks.method_pages.SHAPES]
    )
    assert counts("mica") == [r * in_ for _, in_ in hooks.method_pages.SHAPES]
    assert counts("dora") == [r * (out + in_) + out for out, in_ in hooks.method_pages.SHAPES]
    assert counts("vera") == [r + out for out, _ in hooks.method_pages.SHAPES]


def test_a_method_without_notes_gets_a_page(hooks: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(hooks.method_pages, "NOTES", tmp_path)
    made = hooks.method_pages.pages_without_notes()
    assert set(made) == {f"methods/{name}.md" for name in method_names()}
    assert "S_m^1/2" in hooks.filled(made["methods/milora.md"])


@pytest.mark.parametrize("name", [name for name in method_names() if name != "full"])
def test_the_example_of_a_method_page_runs(hooks: Any, name: str, tiny_llama: Path):
    from transformers import AutoModelForCausalLM

    found: dict[str, Any] = {"model": AutoModelForCausalLM.from_pretrained(tiny_llama)}
    exec(hooks.method_pages.python(name), found)
    assert any(p.requires_grad for p in found["model"].parameters())
    assert not all(p.requires_grad for p in found["model"].parameters())


@pytest.mark.parametrize("page", WITH_EXAMPLES)
def test_python_blocks_run(page: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from transformers import AutoModelForCausalLM

    sybil = pytest.importorskip("sybil", reason="the extra dev is not installed")
    parsers = pytest.importorskip("sybil.parsers.markdown")
    monkeypatch.chdir(tmp_path)
    document = sybil.Sybil(parsers=[parsers.PythonCodeBlockParser()]).parse(ROOT / "docs" / page)
    document.namespace.update(model=AutoModelForCausalLM.from_pretrained(tiny_llama), base_folder=str(tiny_llama))
    examples = list(document.examples())
    assert len(examples) == (ROOT / "docs" / page).read_text(encoding="utf-8").count("```python")
    for example in examples:
        example.evaluate()


def test_pages_with_examples_are_found():
    assert {"start.md", "data.md", "evaluation.md", "coming_from.md"} <= set(WITH_EXAMPLES)


def test_references_are_whole(pages: dict[str, str]):
    from milora.data import FORMATS
    from milora.recipes import Recipe, recipes
    from milora.tasks import folder

    keys = pages["reference/recipe.md"]
    assert len(Recipe.model_fields) >= 60
    assert not [n for n, f in Recipe.model_fields.items() if f"| `{n}` |" not in keys]
    assert not [n for n in recipes() if f"## {n}\n" not in pages["reference/recipes.md"]]
    assert not [n for n in FORMATS if f"### {n}\n" not in pages["data.md"]]
    tasks = list(folder().rglob("*.yaml"))
    assert len(tasks) >= 11
    assert all(f"File: `{p.relative_to(folder())}`" in pages["reference/tasks.md"] for p in tasks)


def test_the_grid_on_the_page_is_one_and_its_keys_are_all_listed(pages: dict[str, str], tmp_path: Path):
    (tmp_path / "my-comparison.yaml").write_text(fences(pages["comparing.md"], "yaml")[0])
    found = load_grid(str(tmp_path / "my-comparison.yaml"))
    assert len(planned(found)["selection"]) == 6 and len(planned(found)["runs"]) == 21
    for part in (grid.Grid, grid.Arm, grid.Measure, grid.Check):
        assert all(f"| `{name}` |" in pages["reference/grid.md"] for name in part.model_fields)


def test_the_command_line_page_is_whole(hooks: Any, pages: dict[str, str]):
    from milora.cli.app import GLOBAL_FLAGS

    text, verbs = pages["reference/cli.md"], list(hooks.cli_page.commands())
    assert len(verbs) >= 20
    for path, command in verbs:
        section = text.partition(f"## {' '.join(path)}\n")[2].partition("\n## ")[0]
        flags = [o for p in command.params for o in p.opts if re.fullmatch(r"--\w+", o)]
        assert section and not [flag for flag in flags if f"`{flag}`" not in section], path
    assert all(f"`{flag}`" in text for flag in GLOBAL_FLAGS)


def test_files_that_pages_name_are_there(pages: dict[str, str]):
    named = {
        name for text in pages.values() for name in re.findall(r"(?:examples|benchmarks|src)/[\w./-]+\w\b(?!\*)", text)
    }
    assert len(named) >= 5
    assert not [name for name in named if not (ROOT / name).exists()]


def test_a_comparison_is_shown_as_it_was_measured(hooks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shown = hooks.comparison_tables
    monkeypatch.setattr(hooks.measurements, "RESULTS", tmp_path)
    assert "Not measured yet" in shown.comparisons("paper_check")
    metrics = {
        "kl": {"mean": 0.249, "stderr": 0.014}, "kl@16": {"mean": 7.0, "stderr": None},
        "validation_loss": {"mean": 0.944, "stderr": None}, "phi_left_top": {"mean": 0.04, "stderr": None},
        "phi_left_top:q_proj": {"mean": 9.0, "stderr": None}, "arc_easy:acc": {"mean": 0.31, "stderr": None},
    }  # fmt: skip
    arm = {
        "label": "milora", "variant": "rescaled", "method": "milora", "r": 32, "learning_rate": 3e-4, "chosen": True,
        "seeds": [0, 1, 2], "failed": [3], "metrics": metrics,
        "against": {"lora": {"kl": {"difference": -0.035, "interval": [-0.05, -0.01], "n": 3, "level": 0.95}}},
        "predicted": {"by_type": {}, "all": 0.62}, "measured": None,
    }  # fmt: skip
    broken = arm | {
        "label": "full",
        "variant": "as_is",
        "seeds": [],
        "failed": [0],
        "metrics": {},
        "learning_rate": None,
    }
    pair = {"a": "milora", "b": "lora", "variant": "rescaled", "path": "steps", "comparable": True,
            "validation_loss": 0.95, "ratio": 0.87, "interval": [0.8, 0.95]}  # fmt: skip
    check = {"name": "PiSSA forgets more", "what": "kl(pissa)", "value": 1.1, "limit": 1.25, "sense": ">="}
    check |= {"passed": False, "gate": True}
    record = {"arms": [arm, broken], "matched": [pair], "checks": [check]}
    (tmp_path / "paper-check.json").write_text(json.dumps(record))
    text = shown.comparisons("paper_check")
    assert "| milora, r = 32 | 0.0003 | 3 (1 failed) | 0.944 | 0.249 ± 0.014 | 0.04 | 0.31 |" in text
    assert "-0.035 [-0.05, -0.01]" in text and "| 0.62 |  |" in text and "0.87 [0.8, 0.95]" in text
    assert "| full, r = 32 |  | 0 (1 failed) |" in text and "**as is**" in text
    assert "| PiSSA forgets more | 1.1 | ≥ 1.25 | no | yes |" in text


def test_the_notebook_is_kept_without_outputs():
    notebooks = list((ROOT / "docs" / "notebooks").glob("*.ipynb"))
    assert notebooks
    for path in notebooks:
        cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
        assert len(cells) >= 8
        assert not [cell for cell in cells if cell["outputs"] or cell["execution_count"] is not None]


def test_links_to_headings_are_those_that_the_site_makes(hooks: Any):
    from markdown import markdown

    for heading in ("llava-1.5-visual", "milora_gsm8k", "pissa-math"):
        link = hooks.recipe_pages.anchor(heading)
        page = markdown(f"## {heading}\n\n{link}\n", extensions=["toc"])
        made, asked = re.search(r'id="([^"]+)"', page), re.search(r'href="#([^"]+)"', page)
        assert made and asked and made[1] == asked[1]


def test_a_verb_is_shown_where_the_program_has_it(hooks: Any):
    shown = hooks.cli_page.verb("spectrum")
    assert "milora spectrum MODEL [--flags]" in shown and "reference/cli.md#milora-spectrum" in shown
    assert hooks.cli_page.verb("none-such") == ""
