"""LoRA, PiSSA, MiLoRA and MiCA by one recipe: what each learned and what each forgot.

    python benchmarks/four_methods.py RECIPE --output benchmarks/results/NAME --model_name_or_path M --dataset D \
        --tasks T [T ...] --data_dir FOLDER --limit 25 --forgetting_text FILE [--set key=value ...]

Each method is one run folder under --work; a method whose record is there is not run again. Beside --output.json
(everything: recipe, provenance, scores, forgetting) stands --output.md, the table. The base is evaluated once.
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
from milora.evaluation import evaluate, evaluate_base_and_tuned
from milora.models.atomic import write_text
from milora.models.load import load_model, load_tokenizer
from milora.recipes import load_recipe
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


def base_scores(given: argparse.Namespace) -> dict[str, Any]:
    """The base model on the tasks, evaluated once."""
    kept = given.work / "base.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    model = load_model(given.model_name_or_path, dtype="float32")
    found = evaluate(model, load_tokenizer(given.model_name_or_path), given.tasks, **evaluation(given))
    write_text(kept, json.dumps(found, default=str))
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
    kept = given.work / f"{method}.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    overrides = {key: yaml.safe_load(value) for key, value in (pair.split("=", 1) for pair in given.set)}
    paths = {"model_name_or_path": given.model_name_or_path, "dataset": given.dataset}
    folder = str(given.work / method)
    recipe = load_recipe(given.recipe, {**overrides, **paths, "output_dir": folder, "method": method})
    run = train(recipe, overwrite=Path(folder).exists())
    tuned = load_tuned(run.path)
    compared = evaluate_base_and_tuned(
        tuned.model, tuned.tokenizer, given.tasks, base_results=base, run_folder=run.path, **evaluation(given)
    )
    text = read_text(given.forgetting_text)
    forgot = forgetting(tuned.model, tuned.tokenizer, text, max_tokens=given.forgetting_tokens)
    metrics = read_metrics(run.metrics_file)
    record = {
        "method": method,
        "recipe": recipe.model_dump(mode="json"),
        "provenance": run.provenance(),
        "eval_loss": [[m["step"], m["eval_loss"]] for m in metrics if "eval_loss" in m],
        "train_loss": [[m["step"], m["loss"]] for m in metrics if "loss" in m],
        "comparison": compared["comparison"],
        "forgetting": forgot.as_dict(),
    }
    write_text(kept, json.dumps(record, default=str))
    return record


def markdown(given: argparse.Namespace, records: list[dict[str, Any]]) -> str:
    """The table: one line a method, the base first."""
    scored = [r for r in records[0]["comparison"] if r["metric"] in ("exact_match", "acc")]
    names = [f"{r['task'].removeprefix('milora_')} {r['filter']}" for r in scored]
    head = ["method", "trainable", "eval loss", *names, "KL", "forgetting", "floor"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines.append(row(["base", "", "", *(f"{r['base']:.3f}" for r in scored), "0", "", ""]))
    for record in records:
        found = {(r["task"], r["metric"], r["filter"]): r for r in record["comparison"]}
        cells = [found[r["task"], r["metric"], r["filter"]] for r in scored]
        forgot = record["forgetting"]
        lines.append(
            row(
                [
                    record["method"],
                    f"{record['provenance'].get('trainable_parameters', '')}",
                    f"{min(loss for _, loss in record['eval_loss']):.4f}" if record["eval_loss"] else "",
                    *(f"{c['tuned']:.3f} ({c['difference']:+.3f} ± {c['difference_stderr']:.3f})" for c in cells),
                    f"{forgot['kl']:.4f} ± {forgot['kl_stderr']:.4f}",
                    f"{forgot['cross_entropy']:.4f}",
                    f"{forgot['floor']:.4f}",
                ]
            )
        )
    return "\n".join(lines) + "\n"


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
    write_text(given.output.with_suffix(".md"), f"`{command}`\n\n{markdown(given, records)}")
    print(markdown(given, records))


if __name__ == "__main__":
    main()
