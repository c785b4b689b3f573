"""The arithmetic of a check: `kl(pissa) / kl(lora)`, `validation_loss(milora) - validation_loss(lora, step=16)`.

A call names a metric and the arm that it is of: metric(arm), metric(arm, type) for one module type of the analysis,
metric(arm, step=16) at a measured step. A metric that is no Python name is written `metric("gsm8k:acc", arm)`, an arm
in quotes. Allowed besides are numbers, + - * / and abs, min, max. Nothing is executed: the text is parsed and walked.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

from milora.errors import MiloraError

OPERATORS: dict[type[Any], Callable[[float, float], float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip
FUNCTIONS: dict[str, Callable[..., Any]] = {"abs": abs, "min": min, "max": max}

# (metric, arm, module type or None, step or None) -> its value, or None where it was not measured.
Lookup = Callable[[str, str, str | None, int | None], float | None]


def evaluate(expression: str, lookup: Lookup) -> float | None:
    """The value of an expression.

    Args:
        expression: see above.
        lookup: gives the value of a metric.

    Returns:
        None where a metric was not measured or a divisor is zero.

    Raises:
        MiloraError: what is not allowed in an expression.
    """
    try:
        return _value(_parsed(expression), lookup)
    except (_Absent, ZeroDivisionError):
        return None


def names_in(expression: str) -> set[str]:
    """The arms that an expression names.

    Raises:
        MiloraError: what is not allowed in an expression, or a divisor that is zero whatever is measured.
    """
    named: list[str] = []

    def note(metric: str, arm: str, type_: str | None, step: int | None) -> float:
        named.append(arm)
        return math.sqrt(len(named))  # no two alike, so that no divisor is zero

    try:
        _value(_parsed(expression), note)
    except ZeroDivisionError as error:
        raise MiloraError(f"got {expression!r}, which divides by zero") from error
    return set(named)


class _Absent(Exception):
    """A metric that was not measured."""


def _parsed(expression: str) -> ast.expr:
    try:
        return ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise MiloraError(f"got {expression!r}, allowed arithmetic over metrics, as kl(pissa) / kl(lora)") from error


def _value(node: ast.expr, lookup: Lookup) -> float:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return float(number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, lookup)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            sides = _value(left, lookup), _value(right, lookup)
            return _divided(*sides) if isinstance(op, ast.Div) else OPERATORS[type(op)](*sides)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
            values = [_value(arg, lookup) for arg in args]
            if (name == "abs") == (len(values) == 1) and values:
                return FUNCTIONS[name](*values)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            return _metric(name, args, keywords, lookup)
    raise MiloraError(f"got {ast.unparse(node)!r}, allowed numbers, + - * /, abs, min, max and metric(arm)")


def _divided(left: float, right: float) -> float:
    if right == 0:
        raise ZeroDivisionError
    return left / right


def _metric(name: str, args: list[ast.expr], keywords: list[ast.keyword], lookup: Lookup) -> float:
    words = [_word(arg) for arg in args]
    if name == "metric":
        name, *words = words or [""]
    steps = [_step(k) for k in keywords]
    if len(words) not in (1, 2) or len(steps) > 1:
        raise MiloraError(f"{name}: got {len(words)} words and {len(steps)} steps, allowed {name}(arm), a type, a step")
    value = lookup(name, words[0], words[1] if len(words) == 2 else None, steps[0] if steps else None)
    if value is None:
        raise _Absent
    return value


def _word(node: ast.expr) -> str:
    match node:
        case ast.Name(id=word) | ast.Constant(value=str() as word):
            return word
    raise MiloraError(f"got {ast.unparse(node)!r} in a call, allowed the name of an arm or of a module type")


def _step(keyword: ast.keyword) -> int:
    match keyword:
        case ast.keyword(arg="step", value=ast.Constant(value=int() as step)) if not isinstance(step, bool):
            return step
    raise MiloraError(f"got {keyword.arg!r} in a call, allowed step=NUMBER")
