"""Hard cases of the clean MATH scorer, each judged by hand, and the golds of real rows."""

import json
import random
import threading

import pytest

from milora.tasks.local_files import read_rows
from milora.tasks.math_answers import clean_answer, compat_answer, last_boxed
from milora.tasks.math_equivalence import equivalent
from milora.tasks.sympy_worker import SympyWorker

pytest.importorskip("math_verify")

# prediction, gold
SAME = [
    (r"\frac12", "0.5"), (r"\dfrac{1}{2}", r"\frac{1}{2}"), ("1/2", r"\frac{1}{2}"), (r"\tfrac{2}{3}", "2/3"),
    (r"-\frac{1}{2}", r"\frac{-1}{2}"), (r"\frac1{72}", "1/72"), (r"\frac{3}{4}", r"\frac{6}{8}"),
    (".5", r"\frac{1}{2}"),
    (r"1 \frac{1}{2}", r"\frac32"), (r"1\frac{1}{2}", "1.5"), ("5", "5.0"), ("5.", "5"), ("+5", "5"), ("-5", "−5"),
    ("1,234", "1234"), ("1{,}234", "1234"), (r"10,\!000", "10000"), ("1 000", "1000"), (r"2^{10}", "1024"),
    (r"50\%", "50"), (r"50\%", "0.5"), ("0.5", r"50\%"), (r"\$5", "5"), ("$5$", "5"), ("12 dollars", "12"),
    (r"90^\circ", "90"), (r"90^{\circ}", "90"), (r"100\text{ degrees}", "100"),
    (r"5\text{ cm}", "5"), (r"5 \text{ cm}^2", "5"), (r"5\ \mathrm{cm}", "5"), ("5 cm", r"5\text{ cm}"),
    ("x=5", "5"), ("5", "x = 5"), ("k=5", "k = 5"), ("y=2x+3", "2x+3"), ("f(x)=x+1", "x+1"),
    (r"x \in [-2,7]", "[-2,7]"),
    (r"\sqrt{8}", r"2\sqrt2"), (r"\sqrt 3", r"\sqrt{3}"), (r"11\sqrt2", r"11\sqrt{2}"),
    (r"\frac{\sqrt{3}}{2}", r"\frac{1}{2}\sqrt{3}"), (r"\frac{\pi}{2}", r"\pi/2"), (r"\pi r^2", r"r^2\pi"),
    ("x^2+2x+1", "(x+1)^2"), ("5x+3", "3+5x"), ("(x-1)(x+2)", "(x+2)(x-1)"), ("6 - 5i", "6-5i"), (r"4\cdot 3", "12"),
    (r"\frac{3}{4} x", r"\frac{3x}{4}"),
    ("1,2,3", "3,2,1"), (r"\{1,2\}", r"\{2,1\}"), ("1,-2", "-2, 1"), (r"1 \text{ and } 2", "1,2"),
    (r"3\pm\sqrt2", r"3+\sqrt2,3-\sqrt2"),
    (r"(3, \frac{\pi}{2})", r"\left( 3, \frac{\pi}{2} \right)"), ("(0.5, 1)", r"(\frac12, 1)"),
    (r"(-\infty,2)", r"\left(-\infty, 2\right)"), (r"(-\infty,2)\cup(3,\infty)", r"(3,\infty)\cup(-\infty,2)"),
    (r"\begin{pmatrix}1\\0.5\end{pmatrix}", r"\begin{pmatrix} 1 \\ \frac{1}{2} \end{pmatrix}"),
    (r"\begin{bmatrix}1&2\\3&4\end{bmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
    (r"\text{even}", "even"), (r"\text{Even}", r"\text{even}"), (r"\text{(A)}", "A"), ("(A)", r"\text{(A)}"),
    ("1010_2", r"1010_{2}"), ("1010", "1010_2"),
]  # fmt: skip

DIFFERENT = [
    # Traps of the published scorer.
    ("x/2", "7"), ("3.5/2", "100"), ("m/s", "5"), ("1/2", "5"), ("plain wrong text", "5"), ("1800", "18"),
    ("0.18", "18"),
    # Numbers that are near, or look alike.
    (r"\frac{1}{3}", "0.333"), ("0.33333333", r"\frac{1}{3}"), ("18.4", "18"), ("-5", "5"), ("100", "100000"),
    ("1,000", "1"), ("1,234", "1234567"), ("3.14", r"\pi"), ("3.141593", r"\pi"), ("1.41421356", r"\sqrt{2}"),
    ("1 2", "12"),
    ("12", "1,2"), ("50", "5000"), ("0.5", "50"), (r"50\%", r"5000\%"), (r"2\sqrt{3}", r"3\sqrt{2}"),
    # Units, names, bases.
    (r"5\text{ cm}", r"5\text{ m}"), ("x=5", "y=5"), ("10_2", "10_3"), ("2", "2x"), ("a", "b"), ("n", "N"),
    ("x^2", "x^3"),
    ("x+1", "y+1"), ("p-q", "q-p"), ("x<5", "x>5"),
    # Collections.
    ("(1,2)", "(1,2]"), ("(1,2)", "[1,2]"), ("(1,2)", "(2,1)"), ("7", "7,8"), ("7,8", "7"), ("1,1,2", "1,2,2"),
    ("3,4", "(3,4)"), ("[1,2]", r"\{1,2\}"), ("0", r"\emptyset"), (r"(1,2)\cup(3,4)", r"(1,2)\cup(3,5)"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}"),
    # Words.
    (r"\text{even}", r"\text{odd}"), ("even", "neve"), (r"\text{Navin}", r"\text{Alice}"), ("(A)", "(B)"), ("A", "B"),
    (r"\text{yes}", r"\text{no}"), ("5", "five"), (r"\text{five}", "5"),
    # What cannot be read.
    ("", "5"), ("", ""), ("5", ""), (r"\frac{1}{0}", "0"), (r"\frac", "5"), (r"\sqrt", "5"), ("{", "5"),
    (r"\frac{1}{", r"\frac{1}{2}"), ("__import__('os')", "5"),
]  # fmt: skip

# completion, clean, compat
ANSWERS = [
    ("The answer is: 5", "5", "5"),
    ("The answer is: 5.", "5", "5"),
    ("The answer is: 5.\nAnd more", "5", "5"),
    ("The answer is: 5\nAnd more", "5", "5\nAnd more"),
    ("The answer is: 1\nThe answer is: 2", "2", "2"),
    ("The answer is: $\\frac{1}{2}$.", "\\frac{1}{2}", "$\\frac{1}{2}$"),
    ("The answer is: \\boxed{\\frac{1}{2}}", "\\frac{1}{2}", "\\boxed{\\frac{1}{2}}"),
    ("The answer is: \\(x\\)", "x", "\\(x\\)"),
    ("The answer is: $a$ and $b$", "$a$ and $b$", "$a$ and $b$"),
    ("The answer is: 3.5", "3.5", "3.5"),
    ("so $\\boxed{\\text{no}}$", "\\text{no}", ""),
    ("\\boxed{1}, no, \\boxed{2}", "2", ""),
    ("\\boxed{\\boxed{3}}", "3", ""),
    ("**The answer is: 5**", "5", "5**"),
    ("**The answer is: $\\frac{1}{2}$.**", "\\frac{1}{2}", "$\\frac{1}{2}$.**"),
    ("The answer is: 5. I hope it is correct.", "5", "5. I hope it is correct"),
    ("The answer is: 3.5. So", "3.5", "3.5. So"),
    ("The answer is: \\text{St. Louis}.", "\\text{St. Louis}", "\\text{St. Louis}"),
    ("The answer is: $5$ dollars.", "5", "$5$ dollars"),
    ("The answer is: $5$ or $6$", "$5$ or $6$", "$5$ or $6$"),
    ("The answer is 5", "", ""),
    ("the answer is: 5", "", ""),
    ("", "", ""),
]

BOXED = [
    (r"\boxed{5}", "5"),
    (r"\boxed{\frac{1}{\sqrt{2}}}.", r"\frac{1}{\sqrt{2}}"),
    (r"\boxed{1} or \fbox{2}", "2"),
    (r"\boxed 5$.", "5"),
    (r"\boxed{\{1,2\}}", r"\{1,2\}"),
    (r"\boxed{unclosed", ""),
    ("none", ""),
]


@pytest.mark.parametrize(("prediction", "gold"), SAME)
def test_same(prediction, gold):
    assert equivalent(prediction, gold)


@pytest.mark.parametrize(("prediction", "gold"), DIFFERENT)
def test_different(prediction, gold):
    assert not equivalent(prediction, gold)


@pytest.mark.parametrize(("completion", "clean", "compat"), ANSWERS)
def test_answers_are_found(completion, clean, compat):
    assert clean_answer(completion) == clean
    assert compat_answer(completion) == compat


@pytest.mark.parametrize(("text", "inside"), BOXED)
def test_boxed(text, inside):
    assert last_boxed(text) == inside


def test_what_takes_too_long_is_stopped_in_any_thread():
    worker = SympyWorker(seconds=1)
    verdicts = []

    def ask():
        verdicts.append(worker.ask("equal", "9^{9^{9^{9}}}", "5"))
        killed = worker._process
        worker._seconds = 60  # what follows is quick on any machine but a busy one
        verdicts.append(worker.ask("equal", "x+y", "y+x"))
        verdicts.append(worker._process is not killed and killed.returncode != 0)
        verdicts.append(worker.ask("close", "", "5"))  # raises there

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join(timeout=200)
    worker.close()
    assert verdicts == [False, True, True, False]


def _golds(shared_data):
    small = read_rows(shared_data / "math" / "math500_dev_200.jsonl")
    large = read_rows(shared_data / "math" / "math_problems_4000.jsonl.gz")
    assert all(last_boxed(row["solution"]) == row["answer"] for row in small)
    return [last_boxed(row["solution"]) for row in small + large]


def _laid_out_otherwise(gold):
    gold = gold.rstrip(".").replace("\\frac", "\\dfrac").replace("\\left", "").replace("\\right", "")
    return f"$ {gold.replace(',', ', ')} $."


def test_golds_equal_themselves_in_another_layout(shared_data):
    golds = _golds(shared_data)
    assert len(golds) == 4200
    assert not [gold for gold in golds if not equivalent(_laid_out_otherwise(gold), gold)]


@pytest.mark.slow
def test_golds_with_another_digit_differ(shared_data):
    rng = random.Random(0)
    golds = [gold for gold in _golds(shared_data) if any(c.isdigit() for c in gold)]
    wrong = []
    for gold in rng.sample(golds, 500):
        at = rng.choice([i for i, c in enumerate(gold) if c.isdigit()])
        other = gold[:at] + str((int(gold[at]) + rng.randint(1, 8)) % 10) + gold[at + 1 :]
        if other != gold and equivalent(other, gold):
            wrong.append((other, gold))
    assert wrong == []


def test_rows_of_math(shared_data, tmp_path):
    from milora.errors import MiloraError
    from milora.tasks import rows

    found = rows.math("hendrycks_math", data_dir=str(shared_data))["test"]
    assert len(found) == 200
    (tmp_path / "math.jsonl").write_text(json.dumps({"problem": "?", "solution": "five"}) + "\n")
    with pytest.raises(MiloraError, match=r"row 1: the solution has no \\boxed"):
        rows.math("math500", data_dir=str(tmp_path))


def test_without_math_verify_it_is_said_before_anything_is_generated(monkeypatch, tmp_path):
    from milora.errors import MiloraError
    from milora.tasks import rows, sympy_worker

    monkeypatch.setattr(sympy_worker, "find_spec", lambda name: None)
    with pytest.raises(MiloraError, match=r"pip install 'milora\[math\]'"):
        rows.math("math500", data_dir=str(tmp_path))
