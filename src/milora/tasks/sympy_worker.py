"""Formulas compared by math-verify and sympy, in a process of its own.

A formula that a model wrote may keep sympy busy for ever or fill the memory ("9^{9^{9^9}}"). math-verify stops
itself by a signal, which works in a main thread only; a process is stopped from any thread. It reads one JSON
list [kind, prediction, gold] a line and answers ``true`` or ``false``; what raises is ``false``.

    equal    math-verify: the same value, set, interval, matrix or relation
    close    the published scorers' last resort: simplify(a - b) == 0, or values within 1e-3 of one another
"""

import atexit
import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

from milora.errors import MiloraError

SECONDS = 10.0  # for one comparison
LONGEST = 200  # characters of an answer that is looked into; the longest of MATH has under 100
START = 120.0  # seconds for sympy's import
MEMORY = 4 << 30  # bytes of address space


def require_math() -> None:
    """Check that math-verify is installed.

    Raises:
        MiloraError: names the extra that brings it.
    """
    if find_spec("math_verify") is None:
        raise MiloraError("milora_math: the package math-verify is not installed: pip install 'milora[math]'")


class SympyWorker:
    """One process, started at the first question and again after one that took too long.

    Args:
        seconds: for one comparison.
    """

    def __init__(self, seconds: float = SECONDS):
        self._seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def ask(self, kind: str, prediction: str, gold: str) -> bool:
        """Whether the two are the same; False where that cannot be found out in time."""
        with self._lock:
            process = self._running()
            return self._exchange(process, json.dumps([kind, prediction, gold]), self._seconds) == "true"

    def close(self) -> None:
        """End the process."""
        with self._lock:
            if self._process is not None and self._owner == os.getpid():
                self._process.kill()
                self._process.wait()
                for pipe in (self._process.stdin, self._process.stdout):
                    with suppress(OSError):
                        if pipe is not None:
                            pipe.close()
            self._process = None

    def _running(self) -> "subprocess.Popen[str]":
        # A forked process shares its parent's pipes, and two that talk through one get each other's answers.
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            # The file itself: started by its dotted name, the package would be imported first.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "milora.tasks.sympy_worker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                text=True, encoding="utf-8",
            )  # fmt: skip
            self._owner = os.getpid()
            self._exchange(self._process, "", START)
        return self._process

    @staticmethod
    def _exchange(process: "subprocess.Popen[str]", line: str, seconds: float) -> str:
        """One line sent and one read; nothing where the process dies or is too slow, and it is then killed."""
        late = threading.Timer(seconds, process.kill)
        late.start()
        try:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(line + "\n")
            process.stdin.flush()
            answer = process.stdout.readline().strip()
            if not answer:
                process.wait()
            return answer
        except OSError:
            return ""
        finally:
            late.cancel()


_shared = SympyWorker()
atexit.register(_shared.close)


def ask(kind: str, prediction: str, gold: str) -> bool:
    """The question put to the process that all callers share; a side that is longer than LONGEST is no answer.

    Raises:
        MiloraError: math-verify is not installed.
    """
    require_math()
    return max(len(prediction), len(gold)) <= LONGEST and _shared.ask(kind, prediction, gold)


def _equal(prediction: str, gold: str) -> bool:
    from math_verify import verify

    found, wanted = _parsed(prediction), _parsed(gold)
    return bool(found and wanted and verify(wanted, found, float_rounding=10, timeout_seconds=None))


def _close(prediction: str, gold: str) -> bool:
    from math import isclose

    from sympy import N, simplify

    if r"\text" in prediction + gold:  # words are no values
        return False
    a, b = _parsed(prediction)[0], _parsed(gold)[0]  # raises where nothing was read
    with suppress(Exception):
        if simplify(a - b) == 0:
            return True
    return isclose(float(N(a)), float(N(b)), rel_tol=1e-3)


def _parsed(formula: str) -> list[Any]:
    from math_verify import parse
    from math_verify.parser import LatexExtractionConfig

    # LaTeX only: sympy's other parser evaluates Python, which a model may have written. It is also what sympy does
    # with a text in the place of a value, so what was not read and stays text is left out.
    found = parse(f"${formula}$", extraction_config=[LatexExtractionConfig()], parsing_timeout=0)
    return [value for value in found if not isinstance(value, str)]


def _serve() -> None:
    import logging

    logging.disable()
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    kinds = {"equal": _equal, "close": _close}
    sys.stdin.readline()
    _parsed("1")
    print("ready", flush=True)
    for line in sys.stdin:
        kind, prediction, gold = json.loads(line)
        try:
            answer = kinds[kind](prediction, gold)
        except (Exception, RecursionError):
            answer = False
        print(json.dumps(bool(answer)), flush=True)


if __name__ == "__main__":
    _serve()
