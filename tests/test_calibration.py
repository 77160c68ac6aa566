import numpy as np
import pytest
from scipy.special import log_softmax

from stages.common import calibration


def test_temperature_recovers_the_one_that_logits_were_scaled_by():
    generator = np.random.default_rng(0)
    honest = generator.normal(0, 2, (20_000, 5))
    probabilities = np.exp(log_softmax(honest, axis=1))
    labels = np.array([generator.choice(5, p=row / row.sum()) for row in probabilities])
    assert calibration.fit_temperature(honest * 3.0, labels) == pytest.approx(3.0, rel=0.05)


@pytest.mark.parametrize("classes", [2, 10])
def test_a_small_split_that_is_all_right_does_not_make_the_model_sure_of_all(classes):
    """Of calibrated logits, 50 images that all happen to be right: 1 is the best temperature."""
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 4, (50, classes))
    temperature = calibration.fit_temperature(logits, logits.argmax(axis=1))
    assert 0.5 < temperature < 1.2


def test_few_images_of_many_classes_leave_a_calibrated_model_nearly_as_it_is():
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 4, (1020, 102))
    probabilities = np.exp(log_softmax(logits, axis=1))
    labels = np.array([generator.choice(102, p=row / row.sum()) for row in probabilities])
    assert calibration.fit_temperature(logits, labels) == pytest.approx(1, abs=0.1)
