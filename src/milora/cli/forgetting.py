"""``milora forgetting ADAPTER --text FILE``: how far the tuned model moved from the base on a text it knew."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from milora.cli.output import Output, table


def forgetting(context: typer.Context) -> None:
    """later"""
