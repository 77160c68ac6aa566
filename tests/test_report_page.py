"""The report's page in a real, headless browser."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from axe_core_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from stages import report
from stages.common.report import charts, wording
from tests import report_fixture
from tests.report_fixture import HOSTILE
from tools import screenshot

CHROMIUM = screenshot.find_chromium()
if CHROMIUM is None:
    pytest.skip(
        f"the report is not tested in a browser: {screenshot.HOW_TO_GET_CHROMIUM}",
        allow_module_level=True,
    )


@pytest.fixture(scope="module")
def browser():
    """One browser for the whole module."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_files(tmp_path_factory) -> dict[str, Path]:
    """Rendered pages: two classes and twenty images, and a thousand classes and 50,000 images."""
    before = Path.cwd()
    files = {}
    many = [*HOSTILE, *(f"class {number} of many" for number in range(998))]
    for name, classes, options in (
        ("small", HOSTILE, {"test_images": 20, "gallery": 20}),
        (
            "many",
            many,
            {
                "test_images": 50_000,
                "gallery": 60,
                "slices": {"camera <b>": [f"camera {n}" for n in range(40)]},
                "rejected": 30,
            },
        ),
    ):
        folder = tmp_path_factory.mktemp(name)
        report_fixture.write_evidence(folder, classes, **options)
        os.chdir(folder)
        try:
            report.main()
        finally:
            os.chdir(before)
        files[name] = folder / "reports" / "index.html"
    return files


class Visit:
    """An open page, and what it complained of or asked for."""

    def __init__(self, browser, file: Path, width: int = 1280, scheme: str = "light", **options):
        context = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme, **options}
        self.page = browser.new_page(**context)
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._note)
        self._url = file.as_uri()
        self.page.goto(self._url)

    def _note(self, request) -> None:
        if request.url != self._url and not request.url.startswith(("data:", "blob:")):
            self.complaints.append(f"request: {request.url}")

    def ready(self) -> "Visit":
        """After all charts are drawn."""
        self.page.wait_for_selector("html[data-ready]", timeout=60_000)
        return self

    def shown(self) -> int:
        """Pictures in the gallery."""
        return self.page.locator("#gallery li").count()

    def status(self) -> str:
        """What the gallery says of its numbers."""
        return self.page.inner_text("#gallery-status")


@pytest.fixture
def visit(browser, page_files):
    """A function that opens one of the pages; they are closed after the test."""
    visits = []

    def open_page(name: str, **options) -> Visit:
        visits.append(Visit(browser, page_files[name], **options))
        return visits[-1]

    yield open_page
    for one in visits:
        one.page.close()


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [
        ("small", 1280, "light"),
        ("small", 390, "dark"),
        ("many", 390, "light"),
        ("many", 1280, "dark"),
    ],
)
def test_page_is_quiet_accessible_and_fits(visit, name, width, scheme):
    visited = visit(name, width=width, scheme=scheme).ready()
    page = visited.page
    assert visited.complaints == []
    drawn = page.locator(".plot .main-svg").count()
    assert drawn >= page.locator(".plot").count() > 10
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # A table of 1,000 rows is 1,000 times the same; axe takes half a minute for it.
    rest = "tbody tr:nth-child(n+40)"
    page.evaluate(f"for (const row of document.querySelectorAll('{rest}')) row.remove()")
    # The inside of a chart is one picture to assistive technology, whose name axe does check.
    found = Axe().run(page, {"exclude": [[".svg-container"]]}, {"resultTypes": ["violations"]})
    assert [(v["id"], [n["html"][:200] for n in v["nodes"][:3]]) for v in found["violations"]] == []
    assert visited.complaints == []


