"""The page as a reader meets it: opened in Chromium, sorted, printed, and judged by axe and the Nu checker."""

import re
from pathlib import Path
from typing import Any

import pytest

import browser
from milora.report import write_report
from report import synthetic, synthetic_comparison

pytestmark = pytest.mark.slow

DRAWING = ("svg > g",)  # axe judges a picture by its text; its lines are thousands of elements


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison with a failed run, missing values, a lost loss, HTML in its samples and a name that is too long."""
    made = tmp_path_factory.mktemp("page") / "comparison"
    long = "-" + "endless_" * 12
    return synthetic_comparison.make(
        made, ("lora", "milora", "pissa", "random_components"), (0, 1), layers=3, hostile=synthetic.HOSTILE, long=long
    )


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    return write_report([folder], formats=["html"])[0]


@pytest.fixture(scope="module")
def url(file: Path) -> str:
    return file.resolve().as_uri()


def column(page: Any, table: str, index: int) -> list[str]:
    return page.eval_on_selector_all(f"#{table} tbody tr", f"rows => rows.map(r => r.cells[{index}].textContent)")


def test_no_error_and_no_request(chromium: Any, url: str):
    with browser.opened(chromium, url) as (page, wrong):
        assert page.title() == "comparison"
        assert page.locator("section").count() >= 15
        page.mouse.wheel(0, 20000)
        assert wrong == []
        # The watch itself is awake: the page's policy refuses a request and the console says so.
        page.evaluate("document.body.append(Object.assign(new Image(), {src: 'file:///elsewhere.png'}))")
        page.wait_for_timeout(200)
        assert wrong


def test_nothing_that_the_folders_hold_is_markup(chromium: Any, url: str):
    with browser.opened(chromium, url) as (page, wrong):
        assert page.locator("script").count() == 1 and page.locator("img").count() == 0
        assert page.locator(".written", has_text='<script>alert("x")</script>').count() >= 4
        assert page.locator(".written", has_text="{{ 7 * 7 }} $x^2$").count() >= 4
        assert page.locator("#failed-table td", has_text="<script>").count() == 1
        assert wrong == []


def test_tables_sort_by_click(chromium: Any, url: str):
    with browser.opened(chromium, url) as (page, _):
        header = page.locator("#results-table thead th", has_text="validation loss")
        index = header.evaluate("th => th.cellIndex")
        before = column(page, "results-table", index)
        header.get_by_role("button").click()
        assert header.get_attribute("aria-sort") == "ascending"
        up = column(page, "results-table", index)
        assert up != before and up[-1] == "not measured"  # the base's
        numbers = [float(text.split(" ")[0]) for text in up[:-1]]
        assert len(numbers) == 6 and numbers == sorted(numbers)
        header.get_by_role("button").click()
        assert header.get_attribute("aria-sort") == "descending"
        down = column(page, "results-table", index)
        assert down[:-1] == up[:-1][::-1] and down[-1] == "not measured"
        assert page.locator("[aria-sort]").count() == 1
        assert "sorted by validation loss" in page.locator("#sorted").text_content()


def test_tables_sort_by_keyboard(chromium: Any, url: str):
    with browser.opened(chromium, url) as (page, _):
        button = page.locator("#results-table thead th", has_text="arm").first.get_by_role("button")
        button.focus()
        page.keyboard.press("Enter")
        up = column(page, "results-table", 0)
        # A rank of 4 stands before one of 16.
        assert [name.split("-")[0] + name[-5:] for name in up] == [
            "base" + "base", "lora" + "less_", "milora" + "_ r=4", "milora" + "_ r=8", "milora" + " r=16",
            "pissa" + "less_", "random_components" + "less_",
        ]  # fmt: skip
        page.keyboard.press("Space")
        assert column(page, "results-table", 0) == up[::-1]
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.closest('th').textContent").strip() == "method"


def test_every_picture_says_what_it_shows(chromium: Any, url: str):
    with browser.opened(chromium, url) as (page, _):
        pictures = page.locator("svg")
        assert pictures.count() >= 8
        assert page.get_by_role("img").count() == pictures.count()
        for picture in pictures.all():
            title, words = picture.locator("> title").text_content(), picture.locator("> desc").text_content()
            assert title and len(words) > 60 and re.search(r"\d", words), title
        ids = page.eval_on_selector_all("[id]", "all => all.map(e => e.id)")
        assert len(ids) == len(set(ids))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_accessible(chromium: Any, url: str, scheme: str, width: int):
    with browser.opened(chromium, url, scheme=scheme, width=width) as (page, _):
        page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
        assert browser.serious(page, leave_out=DRAWING) == []
        # The judge is awake: a picture without words is found.
        page.evaluate("document.querySelector('svg title').remove()")
        page.evaluate("document.querySelector('svg').removeAttribute('aria-labelledby')")
        assert any("svg" in line for line in browser.serious(page, leave_out=DRAWING))


def test_lines_and_letters_of_pictures_stand_out(chromium: Any, url: str):
    """3:1 for lines (WCAG 1.4.11) and 4.5:1 for letters (1.4.3), on the page's own background."""
    for scheme in ("light", "dark"):
        with browser.opened(chromium, url, scheme=scheme) as (page, _):
            paper = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            for variable, least in [(f"--s{i}", 3.0) for i in range(8)] + [("--ink", 4.5), ("--muted", 4.5)]:
                script = f"getComputedStyle(document.querySelector('svg').appendChild(probe('{variable}'))).color"
                make = "const probe = v => Object.assign(document.createElement('i'), {style: `color: var(${v})`});"
                assert contrast(luminance(page.evaluate(f"(() => {{ {make} return {script} }})()")), paper) >= least, (
                    scheme, variable,
                )  # fmt: skip


