"""Draws the top of reports/index.html as the README shows it: reports/screenshot.png.

Needs a Chromium on the machine and the requirements of the tests.
"""

import os
import shutil

from stages.common import paths
from stages.common.run import UserError, run

PICTURE = paths.REPORT.with_name("screenshot.png")
WIDTH, HEIGHT = 1000, 2560  # pixels, of the window; the picture ends with the first section
HOW_TO_GET_CHROMIUM = (
    "install a Chromium (apt-get install chromium), or name one in the variable CHROMIUM"
)


def find_chromium() -> str | None:
    """A Chromium on this machine; the variable CHROMIUM names one that is not on the path."""
    names = (os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, filter(None, names))), None)


def main() -> None:
    """Opens the page, waits for its charts, and writes the picture."""
    if not paths.REPORT.exists():
        raise UserError(f"{paths.REPORT} does not exist; `make repro` makes it")
    chromium = find_chromium()
    if chromium is None:
        raise UserError(f"no browser was found; {HOW_TO_GET_CHROMIUM}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(paths.REPORT.resolve().as_uri())
        page.wait_for_selector("html[data-ready]")
        section = page.locator("#comparison").bounding_box()
        page.screenshot(
            path=PICTURE,
            full_page=True,
            clip={"x": 0, "y": 0, "width": WIDTH, "height": section["y"] + section["height"]},
        )
        browser.close()
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    run(main, takes_arguments=False)
