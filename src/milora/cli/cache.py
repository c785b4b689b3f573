"""``milora cache ls | info | clear | verify``: the decompositions that are kept."""

import sys
import time
from datetime import datetime
from typing import Annotated, Any

import typer

from milora.cli.output import Output, table

app = typer.Typer(rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def start(context: typer.Context) -> None:
    """List, count, delete and check the decompositions that are kept."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("ls")
def ls(context: typer.Context) -> None:
    """List what is kept: weights, parts, and the worst value of each certificate."""
    from milora.decompositions.inventory import described, entries
    from milora.decompositions.store import store_folder

    output: Output = context.obj
    record = [described(entry) for entry in entries(store_folder())]
    header = ["weight", "shape", "part", "dtype", "algorithm", "worst", "bytes", "last used"]
    columns = ("weight", "shape", "part", "dtype", "algorithm", "worst", "bytes", "used")
    shown = [{**e, "shape": " x ".join(map(str, e["shape"] or ())), "used": _time(e["used"])} for e in record]
    rows = [[e[column] for column in columns] for e in shown]
    output.result(record, table(header, rows), essence="\n".join(e["path"] for e in record))


@app.command("info")
def info(context: typer.Context) -> None:
    """Say where the store lies, what it holds and how large it may grow."""
    from milora.decompositions.inventory import entries
    from milora.decompositions.store import store_folder
    from milora.linalg import VERSION
    from milora.models.cache import cache_limit

    output: Output = context.obj
    held = list(entries(store_folder()))
    record: dict[str, Any] = {
        "folder": str(store_folder()),
        "entries": len(held),
        "bytes": sum(e.size for e in held),
        "limit": cache_limit(),
        "version": VERSION,
        "of_another_version": sum(e.name.version != VERSION for e in held),
    }
    output.result(record, table(["what", "value"], [[n, str(v)] for n, v in record.items()]), record["folder"])


@app.command("clear")
def clear(
    context: typer.Context,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    older_than: Annotated[
        float | None,
        typer.Option("--older-than", "--older_than", min=0, metavar="DAYS", help="Only what was not used for so long."),
    ] = None,
) -> None:
    """Delete what is kept; it is computed again when it is needed."""
    from milora.decompositions import inventory
    from milora.decompositions.store import store_folder
    from milora.errors import MiloraError

    output: Output = context.obj
    folder = store_folder()
    if not yes:
        if output.mode != "human" or not sys.stdin.isatty():
            raise MiloraError(
                f"cache clear: got no --yes, which deleting from {folder} asks for where nobody can answer"
            )
        if not typer.confirm(f"Delete decompositions from {folder}?", err=True):
            return
    gone, size = inventory.clear(folder, None if older_than is None else time.time() - older_than * 86400)
    output.result({"removed": gone, "bytes": size}, f"{gone} entries removed, {size:,} bytes")


@app.command("verify")
def verify(
    context: typer.Context,
    remove: Annotated[bool, typer.Option("--remove", help="Delete what is corrupt.")] = False,
) -> None:
    """Read every entry again and compare its checksum; exit code 1 if one is corrupt."""
    from milora.decompositions import inventory
    from milora.decompositions.store import store_folder

    output: Output = context.obj
    checked = list(inventory.verify(store_folder()))
    corrupt = [(entry, problem) for entry, problem in checked if problem is not None]
    record = [{"path": str(e.path), "problem": p, "removed": remove and inventory.remove(e)} for e, p in corrupt]
    lines = [f"{e['path']}: {e['problem']}{', removed' * e['removed']}" for e in record]
    human = "\n".join([*lines, f"{len(checked)} entries read, {len(corrupt)} corrupt"])
    output.result({"read": len(checked), "corrupt": record}, human, essence="\n".join(e["path"] for e in record))
    if corrupt:
        raise typer.Exit(1)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).isoformat(" ", "minutes")
