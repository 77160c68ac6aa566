"""The page on scale says what the committed benchmarks say."""

import pytest

from tests import ROOT
from tools import scaling_table


@pytest.mark.parametrize(
    ("value", "text"), [(950, "950 B"), (1.5e6, "1.5 MB"), (1.5e15, "1.5 PB"), (2e18, "2e+03 PB")]
)
def test_sizes(value, text):
    assert scaling_table.size(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(1800, "0.5 h"), (3600 * 5123, "5,100 h"), (1e9, "32 years")]
)
def test_hours(seconds, text):
    assert scaling_table.hours(seconds) == text


def test_growth_leaves_out_what_every_start_costs():
    rows = [
        {"stage": "split", "images": n, "seconds": 5 + n / 100, "peak_mebibytes": 600 + n / 1000}
        for n in (1000, 3000, 2000)
    ]
    rate, memory = scaling_table.growth(rows, "split")
    assert rate == pytest.approx(100)
    assert memory == pytest.approx(2**20 / 1000)


def test_the_committed_page_is_made_from_the_committed_benchmarks():
    page = (ROOT / scaling_table.PAGE).read_text(encoding="utf-8")
    assert scaling_table.filled(page, ROOT) == page
    assert "| frozen pass" in page
