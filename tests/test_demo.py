"""tools.demo as a new user meets it: in a browser, with a real upload."""

import functools
import os
import re
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from stages.common import backbones, heads, models
from tests import ROOT
from tools import predict, screenshot

PYTHON = ROOT / ".venv-demo" / "bin" / "python"
CHROMIUM = screenshot.find_chromium()
NAMES = ["blue", "green & <b>grün</b>", "red"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None, reason=f"no browser tried the demo: {screenshot.HOW_TO_GET_CHROMIUM}"
    ),
    pytest.mark.skipif(not PYTHON.exists(), reason="`make test-all` installs what the demo needs"),
]


@pytest.fixture(scope="module")
def model_file(tmp_path_factory) -> Path:
    head = heads.build("linear", (16,), 3, hidden_units=[8], dropout=0.2)
    backbone = models.with_any_size(backbones.build("tiny", None, 32))
    path = tmp_path_factory.mktemp("model") / "toy.keras"
    models.save(models.assemble(backbone, head, temperature=0.2), path, NAMES)
    return path


@pytest.fixture(scope="module")
def uploads(tmp_path_factory) -> Path:
    """Where the server keeps what it is sent."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def address(model_file, uploads):
    """A running demo."""
    server = subprocess.Popen(
        [PYTHON, "-m", "tools.demo", "--model", model_file, "--no-browser", "--max-megabytes", "1"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(uploads)},
        stdout=subprocess.PIPE,
        text=True,
    )
    line = server.stdout.readline()
    yield re.search(r"http://\S+", line)[0]
    server.terminate()
    server.wait(timeout=30)


@pytest.fixture
def page(address):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(address)
        yield page
        browser.close()


def picture(path: Path, side: int = 32) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def upload(page, path: Path) -> None:
    page.locator("input[type=file]").first.set_input_files(path)


def test_a_dropped_image_gets_its_classes_and_a_heat_map(page, address, model_file, tmp_path):
    assert address.startswith("http://127.0.0.1:")
    file = picture(tmp_path / "photo.png")
    classifier = predict.Classifier(model_file)
    (row,) = classifier.probabilities(classifier.picture(file.read_bytes())[np.newaxis])
    upload(page, file)
    names, percents = page.locator("dl dt"), page.locator("dl dd")
    expect(names).to_have_count(len(NAMES), timeout=30_000)
    shown_percents = dict(zip(names.all_text_contents(), percents.all_text_contents(), strict=True))
    assert shown_percents == {
        name: f"{probability:.0%}" for name, probability in zip(NAMES, row, strict=True)
    }
    expect(page.get_by_test_id("label-output-value")).to_have_text(NAMES[row.argmax()])
    shown = page.locator("img[src*='/file=']")
    expect(shown).to_have_count(2, timeout=30_000)
    expect(page.get_by_text(f"apart: {', '.join(NAMES)}.")).to_be_visible()
    strangers = [url for url in page.asked if not url.startswith((address, "data:", "blob:"))]
    assert not strangers  # nothing but this machine is asked for anything


def test_what_is_no_image_gets_a_sentence(page, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(picture(tmp_path / "whole.png").read_bytes()[:-400])
    upload(page, broken)
    expect(page.get_by_text("cut off or damaged")).to_be_visible(timeout=30_000)


def test_too_large_an_upload_is_refused(page, tmp_path):
    upload(page, picture(tmp_path / "large.png", side=800))
    expect(page.get_by_text(re.compile("exceed", re.IGNORECASE)).first).to_be_visible(
        timeout=30_000
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_behind(model_file, tmp_path, number):
    server = subprocess.Popen(
        [PYTHON, "-m", "tools.demo", "--model", model_file, "--no-browser"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # As a terminal starts it: of a test run in the background Ctrl-C is ignored.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    server.stdout.readline()
    server.send_signal(number)
    _, errors = server.communicate(timeout=30)
    assert server.returncode == 0, errors
    assert "Traceback" not in errors
    assert not list(tmp_path.glob("warmstart-demo-*"))
