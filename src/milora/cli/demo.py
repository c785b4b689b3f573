"""``milora demo``: the whole path on a small model and on facts that no model can know."""

import typer


def demo(context: typer.Context) -> None:
    """Run the demonstration."""
    raise SystemExit(1)
