import pytest

from tests.test_params import error_of
from tests.training_toys import parameters


@pytest.mark.parametrize("section", ["train_head", "fine_tune"])
def test_weight_decay_that_adam_would_ignore_is_refused(section):
    assert error_of(section, {"optimizer": "adam", "weight_decay": 0.01}) == (
        f"params.yaml, {section}.weight_decay: expected 0 with adam, received 0.01; choose adamw, "
        "which is adam with weight decay"
    )
    assert parameters(optimizer="adam", weight_decay=0.0).weight_decay == 0


@pytest.mark.parametrize("value", [0, -1.0, float("inf"), True, "none"])
def test_clip_norm_takes_null_or_a_number_above_0(value):
    error = error_of("fine_tune", {"clip_norm": value})
    assert error.startswith(
        "params.yaml, fine_tune.clip_norm: expected null (no limit) or a number above 0, received "
    )


def test_warm_up_that_never_ends_is_refused():
    changes = {"schedule": "cosine", "epochs": 4, "warmup_epochs": 5.0}
    assert error_of("train_head", changes) == (
        "params.yaml, train_head.warmup_epochs: expected at most 4 (epochs), received 5.0; the "
        "rate would not have risen when training ends"
    )
    assert parameters(schedule="cosine", epochs=4, warmup_epochs=4.0).warmup_epochs == 4