def luminance(colour: str) -> float:
    red, green, blue = (int(v) / 255 for v in re.findall(r"\d+", colour)[:3])
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (red, green, blue)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: float, b: float) -> float:
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)


def test_a_phone_scrolls_only_downwards(chromium: Any, url: str):
    with browser.opened(chromium, url, width=360) as (page, _):
        page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        wide = page.locator(".scroll").evaluate_all("all => all.filter(e => e.scrollWidth > e.clientWidth)")
        assert len(wide) >= 10
        assert page.locator(".scroll:not([tabindex='0'])").count() == 0


def test_colours_follow_the_button(chromium: Any, url: str):
    with browser.opened(chromium, url) as (page, _):
        background = "getComputedStyle(document.body).backgroundColor"
        line = "getComputedStyle(document.querySelector('svg path[style*=\"--s0\"]')).stroke"
        light = page.evaluate(background), page.evaluate(line)
        page.get_by_role("button", name="Dark colours").click()
        dark = page.evaluate(background), page.evaluate(line)
        assert luminance(dark[0]) < 0.05 < 0.9 < luminance(light[0]) and dark[1] != light[1]
        page.get_by_role("button", name="Light colours").click()
        assert (page.evaluate(background), page.evaluate(line)) == light


def test_prints_light_and_whole(chromium: Any, url: str, tmp_path: Path):
    with browser.opened(chromium, url, scheme="dark") as (page, _):
        page.emulate_media(media="print")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert not page.locator("nav").is_visible() and page.locator("#results-table").is_visible()
        page.pdf(path=tmp_path / "report.pdf")
    content = (tmp_path / "report.pdf").read_bytes()
    pages = len(re.findall(rb"/Type\s*/Page\b", content))
    assert content.startswith(b"%PDF") and 4 <= pages <= 40


def test_the_checker_finds_nothing(file: Path, tmp_path: Path):
    assert browser.invalid(file) == []
    broken = tmp_path / "broken.html"
    broken.write_text(file.read_text(encoding="utf-8").replace("</h1>", "<p></h1>", 1), encoding="utf-8")
    assert browser.invalid(broken)