def test_gallery_filters_and_counts(visit):
    visited = visit("small").ready()
    page = visited.page
    text = page.locator("#page-data").text_content()
    entries = json.loads(text)["gallery"]["entries"]

    def expected(**wanted) -> int:
        return sum(all(entry[key] == value for key, value in wanted.items()) for entry in entries)

    assert len(entries) == 40
    assert visited.shown() == expected(model="fine_tuned") == 20
    page.select_option("#filter-result", "wrong")
    wrong = expected(model="fine_tuned", correct=False)
    assert visited.shown() == wrong > 0
    assert visited.status() == f"{wrong} of {wrong} matching pictures shown, of 40 in all"
    page.select_option("#filter-label", HOSTILE[0])
    one_class = expected(model="fine_tuned", correct=False, label=HOSTILE[0])
    assert visited.shown() == one_class < wrong
    page.click("button[type=reset]")
    expect(page.locator("#gallery li")).to_have_count(20)
    page.select_option("#filter-kind", "sample")
    assert visited.shown() == expected(model="fine_tuned", kinds=["sample"]) > 0
    page.select_option("#filter-kind", "")
    page.select_option("#filter-model", "")
    assert visited.shown() == 24  # of 40: the rest waits for the button
    page.focus("#more")
    page.keyboard.press("Enter")
    assert visited.shown() == 40
    assert page.locator("#more").is_hidden()
    assert page.evaluate("document.activeElement.tagName") == "LI"
    page.select_option("#filter-label", HOSTILE[0])
    page.select_option("#filter-predicted", HOSTILE[0])
    page.select_option("#filter-result", "wrong")
    assert visited.shown() == 0
    assert visited.status() == "No picture matches these filters."
    assert visited.complaints == []


def test_pictures_show_and_turn_into_explanations(visit):
    visited = visit("small").ready()
    page = visited.page
    assert visited.shown() == 20
    for image in page.locator("#gallery img").all():
        expect(image).to_have_js_property("naturalWidth", 24)
    before = page.get_attribute("#gallery img", "src")
    alt = page.get_attribute("#gallery img", "alt")
    assert re.search(r"Actual .+, predicted .+ with a probability of \d+\.\d\s%", alt)
    page.check("#filter-explained")
    assert visited.shown() == 7  # every third one has an explanation
    for image in page.locator("#gallery img").all():
        expect(image).to_have_js_property("naturalWidth", 24)
    assert page.get_attribute("#gallery img", "src") != before
    assert page.get_attribute("#gallery img", "alt").startswith("Where the model looked")
    page.uncheck("#filter-explained")
    assert page.get_attribute("#gallery img", "src") == before


def test_tables_can_be_searched_and_sorted_and_a_cell_leads_to_its_pictures(visit):
    visited = visit("many").ready()
    page = visited.page
    page.fill("#search-class-table", "class 77 of")
    assert page.locator("#class-table tbody tr:visible").count() == 1
    assert page.inner_text("#found-class-table") == "1 of 1000 rows"
    page.fill("#search-class-table", "")
    page.click("#class-table tr:last-child th:last-child button")
    changes = page.locator("#class-table tbody td:last-child").all_text_contents()
    numbers = [float(text.replace(wording.MINUS, "-")) for text in changes]
    assert numbers == sorted(numbers)
    assert numbers[0] < numbers[-1]
    assert (
        page.get_attribute("#class-table tr:last-child th:last-child", "aria-sort") == "ascending"
    )
    page.evaluate(
        "document.getElementById('confusion-head').emit('plotly_click', {points: [{x: 1, y: 0}]})"
    )
    expect(page.locator("#filter-model")).to_have_value("head")
    shown = json.loads(page.locator("#page-data").text_content())
    classes = shown["figures"]["confusion-head"]["layout"]["meta"]["classes"]
    assert page.input_value("#filter-label") == classes[0]
    assert page.input_value("#filter-predicted") == classes[1]
    assert visited.complaints == []


def test_screenshot_tool_draws_the_top_of_the_page(page_files):
    # In a process of its own, as two of Playwright's can't live in one.
    folder = page_files["small"].parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "tools.screenshot"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(report_fixture.ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    with Image.open(folder / "reports" / "screenshot.png") as picture:
        assert picture.width == screenshot.WIDTH
        colors = {color for _, color in picture.convert("RGB").getcolors(2**24)}
    models = [tuple(bytes.fromhex(style.color[1:])) for style in charts.STYLES.values()]
    assert colors.issuperset(models)


def test_page_reads_without_javascript(visit):
    page = visit("small", java_script_enabled=False).page
    text = page.inner_text("body")
    for part in ("Accuracy", "95", "Model card", "Charts and galleries need JavaScript"):
        assert part in text
    assert page.locator("#filters").is_hidden()
    assert page.locator("#headline").is_hidden()
    assert page.locator("table").first.is_visible()
