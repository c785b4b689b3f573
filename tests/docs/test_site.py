"""The site is built as `make docs` builds it, and judged: valid, whole, accessible, asking nobody for anything."""

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest

from browser import serious
from milora.adapters import method_names

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
MAIN = ("index.html", "start.html", "choosing.html", "methods/index.html", "methods/milora.html", "data.html",
        "serving.html", "comparing.html", "reference/grid.html", "reference/recipe.html", "reference/cli.html",
        "api/linalg.html", "notebooks/first_adapter.html")  # fmt: skip
# What makes a browser fetch something: a tag, and the attribute that says where.
FETCHED = dict.fromkeys(("script", "img", "iframe", "source", "video", "audio", "embed"), "src")
FETCHED |= {"object": "data", "link": "href", "form": "action"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. The notebook runs while it is built, so that a cell that fails, fails this."""
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    folder = tmp_path_factory.mktemp("site")
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    call = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def trees(site: Path) -> dict[str, Any]:
    """Each page as a tree, by its path."""
    from lxml import html

    found = {p.relative_to(site).as_posix(): html.parse(str(p)).getroot() for p in sorted(site.rglob("*.html"))}
    assert len(found) >= 40
    return found


def test_every_page_is_valid_html(site: Path, trees: dict[str, Any]):
    html5lib = pytest.importorskip("html5lib", reason="the extra dev is not installed")
    problems: list[str] = []
    for path in trees:
        parser = html5lib.HTMLParser()
        parser.parse((site / path).read_text(encoding="utf-8"))
        problems += [f"{path}:{position}: {code} {data}" for position, code, data in parser.errors]
    assert not problems, "\n".join(problems[:20])


def test_every_page_has_what_a_reader_needs(trees: dict[str, Any]):
    problems: list[str] = []
    for path, tree in trees.items():
        ids = Counter(tree.xpath("//@id"))
        problems += [f"{path}: id {name!r} {count} times" for name, count in ids.items() if count > 1]
        problems += [f"{path}: picture without alt" for image in tree.iter("img") if image.get("alt") is None]
        if tree.get("lang") != "en" or not (tree.findtext(".//title") or "").strip():
            problems.append(f"{path}: no language or title")
        if path != "404.html" and len(tree.xpath("//h1")) != 1:
            problems.append(f"{path}: {len(tree.xpath('//h1'))} headings of the first level")
    assert not problems, "\n".join(problems)


def test_no_page_asks_for_anything_outside(site: Path, trees: dict[str, Any]):
    asked = [(path, tag, element.get(where)) for path, tree in trees.items() for tag, where in FETCHED.items()
             for element in tree.iter(tag) if element.get(where)]  # fmt: skip
    assert len(asked) > len(trees)
    assert not [a for a in asked if urlparse(a[2]).scheme or a[2].startswith("//")]
    sheets = [p.read_text(encoding="utf-8") for p in site.rglob("*.css")]
    assert sheets
    assert not [url for css in sheets for url in re.findall(r"(?:url\(|@import)\s*['\"]?((?:https?:)?//[^'\")]+)", css)]


def test_every_link_within_the_site_leads_somewhere(site: Path, trees: dict[str, Any]):
    targets = {path: set(tree.xpath("//@id")) | set(tree.xpath("//a/@name")) for path, tree in trees.items()}
    followed, broken = 0, []
    for path, tree in trees.items():
        for link in tree.xpath("//a/@href"):
            url = urlparse(link)
            if url.scheme or path == "404.html":
                continue
            followed += 1
            place = (site / path).parent / unquote(url.path) if url.path else site / path
            name = os.path.normpath(place / "index.html" if place.is_dir() else place)
            inside = os.path.relpath(name, site)
            anchor = unquote(url.fragment)
            if not Path(name).is_file() or (anchor and anchor != "__skip" and anchor not in targets.get(inside, set())):
                broken.append(f"{path}: {link}")
    assert followed > 1000
    assert not broken, "\n".join(broken[:20])


def test_every_method_is_in_the_site_and_in_its_navigation(trees: dict[str, Any]):
    links = set(trees["index.html"].xpath("//nav//a/@href"))
    assert len(method_names()) >= 13
    for name in method_names():
        assert f"methods/{name}.html" in trees and f"methods/{name}.html" in links, name


def test_formulas_are_mathml(trees: dict[str, Any]):
    assert trees["methods/milora.html"].xpath("//math//msqrt")
    left = [path for path, tree in trees.items() if tree.xpath("//*[@class='arithmatex']")]
    assert not left


def test_the_notebook_has_run(trees: dict[str, Any]):
    text = trees["notebooks/first_adapter.html"].text_content()
    assert "logits identical: True" in text and "base weight untouched: True" in text
    assert "largest entry of the change of q_proj: 0.0" in text
    assert "rank 16 alpha 16" in text
    bottom, top = (float(re.search(rf"with the {part} 8 of W:\s+([\d.]+)", text)[1]) for part in ("bottom", "top"))  # pyright: ignore
    assert bottom > 2 * 8 / 64 > top  # 8 / 64 is chance


@pytest.fixture(scope="module")
def served(site: Path) -> Iterator[str]:
    """The site on a port of this machine."""
    import threading
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_main_pages_are_accessible(chromium: Any, served: str, scheme: str):
    context = chromium.new_context(color_scheme=scheme, viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    found: list[str] = []
    for path in MAIN:
        tab.goto(served + path, wait_until="load")
        found += [f"{path}: {problem}" for problem in serious(tab)]
    context.close()
    assert not found, "\n".join(found)


def test_main_pages_ask_for_nothing_and_complain_of_nothing(chromium: Any, served: str):
    requests: list[str] = []
    complaints: list[str] = []
    context = chromium.new_context(viewport={"width": 390, "height": 800})
    tab = context.new_page()
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    for path in MAIN:
        tab.goto(served + path, wait_until="networkidle")
        width = tab.evaluate("document.documentElement.scrollWidth")
        assert width <= 390, f"{path}: {width} pixels wide on a phone of 390"
    context.close()
    assert len(requests) > len(MAIN)
    assert not [url for url in requests if not url.startswith((served, "data:", "blob:"))]
    assert not complaints


def test_search_finds_a_page(chromium: Any, served: str):
    tab = chromium.new_page(viewport={"width": 1280, "height": 900})
    tab.goto(served + "index.html", wait_until="networkidle")
    tab.click(".md-search__input")
    tab.keyboard.type("amplification")
    tab.wait_for_selector(".md-search-result__item", state="attached", timeout=20000)
    first = tab.locator(".md-search-result__item").first.text_content()
    tab.close()
    assert "amplification" in first.lower()
