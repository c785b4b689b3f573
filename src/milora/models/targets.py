"""Which modules a caller means: `all-linear`, names, or a regular expression, matched as PEFT matches them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from milora.errors import MiloraError

ALL_LINEAR = "all-linear"
_NAME = re.compile(r"[\w.\-]+")


def parse_targets(text: str) -> str | list[str]:
    """What `--targets` says: `all-linear`, a list of names (one, or several with commas), else a regular expression.

    Raises:
        MiloraError: nothing is named, or the expression is none.

    Examples:
        >>> parse_targets("q_proj,v_proj")
        ['q_proj', 'v_proj']
        >>> parse_targets("all-linear")
        'all-linear'
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise MiloraError(f"targets: got {text!r}, allowed {ALL_LINEAR}, names with commas, a regular expression")
    if names == [ALL_LINEAR]:
        return ALL_LINEAR
    if all(_NAME.fullmatch(name) for name in names):
        return names
    try:
        re.compile(text)
    except re.error as error:
        raise MiloraError(f"targets: got {text!r}, which is no regular expression ({error})") from error
    return text


def is_target(targets: str | Sequence[str], module: str) -> bool:
    """Whether a module is meant: a text is an expression for its whole name, a list holds names or their endings."""
    if isinstance(targets, str):
        return targets == ALL_LINEAR or re.fullmatch(targets, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in targets)


def select(targets: str | Sequence[str], modules: Sequence[str], head: str | None = None) -> list[str]:
    """The modules that are meant, in their order.

    Args:
        targets: as `parse_targets` gives them.
        modules: the names of all linear modules.
        head: the output head, which `all-linear` leaves out.

    Raises:
        MiloraError: nothing matches, or one of several names matches nothing.
    """
    leaves = ", ".join(dict.fromkeys(m.rsplit(".", 1)[-1] for m in modules if m != head))
    unmatched = [] if isinstance(targets, str) else [t for t in targets if not any(is_target([t], m) for m in modules)]
    if unmatched:
        raise MiloraError(f"targets: {unmatched[0]!r} matches no linear module, allowed e.g. {leaves}")
    found = [m for m in modules if is_target(targets, m) and not (targets == ALL_LINEAR and m == head)]
    if not found:
        raise MiloraError(f"targets: {targets!r} matches none of {len(modules)} linear modules, allowed e.g. {leaves}")
    return found


def matching_name(modules: Iterable[str], pattern: str) -> str | None:
    """The first of the modules' names that a pattern matches."""
    return next((m for m in modules if matching_pattern([pattern], m)), None)


def matching_pattern(patterns: Iterable[str], module: str) -> str | None:
    """The first pattern that matches a module's name as PEFT matches its rank patterns: whole, or after a dot."""
    return next((p for p in patterns if re.match(rf"(.*\.)?({p})$", module)), None)
