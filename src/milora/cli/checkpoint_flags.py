"""The flags of the verbs that read a checkpoint's weights one by one."""

from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(help="A model's folder, a .gguf file, or a hub name.", metavar="MODEL")]
Targets = Annotated[
    str,
    typer.Option(
        "--targets", "--target_modules", "--target-modules",
        help="all-linear, names with commas, or a regular expression, as in PEFT.",
    ),
]  # fmt: skip
GGUFFile = Annotated[
    str | None, typer.Option("--gguf_file", "--gguf-file", help="The GGUF file in the folder to dequantise.")
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust_remote_code", "--trust-remote-code", help="Run the model's own code.")
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; else a GPU where there is one.")]
Procs = Annotated[int, typer.Option(help="Processes on this machine, which share its cores or take a GPU each.")]
