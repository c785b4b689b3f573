"""Checks are arithmetic over metrics, and nothing else."""

import pytest

from milora.comparison.expressions import evaluate, names_in
from milora.errors import MiloraError

VALUES = {
    ("kl", "lora", None, None): 0.2,
    ("kl", "lora", None, 16): 0.3,
    ("kl", "a.b", None, None): 0.1,
    ("amplification", "lora", "q_proj", None): 4.0,
    ("gsm8k:acc", "lora", None, None): 0.5,
}


def look(*key):
    return VALUES.get(key)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("kl(lora)", 0.2),
        ("kl(lora, step=16) / kl(lora)", 1.5),
        ("kl('a.b') - kl(lora)", -0.1),
        ("amplification(lora, q_proj) * 2 + 1", 9.0),
        ('metric("gsm8k:acc", lora)', 0.5),
        ("abs(-kl(lora))", 0.2),
        ("max(kl(lora), 1.0) - min(kl(lora), 1.0)", 0.8),
        ("kl(lora, step=17)", None),
        ("kl(lora) / (kl(lora) - kl(lora))", None),
    ],
)
def test_values(expression, value):
    assert evaluate(expression, look) == (None if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    "expression",
    ["__import__('os').system('x')", "kl(lora).real", "kl", "kl(lora) ** 9", "kl(lora", "[kl(lora)]", "kl(lora, at=3)",
     "abs()", "min(kl(lora))", "'text'", "True", "kl(lora) if kl(lora) else 1", "kl(open('x'))", "lambda: 0"],
)  # fmt: skip
def test_what_is_no_arithmetic_is_refused(expression):
    with pytest.raises(MiloraError, match="allowed"):
        evaluate(expression, lambda *_: 1.0)


def test_a_divisor_that_is_always_zero_is_refused_with_the_grid():
    with pytest.raises(MiloraError, match=r"got 'kl\(a\) / 0', which divides by zero"):
        names_in("kl(a) / 0")


def test_names_of_arms():
    assert names_in("kl(pissa) / (kl(lora) - kl('a.b')) + metric('x:y', base)") == {"pissa", "lora", "a.b", "base"}
