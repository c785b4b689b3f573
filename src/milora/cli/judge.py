"""``milora judge OUTPUTS_OR_RUN --judge JUDGE --reference FILE``: a win rate as AlpacaEval counts it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from milora.cli.output import Output, table
from milora.cli.progress import progress


def judge(
    context: typer.Context,
    outputs_or_run: Annotated[
        str, typer.Argument(help="A file of outputs, or a run that milora_alpaca_eval was measured on.")
    ],
    judge: Annotated[
        str, typer.Option("--judge", help="recorded:FILE, an endpoint (http...), or a model's folder or hub name.")
    ],
    reference: Annotated[Path, typer.Option(help="The outputs to compare with, e.g. eval_set.jsonl.gz.")],
    side: Annotated[str, typer.Option(help="Whose outputs of a run: tuned or base.")] = "tuned",
    judge_model: Annotated[
        str | None, typer.Option("--judge_model", "--judge-model", help="The endpoint's model, e.g. gpt-4-0613.")
    ] = None,
    generator: Annotated[str | None, typer.Option(help="A name for the model, where the outputs have none.")] = None,
    limit: Annotated[int | None, typer.Option(help="The first so many outputs.")] = None,
    seed: Annotated[int, typer.Option(help="Decides which output an endpoint sees first.")] = 0,
    dtype: Annotated[str, typer.Option(help="Of a model as the judge.")] = "auto",
    device: Annotated[str | None, typer.Option(help="Of a model as the judge.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="A new folder, or one to go on in; else eval/judged of the run.")
    ] = None,
) -> None:
    """Judge outputs against reference outputs. An endpoint's key is read from OPENAI_API_KEY."""
    from milora.errors import MiloraError
    from milora.evaluation.judges import open_judge
    from milora.evaluation.judging import check_free, judge_outputs
    from milora.tasks.alpaca_eval import read_outputs

    screen: Output = context.obj
    if limit is not None and limit < 1:
        raise MiloraError(f"limit: got {limit}, allowed: 1 or more")
    file, folder = _places(outputs_or_run, side, output)
    check_free(folder)
    outputs, references = read_outputs(file, generator)[:limit], read_outputs(reference)
    opened = open_judge(judge, model=judge_model, seed=seed, dtype=dtype, device=device)
    with progress(screen) as show:
        record = judge_outputs(outputs, references, opened, folder, progress=show)
    screen.result(record, _table(record), essence=str(folder / "win_rate.json"))


def _places(outputs_or_run: str, side: str, output: Path | None) -> tuple[Path, Path]:
    """The file of outputs and the folder for what is written."""
    from milora.errors import MiloraError
    from milora.runs import RunFolder
    from milora.tasks.alpaca_eval import TASK

    output = output and output.expanduser()
    run = RunFolder(outputs_or_run)
    if not run.holds_run:
        if not Path(outputs_or_run).is_file():
            raise MiloraError(f"judge: no run and no file of outputs: {outputs_or_run}")
        if output is None:
            raise MiloraError("--output: got none, allowed a new folder")
        return Path(outputs_or_run), output
    if side not in ("tuned", "base"):
        raise MiloraError(f"--side: got {side!r}, allowed tuned, base")
    file = run.eval / f"{TASK}.{side}.jsonl"
    if not file.is_file():
        raise MiloraError(f"judge: {run.path} has no outputs of {TASK}: milora eval {run.path} --tasks {TASK}")
    return file, output or run.eval / "judged" / side


def _table(record: dict[str, Any]) -> Any:
    return table(["measure", "value"], [[name, value] for name, value in record.items()])
