"""The command line, from the program itself."""

from collections.abc import Iterator
from typing import Any

import typer
from markdown_tables import code, fence, plain, table


def page() -> str:
    """Every verb on one page."""
    return (
        "# Command line\n\nFlags may be written in snake_case or in kebab-case; those of `milora` itself may stand "
        "anywhere.\n"
        "Exit codes: 0 done; 1 the run failed; 2 a wrong call; 130 interrupted.\n\n<!-- generated: cli -->\n"
    )


def every_verb() -> str:
    """One section a verb, in the order of `milora --help`."""
    return "\n".join(_section(path, command) for path, command in commands())


def verb(name: str) -> str:
    """What a verb does, for a page that sends its readers there; nothing where the program has no such verb."""
    for path, command in commands():
        if path == ["milora", name]:
            text = plain(" ".join((command.help or "").split()))
            return f"{fence(_words(path, command), 'text')}\n{text} [All flags](reference/cli.md#milora-{name}).\n"
    return ""


def commands() -> Iterator[tuple[list[str], Any]]:
    """Each command with the words that call it."""
    from milora.cli.app import app

    root: Any = typer.main.get_command(app)
    yield from _below(["milora"], root)


def _below(path: list[str], command: Any) -> Iterator[tuple[list[str], Any]]:
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from _below([*path, name], below)


def _section(path: list[str], command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    text = " ".join((command.help or "").split())
    parts = [f"## {' '.join(path)}\n", fence(_words(path, command), "text"), plain(text) + "\n"]
    if arguments:
        rows = [[code(a.name), "required" if a.required else "optional", plain(a.help or "")] for a in arguments]
        parts.append(table(["argument", "", "meaning"], rows))
    if options:
        parts.append(
            table(["flag", "default", "meaning"], [[_flags(o), _default(o), plain(o.help or "")] for o in options])
        )
    if path == ["milora", "train"]:
        parts.append(_train_switches())
    return "\n".join(parts)


def _words(path: list[str], command: Any) -> str:
    arguments = [_placeholder(p) for p in command.params if p.param_type_name == "argument"]
    flags = [p for p in command.params if p.param_type_name == "option"]
    return " ".join([*path, *arguments, *(["[--flags]"] if flags else [])])


def _train_switches() -> str:
    from milora.cli.train import SWITCHES

    rows = [[code(f"--{name.replace('_', '-')}"), text] for name, text in SWITCHES.items()]
    return table(["flag", "meaning"], rows) + "\nEach [key of a recipe](recipe.md) is a flag as well.\n"


def _placeholder(argument: Any) -> str:
    name = argument.name.rstrip("_").upper() + (" ..." if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def _flags(option: Any) -> str:
    # The spelling with dashes of a flag that has one with underscores is said once, above.
    shown = [flag for flag in option.opts if flag.startswith("--")] or option.opts
    shown = [flag for flag in shown if not ("-" in flag[2:] and flag.replace("-", "_").replace("__", "--", 1) in shown)]
    return " or ".join(map(code, [*shown, *option.secondary_opts]))


def _default(option: Any) -> str:
    if option.required:
        return "required"
    return "" if option.default in (None, False, ()) else code(option.default)
