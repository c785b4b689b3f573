"""LoRA, PiSSA, MiLoRA and MiCA by one recipe: what each learned and what each forgot.

    python benchmarks/four_methods.py RECIPE --output NAME --work FOLDER --model_name_or_path M --dataset D \
        --tasks T [T ...] --data_dir FOLDER --limit 25 --forgetting_text FILE [--set key=value ...]

Each method is one run folder under --work. A method whose record is there is not run again if it was asked for in
the same words; so a stopped comparison goes on, and `--methods` can spread it over processes. Beside NAME.json
(everything: recipe, provenance, scores, forgetting) stands NAME.md, the table. The base is evaluated once.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import yaml

from milora.analysis import forgetting, read_text
from milora.errors import MiloraError
from milora.evaluation import evaluate, evaluate_base_and_tuned
from milora.models.atomic import write_text
from milora.models.load import load_model, load_tokenizer
from milora.recipes import Recipe, load_recipe
from milora.runs import read_metrics
from milora.runs.tuned import load_tuned
from milora.training.train import train

METHODS = ("lora", "pissa", "milora", "mica")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--output", type=Path, required=True, help="without ending")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--tasks", nargs="+", required=True)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--limit", type=int, required=True, help="rows of each task")
    parser.add_argument("--max_gen_toks", type=int)
    parser.add_argument("--forgetting_text", required=True)
    parser.add_argument("--forgetting_tokens", type=int, default=8192)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="recipe keys over the recipe's")
    return parser.parse_args()


def asked(given: argparse.Namespace) -> dict[str, Any]:
    """What shapes a record, as JSON gives it back."""
    aside = ("output", "work", "methods")
    return json.loads(json.dumps({k: v for k, v in vars(given).items() if k not in aside}, default=str))


def kept(file: Path, given: argparse.Namespace) -> dict[str, Any] | None:
    """A record that is there already, if it answers what is asked now."""
    if not file.exists():
        return None
    record = json.loads(file.read_text(encoding="utf-8"))
    if record.get("asked") != asked(given):
        raise MiloraError(f"{file}: a record of another call; allowed the same words, or another --work")
    return record


def recipe_of(method: str, given: argparse.Namespace) -> Recipe:
    """The recipe with this method, the command line's paths and keys over it."""
    overrides = {key: yaml.safe_load(value) for key, value in (pair.split("=", 1) for pair in given.set)}
    paths = {"model_name_or_path": given.model_name_or_path, "dataset": given.dataset}
    return load_recipe(given.recipe, {**overrides, **paths, "output_dir": str(given.work / method), "method": method})


def base_scores(given: argparse.Namespace) -> dict[str, Any]:
    """The base model on the tasks, in the precision of the runs, evaluated once."""
    file = given.work / "base.json"
    if (record := kept(file, given)) is not None:
        return record
    model = load_model(given.model_name_or_path, dtype=recipe_of("milora", given).dtype)
    found = evaluate(model, load_tokenizer(given.model_name_or_path), given.tasks, **evaluation(given))
    write_text(file, json.dumps({"asked": asked(given), **found}, default=str))
    return found


def evaluation(given: argparse.Namespace) -> dict[str, Any]:
    """The settings that every evaluation shares."""
    return {
        "limit": given.limit,
        "data_dir": given.data_dir,
        "max_gen_toks": given.max_gen_toks,
        "batch_size": 16,
    }


def one_method(method: str, given: argparse.Namespace, base: dict[str, Any]) -> dict[str, Any]:
    """Train, evaluate and measure one method; read the record if it is there."""
    file = given.work / f"{method}.json"
    if (record := kept(file, given)) is not None:
        return record
    recipe = recipe_of(method, given)
    run = train(recipe, overwrite=Path(recipe.output_dir).exists())
    tuned = load_tuned(run.path)
    compared = evaluate_base_and_tuned(
        tuned.model, tuned.tokenizer, given.tasks, base_results=base, run_folder=run.path, **evaluation(given)
    )
    text = read_text(given.forgetting_text)
    forgot = forgetting(tuned.model, tuned.tokenizer, text, max_tokens=given.forgetting_tokens)
    metrics = read_metrics(run.metrics_file)
    record = {
        "asked": asked(given),
        "method": method,
        "recipe": recipe.model_dump(mode="json"),
        "provenance": run.provenance(),
        "eval_loss": [[m["step"], m["eval_loss"]] for m in metrics if "eval_loss" in m],
        "train_loss": [[m["step"], m["loss"]] for m in metrics if "loss" in m],
        "comparison": compared["comparison"],
        "forgetting": forgot.as_dict(),
    }
    write_text(file, json.dumps(record, default=str))
    return record


def markdown(records: list[dict[str, Any]]) -> str:
    """The table: one line a measurement, one column a method, the base first."""
    lines = [row(["", "base", *(r["method"] for r in records)]), row(["---"] * (len(records) + 2))]
    lines.append(row(["trainable numbers", "0", *(f"{r['provenance']['trainable_parameters']:,}" for r in records)]))
    lowest = [str(min((round(loss, 4) for _, loss in r["eval_loss"]), default="")) for r in records]
    lines.append(row(["lowest validation loss", "", *lowest]))
    for scores in zip(*(r["comparison"] for r in records), strict=True):
        first = scores[0]
        name = f"{first['task'].removeprefix('milora_')}, {first['filter']} (n = {first['n']})"
        cells = (f"{s['tuned']:.3f} ({s['difference']:+.3f}{spread(s['difference_stderr'])})" for s in scores)
        lines.append(row([name, f"{first['base']:.3f}{spread(first['base_stderr'])}", *cells]))
    forgot = [r["forgetting"] for r in records]
    lines.append(row(["KL from the base", "0", *(f"{f['kl']:.4f}{spread(f['kl_stderr'])}" for f in forgot)]))
    floor = f"{forgot[0]['floor']:.4f} (floor)"
    lines.append(row(["cross-entropy with the base", floor, *(f"{f['cross_entropy']:.4f}" for f in forgot)]))
    return "\n".join(lines) + "\n"


def spread(stderr: float | None) -> str:
    """A standard error behind its value, where there is one."""
    return "" if stderr is None else f" ± {stderr:.3f}"


def row(cells: list[str]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Run what is missing, then write the record and the table."""
    given = arguments()
    base = base_scores(given)
    records = [one_method(method, given, base) for method in given.methods]
    command = "python " + shlex.join(sys.argv)
    write_text(given.output.with_suffix(".json"), json.dumps({"command": command, "runs": records}, indent=1))
    write_text(given.output.with_suffix(".md"), f"`{command}`\n\n{markdown(records)}")
    print(markdown(records))


if __name__ == "__main__":
    main()
