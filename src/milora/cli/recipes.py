"""``milora recipes ls | cat NAME | validate FILE ...``: the recipes that come with the package, and yours."""

from typing import Annotated

import typer

from milora.cli.output import Output, table

app = typer.Typer(rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def start(context: typer.Context) -> None:
    """List, print and check recipes."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("ls")
def ls(context: typer.Context) -> None:
    """List the recipes that come with the package."""
    from milora.recipes import load_recipe, recipes

    output: Output = context.obj
    found = {name: load_recipe(name) for name in recipes()}
    record = [{"name": name, "description": recipe.description} for name, recipe in found.items()]
    rows = [[entry["name"], entry["description"] or ""] for entry in record]
    output.result(record, table(["recipe", "what it is"], rows), essence="\n".join(found))


@app.command("cat")
def cat(context: typer.Context, name: Annotated[str, typer.Argument(help="A recipe of the package.")]) -> None:
    """Print a recipe as it is written, with its comments and sources."""
    from milora.errors import MiloraError
    from milora.recipes import load_recipe, recipes

    output: Output = context.obj
    shipped = recipes()
    if name not in shipped:
        raise MiloraError(f"recipe: got {name!r}, allowed {', '.join(shipped)}")
    text = shipped[name].read_text(encoding="utf-8").rstrip("\n")
    output.result(load_recipe(name).model_dump(mode="json"), text, essence=text)


@app.command("validate")
def validate(
    context: typer.Context,
    files: Annotated[list[str], typer.Argument(help="YAML files, or names of recipes of the package.")],
) -> None:
    """Check recipes: unknown keys, wrong types and wrong values, all of them at once."""
    from milora.errors import MiloraError
    from milora.recipes import load_recipe

    output: Output = context.obj
    problems: dict[str, str] = {}
    for file in files:
        try:
            load_recipe(file)
        except MiloraError as error:
            problems[file] = str(error)
    if problems:
        raise MiloraError("; ".join(problems.values()))
    output.result({"valid": files}, "\n".join(f"{file}: valid" for file in files))
