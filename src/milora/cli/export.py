"""``milora export ADAPTER --model_name_or_path M --output DIR``: the ways out, as LoRA, GGUF or a whole model."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from milora.cli.output import Output, table
from milora.errors import MiloraError

Base = Annotated[str, typer.Option("--model_name_or_path", "--model-name-or-path", help="The base model.")]
Destination = Annotated[Path, typer.Option("--output", help="What to write; must not exist yet.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what stands at --output.")]
Force = Annotated[bool, typer.Option("--force", help="Take a base that it was not made for.")]
ShardSize = Annotated[
    str, typer.Option("--max_shard_size", "--max-shard-size", help="Largest file of a merged model's weights.")
]
Check = Annotated[
    bool | None,
    typer.Option("--check/--no-check", help="Load what was written and compare logits; by default where it fits."),
]


def export(
    context: typer.Context,
    adapter: Annotated[Path, typer.Argument(help="A run folder or an adapter's folder.")],
    model_name_or_path: Base,
    output: Destination,
    to: Annotated[
        Literal["lora", "merged", "gguf-lora"],
        typer.Option("--to", help="lora for PEFT and vLLM, gguf-lora for llama.cpp, merged for a whole model."),
    ] = "lora",
    rank: Annotated[int | None, typer.Option("--rank", help="Best approximation of this rank; else exact.")] = None,
    readers: Annotated[
        list[str] | None, typer.Option("--for", help="vllm or llama.cpp: write only what it can load.")
    ] = None,
    text: Annotated[
        str | None, typer.Option("--text", help="Measure the KL to the adapter itself on this text.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max_tokens", "--max-tokens", help="Use this many tokens of the text.")
    ] = None,
    max_shard_size: ShardSize = "5GB",
    check: Check = None,
    force: Force = False,
    overwrite: Overwrite = False,
) -> None:
    """Write an adapter in a form that others load without this package, and check what was written."""
    from milora.adapters.export import check_free
    from milora.analysis import read_text

    show: Output = context.obj
    folder, content = adapter_folder(adapter), read_text(text) if text else None
    if (rank is not None and to == "merged") or (readers and to != "lora"):
        raise MiloraError(f"--to {to}: got --rank or --for, allowed --rank with lora and gguf-lora, --for with lora")
    check_free(output.expanduser(), overwrite, folder, model_name_or_path, file=to == "gguf-lora")
    witness, reason = _witness(folder, model_name_or_path, to, check, content is not None, force)
    record: dict[str, Any] = {"to": to}
    if to == "merged":
        from milora.adapters.merge import merge

        written, in_memory = merge(
            folder, model_name_or_path, output, max_shard_size=max_shard_size, overwrite=overwrite, force=force
        )
        record |= {"output": str(written), "in_memory": in_memory}
    else:
        record |= _write(to, folder, model_name_or_path, output, rank, tuple(readers or ()), overwrite)
    record |= {"check": None, **({"not_checked": reason} if witness is None else {})}
    if witness is not None:
        record["check"] = witness.compare(record["output"], to).as_dict()
        record |= {} if content is None else _kl(witness, model_name_or_path, record["output"], to, content, max_tokens)
    show.result(record, _for_people(record), essence=record["output"])


def adapter_folder(path: Path) -> Path:
    """The folder of an adapter in its own form, of a run or by itself."""
    from milora.runs import RunFolder

    run = RunFolder(path)
    return run.own_adapter() if run.holds_run else path


def _write(
    to: str, adapter: Path, base: str, output: Path, rank: int | None, readers: tuple[str, ...], overwrite: bool
) -> dict[str, Any]:
    from milora.adapters.export import write_lora
    from milora.adapters.gguf_lora import write_gguf_lora
    from milora.adapters.truncate import total

    if to == "lora":
        done = write_lora(adapter, base, output, rank=rank, readers=readers, overwrite=overwrite, check_base=True)
    else:
        done = write_gguf_lora(adapter, base, output, rank=rank, overwrite=overwrite)
    layers = [{"module": e.module, "rank": e.rank, "norm": e.norm, "relative_error": e.relative} for e in done.errors]
    return {
        "output": str(done.path),
        "rank": done.rank,
        "relative_error": total(done.errors),
        "layers": layers,
        "limits": [str(limit) for limit in done.limits],
    }


def _witness(adapter: Path, base: str, form: str, wanted: bool | None, needed: bool, force: bool) -> tuple[Any, str]:
    """The adapter's own logits before anything is written; or none, and why."""
    from milora.adapters.agreement import Witness, fits_in_memory
    from milora.models.load import load_model

    if wanted is False and not needed:
        return None, "--no-check"
    wanted = wanted or needed
    if not wanted and not fits_in_memory(base, copies=2 if form == "merged" else 1):
        return None, "the model in float32 does not fit this machine's memory"
    try:
        model = load_model(base, dtype="float32")
    except MiloraError as error:
        if wanted:
            raise
        return None, str(error)
    return Witness(adapter, model, force=force), ""


def _kl(witness: Any, base: str, written: str, form: Any, text: str, max_tokens: int | None) -> dict[str, Any]:
    """The KL from the adapter itself to what was written, on a text."""
    from milora.adapters.agreement import reloaded
    from milora.analysis import forgetting
    from milora.models.load import load_tokenizer

    block = min(512, getattr(witness.base.config, "max_position_embeddings", 512))
    again = reloaded(witness.adapter, witness.base, written, form)
    found = forgetting(
        again, load_tokenizer(base), text, base_model=witness.model(), block=block, max_tokens=max_tokens
    )
    return {"kl": found.kl, "kl_stderr": found.kl_stderr, "tokens": found.tokens}


def _for_people(record: dict[str, Any]) -> Any:
    from rich.console import Group

    lines = [
        f"{record['output']}: written as {record['to']}" + (f", rank {record['rank']}" if "rank" in record else "")
    ]
    if record.get("in_memory"):
        lines.append(f"made in memory, not shard by shard: {record['in_memory']}")
    lines += record.get("limits", [])
    if record.get("layers"):
        lines.append(f"relative Frobenius error over all layers: {record['relative_error']:.4g}")
    if "kl" in record:
        lines.append(f"KL to the adapter itself: {record['kl']:.4g} nats per token over {record['tokens']} tokens")
    if record["check"]:
        lines.append(agreement_line(record["check"]))
    else:
        lines.append(f"not checked: {record['not_checked']}")
    rows = [
        [layer["module"], layer["rank"], layer["norm"], layer["relative_error"]] for layer in record.get("layers", [])
    ]
    text = "\n".join(lines)
    return Group(table(["layer", "rank", "norm", "relative error"], rows), text) if rows else text


def agreement_line(check: dict[str, float]) -> str:
    """The agreement of logits in one line."""
    from milora.adapters.agreement import Agreement

    return str(Agreement(**check))
