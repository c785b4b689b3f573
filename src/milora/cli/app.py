"""The command ``milora``: its verbs, and how errors become one line and an exit code.

Exit codes: 0 done; 1 the run failed; 2 a wrong call; 130 interrupted from the keyboard.
"""

import contextlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Generator, Sequence

import typer

from milora import __version__
from milora.cli import (
    analyse,
    cache,
    compare,
    compose,
    decompose,
    demo,
    evaluate,
    export,
    forgetting,
    importing,
    judge,
    merge,
    methods,
    recipes,
    report,
    rescale,
    retention,
    spectrum,
    train,
)
from milora.cli.output import Mode, Output
from milora.errors import MiloraError

# PEFT imports both packages wherever they are installed, and they tell which of their kernels this machine lacks.
IMPORTED_ALOUD = ("torchao", "bitsandbytes.backends.cpu.ops", "torch.utils._pytree")
GLOBAL_FLAGS = ("--debug", "--json", "--no-store", "--quiet")

app = typer.Typer(
    name="milora",
    help="Fine-tuning on singular vectors: MiLoRA, PiSSA, MiCA and their relatives, inside Hugging Face PEFT.",
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
app.command("train", **train.SETTINGS)(train.train)
app.command("eval")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("judge")(judge.judge)
app.command("forgetting")(forgetting.forgetting)
app.command("analyse")(analyse.analyse)
app.command("retention")(retention.retention)
app.command("export")(export.export)
app.command("merge")(merge.merge)
app.command("import")(importing.import_)
app.command("compose")(compose.compose)
app.command("decompose")(decompose.decompose)
app.command("spectrum")(spectrum.spectrum)
app.command("methods")(methods.methods)
app.command("rescale")(rescale.rescale)
app.command("report")(report.report)
app.add_typer(recipes.app, name="recipes")
app.command("demo")(demo.demo)
app.add_typer(cache.app, name="cache")


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
    json: bool = typer.Option(False, "--json", help="Print one JSON value on stdout and nothing else."),
    no_store: bool = typer.Option(False, "--no-store", help="Read no decompositions that are kept, and keep none."),
    quiet: bool = typer.Option(False, "--quiet", help="Print next to nothing."),
    version: bool = typer.Option(False, "--version", help="Print the version."),
) -> None:
    """Take the flags that every verb shares; they may stand anywhere on the command line."""
    context.obj = context.obj or Output(_mode(json, quiet))
    if version or context.invoked_subcommand is None:
        typer.echo(__version__ if version else context.get_help())
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    Args:
        arguments: what follows the program's name; by default that of this process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    flags = [a for a in given if a in GLOBAL_FLAGS]
    ordered = flags + [a for a in given if a not in GLOBAL_FLAGS]
    output = Output(_mode("--json" in flags, "--quiet" in flags))
    try:
        with warnings.catch_warnings(), _without_store("--no-store" in flags):
            if "--debug" not in flags:
                # What a library will change in its next version is for this package to read, not for its users.
                warnings.simplefilter("ignore", FutureWarning)
                for name in IMPORTED_ALOUD:
                    logging.getLogger(name).setLevel(logging.ERROR)
                warnings.showwarning = lambda message, *_, **__: output.note(f"warning: {message}")
            return _run(ordered, output) or 0
    except KeyboardInterrupt:
        output.error("interrupted")
        return 130
    except Exception as error:
        if "--debug" in flags:
            traceback.print_exc()
        text, code = _explain(error)
        output.error(text)
        return code


def _run(arguments: list[str], output: Output) -> int | None:
    # Libraries print to stdout as they like; a machine that reads it must find the JSON value alone.
    quiet = contextlib.redirect_stdout(sys.stderr) if output.mode == "json" else contextlib.nullcontext()
    with quiet:
        code = app(args=arguments, prog_name="milora", standalone_mode=False, obj=output)
    return code if isinstance(code, int) else None


def _explain(error: Exception) -> tuple[str, int]:
    if isinstance(error, MiloraError):
        return str(error), 2
    if isinstance(error, typer.TyperException):
        return error.format_message(), error.exit_code
    return f"{type(error).__name__}: {error} (--debug shows where)", 1


@contextlib.contextmanager
def _without_store(wanted: bool) -> Generator[None]:
    # In the environment, so that processes which a verb starts know of it too.
    before = os.environ.get("MILORA_STORE")
    if wanted:
        os.environ["MILORA_STORE"] = "off"
    try:
        yield
    finally:
        if wanted and before is None:
            del os.environ["MILORA_STORE"]
        elif wanted and before is not None:
            os.environ["MILORA_STORE"] = before


def _mode(json: bool, quiet: bool) -> Mode:
    return "json" if json else "quiet" if quiet else "human"
