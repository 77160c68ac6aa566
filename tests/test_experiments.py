"""The page of experiments says what the CSV files beside it say."""

from tests import ROOT
from tools import experiment_tables


def test_means_and_spreads_are_over_seeds():
    text = "data,layers,head,features,seed,loss\nd,l,h,8,0,0.25\nd,l,h,8,1,0.75\nd,l,k,8,0,0.5\n"
    lines = experiment_tables.table(text).splitlines()
    assert lines[2:] == ["| d | l | h | 8 | 2 | 0.500 ± 0.354 |", "| d | l | k | 8 | 1 | 0.500 |"]


def test_what_a_seed_lacks_has_no_mean():
    text = "data,seed,roc_auc,loss\nd,0,,0.25\nd,1,0.5,0.25\n"
    assert experiment_tables.table(text).splitlines()[2:] == ["| d | 2 | — | 0.250 ± 0.000 |"]


def test_the_committed_page_is_made_from_the_committed_results():
    page = (ROOT / experiment_tables.PAGE).read_text(encoding="utf-8")
    assert experiment_tables.filled(page, ROOT / experiment_tables.FOLDER) == page
    assert "| solar cells | all blocks |" in page
