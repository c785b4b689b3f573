"""``milora train [RECIPE] [--key value ...]``: a recipe becomes a run folder."""

from typing import Any

import typer

from milora.cli.output import Output, table

# The flags are the recipe's keys, so the words after the verb are read here and not by typer.
SETTINGS: dict[str, Any] = {
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
}
SWITCHES = {
    "resume": "Go on with the run in output_dir after its last checkpoint.",
    "overwrite": "Replace the run in output_dir.",
    "dry_run": "Print the resolved recipe as YAML and stop.",
    "help": "Show this text.",
}
USAGE = """Usage: milora train [RECIPE] [--key value ...]

Fine-tune a model. RECIPE is a YAML file or the name of a shipped recipe (milora recipes ls); flags go over
the file, the file over the defaults. Each flag may be written in snake_case or in kebab-case.
"""


def train(context: typer.Context) -> None:
    """Fine-tune a model by a recipe; every key of the recipe is a flag (milora train --help)."""
    from milora.cli.flags import parse
    from milora.errors import MiloraError
    from milora.recipes import Recipe, load_recipe
    from milora.recipes.load import OTHER_NAMES

    output: Output = context.obj
    arguments = ["--help" if word == "-h" else word for word in context.args]
    parsed = parse(arguments, Recipe.model_fields, tuple(SWITCHES), OTHER_NAMES)
    if "help" in parsed.switches:
        return _show_help(output)
    if len(parsed.words) > 1:
        raise MiloraError(f"milora train: got {' '.join(parsed.words)!r}, allowed one recipe")
    recipe = load_recipe(parsed.words[0] if parsed.words else None, parsed.keys)
    if "dry_run" in parsed.switches:
        return _show_recipe(output, recipe)

    from milora.decompositions.workers import Rank
    from milora.training.spread import leave_processes
    from milora.training.train import train as train_recipe

    run = train_recipe(
        recipe,
        resume="resume" in parsed.switches,
        overwrite="overwrite" in parsed.switches,
        console=output.console,
    )
    leave_processes()
    if Rank.of_environment().rank > 0:
        return  # the first of several processes prints the result
    record = {"run": str(run.path), **run.results()}
    output.result(record, f"{run.path}: the run is done", essence=str(run.path))


def _show_recipe(output: Output, recipe: Any) -> None:
    from milora.recipes import dump

    text = dump(recipe).rstrip("\n")
    output.result(recipe.model_dump(mode="json"), text, essence=text)


def _show_help(output: Output) -> None:
    from rich.console import Group

    from milora.cli.flags import describe
    from milora.recipes import Recipe

    keys = list(describe(Recipe.model_fields))
    switches = [(f"--{name.replace('_', '-')}", text) for name, text in SWITCHES.items()]
    record = [{"flag": flag, "default": default, "description": text} for flag, default, text in keys]
    human = Group(USAGE, table(["flag", "default", "meaning"], keys), "", table(["switch", "meaning"], switches))
    output.result(record, human)
